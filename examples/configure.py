"""Plan for a live pipeline, generate, hold the run against its promise, and take it back.

python examples/configure.py FOLDER [BUDGET]
"""

import sys

import torch
from diffusers import DiffusionPipeline

import planner

folder, budget = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "8GB"
card = None if torch.cuda.is_available() else planner.card("rtx-3070")
pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float16 if card is None else torch.float32)
pipe.set_progress_bar_config(disable=True)

plan = planner.auto_configure(pipe, budget=budget, height=64, width=64, steps=2, device=card)
print(plan.explain())
print(plan.verify(lambda: pipe("a cat", height=64, width=64, num_inference_steps=2), pipe, learn=card is None))
plan.revert(pipe)
