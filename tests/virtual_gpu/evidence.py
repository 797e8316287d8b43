"""Where each technique is shown to take what is promised, and to be gone when it is taken back: EVIDENCE.md.

    python tests/virtual_gpu/evidence.py

Read from the cases of the tests here, which run with every change, and from committed results of two benchmarks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
FILE = HERE / "EVIDENCE.md"
sys.path[:0] = [str(PROJECT), str(HERE.parent), str(HERE), str(PROJECT / "benchmarks")]

import combinations  # noqa: E402
import founding  # noqa: E402
import test_expandable  # noqa: E402
import test_gguf  # noqa: E402
import test_group  # noqa: E402
import test_offload_on_card  # noqa: E402
import test_packing  # noqa: E402
import test_quantization  # noqa: E402
import test_step_caches  # noqa: E402
import test_techniques  # noqa: E402
from measuring import options_of  # noqa: E402

from planner.techniques import group  # noqa: E402
from planner.techniques.attention_libraries import LIBRARIES  # noqa: E402
from planner.techniques.offload import UNSTREAMED  # noqa: E402
from planner.techniques.packing import BITS  # noqa: E402

ENOUGH = 3
"""Pipelines, where as many can have it."""
NEAR = (-0.005, 0.01)
"""What a peak of founding.csv may be off by."""
HEAD = """# What shows that each technique keeps its word

Written by `python tests/virtual_gpu/evidence.py` and checked by `tests/test_evidence.py`.

- **As promised**: full-size pipelines whose allocated peak on the virtual GPU is as promised, by tests of this folder,
  `benchmarks/results/founding.csv` or `combinations.csv`.
- **Taken back**: those of them to which a plan was applied by `plan.apply`, and whose state after `plan.revert` is
  the one before (`planner.snapshot`), by tests of this folder or `combinations.csv`.
- **Same bits**: a test in `tests/techniques` of small real pipelines on the CPU, whose output after the revert is that
  of before, bit by bit.

