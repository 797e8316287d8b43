"""The recorder on real tensors: what lives, what dies where, and which bodies are one."""

from __future__ import annotations

import torch

from planner.events import Alloc, Call, Cast, Enter, Event, Exit, Free, Gone, Run
from planner.kernels import Matmul, Plain
from planner.recorder import Recorder

ADD, MUL = Plain("add", 1, 2), Plain("mul", 1, 2)


def begun() -> Recorder:
    """A recorder inside the pipeline's own code."""
    recorder = Recorder()
    recorder.enter("", "Pipeline")
    return recorder


def born(recorder: Recorder, count: int) -> torch.Tensor:
    """A new tensor of `count` bytes, seen by the recorder."""
    tensor = torch.empty(count, dtype=torch.uint8)
    recorder.allocated([tensor])
    return tensor


def ended(recorder: Recorder) -> list[str]:
    """The body that ends now, as text; as plain tuples `Free(0)` and `Run(0)` would be equal."""
    done = recorder.leave()
    assert done is not None
    return told(*recorder.recordings[done.recording].events)


def told(*events: Event) -> list[str]:
    return [repr(event) for event in events]


def test_a_storage_lives_until_its_last_view_goes() -> None:
    recorder = begun()
    tensor = born(recorder, 100)
    view = tensor[10:20].view(2, 5)
    recorder.allocated([view])
    recorder.ran(ADD)
    del tensor
    recorder.ran(MUL)
    del view
    assert ended(recorder) == told(Alloc(0, 100), Run(0), Run(1), Free(0))
    assert recorder.kernels == [ADD, MUL]


def test_survivors_are_handed_to_the_caller() -> None:
    recorder = begun()
    recorder.enter("unet", "UNet", (7, 8))
    gone, kept = born(recorder, 10), born(recorder, 20)
    del gone
    done = recorder.leave()
    assert done is not None
    assert [local for local, _ in done.kept] == [1]
    assert recorder.recordings[done.recording].own == (7, 8)
    assert recorder.serial_of(kept.untyped_storage()) == done.kept[0][1]
    del kept
    assert ended(recorder) == told(Call(0, "unet", ((1, 0),)), Free(0))


def test_equal_bodies_are_kept_once() -> None:
    recorder = begun()
    for size in (10, 10, 20):
        recorder.enter("block", "Block")
        born(recorder, size)
        recorder.leave()
    assert ended(recorder) == told(Call(0, "block", ()), Call(0, "block", ()), Call(1, "block", ()))
    assert len(recorder.recordings) == 3


def test_bodies_that_differ_in_the_kind_of_an_event_alone_are_two() -> None:
    recorder = begun()
    recorder.enter("block", "Block")
    tensor = born(recorder, 10)
    recorder.ran(ADD)
    first = recorder.leave()
    recorder.enter("block", "Block")
    other = born(recorder, 10)
    del other
    second = recorder.leave()
    assert first is not None
    assert second is not None
    assert told(*recorder.recordings[first.recording].events) == told(Alloc(0, 10), Run(0))
    assert told(*recorder.recordings[second.recording].events) == told(Alloc(0, 10), Free(0))
    del tensor


def test_bodies_of_other_classes_or_weights_are_others() -> None:
    recorder = begun()
    for name, own in (("Linear", (4,)), ("Linear", (8,)), ("Conv", (4,))):
        recorder.enter("layer", name, own)
        recorder.leave()
    assert len(recorder.recordings) == 3


def test_a_body_that_frees_what_is_not_its_own_is_written_into_its_caller() -> None:
    recorder = begun()
    cache = [born(recorder, 10)]
    recorder.enter("block", "Block", (4,))
    fresh = born(recorder, 20)
    cache[0] = fresh
    assert recorder.leave().recording is None
    del fresh, cache
    expected = told(Alloc(0, 10), Enter("block", (4,)), Alloc(1, 20), Free(0), Exit(), Free(1))
    assert ended(recorder) == expected


def test_every_body_between_birth_and_death_is_written_out() -> None:
    recorder = begun()
    cache = [born(recorder, 10)]
    recorder.enter("outer", "Outer")
    recorder.enter("inner", "Inner")
    cache.clear()
    assert recorder.leave().recording is None
    assert recorder.leave().recording is None
    assert ended(recorder) == told(Alloc(0, 10), Enter("outer", ()), Enter("inner", ()), Free(0), Exit(), Exit())


