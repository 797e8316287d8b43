"""Replay: what is alike is recorded once, what is not runs again; and the outputs of both can be used alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import planner.replay
from planner.dispatch import Dispatch, Functions
from planner.events import Call, Event
from planner.ghost import haunt
from planner.program import Recording
from planner.recorder import Recorder
from planner.replay import Replay, anchored_buffers, own_weights
from planner.signature import Opaque, fingerprint, made_anew, mapped, shape_of, signature

MODE = FakeTensorMode(allow_non_fake_inputs=True)


class Counted(torch.nn.Module):
    """Counts how often it really runs, under a name that does not tell modules apart."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, width)
        self._forward_runs = [0]

    def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        self._forward_runs[0] += 1
        return self.linear(x) + 1.0


class Stage:
    """A recorder, a replay and ghosts of modules."""

    def __init__(self, *modules: torch.nn.Module) -> None:
        self.recorder = Recorder()
        self.replay = Replay(self.recorder, MODE)
        for module in modules:
            module.eval().requires_grad_(False)
            haunt(module, MODE)
            for path, part in module.named_modules():
                self.replay.wrap(part, "forward", path or "component")
        self.recorder.ignore(p for module in modules for p in module.parameters())

    @contextmanager
    def recording(self) -> Iterator[None]:
        self.recorder.enter("", "Pipeline")
        with torch.no_grad(), Functions(self.recorder, MODE), Dispatch(self.recorder, MODE):
            yield

    def given(self, *shape: int) -> torch.Tensor:
        """A ghost that the pipeline allocated."""
        tensor = ghost(*shape)
        self.recorder.allocated([tensor])
        return tensor

    def ended(self) -> Recording:
        done = self.recorder.leave()
        assert done is not None
        return self.recorder.recordings[done.recording]


