"""Products that users touch and the catalogue does not know: the most frequent ones of late.

Where the shop's events and its catalogue name products differently, nobody gets a list, and
nothing else tells.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nlargest
from typing import Final

SHOWN: Final = 10
# Ids that are counted at a time; when others come, the rarer half leaves.
CAPACITY: Final = 1000
EVERY_S: Final = 60.0


class UnresolvedItems:
    """Counts ids, halved at each report, in bounded memory; times are of any steady clock."""

    def __init__(self, now_s: float) -> None:
        """Start with nothing counted."""
        self._counts: dict[str, float] = {}
        self._reported_s = now_s
        self._shown = False

    def add(self, product_ids: Iterable[str]) -> None:
        """Count ids, each as often as it stands there."""
        counts = self._counts
        for product_id in product_ids:
            if product_id not in counts and len(counts) >= CAPACITY:
                kept = nlargest(CAPACITY // 2, counts.items(), key=lambda one: one[1])
                self._counts = counts = dict(kept)
            counts[product_id] = counts.get(product_id, 0.0) + 1.0

    def report(self, now_s: float) -> list[tuple[str, float]] | None:
        """Return the most frequent ids with their counts, at most once in ``EVERY_S``.

        Returns:
            At most ``SHOWN``, the most frequent first; empty once where there are none any more;
            None where there is nothing to say.
        """
        if now_s - self._reported_s < EVERY_S:
            return None
        self._reported_s = now_s
        best = nlargest(SHOWN, self._counts.items(), key=lambda one: one[1])
        if not best and not self._shown:
            return None
        self._shown = bool(best)
        self._counts = {one: count / 2 for one, count in self._counts.items() if count >= 1}
        return best
