"""Trace: the real pipeline call, run once over ghosts, becomes a program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import _lru_cache_wrapper
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.weight_norm import WeightNorm

from planner.arguments import EMBEDDED, call_arguments, decodes_in_chunks
from planner.cached import ONCE, caches_of
from planner.casting import Casting
from planner.dispatch import Dispatch, Functions, name_of, nbytes
from planner.errors import TraceFailed
from planner.events import Call
from planner.ghost import Ghost
from planner.groupable import is_leaf, stacks_of
from planner.metas import tensors
from planner.packed import clings, packs
from planner.program import DENOISERS, METHODS, Component, Program, Unit, Variant, sample_of
from planner.recorder import Done, Recorder
from planner.replay import Over, Replay, anchored_buffers
from planner.signature import Shape, made_anew, mapped
from planner.streamable import held, units_of

if TYPE_CHECKING:
    from planner.request import Request

BLENDS = {"blend_v": -2, "blend_h": -1, "blend_t": -3}
"""Methods of tiled coding that loop over the rows of a seam, and the dimension they loop over."""

MIXING = (".pag.", ".deprecated.")
"""Parts of diffusers whose pipelines let attention look across the rows of a batch, or may (0.42.1)."""
MASKS = ("prepare_causal_attention_mask",)
"""Methods that write a mask of every pixel of a video against every other, row by row."""
END = "maybe_free_model_hooks"
"""The method of a pipeline that takes its components off the card."""
REFUSALS = (ValueError, TypeError, RuntimeError, NotImplementedError, AttributeError, LookupError)
"""What pipelines and models raise for a request they cannot take."""

Setting = Callable[[Ghost, Variant], None]


Asked = Mapping[str, Sequence[tuple[Any, Any, tuple[torch.dtype, ...]]]]
"""With what each module of the pipeline was called."""


class Tracer:
    """Records programs of one ghost.  Bodies that two variants share are recorded once."""

    def __init__(self, ghost: Ghost, prepare: Setting, family: str = "") -> None:
        self._ghost = ghost
        self._prepare = prepare
        self._family = family
        self._recorder = Recorder()
        self._replay = Replay(self._recorder, ghost.mode)
        self._programs: dict[tuple[Request, Variant], Program] = {}
        self.casting = Casting(self._recorder, self._replay)
        self._asked: dict[tuple[Request, Variant], Asked] = {}
        self._dress()
        self._wrap_end(ghost.pipe)

    def trace(self, request: Request, variant: Variant) -> Program:
        """The program of one call.  Raises TraceFailed with the pipeline's own words."""
        known = self._programs.get((request, variant))
        if known is None:
            known = self._spliced(request, variant) or self._traced(request, variant)
            self._programs[request, variant] = known
        return known

    def _spliced(self, request: Request, variant: Variant) -> Program | None:
        """A program that differs from a plainer one only in how an autoencoder works: only its calls are recorded.

        None where there is no plainer one, or where its calls do not stand on their own.
        """
        coders = {name for name, module in self._ghost.modules() if is_autoencoder(module)}
        others = tuple(setting for setting in variant.settings if setting.scope != "autoencoder")
        plain = replace(variant, sliced=False, tile=0, channels_last=variant.channels_last - coders, settings=others)
        if plain == variant:
            return None
        base = self.trace(request, plain)
        events = list(base.recordings[base.course].events)
        self._ready(variant)
        asked = {module: iter(calls) for module, calls in self._asked[request, plain].items()}
        for place, event in enumerate(events):
            if isinstance(event, Call) and event.module.partition(".")[0] in coders:
                if (again := self._called_again(event, *next(asked[event.module]))) is None:
                    return None
                events[place] = again
        recorder = self._recorder
        course = replace(base.recordings[base.course], events=tuple(events))
        return replace(
            base, variant=variant, kernels=tuple(recorder.kernels), course=recorder.keep(course),
            recordings=tuple(recorder.recordings),
        )  # fmt: skip

    def _called_again(self, call: Call, args: Any, kwargs: Any, dtypes: tuple[torch.dtype, ...]) -> Call | None:
        """The same component call as the ghost is now; None where it does not fit in the other's place."""
        if args is None:
            return None
        component, _, method = call.module.partition(".")
        owner = dict(self._ghost.modules())[component]
        wanted = {id(tensor): dtype for tensor, dtype in zip(held(owner), dtypes, strict=True)}
        recast: Callable[..., torch.nn.Module] = owner._apply
        recast(lambda tensor: tensor.to(wanted.get(id(tensor), tensor.dtype)))  # an autoencoder is cast under way
        args, kwargs = mapped((args, kwargs), lambda shape: made_anew(shape, {}, self._ghost.mode))
        self._recorder.ignore(t for _, m in self._ghost.modules() for t in (*m.parameters(), *m.buffers()))
        self._recorder.ignore(tensors((args, kwargs)))
        with self._recorded(call.module):
            out = getattr(owner, method or "forward")(*args, **kwargs)
            events = self._recorder.drop()
        del out
        if len(events) != 1 or not isinstance(events[0], Call) or len(events[0].kept) != len(call.kept):
            return None
        kept = zip(events[0].kept, call.kept, strict=True)
        return Call(events[0].recording, call.module, tuple((inner, outer) for (inner, _), (_, outer) in kept))

    def _traced(self, request: Request, variant: Variant) -> Program:
        self._ready(variant)
        self._replay.asked = {}
        self._replay.resting.clear()
        components = tuple(self._component(name, module) for name, module in self._ghost.modules())
        arguments, others = (call_arguments(self._ghost.pipe, request, variant) for _ in range(2))
        recorder = self._recorder
        recorder.ignore(t for _, m in self._ghost.modules() for t in (*m.parameters(), *m.buffers()))
        for _, module in self._ghost.modules():
            forget(module)
        with self._recorded(type(self._ghost.pipe).__name__):
            recorder.allocated(tensors([arguments.get(name) for name in EMBEDDED]))
            out = self._ghost.pipe(**arguments)
            done = recorder.leave()
            self._asked[request, variant], self._replay.asked = self._replay.asked, {}
            components = self._called(components, self._asked[request, variant])
            assert done.recording is not None, "the outermost body has no caller to be written into"
            course = done.recording
            if done.kept and not variant.remembers:
                course = self._followed(done, out, arguments, others)
        del out
        return Program(
            pipeline=type(self._ghost.pipe).__name__,
            variant=variant,
            components=components,
            chain=tuple((getattr(self._ghost.pipe, "model_cpu_offload_seq", None) or "").split("->")),
            excluded=frozenset(getattr(self._ghost.pipe, "_exclude_from_cpu_offload", ())),
            kernels=tuple(recorder.kernels),
            recordings=tuple(recorder.recordings),
            course=course,
            family=self._family,
        )

    def _component(self, name: str, module: torch.nn.Module) -> Component:
        made = component_of(name, module, self._ghost.pipe)
        return replace(made, traits=made.traits | {"unread"}) if self._ghost.unread else made

    def _called(self, components: Sequence[Component], asked: Asked) -> tuple[Component, ...]:
        """What the call that just ended tells of them: their rows, and whether the denoisers ran once for each step."""
        denoisers = {component.name for component in components if "denoiser" in component.traits}
        calls = sum(len(calls) for name, calls in asked.items() if name in denoisers)
        once = {ONCE} if 0 < calls == getattr(self._ghost.pipe, "num_timesteps", 0) else set()
        return tuple(
            replace(c, rows=_most_rows(asked, c.name), traits=c.traits | once if c.name in denoisers else c.traits)
            for c in components
        )

    def _followed(self, done: Done, out: Any, arguments: dict[str, Any], others: dict[str, Any]) -> int:
        """The course of a call with the ends of what an earlier one leaves: the pipeline is called again to see them.

        Its modules do what they did, so that only its own code runs, and that only until nothing is left.  Whoever
        calls holds the result `out` still, but not what was handed in.
        """
        recorder = self._recorder
        recorder.enter("", type(self._ghost.pipe).__name__)
        recorder.outlived(done, tensors(out))
        arguments.clear()
        recorder.allocated(tensors([others.get(name) for name in EMBEDDED]))
        self._replay.over = lambda module: module in DENOISERS and not recorder.left
        try:
            with suppress(Over):
                self._ghost.pipe(**others)
        finally:
            self._replay.over = lambda _: False
        assert done.recording is not None
        return recorder.keep(recorder.following(recorder.recordings[done.recording]))

    @contextmanager
    def _recorded(self, name: str) -> Iterator[None]:
        """A body under way at the top, whose errors are refusals of the request; nothing stays of it."""
        self._recorder.enter("", name)
        try:
            with (
                torch.no_grad(),
                Functions(self._recorder, self._ghost.mode),
                Dispatch(self._recorder, self._ghost.mode),
            ):
                yield
        except REFUSALS as error:
            raise TraceFailed(f"{name} refused the request: {error}") from error
        finally:
            self._recorder.abandon()

    def _ready(self, variant: Variant) -> None:
        """Bring the ghost to a variant."""
        self._prepare(self._ghost, variant)
        self._dress()
        self._replay.forget_fingerprints()

    def _dress(self) -> None:
        """Have all modules recorded: those there from the start, and those that settings added."""
        for name, module in self._ghost.modules():
            fresh = [(path, part) for path, part in module.named_modules() if not _is_dressed(part)]
            if fresh and fresh[0][1] is module:
                self._wrap_methods(name, module)
            for path, part in fresh:
                self._wrap(name, module, path, part)

    def _wrap(self, component: str, root: torch.nn.Module, path: str, part: torch.nn.Module) -> None:
        self._replay.wrap(part, "forward", _relative(root, path) or component, buffers=offloads_buffers(root))
        for method in MASKS:
            if callable(getattr(part, method, None)):
                self._replay.wrap_mask(part, method)
        object.__setattr__(part, "_apply", _Applier(self, component, root, part))

    def _wrap_end(self, pipe: Any) -> None:
        """What a pipeline calls last, before it lets go of its own variables."""
        if (real := getattr(pipe, END, None)) is None:
            return

        def ended(*args: Any, **kwargs: Any) -> Any:
            out = real(*args, **kwargs)
            self._recorder.ending()
            return out

        object.__setattr__(pipe, END, ended)

    def _wrap_methods(self, component: str, module: torch.nn.Module) -> None:
        for method in METHODS:
            if callable(getattr(module, method, None)):
                self._replay.wrap(module, method, f"{component}.{method}")
        for method, dimension in BLENDS.items():
            if callable(getattr(module, method, None)):
                self._replay.wrap_blend(module, method, dimension)

    def changed(self, component: str, module: torch.nn.Module, part: torch.nn.Module) -> None:
        """Weights of a part of a component were cast, perhaps while the pipeline ran."""
        self._replay.forget_fingerprints()
        self._recorder.ignore((*part.parameters(), *part.buffers()))
        if self._recorder.depth:
            self._recorder.cast(component, weights_of(module))