def ghost(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with MODE:
        return torch.empty(shape, dtype=dtype)


def calls(recording: Recording) -> list[Event]:
    return [event for event in recording.events if isinstance(event, Call)]


def test_the_same_shapes_run_once_and_are_noted_every_time() -> None:
    module = Counted()
    stage, x = Stage(module), ghost(128, 64)
    with stage.recording():
        outs = [module(x) for _ in range(5)]
        shapes = {(tuple(out.shape), out.stride(), out.dtype) for out in outs}
        storages = {out.untyped_storage()._cdata for out in outs}
        del outs
    recording = stage.ended()
    assert module._forward_runs == [1]
    assert len({call.recording for call in calls(recording)}) == 1  # type: ignore[union-attr]
    assert len(calls(recording)) == 5
    assert shapes == {((128, 64), (64, 1), torch.float32)}
    assert len(storages) == 5, "every call has an output of its own"


def test_other_shapes_layouts_types_and_options_run_again() -> None:
    module = Counted()
    stage = Stage(module)
    with stage.recording():
        module(ghost(128, 64))
        module(ghost(256, 64))
        module(ghost(64, 128).t())
        module(ghost(128, 64), flag=True)
        module(ghost(128, 64), flag=False)
        module(ghost(128, 64)[:64])
    assert module._forward_runs == [6]


def test_equal_modules_share_and_unequal_ones_do_not() -> None:
    alike, twin, other = Counted(), Counted(), Counted()
    other.extra = 3
    stage, x = Stage(alike, twin, other), ghost(128, 64)
    with stage.recording():
        for module in (alike, twin, other):
            module(x)
    assert [m._forward_runs for m in (alike, twin, other)] == [[1], [0], [1]]
    assert len({call.recording for call in calls(stage.ended())}) == 1, "the bodies are equal all the same"  # type: ignore[union-attr]


def test_a_change_shows_once_fingerprints_are_forgotten() -> None:
    module = Counted()
    stage, x = Stage(module), ghost(128, 64)
    with stage.recording():
        module(x)
        module.flag = 1
        stage.replay.forget_fingerprints()
        module(x)
        del module.flag
        stage.replay.forget_fingerprints()
        module(x)
    assert module._forward_runs == [2], "and what comes back is known"


def test_forgetting_makes_no_two_modules_equal() -> None:
    """Numbers that stand for structures are not given again, whichever modules are met first afterwards."""
    modules = [Counted() for _ in range(12)]
    for extra, module in enumerate(modules):
        module.extra = extra
    stage, x = Stage(*modules), ghost(128, 64)
    with stage.recording():
        for module in modules[:6]:
            module(x)
        stage.replay.forget_fingerprints()
        for module in modules[6:]:
            module(x)
    assert all(module._forward_runs == [1] for module in modules)


def test_outside_a_recording_modules_just_run() -> None:
    module = Counted()
    Stage(module)
    with torch.no_grad():
        module(ghost(128, 64))
        module(ghost(128, 64))
    assert module._forward_runs == [2]


class Returning(torch.nn.Module):
    """Returns whatever it is told to."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self._answer = answer
        self._forward_runs = [0]

    def forward(self, x: torch.Tensor) -> Any:
        self._forward_runs[0] += 1
        return self._answer(x)


@pytest.mark.parametrize(
    ("answer", "runs"),
    [
        (lambda x: (x + 1, [x * 2, None], {"deep": x - 1}), 1),
        (lambda x: (x + 1).chunk(2), 1),  # two views of one storage
        (lambda x: x, 1),  # its own argument
        (lambda x: x.t(), 1),  # a view of it
        (lambda x: x.add_(1), 1),
        (lambda x: (x + 1, torch.arange(10)), 1),  # a real table
        (lambda x: (x + 1, *torch.arange(10).chunk(2)), 1),
        (lambda x: (x + 1, object()), 2),  # what cannot be made anew runs again
    ],
)
def test_outputs_are_made_anew_as_they_were(answer: Any, runs: int) -> None:
    module = Returning(answer)
    stage = Stage(module)
    with stage.recording():
        x = stage.given(128, 64)
        first, second = module(x), module(x)
        assert module._forward_runs == [runs]
        assert told(first) == told(second)
        assert sharing(first, x) == sharing(second, x)


def told(tree: Any) -> Any:
    if isinstance(tree, FakeTensor):
        return tuple(tree.shape), tree.stride(), tree.storage_offset(), tree.dtype
    if isinstance(tree, torch.Tensor):
        return tree.tolist(), tree.dtype
    if isinstance(tree, (tuple, list)):
        return [told(item) for item in tree]
    return {key: told(value) for key, value in tree.items()} if isinstance(tree, dict) else type(tree)


def sharing(tree: Any, x: torch.Tensor) -> list[bool]:
    """Which ghosts among a tuple lie in the first one's storage, and which in that of `x`."""
    ghosts = [t for t in (tree if isinstance(tree, tuple) else (tree,)) if isinstance(t, FakeTensor)]
    storages = [t.untyped_storage()._cdata for t in ghosts]
    return [s == storages[0] for s in storages] + [s == x.untyped_storage()._cdata for s in storages]


class Caching(torch.nn.Module):
    """Keeps past frames in a list of its caller, as causal video autoencoders do."""

    def __init__(self) -> None:
        super().__init__()
        self._forward_runs = [0]

    def forward(self, x: torch.Tensor, frames: list[Any], place: list[int]) -> torch.Tensor:
        self._forward_runs[0] += 1
        if frames[place[0]] is None:
            frames[place[0]] = "first"
        place[0] += 1
        return x + 1


def test_a_module_that_changes_its_arguments_runs_every_time() -> None:
    module = Caching()
    stage, x = Stage(module), ghost(128, 64)
    with stage.recording():
        for _ in range(3):
            frames, place = [None, None], [0]
            module(x, frames, place)
            assert (frames, place) == (["first", None], [1])
    assert module._forward_runs == [3]


class Remembering(torch.nn.Module):
    """Puts a new tensor in the place of the last one, in a list of its caller's."""

    def forward(self, x: torch.Tensor, frames: list[Any]) -> torch.Tensor:
        frames[0] = x * 2
        return x + 1


def test_lists_of_tensors_change_as_if_the_module_had_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def recorded() -> tuple[list[str], list[Any]]:
        module = Remembering()
        stage = Stage(module)
        with stage.recording():
            x, frames = stage.given(128, 64), [None]
            for _ in range(4):
                module(x, frames)
            kept = told(frames)
            del x, frames
        return [repr(event) for event in stage.ended().events], kept

    replayed = recorded()
    monkeypatch.setattr(planner.replay, "fingerprint", lambda *_: object())
    assert replayed == recorded()


class Keeping(torch.nn.Module):
    """Keeps something on itself that outlives the call."""

    def __init__(self) -> None:
        super().__init__()
        self._forward_runs = [0]
        self._kept: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._forward_runs[0] += 1
        self._kept.append(x * 2)
        return x + 1


def test_a_module_that_keeps_tensors_runs_every_time() -> None:
    module = Keeping()
    stage, x = Stage(module), ghost(128, 64)
    with stage.recording():
        module(x)
        module(x)
    assert module._forward_runs == [2]
    assert len(module._kept) == 2


def test_the_tracers_own_copies_are_not_recorded() -> None:
    module = Returning(lambda x: torch.arange(10, device=x.device))
    stage, x = Stage(module), ghost(128, 64)
    with stage.recording():
        module(x)
        module(x)
    recording = stage.ended()
    assert [type(event).__name__ for event in recording.events] == ["Call", "Free", "Call", "Free"]


def test_a_seam_is_recorded_by_the_row() -> None:
    class Coder(torch.nn.Module):
        def blend_v(self, a: torch.Tensor, b: torch.Tensor, extent: int) -> torch.Tensor:
            extent = min(a.shape[2], b.shape[2], extent)
            for y in range(extent):
                b[:, :, y, :] = a[:, :, -extent + y, :] * (1 - y / extent) + b[:, :, y, :] * (y / extent)
            return b

    coder = Coder()
    stage = Stage(coder)
    stage.replay.wrap_blend(coder, "blend_v", -2)
    with stage.recording():
        a, b = stage.given(1, 3, 64, 64), stage.given(1, 3, 64, 64)
        assert coder.blend_v(a, b, 16) is b
    (seam,) = calls(stage.ended())
    rows = stage.recorder.recordings[seam.recording].events  # type: ignore[union-attr]
    assert len(rows) == 16
    assert len(set(rows)) == 1


def test_own_weights_are_the_modules_and_not_its_childrens() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 8))
    module.register_buffer("table", torch.zeros(16))
    assert own_weights(module, buffers=False) == ()
    assert own_weights(module, buffers=True) == (64,)
    assert own_weights(module[0], buffers=False) == (4 * 8 * 4, 8 * 4)


