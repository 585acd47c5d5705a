"""Saves lists and events to Cassandra: grouped unlogged batches, retried until acknowledged.

The values are serialised here and not by ``PreparedStatement.bind``, which costs more than all
the rest of a row: the columns are known and few. The driver sends them as they are.
"""

from __future__ import annotations

import logging
import math
import random
import struct
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from cassandra import (
    AuthenticationFailed,
    InvalidRequest,
    OperationTimedOut,
    RequestExecutionException,
    Unauthorized,
)
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionException
from cassandra.policies import FallthroughRetryPolicy
from cassandra.protocol import (
    IsBootstrappingErrorMessage,
    OverloadedErrorMessage,
    ServerError,
)
from cassandra.query import UNSET_VALUE, BatchStatement, BatchType

from connectors.cassandra_schema import (
    DEFAULT_EVENT_TTL_DAYS,
    MAX_EVENT_TTL_DAYS,
    statement,
)
from connectors.cassandra_session import WRITE_PROFILE, CassandraOptions, connect
from connectors.product_rows import ProductRow, product_writes
from udfs.schemas import (
    EVENT_TYPES,
    MAX_FUTURE_MS,
    MS_A_DAY,
    Erasure,
    Event,
    PendingEvent,
    SaveBatch,
    SavedList,
)

logger = logging.getLogger(__name__)

# What the list shows as the reason of an item that is near to the user's profile.

_INT32: Final = struct.Struct(">i")
_INT64: Final = struct.Struct(">q")
_UINT32: Final = struct.Struct(">I")
# CQL `date` counts days from -5877641-06-23, so that the epoch is 2**31.
_EPOCH_DAY: Final = 2**31
_TYPE_BYTES: Final = {name: name.encode() for name in EVENT_TYPES}
_FLOAT_LENGTH: Final = _INT32.pack(4)
# Values of ``insert_recommendations``.
_LIST_VALUES: Final = 7
# Products whose serialised prefix is kept; the whole catalogue of a large shop's subtask.
_PREFIX_CACHE: Final = 500_000

