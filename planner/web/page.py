"""Page: the form and its answers laid out with Gradio.  What is asked and shown is decided elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from dataclasses import fields as fields_of
from typing import Any

import gradio as gr

from planner.errors import BadRequest, PlannerError
from planner.request import Fidelity
from planner.web import answers, view
from planner.web import form as forms
from planner.web.desk import Desk
from planner.web.form import FIELDS, Form
from planner.web.view import View

STYLE = """
.gradio-container { width: 100% !important; max-width: 1320px !important; margin: 0 auto !important; }
.gradio-container .prose .plan h1 { font-size: 1.4rem; line-height: 1.3; margin: 0 0 4px; }
.gradio-container .prose .plan a { text-decoration: underline; color: inherit; margin: 0 14px 0 0;
  padding: 0; white-space: nowrap; }
.gradio-container :is(main, .column, .row, .tabs, .tabitem, .block), .main, .main > .wrap { min-width: 0 !important; }
#form { flex: 0 0 320px; }
@media (max-width: 800px) { #form { flex: 1 1 100%; } #form, #answer { width: 100%; } }
#form .secondary-wrap input { text-overflow: ellipsis; padding-right: 28px; }
.plan .refusal { border-left: 3px solid var(--bad); padding: 6px 0 6px 14px; margin: 12px 0; }
"""
SHARED = """
const share = () => {
  const link = element.querySelector("a.share");
  if (!link) return;
  history.replaceState(null, "", link.getAttribute("href"));
  if (window.parent !== window)
    window.parent.postMessage({ queryString: link.search.slice(1) }, "https://huggingface.co");
};
watch("value", share);
share();
"""
"""Keeps the address in step with the answer, and that of the page around it on Spaces, which asks to be told."""
TYPED = ("vram", "width", "height", "frames", "batch", "steps", "budget")
"""Fields that are answered with Enter or the button: half of a size would be recorded for nothing."""
BUDGETS = "Budgets"
"""The tab that takes its time, and is filled only while it is looked at."""


@dataclass(slots=True)
class Look:
    """What one reader looks at.  Gradio hands every event of a tab of the browser the same one."""

    tab: str = ""
    turns: int = 0
    """Changes of what is looked at; an answer that was begun before the last of them is not wanted any more."""

    def turn(self, tab: str | None = None) -> int:
        """Look at a tab, or at the same one with other values: the number of this look."""
        self.tab = self.tab if tab is None else tab
        self.turns += 1
        return self.turns


def serve(desk: Desk, start: Form, *, host: str, port: int | None = None, browser: bool = False) -> Any:
    """Start the page: `local_url` is where it is, and `close()` ends it.  Raises BadRequest where the port is taken."""
    page = built(desk, forms.completed(start))
    try:
        page.launch(
            server_name=host, server_port=port, inbrowser=browser, share=False, quiet=True, ssr_mode=False,
            prevent_thread_lock=True, footer_links=[], theme=_theme(), head=f"<style>{view.STYLE}{STYLE}</style>",
        )  # fmt: skip
    except OSError as error:
        raise BadRequest(f"No page can be served at port {port} of {host}; give another with --port.") from error
    return page


def _theme() -> Any:
    """Fonts of the reader's own machine: nothing is fetched."""
    font = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    mono = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
    return gr.themes.Default(primary_hue="indigo", neutral_hue="slate", font=font, font_mono=mono)


def built(desk: Desk, start: Form) -> Any:
    """The page, which opens with `start` or with what its link says."""
    with gr.Blocks(title="vram-planner", analytics_enabled=False) as page:
        gr.HTML(view.heading())
        with gr.Row(equal_height=False):
            with gr.Column(scale=0, min_width=320, elem_id="form"):
                fields = _fields(start)
                go = gr.Button("Plan", variant="primary")
            with gr.Column(scale=1, min_width=320, elem_id="answer"):
                verdict = gr.HTML(view.waiting("Planning …"), elem_id="verdict", js_on_load=SHARED)
                with gr.Tabs() as tabs:
                    with gr.Tab("Memory"):
                        pictures = gr.HTML(elem_id="pictures")
                    with gr.Tab(BUDGETS):
                        budgets = gr.HTML(elem_id="budgets")
                    with gr.Tab("Code"):
                        code = gr.Code(language="python", elem_id="code", show_label=False, container=False)
                    with gr.Tab("Reasons"):
                        reasons = gr.HTML(elem_id="reasons")
        look = gr.State(Look())
        handlers = Handlers(desk, start, fields, look)
        outputs = [*fields.values(), verdict, pictures, reasons, code]
        how: dict[str, Any] = {"outputs": outputs, "show_progress_on": [verdict], "concurrency_id": "plan"}
        inputs = {*fields.values(), look}
        edited = [fields[name].submit for name in TYPED]
        edited += [fields[name].input for name in ("card", "fidelity", "plain")]
        answered = [
            page.load(handlers.opened, **how),
            fields["model"].input(handlers.chosen, inputs, **how),
            gr.on(edited, handlers.changed, inputs, trigger_mode="always_last", **how),
            go.click(handlers.changed, inputs, scroll_to_output=True, **how),
        ]
        for event in (*answered, tabs.select(handlers.turned, look, None)):
            event.then(handlers.budgets, inputs, budgets, trigger_mode="multiple", concurrency_limit=None)
    return page


def _fields(start: Form) -> dict[str, Any]:
    """A component for each field of the form, by name."""
    made: dict[str, Any] = {}

    def add(kind: Any, name: str, label: str, **more: Any) -> None:
        made[name] = kind(value=getattr(start, name), label=label, elem_id=f"field-{name}", **more)

    count = {"precision": 0, "min_width": 100, "placeholder": "usual"}
    add(gr.Dropdown, "model", "Model", choices=forms.models(), allow_custom_value=True)
    add(gr.Dropdown, "card", "Card", choices=forms.cards())
    add(gr.Textbox, "vram", "Its memory", visible=start.card == forms.OTHER)
    with gr.Row():
        add(gr.Number, "width", "Width", **count)
        add(gr.Number, "height", "Height", **count)
    add(gr.Number, "frames", "Frames", visible=start.frames is not None, **count)
    with gr.Row():
        add(gr.Number, "batch", "Images at once", **count)
        add(gr.Number, "steps", "Steps", **count)
    add(gr.Textbox, "budget", "Budget", info="8GB, 8GiB, 80%, or auto: all of it")
    levels = [level.name.lower() for level in Fidelity]
    meant = "exact: the same numbers; faithful: tiles and half precision too; lossy: weights in 8 or 4 bits too"
    add(gr.Radio, "fidelity", "Fidelity", choices=levels, info=meant)
    add(gr.Checkbox, "plain", "Plain diffusers", info="Only what its own code can do")
    assert tuple(made) == FIELDS
    return made


class Handlers:
    """What Gradio calls; each gives new values for the fields and for all that is shown."""

    def __init__(self, desk: Desk, start: Form, fields: Mapping[str, Any], look: Any) -> None:
        self._desk, self._start, self._fields, self._look = desk, start, fields, look

    def opened(self, request: gr.Request) -> Iterator[list[Any]]:
        """The page with what its link says."""
        try:
            form = forms.read(request.query_params, self._start)
        except PlannerError as error:
            yield [*_filled(self._start), *astuple(view.refusal(error))]
            return
        yield from self._answered(form, _filled(form))

    def chosen(self, given: dict[Any, Any]) -> Iterator[list[Any]]:
        """Another model: what is usual for it is filled in."""
        given[self._look].turn()
        form = replace(self._form(given), width=None, height=None, frames=None, steps=None)
        try:
            form = forms.completed(form)
        except PlannerError as error:
            yield [*_kept(Form), *astuple(view.refusal(error))]
            return
        yield from self._answered(form, _filled(form))

    def changed(self, given: dict[Any, Any]) -> Iterator[list[Any]]:
        """Any other field."""
        given[self._look].turn()
        form = self._form(given)
        card = gr.update(visible=form.card == forms.OTHER)
        yield from self._answered(form, [card if name == "vram" else gr.skip() for name in FIELDS])

    def budgets(self, given: dict[Any, Any]) -> Iterator[Any]:
        """What each budget buys, while somebody looks."""
        look: Look = given[self._look]
        mine = look.turn()
        if look.tab != BUDGETS:
            yield view.waiting("")
            return
        for shown in answers.budgets(self._desk, self._form(given)):
            if look.turns != mine:
                return
            yield shown

    def turned(self, look: Look, event: gr.SelectData) -> None:
        """The tab that is looked at."""
        look.turn(str(event.value))

    def _form(self, given: Mapping[Any, Any]) -> Form:
        return Form(**{name: given[field] for name, field in self._fields.items()})

    def _answered(self, form: Form, filled: list[Any]) -> Iterator[list[Any]]:
        yield [*filled, *_kept(View)]
        for shown in answers.plans(self._desk, form):
            if isinstance(shown, View):
                yield [*_kept(Form), *astuple(shown)]
            else:
                yield [*_kept(Form), view.waiting(shown), *_kept(View)[1:]]


def _filled(form: Form) -> list[Any]:
    """The fields with what a form says, as far as they concern its model and card."""
    hidden = {"vram": form.card != forms.OTHER, "frames": form.frames is None}
    given = zip(FIELDS, astuple(form), strict=True)
    return [gr.update(value=value, visible=not hidden.get(name, False)) for name, value in given]


def _kept(what: type) -> list[Any]:
    """Each field of a form or a view as it is."""
    return [gr.skip()] * len(fields_of(what))
