"""Scratch memory of single kernels: predicted against the virtual GPU's, over the kernels of real pipelines.

    python benchmarks/workspaces.py [--seed N] [--draws N] [--cache FOLDER]

Programs are drawn from all shipped pipelines × sizes × images × dtypes × layouts; each distinct convolution and
attention in them runs alone on every architecture.  Measured: the peak while it runs, beyond what is held afterwards.
Predicted twice: as cuDNN answers when asked (`planner.cudnn`), and by the rules that stand in where there is none.
The table of results keeps the rows in which either is wrong by more than 1 MiB.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "virtual_gpu"))

import rig  # noqa: E402

from planner import cudnn, profiles  # noqa: E402
from planner.cards import card  # noqa: E402
from planner.cost import scratch  # noqa: E402
from planner.device import Device  # noqa: E402
from planner.errors import PlannerError  # noqa: E402
from planner.kernels import Attention, Conv  # noqa: E402
from planner.program import Variant  # noqa: E402
from planner.programs import FromProfile, Programs  # noqa: E402
from planner.request import Request  # noqa: E402
from planner.study import cache_folder  # noqa: E402

RESULTS = HERE / "results"
CARDS = ("t4", "a100-sxm4-80gb", "rtx-3060-12gb", "rtx-3090", "rtx-4090", "h100-sxm", "b200", "rtx-5090")
"""One of each architecture, and two of 8.6 that differ in multiprocessors."""
ROOM = 2**38
"""Bytes of every card, so that nothing is refused."""
SCALES = (0.5, 0.75, 1, 1, 1.25, 1.5)
COMPILED = 20
"""Attentions measured on compute capability 9 and 10, where cuDNN takes seconds to build each."""
SMALL = 2**20
"""Errors below this are the allocator's own grain: an unsplit block may be larger than its request by as much."""


def drawn(seed: int, draws: int, cache: Path) -> list[Conv | Attention]:
    """Distinct convolutions and attentions of programs drawn at random."""
    dice = random.Random(seed)
    kernels: dict[Conv | Attention, None] = {}
    order: list[str] = []
    for _ in range(draws):
        order = order or dice.sample(profiles.names(), len(profiles.names()))
        profile = profiles.find(order.pop())
        dtype = dice.choice((None, None, "float16", "bfloat16", "float32"))
        programs = Programs(FromProfile(profile, dtype), _request(profile, dice), cache)
        parts = frozenset(c.name for c in profile.components if c.name in ("vae", "unet"))
        variant = dice.choice((Variant(), Variant(tile=512), Variant(channels_last=parts)))
        try:
            program = programs.get(variant)
        except PlannerError as error:
            print(f"{profile.name}: {error}", file=sys.stderr)
            continue
        programs.keep()
        kernels.update((k, None) for k in program.kernels if isinstance(k, (Conv, Attention)))
    return list(kernels)


def _request(profile: profiles.PipelineProfile, dice: random.Random) -> Request:
    usual = profile.defaults
    scale = dice.choice(SCALES)
    height, width = (
        max(64, round(edge * scale * dice.choice((1, 1, 1.5)) / 64) * 64) if edge else None
        for edge in (usual.height, usual.width)
    )
    frames = {"frames": dice.choice((17, 33, usual.frames))} if usual.frames else {}
    images = 1 if frames else dice.choice((1, 1, 2, 4, 8))
    return Request(
        height=height, width=width, images=images, steps=2, guidance=usual.guidance, extra=usual.extra, **frames
    )


