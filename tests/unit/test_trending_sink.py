"""The operators that save trending lists: which epoch is shown, and when it is written."""

from __future__ import annotations

import time
from typing import Any

import pytest
from pyflink.common import Row, RowKind

from connectors.cassandra_writer import RefusedRow, WriteReport
from connectors.trending_sink import NO_EPOCH, ListChanges, TrendingSink
from tests.unit.test_saver import Metrics
from udfs.trending import Items, TrendingConfig

CONFIG = TrendingConfig(half_life_hours=1)
EPOCH = 7000
P1, P2 = "cDE=", "cDI="


class Context:
    """Runtime context, keyed context, timer service and value state in one, of one key."""

    def __init__(self) -> None:
        self.stored: Any = None
        self.timers: set[int] = set()
        self.metrics = Metrics()

    def get_metrics_group(self) -> Metrics:
        return self.metrics

    def get_state(self, _descriptor: object) -> Context:
        return self

    def value(self) -> Any:
        return self.stored

    def update(self, value: Any) -> None:
        self.stored = value

    def timer_service(self) -> Context:
        return self

    def register_processing_time_timer(self, timestamp: int) -> None:
        self.timers.add(timestamp)

    def get_current_key(self) -> str:
        return "all"


class Recorder:
    def __init__(self) -> None:
        self.pending: list[tuple[str, Items]] = []
        self.saved: list[tuple[str, Items]] = []
        self.closed = False
        self.report = WriteReport()

    def save_scope(self, scope: str, items: Items, generated_ms: int) -> None:
        assert generated_ms == time.time_ns() // 1_000_000
        self.pending.append((scope, items))

    def drain(self) -> WriteReport:
        self.saved += self.pending
        self.pending.clear()
        return self.report

    def close(self) -> None:
        self.closed = True


class Harness:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.context, self.writer = Context(), Recorder()
        self._patch = monkeypatch
        self.at(EPOCH * CONFIG.epoch_ms + CONFIG.half_life_ms)
        self.sink = TrendingSink(lambda: self.writer, CONFIG)
        self.sink.open(self.context)

    def at(self, now_ms: int) -> None:
        self._patch.setattr(time, "time_ns", lambda: now_ms * 1_000_000)

    def take(self, change: str) -> list[tuple[str, Items]]:
        assert list(self.sink.process_element(change, self.context)) == []
        return self.writer.saved

    def fire(self, timestamp: int) -> list[tuple[str, Items]]:
        assert list(self.sink.on_timer(timestamp, self.context)) == []
        return self.writer.saved


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Harness:
    return Harness(monkeypatch)


def test_a_list_is_saved_with_its_scores_of_now(harness: Harness) -> None:
    # One half-life after the landmark.
    assert harness.take(f"{EPOCH} 2.0 {P1},8.0 {P2}") == [("all", [("p2", 4.0), ("p1", 1.0)])]


def test_the_next_epochs_list_waits_for_its_epoch(harness: Harness) -> None:
    begins = (EPOCH + 1) * CONFIG.epoch_ms
    harness.take(f"{EPOCH} 2.0 {P1}")

    assert len(harness.take(f"{EPOCH + 1} 5.0 {P2}")) == 1
    assert harness.context.timers == {begins}
    harness.at(begins)
    assert harness.fire(begins)[1:] == [("all", [("p2", 5.0)])]


def test_an_old_epochs_list_does_not_come_back(harness: Harness) -> None:
    harness.take(f"{EPOCH} 2.0 {P1}")

    assert len(harness.take(f"{EPOCH - 1} 9.0 {P2}")) == 1
    assert harness.take(f"{EPOCH} ")[1:] == [("all", [])]


def test_a_quiet_scope_keeps_the_list_of_an_older_epoch(harness: Harness) -> None:
    saved = harness.take(f"{EPOCH - 1} {2.0**65!r} {P1}")

    assert saved == [("all", [("p1", 1.0)])]


def test_the_newest_products_keep_their_times(harness: Harness) -> None:
    assert harness.take(f"{NO_EPOCH} 1.7E9 {P1}") == [("all", [("p1", 1.7e9)])]


def test_a_refused_list_is_counted_and_the_next_one_saved(harness: Harness) -> None:
    harness.writer.report = WriteReport(refused_rows=[RefusedRow("trending", "all", b"{}", "no")])
    harness.take(f"{EPOCH} 2.0 {P1}")
    harness.writer.report = WriteReport(rows=1)
    harness.take(f"{EPOCH} 4.0 {P1}")

    counters = harness.context.metrics.counters
    assert counters["refused_rows"].value == 1
    assert counters["trending_lists_written"].value == 1


def test_the_writer_is_closed(harness: Harness) -> None:
    harness.sink.close()

    assert harness.writer.closed


def test_changes_carry_what_is_there_now() -> None:
    def change(kind: RowKind) -> Row:
        row = Row("all", EPOCH, f"2.0 {P1}")
        row.set_row_kind(kind)
        return row

    operator = ListChanges()
    found = {kind: list(operator.process_element(change(kind), None)) for kind in RowKind}

    there = [Row("all", f"{EPOCH} 2.0 {P1}")]
    assert found == {
        RowKind.INSERT: there,
        RowKind.UPDATE_BEFORE: [],
        RowKind.UPDATE_AFTER: there,
        RowKind.DELETE: [Row("all", f"{EPOCH} ")],
    }
