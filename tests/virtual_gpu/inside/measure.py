"""One measurement: build a pipeline, switch techniques on, call it, and say what torch's allocator saw."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from inside import arguments, pipelines, smallvalues, switches
from inside.peaks import Peaks


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a `rig.Job`, a `rig.Result`."""
    mode = smallvalues.install()
    if fraction := job.get("fraction"):
        torch.cuda.set_per_process_memory_fraction(fraction)
    if "model" in job:
        pipe = pipelines.shipped(job["model"], job.get("dtype"), parts=job.get("parts"))
    else:
        pipe = pipelines.load(job["folder"], job.get("dtype", "float16"), parts=job.get("parts"))
    began, peaks = time.perf_counter(), Peaks(pipe)
    out: dict[str, Any] = {"oom": "", "weights": 0}
    try:
        switches.apply(pipe, job.get("do", ()))
        out["weights"] = torch.cuda.memory_allocated()
        call = arguments.of(pipe, job.get("call", {}))
        with torch.no_grad():
            pipe(**call)
    except torch.OutOfMemoryError as error:
        out["oom"] = str(error)
    out |= {**peaks.whole, "phases": peaks.phases, "retries": torch.cuda.memory_stats()["num_alloc_retries"]}
    out["seconds"] = time.perf_counter() - began
    mode.__exit__(None, None, None)
    return out