def test_buffers_that_are_not_saved_stay_where_accelerates_hooks_put_them() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 8))
    module.register_buffer("saved", torch.zeros(16))
    module.register_buffer("table", torch.zeros(32), persistent=False)
    module[0].register_buffer("positions", torch.zeros(8), persistent=False)
    assert own_weights(module, buffers=True) == (64,)
    assert anchored_buffers(module, buffers=True) == {"": (module.table,), "0": (module[0].positions,)}
    assert anchored_buffers(module, buffers=False) == {"": (module.saved, module.table), "0": (module[0].positions,)}


def test_fingerprints_tell_modules_apart_by_what_they_do() -> None:
    def of(module: torch.nn.Module) -> Any:
        return fingerprint(module, {}, numbers)

    numbers: dict[Any, Any] = {}
    conv = torch.nn.Conv2d
    assert of(conv(4, 8, 3)) == of(conv(4, 8, 3))
    assert of(conv(4, 8, 3)) != of(conv(4, 8, 3, padding=1))
    assert of(conv(4, 8, 3)) != of(conv(4, 8, 3).half())
    assert of(conv(4, 8, 3)) != of(conv(4, 8, 3).to(memory_format=torch.channels_last))
    assert of(torch.nn.Dropout(0.1)) != of(torch.nn.Dropout(0.2))
    assert of(torch.nn.Sequential(conv(4, 8, 3))) != of(torch.nn.Sequential(conv(4, 8, 1)))
    assert of(torch.nn.Sequential(conv(4, 8, 3), torch.nn.ReLU())) != of(torch.nn.Sequential(conv(4, 8, 3)))
    assert of(torch.nn.ReLU()) != of(torch.nn.SiLU())


def test_signatures_tell_arguments_apart_by_all_but_their_numbers() -> None:
    assert signature(torch.zeros(2, 3)) == signature(torch.ones(2, 3))
    assert signature(torch.zeros(2, 3)) != signature(torch.zeros(3, 2))
    assert signature(torch.zeros(2, 3)) != signature(torch.zeros(3, 2).t())
    assert signature(torch.zeros(2, 3)) != signature(torch.zeros(2, 3).double())
    assert signature(torch.zeros(64, 64)) != signature(ghost(64, 64))
    assert signature(ghost(64, 64)) != signature(ghost(65, 64)[1:])
    assert signature([1, 2]) != signature((1, 2))
    assert signature({"a": [1.0, None]}) == signature({"a": [1.0, None]})
    with pytest.raises(Opaque):
        signature(object())


def test_one_and_true_and_one_point_zero_are_different_arguments() -> None:
    assert len({signature((value,)) for value in (1, 1.0, True)}) == 3


def test_trees_keep_their_form() -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

    output = UNet2DConditionOutput(sample=torch.zeros(3))
    told_as = mapped((output, [1, {"a": torch.ones(2)}]), lambda t: shape_of(t, 0))
    back = mapped(told_as, lambda shape: made_anew(shape, {}, MODE))
    assert type(back[0]) is UNet2DConditionOutput
    assert torch.equal(back[0].sample, torch.zeros(3))
    assert torch.equal(back[1][1]["a"], torch.ones(2))
    with pytest.raises(Opaque):
        mapped({1, 2}, lambda t: t)
