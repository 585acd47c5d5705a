"""The comparison of variants: counts by hand, intervals that cover, users that do not count."""

from __future__ import annotations

import numpy as np
import pytest

from connectors.variant_tool import METRICS, SavedEvent, compare, table

NOW = 1_000_000


def events(user: str, variant: str | None, **counts: int) -> list[SavedEvent]:
    return [
        SavedEvent(user, kind, NOW, variant) for kind, count in counts.items() for _ in range(count)
    ]


def test_events_are_counted_by_user_and_variant() -> None:
    found = compare(
        [
            *events("a", "x", click=3, purchase=1),
            *events("b", "x", click=1, scroll=4),
            *events("c", "y", click=2, add_to_cart=2),
            *events("d", "y", search=1),
            *events("e", None, click=100),
            *events("f", "", click=100),
            SavedEvent("a", "click", NOW - 1, "x"),
        ],
        NOW,
    )
    assert list(found.groups) == ["x", "y"]
    x, y = found.groups["x"], found.groups["y"]
    assert (x.users, y.users, found.mixed) == (2, 2, 0)
    assert [x.metrics[name].mean for name in METRICS] == [2.0, 0.0, 0.5, 4.5]
    assert [y.metrics[name].mean for name in METRICS] == [1.0, 1.0, 0.0, 2.5]
    assert x.metrics["click"].difference is None
    shown = table(found)
    assert "2.0000" in shown
    assert len(shown.splitlines()) == 3


def test_a_user_of_two_variants_counts_in_none() -> None:
    found = compare([*events("a", "x", click=1), *events("a", "y", click=1),
                     *events("b", "y", click=1)], NOW)  # fmt: skip
    assert found.mixed == 1
    assert list(found.groups) == ["y"]
    assert "1 users with events of several variants" in table(found)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    covered = significant = 0
    rounds = 300
    for _ in range(rounds):
        rows = []
        for variant, mean in (("x", 2.0), ("y", 2.5)):
            for user, count in enumerate(rng.poisson(mean, 60).tolist()):
                rows += events(f"{variant}{user}", variant, click=count, scroll=1)
        metric = compare(rows, 0).groups["y"].metrics["click"]
        assert metric.difference is not None
        assert metric.p_value is not None
        low, high = metric.difference
        covered += low <= 0.5 <= high
        assert (metric.p_value < 0.05) == (not low <= 0 <= high)
        significant += metric.p_value < 0.05
    # Five standard deviations of a binomial count around 95 %.
    assert abs(covered - 0.95 * rounds) < 5 * (rounds * 0.95 * 0.05) ** 0.5
    assert significant > 0.2 * rounds


def test_a_division_that_is_not_as_asked_for_is_seen() -> None:
    rows = [one for at in range(1000) for one in events(f"u{at}", "xy"[at % 2], click=1)]
    fair = compare(rows, 0, {"x": 1, "y": 1}).split_p_value
    broken = compare(rows, 0, {"x": 1, "y": 2}).split_p_value
    assert fair == pytest.approx(1)
    assert broken is not None
    assert broken < 1e-6
    with pytest.raises(ValueError, match="shares of x, z"):
        compare(rows, 0, {"x": 1, "z": 1})


def test_what_does_not_vary_has_no_p_value() -> None:
    rows = [*events("a", "x", click=1), *events("b", "x", click=1),
            *events("c", "y", click=1), *events("d", "y", click=1)]  # fmt: skip
    metric = compare(rows, 0).groups["y"].metrics["click"]
    assert metric.p_value is None
    assert metric.difference is not None
    assert np.isnan(metric.difference).all()
