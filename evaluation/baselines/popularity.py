"""Popularity: what everybody takes, what is taken now, what this user takes again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from evaluation.baselines.common import Baseline, Query, Scored, nothing
from evaluation.protocol import Training


class Popularity(Baseline):
    """The items with the most events in training."""

    name: ClassVar[str] = "popularity"
    uses_history: ClassVar[bool] = False

    def _learn(self, training: Training) -> None:  # noqa: ARG002
        self._scored = nothing()  # every free place goes to the most popular items

    def score(self, query: Query) -> Scored:  # noqa: ARG002 - the same for everybody
        """Score by the number of events."""
        return self._scored


@dataclass
class RecentPopularity(Popularity):
    """The items with the most events in the last days before the split."""

    name: ClassVar[str] = "recent_popularity"
    days: int = 7
    """How long before the split counts."""

    def _learn(self, training: Training) -> None:
        recent = training.times_ms >= training.split_ms - self.days * 86_400_000
        counts = np.bincount(training.items[recent], minlength=len(training.counts))
        items = np.flatnonzero(counts).astype(np.int32)
        self._scored = Scored(items, counts[items].astype(np.float64))


class PersonalPopularity(Baseline):
    """The user's own items, the most frequent first, the more recent at equal counts.

    Where people buy the same things again, hard to beat; it never shows anything new but the most
    popular items (P-TopFreq and GP-TopFreq in Li, Jullien, Ariannezhad and de Rijke, "A next
    basket recommendation reality check", TOIS 2023).
    """

    name: ClassVar[str] = "personal_popularity"
    uses_history: ClassVar[bool] = True

    def _learn(self, training: Training) -> None:
        """Need nothing but the order by popularity."""

    def score(self, query: Query) -> Scored:
        """Count the events of each item; a newer last event decides between equal counts."""
        items, from_end, counts = np.unique(
            query.items[::-1], return_index=True, return_counts=True
        )
        return Scored(items, counts - from_end / (len(query.items) + 1))
