"""What a request may still take and has read so far; the stores below take their limits from it.

Whoever answers a request begins a budget in its thread. Without one, as in a background thread,
each call has the store's own time limit.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from time import monotonic
from typing import Final


class RequestBudget:
    """The time and the reads of one request.

    Args:
        seconds: What all its calls together may take.
    """

    __slots__ = ("_ends", "reads")

    def __init__(self, seconds: float) -> None:
        self._ends = monotonic() + seconds
        # Statements that were sent to a store.
        self.reads = 0

    @property
    def left(self) -> float:
        """Seconds that are left; negative when the time is over."""
        return self._ends - monotonic()


_current: Final[ContextVar[RequestBudget | None]] = ContextVar("request_budget", default=None)


def begin(seconds: float) -> tuple[RequestBudget, Token[RequestBudget | None]]:
    """Begin a budget for what this thread does until `end` is called with the token."""
    budget = RequestBudget(seconds)
    return budget, _current.set(budget)


def end(token: Token[RequestBudget | None]) -> None:
    """End the budget that `begin` has begun."""
    _current.reset(token)


def time_limit(seconds: float) -> float:
    """Return how long a call that may take ``seconds`` may take now, at least 0."""
    budget = _current.get()
    return seconds if budget is None else max(0.0, min(seconds, budget.left))


def is_over() -> bool:
    """Tell whether the request has no time left."""
    budget = _current.get()
    return budget is not None and budget.left <= 0


def count_reads(statements: int = 1) -> None:
    """Note that statements are sent to a store."""
    budget = _current.get()
    if budget is not None:
        budget.reads += statements