def on_the_card(kernels: list[dict[str, Any]]) -> list[int]:
    """Sent to the virtual GPU: bytes at the peak beyond what is held afterwards; -1 where torch refuses."""
    import torch
    from torch.nn import functional

    def tensor(shape: Sequence[int], dtype: torch.dtype, *, last: bool) -> torch.Tensor:
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape)) if last else None
        return torch.empty(shape, dtype=dtype, device="cuda", memory_format=layout or torch.contiguous_format)

    def convolution(k: dict[str, Any]) -> Callable[[], torch.Tensor]:
        dtype, last = getattr(torch, k["dtype"]), k["input_last"] or k["weight_last"]
        x = tensor(k["input"], dtype, last=last and not k["copied"])
        if k["copied"] and not last:
            x = tensor((*k["input"][:-1], k["input"][-1] + 1), dtype, last=False)[..., :-1]
        w = tensor(k["weight"], dtype, last=k["weight_last"])
        name = f"conv{'_transpose' if k['transposed'] else ''}{len(k['weight']) - 2}d"
        how = {"stride": k["stride"], "padding": k["padding"], "dilation": k["dilation"], "groups": k["groups"]}
        return lambda: getattr(functional, name)(x, w, **how)

    def attention(k: dict[str, Any]) -> Callable[[], torch.Tensor]:
        dtype = getattr(torch, k["dtype"])

        def heads(length: int, size: int) -> torch.Tensor:
            return tensor((k["batch"], length, k["heads"], size), dtype, last=False).transpose(1, 2)

        q, key = heads(k["queries"], k["head_size"]), heads(k["keys"], k["head_size"])
        v = heads(k["keys"], k["value_size"])
        mask = None
        if k["mask"] != "none":
            rows = k["mask_size"] // k["mask_columns"]
            images = k["batch"] if rows % k["batch"] == 0 else 1
            queries = k["queries"] if rows // images % k["queries"] == 0 else 1
            shape = (images, rows // images // queries, queries, k["mask_columns"])
            mask = tensor(shape, torch.bool if k["mask"] == "bool" else dtype, last=False)
        return lambda: functional.scaled_dot_product_attention(q, key, v, attn_mask=mask, is_causal=k["causal"])

    def measured(k: dict[str, Any]) -> int:
        torch.cuda.empty_cache()
        call = (convolution if "weight" in k else attention)(k)
        torch.cuda.reset_peak_memory_stats()
        out = call()
        extra = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
        del out
        return extra

    warm = torch.empty(8, 8, device="cuda")
    warm @ warm
    sizes = []
    for kernel in kernels:
        try:
            with torch.no_grad():
                sizes.append(measured(kernel))
        except RuntimeError:  # noqa: PERF203
            sizes.append(-1)
    return sizes


def device(name: str) -> Device:
    """A card with all the memory one could wish for."""
    return replace(card(name), total=ROOM, free=ROOM)


def rows(kernels: Sequence[Conv | Attention], server: rig.Server) -> Iterator[dict[str, Any]]:
    """One row per kernel and card."""
    for name in CARDS:
        where = device(name)
        chosen = list(kernels)
        if where.compute_capability[0] in (9, 10):
            attentions = [kernel for kernel in kernels if isinstance(kernel, Attention)][COMPILED:]
            chosen = [kernel for kernel in kernels if kernel not in set(attentions)]
        given = [asdict(kernel) for kernel in chosen]
        seen = server.script(on_the_card, {"kernels": given}, **rig.card(name) | {"vram": ROOM}, limit=1200)
        asked = [scratch(kernel, where) for kernel in chosen]
        with patch.object(cudnn, "library", lambda: None):
            ruled = [scratch(kernel, where) for kernel in chosen]
        for kernel, size, by_cudnn, by_rule in zip(chosen, seen, asked, ruled, strict=True):
            yield {"card": name, **described(kernel), "measured": size, "asked": by_cudnn, "ruled": by_rule}


def described(kernel: Conv | Attention) -> dict[str, str]:
    """What a reader of the table must know."""
    if isinstance(kernel, Attention):
        shape = (
            f"{kernel.batch}x{kernel.heads} q{kernel.queries} k{kernel.keys} d{kernel.head_size}/{kernel.value_size}"
        )
        return {"kind": "attention", "dtype": kernel.dtype, "shape": f"{shape} {kernel.mask}", "how": kernel.backend}
    x, w = ("x".join(map(str, shape)) for shape in (kernel.input, kernel.weight))
    dims = len(kernel.weight) - 2
    names = {
        f"stride {kernel.stride}": set(kernel.stride) > {1},
        f"dilation {kernel.dilation}": set(kernel.dilation) > {1},
        f"groups {kernel.groups}": kernel.groups > 1,
        "transposed": kernel.transposed, "input last": kernel.input_last, "weight last": kernel.weight_last,
        "copied": kernel.copied,
    }  # fmt: skip
    how = ", ".join(name for name, holds in names.items() if holds)
    return {"kind": f"conv{dims}d", "dtype": kernel.dtype, "shape": f"{x} * {w}", "how": how}


def report(table: Iterable[dict[str, Any]], seed: int, draws: int) -> str:
    """Errors by card, kind and dtype, as markdown."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in table:
        if row["measured"] >= 0:
            groups[row["kind"], row["dtype"], row["card"]].append(row)
    lines = [
        "# Scratch memory of single kernels, predicted and measured",
        "",
        f"`python benchmarks/workspaces.py --seed {seed} --draws {draws}`.  MiB; a miss is wrong by more than 1 MiB",
        "and 1 %.  `asked`: cuDNN's own answer; `ruled`: the rules where there is no cuDNN.",
        "",
        "| kind | dtype | card | kernels | asked: misses | under | over | ruled: misses | under | over | median |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for key, members in sorted(groups.items()):
        cells = [*key, str(len(members))]
        for column in ("asked", "ruled"):
            errors = [(row[column] - row["measured"]) / 2**20 for row in members]
            misses = sum(
                abs(e) > max(SMALL, row["measured"] / 100) / 2**20 for e, row in zip(errors, members, strict=True)
            )
            cells += [str(misses), f"{min(errors):.1f}", f"{max(errors):.1f}"]
        relative = [abs(row["ruled"] - row["measured"]) / max(row["measured"], SMALL) for row in members]
        lines.append(f"| {' | '.join(cells)} | {statistics.median(relative):.2%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--draws", type=int, default=36, help="programs")
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="folder of recorded programs")
    asked = parser.parse_args()
    kernels = drawn(asked.seed, asked.draws, asked.cache)
    print(f"{len(kernels)} kernels", flush=True)
    table = []
    with rig.Server() as server, (RESULTS / "workspaces.csv").open("w", newline="") as lines:
        writer = None
        for row in rows(kernels, server):
            writer = writer or csv.DictWriter(lines, row, lineterminator="\n")
            if not table:
                writer.writeheader()
            if any(abs(row[column] - row["measured"]) > SMALL for column in ("asked", "ruled")):
                writer.writerow(row)
            table.append(row)
    (RESULTS / "workspaces.md").write_text(report(table, asked.seed, asked.draws))


if __name__ == "__main__":
    main()
