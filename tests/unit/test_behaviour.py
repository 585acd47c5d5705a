"""What is learned from a log: hand-computed cases, and plain loops over all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.builders import DAY_MS, NOW_MS
from udfs import behaviour as behaviour_module
from udfs.behaviour import (
    BehaviourConfig,
    Log,
    Rebuys,
    co_occurrence,
    make_log,
    rebuys,
    related_products,
    related_row,
    split_sessions,
)
from udfs.product_record import decode_related, encode

PLAIN = BehaviourConfig(
    window=3,
    backward=0.5,
    source_exponent=1,
    target_exponent=0,
    sharpness=1,
    half_life_days=1e9,
    repeat_factor=1,
)
Row = tuple[int, int, int, float]


def log_of(rows: Sequence[Row], products: int = 6) -> Log:
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    sequences, items, times = (np.array(column, dtype=np.int64) for column in columns[:3])
    return make_log(sequences, items, times, np.array(columns[3], dtype=np.float64), products)


def session(*items: int, number: int = 0, start_ms: int = NOW_MS) -> list[Row]:
    return [(number, item, start_ms + at, 1.0) for at, item in enumerate(items)]


def naive_co_occurrence(rows: Sequence[Row], config: BehaviourConfig, products: int = 6) -> Any:
    kept = sorted((row for row in rows if row[3] > 0), key=lambda row: (row[0], row[2]))
    counts = np.zeros((products, products))
    newest = max((row[2] for row in kept), default=0)
    for at, (sequence, i, _, weight) in enumerate(kept):
        for distance in range(1, config.window + 1):
            if at + distance >= len(kept) or kept[at + distance][0] != sequence:
                break
            _, j, time_ms, other_weight = kept[at + distance]
            decay = 2.0 ** (-(newest - time_ms) / DAY_MS / config.half_life_days)
            both = min(weight, 1) * min(other_weight, 1) * decay / distance
            counts[i, j] += both
            counts[j, i] += config.backward * both
    return counts


rows = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 5),
        st.integers(NOW_MS - 90 * DAY_MS, NOW_MS),
        st.sampled_from([1.0, 3.0, 0.2, 0.0, -2.0]),
    ),
    max_size=40,
)


@given(rows, st.integers(1, 6), st.sampled_from([0.0, 0.6]))
def test_co_occurrence_equals_a_loop_over_all_pairs(
    made: list[Row], window: int, backward: float
) -> None:
    config = BehaviourConfig(window=window, backward=backward)
    found = co_occurrence(log_of(made), config).toarray()
    np.testing.assert_allclose(found, naive_co_occurrence(made, config), atol=1e-12)


def test_pairs_summed_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [row for n in range(5) for row in session(0, 1, 2, 3, 1, n, number=n)]
    whole = co_occurrence(log_of(made), PLAIN).toarray()
    monkeypatch.setattr(behaviour_module, "_PAIRS_AT_ONCE", 1)
    np.testing.assert_allclose(co_occurrence(log_of(made), PLAIN).toarray(), whole)


def test_related_products_of_a_hand_computed_log() -> None:
    # 0 1 2: c(0,1) = 1, c(0,2) = 1/2, c(1,2) = 1, and half of each the other way.
    related = related_products(log_of(session(0, 1, 2)), PLAIN)
    found = {item: [x.tolist() for x in related.of(item)] for item in range(3)}
    assert [found[item][0] for item in range(3)] == [[1, 2], [2, 0], [1, 0]]
    # Best weights 1/u, 1/u, 0.5/u with u = 1.05 uses: the median is the unit.
    np.testing.assert_allclose(found[0][1], [1, 0.5])
    np.testing.assert_allclose(found[1][1], [1, 0.5])
    np.testing.assert_allclose(found[2][1], [0.5, 0.25])
    assert related.repeats.tolist() == [0.0] * 6
    assert related.of(4)[0].tolist() == []


def test_repeats_count_once_an_event_and_only_within_their_sequence() -> None:
    made = [*session(0, 1, 0, 0), *session(0, 2, number=1)]
    # Of four events that are not the first of their sequence, two repeat one.
    rate = related_products(log_of(made), PLAIN).repeats
    assert rate[5] == pytest.approx(2 / 4)
    # Its own co-occurrence: at distances 2, 3 and 1 in both directions, over five uses.
    own = 1.5 * (1 / 2 + 1 / 3 + 1) / (4 + 0.05)
    best = [
        naive_co_occurrence(made, PLAIN)[i, others].max() / (uses + 0.05)
        for i, others, uses in ((0, [1, 2], 4), (1, [0], 1), (2, [0], 1))
    ]
    assert rate[0] == pytest.approx(2 / 4 + own / np.median(best))


@settings(max_examples=50)
@given(rows, st.integers(1, 4))
def test_related_products_are_the_best_and_in_order(made: list[Row], neighbours: int) -> None:
    config = BehaviourConfig(neighbours=neighbours)
    log = log_of(made)
    related = related_products(log, config)
    counts = naive_co_occurrence(made, config)
    decays = 2.0 ** (-(log.times_ms.max(initial=0) - log.times_ms) / DAY_MS / 60.0)
    uses = np.bincount(log.items, log.weights * decays, 6) + 0.05
    weights = (counts / (uses[:, None] ** 0.7 * uses[None, :] ** 0.3)) ** 0.7
    np.fill_diagonal(weights, 0)
    tops = [row.max() for row in weights if row.max() > 0]
    for item in range(6):
        items, found = related.of(item)
        expected = np.sort(weights[item][weights[item] > 0])[::-1][:neighbours]
        assert len(items) == len(set(items.tolist())) == len(expected)
        if not tops:
            continue
        np.testing.assert_allclose(found, expected / np.median(tops), rtol=1e-5)
        np.testing.assert_allclose(found, weights[item, items] / np.median(tops), rtol=1e-5)


def test_an_old_pair_counts_less_than_a_young_one() -> None:
    old = session(0, 1, start_ms=NOW_MS - 120 * DAY_MS)
    related = related_products(log_of([*old, *session(0, 2, number=1)]), BehaviourConfig())
    assert related.of(0)[0].tolist() == [2, 1]


def test_weights_are_in_the_same_unit_whatever_the_size_of_the_log() -> None:
    small = related_products(log_of(session(0, 1, 2, 3)), BehaviourConfig())
    many = [row for n in range(50) for row in session(0, 1, 2, 3, number=n)]
    large = related_products(log_of(many), BehaviourConfig())
    np.testing.assert_allclose(small.weights, large.weights, rtol=0.01)


def test_empty_log_relates_nothing() -> None:
    related = related_products(log_of([]), BehaviourConfig())
    assert related.of(0)[0].tolist() == []


@given(rows)
def test_a_log_is_sorted_by_sequence_and_time_and_keeps_the_order_of_equals(
    made: list[Row],
) -> None:
    kept = sorted((row for row in made if row[3] > 0), key=lambda row: (row[0], row[2]))
    log = log_of(made)
    assert log.items.tolist() == [row[1] for row in kept]
    assert log.weights.tolist() == [min(1.0, row[3]) for row in kept]


@pytest.mark.parametrize(
    ("items", "times"), [([0, 6], [0, 0]), ([-1, 0], [0, 0]), ([0, 1], [0, 0, 0])]
)
def test_columns_that_do_not_fit_are_refused(items: list[int], times: list[int]) -> None:
    with pytest.raises(ValueError, match="items"):
        make_log(np.zeros(2, dtype=np.int64), np.array(items), np.array(times), np.ones(2), 6)


def test_a_long_pause_ends_a_session_of_that_user_alone() -> None:
    users = np.array([1, 0, 1, 0, 1])
    times = np.array([100, 0, 0, 5, 161])
    assert split_sessions(users, times, 60).tolist() == [2, 0, 1, 0, 3]
    assert split_sessions(users, times, 100).tolist() == [1, 0, 1, 0, 1]
    assert split_sessions(users[:0], times[:0], 60).tolist() == []


def bought(*rows: tuple[int, int, int], categories: Sequence[int] = (0, 0, 1)) -> Any:
    users, items, days = (np.array(column) for column in zip(*rows, strict=True))
    times = NOW_MS // DAY_MS * DAY_MS + days * DAY_MS
    return rebuys(users, items, times, np.array(categories), BehaviourConfig(rebuy_days=5))


def test_rebuys_of_a_hand_computed_log() -> None:
    # Product 0: user 0 on days 0, 0 and 9, user 1 once: 3 purchases, 1 followed. Product 2: 1, 0.
    found = bought((0, 0, 0), (0, 0, 0), (0, 0, 9), (1, 0, 0), (1, 2, 4))
    overall = 1 / 4
    first, second = (1 + 20 * overall) / (3 + 20), (0 + 20 * overall) / (1 + 20)
    expected = [(1 + 3 * first) / (3 + 3), 3 * first / 3, 3 * second / (1 + 3)]
    np.testing.assert_allclose(found.shares, expected, rtol=1e-6)
    assert found.days.tolist() == [5.0, 5.0, 5.0]


def test_what_nobody_buys_again_never_comes_back() -> None:
    found = bought((0, 0, 0), (1, 0, 3), (1, 2, 4))
    assert found.shares.tolist() == [0.0, 0.0, 0.0]
    assert np.isinf(found.days).all()


def test_learned_row_is_one_of_the_topic() -> None:
    names = [f"p{n}" for n in range(6)]
    learned = related_products(log_of(session(0, 1, 2, 0)), BehaviourConfig())
    again = Rebuys(np.full(6, 0.123456, np.float32), np.array([2, np.inf] * 3, np.float32))
    for item in range(6):
        row = decode_related(names[item], encode(related_row(item, names, learned, again)))
        expected = {names[other]: weight for other, weight in zip(*learned.of(item), strict=True)}
        if learned.repeats[item] > 0:
            expected[names[item]] = learned.repeats[item]
        assert row.related == pytest.approx(expected, rel=1e-3)
        assert row.rebuy_days == (None if item % 2 else 2.0)
        assert row.rebuy_share == (0.0 if item % 2 else 0.1235)
    assert related_row(5, names, learned, None).rebuy_days is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 0},
        {"neighbours": 0},
        {"half_life_days": 0.0},
        {"sharpness": float("nan")},
        {"backward": -0.1},
        {"rebuy_days": -1.0},
    ],
)
def test_constants_without_a_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BehaviourConfig(**wrong)
