"""What the baselines share: a score an item becomes a list, the same way for all."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.protocol import Items, Prediction, Training, Walk

Floats = NDArray[np.float64]


class Query(NamedTuple):
    """What is known before a target."""

    items: Items
    """Known items of the session or user so far, oldest first, repeats included."""
    time_ms: int
    """Time of the newest event before the target, epoch milliseconds."""


class Scored(NamedTuple):
    """Candidates with their scores, each item once, in any order."""

    items: Items
    scores: Floats


class Baseline(ABC):
    """A recommender that scores candidates from the items before a target.

    Higher scores first; at equal scores the item more popular in training, then the smaller
    product id. Places that the candidates do not fill go to the most popular items, so that no
    method is judged by an empty place.
    """

    name: ClassVar[str]
    uses_history: ClassVar[bool]

    def fit(self, training: Training) -> None:
        """Learn from the training part."""
        self._n = len(training.product_ids)
        self._hidden = np.zeros(self._n, dtype=np.bool_)
        self._learn(training)

    def predict(self, walks: Sequence[Walk], k: int) -> Iterator[Prediction]:
        """Answer every target of every walk, in their order."""
        for number, walk in enumerate(walks):
            known = walk.items >= 0
            items = walk.items[known]
            # Known items before each position, and before the session.
            before = np.r_[0, np.cumsum(known)]
            first = 0 if self.uses_history else int(before[walk.session_start])
            for place, target in enumerate(walk.targets.tolist()):
                seen = items[: before[target]]
                query = Query(items[first : before[target]], int(walk.times_ms[target - 1]))
                started = time.perf_counter_ns()
                scored = self.score(query)
                shown = self._fill(best(scored, k), k)
                micros = (time.perf_counter_ns() - started) / 1000
                unseen = shown
                if len(seen):
                    self._hidden[seen] = True
                    if self._hidden[shown].any():
                        left = ~self._hidden[scored.items]
                        rest = Scored(scored.items[left], scored.scores[left])
                        unseen = self._fill(best(rest, k), k)
                    self._hidden[seen] = False
                yield Prediction(number, place, shown, unseen, micros)

    @abstractmethod
    def score(self, query: Query) -> Scored:
        """Score the candidates for a query, which may hold no item."""

    @abstractmethod
    def _learn(self, training: Training) -> None:
        """Learn from the training part."""

    def _fill(self, ranked: Items, k: int) -> Items:
        """Fill a list up to k with the most popular items that it lacks and that are not hidden."""
        if len(ranked) >= k:
            return ranked
        free = ~self._hidden
        free[ranked] = False
        filled: Items = np.r_[ranked, np.flatnonzero(free)[: k - len(ranked)].astype(np.int32)]
        return filled


def best(scored: Scored, k: int) -> Items:
    """The k best items, best first; ties to the lower item."""
    items, scores = scored
    if len(items) > k:
        cut = np.partition(scores, len(scores) - k)[len(scores) - k]
        kept = scores >= cut
        items, scores = items[kept], scores[kept]
    ranked: Items = items[np.lexsort((items, -scores))[:k]]
    return ranked


def nothing() -> Scored:
    """No candidate."""
    return Scored(np.zeros(0, dtype=np.int32), np.zeros(0))
