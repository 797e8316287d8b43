"""bitsandbytes on full-size pipelines: foreseen on ghosts, and as its own layers behave on the card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rig
import torch
from quantized import CARD, LEFT, SIZES, call, denoiser, priced, within
from rig import Server
from techniques import tiny

import planner
from planner.cards import card
from planner.loading import card_peak, sizes
from planner.snippet import code
from planner.techniques import DEFAULT

pytest.importorskip("bitsandbytes")

CASES = (
    *((model, "nf4", place) for model in SIZES for place in ("resident", "model")),
    *((model, "llm_int8", "resident") for model in ("flux1-dev", "sd3-medium", "sdxl")),
    *((model, "fp4", "resident") for model in ("sdxl", "sd3-medium", "wan2.1-t2v-1.3b")),
)


@pytest.fixture(scope="module")
def vgpu() -> Iterator[Server]:
    """A server of its own: bitsandbytes takes its kernels for CPUs where it is loaded before there is a card, as by a
    server that keeps a pipeline ready for other tests.
    """
    if lacking := rig.missing():
        pytest.skip(lacking)
    with Server() as server:
        yield server


def run(model: str, value: str, place: str, call: dict[str, Any]) -> dict[str, Any]:
    """Sent to the virtual GPU: two steps of a pipeline that is packed as `planner.load` packs it."""
    import torch
    from inside import arguments, peaks, pipelines, smallvalues

    from planner.techniques import Option, packing
    from planner.techniques.live import modules
    from planner.techniques.placement import Placement
    from planner.techniques.quantization import Quantization

    mode = smallvalues.install()  # noqa: F841  (lives as long as the process)
    if value == "llm_int8":  # a quarter of the columns has large numbers
        some = torch.Tensor.any
        torch.Tensor.any = lambda self, *a, **k: (
            some(self, *a, **k) if a or k else torch.tensor(True, device=self.device)
        )  # type: ignore[method-assign]
        torch.argwhere = lambda mask: torch.arange(mask.shape[0] // 4, device=mask.device)
    pipe, technique = pipelines.shipped(model), Quantization(for_good=True)
    for name, part in modules(pipe).items():
        if technique.takes(name, part):
            packing.pack(part, value, 2**40)
    torch.cuda.empty_cache()
    packing_took, stays = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
    heard = peaks.Peaks(pipe)
    technique.apply(pipe, Option(technique="quantization", value=value))
    undo = Placement().apply(pipe, Option(technique="placement", value=place))
    with torch.no_grad():
        pipe(**arguments.of(pipe, call))
    seen = {**heard.whole, "phases": heard.phases, "packing": packing_took, "stays": stays}
    undo()
    torch.cuda.empty_cache()
    return seen | {"left": torch.cuda.memory_allocated()}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs recorded once for all tests of this file."""
    return tmp_path_factory.mktemp("programs")


@pytest.mark.parametrize(("model", "value", "place"), CASES)
def test_memory_is_as_foreseen(vgpu: Server, cache: Path, model: str, value: str, place: str) -> None:
    programs, pricer = priced(model, value, cache)
    (root,) = pricer.roots()
    (settled,) = (option for option in pricer.offered("placement", root) if option.value == place)
    foreseen = pricer.rehearse(pricer.price(pricer.merged(root, (settled,))), None)
    read, stays = sizes(programs, root.candidate, DEFAULT)
    programs.keep()
    sent = {"model": model, "value": value, "place": place, "call": call(model)}
    seen = vgpu.script(run, sent, **rig.card(CARD))
    by_phase = {name: allocated for name, allocated, _ in foreseen.phases}
    assert within(foreseen.allocated, seen["allocated"], 1.005)
    if place == "resident":  # else a phase is promised until the next component is called, and measured until its end
        phase = denoiser(model)
        most = 1.02 if value == "llm_int8" else 1.005  # large numbers are given the room of all columns
        assert within(by_phase[phase], seen["phases"][phase]["allocated"], most)
    assert seen["packing"] <= card_peak(read, stays)
    assert not seen["stays"]
    assert seen["left"] < LEFT


def loaded(folder: str, snippet: str, wanted: dict[str, Any]) -> list[Any]:
    """Sent to the virtual GPU: a pipeline loaded by the printed code and by the planner, and what the layers take."""
    import torch
    from inside import smallvalues

    import planner
    from planner.packed import parts

    mode = smallvalues.install()  # noqa: F841  (lives as long as the process)
    space: dict[str, Any] = {}
    with torch.no_grad():
        exec(snippet.replace('"…"', '"a cat"'), space)
    torch.cuda.set_per_process_memory_fraction(1.0)
    pipe, plan = planner.load(folder, **wanted)
    return [
        [
            (name, type(weight).__name__, weight.device.type, sorted(part.tensor.nbytes for part in parts(weight)))
            for name, weight in each.unet.named_parameters()
        ]
        for each in (space["pipe"], pipe)
    ] + [list(plan.notes)]


def test_the_printed_code_loads_the_same(vgpu: Server, tmp_path: Path) -> None:
    tiny.stable_diffusion(tmp_path / "letters").to(torch.bfloat16).save_pretrained(tmp_path / "pipeline")
    wanted: dict[str, Any] = {"height": 64, "width": 64, "steps": 2, "fidelity": "lossy", "use": ["quantization=nf4"]}
    plan = planner.plan(tmp_path / "pipeline", device=card("rtx-3070"), cache=tmp_path / "cache", **wanted)
    sent = {"folder": str(tmp_path / "pipeline"), "snippet": code(plan), "wanted": wanted}
    theirs, ours, notes = vgpu.script(loaded, sent, **rig.card("rtx-3070"))
    assert theirs == ours
    assert {"Params4bit"} < {kind for _, kind, *_ in ours}
    assert {place for *_, place, _ in ours} == {"cuda"}
    assert any("of the card for a layer" in note for note in notes)
