"""Tests of the trending lists' pure part: epochs, decay, weights, the text of a list."""

from __future__ import annotations

import base64
import math
import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.trending import time_in_range_sql, weight_sql
from udfs.profile import ProfileConfig
from udfs.schemas import MAX_TIMESTAMP_MS, MIN_TIMESTAMP_MS
from udfs.trending import (
    CARRY_HALF_LIVES,
    EPOCH_HALF_LIVES,
    TrendingConfig,
    current,
    event_weights,
    parse_items,
    scaled,
)

HOUR = 3_600_000
CONFIG = TrendingConfig(half_life_hours=6)


def test_an_epochs_sum_read_at_a_time_is_the_count_decayed_by_age() -> None:
    epoch = CONFIG.epoch_of(1_800_000_000_000)
    landmark = epoch * CONFIG.epoch_ms
    # Weight 3 six hours ago and weight 1 now: half of the 3, and the 1.
    now = landmark + 48 * HOUR
    forward = 3 * 2.0 ** (42 / 6) + 1 * 2.0 ** (48 / 6)

    assert forward * CONFIG.decay(epoch, now) == pytest.approx(2.5)


@given(st.integers(0, 4_000_000_000_000), st.integers(0, 4_000_000_000_000))
def test_a_sum_says_the_same_relative_to_either_epoch(ts: int, later: int) -> None:
    epoch = CONFIG.epoch_of(ts)
    now = ts + later % (CARRY_HALF_LIVES * CONFIG.half_life_ms)

    def read(one: int) -> float:
        age = (ts - one * CONFIG.epoch_ms) / CONFIG.half_life_ms
        return math.exp2(age) * CONFIG.decay(one, now)

    assert read(epoch) == pytest.approx(2.0 ** (-(now - ts) / CONFIG.half_life_ms))
    assert read(epoch + 1) == pytest.approx(read(epoch))


def test_an_epoch_is_a_whole_number_of_half_lives() -> None:
    assert CONFIG.epoch_ms == EPOCH_HALF_LIVES * 6 * HOUR
    assert CONFIG.epoch_of(CONFIG.epoch_ms) == 1
    assert CONFIG.epoch_of(CONFIG.epoch_ms - 1) == 0


def test_weights_are_the_profiles_that_speak_for_a_product() -> None:
    assert event_weights(ProfileConfig()) == {
        "click": 1.0,
        "scroll": 0.2,
        "purchase": 3.0,
        "add_to_cart": 2.0,
    }


def test_a_bounce_counts_what_the_profile_gives_it_or_nothing() -> None:
    assert "`dwell_ms` < 1000 THEN CAST(0.0 AS DOUBLE)" in weight_sql(ProfileConfig())
    changed = ProfileConfig(bounce_ms=500, bounce_weight=0.1)
    assert "`dwell_ms` < 500 THEN CAST(0.1 AS DOUBLE)" in weight_sql(changed)


@pytest.mark.parametrize(
    ("ts", "kafka_ms", "counts"),
    [
        (2_000_000_060_000, 2_000_000_000_000, True),
        (2_000_000_060_001, 2_000_000_000_000, False),
        # Kafka says -1 where it has no time, of which Flink's SQL makes 999.
        (2_000_000_060_001, 999, True),
        (2_000_000_060_001, -1, True),
        (MIN_TIMESTAMP_MS + 60_001, MIN_TIMESTAMP_MS, False),
        (MIN_TIMESTAMP_MS - 1, 999, False),
        (MAX_TIMESTAMP_MS + 1, 999, False),
    ],
)
def test_an_event_counts_by_its_time_as_in_the_recommender(
    ts: int, kafka_ms: int, *, counts: bool
) -> None:
    query = f"SELECT {time_in_range_sql(60_000)} FROM (SELECT ? AS ts, ? AS kafka_ms)"
    with closing(sqlite3.connect(":memory:")) as database:
        assert database.execute(query, (ts, kafka_ms)).fetchone() == (counts,)


@given(
    st.dictionaries(
        st.text(min_size=1).filter(lambda text: text.isprintable()),
        st.floats(min_value=0, allow_infinity=False),
        min_size=1,
    )
)
def test_a_list_is_read_back_best_first_whatever_the_ids(scores: dict[str, float]) -> None:
    text = ",".join(
        f"{score!r} {base64.b64encode(name.encode()).decode()}" for name, score in scores.items()
    )

    found = parse_items(text)

    assert dict(found) == scores
    assert found == sorted(found, key=lambda item: (-item[1], item[0]))


def test_scores_in_javas_notation_are_read() -> None:
    assert parse_items("1.5E19 cDE=,2.0E20 cDI=") == [("p2", 2e20), ("p1", 1.5e19)]


def test_scaling_keeps_the_order() -> None:
    assert scaled([("a", 4.0), ("b", 2.0)], 0.5) == [("a", 2.0), ("b", 1.0)]


def test_the_list_of_the_newest_epoch_that_has_begun_is_shown() -> None:
    assert current({4: "a", 5: "b", 6: "c"}, 5) == 5
    assert current({4: "a", 6: "c"}, 5) == 4
    assert current({6: "c"}, 5) is None
    assert current({-1: "newest"}, 5) == -1


@pytest.mark.parametrize("hours", [-1.0, math.nan, math.inf, 1e-9, 9000.0])
def test_half_lives_without_a_meaning_are_refused(hours: float) -> None:
    with pytest.raises(ValueError, match="trending_half_life_hours"):
        TrendingConfig(half_life_hours=hours)


@pytest.mark.parametrize("length", [0, 501])
def test_lengths_out_of_range_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="trending_length"):
        TrendingConfig(length=length)


def test_no_half_life_turns_it_off() -> None:
    assert not TrendingConfig(half_life_hours=0).enabled
    assert CONFIG.enabled
