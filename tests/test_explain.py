"""What people read: every figure of the plan is there, lines fit, and the code is code."""

from __future__ import annotations

import ast
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import CHANNELS_LAST, PLAN, RESIDENT, SPLIT, STRIDED, TILING, phase, promise
from rich.cells import cell_len
from rich.console import Console

from planner import explain, folding, meanings, profiles, reasons, snippet
from planner.plan import Infeasible, Plan, Rejection
from planner.prose import Dotted
from planner.request import Fidelity, Request
from planner.techniques import DEFAULT, packing
from planner.techniques.base import Option
from planner.units import format_bytes, format_seconds


def printed(plan: Plan, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor")
    for part in explain.renderables(plan):
        console.print(part, crop=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


def widest(text: str) -> int:
    return max(map(cell_len, text.splitlines()))


def test_the_first_sentence_is_the_verdict() -> None:
    said = " ".join(explain.as_text(PLAN).split("\n\n")[0].split())
    free = format_bytes(8_000_000_000 - PLAN.promise.needed)
    assert said == (
        f"sd15 at 3840×2224 on NVIDIA GeForce RTX 3070 fits in 8.00 GB: needs {format_bytes(PLAN.promise.needed)}, "
        f"{free} stay free; about 3 min 21 s."
    )


def test_every_figure_and_reason_is_told() -> None:
    text = " ".join(explain.as_text(PLAN).split())
    for each in PLAN.promise.phases:
        for amount in (each.weights, each.activations, each.scratch, each.peak):
            assert format_bytes(amount) in text
        assert f"{each.name} " in text
        assert format_seconds(each.seconds) in text
    for amount in (PLAN.promise.allocated, PLAN.promise.context, PLAN.promise.reserved, PLAN.capacity, PLAN.headroom):
        assert format_bytes(amount) in text
    for rejection in PLAN.rejected:
        assert f"{rejection.what}: {rejection.reason}" in text
    assert PLAN.notes[0] in text
    assert f"With nothing switched on: {format_bytes(PLAN.baseline.needed)}, does not fit" in text
    assert "card profile rtx-3070" in text
    assert "vae_tiling=512 (faithful)" in text
    assert "placement=resident" not in text.partition("To do the same")[0], "what happens anyway is no change"


def test_a_baseline_that_fits_is_said_to_fit() -> None:
    plain = replace(PLAN, options=(RESIDENT,), baseline=PLAN.promise, baseline_fits=True)
    text = explain.as_text(plain)
    assert "Nothing has to be switched on." in text
    assert "fits too" in text


def test_text_is_plain_and_narrow() -> None:
    text = explain.as_text(PLAN)
    assert widest(text) <= 80
    assert "\x1b" not in text
    assert text == PLAN.explain()
    assert not any(line != line.rstrip() for line in text.splitlines())


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=400), st.text(st.characters(codec="utf-8"), max_size=300))
def test_no_words_make_lines_wider(name: str, reason: str) -> None:
    stranger = replace(PLAN, notes=(name,), rejected=(Rejection(what=name, reason=reason),), options=(STRIDED,))
    assert widest(explain.as_text(stranger)) <= 80


def test_markup_in_names_is_not_obeyed() -> None:
    odd = replace(PLAN, notes=("[red]not red[/red] :smile:",))
    assert "[red]not red[/red] :smile:" in explain.as_text(odd)


def test_narrow_terminals_keep_code_whole() -> None:
    assert "    torch_dtype=torch.float16," in printed(PLAN, 40)


def test_refusal_shows_the_leanest() -> None:
    lean = replace(PLAN, budget=4_000_000_000)
    error = Infeasible(leanest=lean, phase="vae.decode", over=1_210_132_901, smallest_budget=5_300_000_000)
    console = Console(file=io.StringIO(), width=80, color_system=None)
    for part in explain.refusal(error):
        console.print(part)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "channels_last_autoencoder=vae, vae_tiling=512 (faithful)" in " ".join(text.split())
    assert format_bytes(lean.promise.needed) in text
    assert "headroom" not in text
    assert "vae.decode" in text
    assert widest(text) <= 80


def loaded(plan: Plan) -> ast.Call:
    [call] = [
        node
        for node in ast.walk(ast.parse(snippet.code(plan)))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("from_pretrained")
    ]
    return call


def keywords(call: ast.Call) -> dict[str, str]:
    return {str(each.arg): ast.unparse(each.value) for each in call.keywords}


def called(plan: Plan) -> dict[str, str]:
    calls = [node for node in ast.walk(ast.parse(snippet.code(plan))) if isinstance(node, ast.Call)]
    [call] = [call for call in calls if ast.unparse(call.func) == "pipe"]
    return keywords(call)


def test_code_loads_by_hub_id_in_the_planned_dtype_without_what_was_left_out() -> None:
    load = loaded(PLAN)
    assert ast.unparse(load.args[0]) == "'stable-diffusion-v1-5/stable-diffusion-v1-5'"
    assert keywords(load) == {"torch_dtype": "torch.float16", "safety_checker": "None"}


