"""A stand-in for tokenizers and text processors: token ids of the right shape where no tokenizer files are at hand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

TOKEN = re.compile(r"<[^<>\s]*>|\w+|[^\w\s]|\n")
MARK = 2
"""Tokens a tokenizer adds around a text."""


PICTURE = "<|image_pad|>"
"""What stands for a picture in the templates of Qwen's pipelines."""
MARKED = {"image_pad": "image_token_id", "vision_start": "vision_start_token_id", "vision_end": "vision_end_token_id"}
"""Its name and those of the marks around it, and where the text encoder's configuration has their ids."""


class TokenizerStandIn:
    """Returns zeros in the shape a real tokenizer would return; a token is a word, a sign or a `<mark>`."""

    padding_side = "right"
    pad_token_id = bos_token_id = eos_token_id = unk_token_id = 0
    pad_token = eos_token = "<pad>"  # noqa: S105  (a word of the vocabulary)

    def __init__(self, max_length: int, kind: type | None = None, *, positions: bool = False) -> None:
        self.model_max_length = max_length or 512
        self.kind = kind
        """The class it stands for."""
        self._positions = positions
        self.added_tokens_encoder: dict[str, int] = {}
        self.tokenizer = self

    @property  # type: ignore[misc]  # object's own can be set
    def __class__(self) -> type:
        """The class it stands for: some pipelines ask which tokenizer they have."""
        return self.kind or TokenizerStandIn

    def tokenize(self, text: str, **_: object) -> list[str]:
        """The tokens of `text`."""
        return TOKEN.findall(text)

    def encode(self, text: str, **_: object) -> list[int]:
        """One zero a token."""
        return [0] * (len(TOKEN.findall(text)) + MARK)

    def __call__(
        self,
        text: str | Sequence[str] | None = "",
        max_length: int | None = None,
        padding: bool | str = False,
        truncation: bool = False,
        return_tensors: str | None = None,
        **_: object,
    ) -> Any:
        """Ids and mask, (rows, tokens) each."""
        import torch
        from transformers import BatchEncoding

        rows = [text or ""] if isinstance(text, str | None) else list(text)
        limit = max_length or self.model_max_length
        counts = [min(len(self.encode(row)), limit) if truncation else len(self.encode(row)) for row in rows]
        width = limit if padding == "max_length" else max(counts)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for row, count in zip(mask, counts, strict=True):
            row[width - count if self.padding_side == "left" else 0 :][:count] = 1
        if return_tensors:
            places = {"position_ids": torch.arange(width).repeat(len(rows), 1)} if self._positions else {}
            return BatchEncoding({"input_ids": torch.zeros_like(mask), "attention_mask": mask, **places})
        masks = mask.tolist() if padding else [[1] * count for count in counts]
        ids = [[0] * len(row) for row in masks]
        one = isinstance(text, str)
        return BatchEncoding({"input_ids": ids[0] if one else ids, "attention_mask": masks[0] if one else masks})

    def apply_chat_template(self, messages: Any, tokenize: bool = True, **options: Any) -> Any:
        """The messages' words, as ids or as text."""
        talks = messages if messages and isinstance(messages[0], list) else [messages]
        texts = [" ".join(_words(talk)) for talk in talks]
        return self(texts, **options) if tokenize else texts[0]

    def decode(self, *_: object, **__: object) -> str:
        """No text stands behind the zeros."""
        return ""

    def batch_decode(self, rows: Sequence[object], **_: object) -> list[str]:
        """One empty text a row."""
        return ["" for _ in rows]


class SeeingStandIn(TokenizerStandIn):
    """The same for processors of Qwen2-VL's kind: a picture's mark in a text becomes a token for every few patches."""

    def __init__(self, max_length: int, kind: type | None, config: Mapping[str, Any]) -> None:
        super().__init__(max_length, kind)
        vision = config.get("vision_config") or {}
        self._patch, self._merged = vision.get("patch_size", 14), vision.get("spatial_merge_size", 2)
        self._frames, self._channels = vision.get("temporal_patch_size", 2), vision.get("in_chans", 3)
        self._ids = {f"<|{name}|>": config.get(key, 0) for name, key in MARKED.items()}

    def __call__(self, text: Any = "", *given: Any, images: Any = None, **options: Any) -> Any:
        """Ids, mask, and of pictures their patches, (patches, numbers), and grids, (pictures, 3)."""
        if images is None:
            return super().__call__(text, *given, **options)
        import torch
        from transformers import BatchEncoding

        grids = [self._grid(image) for image in (images if isinstance(images, list) else [images])]
        counts = [rows * columns // self._merged**2 for _, rows, columns in grids]
        rows = [self._row(row, counts) for row in ([text] if isinstance(text, str) else text)]
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        patches, numbers = sum(h * w for _, h, w in grids), self._channels * self._frames * self._patch**2
        return BatchEncoding(
            {
                "input_ids": ids,
                "attention_mask": mask,
                "pixel_values": torch.zeros(patches, numbers),
                "image_grid_thw": torch.tensor(grids),
            }
        )

    def _grid(self, image: Any) -> tuple[int, int, int]:
        """Frames, rows and columns of patches: edges go to the nearest whole number of merged ones."""
        height, width = image.shape[-2:] if hasattr(image, "shape") else (image.height, image.width)
        rows, columns = (max(round(edge / (self._patch * self._merged)), 1) * self._merged for edge in (height, width))
        return 1, rows, columns

    def _row(self, text: str, counts: Sequence[int]) -> list[int]:
        """Ids of one text, pictures in their places in order."""
        left, ids = iter(counts), [0] * MARK
        for token in TOKEN.findall(text):
            ids += [self._ids.get(token, 0)] * (next(left, 1) if token == PICTURE else 1)
        return ids


def _words(tree: Any) -> list[str]:
    if isinstance(tree, str):
        return tree.split()
    items = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return [word for item in items for word in _words(item)]
