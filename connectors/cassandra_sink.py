"""Operator: the Cassandra sink, chained behind the lookup; its output is the dead letters."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol, TypeVar

from pyflink.common import Row
from pyflink.datastream import RuntimeContext
from pyflink.datastream.functions import ProcessFunction

from connectors.cassandra_writer import Writer, WriteReport
from connectors.dead_letters import to_row
from udfs.memory import BatchReference, resolve
from udfs.metrics import METRIC_GROUP, Gauge, WindowedQuantiles
from udfs.schemas import DeadLetter, Origin, Reason, SaveBatch, split_record

logger = logging.getLogger(__name__)

WriterFactory = Callable[[], Writer]


class Closeable(Protocol):
    """What holds connections."""

    def close(self) -> None:
        """Let go of them."""


_Closeable = TypeVar("_Closeable", bound=Closeable)

# The topic header of a refused row that is no event: it came out of the job, not out of Kafka.
_TABLE_TOPIC: Final = "cassandra:{}"
_NOWHERE: Final = Origin(-1, -1)

# Writers of this process by the native id of their task's thread.
_writers: dict[int, Closeable] = {}
_THREADS: Final = Path("/proc/self/task")


def task_interrupted() -> bool:
    """Whether Flink has asked the thread that calls to end, as it does when it cancels its task.

    Flink interrupts a task's thread; Python code in it does not notice that by itself, and what
    waits on makes Flink's watchdog end the whole TaskManager.
    """
    try:
        from pemja import findClass  # there in thread mode only
    except ImportError:
        return False
    return bool(findClass("java.lang.Thread").currentThread().isInterrupted())


def close_orphans() -> None:
    """Close the writers whose task's thread has ended.

    In thread mode PyFlink 2.3 does not close the Python functions of a task that failed or was
    cancelled, and the TaskManager's process goes on: each restart would leave a session with its
    threads behind.
    """
    if not _THREADS.is_dir():  # not Linux: sessions of failed tasks stay until the process ends
        return
    for thread in list(_writers):
        if thread == threading.get_native_id() or not (_THREADS / str(thread)).exists():
            # Another task of this process may be at the same clearing up.
            orphan = _writers.pop(thread, None)
            if orphan is not None:
                logger.info("closing the Cassandra session that an ended task left open")
                orphan.close()


def open_writer(factory: Callable[[], _Closeable]) -> _Closeable:
    """Make the writer of this task's thread."""
    close_orphans()
    writer = factory()
    _writers[threading.get_native_id()] = writer
    return writer


def close_writer(writer: Closeable) -> None:
    """Close the writer of this task's thread."""
    _writers.pop(threading.get_native_id(), None)
    writer.close()


class CassandraSink(ProcessFunction):
    """Saves each :class:`SaveBatch`; after a tick's last one returns only when all is acknowledged.

    A checkpoint barrier cannot pass in between, because all batches of a tick come out of one call
    of the operator before, chained into the same task: what a checkpoint calls saved is saved.
    """

    def __init__(self, writer_factory: WriterFactory, events_topic: str) -> None:
        """Keep how to make the writer, which holds sockets and is made where it runs."""
        self._writer_factory = writer_factory
        self._events_topic = events_topic

    def open(self, runtime_context: RuntimeContext) -> None:
        """Connect, and register the metrics."""
        self._writer = open_writer(self._writer_factory)
        self._event_times: list[int] = []
        self._freshness = WindowedQuantiles()
        self._latency = WindowedQuantiles()
        group = runtime_context.get_metrics_group().add_group(METRIC_GROUP)
        self._gauges = [
            (Gauge(group, f"{name}_p{q}_ms"), quantiles, q / 100)
            for name, quantiles in (
                ("freshness", self._freshness),
                ("write_latency", self._latency),
            )
            for q in (50, 99)
        ]
        self._retries = group.counter("write_retries")
        self._rows = group.counter("rows_written")
        self._refused = group.add_group("reason", Reason.REFUSED.value).counter("refused_events")
        self._refused_rows = group.counter("refused_rows")
        self._reconnects = group.counter("reconnects")
        self._unconfirmed = group.counter("erasures_unconfirmed")

    def process_element(
        self, value: SaveBatch | BatchReference | DeadLetter, _ctx: ProcessFunction.Context
    ) -> Iterator[Row]:
        """Save a batch or pass a dead letter on."""
        if isinstance(value, DeadLetter):
            yield to_row(value)
            return
        batch = resolve(value) if isinstance(value, BatchReference) else value
        self._writer.save(batch)
        self._event_times.extend([pending.event.ts for pending in batch.events])
        if batch.last:
            yield from self._settle(self._writer.drain())

    def close(self) -> None:
        """Close the connection."""
        # Flink also closes what failed to open.
        if hasattr(self, "_writer"):
            close_writer(self._writer)

    def _settle(self, report: WriteReport) -> Iterator[Row]:
        now_ms = time.time_ns() // 1_000_000
        self._freshness.extend([now_ms - ts for ts in self._event_times])
        self._event_times.clear()
        self._latency.extend(report.latencies_ms)
        for gauge, quantiles, q in self._gauges:
            gauge.set(quantiles.quantile(q))
        self._retries.inc(report.retries)
        self._rows.inc(report.rows)
        self._refused.inc(len(report.refused))
        self._refused_rows.inc(len(report.refused_rows))
        self._reconnects.inc(report.reconnects)
        self._unconfirmed.inc(report.erasures_unconfirmed)
        for refused in report.refused:
            event = refused.pending.event
            payload, origin = split_record(refused.pending.record)
            yield _letter(self._events_topic, event.user_id, payload, refused.detail, origin)
        for row in report.refused_rows:
            topic = _TABLE_TOPIC.format(row.table)
            yield _letter(topic, row.key, row.row, row.detail, _NOWHERE)


def _letter(topic: str, key: str, payload: bytes | None, detail: str, origin: Origin) -> Row:
    # A key on the wire is bytes, one a character.
    wire = key.encode("utf-8", "replace").decode("latin-1")
    return to_row(DeadLetter(topic, wire, payload, Reason.REFUSED, detail, origin))
