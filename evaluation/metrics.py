"""Metrics of ranked lists with one right item each, and bootstrap intervals over units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evaluation.protocol import Items, Prediction, Training, Walk

RESAMPLES: Final = 1000
POPULAR_SHARE: Final = 0.01
RANKED: Final = ("hr", "mrr", "ndcg")

Floats = NDArray[np.float64]


def rank_of(item: int, ranked: Items) -> int:
    """Place of an item in a list, from 1; 0 where it is not in it."""
    found = np.flatnonzero(ranked == item)
    return int(found[0]) + 1 if len(found) else 0


def gains(ranks: NDArray[np.int64]) -> Floats:
    """Hit, reciprocal rank and discounted gain of each rank (0: not in the list), shape (n, 3).

    With one right item the ideal gain is 1, so that NDCG is 1 / log2(rank + 1) (Järvelin and
    Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002).
    """
    hit = ranks > 0
    safe = np.where(hit, ranks, 1)
    found: Floats = np.stack([hit, hit / safe, hit / np.log2(safe + 1)], axis=1)
    return found


@dataclass
class Scores:
    """The predictions of one recommender, collected."""

    training: Training
    k: int
    units: list[int] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    new_units: list[int] = field(default_factory=list)
    new_ranks: list[int] = field(default_factory=list)
    micros: list[float] = field(default_factory=list)
    shown: NDArray[np.int64] = field(init=False)
    """How often each item was shown, shape (items,)."""

    def __post_init__(self) -> None:
        """Start with nothing shown."""
        self.shown = np.zeros(len(self.training.product_ids), dtype=np.int64)

    def add(self, walk: Walk, prediction: Prediction) -> None:
        """Judge one prediction of a walk."""
        target = int(walk.items[walk.targets[prediction.target]])
        self.units.append(walk.unit)
        self.ranks.append(rank_of(target, prediction.shown[: self.k]))
        self.micros.append(prediction.micros)
        self.shown[prediction.shown[: self.k]] += 1
        if walk.new[prediction.target]:
            self.new_units.append(walk.unit)
            self.new_ranks.append(rank_of(target, prediction.unseen[: self.k]))

    def result(self, weights: Floats) -> Result:
        """Average over the predictions; ``weights`` as :func:`resample` gives them."""
        popular = math.ceil(POPULAR_SHARE * len(self.shown))
        places = int(self.shown.sum())
        return Result(
            all=_averages(self.units, self.ranks, weights),
            new=_averages(self.new_units, self.new_ranks, weights),
            predictions=len(self.ranks),
            new_predictions=len(self.new_ranks),
            coverage=float((self.shown > 0).mean()),
            popular_share=float(self.shown[:popular].sum() / places) if places else 0.0,
            us_p50=float(np.percentile(self.micros, 50)),
            us_p99=float(np.percentile(self.micros, 99)),
        )


@dataclass(frozen=True)
class Average:
    """A mean over predictions with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    resampled: Floats = field(repr=False, compare=False)
    """The mean of each resample, shape (resamples,)."""


@dataclass(frozen=True)
class Result:
    """What a recommender reached."""

    all: Mapping[str, Average]
    """By name of :data:`RANKED`."""
    new: Mapping[str, Average]
    """Over the predictions of new items, with lists of unseen items; empty where there is none."""
    predictions: int
    new_predictions: int
    coverage: float
    """Share of the training items that were shown at least once."""
    popular_share: float
    """Share of the shown places that the most popular 1 % of the items took."""
    us_p50: float
    us_p99: float


def resample(units: int, seed: int, resamples: int = RESAMPLES) -> Floats:
    """How often each unit is drawn in each resample, shape (resamples, units).

    Sessions or users are drawn with replacement, not single predictions, which depend on each
    other within a unit (cluster bootstrap: Field and Welsh, "Bootstrapping clustered data", JRSS B
    2007). The same draws serve every recommender, so that differences are paired.
    """
    generator = np.random.default_rng(seed)
    probabilities = np.full(units, 1 / units)
    return generator.multinomial(units, probabilities, size=resamples).astype(np.float64)


def _averages(units: list[int], ranks: list[int], weights: Floats) -> dict[str, Average]:
    if not ranks:
        return {}
    found = gains(np.array(ranks, dtype=np.int64))
    sums = np.zeros((weights.shape[1], len(RANKED)))
    np.add.at(sums, units, found)
    sizes = np.bincount(units, minlength=weights.shape[1])
    drawn = weights @ sizes
    # A resample without any prediction says nothing.
    resampled = (weights @ sums)[drawn > 0] / drawn[drawn > 0, None]
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    means = found.mean(axis=0)
    return {
        name: Average(float(means[at]), float(low[at]), float(high[at]), resampled[:, at])
        for at, name in enumerate(RANKED)
    }


def difference(results: Mapping[str, Result], name: str = "ours") -> dict[str, dict[str, object]]:
    """Compare one recommender with the best of the others, metric by metric.

    Returns:
        By metric the best other's name, the difference of the means and its 95 % interval, from
        the same resamples for both.
    """
    compared: dict[str, dict[str, object]] = {}
    for metric in RANKED:
        mine = results[name].all[metric]
        best = max(
            (other for other in results if other != name),
            key=lambda other: results[other].all[metric].mean,
        )
        theirs = results[best].all[metric]
        low, high = np.percentile(mine.resampled - theirs.resampled, [2.5, 97.5])
        compared[metric] = {
            "best": best,
            "difference": round(mine.mean - theirs.mean, 6),
            "interval": [round(float(low), 6), round(float(high), 6)],
        }
    return compared
