"""Saves an operator's batches to Cassandra from the operator's own thread, and counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from pyflink.datastream import RuntimeContext

from connectors.cassandra_writer import Writer, WriteReport
from connectors.task_thread import close_writer, open_writer
from udfs.metrics import METRIC_GROUP, Gauge, WindowedQuantiles
from udfs.schemas import DeadLetter, Origin, Reason, SaveBatch, split_record

WriterFactory = Callable[[], Writer]

# The topic header of a refused row that is no event: it came out of the job, not out of Kafka.
TABLE_TOPIC: Final = "cassandra:{}"
_NOWHERE: Final = Origin(-1, -1)


class Saver:
    """Saves each :class:`SaveBatch`; after a tick's last one returns when all is acknowledged.

    A checkpoint barrier cannot pass in between, because an operator saves all batches of a tick
    within one call: what a checkpoint calls saved is saved.

    Args:
        writer_factory: Makes the writer, which holds sockets.
        events_topic: Named in the dead letters of events.
        runtime_context: Of the operator, for its metrics.
    """

    def __init__(
        self, writer_factory: WriterFactory, events_topic: str, runtime_context: RuntimeContext
    ) -> None:
        """Connect, and register the metrics."""
        self._writer = open_writer(writer_factory)
        self._events_topic = events_topic
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

    def save(self, batch: SaveBatch) -> list[DeadLetter]:
        """Save a batch; what Cassandra refused comes back with the last one of a tick."""
        self._writer.save(batch)
        self._event_times.extend([pending.event.ts for pending in batch.events])
        return list(self._settle(self._writer.drain())) if batch.last else []

    def close(self) -> None:
        """Close the connection."""
        close_writer(self._writer)

    def _settle(self, report: WriteReport) -> Iterator[DeadLetter]:
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
            topic = TABLE_TOPIC.format(row.table)
            yield _letter(topic, row.key, row.row, row.detail, _NOWHERE)


def _letter(topic: str, key: str, payload: bytes | None, detail: str, origin: Origin) -> DeadLetter:
    # A key on the wire is bytes, one a character.
    wire = key.encode("utf-8", "replace").decode("latin-1")
    return DeadLetter(topic, wire, payload, Reason.REFUSED, detail, origin)