| technique | as promised | taken back | same bits | why no more |
|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One technique, or some of its values: those that begin with one of `values`."""

    technique: str
    bits: str
    """Test of `tests/techniques`, file and name."""
    values: tuple[str, ...] = ("",)
    exact: bool = False
    """The value is one of them, and does not only begin so."""
    why: str = ""
    """The reason, where fewer pipelines than enough can have it."""

    @property
    def name(self) -> str:
        values = [value.rstrip(":") for value in self.values if value]
        return f"`{self.technique}`" + (f" {', '.join(values)}" if values else "")

    def covers(self, technique: str, value: str) -> bool:
        """Whether an option is of this row."""
        value = value.partition("-without-")[0] if technique == "placement" else value
        alike = value in self.values if self.exact else value.startswith(self.values)
        return technique == self.technique and alike


@dataclass(frozen=True, slots=True)
class Shown:
    """An option on a full-size pipeline; `back` where it was reverted, too."""

    model: str
    technique: str
    value: str
    back: bool


STAYS = "what is packed while loading stays packed"
ONE_CLASS = "graphs of `UNet2DConditionModel` alone serve every step"
UNWRITTEN = "the virtual GPU has no kernels that inductor would generate: memory is not modelled (docs/limits.md)"
ABSENT = "packages built for physical cards: what they hold is read from their sources (docs/limits.md)"
INSTALLED = "run here where xFormers is installed, which is not among the extras that tests need"
DISK, IN_FLIGHT, RECORDED = (
    tuple(value for value in group.ALL if value.endswith(way)) for way in ("_disk", "_low_cpu_mem", "_record")
)
DISPATCHED = "test_attention.py::test_a_transformer_is_dispatched_there_and_back"
ROWS = (
    *(
        Row(technique="placement", values=(value,), exact=True, bits="test_placement.py::test_exact_during_and_after")
        for value in ("resident", "model", "sequential")
    ),
    *(
        Row(technique="placement", values=(value,), exact=True, bits="test_group.py::test_exact_during_and_after")
        for value in group.GROUPINGS
    ),
    *(
        Row(
            technique="placement", values=values, exact=True,
            bits="test_group.py::test_what_is_named_is_applied_and_taken_back",
        )
        for values in (DISK, IN_FLIGHT, RECORDED)
    ),
    *(
        Row(technique="offload", values=values, exact=True, bits="test_offload.py::test_exact_during_and_after")
        for values in (UNSTREAMED, DISK)
    ),
    Row(technique="streaming", bits="test_streaming.py::test_exact_during_and_after"),
    Row(technique="micro_batch", bits="test_micro_batch.py::test_the_same_images_and_nothing_stays"),
    Row(technique="split", bits="test_split.py::test_one_generator_per_image"),
    Row(technique="decode_chunks", bits="test_chunks.py::test_frames_are_decoded_a_few_at_a_time"),
    Row(
        technique="forward_chunks", bits="test_chunks.py::test_feed_forward_layers_of_an_image_take_row_by_row",
        why="two classes of denoisers can",
    ),
    Row(technique="vae_tiling", bits="test_vae_tiling.py::test_close_during_and_equal_after"),
    Row(technique="vae_slicing", bits="test_vae_slicing.py::test_exact_during_and_after"),
    Row(technique="vae_frames", bits="test_chunks.py::test_a_video_is_decoded_in_runs"),
    Row(technique="vae_on_host", bits="test_vae_on_host.py::test_nothing_of_it_stays"),
    *(
        Row(technique="attention", values=(value,), exact=True, bits="test_attention.py::test_a_unet")
        for value in ("flash", "efficient", "math", "sliced")
    ),
    Row(technique="attention", values=("cudnn",), bits=DISPATCHED),
    Row(technique="attention", values=("xformers",), bits=DISPATCHED, why=INSTALLED),
    Row(
        technique="attention", values=tuple(LIBRARIES), exact=True, why=ABSENT,
        bits="test_attention.py::test_a_package_is_dispatched_to_and_left_again",
    ),
    *(
        Row(technique=f"channels_last_{role}", bits="test_channels_last.py::test_only_the_order_in_memory_changes")
        for role in ("denoiser", "vae")
    ),
    Row(technique="fused_qkv", bits="test_fused_qkv.py::test_exact_during_and_after"),
    Row(technique="precision", bits="test_precision.py::test_revert_is_exact"),
    Row(
        technique="layerwise_casting",
        bits="test_layerwise_casting.py::test_smaller_while_applied_and_bit_equal_after",
    ),
    *(
        Row(
            technique="quantization", values=(value,), exact=True,
            bits="test_quantization.py::test_smaller_while_applied_and_bit_equal_after",
        )
        for value in ("int8", "float8")
    ),
    *(Row(technique="quantization", values=(value,), exact=True, bits="", why=STAYS) for value in BITS),
    Row(technique="GGUF", bits="", why="another source of weights, not a technique: nothing is taken back"),
    *(
        Row(technique="step_cache", values=(f"{kind}:",), bits="test_step_cache.py::test_gone_after", why=why)
        for kind, why in (
            ("first_block", ""), ("pyramid", ""), ("faster", ""), ("taylorseer", ""), ("taylorseer_lite", ""),
            ("mag", "diffusers ships ratios of FLUX.1 alone"),
        )
    ),
    Row(technique="expandable_segments", bits="", why="of CUDA's allocator, which a CPU run never asks"),
    Row(technique="tracing", values=("jit",), bits="test_tracing.py::test_jit", why=ONE_CLASS),
    Row(technique="tracing", values=("compile",), bits="test_tracing.py::test_compile_blocks", why=UNWRITTEN),
)  # fmt: skip


def shown() -> Iterator[Shown]:
    """All that tests and results show."""
    for case in test_techniques.CASES:
        yield Shown(case.model, case.use[0], str(case.use[1]), True)
        yield Shown(case.model, "placement", case.placement, True)
    for model, value, placement in test_step_caches.CASES:
        yield Shown(model, "step_cache", value, True)
        yield Shown(model, *(("streaming", "") if placement == "streaming" else ("placement", placement)), True)
    values = {grouping: name for name, grouping in group.GROUPINGS.items()}
    yield from (Shown(model, "placement", values[g], False) for model, g in test_group.CASES if g in values)
    yield from (Shown(model, "placement", value, True) for model, value in test_group.FURTHER)
    for offloaded in test_offload_on_card.CASES:
        yield from (Shown(offloaded.model, way, value, True) for way, _, value in offloaded.ways)
    yield from (Shown(model, "expandable_segments", "", True) for model in ("sd15", *test_expandable.CASES))
    for cases in (test_packing.CASES, test_quantization.CASES):
        yield from (Shown(model, "quantization", value, False) for model, value, _ in cases)
    yield from (Shown(model, "GGUF", kind, False) for model, kind, _ in test_gguf.CASES)
    yield from _founding()
    yield from _combinations()


def _founding() -> Iterator[Shown]:
    for row in founding.read(RESULTS / "founding.csv"):
        if row.phase == founding.WHOLE and NEAR[0] <= row.errors[0] <= NEAR[1]:
            model = row.setting.partition(" ")[0]
            yield from (Shown(model, o.technique, str(o.value), False) for o in options_of(row.options))


def _combinations() -> Iterator[Shown]:
    for row in combinations.read(RESULTS / "combinations.csv"):
        if row.kept:
            yield from (Shown(row.model, o.technique, str(o.value), True) for o in options_of(row.options))


def pipelines(row: Row, everything: list[Shown], *, back: bool) -> list[str]:
    """Those that show a row, each once."""
    return sorted({s.model for s in everything if row.covers(s.technique, s.value) and (s.back or not back)})


def page() -> str:
    """All of EVIDENCE.md."""
    everything = list(shown())
    return HEAD + "".join(f"| {' | '.join(_cells(row, everything))} |\n" for row in ROWS)


def _cells(row: Row, everything: list[Shown]) -> Iterator[str]:
    shown, back = (pipelines(row, everything, back=back) for back in (False, True))
    missing = [model for model in shown if model not in back]
    yield row.name
    yield f"{len(shown)}: {', '.join(shown)}" if shown else "–"
    yield "–" if not back else f"all but {', '.join(missing)}" if missing else "all"
    yield f"`{row.bits}`" if row.bits else "–"
    yield row.why


if __name__ == "__main__":
    FILE.write_text(page(), "utf-8")
