"""A pipeline folder in hub layout as plain data.  Nothing in it is executed, no weight is read."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from planner.errors import BadRequest, UnknownModel

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

INDEX = "model_index.json"
TOKENIZER = "tokenizer_config.json"
LIBRARIES = ("diffusers", "transformers")
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Names in a safetensors header, and torch's."""
EIGHT_BITS = {"F8_E4M3": "bfloat16", "F8_E5M2": "bfloat16"}
"""Numbers of 8 bits are read into wider ones, all of which bfloat16 holds exactly: neither diffusers' nor transformers'
`from_pretrained` keeps them as they are (0.42.1; 5)."""
SCALES = ("scale_weight", "weight_scale", "weight_scale_inv", "scaled_fp8")
"""Last words in the names of what 8-bit weights are multiplied by in files of other programs."""
BESIDE = ".weight."
"""In the names of what hangs on a packed weight: `to_q.weight.absmax`."""
WRAPPED = "._weight_"
"""The same of what torchao's weights are made of: `to_q._weight_scale`."""
LONGEST_HEADER = 100_000_000
"""Bytes; the safetensors library refuses longer headers (safetensors/src/tensor.rs, MAX_HEADER_SIZE)."""
METADATA = "__metadata__"
PLAIN_WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors")
"""Weights loaded when no variant such as fp16 is asked for."""


def read_json(path: Path) -> dict[str, Json]:
    """The object in a JSON file.  Raises UnknownModel when the file is missing or broken."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UnknownModel(f"{path} cannot be read ({type(error).__name__}): check the download.") from error
    except json.JSONDecodeError as error:
        raise UnknownModel(f"{path} is cut short or no JSON at line {error.lineno}: fetch the file again.") from error
    if not isinstance(content, dict):
        raise UnknownModel(f"{path} holds a {type(content).__name__} where an object is due: fetch the file again.")
    return content


def read_index(folder: Path) -> dict[str, Json]:
    """`model_index.json` of a pipeline folder.  Raises UnknownModel, or BadRequest when it needs remote code."""
    if not (folder / INDEX).is_file():
        raise UnknownModel(f"{folder} holds no {INDEX}: name the folder of a whole pipeline in hub layout.")
    index = read_json(folder / INDEX)
    if isinstance(index.get("_class_name"), list):
        raise _remote_code(folder, f"_class_name is {index['_class_name']}")
    if not isinstance(index.get("_class_name"), str):
        raise UnknownModel(f"{folder / INDEX} names no pipeline class: fetch the file again.")
    _refuse_scripts(folder)
    return index


def component_classes(folder: Path, index: dict[str, Json]) -> Iterator[tuple[str, str, str]]:
    """Name, library and class of each component of an index.  Raises BadRequest for foreign libraries."""
    for name, entry in index.items():
        match entry:
            case [str(library), str(kind)]:
                if not name.isidentifier():
                    raise UnknownModel(f"{folder / INDEX} has a component called {name!r}: fetch the file again.")
                if library not in LIBRARIES and not _is_pipeline_package(library):
                    raise _remote_code(folder, f"{name} comes from {library!r}")
                yield name, library, kind


def settings(index: dict[str, Json]) -> dict[str, Json]:
    """Entries of an index that are no components: arguments of the pipeline class."""
    return {name: entry for name, entry in index.items() if not (name.startswith("_") or _is_pair(entry))}


def read_config(folder: Path, name: str, library: str, file: str) -> dict[str, Json]:
    """A component's configuration.  Raises BadRequest when it needs remote code."""
    config = read_json(folder / name / file)
    _refuse_scripts(folder / name)
    if "auto_map" in config and library == "transformers":  # elsewhere diffusers has the class and ignores the map
        raise _remote_code(folder, f"{name}/{file} has an auto_map")
    return config


def packed_layers(folder: Path, how: Mapping[str, Json]) -> tuple[str, ...]:
    """The layers a component stores in 4 bits, or by torchao, as its files name them.

    `how`: its `quantization_config`.  Raises BadRequest for other ways to quantize, and where there are no files.
    """
    method = str(how.get("quant_method") or "no method named")
    if method == "torchao":
        return _wrapped_layers(folder)
    if not how.get("load_in_4bit"):
        eight = " (8 bits)" if how.get("load_in_8bit") else ""
        raise BadRequest(
            f"{folder} is stored quantized by {method}{eight}, of which only torchao's weights and bitsandbytes' "
            "4 bits can be sized: give the unquantized folder, and plan with fidelity lossy and use=quantization."
        )
    files = sorted(folder.glob("*.safetensors"))
    names = {name for file in files for name in _header(file)}
    layers = sorted(name.removesuffix(".weight.absmax") for name in names if name.endswith(".weight.absmax"))
    if not layers:
        raise BadRequest(
            f"{folder} says that it is stored in 4 bits, and 0 of its {len(files)} safetensors files have such "
            "weights; fetch its weights too, for they alone say which layers."
        )
    return tuple(layers)


def torchao_config(folder: Path, how: Mapping[str, Json]) -> Mapping[str, Json]:
    """How torchao rounded every layer that it did, from a `quantization_config`.

    Raises BadRequest where it did so in several ways.
    """
    kinds = how.get("quant_type")
    config = kinds.get("default") if isinstance(kinds, dict) else None
    if not isinstance(config, dict) or not isinstance(kinds, dict) or len(kinds) > 1:
        raise BadRequest(
            f"{folder} names {len(kinds) if isinstance(kinds, dict) else 0} ways in which torchao quantized it where 1 "
            "is due: save it anew by diffusers 0.42 or later, or give the unquantized folder."
        )
    return config


