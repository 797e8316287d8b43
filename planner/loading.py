"""Loading: a pipeline's weights from a folder to the host, rounded one component after another where a plan says so.

Nothing is left on the card before the plan is applied, which only adds what the promise counts from its first phase on.
On the way there only bitsandbytes takes of it, for one layer at a time.  Weights are read from safetensors files alone,
and code in a folder is never run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner import profiles, tasks
from planner.errors import BadRequest
from planner.hub import INDEX, bytes_stored_as
from planner.plan import Plan
from planner.profiles import ComponentProfile, PipelineProfile
from planner.program import Component, Variant
from planner.programs import Programs
from planner.techniques import packing
from planner.techniques.base import Option, Technique
from planner.techniques.layerwise_casting import LayerwiseCasting
from planner.techniques.quantization import Quantization, quantize_blocks
from planner.units import format_bytes

QUANTIZES, CASTS = "quantization", "layerwise_casting"
"""The former rounds while the pipeline is loaded, the latter when the plan is applied."""


def fetched(
    model: str | Path, plan: Plan, *, techniques: Sequence[Technique], components: Sequence[str] = (), variant: str = ""
) -> Any:
    """The pipeline of a plan on the host, quantized where the plan says so.

    `model`: a folder in hub layout, or a profile's name or hub id whose files are on this machine.  `components`:
    optional ones to load.  `variant`: `fp16` for files named so.  Raises BadRequest where weights are missing.
    """
    import diffusers

    profile, folder = _found(model, components)
    dtypes = dtypes_of(profile, plan)
    given = {"local_files_only": True, "use_safetensors": True, "variant": variant or None}
    parts: dict[str, Any] = {part.name: None for part in profile.components if part.optional}
    if "safety_checker" in parts:
        parts["requires_safety_checker"] = False
    kind: Any = getattr(diffusers, plan.pipeline, diffusers.DiffusionPipeline)
    try:
        parts |= _rounded(profile, folder, plan, techniques, given)
        parts |= {part.name: _filed(part, folder, dtypes[part.name]) for part in profile.models if part.file}
        return kind.from_pretrained(str(folder), torch_dtype=dtypes | {"default": dtypes[""]}, **parts, **given)
    except (OSError, ValueError) as error:  # diffusers' errors of missing files are either
        files = f"{variant} safetensors" if variant else "safetensors"
        raise BadRequest(
            f"{folder} lacks {files} weights of 1 or more components ({' '.join(str(error).split())[:160]}); "
            "give a folder that has them all, or name their `variant`."
        ) from error


def kept_nothing(techniques: Sequence[Technique]) -> tuple[Technique, ...]:
    """The techniques as they act on a pipeline that was loaded for its plan: what is rounded is not kept as it was."""
    return tuple(
        replace(each, for_good=True) if isinstance(each, (Quantization, LayerwiseCasting)) else each
        for each in techniques
    )


def dtypes_of(profile: PipelineProfile, plan: Plan) -> dict[str, Any]:
    """The dtype each component is loaded in, and under no name that of the rest."""
    import torch

    option = plan.option("precision")
    wanted = str(option.value) if option else plan.request.dtype
    names = {part.name: wanted or part.dtype for part in profile.models if part.dtype}
    return {name: getattr(torch, dtype) for name, dtype in {**names, "": wanted or plan.dtype}.items()}


def mapped(model: str | Path, plan: Plan, *, components: Sequence[str] = (), variant: str = "") -> dict[str, int]:
    """Bytes of each component that its files hold as they are wanted.

    They are mapped, not read: the system can drop them from memory at any time (safetensors with diffusers 0.42.1 and
    transformers 5.24: 2.0 GB loaded take 0.0 GB of their own).  Arguments as of `fetched`.  Raises BadRequest.
    """
    profile, folder = _found(model, components)
    dtypes = dtypes_of(profile, plan)
    whole = (part for part in profile.models if not part.file)
    names = {part.name: str(dtypes.get(part.name, dtypes[""])).removeprefix("torch.") for part in whole}
    return {name: bytes_stored_as(dtype, folder / name, variant) for name, dtype in names.items()}


def host_peak(before: Mapping[str, int], after: Mapping[str, int], mapped: Mapping[str, int]) -> tuple[int, str]:
    """Bytes of host memory at the worst moment of loading, and the component that is then read.

    `before` and `after`: bytes of each component as it is read and as it stays; `mapped`: those that take no memory of
    their own until they are changed.  Components that shrink are loaded first, largest first.
    """
    held, peak, worst = 0, 0, ""
    for name in sorted(before, key=lambda name: (before[name] == after[name], -before[name])):
        read = max(before[name] - mapped.get(name, 0), 0)
        stays = read if before[name] == after[name] else after[name]
        if held + max(read, stays) > peak:
            peak, worst = held + max(read, stays), name
        held += stays
    return peak, worst


def totals(components: Sequence[Component]) -> dict[str, int]:
    """Bytes of each component's weights."""
    return {part.name: sum(part.weights) for part in components}


