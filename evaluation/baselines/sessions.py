"""Nearest-neighbour methods over whole sessions (or users): S-KNN, VS-KNN and STAN.

The parameters are those of the session-rec framework's published configuration (Ludewig, Mauro,
Latifi and Jannach, "Performance comparison of neural and non-neural approaches to session-based
recommendation", RecSys 2019) unless said otherwise.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.baselines.common import Baseline, Query, Scored, nothing
from evaluation.protocol import Items, Training

Floats = NDArray[np.float64]
Groups = NDArray[np.int64]


class _Gathered(NamedTuple):
    """The items of several groups, one after another."""

    items: Items
    last_places: NDArray[np.int32]
    """Place of each item's last event in its group, from 1."""
    lengths: NDArray[np.int64]
    """Items of each group."""


class GroupNeighbours(Baseline):
    """Candidate groups share an item with the session; the most similar score their items.

    Of the groups that share an item, the ``sample`` most recent are compared. At equal
    similarity the more recent group is the nearer neighbour.
    """

    uses_history: ClassVar[bool] = False
    k: int
    sample: int

    def _learn(self, training: Training) -> None:
        self._ends_ms = training.ends_ms()
        lengths = np.diff(training.starts)
        group_of = np.repeat(np.arange(training.groups), lengths)
        place = np.arange(len(training.items)) - np.repeat(training.starts[:-1], lengths) + 1
        # Each item of a group once, with its last place: the last of equal keys in this order.
        order = np.lexsort((place, training.items, group_of))
        items, groups, place = training.items[order], group_of[order], place[order]
        last = np.r_[(items[1:] != items[:-1]) | (groups[1:] != groups[:-1]), True]
        self._items, groups = items[last], groups[last]
        self._last_places = place[last].astype(np.int32)
        self._starts = np.r_[0, np.cumsum(np.bincount(groups, minlength=training.groups))]
        self._sizes = np.diff(self._starts)
        by_item = np.argsort(self._items, kind="stable")
        self._groups = groups[by_item]
        support = np.bincount(self._items, minlength=len(training.product_ids))
        self._postings = np.r_[0, np.cumsum(support)]
        self._idf = np.log(training.groups / support)
        self._place = np.zeros(len(support), dtype=np.int32)

    def score(self, query: Query) -> Scored:
        """Find the neighbours and add up what they hold."""
        if not len(query.items):
            return nothing()
        items, places = _last_places(query.items)
        weights = self._weights(places, len(query.items))
        groups, overlaps = self._candidates(items, weights)
        similarities = self._similarities(groups, overlaps, weights, query)
        chosen = _nearest(groups, similarities, self.k)
        gathered = self._gather(groups[chosen])
        self._place[items] = places
        scores = self._item_scores(similarities[chosen], gathered, len(query.items))
        self._place[items] = 0
        totals = np.bincount(gathered.items, weights=scores, minlength=self._n)
        found = np.flatnonzero(totals > 0).astype(np.int32)
        return Scored(found, totals[found].astype(np.float64))

    def _weights(self, places: NDArray[np.int32], length: int) -> Floats:
        """Weight of each item of the session by its last place, from 1 to the length."""
        del length
        return np.ones(len(places))

    @abstractmethod
    def _similarities(
        self, groups: Groups, overlaps: Floats, weights: Floats, query: Query
    ) -> Floats:
        """Similarity of each candidate group; ``overlaps`` sums the weights of shared items."""

    def _item_scores(self, similarities: Floats, gathered: _Gathered, length: int) -> Floats:
        """Score of each gathered item; ``self._place`` has the session's last place an item."""
        del length
        return np.repeat(similarities, gathered.lengths)

    def _candidates(self, items: Items, weights: Floats) -> tuple[Groups, Floats]:
        postings = [
            self._groups[self._postings[item] : self._postings[item + 1]] for item in items.tolist()
        ]
        overlaps = np.bincount(
            np.concatenate(postings),
            weights=np.repeat(weights, [len(part) for part in postings]),
            minlength=len(self._sizes),
        )
        groups = np.flatnonzero(overlaps)[-self.sample :]  # groups are in order of time
        return groups, overlaps[groups]

    def _gather(self, groups: Groups) -> _Gathered:
        lengths = self._sizes[groups]
        ends = np.cumsum(lengths)
        at = np.arange(ends[-1]) + np.repeat(self._starts[groups] - ends + lengths, lengths)
        return _Gathered(self._items[at], self._last_places[at], lengths)


