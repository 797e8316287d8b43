"""Snippet: a plan as plain diffusers code to copy, from loading to the call.

It needs nothing of the planner but the functions for what diffusers lacks, and says so; a `plain` plan needs none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from planner import profiles
from planner.errors import BadRequest
from planner.folding import fold, literal
from planner.plan import Plan
from planner.pricing import LASTING, words
from planner.profiles import ComponentProfile, PipelineProfile
from planner.request import PICTURES, Request
from planner.sizes import Sizes
from planner.tasks import JOINED, kind_of
from planner.techniques.base import Option

ARGUMENTS = {
    "height": "height",
    "width": "width",
    "frames": "num_frames",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "strength": "strength",
}
"""Fields of a request and the call arguments they become."""
_LOADS = re.compile(r"pipe = \w+\.from_pretrained\(")
_GIVES = re.compile(r"\(MODEL, (?P<argument>quantization_config=.*)\)")
"""An option that is an argument of loading."""
_ADDS = re.compile(r"pipe\((?P<name>\w+)=(?P<value>\w+)\)")
"""An option that is an argument of the call."""
GGUF = "GGUFQuantizationConfig"
_LASTS = "; cannot be undone"
_GENERATES = re.compile(r"\bpipe\((?P<prompt>prompts?\b[^,]*), num_\w+=(?P<images>\d+)\)")


def code(plan: Plan) -> str:
    """The statements that load, configure and call the pipeline as planned."""
    filed = [part.kind for part, _ in _filed(plan)]
    names = sorted({plan.pipeline, *(part.kind for _, part in _lent(plan)), *filed, *([GGUF] if filed else [])})
    loaders = [
        name for name in ("load_image", "load_video") if any(name in loads for loads in _pictures(plan).values())
    ]
    imports = ["import torch", *(f"from diffusers import {name}" for name in names)]
    imports += [f"from diffusers.utils import {', '.join(loaders)}"] if loaders else []
    loading = [*_loading(plan), *_cap(plan)]
    setting = [line for option in plan.options for line in _setting(option)]
    imports += sorted({line for line in setting if line.startswith(("from ", "import "))})
    setting = [line for line in setting if line not in imports]
    return "\n".join((*_needs(plan), *imports, "", *map(fold, loading), *setting, "", *map(fold, _generating(plan))))


def _needs(plan: Plan) -> Iterator[str]:
    """What the code cannot do without this package, and how to have code that can."""
    if ours := dict.fromkeys(option.technique for option in plan.options if not option.plain):
        yield f"# needs vram-planner for {', '.join(ours)}; plan with --plain to do without"


def spoken(option: Option) -> str:
    """An option in a word: `vae_tiling=512`, `streaming=transformer:10/62`."""
    return words(option)


def _lent(plan: Plan) -> Iterator[tuple[PipelineProfile, ComponentProfile]]:
    """Models that have a repository of their own beside the pipeline's, and the profile that names it."""
    known: set[str] = set()
    for place, profile in enumerate(_family(plan)):
        yield from ((profile, part) for part in profile.models if place and part.name not in known)
        known |= {part.name for part in profile.models}


def _filed(plan: Plan) -> Iterator[tuple[ComponentProfile, str]]:
    """Models whose weights are in files of their own, and these."""
    named = (name.split("=", 1) for name in plan.model.split(JOINED) if profiles.is_file(name))
    known = {part.name: part for profile in _family(plan) for part in profile.models}
    yield from ((known[name], file) for name, file in named if name in known)


def _family(plan: Plan) -> list[PipelineProfile]:
    """The profiles whose components are joined in a plan, that of the whole pipeline first."""
    try:
        found = [profiles.resolve(name) for name in plan.model.split(JOINED) if not profiles.is_file(name)]
    except BadRequest:  # a live pipeline, or a folder that has gone
        return []
    bases = [profiles.find(profile.base) for profile in found[:1] if profile.base]
    return [*bases, *found]


def _loading(plan: Plan) -> Iterator[str]:
    if plan.model == plan.pipeline:
        yield from _reloading(plan)
        return
    profile = next(iter(_family(plan)), None)
    lent = tuple(_lent(plan))
    for lender, part in lent:
        dtype = f"torch.{plan.request.dtype or part.dtype}"
        yield f"{part.name} = {part.kind}.from_pretrained({literal(lender.hub_id)}, torch_dtype={dtype})"
    model = profile.hub_id if profile and profile.hub_id else plan.model.partition(JOINED)[0]
    for part, file in _filed(plan):
        dtype = f"torch.{plan.request.dtype or part.dtype}"
        where = (literal(file), f"config={literal(model)}", f"subfolder={literal(part.name)}", f"torch_dtype={dtype}")
        way = f"quantization_config={GGUF}(compute_dtype={dtype})"
        yield f"{part.name} = {part.kind}.from_single_file({', '.join((*where, way))})"
    arguments = [literal(model), f"torch_dtype={_dtype(plan, profile)}"]
    found = (_GIVES.search(call) for option in plan.options for call in option.calls)
    arguments += [each["argument"] for each in found if each]
    arguments += [f"{part.name}={part.name}" for part in (*(part for part, _ in _filed(plan)), *(p for _, p in lent))]
    arguments += [f"{name}=None" for name in _left_out(plan, profile)]
    lasting = (option for option in plan.options if any(map(_GIVES.search, option.calls)))
    yield from (f"# {spoken(option)}{_LASTS}" for option in lasting)
    yield f"pipe = {plan.pipeline}.from_pretrained({', '.join(arguments)})"
    for part in profile.loaded if profile else ():
        if part.readied:
            method, given = part.readied
            yield f"pipe.{part.name}.{method}({', '.join(map(literal, given))})"


