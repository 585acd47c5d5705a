"""Each baseline against a case computed by hand from its published formula."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.baselines import (
    STAN,
    AssociationRules,
    ItemItem,
    LastItem,
    NearItems,
    PersonalPopularity,
    Popularity,
    RecentPopularity,
    SKnn,
    VSKnn,
    all_baselines,
)
from evaluation.baselines.common import Baseline, Query, Scored, best
from evaluation.protocol import Training, Walk
from tests.unit.builders import DAY_MS, NOW_MS

A, B, C, D = range(4)
# Four groups, oldest first; the split is ten days after the last ends.
GROUPS = [[A, B], [A, B, C], [B, C, C], [A, D]]
END_DAYS = [0, 1, 2, 3]
SPLIT_MS = NOW_MS + 10 * DAY_MS


def training(groups: Sequence[Sequence[int]] = GROUPS, items: int = 4) -> Training:
    """Groups whose last event is on the day of the group's number, one second between events."""
    times = [
        NOW_MS + day * DAY_MS - 1000 * (len(group) - 1 - at)
        for day, group in enumerate(groups)
        for at in range(len(group))
    ]
    flat = np.array([item for group in groups for item in group], dtype=np.int32)
    return Training(
        product_ids=[f"p{item}" for item in range(items)],
        counts=np.bincount(flat, minlength=items),
        items=flat,
        times_ms=np.array(times, dtype=np.int64),
        starts=np.cumsum([0, *map(len, groups)]),
        split_ms=SPLIT_MS,
    )


def walk(items: Sequence[int], targets: Sequence[int], session_start: int = 0) -> Walk:
    return Walk(
        unit=0,
        rows=np.arange(len(items)),
        items=np.array(items, dtype=np.int32),
        times_ms=np.full(len(items), SPLIT_MS, dtype=np.int64),
        session_start=session_start,
        targets=np.array(targets),
        new=np.zeros(len(targets), dtype=np.bool_),
    )


def scores(
    baseline: Baseline, prefix: Sequence[int], on: Training | None = None
) -> dict[int, float]:
    baseline.fit(on or training())
    found = baseline.score(Query(np.array(prefix, dtype=np.int32), SPLIT_MS))
    return dict(zip(found.items.tolist(), found.scores.tolist(), strict=True))


def lists(baseline: Baseline, over: Walk, k: int = 4) -> list[tuple[list[int], list[int]]]:
    return [(p.shown.tolist(), p.unseen.tolist()) for p in baseline.predict([over], k)]


def test_popularity_is_the_order_of_the_items() -> None:
    baseline = Popularity()
    baseline.fit(training())
    assert lists(baseline, walk([B, C], [1]), k=3) == [([A, B, C], [A, C, D])]


def test_recent_popularity_counts_the_last_days_only() -> None:
    # Seven days before the split is the very end of the fourth group: its A is a second too old.
    assert scores(RecentPopularity(days=7), [B]) == {D: 1}
    assert scores(RecentPopularity(days=8), [B]) == {A: 1, C: 1, D: 1}


def test_item_item_is_the_cosine_of_the_groups() -> None:
    # Groups with A: 3, with B: 3, with C: 2; A and B share 2, B and C 2, A and C 1.
    found = scores(ItemItem(damping=0), [A, B])
    assert found == pytest.approx(
        {A: 2 / 3, B: 2 / 3, C: 1 / sqrt(6) + 2 / sqrt(6), D: 1 / sqrt(3)}
    )
    damped = scores(LastItem(damping=20), [B, A])
    assert damped == pytest.approx({B: 2 / 23, C: 1 / sqrt(23 * 22), D: 1 / sqrt(23 * 21)})


def test_the_query_is_the_last_items() -> None:
    assert scores(ItemItem(last=2), [D, A, B]) == scores(ItemItem(), [A, B])


def test_association_rules_count_pairs_of_events() -> None:
    # C twice with B in one group, once in another; C with C twice (both ways of one pair).
    assert scores(AssociationRules(), [A, C]) == {A: 1, B: 3, C: 2}
    assert scores(AssociationRules(rules=1), [C]) == {B: 3}


def test_near_items_count_by_distance() -> None:
    # A–C two apart in one group: 1/2; B–C one apart twice and two apart once: 2.5. Events: 3 each.
    found = scores(NearItems(damping=0, window=2), [C])
    assert found == pytest.approx({A: 0.5 / 3, B: 2.5 / 3})
    assert A not in scores(NearItems(damping=0, window=1), [C])


def test_near_items_weigh_a_step_back_less() -> None:
    of_a = scores(NearItems(window=2), [A])
    of_c = scores(NearItems(window=2), [C])
    both = scores(NearItems(window=2, decay=0.5), [A, C])
    assert both == pytest.approx(
        {item: 0.5 * of_a.get(item, 0) + of_c.get(item, 0) for item in of_a.keys() | of_c.keys()}
    )


def test_personal_popularity_counts_then_takes_the_newer() -> None:
    baseline = PersonalPopularity()
    baseline.fit(training())
    assert lists(baseline, walk([D, C, B, C, A], [4]), k=4) == [([C, B, D, A], [A])]


