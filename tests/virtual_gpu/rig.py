"""The virtual GPU from outside: build it, and run jobs and scripts in processes that see it."""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypedDict

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent
BUILD = HERE / "build"
GIB = 2**30
LIMIT = 300
"""Seconds a job may take."""
LINKED = ("torch", "torchvision", "xformers", "bitsandbytes")
"""Distributions whose undefined symbols the library answers."""
UNASKED = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "XFORMERS_ENABLE_TRITON": "1", "TORCH_DISABLE_NATIVE_JIT": "1"}
"""Variables under which torch counts cards through NVML and xformers does not ask the card's capability when imported:
a process can then fork.  Each operator of xformers still checks the capability it needs.  The last leaves out kernels
that Triton would generate for single operations, as products with one row (torch/_native); cuBLAS's stand in."""


class Failed(RuntimeError):
    """A job or script raised in its process; the message is its traceback."""


class Peak(TypedDict):
    """Bytes."""

    allocated: int
    reserved: int


class Job(TypedDict, total=False):
    """One call of one pipeline on one card."""

    model: str
    """Short name of a shipped profile; or:"""
    folder: str
    """a folder in hub layout."""
    dtype: str
    """`float16`, `bfloat16` or `float32`; by default what the profile says, float16 for a folder."""
    parts: dict[str, str]
    """Dtypes of single components; `none` leaves one out."""
    call: dict[str, Any]
    """Arguments of the call; `batch` repeats the prompt.  Two steps unless said otherwise."""
    do: list[str]
    """Techniques, by their names in inside/switches.py."""
    vram: int
    """Bytes; 80 GiB by default."""
    cc: str
    """Compute capability, 8.0 by default."""
    card: dict[str, str | int]
    """Further properties, see `environment`."""
    fraction: float
    """Of the card, for `set_per_process_memory_fraction`."""


class Result(TypedDict):
    """What torch's allocator saw, in bytes."""

    allocated: int
    reserved: int
    weights: int
    """Allocated before the call."""
    phases: dict[str, Peak]
    """Peaks while a component worked: `unet`, `vae.decode`."""
    oom: str
    """The message of the OutOfMemoryError, or empty."""
    retries: int
    """Allocations that succeeded only after the cache was emptied."""
    seconds: float
    """Of this machine; no card's."""


def missing() -> str:
    """What the virtual GPU needs and this machine lacks; empty if nothing."""
    for tool in ("g++", "gcc", "nm"):
        if shutil.which(tool) is None:
            return f"the virtual GPU is compiled with {tool}, which is not installed"
    try:
        site = Path(str(distribution("torch").locate_file("")))
    except PackageNotFoundError:
        return "torch is not installed"
    needed = (site / "torch/lib/libtorch_cuda.so", site / "nvidia/cu13/include/cuda.h")
    return "" if all(file.exists() for file in needed) else "the virtual GPU needs a CUDA 13 build of torch"


def ensure_built() -> Path:
    """The folder of the library, compiled anew if its sources or torch changed."""
    stamp, mark = _stamp(), BUILD / "stamp"
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not mark.exists() or mark.read_text() != stamp:
            subprocess.run([HERE / "build.sh", sys.executable, BUILD], check=True)
            mark.write_text(stamp)
    return BUILD


def _stamp() -> str:
    sources = [file.read_bytes() for file in (HERE / "build.sh", *sorted((HERE / "src").iterdir()))]
    linked = [f"{known.name} {known.version}".encode() for name in LINKED for known in distributions(name=name)]
    return hashlib.sha256(b"\0".join(sources + linked)).hexdigest()


def environment(vram: int = 80 * GIB, cc: str = "8.0", **card: str | int) -> dict[str, str]:
    """Variables under which a process sees a card of `vram` bytes; builds the library if need be.

    Further properties: name, sms, l2, context (bytes a CUDA context takes), others (bytes other processes hold),
    pcie_generation, pcie_width, driver, event_lag, copy_limit, trace.
    """
    library = ensure_built()
    first = {
        "LD_PRELOAD": library / "libvgpu.so",
        "LD_LIBRARY_PATH": library,
        "PYTHONPATH": f"{HERE}:{PROJECT}",
    }
    merged = {key: ":".join(filter(None, (str(value), os.environ.get(key)))) for key, value in first.items()}
    return {**os.environ, **merged, **_variables(vram, cc, card)}