def test_what_a_callee_frees_of_its_neighbour_is_the_callers_business() -> None:
    """A buffer that survived one call and dies in the next was born in their caller's frame."""
    recorder = begun()
    recorder.enter("outer", "Outer")
    recorder.enter("first", "First")
    cache = [born(recorder, 10)]
    recorder.leave()
    recorder.enter("second", "Second")
    cache.clear()
    assert recorder.leave().recording is None
    assert ended(recorder) == told(Call(0, "first", ((0, 0),)), Enter("second", ()), Free(0), Exit())


def test_weights_are_never_counted() -> None:
    recorder = begun()
    weight = torch.empty(100)
    recorder.ignore([weight])
    recorder.allocated([weight, weight.view(10, 10)])
    assert recorder.serial_of(weight.untyped_storage()) == -1
    del weight
    assert ended(recorder) == []


def test_a_tensor_in_the_place_of_a_weight_that_went_is_counted() -> None:
    """Casting a component frees its old weights, and what comes next may lie at the same address."""
    recorder = begun()
    weights = [torch.empty(16) for _ in range(200)]
    recorder.ignore(weights)
    weights.clear()
    fresh = [born(recorder, 64) for _ in range(200)]
    done = recorder.leave()
    assert done is not None
    assert len(done.kept) == len(fresh)


def test_empty_tensors_are_nothing() -> None:
    recorder = begun()
    recorder.allocated([torch.empty(0), torch.empty(3, 0)])
    assert ended(recorder) == []


def test_a_replayed_body_gives_fresh_survivors() -> None:
    recorder = begun()
    recorder.enter("block", "Block")
    first = born(recorder, 10)
    done = recorder.leave()
    assert done is not None
    second = torch.empty(10, dtype=torch.uint8)
    recorder.replay(done.recording, "block", {0: second.untyped_storage()})
    del first, second
    assert ended(recorder) == told(Call(0, "block", ((0, 0),)), Call(0, "block", ((0, 1),)), Free(0), Free(1))


def test_a_call_that_leaves_nothing_can_be_noted_again() -> None:
    recorder = begun()
    recorder.enter("", "blend")
    recorder.leave()
    recorder.again(2)
    assert ended(recorder) == told(*[Call(0, "", ())] * 3)


def test_a_call_that_leaves_something_is_not_noted_again() -> None:
    recorder = begun()
    recorder.enter("", "blend")
    kept = born(recorder, 10)
    recorder.leave()
    recorder.again(2)
    assert ended(recorder) == told(Call(0, "", ((0, 0),)))
    del kept


def test_what_outlived_an_earlier_recording_is_forgotten() -> None:
    recorder = begun()
    old = born(recorder, 10)
    recorder.abandon()
    recorder.enter("", "Pipeline")
    assert recorder.depth == 1
    assert recorder.serial_of(old.untyped_storage()) == -1
    del old
    assert ended(recorder) == []


def test_a_course_has_the_ends_of_what_a_call_of_it_leaves() -> None:
    def call() -> list[torch.Tensor]:
        table = born(recorder, 10)
        kept["table"] = table
        latents, passing = born(recorder, 20), born(recorder, 30)
        recorder.ran(ADD)
        kept["latents"] = latents
        return [passing]

    kept: dict[str, torch.Tensor] = {}
    recorder = begun()
    call()
    done = recorder.leave()
    recorder.enter("", "Pipeline")
    recorder.outlived(done)
    assert recorder.left
    call()
    assert not recorder.left
    assert told(*recorder.following(recorder.recordings[done.recording or 0]).events) == told(
        Alloc(0, 10), Gone(0), Alloc(1, 20), Alloc(2, 30), Run(0), Gone(1), Free(2)
    )


def test_ends_are_known_only_as_far_as_a_call_does_what_the_one_before_did() -> None:
    recorder = begun()
    kept = [born(recorder, 10), born(recorder, 20)]
    done = recorder.leave()
    recorder.enter("", "Pipeline")
    recorder.outlived(done)
    kept[0] = born(recorder, 10)
    kept[1] = born(recorder, 40)
    assert told(*recorder.following(recorder.recordings[done.recording or 0]).events) == told(
        Alloc(0, 10), Gone(0), Alloc(1, 20)
    )


def test_a_cast_is_noted_where_it_happens() -> None:
    recorder = begun()
    recorder.cast("vae", (4, 8))
    assert ended(recorder) == told(Cast("vae", (4, 8)))


def test_kernels_are_kept_once_and_by_class() -> None:
    recorder = begun()
    for kernel in (ADD, Plain("add", 1, 2), Matmul("float16", 1, 2), ADD):
        recorder.ran(kernel)
    assert ended(recorder) == told(Run(0), Run(0), Run(1), Run(0))