def _reloading(plan: Plan) -> Iterator[str]:
    """A live pipeline stays as it was loaded, unless an option asks to load it otherwise."""
    loads = [call for option in plan.options for call in option.calls if _LOADS.match(call)]
    yield from loads or (f"# pipe: the {plan.pipeline} as it is loaded now",)


def _dtype(plan: Plan, profile: PipelineProfile | None) -> str:
    """What to load with: one dtype, or a default and the components that differ from it."""
    if precision := plan.option("precision"):
        return f"torch.{precision.value}"
    if profile is None or plan.request.dtype:
        return f"torch.{plan.dtype}"
    others = {part.name: part.dtype for part in profile.loaded if part.dtype not in ("", plan.dtype)}
    if not others:
        return f"torch.{plan.dtype}"
    pairs = (f"{literal(name)}: torch.{dtype}" for name, dtype in {"default": plan.dtype, **others}.items())
    return "{" + ", ".join(pairs) + "}"


def _left_out(plan: Plan, profile: PipelineProfile | None) -> Iterator[str]:
    """Optional models of the profile that take no part in the plan."""
    working = {phase.name.partition(".")[0] for phase in plan.baseline.phases}
    for part in profile.components if profile else ():
        if part.optional and part.role == "model" and part.name not in working:
            yield part.name


def _cap(plan: Plan) -> Iterator[str]:
    """The limit that makes a budget hold on a card with more memory."""
    if plan.budget < plan.device.free and plan.capacity > 0:
        yield f"torch.cuda.set_per_process_memory_fraction({plan.capacity} / torch.cuda.mem_get_info()[1])"


def _setting(option: Option) -> Iterator[str]:
    elsewhere = (_LOADS.match, _ADDS.fullmatch, _GENERATES.search)
    calls = [call for call in option.calls if not any(found(call) for found in elsewhere)]
    if any(not call.startswith(("from ", "import ")) for call in calls):
        ours = "" if option.plain else ", which diffusers lacks"
        yield f"# {spoken(option)}{ours}{_LASTS if option.technique in LASTING else ''}"
    yield from map(fold, calls)


def _generating(plan: Plan) -> Iterator[str]:
    request = plan.request
    several = request.prompts > 1
    if "prompt" not in kind_of(plan.pipeline).lacks:
        yield f'prompts = ["…"] * {request.prompts}' if several else 'prompt = "…"'
    yield from (f"{name} = {loaded}" for name, loaded in _pictures(plan).items())
    for call in (call for option in plan.options for call in option.calls):
        if found := _GENERATES.search(call):
            own = _call(plan, found["prompt"], int(found["images"]))
            yield call[: found.start()] + own + call[found.end() :]
            return
    yield f"output = {_call(plan, 'prompts' if several else 'prompt', request.images)}"


def _call(plan: Plan, prompt: str, images: int) -> str:
    request = plan.request
    wanted = {name: getattr(request, field) for field, name in ARGUMENTS.items()}
    if images > 1:
        wanted["num_videos_per_prompt" if request.frames else "num_images_per_prompt"] = images
    kind, pictures = kind_of(plan.pipeline), _pictures(plan)
    given = [f"{name}={literal(value)}" for name, value in (wanted | dict(request.extra)).items() if value is not None]
    added = (_ADDS.fullmatch(call) for option in plan.options for call in option.calls)
    given += [f"{found['name']}={found['value']}" for found in added if found]
    given = [argument for argument in given if argument.partition("=")[0] not in kind.lacks]
    named = f"prompt={prompt}" if pictures or kind.first != "prompt" else prompt
    words = [] if "prompt" in kind.lacks else [named]
    return f"pipe({', '.join((*words, *(f'{name}={name}' for name in pictures), *given))})"


def _pictures(plan: Plan) -> dict[str, str]:
    """Call arguments that are pictures, and how to load each in the size that was planned for."""
    request, kind = plan.request, kind_of(plan.pipeline)
    given = {picture: getattr(request, picture) for picture in PICTURES if getattr(request, picture)}
    return {kind.argument(picture): _loaded(picture, sizes, request) for picture, sizes in given.items()}


def _loaded(picture: str, sizes: Sizes, request: Request) -> str:
    if picture == "video":
        return 'load_video("…")'
    sides = [(size.width or request.width, size.height or request.height) for size in sizes]
    loads = ['load_image("…")' + (f".resize({literal(side)})" if all(side) else "") for side in sides]
    if len(loads) > 1 and len(set(loads)) == 1:
        return f"[{loads[0]}] * {len(loads)}"
    return loads[0] if len(loads) == 1 else f"[{', '.join(loads)}]"
