"""Memory of the hot path: when Python's cycle collector runs."""

from __future__ import annotations

import gc
import time
from typing import Final

# Between ticks there is little to walk; under a load without a pause, a tick's objects are walked
# too (3,000 users: some 4 ms).
_IDLE_EVERY_S: Final = 1.0
_BUSY_EVERY_S: Final = 10.0
# A full collection walks the whole catalogue and every cache: rare, as nothing of ours makes
# cycles; the drivers do.
_FULL_EVERY_S: Final = 600.0


class TickCollector:
    """Runs the cycle collector by time instead of by the number of objects.

    A tick holds some hundred thousand short-lived objects without a cycle; the automatic collector
    walks all of them again and again (measured: 30 % of a TaskManager's time). Called when the
    tick's objects are gone by their reference counts, it finds next to nothing to walk; where
    there is no such moment, it is called by the clock all the same.
    """

    def __init__(self) -> None:
        """Take over from the automatic collector, for this process."""
        gc.disable()
        self._last = self._last_full = time.monotonic()

    def settle(self) -> None:
        """Collect, and walk no more what is there now: the catalogue, for the most part."""
        gc.unfreeze()  # a predecessor's: a restarted task finds the process as it left it
        gc.collect()
        gc.freeze()
        self._last = self._last_full = time.monotonic()

    def collect(self, *, idle: bool) -> None:
        """Collect the young generations if that is due; at long intervals all of them.

        Args:
            idle: Whether no tick is under way.
        """
        now = time.monotonic()
        if now - self._last < (_IDLE_EVERY_S if idle else _BUSY_EVERY_S):
            return
        self._last = now
        is_full = now - self._last_full >= _FULL_EVERY_S
        if is_full:
            self._last_full = now
        gc.collect(2 if is_full else 1)
