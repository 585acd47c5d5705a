"""What Flink's Python metrics lack: a gauge that is safe in thread mode, and quantiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from udfs.schemas import Reason

METRIC_GROUP: Final = "recommender"


def dead_letter_counters(metric_group: Any) -> dict[Reason, Any]:
    """Register a counter ``dead_letters`` for each reason, in a group of its own."""
    return {
        reason: metric_group.add_group("reason", reason.value).counter("dead_letters")
        for reason in Reason
    }


class Gauge:
    """A gauge that the operator sets, kept in a counter of Flink's.

    A Python gauge is read by calling Python from a thread of Flink's metric service, which in
    thread mode has no Python thread state: the TaskManager's JVM dies with SIGSEGV (PyFlink 2.3).
    """

    def __init__(self, metric_group: Any, name: str) -> None:
        """Register the gauge, at 0."""
        self._counter = metric_group.counter(name)
        self._value = 0

    def set(self, value: float) -> None:
        """Set the gauge to the nearest integer."""
        rounded = round(value)
        if rounded != self._value:
            self._counter.inc(rounded - self._value)
            self._value = rounded


class WindowedQuantiles:
    """Quantiles over the newest samples, none older than the window."""

    def __init__(
        self,
        *,
        size: int = 8192,
        window_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep at most ``size`` samples for at most ``window_s`` seconds."""
        self._values = np.zeros(size, dtype=np.float64)
        self._times = np.full(size, -np.inf)
        self._window_s = window_s
        self._clock = clock
        self._next = 0

    def add(self, value: float) -> None:
        """Add one sample."""
        self.extend((value,))

    def extend(self, values: Sequence[float]) -> None:
        """Add samples; of more than fit, evenly spaced ones stand for all."""
        size = len(self._values)
        step = max(1, -(-len(values) // size))
        chosen = np.asarray(values, dtype=np.float64)[::step]
        at = (self._next + np.arange(len(chosen))) % size
        self._values[at] = chosen
        self._times[at] = self._clock()
        self._next = (self._next + len(chosen)) % size

    def quantile(self, q: float) -> float:
        """Return the q-quantile (0 to 1) of the samples in the window; 0.0 where there is none."""
        recent = self._values[self._times >= self._clock() - self._window_s]
        return float(np.quantile(recent, q)) if recent.size else 0.0
