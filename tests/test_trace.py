"""Traces of tiny real pipelines and of one of full size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler
from reference import CUBLAS, read
from techniques import tiny
from techniques.programs import device
from torch._subclasses.fake_tensor import FakeTensor

import planner.replay
from planner import blueprint, profiles
from planner.arguments import call_arguments, split
from planner.cost import Cost
from planner.errors import TraceFailed
from planner.events import Alloc, Call, Cast, Ending, Enter, Event, Free, Gone, Run
from planner.ghost import Ghost, ghost_of, haunted
from planner.kernels import Plain
from planner.offload import model_offload, resident, sequential_offload
from planner.program import Program, Recording, Setting, Variant
from planner.rehearsal import rehearse
from planner.request import Request
from planner.settings import Settings
from planner.snapshot import snapshot
from planner.standin import TokenizerStandIn
from planner.trace import Tracer, forget, weights_of

MiB = 2**20
PLACEMENTS = (resident, model_offload, sequential_offload)
SMALL = Request(height=256, width=256, steps=2, prompt_tokens=4)
DENOISERS = {"sd": "unet", "sdxl": "unet", "flux": "transformer", "wan": "transformer"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(name: str, folder: Path) -> Any:
    """A tiny live pipeline that takes words."""
    pipe = tiny.MAKERS[name](folder)
    pipe.set_progress_bar_config(disable=True)
    for part in ("tokenizer", "tokenizer_2"):
        if part in pipe.components and getattr(pipe, part) is None:
            setattr(pipe, part, TokenizerStandIn(16))
    return pipe


def tracer(pipe: Any) -> Tracer:
    ghost = ghost_of(pipe)
    return Tracer(ghost, Settings(ghost))


def asked(name: str, **changes: Any) -> Request:
    video = {"frames": 5, "height": 192, "width": 192} if name == "wan" else {}
    return replace(SMALL, **video, **changes)


def modules_of(program: Program) -> list[str]:
    """The component calls in order."""
    events = program.recordings[program.course].events
    return [event.module for event in events if isinstance(event, (Call, Enter)) and event.module]


def phases(program: Program) -> list[tuple[str, int, float]]:
    return [(phase.name, phase.peak.total, phase.seconds) for phase in Cost(device()).phases(program)]


@pytest.fixture(params=sorted(tiny.MAKERS))
def name(request: pytest.FixtureRequest) -> str:
    """Each tiny pipeline in turn."""
    return str(request.param)


CASES = [
    ("sd", Variant()),
    ("sd", Variant(dtype="float16")),
    ("sd", Variant(tile=128)),
    ("sd", Variant(sliced=True)),
    ("sd", Variant(channels_last=frozenset({"vae"}))),
    ("sdxl", Variant(dtype="float16")),
    ("flux", Variant(sliced=True)),
    ("wan", Variant()),
    ("wan", Variant(tile=128)),
    ("sdxl", Variant(settings=(Setting("micro_batch", 1, "denoiser"),))),
    ("sd", Variant(settings=(Setting("layerwise_casting", "float8_e4m3fn", "call"),))),
    ("flux", Variant(tile=128, settings=(Setting("micro_batch", 1, "denoiser"),))),
]


@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_replaying_changes_nothing(
    kind: str, variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a fingerprint of its own for every call nothing is ever replayed."""
    request = asked(kind, images=1 if kind == "wan" else 2)
    replayed = tracer(made(kind, tmp_path)).trace(request, variant)
    monkeypatch.setattr(planner.replay, "fingerprint", lambda *_: object())
    slow = tracer(made(kind, tmp_path)).trace(request, variant)
    for placement in PLACEMENTS:
        for fast, true in zip(phases(placement(replayed)), phases(placement(slow)), strict=True):
            assert fast[:2] == true[:2]
            assert fast[2] == pytest.approx(true[2])


@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_a_variant_equals_one_traced_afresh(kind: str, variant: Variant, tmp_path: Path) -> None:
    busy, request = tracer(made(kind, tmp_path)), asked(kind)
    for other in (Variant(tile=192), Variant(sliced=True)):
        busy.trace(request, other)
    again, fresh = busy.trace(request, variant), tracer(made(kind, tmp_path))._traced(request, variant)
    assert again.variant == fresh.variant == variant
    assert phases(resident(again)) == phases(resident(fresh))
    assert modules_of(again) == modules_of(fresh)


def test_programs_are_sound(name: str, tmp_path: Path) -> None:
    """Bodies call earlier ones; whatever is born dies once or survives, and its caller knows.  Peaks add up."""
    busy = tracer(made(name, tmp_path))
    for variant in (Variant(tile=128), Variant(dtype="float16")):
        program = busy.trace(asked(name), variant)
        for index, recording in enumerate(program.recordings):
            assert_sound(program, index, recording)
        placed = resident(program)
        moments = read(placed, device(), held=CUBLAS).moments
        assert [(n, peak) for n, peak, _ in phases(placed)] == [(n, max(map(sum, m))) for n, m in moments.items()]


def test_a_course_has_the_ends_of_what_it_leaves(name: str, tmp_path: Path) -> None:
    """Schedulers let go of an earlier call's tables and latents as timesteps are set: before there are new latents."""
    program = tracer(made(name, tmp_path)).trace(asked(name), Variant())
    events = program.events
    denoised = [n for n, event in enumerate(events) if isinstance(event, Call) and event.module == DENOISERS[name]]
    left = sum(isinstance(e, Alloc) for e in events) + sum(len(e.kept) for e in events if isinstance(e, Call))
    left -= sum(isinstance(event, Free) for event in events)
    ends = {event.place: n for n, event in enumerate(events) if isinstance(event, Gone)}
    assert left
    assert sorted(ends) == list(range(left))
    assert sum(n < denoised[0] for n in ends.values()) >= left - 1  # a timestep may be held until it is replaced


def test_a_course_says_when_its_components_leave_the_card(name: str, tmp_path: Path) -> None:
    """After the last of them has worked; what the pipeline's own variables hold goes when it returns."""
    events = tracer(made(name, tmp_path)).trace(asked(name), Variant()).events
    (end,) = [n for n, event in enumerate(events) if isinstance(event, Ending)]
    assert max(n for n, event in enumerate(events) if isinstance(event, Call)) < end
    assert {type(event) for event in events[end + 1 :]} == {Free}


def assert_sound(program: Program, index: int, recording: Recording) -> None:
    live: set[int] = set()
    for event in recording.events:
        match event:
            case Alloc(buffer, size):
                assert size > 0
                assert buffer not in live
                live.add(buffer)
            case Free(buffer):
                live.remove(buffer)
            case Run(kernel):
                assert 0 <= kernel < len(program.kernels)
            case Call(callee, _, kept):
                assert 0 <= callee < index
                outer = {buffer for _, buffer in kept}
                assert len(outer) == len(kept)
                assert not outer & live
                live |= outer


def test_the_denoiser_is_called_as_often_as_in_a_real_run(name: str, tmp_path: Path) -> None:
    pipe = made(name, tmp_path)
    program = tracer(pipe).trace(asked(name), Variant())
    ran: list[str] = []
    for part in (DENOISERS[name], "vae"):
        module = getattr(pipe, part)
        method = "decode" if part == "vae" else "forward"
        monitor(module, method, part if method == "forward" else f"{part}.decode", ran)
    with torch.no_grad():
        tiny.run(pipe, height=32, width=32)
    assert [m for m in modules_of(program) if not m.startswith("text_encoder")] == ran


def monitor(module: Any, method: str, name: str, ran: list[str]) -> None:
    real = getattr(module, method)

    def noted(*args: Any, **kwargs: Any) -> Any:
        ran.append(name)
        return real(*args, **kwargs)

    setattr(module, method, noted)


def test_a_scheduler_that_repeats_a_step_shows_in_the_calls(tmp_path: Path) -> None:
    pipe = made("sd", tmp_path)
    pipe.scheduler = PNDMScheduler(skip_prk_steps=True, steps_offset=1)
    program = tracer(pipe).trace(replace(SMALL, steps=7), Variant())
    assert modules_of(program).count("unet") == 8


def test_guidance_below_one_encodes_and_denoises_once(tmp_path: Path) -> None:
    busy = tracer(made("sd", tmp_path))
    guided, plain = busy.trace(SMALL, Variant()), busy.trace(replace(SMALL, guidance=1.0), Variant())
    assert modules_of(guided).count("text_encoder") == 2
    assert modules_of(plain).count("text_encoder") == 1
    (more,), (less,) = ([b for n, b, _ in phases(resident(p)) if n == "unet"] for p in (guided, plain))
    assert less < more


def test_the_upcast_of_a_half_precision_vae_is_a_cast(tmp_path: Path) -> None:
    busy = tracer(made("sdxl", tmp_path))
    program = busy.trace(SMALL, Variant(dtype="float16"))
    course = program.recordings[program.course].events
    up, down = [event for event in course if isinstance(event, Cast)]
    assert up.component == down.component == "vae"
    half = program.component("vae").weights
    assert up.weights == tuple(2 * size for size in half)
    assert down.weights == half
    places = [
        i for i, e in enumerate(course) if isinstance(e, Cast) or (isinstance(e, Call) and e.module == "vae.decode")
    ]
    assert [type(course[i]) for i in places] == [Cast, Call, Cast]
    assert not any(isinstance(e, Cast) for e in _course(busy.trace(SMALL, Variant())))


def _course(program: Program) -> tuple[Event, ...]:
    return program.recordings[program.course].events


def test_variants_share_the_bodies_of_the_other_components(tmp_path: Path) -> None:
    busy = tracer(made("sd", tmp_path))
    plain, tiled = busy.trace(SMALL, Variant()), busy.trace(SMALL, Variant(tile=128))
    assert tiled.recordings[: len(plain.recordings)] == plain.recordings

    def called(program: Program, component: str) -> set[int]:
        return {e.recording for e in _course(program) if isinstance(e, Call) and e.module.startswith(component)}

    for component in ("text_encoder", "unet"):
        assert called(plain, component) == called(tiled, component)
    assert called(plain, "vae") != called(tiled, "vae")
    assert busy.trace(SMALL, Variant()) is plain


def test_latents_are_counted_and_come_from_the_pipeline(tmp_path: Path) -> None:
    """4 x 32 x 32 numbers of fp32, and twice that for two images."""
    busy = tracer(made("sd", tmp_path))
    for images in (1, 2):
        program = busy.trace(replace(SMALL, images=images), Variant())
        course = _course(program)
        drawn = [
            place for place, event in enumerate(course)
            if isinstance(event, Run) and isinstance(kernel := program.kernels[event.kernel], Plain)
            and kernel.name.startswith("randn")
        ]  # fmt: skip
        before = course[drawn[0] - 1]
        assert isinstance(before, Alloc)
        assert before.size == images * 4 * 32 * 32 * 4


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_image_is_an_array_on_the_host_in_the_end(dtype: str, tmp_path: Path) -> None:
    ghost = ghost_of(made("sd", tmp_path))
    assert call_arguments(ghost.pipe, SMALL, Variant())["output_type"] == "np"
    program = Tracer(ghost, Settings(ghost)).trace(SMALL, Variant(dtype=dtype))
    assert modules_of(program)[-1] == "vae.decode"
    last = _course(program)[max(i for i, e in enumerate(_course(program)) if isinstance(e, Call)) :]
    assert {event.size for event in last if isinstance(event, Alloc)} == {
        3 * 256 * 256 * (2 if dtype == "float16" else 4)
    }
    assert list(read(program, device()).held.values()) == [512], "the scheduler's timesteps"


def test_latents_can_be_asked_for_instead(tmp_path: Path) -> None:
    request = replace(SMALL, extra=(("output_type", "latent"),))
    assert "vae.decode" not in modules_of(tracer(made("sd", tmp_path)).trace(request, Variant()))


def test_refusals_are_the_pipelines_own_words_and_leave_the_tracer_usable(tmp_path: Path) -> None:
    busy = tracer(made("sd", tmp_path))
    with pytest.raises(TraceFailed, match="divisible by 8"):
        busy.trace(replace(SMALL, height=250), Variant())
    with pytest.raises(TraceFailed, match="divisible by 8"):
        busy.trace(replace(SMALL, height=250), Variant(tile=128))
    fresh = tracer(made("sd", tmp_path)).trace(SMALL, Variant())
    assert phases(resident(busy.trace(SMALL, Variant()))) == phases(resident(fresh))


def test_what_a_component_refuses_when_it_is_recorded_again_is_told_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variant of the autoencoder's alone is not a call of the whole pipeline, but it can fail like one."""

    def refuse(*_: object, **__: object) -> None:
        raise LookupError("no tile so small")

    busy = tracer(made("sd", tmp_path))
    plain = busy.trace(SMALL, Variant())
    for method in ("_tiled_decode", "tiled_decode"):
        monkeypatch.setattr(AutoencoderKL, method, refuse, raising=False)
    with pytest.raises(TraceFailed, match=r"vae\.decode refused the request: no tile so small"):
        busy.trace(SMALL, Variant(tile=128))
    assert busy.trace(SMALL, Variant()) is plain
    assert phases(resident(busy.trace(SMALL, Variant(sliced=True)))) == phases(resident(plain))


def test_a_ghost_has_no_bytes_and_leaves_its_pipeline_alone(name: str, tmp_path: Path) -> None:
    pipe = made(name, tmp_path)
    with torch.no_grad():
        picture = tiny.run(pipe)
    before = snapshot(pipe)
    ghost = ghost_of(pipe)
    Tracer(ghost, Settings(ghost)).trace(asked(name), Variant(dtype="float16", tile=128, sliced=True))
    assert before.difference(snapshot(pipe)) == ()
    for part, module in ghost.modules():
        assert all(isinstance(p, FakeTensor) for p in module.parameters()), part
        assert module is not pipe.components[part]
    with torch.no_grad():
        assert torch.equal(tiny.run(pipe), picture)


def test_offload_hooks_stay_with_the_pipeline(tmp_path: Path) -> None:
    pipe = made("sd", tmp_path)
    plain = tracer(pipe).trace(SMALL, Variant())
    pipe.enable_model_cpu_offload(device="cpu")
    before = snapshot(pipe)
    ghost = ghost_of(pipe)
    assert set(ghost.hooked) == {"text_encoder", "unet", "vae"}
    program = Tracer(ghost, Settings(ghost)).trace(SMALL, Variant())
    assert before.difference(snapshot(pipe)) == ()
    assert phases(resident(program)) == phases(resident(plain))


def test_tied_weights_count_once(tmp_path: Path) -> None:
    pipe = made("flux", tmp_path)
    encoder = pipe.text_encoder_2
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight
    ghost = ghost_of(pipe)
    double = ghost.pipe.text_encoder_2
    assert double.shared.weight is double.encoder.embed_tokens.weight
    program = Tracer(ghost, Settings(ghost)).trace(SMALL, Variant())
    half = Tracer(ghost, Settings(ghost)).trace(SMALL, Variant(dtype="float16"))
    kept = sum(p.nbytes for n, p in encoder.named_parameters() if ".wo." in n)
    everything = sum(t.nbytes for t in {id(t): t for t in (*encoder.parameters(), *encoder.buffers())}.values())
    assert sum(program.component("text_encoder_2").weights) == everything
    assert sum(half.component("text_encoder_2").weights) == (everything + kept) // 2, "T5 keeps wo in fp32"


def test_adapters_come_along(tmp_path: Path) -> None:
    """A module put around a layer, as LoRA does it, is part of the ghost."""

    class Adapted(torch.nn.Module):
        def __init__(self, base: torch.nn.Linear) -> None:
            super().__init__()
            self.base_layer = base
            self.down = torch.nn.Linear(base.in_features, 4, bias=False)
            self.up = torch.nn.Linear(4, base.out_features, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base_layer(x) + self.up(self.down(x))

    pipe = made("sd", tmp_path)
    bare = tracer(pipe).trace(SMALL, Variant())
    attention = next(m for n, m in pipe.unet.named_modules() if n.endswith("attn1"))
    attention.to_q = Adapted(attention.to_q)
    program = tracer(pipe).trace(SMALL, Variant())
    added = sum(p.nbytes for p in (*attention.to_q.down.parameters(), *attention.to_q.up.parameters()))
    assert sum(program.component("unet").weights) == sum(bare.component("unet").weights) + added
    assert any(recording.name == "Adapted" for recording in program.recordings)


def test_components_are_described(name: str, tmp_path: Path) -> None:
    pipe = made(name, tmp_path)
    program = tracer(pipe).trace(asked(name), Variant())
    assert {c.name for c in program.components} == {
        n for n, m in pipe.components.items() if isinstance(m, torch.nn.Module)
    }
    for component in program.components:
        module = getattr(pipe, component.name)
        assert component.kind == type(module).__name__
        assert component.dtype == "float32"
        assert component.weights == weights_of(module)
        traits = {"text_encoder", "denoiser", "autoencoder"} & component.traits
        assert len(traits) == 1
    assert program.component("vae").factor == 8
    assert program.chain == tuple(pipe.model_cpu_offload_seq.split("->"))


@pytest.mark.parametrize(
    ("prompts", "images", "splits", "largest"),
    [
        (1, 1, 1, (1, 1)),
        (4, 1, 2, (2, 1)),
        (5, 2, 2, (3, 2)),
        (1, 4, 2, (1, 2)),
        (1, 5, 2, (1, 3)),
        (2, 4, 4, (1, 2)),
        (2, 4, 8, (1, 1)),
    ],
)
def test_a_request_is_split_into_whole_prompts_first(
    prompts: int, images: int, splits: int, largest: tuple[int, int]
) -> None:
    assert split(prompts, images, splits) == largest


def test_splitting_traces_the_largest_of_the_calls(tmp_path: Path) -> None:
    busy = tracer(made("sd", tmp_path))
    whole = busy.trace(replace(SMALL, images=2), Variant(splits=2))
    single = busy.trace(SMALL, Variant())
    assert [(n, b) for n, b, _ in phases(resident(whole))] == [(n, b) for n, b, _ in phases(resident(single))]


@pytest.fixture(scope="module")
def sd15() -> Ghost:
    return haunted(blueprint.build(profiles.find("sd15"), "float16"))


def test_a_full_size_pipeline_peaks_where_it_was_measured(sd15: Ghost) -> None:
    """SD 1.5 at 512 x 512 in fp16: 2.613 GiB allocated with torch's real allocator and cuDNN's real workspaces."""
    program = Tracer(sd15, Settings(sd15)).trace(Request(height=512, width=512, steps=50), Variant())
    for index, recording in enumerate(program.recordings):
        assert_sound(program, index, recording)
    calls = modules_of(program)
    assert calls.count("unet") == 51, "PNDM takes its second step twice"
    assert calls[:2] == ["text_encoder"] * 2
    assert calls[-1] == "vae.decode"
    assert rehearse(resident(program), device((8, 6))).allocated == pytest.approx(2.613 * 2**30, rel=0.005)


def test_tables_that_a_method_remembers_are_made_anew_in_each_recording() -> None:
    """As Qwen-Image's positions on the card, behind diffusers' wrapper of `lru_cache`."""
    from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope

    class Inherited(QwenEmbedRope):
        """Its caches are those of the class above it."""

    rope = Inherited(theta=10000, axes_dim=[16, 56, 56], scale_rope=True)
    tables = rope._get_device_freqs(torch.device("cpu"))
    assert rope._get_device_freqs(torch.device("cpu")) is tables
    forget(torch.nn.Sequential(rope))
    assert rope._get_device_freqs(torch.device("cpu")) is not tables
