"""Which card makes an image cheapest?

python examples/fleet.py MODEL CARD=DOLLARS_PER_HOUR …
"""

import sys

import planner

model, *offers = sys.argv[1:]
prices = {planner.card(name).name: float(price) for name, price in (offer.split("=") for offer in offers)}
cards = [planner.card(offer.split("=")[0]) for offer in offers]

rows = planner.compare(model, cards, prices=prices, height=512, width=512, steps=20)
able = sorted((row for row in rows if row.plan), key=lambda row: row.price or 0.0)
for row in able:
    print(f"{row.device.name}: {row.plan.promise.seconds:.3g} s, {row.price:.2g} dollars an image")
for row in rows:
    if row.shortage:
        print(f"{row.device.name}: does not fit, {row.shortage.over / 1e9:.3g} GB over in {row.shortage.phase}")
