"""A stand-in for tokenizers and text processors: zeros, in the shape the real one returns for padded prompts.

Where the length follows the prompt it is an estimate: words and signs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from transformers import BatchEncoding

PROMPT = "An astronaut in a red spacesuit rides a white horse across the surface of the moon, photograph, high detail"
PATCH = 14
"""Pixels a side of a patch of Qwen2.5-VL's vision tower; two by two patches make a token (arXiv:2502.13923, §2.1)."""
PREAMBLE = 63
"""Tokens before the first image in the instruction templates of the Qwen-Image pipelines."""


class Tokenizer:
    """Ids and mask of a text, and of images for Qwen's processors."""

    padding_side = "right"
    pad_token_id = bos_token_id = eos_token_id = unk_token_id = 0
    pad_token = eos_token = "<pad>"

    def __init__(self, kind: str, length: int) -> None:
        self.kind = kind
        self.model_max_length = length
        self.added_tokens_encoder: dict[str, int] = {}
        self.tokenizer = self
        self.image_processor = None
        self.marks: Mapping[str, int] = {}
        """Ids that mark an image in the text, of the text encoder's configuration."""

    @property
    def __class__(self) -> type:
        return getattr(transformers, self.kind, Tokenizer)  # some pipelines ask which tokenizer they have

    def tokenize(self, text: str, **_: object) -> list[str]:
        return re.findall(r"<[^<>\s]*>|\w+|[^\w\s]|\n", text)

    def encode(self, text: str, **_: object) -> list[int]:
        return [0] * (len(self.tokenize(text)) + 2)

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        max_length: int | None = None,
        padding: bool | str = False,
        truncation: bool = False,
        return_tensors: str | None = None,
        **_: object,
    ) -> BatchEncoding:
        text = PROMPT if text is None else text
        rows = [text] if isinstance(text, str) else list(text)
        limit = max_length or self.model_max_length
        counts = [min(len(self.encode(row)), limit) if truncation else len(self.encode(row)) for row in rows]
        mask = self._mask(counts, limit if padding == "max_length" else max(counts))
        out = {"input_ids": torch.zeros_like(mask), "attention_mask": mask}
        if images is not None and "Qwen" in self.kind:
            out = self._seeing(mask, images if isinstance(images, list) else [images])
        if "ChatGLM" in self.kind:
            out["position_ids"] = torch.arange(mask.shape[1]).repeat(len(rows), 1)
        if return_tensors is None:
            lists = {key: value.tolist() for key, value in out.items()}
            return BatchEncoding({key: value[0] for key, value in lists.items()} if isinstance(text, str) else lists)
        return BatchEncoding(out)

    def _mask(self, counts: list[int], width: int) -> torch.Tensor:
        mask = torch.zeros((len(counts), width), dtype=torch.long)
        for row, count in zip(mask, counts, strict=True):
            row[width - count if self.padding_side == "left" else 0 :][:count] = 1
        return mask

    def _seeing(self, mask: torch.Tensor, images: list[Any]) -> dict[str, torch.Tensor]:
        grids = [(1, *(round(side / (2 * PATCH)) * 2 for side in (image.height, image.width))) for image in images]
        patches = sum(rows * columns for _, rows, columns in grids)
        tokens = patches // 4
        ids = torch.zeros((len(mask), mask.shape[1] - len(images) + tokens), dtype=torch.long)  # their marks give way
        ids[:, PREAMBLE : PREAMBLE + 2 + tokens] = self.marks["vision_end_token_id"]
        ids[:, PREAMBLE] = self.marks["vision_start_token_id"]
        ids[:, PREAMBLE + 1 : PREAMBLE + 1 + tokens] = self.marks["image_token_id"]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.zeros((patches, 2 * 3 * PATCH**2)),
            "image_grid_thw": torch.tensor(grids),
        }

    def apply_chat_template(self, messages: Any, tokenize: bool = True, **options: Any) -> Any:
        talks = messages if messages and isinstance(messages[0], list) else [messages]
        texts = [re.sub(r"[{}\[\]']", " ", str(talk)) for talk in talks]
        return self(texts, **options) if tokenize else texts[0]

    def decode(self, *_: object, **__: object) -> str:
        return ""

    def batch_decode(self, *_: object, **__: object) -> list[str]:
        return [""]