def test_code_loads_a_component_that_takes_part() -> None:
    checked = promise(*PLAN.baseline.phases, phase("safety_checker", 10**9, 10**6, 0, 0.01))
    assert keywords(loaded(replace(PLAN, baseline=checked))) == {"torch_dtype": "torch.float16"}


def test_code_loads_half_precision_where_that_was_chosen() -> None:
    call = "pipe = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.bfloat16)"
    half = Option(technique="precision", value="bfloat16", fidelity=Fidelity.FAITHFUL, calls=(call,))
    plan = replace(PLAN, dtype="float32", options=(half, *PLAN.options))
    assert keywords(loaded(plan))["torch_dtype"] == "torch.bfloat16"
    live = replace(plan, model="StableDiffusionPipeline")
    assert ast.unparse(loaded(live)) == ast.unparse(ast.parse(call).body[0].value), (
        "a live pipeline has to be loaded anew"
    )


def test_code_keeps_components_of_another_dtype() -> None:
    wan = replace(PLAN, model="wan2.1-t2v-1.3b", pipeline="WanPipeline", dtype="bfloat16")
    assert keywords(loaded(wan))["torch_dtype"] == "{'default': torch.bfloat16, 'vae': torch.float32}"
    asked = replace(wan, request=replace(wan.request, dtype="bfloat16"))
    assert keywords(loaded(asked))["torch_dtype"] == "torch.bfloat16"


def test_code_loads_a_folder_by_its_path(tmp_path: Path) -> None:
    folder = tmp_path / ("a long name " * 9)
    profiles.write_folder("sd15", folder)
    plan = replace(PLAN, model=str(folder))
    assert ast.literal_eval(loaded(plan).args[0]) == str(folder)
    assert widest(snippet.code(plan)) <= 80


def test_code_leaves_a_live_pipeline_as_it_is() -> None:
    code = snippet.code(replace(PLAN, model="StableDiffusionPipeline"))
    assert "from_pretrained" not in code
    assert "pipe.vae.enable_tiling()" in code


def test_code_says_what_the_options_say_in_order() -> None:
    code = snippet.code(PLAN)
    places = [code.index(call) for option in PLAN.options for call in option.calls]
    assert places == sorted(places)


def test_code_calls_with_the_request() -> None:
    request = replace(PLAN.request, images=3, extra=(("sigmas", (1.0, 0.5)), ("negative_prompt", "(a, b) [c]")))
    assert called(replace(PLAN, request=request)) == {
        "height": "2224",
        "width": "3840",
        "num_inference_steps": "20",
        "guidance_scale": "7.5",
        "num_images_per_prompt": "3",
        "sigmas": "(1.0, 0.5)",
        "negative_prompt": "'(a, b) [c]'",
    }


def test_code_loads_and_hands_over_pictures() -> None:
    given = Request(image="640x480", mask=True, height=480, width=640, strength=0.6)  # type: ignore[arg-type]
    plan = replace(PLAN, model="sdxl", pipeline="StableDiffusionXLInpaintPipeline", request=given)
    code = snippet.code(plan)
    assert "from diffusers.utils import load_image\n" in code
    assert 'image = load_image("…").resize((640, 480))' in code
    assert 'mask_image = load_image("…").resize((640, 480))' in code
    assert called(plan) == {
        "prompt": "prompt", "image": "image", "mask_image": "mask_image",
        "height": "480", "width": "640", "strength": "0.6",
    }  # fmt: skip
    assert "with a start image and a mask" in explain.verdict(plan)


def test_code_leaves_out_what_the_call_does_not_have() -> None:
    given = Request(image=True, height=768, width=768, steps=9)  # type: ignore[arg-type]
    plan = replace(PLAN, model="sdxl", pipeline="StableDiffusionXLImg2ImgPipeline", request=given)
    assert called(plan) == {"prompt": "prompt", "image": "image", "num_inference_steps": "9"}
    video = replace(PLAN, model="svd", pipeline="StableVideoDiffusionPipeline", request=given)
    assert set(called(video)) == {"image", "height", "width", "num_inference_steps"}
    assert "prompt" not in snippet.code(video)


@pytest.mark.parametrize("model", ["sdxl-controlnet", "sdxl + sdxl-controlnet"])
def test_code_loads_lent_components_from_where_they_are(model: str) -> None:
    given = Request(control=True, height=1024, width=1024)  # type: ignore[arg-type]
    plan = replace(PLAN, model=model, pipeline="StableDiffusionXLControlNetPipeline", dtype="float16", request=given)
    code = " ".join(snippet.code(plan).split())
    assert 'controlnet = ControlNetModel.from_pretrained( "diffusers/controlnet-canny-sdxl-1.0"' in code
    assert 'from_pretrained( "stabilityai/stable-diffusion-xl-base-1.0"' in code
    assert "controlnet=controlnet" in code
    assert called(plan)["image"] == "image"


