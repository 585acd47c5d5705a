"""Gauges kept in counters, and quantiles over a window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs.metrics import Gauge, WindowedQuantiles


class Counter:
    def __init__(self) -> None:
        self.value = 0

    def inc(self, n: int = 1) -> None:
        self.value += n


class Group:
    def __init__(self) -> None:
        self.counters: dict[str, Counter] = {}

    def counter(self, name: str) -> Counter:
        return self.counters.setdefault(name, Counter())


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.floats(-1e9, 1e9), min_size=1))
def test_gauge_shows_the_last_value_rounded(values: list[float]) -> None:
    group = Group()
    gauge = Gauge(group, "size")
    assert group.counters["size"].value == 0
    for value in values:
        gauge.set(value)
        assert group.counters["size"].value == round(value)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0, 1))
def test_quantile_is_that_of_all_samples_in_the_window(values: list[float], q: float) -> None:
    quantiles = WindowedQuantiles(size=50)
    for value in values:
        quantiles.add(value)
    assert quantiles.quantile(q) == pytest.approx(float(np.quantile(values, q)))


def test_samples_leave_with_the_window() -> None:
    clock = Clock()
    quantiles = WindowedQuantiles(window_s=60, clock=clock)
    quantiles.extend([100.0])
    clock.now += 59
    quantiles.extend([1.0])
    assert quantiles.quantile(1) == 100
    clock.now += 2
    assert quantiles.quantile(1) == 1
    clock.now += 60
    assert quantiles.quantile(1) == 0


def test_only_the_newest_samples_are_kept() -> None:
    quantiles = WindowedQuantiles(size=4)
    quantiles.extend([9.0, 9.0])
    quantiles.extend([1.0, 2.0, 3.0, 4.0])
    assert [quantiles.quantile(q) for q in (0, 1)] == [1, 4]


@pytest.mark.parametrize("n", [8, 9, 100, 1001])
def test_more_samples_than_fit_are_thinned_evenly(n: int) -> None:
    quantiles = WindowedQuantiles(size=8)
    quantiles.extend([float(value) for value in range(n)])
    assert quantiles.quantile(0) == 0
    assert quantiles.quantile(0.5) == pytest.approx(n / 2, rel=0.3)
    assert quantiles.quantile(1) >= 0.7 * (n - 1)


def test_no_samples_give_zero() -> None:
    quantiles = WindowedQuantiles()
    quantiles.extend([])
    assert quantiles.quantile(0.99) == 0
