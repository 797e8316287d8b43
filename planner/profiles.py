"""Pipeline profiles: what a pipeline is made of, from a shipped TOML file or a person's own folder.  No torch here."""

from __future__ import annotations

import difflib
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from planner import ggml, hub
from planner.errors import BadRequest, UnknownModel
from planner.ggml import Stored
from planner.hub import Json
from planner.plain import record
from planner.request import PICTURES
from planner.sizes import Sizes, sizes, spelled

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Role = Literal["model", "scheduler", "tokenizer", "processor", "guider"]
CONFIG_FILES: dict[Role, str] = {"model": "config.json", "scheduler": "scheduler_config.json"}
"""The file that holds a component's facts in hub layout; other roles have none that the planner needs."""
FILE = ".gguf"
NOT_FACTS = ("architectures", "dtype", "torch_dtype", "transformers_version")
"""Keys of a hub configuration that say nothing about the architecture, beside those that begin with an underscore."""
TOKENIZER_LENGTHS = {"CLIPTokenizer": 77, "T5Tokenizer": 512, "T5TokenizerFast": 512}
"""`model_max_length` where a folder has no tokenizer_config.json: CLIP's text positions (arXiv:2103.00020, §2.4) and
T5's training length (arXiv:1910.10683, §3.1.1)."""
DENOISERS = ("transformer", "unet", "prior", "decoder")
"""Components whose dtype is the pipeline's own where a folder mixes several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentProfile:
    """One entry of a pipeline."""

    name: str
    library: str
    """`diffusers`, `transformers`, or the pipeline package of diffusers that has the class."""
    kind: str
    """Class name."""
    config: Mapping[str, Json] = field(default_factory=dict, hash=False)
    """Arguments of the class that differ from its defaults; of a folder, all that it gives."""
    dtype: str = ""
    """Dtype in which people load it; empty where it has no weights."""
    stored: str = ""
    """Dtype of its weights on disk."""
    parameters: int = 0
    """Tied ones once; 0 where not recorded."""
    max_length: int = 0
    """Tokens a tokenizer pads and cuts to; 0 where it does not."""
    optional: bool = False
    """Left out unless asked for."""
    packed: tuple[str, ...] = ()
    """Layers stored in 4 bits, or as torchao packs them, by path."""
    nested: bool = False
    """Whether the scales of those are quantized too."""
    compute: str = ""
    """Dtype in which those compute; empty: that of what they are given."""
    how: Mapping[str, Json] = field(default_factory=dict, hash=False)
    """What torchao did to them, in its own words; empty: they are of bitsandbytes."""
    file: str = ""
    """A GGUF file that holds its weights, in the place of those of its folder."""
    tensors: tuple[Stored, ...] = ()
    """What is in that file."""

    @property
    def readied(self) -> tuple[str, tuple[str, ...]] | None:
        """Method and arguments without which it does not work at all; its user has to call it (diffusers 0.42.1)."""
        if self.kind == "AutoencoderKLAllegro":
            return "enable_tiling", ()
        return ("set_attention_backend", ("flex",)) if self.config.get("attention_type") == "nabla" else None

    @property
    def role(self) -> Role:
        """What part it plays, as its class name says."""
        words: tuple[tuple[str, Role], ...] = (
            ("Scheduler", "scheduler"),
            ("Tokenizer", "tokenizer"),
            ("Processor", "processor"),
            ("FeatureExtractor", "processor"),
            ("Guidance", "guider"),
        )
        return next((role for word, role in words if word in self.kind), "model")


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultRequest:
    """What is generated when nothing is said; None where the pipeline's own default holds."""

    height: int | None = None
    """Pixels."""
    width: int | None = None
    """Pixels."""
    frames: int | None = None
    """How many, of a video."""
    steps: int | None = None
    """How many denoising steps."""
    guidance: float | None = None
    """Guidance scale, a plain factor."""
    strength: float | None = None
    """Share of the denoising steps that a start image goes through."""
    image: Sizes = ()
    """Of pictures, their sizes; a file says `"auto"` for the size of the result, or `"128x128"`."""
    mask: Sizes = ()
    """Of inpainting."""
    control: Sizes = ()
    """Of a ControlNet or T2I-Adapter."""
    reference: Sizes = ()
    """Of an IP-Adapter, say."""
    last_image: Sizes = ()
    """The last frame of a video."""
    video: Sizes = ()
    """Frames of a video to start from."""
    extra: tuple[tuple[str, str | int | float | bool], ...] = ()
    """Further arguments of the call, by name."""

    def to_json(self) -> dict[str, Json]:
        """A value for `json.dumps`; pictures as texts that `Request` reads."""
        pictures = {name: spelled(getattr(self, name)) for name in PICTURES}
        return record(self) | pictures | {"extra": dict(self.extra)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineProfile:
    """A pipeline without its weights."""

    name: str
    pipeline: str
    """Class name, of diffusers."""
    dtype: str
    """Dtype in which people load it."""
    components: tuple[ComponentProfile, ...]
    settings: Mapping[str, Json] = field(default_factory=dict, hash=False)
    """Arguments of the pipeline class that are no components."""
    defaults: DefaultRequest = DefaultRequest()
    hub_id: str = ""
    base: str = ""
    """Name of the profile that it shares its components with, but for its own: those `hub_id` is of."""
    family: str = ""
    """What it is listed under; empty for a folder."""
    aliases: tuple[str, ...] = ()
    max_prompt_tokens: int = 0
    """Tokens of a prompt the text encoders see at most; 0 where unknown."""
    license: str = ""
    sources: tuple[str, ...] = ()
    notes: str = ""

    @property
    def loaded(self) -> tuple[ComponentProfile, ...]:
        """The components a plan counts."""
        return tuple(part for part in self.components if not part.optional)

    @property
    def models(self) -> tuple[ComponentProfile, ...]:
        """The components that have weights."""
        return tuple(part for part in self.components if part.role == "model")

    def including(self, *names: str) -> PipelineProfile:
        """The same profile with optional components loaded.  Raises BadRequest for a name it does not have."""
        optional = [part.name for part in self.components if part.optional]
        for name in names:
            if name not in optional:
                raise BadRequest(
                    f"{self.name} has no optional component {name!r}, only {', '.join(optional) or 'none'}."
                )
        parts = (replace(part, optional=part.optional and part.name not in names) for part in self.components)
        return replace(self, components=tuple(parts))


def is_file(component: str) -> bool:
    """Whether a component to load is named with a file of its own: `transformer=flux1-dev-Q4_K_S.gguf`."""
    return component.endswith(FILE) and "=" in component


def with_file(profile: PipelineProfile, component: str) -> PipelineProfile:
    """The profile with a component whose weights are in a GGUF file.  Raises UnknownModel or BadRequest."""
    name, _, file = component.partition("=")
    able = [part.name for part in profile.models if part.library == "diffusers"]
    if name not in able:
        raise BadRequest(f"{profile.name} has no {name!r} to read from {file}, only {', '.join(able)}.")
    tensors = ggml.read(Path(file))
    parts = (replace(part, file=file, tensors=tensors) if part.name == name else part for part in profile.components)
    return replace(profile, components=tuple(parts))


def shipped() -> Path:
    """The folder of shipped profiles: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "shipped"
    return inside if inside.is_dir() else package.parent / "profiles"


def read_toml(path: Path) -> dict[str, Any]:
    """A shipped profile, as it stands in its file."""
    return tomllib.loads(path.read_text("utf-8"))


def names() -> tuple[str, ...]:
    """Short names of the shipped pipelines."""
    return tuple(sorted(path.stem for path in (shipped() / "pipelines").glob("*.toml")))


def find(model: str) -> PipelineProfile:
    """The shipped profile of that short name, hub id or alias, in any case.  Raises UnknownModel."""
    wanted = model.casefold()
    if wanted in names():
        return _shipped(wanted)
    known = {spoken.casefold(): p for p in map(_shipped, names()) for spoken in (p.name, p.hub_id, *p.aliases)}
    if wanted in known:
        return known[wanted]
    close = dict.fromkeys(known[key].name for key in difflib.get_close_matches(wanted, known, n=3, cutoff=0.5))
    hint = f"closest are {', '.join(close)}; " if close else ""
    raise UnknownModel(
        f"No pipeline {model!r}: {hint}`vram-planner profiles` lists all, and a folder in hub layout works too."
    )


def resolve(model: str | Path) -> PipelineProfile:
    """The profile of a folder in hub layout, or of a shipped pipeline.  Raises UnknownModel or BadRequest."""
    path = Path(model)
    named = str(model).casefold() in names() and not (path / hub.INDEX).is_file()
    return read_folder(path) if path.is_dir() and not named else find(str(model))


@cache
def _shipped(name: str) -> PipelineProfile:
    facts = _inherited(read_toml(shipped() / "pipelines" / f"{name}.toml"))
    request = dict(facts["request"])
    pictures: dict[str, Any] = {field: sizes(field, request.pop(field, None)) for field in PICTURES}
    dtype = facts["dtype"]
    return PipelineProfile(
        name=name,
        pipeline=facts["pipeline"],
        dtype=dtype,
        components=tuple(_component(part, entry, dtype) for part, entry in facts["components"].items()),
        settings=facts.get("settings", {}),
        defaults=DefaultRequest(extra=tuple(request.pop("extra", {}).items()), **pictures, **request),
        hub_id=facts["hub_id"],
        base=facts.get("base", ""),
        family=facts["family"],
        aliases=tuple(facts["aliases"]),
        max_prompt_tokens=facts["max_prompt_tokens"],
        license=facts["license"],
        sources=tuple(facts["sources"]),
        notes=facts.get("notes", ""),
    )


def _inherited(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of a file, with those of its base below them."""
    if "base" not in facts:
        return facts
    below = read_toml(shipped() / "pipelines" / f"{facts['base']}.toml")
    return {**below, **facts, "components": below["components"] | facts["components"]}


def _component(name: str, facts: dict[str, Any], dtype: str) -> ComponentProfile:
    library, _, kind = facts["class"].rpartition(".")
    part = ComponentProfile(
        name=name,
        library=library,
        kind=kind,
        config=_nulled(facts.get("config", {})),
        stored=facts.get("stored", ""),
        parameters=facts.get("parameters", 0),
        max_length=facts.get("max_length", 0),
        optional=facts.get("optional", False),
    )
    return replace(part, dtype=facts.get("dtype", dtype)) if part.role == "model" else part


def _nulled(value: Any) -> Any:
    """A configuration as its class takes it: TOML has no None, so an empty table inside a list stands for it."""
    if isinstance(value, dict):
        return {key: _nulled(item) for key, item in value.items()}
    return [_nulled(item) if item != {} else None for item in value] if isinstance(value, list) else value


def read_folder(path: Path) -> PipelineProfile:
    """The profile of a pipeline in hub layout.  Weights stay on disk and code in the folder is never run.

    Raises UnknownModel for missing or broken files, BadRequest for a pipeline that needs code of its own.
    """
    index = hub.read_index(path)
    parts = tuple(_from_folder(path, *entry, "safety_checker" in index) for entry in hub.component_classes(path, index))
    dtypes = {part.name: part.dtype for part in parts if part.dtype}
    return PipelineProfile(
        name=path.resolve().name,
        pipeline=str(index["_class_name"]),
        dtype=next((dtypes[name] for name in (*DENOISERS, *dtypes) if name in dtypes), "float32"),
        components=parts,
        settings=hub.settings(index),
        max_prompt_tokens=max((part.max_length for part in parts), default=0),
    )


def _from_folder(path: Path, name: str, library: str, kind: str, checked: bool) -> ComponentProfile:
    part = ComponentProfile(
        name=name,
        library=library,
        kind=kind,
        optional=checked and name in ("safety_checker", "feature_extractor"),
    )
    if part.role == "tokenizer":
        return replace(part, max_length=hub.tokenizer_length(path / name) or TOKENIZER_LENGTHS.get(kind, 0))
    if part.role not in CONFIG_FILES:
        return part
    config = hub.read_config(path, name, library, CONFIG_FILES[part.role])
    facts = {key: value for key, value in config.items() if not key.startswith("_") and key not in NOT_FACTS}
    given = facts.pop("quantization_config", None)
    packed = hub.packed_layers(path / name, given) if isinstance(given, dict) else ()
    stored = hub.stored_dtype(path / name, config) if part.role == "model" else ""
    part = replace(part, config=facts, dtype=stored, stored=stored, packed=packed)
    if not isinstance(given, dict):
        return part
    if given.get("quant_method") == "torchao":
        return replace(part, how=hub.torchao_config(path / name, given))
    compute = str(given.get("bnb_4bit_compute_dtype") or "float32")  # what its class does where nothing is said
    return replace(part, nested=bool(given.get("bnb_4bit_use_double_quant")), compute=compute)


def write_folder(model: str | PipelineProfile, path: Path) -> None:
    """Write a profile in hub layout: `model_index.json` and configurations, no weights and no vocabularies."""
    pipeline = find(model) if isinstance(model, str) else model
    index: dict[str, Json] = {"_class_name": pipeline.pipeline, **pipeline.settings}
    for part in pipeline.components:
        index[part.name] = [None, None] if part.optional else [part.library, part.kind]
    hub.write_json(path / hub.INDEX, index)
    for part in pipeline.loaded:
        if part.role in CONFIG_FILES:
            hub.write_json(path / part.name / CONFIG_FILES[part.role], _heading(part) | dict(part.config))
        elif part.max_length:
            hub.write_json(path / part.name / hub.TOKENIZER, {"model_max_length": part.max_length})


def _heading(part: ComponentProfile) -> dict[str, Json]:
    """Keys by which each library knows its own files; diffusers ignores further ones that begin with an underscore."""
    if part.library == "diffusers":
        dtype: dict[str, Json] = {"_torch_dtype": part.dtype} if part.dtype else {}
        return {"_class_name": part.kind} | dtype
    return {"architectures": [part.kind], "torch_dtype": part.dtype}


def _packed(part: ComponentProfile) -> tuple[object, ...]:
    if part.tensors:
        return tuple((stored.name, stored.kind, stored.shape) for stored in part.tensors)
    return (part.packed, part.nested, part.compute, *((part.how,) if part.how else ())) if part.packed else ()


def content_key(profile: PipelineProfile) -> str:
    """A hash of all that shapes a program: pipeline, settings, and each loaded component; the same on every machine."""
    parts = {
        part.name: [part.library, part.kind, part.dtype, part.max_length, part.config, *_packed(part)]
        for part in profile.loaded
    }
    facts = json.dumps([profile.pipeline, profile.settings, parts], sort_keys=True, default=dict)
    return hashlib.sha256(facts.encode()).hexdigest()
