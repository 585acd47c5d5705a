"""Saves lists and events to Cassandra: grouped unlogged batches, retried until acknowledged.

The values are serialised here and not by ``PreparedStatement.bind``, which costs more than all
the rest of a row: the columns are known and few. The driver sends them as they are.
"""

from __future__ import annotations

import json
import logging
import math
import struct
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, Final, NamedTuple, Protocol

from cassandra import AuthenticationFailed, ConsistencyLevel, InvalidRequest, Unauthorized
from cassandra.policies import FallthroughRetryPolicy
from cassandra.query import UNSET_VALUE, BatchStatement, BatchType

from connectors.background_sender import BackgroundSender
from connectors.cassandra_schema import (
    DEFAULT_EVENT_TTL_DAYS,
    MAX_LIST_TTL_DAYS,
    SECONDS_A_DAY,
    statement,
    stored_event_id,
    table_of,
)
from connectors.cassandra_session import (
    RECONNECT_AFTER_SECONDS,
    WRITE_PROFILE,
    CassandraOptions,
    connect,
    overlaps,
)
from connectors.patience import TRANSIENT, Patience
from connectors.product_rows import ProductRow, Write, is_row, product_writes
from udfs.schemas import (
    EVENT_TYPES,
    MS_A_DAY,
    Erasure,
    Event,
    PendingEvent,
    ProductChange,
    SaveBatch,
    SavedList,
    SavedProductList,
)

logger = logging.getLogger(__name__)

_INT32: Final = struct.Struct(">i")
_INT64: Final = struct.Struct(">q")
_UINT32: Final = struct.Struct(">I")
_FLOAT: Final = struct.Struct(">f")
# CQL `date` counts days from -5877641-06-23, so that the epoch is 2**31.
_EPOCH_DAY: Final = 2**31
_TYPE_BYTES: Final = {name: name.encode() for name in EVENT_TYPES}
_FLOAT_LENGTH: Final = _INT32.pack(4)
_INSERT_LIST: Final = "insert_recommendations"
_INSERT_EVENT: Final = "insert_event"
_INSERT_PRODUCT_LISTS: Final = "insert_product_lists"
# The driver counts the rows of a batch in two bytes.
_MAX_BATCH_ROWS: Final = 65_535
# What serialising raises for a value that no server could take: a part of a key above 65,535
# bytes, text that is no UTF-8, a number outside of its column's range.
_UNSERIALISABLE: Final = (struct.error, UnicodeError, OverflowError, TypeError)
# Where rows dated far back begin to be looked for: events of earlier times are refused.
_FIRST_DAY: Final = 10_957  # 2000-01-01
# Products whose serialised prefix is kept; the whole catalogue of a large shop's subtask.
_PREFIX_CACHE: Final = 500_000