def forget(module: torch.nn.Module) -> None:
    """Empty the caches of its methods, which hold the tables of earlier calls (`lru_cache`, in a wrapper or not)."""
    for kind in {kind for part in module.modules() for kind in type(part).__mro__}:
        for method in vars(kind).values():
            for cache in (method, *_enclosed(method)):
                if isinstance(cache, _lru_cache_wrapper):
                    cache.cache_clear()


def _enclosed(method: Any) -> Iterator[Any]:
    """What a function holds of the one that made it; a cell may still be empty."""
    for cell in getattr(method, "__closure__", None) or ():
        with suppress(ValueError):
            yield cell.cell_contents


def _most_rows(asked: Asked, component: str) -> int:
    """Rows of the largest batch a component was called with."""
    calls = (call for name, calls in asked.items() if name.partition(".")[0] == component for call in calls)
    return max((_rows(sample_of(args, kwargs)) for args, kwargs, _ in calls if args is not None), default=0)


def _rows(sample: Any) -> int:
    """Rows of a batch that is kept as a shape; entries of a list of them."""
    if isinstance(sample, Shape):
        return sample.size[0] if sample.size else 0
    return len(sample) if isinstance(sample, list) else 0


def _relative(root: torch.nn.Module, path: str) -> str:
    """The path from the nearest module that is called rather than a list: `down_blocks.0` of `unet.down_blocks.0`."""
    parent, _, last = path.rpartition(".")
    while parent and isinstance(root.get_submodule(parent), (torch.nn.ModuleList, torch.nn.ModuleDict)):
        parent, _, name = parent.rpartition(".")
        last = f"{name}.{last}"
    return last


class _Applier:
    """`Module._apply` of a ghost: torch's own swaps tensor data, which ghosts do not allow."""

    def __init__(self, tracer: Tracer, component: str, root: torch.nn.Module, part: torch.nn.Module) -> None:
        self._tracer, self._component, self._root, self._part = tracer, component, root, part

    def __call__(self, change: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> torch.nn.Module:
        if self._tracer.casting.concerns(self._part):
            self._tracer.casting(self._part, change)
            return self._part
        before = weights_of(self._part)
        done: dict[int, torch.Tensor] = {}
        with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
            for module in self._part.modules() if recurse else (self._part,):
                tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
                for table in tables:
                    for name, tensor in table.items():
                        if tensor is not None:
                            table[name] = _once(tensor, change, done)
        if weights_of(self._part) != before:
            self._tracer.changed(self._component, self._root, self._part)
        return self._part


def _is_dressed(part: torch.nn.Module) -> bool:
    return isinstance(vars(part).get("_apply"), _Applier)


def _once(
    tensor: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor], done: dict[int, torch.Tensor]
) -> torch.Tensor:
    if id(tensor) not in done:
        changed = change(tensor)
        if changed is tensor:
            done[id(tensor)] = tensor
            return tensor
        is_weight = isinstance(tensor, torch.nn.Parameter)
        done[id(tensor)] = torch.nn.Parameter(changed, tensor.requires_grad) if is_weight else changed
    return done[id(tensor)]


def component_of(name: str, module: torch.nn.Module, pipe: Any) -> Component:
    """What the planner needs to know of a component."""
    tile = getattr(module, "tile_sample_min_size", None) or getattr(module, "tile_sample_min_height", 0)
    sizes: dict[torch.dtype, int] = {}
    for p in module.parameters():
        sizes[p.dtype] = sizes.get(p.dtype, 0) + p.numel()
    wide = [d for d in sizes if d.is_floating_point and d.itemsize > 1] or list(sizes)  # packed numbers have no say
    dtype = max(wide, key=lambda d: sizes[d], default=torch.float32)
    tables = anchored_buffers(module, buffers=offloads_buffers(module))
    places = {id(tensor): place for place, tensor in enumerate(held(module))}
    return Component(
        name=name, kind=type(module).__name__, dtype=name_of(dtype), weights=weights_of(module),
        anchored=tuple(nbytes(tensor) for own in tables.values() for tensor in own),
        traits=frozenset(trait for trait, has in (*_traits(name, module), *_traits_in(pipe, module)) if has),
        tile=int(tile) if isinstance(tile, (int, float)) else 0, factor=_factor(name, pipe),
        units=() if is_autoencoder(module) else tuple(Unit(unit.paths, unit.places) for unit in units_of(module)),
        stacks=stacks_of(module),
        tables=tuple(Unit((path,), tuple(places[id(tensor)] for tensor in own)) for path, own in tables.items()),
        lasting=tuple(path for path in tables if is_leaf(module.get_submodule(path))),
    )  # fmt: skip


def _traits(name: str, module: torch.nn.Module) -> tuple[tuple[str, bool], ...]:
    ranks = {p.dim() for p in module.parameters()}
    return (
        ("denoiser", name in DENOISERS),
        ("autoencoder", is_autoencoder(module)),
        ("text_encoder", name.startswith("text_encoder")),
        ("tiling", hasattr(module, "enable_tiling") and hasattr(module, "use_tiling")),
        ("slicing", hasattr(module, "enable_slicing") and hasattr(module, "use_slicing")),
        ("attention_slicing", hasattr(module, "set_attention_slice")),
        ("processors", hasattr(module, "attn_processors")),
        ("attention_backend", _has_backend(module)),
        ("layerwise_casting", hasattr(module, "enable_layerwise_casting") and not packs(module)),
        ("quantized", packs(module)),
        ("clinging", clings(module)),
        ("fuses_qkv", hasattr(module, "fuse_qkv_projections") and any(map(_fuses, module.modules()))),
        ("weight_norm", any(map(_makes_weights, module.modules()))),
        ("lends_weights", any(map(_lends_weights, module.modules()))),
        ("lists_of_lists", any(map(_is_list_of_lists, module.children()))),
        ("repeated_blocks", bool(getattr(module, "_repeated_blocks", None))),
        ("conv2d", 4 in ranks and 5 not in ranks),
    )


def _fuses(part: torch.nn.Module) -> bool:
    """Whether diffusers makes one projection of an attention's three."""
    return hasattr(part, "fuse_projections") and getattr(part, "_supports_qkv_fusion", True)


def _makes_weights(part: torch.nn.Module) -> bool:
    """Whether a layer's weight is made from others by a hook that comes before its `forward`, as weight norm's is."""
    return any(isinstance(hook, WeightNorm) for hook in part._forward_pre_hooks.values())


def _lends_weights(part: torch.nn.Module) -> bool:
    """Whether a module computes with the weights of its layers and does not call them, so that no hook of theirs runs.

    Of diffusers' own, the pooling of HunyuanDiT does (HunyuanDiTAttentionPool, 0.42.1).
    """
    return isinstance(part, torch.nn.MultiheadAttention) or type(part).__name__ == "HunyuanDiTAttentionPool"


def _is_list_of_lists(part: torch.nn.Module) -> bool:
    """Whether what it holds are lists themselves, which nobody calls (Stable Cascade's blocks)."""
    inner = tuple(part.children()) if isinstance(part, torch.nn.ModuleList) else ()
    return any(isinstance(child, (torch.nn.ModuleList, torch.nn.ModuleDict)) for child in inner)


def _traits_in(pipe: Any, module: torch.nn.Module) -> tuple[tuple[str, bool], ...]:
    """What a module can do because of the pipeline it is in."""
    return (
        ("rows_apart", _keeps_rows_apart(module, pipe)),
        ("decode_chunks", is_autoencoder(module) and decodes_in_chunks(pipe)),
        *caches_of(pipe, module),
    )


def is_autoencoder(module: torch.nn.Module) -> bool:
    """Whether a module turns images into latents and back."""
    return hasattr(module, "decode") and hasattr(module, "encode")


def _has_backend(module: torch.nn.Module) -> bool:
    parts = (getattr(m, "processor", None) for m in module.modules())
    sparse = getattr(getattr(module, "config", None), "attention_type", None) == "nabla"  # one backend has its masks
    return not sparse and any(hasattr(type(p), "_attention_backend") for p in parts)


def _keeps_rows_apart(module: torch.nn.Module, pipe: Any) -> bool:
    """Whether no attention looks from one row of a batch at another, as far as its processors are diffusers' own."""
    kinds = {type(p) for m in module.modules() if (p := getattr(m, "processor", None)) is not None}
    known = (k.__module__.startswith("diffusers.models.") and not k.__name__.startswith("PAG") for k in kinds)
    return all(known) and not any(part in type(pipe).__module__ for part in MIXING)


def _factor(name: str, pipe: Any) -> int:
    factors = ("vae_scale_factor_spatial", "vae_scale_factor")
    return (
        next((getattr(pipe, f) for f in factors if isinstance(getattr(pipe, f, None), int)), 8) if "vae" in name else 1
    )


def offloads_buffers(module: torch.nn.Module) -> bool:
    """Whether sequential offload moves buffers: diffusers asks for it where the root itself holds parameters."""
    return bool(module._parameters)


def weights_of(module: torch.nn.Module) -> tuple[int, ...]:
    """Bytes of each parameter and buffer, tied ones once, in the order in which `Module.to` moves them."""
    return tuple(map(nbytes, held(module)))
