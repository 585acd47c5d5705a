"""When ticks end, on a clock whose timers are late as Flink's are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs.tick import Tick

START_MS = 1_732_300_000_000


class Machine:
    """One thread that takes events and saves; a save costs ``fixed_ms`` and ``event_us`` each."""

    def __init__(self, tick: Tick, fixed_ms: int, event_us: int, late_ms: int = 1) -> None:
        self.tick = tick
        self.now_ms = START_MS
        self.waits: list[int] = []
        self.saving_ms = 0
        self._fixed_ms = fixed_ms
        self._event_us = event_us
        self._late_ms = late_ms
        # When each fires, and whether it is a probe.
        self._timers: set[tuple[int, bool]] = set()
        # When each event came that is not saved, and its user's timer.
        self._came: list[tuple[int, int]] = []

    def event(self, ts: int | None = None) -> None:
        probe_ms = self.tick.probe_ms
        due_ms = self.tick.end(self.now_ms)
        self._timers.add((due_ms, False))
        if self.tick.probe_ms != probe_ms:
            self._timers.add((self.tick.probe_ms, True))
        self.tick.take(self.now_ms if ts is None else ts, self.now_ms)
        self._came.append((self.now_ms, due_ms))

    def run_until(self, at_ms: int) -> None:
        while self._timers and min(self._timers)[0] + self._late_ms <= at_ms:
            timer_ms, is_probe = min(self._timers)
            self._timers.remove((timer_ms, is_probe))
            self.now_ms = max(self.now_ms, timer_ms + self._late_ms)
            if is_probe and timer_ms != self.tick.probe_ms:
                continue
            if is_probe and not self.tick.is_over(self.now_ms):
                self._timers.add((self.tick.probe_ms, True))
            elif is_probe or any(due_ms == timer_ms for _, due_ms in self._came):
                self._save()
        self.now_ms = max(self.now_ms, at_ms)

    def _save(self) -> None:
        self.tick.wake(self.now_ms)
        spent_ms = self._fixed_ms + self._event_us * len(self._came) // 1000
        newest = self._came[-1][0] if self._came else None
        self.now_ms += spent_ms
        self.saving_ms += spent_ms
        self.waits += [self.now_ms - at for at, _ in self._came]
        self._came.clear()
        self.tick.saved(self.now_ms, spent_ms, newest)

    def load(self, per_second: int, seconds: int) -> None:
        """Let events come evenly, as far as the machine gets to take them."""
        start_ms = self.now_ms
        for number in range(per_second * seconds):
            self.run_until(start_ms + number * 1000 // per_second)
            self.event()
        self.run_until(self.now_ms + 30_000)

    def median(self) -> int:
        return sorted(self.waits)[len(self.waits) // 2]


def of(least_ms: int = 100, usual_ms: int = 1000) -> Tick:
    return Tick(least_ms, usual_ms, 10_000)


@pytest.mark.parametrize("late_ms", [1, 20])
def test_a_machine_with_little_to_do_is_fast(late_ms: int) -> None:
    machine = Machine(of(), fixed_ms=15, event_us=150, late_ms=late_ms)
    machine.load(50, 60)
    assert machine.median() < 150
    assert machine.saving_ms < 0.25 * 60_000
    assert machine.tick.is_idle


def test_a_busy_machine_is_not_slower_than_with_a_fixed_tick() -> None:
    machines = [Machine(of(least_ms), fixed_ms=25, event_us=150) for least_ms in (100, 1000)]
    for machine in machines:
        machine.load(2000, 30)
    assert machines[0].median() <= machines[1].median()
    assert machines[0].saving_ms < machines[1].saving_ms * 1.1


def test_under_a_load_the_tick_is_long_and_saving_takes_at_most_half() -> None:
    machine = Machine(of(), fixed_ms=2000, event_us=100)
    machine.load(1000, 60)
    assert machine.tick.length_ms > 4000
    assert machine.saving_ms < 0.6 * (machine.now_ms - START_MS - 30_000)
    assert not machine.tick.is_idle


@given(st.integers(0, 20_000), st.integers(1, 2000), st.integers(0, 3000))
def test_the_length_is_within_its_bounds(spent_ms: int, least_ms: int, usual_ms: int) -> None:
    tick = Tick(least_ms, usual_ms, 10_000)
    tick.saved(START_MS, spent_ms, START_MS - spent_ms)
    assert min(least_ms, usual_ms) <= tick.length_ms <= 10_000
    if 2 * spent_ms <= usual_ms:
        assert tick.length_ms <= usual_ms
    # A fixed tick is as it was.
    if least_ms >= usual_ms:
        assert tick.length_ms == min(max(usual_ms, 2 * spent_ms), 10_000)


def test_old_events_make_the_longest_tick_until_they_are_read() -> None:
    tick = of()
    tick.saved(START_MS, 10, START_MS - 3_600_000)
    assert (tick.length_ms, tick.is_idle) == (10_000, False)
    tick.take(START_MS - 3_600_000, START_MS)
    assert tick.end(START_MS) > START_MS + 1000
    assert tick.probe_ms == START_MS + 1000
    assert not tick.is_over(START_MS + 50)
    assert tick.probe_ms == START_MS + 1050
    # The next ones are of now.
    tick.take(START_MS + 1060, START_MS + 1060)
    assert tick.is_over(START_MS + 1061)


def test_a_pause_ends_the_load() -> None:
    tick = of()
    tick.saved(START_MS, 3000, START_MS)
    assert tick.length_ms == 6000
    assert tick.end(START_MS + 200) == START_MS + 200 // 100 * 100 + 100


@given(st.integers(-100_000, 100_000), st.integers(0, 20_000))
def test_a_tick_ends_ahead_of_a_clock_that_jumps(jump_ms: int, spent_ms: int) -> None:
    tick = of()
    tick.end(START_MS)
    tick.saved(START_MS, spent_ms, START_MS)
    now_ms = START_MS + jump_ms
    assert now_ms < tick.end(now_ms) <= now_ms + 20_000
