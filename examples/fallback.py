"""What to do when nothing fits: the error knows what would.

python examples/fallback.py MODEL BUDGET EDGE
"""

import sys

import planner

model, budget, edge = sys.argv[1], sys.argv[2], int(sys.argv[3])
call = {"height": edge, "width": edge, "steps": 2, "device": planner.card("rtx-3070")}
try:
    plan = planner.plan(model, budget=budget, **call)
except planner.Infeasible as error:
    size = error.largest_size or "no size"
    print(f"{budget} is {error.over / 1e6:,.0f} MB short in {error.phase}; {size} would fit.")
    plan = planner.plan(model, budget=error.smallest_budget, **call)
chosen = [option.technique for option in plan.options if not option.neutral]
print(f"{plan.budget / 1e6:,.0f} MB will do, with {chosen}.")
