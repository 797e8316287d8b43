"""Inlined: what diffusers and torchao lack and is short enough to print, so that the code needs nothing of ours.

Each does what the function beside it in the technique's own room does; tests hold them together.
"""

from __future__ import annotations

HOLD = """\
def hold(functions):  # the small weights stay where they are meanwhile
    cast, kept = functions.pre_forward, []

    def before(layer, *args, **kwargs):
        kept[:] = [(weight, weight.data) for weight in layer.parameters()]
        return cast(layer, *args, **kwargs)

    def after(layer, output):
        for weight, data in kept:
            weight.data = data
        kept.clear()
        return output

    functions.pre_forward, functions.post_forward = before, after
"""
"""`holding.hold` of one layer; the layers diffusers casts have no buffers, and none within them."""
HELD = """\
for layer in pipe.{name}.modules():
    hooks = getattr(layer, "_diffusers_hook", None)
    if hooks and (hook := hooks.get_hook("layerwise_casting")):
        hold(hook.fn_ref)
"""
WITHIN = """\
def within_blocks(model):  # linear layers, but for those kept in float32
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    inside = {layer for blocks in lists for layer in blocks.modules()}
    return lambda layer, path: (
        type(layer) is torch.nn.Linear
        and layer in inside
        and not kept & set(path.split("."))
    )
"""
"""`quantization.layers_of` as torchao asks for it: `quantize_` alone would take embedders and the last layer too."""
