"""Everything the planner raises on purpose.

    PlannerError
    ├── BadRequest          what was asked makes no sense: exit code 2
    │   ├── BadBudget       a budget nobody can read, or larger than the card
    │   ├── UnknownModel    neither a shipped profile nor a readable folder
    │   └── UnknownDevice   no card profile of that name, no driver
    ├── TraceFailed         the pipeline's own code refused the request while it was recorded: exit code 2
    │   └── Unserved        the card's libraries have no kernel for what it computes
    ├── Infeasible          no combination fits; carries what would: exit code 3 (planner.plan)
    ├── OutOfMemory         the allocator's replay cannot meet a request; ends a rehearsal (planner.allocator)
    └── ApplyFailed         a live pipeline could not be configured; everything done was undone

Two carry values of later rooms as evidence and live beside those values, in the modules named.

Each message says what was asked, the number that is in the way, and what to do.
"""

from __future__ import annotations


class PlannerError(Exception):
    """Base of all errors the planner raises on purpose."""


class BadRequest(PlannerError, ValueError):
    """The request cannot be understood or cannot be met by any pipeline."""


class BadBudget(BadRequest):
    """The budget is not an amount of memory, or exceeds the card."""


class UnknownModel(BadRequest):
    """No shipped profile has that name and no pipeline folder lies there."""


class UnknownDevice(BadRequest):
    """No card of that name is known, or no driver answers."""


class TraceFailed(PlannerError):
    """The pipeline's own code raised while it was recorded; the message is its."""


class Unserved(TraceFailed):
    """The card's libraries would raise where the pipeline's code asks them for what they have not."""


class ApplyFailed(PlannerError):
    """Configuring a live pipeline failed; it is as it was before."""
