"""Real pipelines at full size, built from configurations alone."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from inside.parts import build, find
from inside.tokens import Tokenizer

LEFT_OUT = "none"
PROCESSORS_OF_TEXT = ("PixtralProcessor", "Qwen2VLProcessor")


def load(folder: str | Path, dtype: str = "float16", *, parts: Mapping[str, str] | None = None) -> Any:
    """The pipeline of a folder in hub layout, on the host, with unwritten weights of `dtype`.

    `parts` gives dtypes of single components, or `"none"` to leave one out; a safety checker is loaded only if named.
    """
    folder, parts = Path(folder), {"safety_checker": LEFT_OUT, **(parts or {})}
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    kind = find("", index["_class_name"])
    made: dict[str, Any] = {}
    for name in index.keys() & inspect.signature(kind.__init__).parameters.keys():
        if not isinstance(index[name], list):
            if index[name] is not None:
                made[name] = index[name]
        elif index[name][1] is None or parts.get(name) == LEFT_OUT:
            made[name] = None
        elif (part := _component(*index[name], folder / name, parts.get(name, dtype))) is not None:
            made[name] = part
    _acquaint(made)
    wanted = inspect.signature(kind.__init__).parameters.values()
    lacking = (p.name for p in wanted if p.default is p.empty and p.name not in ("self", "args", "kwargs", *made))
    pipe = kind(**dict.fromkeys(lacking), **made)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def shipped(
    model: str, dtype: str | None = None, *, parts: Mapping[str, str] | None = None, pictures: Sequence[str] = ()
) -> Any:
    """The pipeline of a shipped profile that works from `pictures`, fields of a request.

    Without `dtype`, each component is of the one people load it in.
    """
    from planner import profiles, tasks
    from planner.request import Request

    profile, _ = tasks.prepared(tasks.resolve(model), Request(**dict.fromkeys(pictures, True)))
    parts = dict(parts or {})
    profile = profile.including(*(part.name for part in profile.components if part.optional and part.name in parts))
    usual = {} if dtype else {part.name: part.dtype for part in profile.loaded if part.dtype}
    with tempfile.TemporaryDirectory() as folder:
        profiles.write_folder(profile, Path(folder))
        pipe = load(folder, dtype or profile.dtype, parts=usual | parts)
    for part in profile.loaded:
        if part.readied:
            method, given = part.readied
            getattr(getattr(pipe, part.name), method)(*given)
    return pipe


def _component(library: str, kind: str, path: Path, dtype: str) -> Any:
    if "okenizer" in kind or kind in PROCESSORS_OF_TEXT:
        file = path / "tokenizer_config.json"
        facts = json.loads(file.read_text("utf-8")) if file.exists() else {}
        return Tokenizer(kind, facts.get("model_max_length") or (77 if "CLIP" in kind else 512))
    if kind.endswith(("ImageProcessor", "FeatureExtractor")):
        return getattr(transformers, kind)()
    if kind == "ClassifierFreeGuidance":
        return find(library, kind)()
    if "Scheduler" in kind:
        return find(library, kind).from_config(json.loads((path / "scheduler_config.json").read_text("utf-8")))
    if not (path / "config.json").exists():
        return None
    module = build(find(library, kind), json.loads((path / "config.json").read_text("utf-8")), getattr(torch, dtype))
    module.name_or_path = str(path)
    return module


def _acquaint(made: Mapping[str, Any]) -> None:
    """Tell processors what their own configuration files would."""
    size = getattr(getattr(made.get("image_encoder"), "config", None), "image_size", None)
    for name in ("feature_extractor", "image_processor"):
        if size is not None and made.get(name) is not None:
            made[name].size = made[name].crop_size = {"height": size, "width": size}
    if isinstance(made.get("processor"), Tokenizer):
        made["processor"].marks = made["text_encoder"].config.to_dict()