def test_s_knn_by_hand() -> None:
    # Session {A, C}: cosines 1/sqrt(2·2), 2/sqrt(2·3), 1/sqrt(2·2), 1/sqrt(2·2).
    first, second, third, fourth = 0.5, 2 / sqrt(6), 0.5, 0.5
    assert scores(SKnn(), [A, C]) == pytest.approx(
        {A: first + second + fourth, B: first + second + third, C: second + third, D: fourth}
    )
    # The two nearest: the second, and of three equals the most recent.
    assert scores(SKnn(k=2), [A, C]) == pytest.approx(
        {A: second + fourth, B: second, C: second, D: fourth}
    )
    # Only the most recent candidate is compared at all.
    assert scores(SKnn(sample=1), [A, C]) == pytest.approx({A: fourth, D: fourth})


def test_vs_knn_by_hand() -> None:
    # Session A, B, A: A at place 3 weighs 1, B at place 2 weighs (2/3)²; two distinct items.
    b = (2 / 3) ** 2
    similarity = [(1 + b) / 2, (1 + b) / 2, b / 2, 1 / 2]
    steps = [1, 1, 2, 1]  # from the newest shared item to the end of the session
    idf = {A: log(4 / 3), B: log(4 / 3), C: log(4 / 2), D: log(4)}
    share = [s / step for s, step in zip(similarity, steps, strict=True)]
    expected = {
        A: (share[0] + share[1] + share[3]) * (1 + 5 * idf[A]),
        B: (share[0] + share[1] + share[2]) * (1 + 5 * idf[B]),
        C: (share[1] + share[2]) * (1 + 5 * idf[C]),
        D: share[3] * (1 + 5 * idf[D]),
    }
    assert scores(VSKnn(), [A, B, A]) == pytest.approx(expected)


def test_stan_by_hand() -> None:
    # Session B, A: weights exp(−1/1.02) and 1. Groups end 10, 9, 8 and 7 days before.
    b = exp(-1 / 1.02)
    norm = sqrt(1 + b * b)
    similarity = [
        (1 + b) / (norm * sqrt(2)) * exp(-10 / 5),
        (1 + b) / (norm * sqrt(3)) * exp(-9 / 5),
        b / (norm * sqrt(2)) * exp(-8 / 5),
        1 / (norm * sqrt(2)) * exp(-7 / 5),
    ]
    near, far = exp(-1 / 2.05), exp(-2 / 2.05)
    # The newest shared item: B at 2, B at 2, B at 1, A at 1; C of the third group last stands at 3.
    expected = {
        A: similarity[0] * near + similarity[1] * near + similarity[3],
        B: similarity[0] + similarity[1] + similarity[2],
        C: similarity[1] * near + similarity[2] * far,
        D: similarity[3] * near,
    }
    assert scores(STAN(), [B, A]) == pytest.approx(expected)


def test_equal_scores_go_to_the_more_popular_and_free_places_too() -> None:
    baseline = LastItem()
    baseline.fit(training([[A, B], [A, C], [B, D]], items=4))
    # B and C are equally near to A; D is not near, and fills the list after A itself.
    assert lists(baseline, walk([A, B], [1])) == [([C, B, A, D], [C, B, D])]


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=1, max_size=30), st.integers(1, 8))
def test_best_equals_a_full_sort(values: list[float], k: int) -> None:
    items = np.arange(len(values), dtype=np.int32)[::-1].copy()
    found = best(Scored(items, np.array(values)), k).tolist()
    expected = sorted(
        zip(values, items.tolist(), strict=True), key=lambda pair: (-pair[0], pair[1])
    )
    assert found == [item for _, item in expected[:k]]


def test_a_session_method_sees_the_session_only_and_hides_what_came_before() -> None:
    baseline = SKnn()
    baseline.fit(training())
    with_history = lists(baseline, walk([D, D, A, C], [3], session_start=2))
    alone = lists(baseline, walk([A, C], [1]))
    assert with_history[0][0] == alone[0][0]
    assert D in alone[0][1]
    assert D not in with_history[0][1]


@pytest.mark.parametrize("name", [baseline.name for baseline in all_baselines()])
def test_every_baseline_fills_its_list_whatever_came_before(name: str) -> None:
    (baseline,) = [one for one in all_baselines() if one.name == name]
    baseline.fit(training())
    for over in (walk([A, B, C, D], [1, 2, 3]), walk([-1, A], [1]), walk([D, D, -1, A], [2, 3])):
        for prediction in baseline.predict([over], 3):
            shown, unseen = prediction.shown.tolist(), prediction.unseen.tolist()
            seen = {int(item) for item in over.items[: over.targets[prediction.target]]} - {-1}
            assert len(set(shown)) == len(shown) == 3
            assert len(set(unseen)) == len(unseen) == min(3, 4 - len(seen))
            assert not seen & set(unseen)


@pytest.mark.parametrize("name", [baseline.name for baseline in all_baselines()])
def test_learning_leaves_the_training_part_as_it_was(name: str) -> None:
    (baseline,) = [one for one in all_baselines() if one.name == name]
    given_training, untouched = training(), training()
    baseline.fit(given_training)
    for field in ("counts", "items", "times_ms", "starts"):
        assert np.array_equal(getattr(given_training, field), getattr(untouched, field))
