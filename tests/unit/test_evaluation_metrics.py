"""The metrics against hand-computed lists, the bootstrap against what it must be."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest

from evaluation.metrics import Scores, difference, gains, rank_of, resample
from evaluation.protocol import Prediction, Training, Walk


def training(items: int = 200) -> Training:
    return Training(
        product_ids=[str(item) for item in range(items)],
        counts=np.arange(items, 0, -1),
        items=np.zeros(1, dtype=np.int32),
        times_ms=np.zeros(1, dtype=np.int64),
        starts=np.array([0, 1]),
        split_ms=1,
    )


def walk(unit: int, target: int, *, new: bool) -> Walk:
    return Walk(
        unit=unit,
        rows=np.arange(2),
        items=np.array([9, target], dtype=np.int32),
        times_ms=np.zeros(2, dtype=np.int64),
        session_start=0,
        targets=np.array([1]),
        new=np.array([new]),
    )


def add(scores: Scores, unit: int, target: int, shown: list[int], *, new: bool = True) -> None:
    ranked = np.array(shown, dtype=np.int32)
    scores.add(walk(unit, target, new=new), Prediction(0, 0, ranked, ranked[1:], 10.0 * unit))


def test_ranks_and_gains() -> None:
    ranked = np.array([5, 3, 8], dtype=np.int32)
    assert [rank_of(item, ranked) for item in (5, 3, 8, 1)] == [1, 2, 3, 0]
    assert gains(np.array([1, 2, 3, 0])).tolist() == pytest.approx(
        np.array([[1, 1, 1], [1, 1 / 2, 1 / log2(3)], [1, 1 / 3, 1 / 2], [0, 0, 0]])
    )


def test_results_by_hand() -> None:
    scores = Scores(training(), k=3)
    add(scores, 0, 5, [5, 3, 8])
    add(scores, 0, 3, [5, 3, 8], new=False)
    add(scores, 1, 7, [0, 3, 8, 7])  # the fourth place is beyond k
    result = scores.result(resample(2, seed=0))
    assert result.all["hr"].mean == pytest.approx(2 / 3)
    assert result.all["mrr"].mean == pytest.approx(1.5 / 3)
    assert result.all["ndcg"].mean == pytest.approx((1 + 1 / log2(3)) / 3)
    # New: 5 is not in [3, 8]; 7 is the third of [3, 8, 7].
    assert (result.predictions, result.new_predictions) == (3, 2)
    assert result.new["mrr"].mean == pytest.approx((0 + 1 / 3) / 2)
    assert result.coverage == pytest.approx(4 / 200)  # 0, 3, 5, 8
    assert result.popular_share == pytest.approx(1 / 9)  # items 0 and 1 are the top 1 % of 200
    assert result.us_p50 == 0
    assert result.us_p99 == pytest.approx(9.8)


def test_the_bootstrap_draws_units_not_predictions() -> None:
    # Two units, one always right, one always wrong: a resample is 0, 1/2 or 1, by thirds of size.
    scores = Scores(training(), k=1)
    for _ in range(50):
        add(scores, 0, 5, [5])
        add(scores, 1, 5, [6])
    average = scores.result(resample(2, seed=1)).all["hr"]
    assert set(average.resampled.tolist()) == {0.0, 0.5, 1.0}
    assert (average.low, average.high) == (0.0, 1.0)


def test_the_interval_covers_the_mean_as_theory_says() -> None:
    random = np.random.default_rng(3)
    scores = Scores(training(), k=1)
    for unit in range(400):
        add(scores, unit, 5, [5 if random.random() < 0.3 else 6])
    average = scores.result(resample(400, seed=2)).all["hr"]
    deviation = np.sqrt(average.mean * (1 - average.mean) / 400)
    assert average.high - average.mean == pytest.approx(1.96 * deviation, rel=0.15)
    assert average.mean - average.low == pytest.approx(1.96 * deviation, rel=0.15)


def test_no_new_item_has_no_new_average() -> None:
    scores = Scores(training(), k=1)
    add(scores, 0, 5, [5], new=False)
    assert scores.result(resample(1, seed=0)).new == {}


def test_a_seed_gives_the_same_draws() -> None:
    assert np.array_equal(resample(5, seed=4), resample(5, seed=4))
    assert not np.array_equal(resample(5, seed=4), resample(5, seed=5))
    assert (resample(5, seed=4).sum(axis=1) == 5).all()


def test_the_difference_is_to_the_best_of_the_others() -> None:
    weights = resample(3, seed=0)
    found = {}
    for name, shown in (("ours", [5, 1]), ("first", [1, 5]), ("second", [2, 1])):
        scores = Scores(training(), k=2)
        for unit in range(3):
            add(scores, unit, 5, shown)
        found[name] = scores.result(weights)
    assert difference(found)["hr"] == {"best": "first", "difference": 0.0, "interval": [0.0, 0.0]}
    assert difference(found)["mrr"] == {"best": "first", "difference": 0.5, "interval": [0.5, 0.5]}