def card_peak(read: Sequence[Component], stays: Sequence[Component]) -> int:
    """Bytes of the card that packing takes at most, where there is one: it goes by layers."""
    before = {part.name: part.weights for part in read}
    packed = (part for part in stays if sum(part.weights) < sum(before[part.name]))
    return packing.ON_THE_WAY * max((max(before[part.name]) for part in packed), default=0)


def packs(plan: Plan) -> bool:
    """Whether a card of this machine packs layers of the plan while loading."""
    import torch

    option = plan.option(QUANTIZES)
    return option is not None and option.value in packing.BITS and torch.cuda.is_available()


def sizes(
    programs: Programs, options: Sequence[Option], techniques: Sequence[Technique]
) -> tuple[tuple[Component, ...], tuple[Component, ...]]:
    """The components as they are read, and as they stay once they are rounded."""
    variant = Variant()
    for option in options:
        variant = next(each for each in techniques if each.name == option.technique).variant(variant, option)
    read = replace(variant, settings=tuple(s for s in variant.settings if s.technique not in (QUANTIZES, CASTS)))
    stays = replace(variant, settings=tuple(s for s in variant.settings if s.technique != CASTS))
    return programs.get(read).components, programs.get(stays).components


def check_room(peak: int, component: str, free: int) -> None:
    """Raises BadRequest where the host has less than loading takes."""
    if peak > free:
        raise BadRequest(
            f"Loading takes {format_bytes(peak)} of host RAM when {component} is read, {format_bytes(peak - free)} "
            "more than there is; free some, load a smaller dtype, or ask for fidelity lossy and use=quantization."
        )


def _found(model: str | Path, components: Sequence[str]) -> tuple[PipelineProfile, Path]:
    """The profile with optional components and files of their own, and where the weights are.  Raises BadRequest."""
    profile = tasks.resolve(model).including(*(name for name in components if not profiles.is_file(name)))
    for name in filter(profiles.is_file, components):
        profile = tasks.filed(profile, name)
    return profile, folder_of(model, profile)


def folder_of(model: str | Path, profile: PipelineProfile) -> Path:
    """Where the files are on this machine.  Raises BadRequest."""
    if (Path(model) / INDEX).is_file():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(profile.hub_id or str(model), local_files_only=True))
    except (OSError, ValueError) as error:  # its errors of absence are both
        raise missing(model, profile) from error


def missing(model: str | Path, profile: PipelineProfile) -> BadRequest:
    """The error of weights that are not here, and how to have them."""
    fetched = f", or fetch them with `hf download {profile.hub_id}`" if profile.hub_id else ""
    return BadRequest(f"There are no weights of {model} on this machine; give a folder that has them{fetched}.")


def _rounded(
    profile: PipelineProfile, folder: Path, plan: Plan, techniques: Sequence[Technique], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The components that the plan quantizes, the largest first."""
    option = plan.option(QUANTIZES)
    technique = next((each for each in techniques if isinstance(each, Quantization)), None)
    if option is None or technique is None:
        return {}
    dtypes, made = dtypes_of(profile, plan), {}
    largest = sorted(profile.models, key=lambda part: -_bytes_on_disk(folder / part.name))
    for part in largest:
        if not part.optional and not part.file and technique.may_take(part.name):
            module = _module(part, folder, dtypes[part.name], given)
            if technique.takes(part.name, module):
                _round(module, str(option.value), plan)
            made[part.name] = module
    return made


def _round(module: Any, value: str, plan: Plan) -> None:
    """A card takes part where it has room, and for no more than the call will take of it."""
    if value in packing.BITS:
        packing.pack(module, value, plan.promise.allocated if packs(plan) else 0)
    else:
        quantize_blocks(module, value)


def _filed(part: ComponentProfile, folder: Path, dtype: Any) -> Any:
    """A component from a GGUF file of its own, which diffusers reads tensor by tensor to the host."""
    from planner.blueprint import find
    from planner.filed import quantized

    kind: Any = find(part.library, part.kind)
    return kind.from_single_file(
        part.file, config=str(folder / part.name), torch_dtype=dtype, local_files_only=True, **quantized(dtype)
    ).eval()


def _module(part: ComponentProfile, folder: Path, dtype: Any, given: Mapping[str, Any]) -> Any:
    from planner.blueprint import find

    kind: Any = find(part.library, part.kind)
    named = "torch_dtype" if kind.__module__.startswith("diffusers.") else "dtype"
    return kind.from_pretrained(str(folder / part.name), **{named: dtype}, **given).eval()


def _bytes_on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
