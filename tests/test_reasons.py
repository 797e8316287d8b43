"""What was not chosen and why: the setting that came nearest speaks for all that failed for the same thing."""

from __future__ import annotations

from planner.reasons import nearest
from planner.solve import Alternative, Offer
from planner.techniques.base import Option

SHARES = {f"streaming={n}": (Option(technique="streaming", value=n, component="unet"),) for n in (4, 6, 8)}
TILES = {f"vae_tiling={n}": (Option(technique="vae_tiling", value=n),) for n in (512, 1024)}


def against(name: str, reason: str, amount: float, group: int = 1) -> Alternative:
    offer = Offer(name=name, seconds=1.0, memory=(1,))
    return Alternative(group=group, offer=offer, reason=reason, amount=amount)  # type: ignore[arg-type]


def test_one_of_each_technique_and_reason() -> None:
    others = [
        against("streaming=4", "over", 30),
        against("streaming=6", "over", 10),
        against("vae_tiling=512", "slower", 2.0, group=2),
        against("streaming=8", "slower", 1.0),
        against("vae_tiling=1024", "slower", 0.5, group=2),
        against("nothing", "over", 90),
    ]
    kept = nearest(others, {"nothing": (), **SHARES, **TILES})
    assert [(o.offer.name, o.reason) for o in kept] == [
        ("streaming=6", "over"), ("vae_tiling=1024", "slower"), ("streaming=8", "slower"), ("nothing", "over")
    ]  # fmt: skip
