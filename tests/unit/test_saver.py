"""The saver: it saves, drains at the end of a tick, and returns what is refused."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors.cassandra_writer import RefusedEvent, RefusedRow, WriteReport
from connectors.saver import Saver
from connectors.task_thread import close_orphans, close_writer, open_writer, task_interrupted
from local.processes import wait_until
from tests.unit.builders import NOW_MS, event, event_json, pending
from udfs.catalogue import Catalogue
from udfs.recommend import RecommendConfig, Touched, recommend
from udfs.schemas import DeadLetter, Origin, Reason, SaveBatch, decode_event


class Counter:
    def __init__(self) -> None:
        self.value = 0

    def inc(self, n: int = 1) -> None:
        self.value += n


class Metrics:
    """Runtime context and metric group in one."""

    def __init__(self) -> None:
        self.counters: dict[str, Counter] = {}

    def get_metrics_group(self) -> Metrics:
        return self

    def add_group(self, *_: str) -> Metrics:
        return self

    def counter(self, name: str) -> Counter:
        return self.counters.setdefault(name, Counter())


class RecordingWriter:
    def __init__(self) -> None:
        self.calls: list[SaveBatch | str] = []
        self.report = WriteReport()

    def save(self, batch: SaveBatch) -> None:
        self.calls.append(batch)

    def drain(self) -> WriteReport:
        self.calls.append("drain")
        report, self.report = self.report, WriteReport()
        return report

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def writer() -> RecordingWriter:
    return RecordingWriter()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def saver(writer: RecordingWriter, metrics: Metrics) -> Iterator[Saver]:
    made = Saver(lambda: writer, "clicks", metrics)
    yield made
    made.close()


def test_only_the_last_batch_of_a_tick_is_waited_for(saver: Saver, writer: RecordingWriter) -> None:
    first, second = SaveBatch(last=False), SaveBatch()
    assert saver.save(first) == []
    assert writer.calls == [first]
    assert saver.save(second) == []
    assert writer.calls == [first, second, "drain"]


def test_refused_event_becomes_a_dead_letter_as_it_came(
    saver: Saver, writer: RecordingWriter, metrics: Metrics
) -> None:
    payload = event_json(user_id="ü漢")
    made = pending(event(user_id="ü漢"), payload, offset=42)
    writer.report = WriteReport(refused=[RefusedEvent(made, "key too long")], retries=2, rows=5)
    key = "ü漢".encode().decode("latin-1")
    assert saver.save(SaveBatch(events=[made])) == [
        DeadLetter("clicks", key, payload, Reason.REFUSED, "key too long", Origin(0, 42))
    ]
    counts = {name: counter.value for name, counter in metrics.counters.items()}
    assert (counts["write_retries"], counts["rows_written"]) == (2, 5)
    assert counts["refused_events"] == 1
    assert saver.save(SaveBatch()) == []


def test_refused_row_of_another_kind_becomes_a_dead_letter_that_is_not_of_kafka(
    saver: Saver, writer: RecordingWriter, metrics: Metrics
) -> None:
    row = RefusedRow("products_by_scope", "ü1", b'{"scope":"x"}', "key too long")
    writer.report = WriteReport(refused_rows=[row], reconnects=2, erasures_unconfirmed=3)
    key = "ü1".encode().decode("latin-1")
    assert saver.save(SaveBatch()) == [
        DeadLetter(
            "cassandra:products_by_scope",
            key,
            b'{"scope":"x"}',
            Reason.REFUSED,
            "key too long",
            Origin(-1, -1),
        )
    ]
    counts = {name: counter.value for name, counter in metrics.counters.items()}
    assert (counts["refused_rows"], counts["reconnects"]) == (1, 2)
    assert counts["erasures_unconfirmed"] == 3
    assert counts["refused_events"] == 0


def test_without_a_java_thread_nothing_is_interrupted() -> None:
    assert task_interrupted() is False


def test_freshness_is_from_event_time_to_acknowledgement(
    saver: Saver, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.saver.time.time_ns", lambda: 10_000 * 1_000_000)
    # Of an unfinished tick, then of its last batch.
    saver.save(SaveBatch(events=[pending(event(ts=9_000))], last=False))
    assert metrics.counters["freshness_p50_ms"].value == 0
    saver.save(SaveBatch(events=[pending(event(ts=9_600))] * 2))
    assert metrics.counters["freshness_p50_ms"].value == 400
    assert metrics.counters["freshness_p99_ms"].value == pytest.approx(988)


def test_failure_of_the_writer_fails_the_call(
    saver: Saver, writer: RecordingWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> WriteReport:
        msg = "refused a list"
        raise RuntimeError(msg)

    monkeypatch.setattr(writer, "drain", fail)
    with pytest.raises(RuntimeError, match="refused a list"):
        saver.save(SaveBatch())


def test_close_closes_the_writer(saver: Saver, writer: RecordingWriter) -> None:
    saver.close()
    assert writer.calls == ["close"]


def has_ended(thread: threading.Thread) -> bool:
    return not Path(f"/proc/self/task/{thread.native_id}").exists()


class TestOrphans:
    """Writers of tasks that ended without being closed, as failed ones do in thread mode."""

    @staticmethod
    def orphan(*writers: Any) -> None:
        """Open each writer in a thread of its own; then all threads end."""
        all_open = threading.Barrier(len(writers))

        def task(writer: Any) -> None:
            open_writer(lambda: writer)
            all_open.wait(10)

        tasks = [threading.Thread(target=task, args=(writer,)) for writer in writers]
        for one in tasks:
            one.start()
        for one in tasks:
            one.join()
            # `join` returns a moment before the operating system has forgotten the thread.
            wait_until(functools.partial(has_ended, one), 10, what="its end")

    def test_they_are_closed_when_the_next_task_opens(self) -> None:
        left = RecordingWriter()
        self.orphan(left)
        mine = RecordingWriter()

        open_writer(lambda: mine)
        close_writer(mine)

        assert left.calls == ["close"]
        assert mine.calls == ["close"]

    def test_two_tasks_can_clear_up_at_the_same_time(self) -> None:
        class Slow(RecordingWriter):
            """While it is closed, the other task clears up the rest."""

            def close(self) -> None:
                close_orphans()
                super().close()

        left = [Slow(), Slow(), Slow()]
        self.orphan(*left)

        close_orphans()

        assert [writer.calls for writer in left] == [["close"]] * 3


def test_refused_event_is_saved_when_its_letter_is_sent_back(
    saver: Saver, writer: RecordingWriter
) -> None:
    """As the runbook says: mend the schema, then replay; the profile has moved already."""
    user = Touched("u", None)

    def take(key: bytes, value: bytes) -> SaveBatch:
        made = decode_event(key.decode("latin-1"), value, NOW_MS)
        user.events.append(pending(made, value))
        (batch,) = recommend([user], Catalogue(), RecommendConfig(), NOW_MS * 1000)
        return batch

    first = take(b"u", event_json())
    writer.report = WriteReport(refused=[RefusedEvent(first.events[0], "Unknown identifier")])
    (letter,) = saver.save(first)

    replayed = take(letter.key.encode("latin-1"), letter.payload or b"")
    assert (replayed.events, replayed.duplicates) == (first.events, 1)
    assert replayed.updates == 0
    assert saver.save(replayed) == []
    assert writer.calls[-2] is replayed

    # A retry whose client took the time anew would be a second row.
    retry = take(b"u", event_json(ts=NOW_MS + 1500))
    assert (retry.events, retry.duplicates, retry.updates) == ([], 1, 0)
    assert user.profile is not None
    assert len(user.profile.interactions()) == 1