def test_code_splits_the_call_and_keeps_its_arguments() -> None:
    plan = replace(PLAN, request=replace(PLAN.request, prompts=4), options=(*PLAN.options, SPLIT))
    tree = ast.parse(snippet.code(plan))
    [loop] = [node for node in ast.walk(tree) if isinstance(node, ast.ListComp)]
    assert ast.unparse(loop).startswith("[pipe(prompts[i:i + 2], height=2224, width=3840, num_inference_steps=20")
    assert ast.unparse(loop.generators[0]).strip() == "for i in range(0, 4, 2)"
    assert called(plan)["height"] == "2224"


def test_code_caps_torch_only_where_the_card_is_larger() -> None:
    assert "set_per_process_memory_fraction" in snippet.code(PLAN)
    assert "set_per_process_memory_fraction" not in snippet.code(replace(PLAN, budget=PLAN.device.free))


@pytest.mark.parametrize("option", [CHANNELS_LAST, TILING, STRIDED, RESIDENT])
def test_code_is_code_and_narrow(option: Option) -> None:
    code = snippet.code(replace(PLAN, options=(option,)))
    ast.parse(code)
    assert widest(code) <= 80
    calls = {ast.unparse(ast.parse(call)) for call in option.calls}
    assert calls <= {ast.unparse(node) for node in ast.parse(code).body}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda each: st.lists(each, max_size=4).map(tuple) | st.dictionaries(st.text(max_size=30), each, max_size=4),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z]{1,12}_", fullmatch=True), VALUES, max_size=6))
def test_folding_changes_nothing_but_lines(arguments: dict[str, object]) -> None:
    text = f"dict({', '.join(f'{name}={folding.literal(value)}' for name, value in arguments.items())})"  # type: ignore[arg-type]
    folded = folding.fold(text)
    assert eval(folded) == arguments


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=0x2FF), max_size=500))
def test_long_text_is_folded_too(words: str) -> None:
    folded = folding.fold(f"pipe(prompt, negative_prompt={folding.literal(words)})")
    assert widest(folded) <= 80
    assert ast.literal_eval(ast.parse(folded).body[0].value.keywords[0].value) == words  # type: ignore[attr-defined]


def test_what_is_packed_while_loading_is_said_to_last() -> None:
    packed = Option(
        technique="quantization", value="nf4", fidelity=Fidelity.LOSSY,
        calls=(packing.IMPORT, packing.call(PLAN.pipeline, "nf4", {"transformer": "bfloat16"})),
    )  # fmt: skip
    text = snippet.code(replace(PLAN, options=(packed,)))
    assert re.search(r"# quantization=nf4; cannot be undone\npipe = \w+\.from_pretrained\(", text)
    assert "cannot be undone" not in snippet.code(PLAN)
    assert reasons._lasting(packed).endswith("cannot be undone; for the weights as they were, load it anew.")


def test_every_technique_says_what_it_does() -> None:
    assert set(meanings.MEANINGS) == {technique.name for technique in DEFAULT}
    for technique in meanings.MEANINGS:
        usual = {"streaming": "3/9", "offload": "group_leaf", "placement": "model", "vae_tiling": 512}.get(
            technique, "2"
        )
        said = meanings.meaning(Option(technique=technique, value=usual, component="unet"))
        assert said
        assert "{" not in said
    assert meanings.meaning(Option(technique="one_of_yours", value=1)) == ""


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (
            Option(technique="streaming", component="unet", value="15/95-until-vae"),
            (
                "15 of the 95 units of unet come from host memory each time they are needed; "
                "the rest comes once, and leaves the card before vae is called"
            ),
        ),
        (
            Option(technique="streaming", component="unet", value="0/95-until-vae"),
            "unet comes to the card when it is called, and leaves it before vae is",
        ),
        (
            Option(technique="placement", value="group_block_stream_disk-without-vae"),
            (
                "each block's weights come to the card just before it works, from files, "
                "copied while the one before works; all of vae stays there"
            ),
        ),
        (
            Option(technique="vae_tiling", value="512/64"),
            "decodes in tiles of 512 pixels that overlap by 64",
        ),
        (Option(technique="quantization", value="nf4"), "linear layers keep each weight in 4 bits"),
        (RESIDENT, "all weights are on the card throughout"),
    ],
)
def test_what_an_option_does_is_said_in_words(option: Option, words: str) -> None:
    assert meanings.meaning(option) == words


def test_a_plan_says_what_its_changes_do() -> None:
    said = " ".join(explain.as_text(PLAN).split())
    assert "- vae_tiling=512 (faithful): decodes in overlapping tiles of 512 pixels" in said


def test_paths_are_broken_after_dots() -> None:
    page = Console(file=io.StringIO(), width=30, color_system=None)
    page.print(Dotted("unet.up_blocks.3.attentions.0.transformer_blocks.0.ff.net.0.proj"))
    lines = page.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "".join(lines) == "unet.up_blocks.3.attentions.0.transformer_blocks.0.ff.net.0.proj"
    assert widest("\n".join(lines)) <= 30
    assert all(line.endswith(".") for line in lines[:-1])
