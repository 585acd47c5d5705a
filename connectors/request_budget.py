"""What a request may still take and has read so far; the stores below take their limits from it.

Whoever answers a request begins a budget for its thread. Without one, as in a background thread,
each call has the store's own time limit.
"""

from __future__ import annotations

import threading
from time import monotonic
from typing import Final


class _Budget(threading.local):
    # When the time is over; None while there is no budget.
    ends: float | None = None
    # Statements that were sent to a store.
    reads = 0


_budget: Final = _Budget()


def begin(seconds: float) -> None:
    """Begin a budget for what this thread does until `end`: all of it may take ``seconds``."""
    _budget.ends = monotonic() + seconds
    _budget.reads = 0


def end() -> int:
    """End the budget; returns how many statements were sent to a store."""
    _budget.ends = None
    return _budget.reads


def time_limit(seconds: float) -> float:
    """Return how long a call that may take ``seconds`` may take now, at least 0."""
    ends = _budget.ends
    return seconds if ends is None else max(0.0, min(seconds, ends - monotonic()))


def is_over() -> bool:
    """Tell whether the request has no time left."""
    ends = _budget.ends
    return ends is not None and ends <= monotonic()


def count_reads(statements: int = 1) -> None:
    """Note that statements are sent to a store."""
    _budget.reads += statements
