"""Single operations: what each asks of the allocator on the card, in order, is what is recorded of it on ghosts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rig import Server
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from planner.dispatch import Dispatch, Functions
from planner.events import Alloc, Free, Run
from planner.recorder import Recorder

ROWS = "given(2, 30, 64)"
CROSS = "given(2, 64, 30).transpose(1, 2)"
"""What attention of a picture is handed: pixels in rows, which lie channel by channel."""
LAST = "given(2, 64, 16, 16).to(memory_format=torch.channels_last)"
CALLS = {
    "rms norm": f"functional.rms_norm, {ROWS}, (64,), weight(64)",
    "rms norm without weights": f"functional.rms_norm, {ROWS}, (64,)",
    "rms norm of what lies otherwise": f"functional.rms_norm, {CROSS}, (64,), weight(64)",
    "rms norm in two dtypes": f"functional.rms_norm, {ROWS}, (64,), weight(64, dtype=torch.float32)",
    "rms norm in single precision": "functional.rms_norm, given(2, 30, 64, dtype=torch.float32), (64,)",
    "linear": f"layer(48, 64), {ROWS}",
    "linear of what lies otherwise": f"layer(48, 64), {CROSS}",
    "linear of what lies otherwise, no bias": f"functional.linear, {CROSS}, weight(48, 64)",
    "linear by frozen weights": f"layer(48, 64, learns=False), {CROSS}",
    "linear of a slice": "layer(48, 64), given(2, 30, 128)[..., :64]",
    "linear of frames": "layer(48, 64), given(2, 16, 64, 20).permute(0, 3, 1, 2)",
    "softmax in single precision": f"functional.softmax, {ROWS}, -1, 3, torch.float32",
    "softmax of torch in single precision": f"torch.softmax, {ROWS}, -1, torch.float32",
    "softmax of bfloat16": "torch.softmax, given(2, 30, 64, dtype=torch.bfloat16), -1, torch.float32",
    "softmax of what lies otherwise": f"torch.softmax, {CROSS}, -1, torch.float32",
    "log softmax": f"functional.log_softmax, {ROWS}, -1, 3, torch.float32",
    "group norm": "functional.group_norm, given(2, 64, 16, 16), 32, weight(64), weight(64)",
    "group norm of channels last": f"functional.group_norm, {LAST}, 32, weight(64), weight(64)",
    "group norm without weights": "functional.group_norm, given(2, 64, 16, 16), 32",
    "group norm of one pixel": "functional.group_norm, given(2, 64, 1, 1), 32, weight(64), weight(64)",
    "group norm in single precision": "functional.group_norm, given(2, 64, 9, dtype=torch.float32), 32",
    "a number to powers": "torch.pow, 10000, given(45, dtype=torch.float64)",
    "what is infinite": f"torch.isinf, {ROWS}",
    "what is infinite, of whole numbers": "torch.isinf, given(2, 30, dtype=torch.int64)",
    "any that is infinite": f"lambda x: x.isinf().any(), {ROWS}",
    "layer norm of what lies otherwise": f"functional.layer_norm, {CROSS}, (64,), weight(64), weight(64)",
}


def on_the_card(calls: dict[str, str], numbers: bool) -> dict[str, list[int]]:
    import torch
    from inside import smallvalues
    from torch import nn
    from torch.nn import functional

    def given(*shape, dtype=torch.float16):
        return torch.empty(shape, dtype=dtype, device="cuda")

    def weight(*shape, dtype=torch.float16, learns=True):
        return torch.nn.Parameter(given(*shape, dtype=dtype), requires_grad=learns)

    def layer(columns, rows, learns=True):
        made = nn.Linear(rows, columns, device="meta")
        made.weight, made.bias = weight(columns, rows, learns=learns), weight(columns, learns=learns)
        return made

    mode = smallvalues.install() if numbers else None  # noqa: F841  (lives as long as the process)
    torch.mm(given(8, 8), given(8, 8))  # whose workspace stays
    told = {}
    for name, text in calls.items():
        space = {"torch": torch, "functional": functional, "given": given, "weight": weight, "layer": layer}
        call, *arguments = eval(text, space)
        torch.cuda.memory._record_memory_history(max_entries=1000)
        with torch.no_grad():
            out = call(*arguments)
        (events,) = torch.cuda.memory._snapshot()["device_traces"]
        torch.cuda.memory._record_memory_history(enabled=None)
        signs = {"alloc": 1, "free_requested": -1}
        told[name] = [signs[e["action"]] * e["size"] for e in events if e["action"] in signs]
        del out
    return told


def on_ghosts(text: str) -> list[int]:
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def given(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        with mode:
            return torch.empty(shape, dtype=dtype)

    def weight(*shape: int, dtype: torch.dtype = torch.float16, learns: bool = True) -> torch.Tensor:
        return nn.Parameter(given(*shape, dtype=dtype), requires_grad=learns)

    def layer(columns: int, rows: int, learns: bool = True) -> nn.Linear:
        made = nn.Linear(rows, columns, device="meta")
        made.weight, made.bias = weight(columns, rows, learns=learns), weight(columns, learns=learns)
        return made

    space = {"torch": torch, "functional": functional, "given": given, "weight": weight, "layer": layer}
    call, *arguments = eval(text, space)
    recorder = Recorder()
    recorder.ignore(a for a in arguments if isinstance(a, torch.Tensor))
    recorder.ignore(call.parameters() if isinstance(call, nn.Module) else ())
    recorder.enter("", "Test")
    with torch.no_grad(), Functions(recorder, mode), Dispatch(recorder, mode):
        out: Any = call(*arguments)
        events = recorder.drop()
    del out
    sizes = {event.buffer: event.size for event in events if isinstance(event, Alloc)}
    told: list[int] = []
    for event in events:
        match event:
            case Alloc(_, size):
                told.append(size)
            case Free(buffer):
                told.append(-sizes[buffer])
            case Run(number):
                scratch = getattr(recorder.kernels[number], "scratch", 0)
                told += (scratch, -scratch) if scratch else ()
    return told


@pytest.fixture(scope="module", params=[False, True], ids=["bare", "with small values kept"])
def told(vgpu: Server, request: pytest.FixtureRequest) -> dict[str, list[int]]:
    """Of all calls; the rig's mode, under which pipelines are measured, changes nothing."""
    answer: dict[str, list[int]] = vgpu.script(on_the_card, {"calls": CALLS, "numbers": request.param})
    return answer


@pytest.mark.parametrize("name", CALLS)
def test_ghosts_ask_as_the_card_does(told: dict[str, list[int]], name: str) -> None:
    assert on_ghosts(CALLS[name]) == told[name]
