from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate.hooks import SequentialHook, add_hook_to_module
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from planner.program import Setting, Variant
from planner.request import Request
from planner.snapshot import snapshot
from planner.techniques.base import Option
from planner.techniques.micro_batch import MicroBatch, Rows, halvings, joined, micro_batched

from . import programs, tiny

PIECES = MicroBatch()
APART = frozenset({"denoiser", "rows_apart"})


def denoiser(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def several(pipe: Any) -> torch.Tensor:
    """Three images in one call, or one video with guidance in two."""
    count = {} if "num_frames" in tiny.arguments(pipe) else {"num_images_per_prompt": 3}
    seeds = [torch.Generator().manual_seed(seed) for seed in range(3 if count else 1)]
    return tiny.run(pipe, **count, generator=seeds)


def test_the_same_images_and_nothing_stays(pipe: Any) -> None:
    before, output = snapshot(pipe), several(pipe)
    undo = PIECES.apply(pipe, Option(technique="micro_batch", value=1))
    seen: list[int] = []
    last = denoiser(pipe).conv_out if hasattr(pipe, "unet") else denoiser(pipe).proj_out
    hook = last.register_forward_hook(lambda *given: seen.append(len(given[-1])))
    assert torch.allclose(several(pipe), output, atol=1e-5)
    hook.remove()
    assert set(seen) == {1}
    undo()
    assert before.difference(snapshot(pipe)) == ()
    assert torch.equal(several(pipe), output)


def test_rows_are_taken_from_all_that_has_one_per_row() -> None:
    rows = Rows(1, 3, 4, listed=False)
    table, conditions = torch.arange(7), torch.arange(8).view(4, 2)
    assert rows.of(table) is table
    assert rows.of(torch.tensor(3.0)).dim() == 0
    assert rows.of((table, [conditions, None, "a"]))[1][0].tolist() == [[2, 3], [4, 5]]
    assert rows.named({"img_shapes": [1, 2, 3, 4], "layers": [1, 2, 3, 4]}) == {
        "img_shapes": [2, 3],
        "layers": [1, 2, 3, 4],
    }


def test_a_prompt_repeated_for_each_frame_goes_with_its_video() -> None:
    rows = Rows(1, 2, 2, listed=False, frames=3)
    words = torch.arange(6).view(6, 1)
    assert rows.named({"encoder_hidden_states": words})["encoder_hidden_states"].flatten().tolist() == [3, 4, 5]
    assert rows.named({"ids": words})["ids"] is words


def test_every_piece_is_a_call_with_all_its_hooks() -> None:
    module, seen = torch.nn.Linear(2, 2), []
    undo = micro_batched(module, 1)
    module.register_forward_pre_hook(lambda *_: seen.append("ours"))
    add_hook_to_module(module, SequentialHook())
    module._hf_hook.pre_forward = lambda module, *args, **kwargs: (seen.append("accelerate"), (args, kwargs))[1]
    module(torch.ones(3, 2))
    undo()
    assert seen == ["ours", "accelerate"] * 3


def test_a_batch_may_be_a_list() -> None:
    rows = Rows(0, 1, 2, listed=True)
    images = [torch.zeros(3, 4), torch.ones(3, 4)]
    assert rows.of(images)[0] is images[0]
    assert len(rows.of(images)) == 1


def test_outputs_are_joined_field_by_field() -> None:
    pieces = [Transformer2DModelOutput(sample=torch.full((1, 2), float(value))) for value in range(3)]
    assert joined(pieces).sample.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert joined([([torch.zeros(2)], None), ([torch.ones(2)], None)])[0][1].tolist() == [1, 1]


def test_calls_of_few_rows_are_left_alone() -> None:
    module = torch.nn.Linear(2, 2)
    undo = micro_batched(module, 4)
    x = torch.ones(3, 2)
    assert torch.equal(module(x), torch.nn.Linear.forward(module, x))
    undo()
    assert "_call_impl" not in vars(module)


@pytest.mark.parametrize(("rows", "values"), [(0, []), (1, []), (2, [1]), (6, [3, 2, 1]), (8, [4, 2, 1])])
def test_offered_by_the_rows_of_a_call(rows: int, values: list[int]) -> None:
    whole = programs.program(programs.unet(traits=APART, rows=rows), programs.vae(rows=8))
    options = PIECES.options(whole, programs.device(), Request(height=512, width=512))
    assert [option.value for option in options] == values == list(halvings(rows))
    assert all(option.lean for option in options)


def test_not_offered_where_attention_looks_across_rows() -> None:
    whole = programs.program(programs.unet(traits=frozenset({"denoiser"}), rows=2))
    assert PIECES.options(whole, programs.device(), Request(height=512, width=512)) == ()


def test_variant() -> None:
    variant = PIECES.variant(Variant(tile=512), Option(technique="micro_batch", value=2))
    assert variant == Variant(tile=512, settings=(Setting("micro_batch", 2, "denoiser"),))
    assert variant.setting("micro_batch") == Setting("micro_batch", 2, "denoiser")