@dataclass(frozen=True)
class WriterConfig:
    """How the writer groups and retries."""

    batch_bytes: int = 16_000
    """Serialised values a batch, bytes; a server warns above batch_size_warn_threshold (5 KiB
    unless raised) and refuses above batch_size_fail_threshold (50 KiB)."""
    batch_rows: int = 400
    """Rows a batch at the most."""
    in_flight: int = 64
    """Batches sent and not yet acknowledged: with batch_bytes, what the writer holds in memory."""
    backoff_first_s: float = 0.1
    """Wait before the first retry, seconds; doubled a retry, with jitter."""
    backoff_max_s: float = 5.0
    """Longest wait between retries, seconds. There is no last retry: the job waits."""
    reconnect_after_s: float = RECONNECT_AFTER_SECONDS
    """Silence of all servers after which the contact points are resolved again, seconds."""
    list_ttl_seconds: int = 90 * SECONDS_A_DAY
    """How long a list is kept: as long as the profile of its user. At most 5 years."""

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through."""
        for name in ("batch_bytes", "batch_rows", "in_flight", "list_ttl_seconds"):
            if getattr(self, name) < 1:
                msg = f"{name} must be positive"
                raise ValueError(msg)
        if self.batch_rows > _MAX_BATCH_ROWS:
            msg = f"batch_rows must be at most {_MAX_BATCH_ROWS}"
            raise ValueError(msg)
        if self.list_ttl_seconds > MAX_LIST_TTL_DAYS * SECONDS_A_DAY:
            msg = f"list_ttl_seconds must be at most {MAX_LIST_TTL_DAYS} days"
            raise ValueError(msg)
        if not self.reconnect_after_s >= 0:
            msg = "reconnect_after_s must not be negative"
            raise ValueError(msg)
        if not 0 < self.backoff_first_s <= self.backoff_max_s:
            msg = "backoff_first_s must be above 0 and at most backoff_max_s"
            raise ValueError(msg)


class RefusedEvent(NamedTuple):
    """An event that Cassandra will never take, and why."""

    pending: PendingEvent
    detail: str


class RefusedRow(NamedTuple):
    """A row of another kind that Cassandra will never take, and why."""

    table: str
    key: str
    row: bytes
    """The row, JSON."""
    detail: str


@dataclass
class WriteReport:
    """What a drained writer has done since the last report."""

    refused: list[RefusedEvent] = field(default_factory=list)
    refused_rows: list[RefusedRow] = field(default_factory=list)
    retries: int = 0
    rows: int = 0
    reconnects: int = 0
    erasures_unconfirmed: int = 0
    """Erasures of which not every replica has taken part; they are tried again."""
    latencies_ms: list[float] = field(default_factory=list)
    """Time from sending a batch to its acknowledgement, one a batch."""


class Writer(Protocol):
    """What saves batches as they come needs of a writer."""

    def save(self, batch: SaveBatch) -> None:
        """Take a batch; it may still be under way on return."""

    def drain(self) -> WriteReport:
        """Return when everything taken is acknowledged."""

    def close(self) -> None:
        """Let go of connections."""


# What a row was made of, to name it where the server refuses it.
_Source = PendingEvent | SavedList | SavedProductList | Write


class _Row(NamedTuple):
    statement: str
    values: list[Any]
    size: int
    source: _Source


class _Group(NamedTuple):
    rows: list[_Row]
    routing_key: bytes
    replica: Any = None
    """The driver's host that stores all rows; None: it may choose."""


class _Flight(NamedTuple):
    future: Any
    statement: BatchStatement
    group: _Group
    sent_at: float