def _wrapped_layers(folder: Path) -> tuple[str, ...]:
    """The layers whose weights torchao wrapped, from the metadata it leaves in safetensors headers (0.16 and later)."""
    layers: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        for name, said in _metadata(file).items():
            if name.endswith(".weight") and '"_type"' in said and '"_type": "Tensor"' not in said:
                layers.add(name.removesuffix(".weight"))
    if not layers:
        raise BadRequest(
            f"{folder} says that torchao quantized it, and 0 of its safetensors files tell which layers; weights in "
            "pickles are never read: save it by torchao 0.16 or later, or give the unquantized folder."
        )
    return tuple(sorted(layers))


def stored_dtype(folder: Path, config: dict[str, Json]) -> str:
    """Dtype of most bytes of a component's weights; without safetensors files what `config` says, else float32."""
    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if PLAIN_WEIGHTS.fullmatch(file.name)]
    sizes: Counter[str] = Counter()
    for file in plain or files:
        sizes.update(_bytes_by_dtype(file))
    if not sizes:
        named = config.get("dtype") or config.get("torch_dtype") or config.get("_torch_dtype")
        dtype = str(named).removeprefix("torch.")
        return dtype if dtype in DTYPES.values() else "float32"
    [(most, _)] = sizes.most_common(1)
    if most in EIGHT_BITS:
        _refuse_scales(folder, plain or files)
        return EIGHT_BITS[most]
    if most not in DTYPES:
        raise BadRequest(f"{folder} stores weights as {most}: give a folder with float32, float16 or bfloat16 weights.")
    return DTYPES[most]


def bytes_stored_as(dtype: str, folder: Path, variant: str = "") -> int:
    """Bytes of a component's weights that are in this dtype in its safetensors files.  `variant`: as in their names."""
    letters = next((letters for letters, name in DTYPES.items() if name == dtype), "")
    files = folder.glob(f"*.{variant}*.safetensors") if variant else folder.glob("*.safetensors")
    chosen = (file for file in files if variant or PLAIN_WEIGHTS.fullmatch(file.name))
    return sum(_bytes_by_dtype(file)[letters] for file in chosen)


def _refuse_scales(folder: Path, files: list[Path]) -> None:
    """Raises BadRequest for 8-bit weights with scales, which loading would leave out."""
    scales = sum(name.rpartition(".")[2] in SCALES for file in files for name in _header(file))
    if scales:
        raise BadRequest(
            f"{folder} stores 8-bit weights with {scales} scales beside them, which diffusers would leave out: give "
            "the unquantized folder, and plan with fidelity lossy and use=layerwise_casting."
        )


def tokenizer_length(folder: Path) -> int:
    """`model_max_length` of a tokenizer folder; 0 where it names none."""
    file = folder / TOKENIZER
    length = read_json(file).get("model_max_length") if file.is_file() else None
    return length if isinstance(length, int) and length < 2**31 else 0  # transformers writes 10**30 for "no limit"


def write_json(path: Path, content: Mapping[str, Json]) -> None:
    """Write an object as the hub's own files are written; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _bytes_by_dtype(file: Path) -> Counter[str]:
    """Bytes per dtype of what is not packed."""
    sizes: Counter[str] = Counter()
    for name, (dtype, nbytes) in _header(file).items():
        if dtype != "U8" and BESIDE not in name and WRAPPED not in name:
            sizes[dtype] += nbytes
    return sizes


def _header(file: Path) -> dict[str, tuple[str, int]]:
    """Dtype and bytes of each tensor in a safetensors file.  Raises UnknownModel."""
    try:
        spans = ((name, each["dtype"], *each["data_offsets"]) for name, each in _head(file).items() if name != METADATA)
        return {name: (str(dtype), int(end) - int(start)) for name, dtype, start, end in spans}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unreadable(file) from error


def _metadata(file: Path) -> dict[str, str]:
    """What its writer said in a safetensors file.  Raises UnknownModel."""
    try:
        return {str(name): str(said) for name, said in (_head(file).get(METADATA) or {}).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _unreadable(file) from error


def _head(file: Path) -> dict[str, Any]:
    """The header as it is: eight bytes of length, then JSON."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        found: dict[str, Any] = json.loads(stream.read(length) if length <= LONGEST_HEADER else b"")
    return found


def _unreadable(file: Path) -> UnknownModel:
    return UnknownModel(f"{file} has no readable safetensors header: fetch the file again.")


def _is_pair(entry: Json) -> bool:
    """Whether an entry of the index names a component; an absent one is a pair of nulls."""
    return isinstance(entry, list) and len(entry) == 2 and all(part is None or isinstance(part, str) for part in entry)


def _is_pipeline_package(library: str) -> bool:
    """Whether diffusers itself has a pipeline package of that name; found on disk, not imported."""
    spec = importlib.util.find_spec("diffusers")
    roots = spec.submodule_search_locations if spec else None
    pipelines = [Path(root, "pipelines") for root in roots or ()]
    return library.isidentifier() and any(
        Path(parent, library).is_dir() for root in pipelines for parent in (root, root / "deprecated")
    )


def _refuse_scripts(folder: Path) -> None:
    scripts = sorted(folder.glob("*.py"))
    if scripts:
        raise _remote_code(folder, f"it brings {scripts[0].name}")


def _remote_code(folder: Path, why: str) -> BadRequest:
    return BadRequest(f"{folder} needs code of its own ({why}), which is never run: use a pipeline diffusers ships.")