_TRANSIENT: Final = (
    NoHostAvailable,
    OperationTimedOut,
    RequestExecutionException,  # timeouts, unavailable, write failure
    ConnectionException,
    # What the driver hands on as the server sent it.
    IsBootstrappingErrorMessage,
    OverloadedErrorMessage,
    ServerError,
)


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
    list_ttl_seconds: int = 90 * 86_400
    """How long a list stays without a new one, seconds: as long as the profile it is made of."""
    backoff_first_s: float = 0.1
    """Wait before the first retry, seconds; doubled a retry, with jitter."""
    backoff_max_s: float = 5.0
    """Longest wait between retries, seconds. There is no last retry: the job waits."""

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through."""
        for name in ("batch_bytes", "batch_rows", "in_flight"):
            if getattr(self, name) < 1:
                msg = f"{name} must be positive"
                raise ValueError(msg)
        if not 0 < self.backoff_first_s <= self.backoff_max_s:
            msg = "backoff_first_s must be above 0 and at most backoff_max_s"
            raise ValueError(msg)


class RefusedEvent(NamedTuple):
    """An event that Cassandra will never take, and why."""

    pending: PendingEvent
    detail: str


@dataclass
class WriteReport:
    """What a drained writer has done since the last report."""

    refused: list[RefusedEvent] = field(default_factory=list)
    retries: int = 0
    rows: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    """Time from sending a batch to its acknowledgement, one a batch."""


class Writer(Protocol):
    """What the sink operator needs of a writer."""

    def save(self, batch: SaveBatch) -> None:
        """Take a batch; it may still be under way on return."""

    def drain(self) -> WriteReport:
        """Return when everything taken is acknowledged."""

    def close(self) -> None:
        """Let go of connections."""


class _Row(NamedTuple):
    query_id: bytes
    values: list[Any]
    size: int
    pending: PendingEvent | None


class _Group(NamedTuple):
    rows: list[_Row]
    routing_key: bytes


class _Flight(NamedTuple):
    future: Any
    statement: BatchStatement
    group: _Group
    sent_at: float


class CassandraWriter:
    """Writes through one session; not safe for several threads.

    Rows go to the batch of their partition's first replica (as the Spark connector groups), so
    that a coordinator stores what it is sent instead of fanning it out.
    """

    def __init__(
        self,
        options: CassandraOptions,
        config: WriterConfig,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Connect and prepare the statements.

        Raises:
            cassandra.cluster.NoHostAvailable: Cassandra cannot be reached.
        """
        self._config = config
        self._sleep = sleep
        self._cluster, self._session = connect(options, role="job")
        self._keyspace = options.keyspace
        self._insert_list = self._session.prepare(
            statement("insert_recommendations", options.keyspace)
        )
        self._insert_list_and_excluded = self._session.prepare(
            statement("insert_recommendations_and_excluded", options.keyspace)
        )
        self._insert_event = self._session.prepare(statement("insert_event", options.keyspace))
        self._prepared: dict[str, Any] = {}
        self._ring = _Ring(self._cluster.metadata, options.keyspace)
        self._open: dict[object, list[_Row]] = {}
        self._open_bytes: dict[object, int] = {}
        self._open_keys: dict[object, bytes] = {}
        self._flights: deque[_Flight] = deque()
        self._report = WriteReport()
        self._acknowledged_at = -math.inf
        self._prefixes: dict[str, bytes] = {}
        # Retried here, where the wait holds back the stream, and not blindly inside the driver.
        self._retry_policy = FallthroughRetryPolicy()

    def save(self, batch: SaveBatch) -> None:
        """Serialise and send a batch; blocks while ``in_flight`` batches are unacknowledged."""
        list_id, event_id = self._insert_list.query_id, self._insert_event.query_id
        excluded_id = self._insert_list_and_excluded.query_id
        self._ring.refresh()
        single = self._ring.single
        for saved in batch.lists:
            values, size = encode_list(saved, self._prefix)
            query_id = list_id if len(values) == _LIST_VALUES else excluded_id
            self._add(
                None if single else self._ring.replica(values[0]),
                _Row(query_id, values, size, None),
                values[0],
            )
        for pending in batch.events:
            values, size = encode_event(pending.event, batch.variants.get(pending.event.user_id))
            if single:
                self._add(None, _Row(event_id, values, size, pending), b"")
            else:
                key = _composite_key(values[0], values[1])
                self._add(self._ring.replica(key), _Row(event_id, values, size, pending), key)
        for change in batch.products:
            at_ms = change.changed_us // 1000
            old, new = (None if one is None else ProductRow.of(one, at_ms) for one in change[:2])
            for write in product_writes(old, new, change.changed_us):
                self._add_bound(write.statement, write.values)
        for erasure in batch.erasures:
            self._erase(erasure)
        if batch.products:
            # They come one by one and seldom: what waits for more would wait for long.
            self._send_all()

    def save_scope(self, scope: str, items: Sequence[tuple[str, float]], generated_ms: int) -> None:
        """Take the list of a scope of `trending`: (product_id, score), best first."""
        self._ring.refresh()
        self._add_bound("insert_trending", (scope, items, generated_ms))

    def drain(self) -> WriteReport:
        """Send what is grouped, wait until all of it is acknowledged, and report."""
        self._send_all()
        while self._flights:
            self._land()
        report, self._report = self._report, WriteReport()
        return report

    def close(self) -> None:
        """Close the session; what is not drained stays in the job's state and is replayed."""
        self._cluster.shutdown()

    def _prefix(self, product_id: str) -> bytes:
        prefix = self._prefixes.get(product_id)
        if prefix is None:
            if len(self._prefixes) >= _PREFIX_CACHE:
                self._prefixes.clear()
            prefix = self._prefixes[product_id] = item_prefix(product_id)
        return prefix

    def _erase(self, erasure: Erasure) -> None:
        """Delete a user's rows; what was written before stands by then, and is deleted too."""
        self._send_all()
        while self._flights:
            self._land()
        user, erased_ms = erasure.user_id, erasure.erased_us // 1000
        self._add_bound("delete_recommendations", (erasure.erased_us, user))
        last = (erased_ms + MAX_FUTURE_MS) // MS_A_DAY
        first = min(erasure.oldest_ms // MS_A_DAY, last - DEFAULT_EVENT_TTL_DAYS - 1)
        for day in range(max(first, last - MAX_EVENT_TTL_DAYS), last + 1):
            self._add_bound("delete_events", (user, _EPOCH_DAY + day))
        self._send_all()
        while self._flights:
            self._land()
        self._add_bound("insert_erasure_done", (user, erasure.requested_ms, erased_ms))

    def _add_bound(self, name: str, values: tuple[Any, ...]) -> None:
        """Add a row of a statement that is not worth a serialiser of its own."""
        prepared = self._prepared.get(name)
        if prepared is None:
            prepared = self._session.prepare(statement(name, self._keyspace))
            self._prepared[name] = prepared
        bound = prepared.bind(values)
        size = sum(len(value) for value in bound.values if isinstance(value, bytes))
        key = bound.routing_key or b""
        replica = None if self._ring.single else self._ring.replica(key)
        self._add(replica, _Row(prepared.query_id, bound.values, size, None), key)

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
        self._dispatch(_Group(rows, self._open_keys.pop(replica)))

    def _dispatch(self, group: _Group) -> None:
        while len(self._flights) >= self._config.in_flight:
            self._land()
        self._flights.append(self._send(group))

    def _send(self, group: _Group) -> _Flight:
        batch = BatchStatement(batch_type=BatchType.UNLOGGED, retry_policy=self._retry_policy)
        # The documented add() would bind and inspect each row again.
        batch._statements_and_parameters = [(True, row.query_id, row.values) for row in group.rows]
        batch.is_idempotent = True
        batch.routing_key = group.routing_key or None
        batch.keyspace = self._keyspace
        sent_at = time.monotonic()
        future = self._session.execute_async(batch, execution_profile=WRITE_PROFILE)
        return _Flight(future, batch, group, sent_at)

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
            except _TRANSIENT as error:
                self._report.retries += 1
                # After an outage all batches in flight have failed; once one has stood again, the
                # others need not wait for the server once more.
                if flight.sent_at > self._acknowledged_at:
                    attempt += 1
                    self._wait(attempt, error)
                flight = self._send(flight.group)
            else:
                self._acknowledged_at = time.monotonic()
                self._report.rows += len(flight.group.rows)
                self._report.latencies_ms.append((self._acknowledged_at - flight.sent_at) * 1000)
                # The driver's futures are cycles. What hangs on them would wait for the cycle
                # collector, and cost it more than all the rest of a tick's objects.
                flight.statement._statements_and_parameters.clear()
                return

    def _wait(self, attempt: int, error: Exception) -> None:
        limit = min(
            self._config.backoff_max_s, self._config.backoff_first_s * 2 ** min(attempt - 1, 20)
        )
        logger.warning("write attempt %d failed, waiting: %s", attempt, error)
        self._sleep(limit * random.uniform(0.5, 1.0))

    def _isolate(self, group: _Group, error: InvalidRequest) -> None:
        """Find the rows that the server refuses by halving; the others are saved."""
        if len(group.rows) > 1:
            middle = len(group.rows) // 2
            for rows in (group.rows[:middle], group.rows[middle:]):
                part = _Group(rows, group.routing_key)
                self._flights.appendleft(self._send(part))
                self._land()
            return
        pending = group.rows[0].pending
        # A dropped table refuses every row: that is no poisoned event but a failure of the job.
        for name in ("select_recommendations", "select_events"):
            self._session.prepare(statement(name, self._keyspace))
        if pending is None:
            msg = f"Cassandra refused a row that is no event: {error}"
            raise RuntimeError(msg) from error
        self._report.refused.append(RefusedEvent(pending, str(error)))


def item_prefix(product_id: str) -> bytes:
    """Serialise what stands before the score of a list item, CQL tuple<text, float, text>.

    An element is an int32 length and its bytes; so is the item itself within the list.
    """
    raw = product_id.encode()
    return _INT32.pack(len(raw)) + raw + _FLOAT_LENGTH


def encode_list(
    saved: SavedList, prefix: Callable[[str], bytes] = item_prefix
) -> tuple[list[bytes], int]:
    """Serialise a list in the order of ``insert_recommendations``.

    Where products are excluded, in that of ``insert_recommendations_and_excluded``.

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
    values = [
        user,
        items,
        space,
        _INT64.pack(saved.event_ms),
        _INT64.pack(saved.generated_us // 1000),
        variant,
        _INT64.pack(saved.generated_us),
    ]
    size = len(user) + len(items) + len(space) + len(variant) + 74
    if saved.excluded:
        names = [product_id.encode() for product_id in saved.excluded]
        joined = b"".join(_INT32.pack(len(name)) + name for name in names)
        values.insert(-1, _INT32.pack(len(names)) + joined)
        size += len(values[-2])
    return values, size


def encode_event(event: Event, variant: str | None = None) -> tuple[list[Any], int]:
    """Serialise an event in the order of ``insert_event``; what it does not have stays unset.

    Args:
        event: The event.
        variant: That of its user, where there are several.

    Returns:
        The CQL values and their size in bytes, with the lengths on the wire.
    """
    user, event_id = event.user_id.encode(), event.event_id.encode()
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

    def __init__(self, metadata: Any, keyspace: str) -> None:
        self._metadata = metadata
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
            next(iter(token_map.get_replicas(self._keyspace, token)), None)
            for token in token_map.ring
        ]

    def replica(self, partition_key: bytes) -> object:
        token = self._token_class.from_key(partition_key).value
        # A node owns the range that ends at its token; after the last token comes the first.
        return self._owners[bisect_left(self._tokens, token) % len(self._owners)]