def _variables(vram: int, cc: str, card: dict[str, str | int]) -> dict[str, str]:
    further = {f"VGPU_{key.upper()}": str(value) for key, value in card.items()}
    return {"VGPU_MEM": str(vram), "VGPU_CC": cc, **further}


def card(name: str) -> dict[str, Any]:
    """`vram`, `cc` and further properties of a card the planner has a profile of, for `environment` and `script`."""
    from planner.cards import card as known

    device = known(name)
    generation, lanes = device.pcie
    further = {"name": device.name, "sms": device.multiprocessors, "l2": device.l2}
    link = {"pcie_generation": generation, "pcie_width": lanes}
    return {"vram": device.total, "cc": ".".join(map(str, device.compute_capability)), **further, **link}


class Server:
    """A process under the virtual GPU with its imports done, which forks for each job: seconds instead of tens."""

    def __init__(self, **variables: str) -> None:
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed with the server)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "inside.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment() | UNASKED | variables,
        )

    def run(self, job: Job) -> Result:
        """Measure one pipeline call.  Raises Failed."""
        properties = _variables(job.get("vram", 80 * GIB), job.get("cc", "8.0"), job.get("card", {}))
        answer: Result = self._ask({"job": job, "card": properties, "limit": LIMIT})
        return answer

    def script(
        self,
        code: str | Path | Callable[..., Any],
        arguments: dict[str, Any] | None = None,
        *,
        vram: int = 80 * GIB,
        cc: str = "8.0",
        limit: int = LIMIT,
        warm: str = "",
        **card: str | int,
    ) -> Any:
        """Run code of one's own in a process that sees the card.  Raises Failed.

        A function is sent as its source and called with `arguments`; it imports what it needs itself, and its result is
        the answer.  Source text or a file finds them in `arguments` and leaves the result in `answer`.  Either must fit
        JSON.  `warm` names a shipped profile whose classes the server imports first, once for all that follow.
        """
        request = {
            "warm": warm,
            "script": _sent(code),
            "arguments": arguments or {},
            "card": _variables(vram, cc, card),
            "limit": limit,
        }
        return self._ask(request)

    def _ask(self, request: dict[str, Any]) -> Any:
        start = self._said.tell()
        stdin, stdout = _pipes(self._process)
        print(json.dumps(request), file=stdin, flush=True)
        line = stdout.readline()
        if not line:
            raise Failed(f"the server ended: {self._heard(start)}")
        reply = json.loads(line)
        if "error" in reply:
            raise Failed(f"{reply['error']}\n{self._heard(start)}")
        return reply["answer"]

    def _heard(self, start: int) -> str:
        self._said.seek(start)
        return self._said.read()[-4000:]

    def close(self) -> None:
        stdin, stdout = _pipes(self._process)
        stdin.close()
        self._process.wait()
        stdout.close()
        self._said.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def run(job: Job) -> Result:
    """One measurement in a process of its own.  Raises Failed."""
    with Server() as server:
        return server.run(job)


def run_script(code: str | Path | Callable[..., Any], arguments: dict[str, Any] | None = None, **card: Any) -> Any:
    """One script in a process of its own, as `Server.script`.  Raises Failed."""
    with Server() as server:
        return server.script(code, arguments, **card)


def _sent(code: str | Path | Callable[..., Any]) -> dict[str, str]:
    if isinstance(code, Path):
        return {"path": str(code)}
    if isinstance(code, str):
        return {"code": textwrap.dedent(code)}
    return {"code": f"{textwrap.dedent(inspect.getsource(code))}\nanswer = {code.__name__}(**arguments)\n"}


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout
