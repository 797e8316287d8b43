"""A server under the virtual GPU: one line of JSON in, a forked child, one line of JSON out.

torch, diffusers and transformers are imported once.  The card is the child's own, so nothing here may wake CUDA
before the fork; `rig.UNASKED` keeps libraries from doing so while they are imported.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import linecache
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from inside.measure import measure
from inside.parts import find
from planner import profiles


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    for line in sys.stdin:
        request = json.loads(line)
        _import_classes(request)
        print(_answer_of_child(request), file=answers, flush=True)


def _import_classes(request: dict[str, Any]) -> None:
    """Import here, once, what children will want."""
    job = request.get("job") or {"model": request.get("warm")}
    if source := job.get("model") or job.get("folder"):
        profile = profiles.find(source) if "model" in job else profiles.read_folder(Path(source))
        with mock.patch("torch.cuda.is_available", return_value=False):  # torchao asks what the card is capable of
            find("", profile.pipeline)
            for part in profile.components:
                find(part.library, part.kind)
    assert not torch.cuda.is_initialized(), "an import has woken CUDA, so every child would see the parent's card"


def _answer_of_child(request: dict[str, Any]) -> str:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _serve(request, write)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    ended = f"over {request['limit']} s" if code == -signal.SIGALRM else f"the process ended with {code}"
    return answer or json.dumps({"error": ended})


def _serve(request: dict[str, Any], write: int) -> None:
    """Work and leave, whatever happens: the parent's loop must not go on here."""
    try:
        signal.alarm(request["limit"])
        answer = _work(request)
        sys.stdout.flush()
        with os.fdopen(write, "w") as pipe:
            pipe.write(answer)
    finally:
        os._exit(0)


def _work(request: dict[str, Any]) -> str:
    os.environ.update(request["card"])
    ctypes.CDLL(None).vgpu_configure()
    try:
        done = measure(request["job"]) if "job" in request else _script(request["script"], request["arguments"])
        return json.dumps({"answer": done})
    except BaseException:  # noqa: BLE001  (told to whoever asked)
        return json.dumps({"error": traceback.format_exc()})


def _script(script: dict[str, str], arguments: dict[str, Any]) -> Any:
    """What the script leaves in `answer`."""
    given = {"arguments": arguments, "answer": None}
    if "path" in script:
        return runpy.run_path(script["path"], given, "__main__")["answer"]
    code = script["code"]
    linecache.cache["<script>"] = (len(code), None, code.splitlines(keepends=True), "<script>")
    space = {"__name__": "__main__", **given}
    exec(compile(code, "<script>", "exec"), space)
    return space["answer"]


if __name__ == "__main__":
    for library in ("diffusers", "transformers", "accelerate"):
        importlib.import_module(library)
    main()