@dataclass
class SKnn(GroupNeighbours):
    """S-KNN: cosine of the sets of items; a neighbour gives its similarity to all its items.

    (Jannach and Ludewig, "When recurrent neural networks meet the neighborhood for session-based
    recommendation", RecSys 2017.)
    """

    name: ClassVar[str] = "s_knn"
    k: int = 100
    sample: int = 500

    def _similarities(
        self, groups: Groups, overlaps: Floats, weights: Floats, query: Query
    ) -> Floats:
        del query
        cosine: Floats = overlaps / np.sqrt(len(weights) * self._sizes[groups])
        return cosine


@dataclass
class VSKnn(GroupNeighbours):
    """VS-KNN: later items of the session count more, for the similarity and for the score.

    (Ludewig and Jannach, "Evaluation of session-based recommendation algorithms", UMUAI 2018.)
    The item at place p of a session of n weighs (p / n)²; a neighbour's items get its similarity,
    divided by how many steps back its newest shared item is, times 1 + 5 · idf.
    """

    name: ClassVar[str] = "vs_knn"
    k: int = 500
    sample: int = 5000
    idf_weight: float = 5.0

    def _weights(self, places: NDArray[np.int32], length: int) -> Floats:
        weights: Floats = (places / length) ** 2
        return weights

    def _similarities(
        self, groups: Groups, overlaps: Floats, weights: Floats, query: Query
    ) -> Floats:
        del groups, query
        return overlaps / len(weights)

    def _item_scores(self, similarities: Floats, gathered: _Gathered, length: int) -> Floats:
        newest = np.maximum.reduceat(self._place[gathered.items], _firsts(gathered))
        per_group = similarities / (length - newest + 1)
        scores: Floats = np.repeat(per_group, gathered.lengths) * (
            1 + self.idf_weight * self._idf[gathered.items]
        )
        return scores


@dataclass
class STAN(GroupNeighbours):
    """STAN: position in the session, age of the neighbour, and position in the neighbour count.

    (Garg, Gupta, Malhotra, Vig and Shroff, "Sequence and time aware neighborhood for session-based
    recommendations", SIGIR 2019.) Similarity is the cosine with weights exp((p − n) / λ1) of the
    session's items, times exp(−age / λ2); an item of a neighbour counts exp(−distance / λ3) by its
    distance to the neighbour's newest item that the session shares.
    """

    name: ClassVar[str] = "stan"
    k: int = 500
    sample: int = 5000
    lambda_position: float = 1.02
    """λ1, places in the session."""
    lambda_days: float = 5.0
    """λ2, days."""
    lambda_distance: float = 2.05
    """λ3, places in the neighbour."""

    def _weights(self, places: NDArray[np.int32], length: int) -> Floats:
        weights: Floats = np.exp((places - length) / self.lambda_position)
        return weights

    def _similarities(
        self, groups: Groups, overlaps: Floats, weights: Floats, query: Query
    ) -> Floats:
        days = (query.time_ms - self._ends_ms[groups]) / 86_400_000
        cosine = overlaps / np.sqrt((weights**2).sum() * self._sizes[groups])
        decayed: Floats = cosine * np.exp(-days / self.lambda_days)
        return decayed

    def _item_scores(self, similarities: Floats, gathered: _Gathered, length: int) -> Floats:
        del length
        shared = np.where(self._place[gathered.items] > 0, gathered.last_places, 0)
        newest = np.maximum.reduceat(shared, _firsts(gathered))
        distance = np.abs(gathered.last_places - np.repeat(newest, gathered.lengths))
        scores: Floats = np.repeat(similarities, gathered.lengths) * np.exp(
            -distance / self.lambda_distance
        )
        return scores


def _last_places(items: Items) -> tuple[Items, NDArray[np.int32]]:
    """Each item of a session once, with its last place, from 1."""
    reversed_items, from_end = np.unique(items[::-1], return_index=True)
    return reversed_items, (len(items) - from_end).astype(np.int32)


def _nearest(groups: Groups, similarities: Floats, k: int) -> NDArray[np.intp]:
    """Places of the k most similar groups; ties to the more recent."""
    at = np.arange(len(groups))
    if len(groups) > k:
        cut = np.partition(similarities, len(groups) - k)[len(groups) - k]
        at = np.flatnonzero(similarities >= cut)
    chosen: NDArray[np.intp] = at[np.lexsort((-groups[at], -similarities[at]))[:k]]
    return chosen


def _firsts(gathered: _Gathered) -> NDArray[np.int64]:
    firsts: NDArray[np.int64] = np.cumsum(gathered.lengths) - gathered.lengths
    return firsts
