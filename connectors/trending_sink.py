"""Operator: saves the trending and newest lists, one a scope, as Flink's SQL makes them."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from pyflink.common import Row, RowKind, Types
from pyflink.common.typeinfo import TypeInformation
from pyflink.datastream import KeyedProcessFunction, ProcessFunction, RuntimeContext
from pyflink.datastream.state import ValueStateDescriptor

from connectors.cassandra_writer import WriteReport
from connectors.task_thread import close_writer, open_writer
from udfs.metrics import METRIC_GROUP
from udfs.trending import Items, TrendingConfig, current, parse_items, scaled

logger = logging.getLogger(__name__)

# The epoch of lists that do not decay.
NO_EPOCH: Final = -1


class ScopeWriter(Protocol):
    """What the operator needs of a writer."""

    def save_scope(self, scope: str, items: Items, generated_ms: int) -> None:
        """Take a list; it may still be under way on return."""

    def drain(self) -> WriteReport:
        """Return when everything taken is acknowledged."""

    def close(self) -> None:
        """Let go of connections."""


def row_type() -> TypeInformation:
    """Type of the rows that SQL makes: scope, epoch, list (as ``udfs.trending.parse_items``)."""
    return Types.ROW([Types.STRING(), Types.LONG(), Types.STRING()])


def change_type() -> TypeInformation:
    """Type of the rows that :class:`TrendingSink` takes: scope, and its epoch and list as text."""
    return Types.ROW([Types.STRING(), Types.STRING()])


class ListChanges(ProcessFunction):
    """Makes rows of ``change_type`` of a changelog; a deleted list is an empty one.

    An operator of its own, since a keyed one is handed the second field of a row alone: without
    the row's kind.
    """

    def process_element(self, value: Row, _ctx: ProcessFunction.Context) -> Iterator[Row]:
        """Pass on what is there now."""
        kind = value.get_row_kind()
        if kind != RowKind.UPDATE_BEFORE:
            scope, epoch, items = value
            # Emptied, not forgotten: an older epoch's list must not come back in its place.
            yield Row(scope, f"{epoch} {'' if kind == RowKind.DELETE else items}")


class TrendingSink(KeyedProcessFunction):
    """Keeps the lists of each scope by epoch and saves that of the current one.

    It returns only when Cassandra has acknowledged, so a checkpoint barrier does not overtake a
    list; while Cassandra is away it waits and retries as the writer of the main chain does.
    """

    def __init__(self, writer_factory: Callable[[], ScopeWriter], config: TrendingConfig) -> None:
        """Keep how to make the writer, which holds sockets and is made where it runs."""
        self._writer_factory = writer_factory
        self._config = config

    def open(self, runtime_context: RuntimeContext) -> None:
        """Connect, and register the metrics."""
        self._writer = open_writer(self._writer_factory)
        # Epoch -> list; pickled as one value, since a scope has one or two.
        self._lists = runtime_context.get_state(
            ValueStateDescriptor("lists", Types.PICKLED_BYTE_ARRAY())
        )
        group = runtime_context.get_metrics_group().add_group(METRIC_GROUP)
        self._saved = group.counter("trending_lists_written")
        self._retries = group.counter("trending_write_retries")
        self._refused = group.counter("refused_rows")

    def process_element(self, value: str, ctx: KeyedProcessFunction.Context) -> Iterator[Row]:
        """Take a change of a scope's list."""
        epoch, _, items = value.partition(" ")
        lists = {**self._read(), int(epoch): items}
        self._write(int(epoch), lists, ctx)
        yield from ()

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[Row]:
        """Save the list of the epoch that has begun."""
        self._write(self._config.epoch_of(timestamp), self._read(), ctx)
        yield from ()

    def close(self) -> None:
        """Close the connection."""
        # Flink also closes what failed to open.
        if hasattr(self, "_writer"):
            close_writer(self._writer)

    def _read(self) -> dict[int, str]:
        packed = self._lists.value()
        return {} if packed is None else pickle.loads(packed)

    def _write(
        self, changed: int, lists: dict[int, str], ctx: KeyedProcessFunction.Context
    ) -> None:
        now_ms = time.time_ns() // 1_000_000
        shown = current(lists, self._config.epoch_of(now_ms))
        if shown is not None:
            lists = {epoch: text for epoch, text in lists.items() if epoch >= shown}
        self._lists.update(pickle.dumps(lists))
        for epoch in lists:
            if shown is None or epoch > shown:
                ctx.timer_service().register_processing_time_timer(epoch * self._config.epoch_ms)
        if shown != changed:
            return
        items = parse_items(lists[shown]) if lists[shown] else []
        if shown != NO_EPOCH:
            items = scaled(items, self._config.decay(shown, now_ms))
        self._writer.save_scope(str(ctx.get_current_key()), items, now_ms)
        report = self._writer.drain()
        self._retries.inc(report.retries)
        # No dead letter: the next change of the scope makes the list anew.
        self._refused.inc(len(report.refused_rows))
        for row in report.refused_rows:
            logger.error("Cassandra refuses the list of scope %.200s: %s", row.key, row.detail)
        self._saved.inc(1 - min(1, len(report.refused_rows)))