class CassandraWriter:
    """Writes through one session; not safe for several threads.

    Rows go to the batch of their partition's first replica (as the Spark connector groups), and
    the batch to that replica, so that a coordinator stores what it is sent instead of fanning it
    out. Where the replica is down or fails, the driver's policy chooses another coordinator.
    """

    def __init__(
        self,
        options: CassandraOptions,
        config: WriterConfig,
        *,
        sleep: Callable[[float], None] = time.sleep,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Connect and prepare the statements.

        Args:
            options: Where Cassandra is.
            config: How to group and retry.
            sleep: Waits.
            interrupted: Whether a wait for Cassandra shall end.

        Raises:
            cassandra.cluster.NoHostAvailable: Cassandra cannot be reached.
        """
        self._options = options
        self._config = config
        self._keyspace = options.keyspace
        # Retried here, where the wait holds back the stream, and not blindly inside the driver.
        self._retry_policy = FallthroughRetryPolicy()
        self._patience = Patience(
            self._reconnect,
            first_s=config.backoff_first_s,
            longest_s=config.backoff_max_s,
            reconnect_after_s=config.reconnect_after_s,
            sleep=sleep,
            interrupted=interrupted,
        )
        self._list_ttl = _INT32.pack(config.list_ttl_seconds)
        self._open: dict[object, list[_Row]] = {}
        self._open_bytes: dict[object, int] = {}
        self._open_keys: dict[object, bytes] = {}
        self._flights: deque[_Flight] = deque()
        self._report = WriteReport()
        self._acknowledged_at = -math.inf
        self._prefixes: dict[str, bytes] = {}
        self._prepared: dict[str, Any] = {}
        self._background = BackgroundSender(self._send_in_background, self._not_everywhere)
        self._connect((_INSERT_LIST, _INSERT_EVENT))

    def save(self, batch: SaveBatch) -> None:
        """Serialise and send a batch; blocks while ``in_flight`` batches are unacknowledged."""
        self._ring.refresh()
        single = self._ring.single
        for saved in batch.lists:
            try:
                values, size = encode_list(saved, self._list_ttl, self._prefix)
            except _UNSERIALISABLE as error:
                self._refuse(saved, error)
                continue
            self._add(
                None if single else self._ring.replica(values[0]),
                _Row(_INSERT_LIST, values, size, saved),
                values[0],
            )
        for pending in batch.events:
            try:
                values, size = encode_event(
                    pending.event, batch.variants.get(pending.event.user_id)
                )
                key = b"" if single else _composite_key(values[0], values[1])
            except _UNSERIALISABLE as error:
                self._refuse(pending, error)
                continue
            replica = None if single else self._ring.replica(key)
            self._add(replica, _Row(_INSERT_EVENT, values, size, pending), key)
        self._save_products(batch.products)
        for one in batch.product_lists:
            self._add_product_lists(one)
        for objection in batch.objections:
            self._add_bound(Write("delete_recommendations", (objection.at_us, objection.user_id)))
        if batch.unresolved_scope:
            self.save_scope(batch.unresolved_scope, batch.unresolved, time.time_ns() // 1_000_000)
        for erasure in batch.erasures:
            self._erase(erasure)

    def _save_products(self, changes: Sequence[ProductChange]) -> None:
        """Write the scopes of products, and their rows once those stand.

        After a failure in between, the row still says what the scopes held before.
        """
        rows: list[Write] = []
        for change in changes:
            at_us = change.changed_us
            at_ms = at_us // 1000
            old, new, *between = (
                None if one is None else ProductRow.of(one, at_ms)
                for one in (change.old, change.new, *change.between)
            )
            for write in product_writes(old, new, at_us, change.record, between):
                if is_row(write):
                    rows.append(write)
                else:
                    self._add_bound(write)
        if rows:
            self._settle()
        for write in rows:
            self._add_bound(write)

    def save_scope(self, scope: str, items: Sequence[tuple[str, float]], generated_ms: int) -> None:
        """Take the list of a scope of `trending`: (product_id, score), best first."""
        self._ring.refresh()
        self._add_bound(Write("insert_trending", (scope, items, generated_ms)))

    def _add_product_lists(self, saved: SavedProductList) -> None:
        if not (saved.similar or saved.bought_together):
            self._add_bound(Write("delete_product_lists", (saved.generated_us, saved.product_id)))
            return
        if _INSERT_PRODUCT_LISTS not in self._prepared:
            self._prepared[_INSERT_PRODUCT_LISTS] = self._prepare(_INSERT_PRODUCT_LISTS)
        try:
            values, size = encode_product_lists(saved, self._prefix)
        except _UNSERIALISABLE as error:
            self._refuse(saved, error)
            return
        self._add_row(_Row(_INSERT_PRODUCT_LISTS, values, size, saved), values[0])

    def drain(self) -> WriteReport:
        """Send what is grouped, wait until all of it is acknowledged, and report."""
        self._settle()
        report, self._report = self._report, WriteReport()
        return report

    def close(self) -> None:
        """Close the session; what is not drained stays in the job's state and is replayed."""
        self._background.close()
        self._cluster.shutdown()

    def _prefix(self, product_id: str) -> bytes:
        prefix = self._prefixes.get(product_id)
        if prefix is None:
            if len(self._prefixes) >= _PREFIX_CACHE:
                self._prefixes.clear()
            prefix = self._prefixes[product_id] = item_prefix(product_id)
        return prefix

    def _connect(self, names: Iterable[str]) -> None:
        """Connect, prepare the statements ``names``, and only then let go of what was before."""
        cluster, session = connect(self._options, role="job")
        try:
            prepared = {name: session.prepare(statement(name, self._keyspace)) for name in names}
        except BaseException:
            cluster.shutdown()
            raise
        before = getattr(self, "_cluster", None)
        self._cluster, self._session, self._prepared = cluster, session, prepared
        self._ring = _Ring(cluster.metadata, self._keyspace, self._options.local_dc)
        self._ring.refresh()
        if before is not None:
            before.shutdown()

    def _reconnect(self) -> None:
        """Resolve the contact points again and go on there, if somebody answers."""
        try:
            self._connect(tuple(self._prepared))
        except Exception as error:
            # Whatever it is, what the driver knows already is tried on.
            logger.warning("no new connection to Cassandra: %s", error)
        else:
            self._report.reconnects += 1
            logger.warning("connected to Cassandra anew, as it did not answer where it was")

    def _erase(self, erasure: Erasure) -> None:
        """Delete a user's rows; what was written before stands by then, and is deleted too.

        It is done when a read cannot meet a replica that has not taken part: at once where the
        levels of writes and reads overlap, else when all replicas have answered. For that nobody
        waits; the job erases again for a day.
        """
        self._settle()
        user, now_us = erasure.user_id, time.time_ns() // 1000
        # Rows of a moment ago can be younger than erased_us where they had to be sent again.
        events_us = erasure.erased_us if erasure.repeated else max(erasure.erased_us, now_us)
        last = max(erasure.erased_us, now_us) // 1000 // MS_A_DAY + 1
        days = range(self._first_day(erasure, last), last + 1)
        refused = len(self._report.refused_rows)
        for write in _deletions(erasure, events_us, days):
            bound = self._bind(write)
            if bound is None:
                break  # the user's id is in all of them
            self._add_row(*bound)
        done = self._bind(
            Write("insert_erasure_done", (user, erasure.requested_ms, now_us // 1000))
        )
        self._settle()
        if done is None or len(self._report.refused_rows) > refused:
            return  # what was not deleted is not done; each has a dead letter
        if overlaps(self._options.write_consistency, self._options.read_consistency):
            self._add_row(*done)
        else:
            self._background.add(self._everywhere(_deletions(erasure, events_us, days), done))

    def _first_day(self, erasure: Erasure, last: int) -> int:
        """Return the first day, since the epoch, on which an erased user can have rows."""
        ttl_seconds = self._event_ttl_seconds()
        oldest = max(0, erasure.oldest_ms // MS_A_DAY)
        if ttl_seconds > self._config.list_ttl_seconds and not erasure.repeated:
            # The profile, which knows the oldest day, may have ended before the rows do. Once is
            # enough for what was dated far back: a repetition is for what was written lately.
            return min(oldest, _FIRST_DAY)
        return min(oldest, max(_FIRST_DAY, last - ttl_seconds // SECONDS_A_DAY - 1))

    def _event_ttl_seconds(self) -> int:
        """Return how long the events table keeps a row now."""
        keyspace = self._cluster.metadata.keyspaces.get(self._keyspace)
        table = None if keyspace is None else keyspace.tables.get(table_of(_INSERT_EVENT))
        if table is None:
            return DEFAULT_EVENT_TTL_DAYS * SECONDS_A_DAY
        # 0: for ever.
        return int(table.options.get("default_time_to_live", 0)) or 2**31 - 1

    def _everywhere(
        self, deletions: Iterator[Write], done: tuple[_Row, bytes]
    ) -> Iterator[BatchStatement]:
        """Make the batches that delete at consistency ALL, and the record that it is done."""
        # The record is larger than a deletion: the user, and two times.
        size = max(1, min(self._config.batch_rows, self._config.batch_bytes // done[0].size))
        while writes := list(islice(deletions, size)):
            rows = [bound[0] for write in writes if (bound := self._bind(write)) is not None]
            yield self._batch(_Group(rows, b""), ConsistencyLevel.ALL)
        yield self._batch(_Group([done[0]], done[1]))

    def _send_in_background(self, batch: BatchStatement) -> Any:
        return self._session.execute_async(batch, execution_profile=WRITE_PROFILE)

    def _not_everywhere(self, error: BaseException) -> None:
        # In the driver's thread; `drain` of the next tick reports it.
        self._report.erasures_unconfirmed += 1
        logger.warning("an erasure is not confirmed by all replicas: %s", error)

    def _settle(self) -> None:
        self._send_all()
        while self._flights:
            self._land()

    def _add_bound(self, write: Write) -> None:
        """Add a row of a statement that is not worth a serialiser of its own."""
        bound = self._bind(write)
        if bound is not None:
            self._add_row(*bound)

    def _add_row(self, row: _Row, routing_key: bytes) -> None:
        replica = None if self._ring.single else self._ring.replica(routing_key)
        self._add(replica, row, routing_key)

    def _bind(self, write: Write) -> tuple[_Row, bytes] | None:
        """Return the row of a statement and its routing key; None where it cannot be serialised."""
        if write.statement not in self._prepared:
            self._prepared[write.statement] = self._prepare(write.statement)
        try:
            bound = self._prepared[write.statement].bind(write.values)
            key: bytes = bound.routing_key or b""
        except _UNSERIALISABLE as error:
            self._refuse(write, error)
            return None
        size = sum(len(value) for value in bound.values if isinstance(value, bytes))
        return _Row(write.statement, bound.values, size, write), key

    def _prepare(self, name: str) -> Any:
        """Prepare a statement, however long the server is away.

        Raises:
            cassandra.InvalidRequest: Its table does not exist, or lacks a column.
        """
        for attempt in count(1):
            try:
                return self._session.prepare(statement(name, self._keyspace))
            except TRANSIENT as error:
                self._patience.wait(attempt, error)
        raise AssertionError  # unreachable

    def _send_all(self) -> None:
        for replica in list(self._open):
            self._send_open(replica)

    def _add(self, replica: object, row: _Row, routing_key: bytes) -> None:
        rows = self._open.get(replica)
        if rows is None:
            rows = self._open[replica] = []
            self._open_bytes[replica] = 0
            self._open_keys[replica] = routing_key
        elif (
            self._open_bytes[replica] + row.size > self._config.batch_bytes
            or len(rows) >= self._config.batch_rows
        ):
            self._send_open(replica)
            self._add(replica, row, routing_key)
            return
        rows.append(row)
        self._open_bytes[replica] += row.size

    def _send_open(self, replica: object) -> None:
        rows = self._open.pop(replica)
        del self._open_bytes[replica]
        self._dispatch(_Group(rows, self._open_keys.pop(replica), replica))

    def _dispatch(self, group: _Group) -> None:
        while len(self._flights) >= self._config.in_flight:
            self._land()
        self._flights.append(self._send(group))

    def _send(self, group: _Group) -> _Flight:
        batch = self._batch(group)
        sent_at = time.monotonic()
        up = group.replica is not None and group.replica.is_up
        future = self._session.execute_async(
            batch,
            execution_profile=WRITE_PROFILE,
            # The driver asks this host alone.
            host=group.replica if up else None,
        )
        return _Flight(future, batch, group, sent_at)

    def _batch(self, group: _Group, consistency_level: int | None = None) -> BatchStatement:
        batch = BatchStatement(
            batch_type=BatchType.UNLOGGED,
            retry_policy=self._retry_policy,
            consistency_level=consistency_level,
        )
        prepared = self._prepared
        # The documented add() would bind and inspect each row again.
        batch._statements_and_parameters = [
            (True, prepared[row.statement].query_id, row.values) for row in group.rows
        ]
        batch.is_idempotent = True
        batch.routing_key = group.routing_key or None
        batch.keyspace = self._keyspace
        return batch

    def _land(self) -> None:
        """Wait for the oldest batch; on a failure retry it until it stands or is refused."""
        flight = self._flights.popleft()
        attempt = 0
        while True:
            try:
                flight.future.result()
            except (Unauthorized, AuthenticationFailed):
                raise
            except InvalidRequest as error:
                self._isolate(flight.group, error)
                return
            except TRANSIENT as error:
                self._report.retries += 1
                # After an outage all batches in flight have failed; once one has stood again, the
                # others need not wait for the server once more.
                if flight.sent_at > self._acknowledged_at:
                    attempt += 1
                    self._patience.wait(attempt, error)
                # A host that does not answer can count as up for long.
                flight = self._send(flight.group._replace(replica=None))
            else:
                self._acknowledged_at = time.monotonic()
                self._patience.answered()
                self._report.rows += len(flight.group.rows)
                self._report.latencies_ms.append((self._acknowledged_at - flight.sent_at) * 1000)
                # The driver's futures are cycles. What hangs on them would wait for the cycle
                # collector, and cost it more than all the rest of a tick's objects.
                flight.statement._statements_and_parameters.clear()
                return

    def _isolate(self, group: _Group, error: InvalidRequest) -> None:
        """Find the rows that the server refuses by halving; the others are saved."""
        if len(group.rows) > 1:
            middle = len(group.rows) // 2
            for rows in (group.rows[:middle], group.rows[middle:]):
                part = group._replace(rows=rows)
                self._flights.appendleft(self._send(part))
                self._land()
            return
        (row,) = group.rows
        # A dropped table refuses every row: that is no poisoned row but a failure of the job.
        self._prepare(row.statement)
        self._refuse(row.source, error)

    def _refuse(self, source: _Source, error: Exception) -> None:
        """Report a row that no attempt will save."""
        if isinstance(source, PendingEvent):
            self._report.refused.append(RefusedEvent(source, str(error)))
            return
        if isinstance(source, SavedList):
            name, columns = _INSERT_LIST, {**source._asdict(), "scores": source.scores.tolist()}
        elif isinstance(source, SavedProductList):
            name, columns = _INSERT_PRODUCT_LISTS, source._asdict()
        else:
            name = source.statement
            names = (column.name for column in self._prepared[name].column_metadata)
            columns = dict(zip(names, source.values, strict=True))
        self._report.refused_rows.append(
            RefusedRow(table_of(name), _key_of(columns), _as_json(columns), str(error))
        )


def _deletions(erasure: Erasure, events_us: int, days: range) -> Iterator[Write]:
    """Make the statements that delete a user's list and the events of some days since the epoch."""
    yield Write("delete_recommendations", (erasure.erased_us, erasure.user_id))
    for day in days:
        yield Write("delete_events", (events_us, erasure.user_id, _EPOCH_DAY + day))


def _key_of(columns: Mapping[str, Any]) -> str:
    return next(
        str(columns[name]) for name in ("product_id", "user_id", "scope") if name in columns
    )


def _as_json(columns: Mapping[str, Any]) -> bytes:
    """Encode a row for a person: NaN, which stands for no price, is null."""
    shown = {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in columns.items()
        if name != "record"  # what the other columns say, with long vectors
    }
    # Not msgspec: what is refused may be text that is no UTF-8.
    return json.dumps(shown, default=str).encode()


def item_prefix(product_id: str) -> bytes:
    """Serialise what stands before the score of a list item, CQL tuple<text, float, …>.

    An element is an int32 length and its bytes; so is the item itself within the list.
    """
    raw = product_id.encode()
    return _INT32.pack(len(raw)) + raw + _FLOAT_LENGTH


def encode_list(
    saved: SavedList, ttl: bytes, prefix: Callable[[str], bytes] = item_prefix
) -> tuple[list[bytes], int]:
    """Serialise a list in the order of ``insert_recommendations``.

    Args:
        saved: The list.
        ttl: How long it is kept, seconds, serialised.
        prefix: Makes what stands before the score of an item.

    Returns:
        The CQL values and their size in bytes, with the lengths on the wire.
    """
    scores = saved.scores.astype(">f4").tobytes()
    parts = [_INT32.pack(len(saved.product_ids))]
    # A few interactions are the reasons of a whole list.
    reasons: dict[str, bytes] = {}
    at = 0
    for product_id, reason in zip(saved.product_ids, saved.reasons, strict=True):
        before = prefix(product_id)
        after = reasons.get(reason)
        if after is None:
            raw = reason.encode()
            after = reasons[reason] = _INT32.pack(len(raw)) + raw
        parts += (_INT32.pack(len(before) + 4 + len(after)), before, scores[at : at + 4], after)
        at += 4
    items = b"".join(parts)
    user, space, variant = saved.user_id.encode(), saved.space.encode(), saved.variant.encode()
    names = [product_id.encode() for product_id in saved.excluded]
    excluded = b"".join(
        (_INT32.pack(len(names)), *(_INT32.pack(len(name)) + name for name in names))
    )
    values = [
        user,
        items,
        space,
        _INT64.pack(saved.event_ms),
        _INT64.pack(saved.generated_us // 1000),
        variant,
        excluded,
        _INT64.pack(saved.generated_us),
        ttl,
    ]
    size = len(user) + len(items) + len(space) + len(variant) + len(excluded) + 84
    return values, size


def encode_product_lists(
    saved: SavedProductList, prefix: Callable[[str], bytes] = item_prefix
) -> tuple[list[bytes], int]:
    """Serialise the lists of a product in the order of ``insert_product_lists``.

    Args:
        saved: The lists.
        prefix: Makes what stands before the score of an item.

    Returns:
        The CQL values and their size in bytes, with the lengths on the wire.
    """
    lists = []
    for items in (saved.similar, saved.bought_together):
        parts = [_INT32.pack(len(items))]
        for product_id, score in items:
            before = prefix(product_id)
            parts += (_INT32.pack(len(before) + 4), before, _FLOAT.pack(score))
        lists.append(b"".join(parts))
    values = [
        saved.product_id.encode(),
        *lists,
        _INT64.pack(saved.generated_us // 1000),
        _INT64.pack(saved.generated_us),
    ]
    return values, sum(4 + len(value) for value in values)


def encode_event(event: Event, variant: str | None = None) -> tuple[list[Any], int]:
    """Serialise an event in the order of ``insert_event``; what it does not have stays unset.

    Args:
        event: The event.
        variant: That of its user, where there are several.

    Returns:
        The CQL values and their size in bytes, with the lengths on the wire.
    """
    user = event.user_id.encode()
    event_id = stored_event_id(event.event_id, event.product_id).encode()
    size = len(user) + len(event_id) + 84
    product: Any = UNSET_VALUE
    query: Any = UNSET_VALUE
    session: Any = UNSET_VALUE
    if event.product_id is not None:
        product = event.product_id.encode()
        size += len(product)
    if event.query is not None:
        query = event.query.encode()
        size += len(query)
    if event.session_id is not None:
        session = event.session_id.encode()
        size += len(session)
    named: Any = UNSET_VALUE
    if variant is not None:
        named = variant.encode()
        size += len(named)
    values = [
        user,
        _UINT32.pack(_EPOCH_DAY + event.ts // MS_A_DAY),
        _INT64.pack(event.ts),
        event_id,
        _TYPE_BYTES[event.type],
        product,
        query,
        session,
        UNSET_VALUE if event.dwell_ms is None else _INT32.pack(event.dwell_ms),
        UNSET_VALUE if event.quantity is None else _INT32.pack(event.quantity),
        named,
    ]
    return values, size


def _composite_key(*components: bytes) -> bytes:
    """Serialise a partition key of several columns as the token function wants it."""
    return b"".join(struct.pack(">H", len(part)) + part + b"\0" for part in components)


class _Ring:
    """First replicas by token, rebuilt when the driver's view of the ring changes."""

    def __init__(self, metadata: Any, keyspace: str, local_dc: str | None) -> None:
        self._metadata = metadata
        self._local_dc = local_dc
        self._keyspace = keyspace
        self._token_map: Any = None
        self._tokens: list[int] = []
        self._owners: list[object] = []
        self._token_class: Any = None
        self.single = True

    def refresh(self) -> None:
        token_map = self._metadata.token_map
        if token_map is self._token_map:
            return
        self._token_map = token_map
        self.single = token_map is None or len(self._metadata.all_hosts()) < 2
        if self.single:
            return
        self._token_class = token_map.token_class
        self._tokens = [token.value for token in token_map.ring]
        self._owners = [
            next(
                # The driver has no connections to hosts elsewhere.
                (
                    host
                    for host in token_map.get_replicas(self._keyspace, token)
                    if self._local_dc in (None, host.datacenter)
                ),
                None,
            )
            for token in token_map.ring
        ]

    def replica(self, partition_key: bytes) -> object:
        # Also where it was another ring a moment ago: the writer can connect anew amid a batch.
        if self.single:
            return None
        token = self._token_class.from_key(partition_key).value
        # A node owns the range that ends at its token; after the last token comes the first.
        return self._owners[bisect_left(self._tokens, token) % len(self._owners)]
