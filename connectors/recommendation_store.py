"""What the service reads, by one protocol: lists, events, products, trending; and erasures."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NoReturn, Protocol, TypeVar

import msgspec
from cassandra import (
    AuthenticationFailed,
    DriverException,
    OperationTimedOut,
    RequestValidationException,
    Timeout,
)
from cassandra.cluster import Cluster, NoHostAvailable, ResponseFuture
from cassandra.connection import ConnectionBusy, ConnectionException
from cassandra.protocol import ErrorMessage

from connectors.cassandra_schema import (
    SECONDS_A_DAY,
    day_of,
    event_id_of,
    start_of_day,
    statement,
)
from connectors.cassandra_session import (
    READ_PROFILE,
    UNANSWERED,
    WRITE_PROFILE,
    CassandraOptions,
    DataCenterError,
    Silence,
    connect,
)
from connectors.fast_reads import decode_here
from connectors.product_rows import ProductRow
from connectors.request_budget import count_reads, time_limit

logger = logging.getLogger(__name__)

MS_A_DAY: Final = SECONDS_A_DAY * 1000
# Days, thus partitions, that one call reads at most. The rest of a longer range is the next page.
DEFAULT_MAX_DAYS: Final = 31
# Days read at once: a busy user's page is full after the first, an idle one's days are all empty.
_MAX_PARALLEL_DAYS: Final = 8
# The CQL timestamp has more room, the reader's datetime has not: 9999-12-31.
_MAX_TS: Final = 253_402_300_799_999
_EPOCH: Final = dt.datetime(1970, 1, 1)
_ONE_MS: Final = dt.timedelta(milliseconds=1)
# Products that one call reads at most: more are a mistake of the caller's.
MAX_PRODUCTS: Final = 200
# Product id, score (the cosine-like rank score, the higher the better), reason.
Recommendation = tuple[str, float, str]
# An id, a separator and a product id (`cassandra_schema.stored_event_id`).
_MAX_STORED_ID: Final = 2 * 128 + 1
# Any id does: the read must succeed, not find something.
_PING_USER: Final = "health-check"


class RecommendationList(msgspec.Struct, frozen=True, gc=False):
    """The newest list of a user, best first; times in epoch milliseconds.

    ``event_ts`` is the time of the newest event that the list knows of, ``generated_at`` that of
    its making; ``space`` names the embedding space of the lookup; ``excluded`` are the products
    that the user bought or disliked, newest first; ``variant`` names the setting that made it,
    empty where only one is in use.
    """

    user_id: str
    items: tuple[Recommendation, ...]
    space: str
    event_ts: int
    generated_at: int
    excluded: tuple[str, ...] = ()
    variant: str = ""


class TrendingList(msgspec.Struct, frozen=True, gc=False):
    """Products of a scope, best first: (product_id, score); ``generated_at`` epoch milliseconds."""

    items: tuple[tuple[str, float], ...]
    generated_at: int


class ListsOfProduct(msgspec.Struct, frozen=True, gc=False):
    """What is like a product and what is bought with it: (product_id, score), best first.

    They name products whether they are in stock or not; ``generated_at`` is epoch milliseconds.
    """

    similar: tuple[tuple[str, float], ...]
    bought_together: tuple[tuple[str, float], ...]
    generated_at: int


class Erasure(msgspec.Struct, frozen=True, gc=False):
    """The state of a user's erasure, times in epoch milliseconds.

    ``done_at`` is when the job has finished, None while the request has not been carried out.
    """

    requested_at: int
    done_at: int | None


class StoredEvent(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One event of a user as it was saved; ``ts`` in epoch milliseconds."""

    event_id: str
    type: str
    ts: int
    product_id: str | None = None
    query: str | None = None
    session_id: str | None = None
    dwell_ms: int | None = None
    quantity: int | None = None
    variant: str | None = None


# An event, after the id under which it is stored: its place among those of its millisecond.
_Placed = tuple[str, StoredEvent]


class EventPage(msgspec.Struct, frozen=True, gc=False):
    """Events, newest first, and the token of the next page; None where the range is read.

    A page may be short, even empty, and still have a next one: a call reads a bounded number of
    days.
    """

    events: tuple[StoredEvent, ...]
    next: str | None


class StoreError(Exception):
    """A store did not answer; ``store`` names which."""

    def __init__(self, store: str, detail: str) -> None:
        super().__init__(f"{store}: {detail}")
        self.store = store
        self.detail = detail


class StoreUnavailable(StoreError):  # noqa: N818 (a state, not a mistake)
    """The store cannot be reached, or has too few nodes; a later attempt may succeed."""


class StoreTimeout(StoreError):  # noqa: N818 (a state, not a mistake)
    """The store did not answer within the time limit."""


class InvalidPageTokenError(ValueError):
    """The page token was not made by `EventCursor.token`."""


class EventCursor(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where in a user's history (newest first) the next page begins.

    It is after the event ``event_id`` (as it is stored, with its product) of millisecond ``ts``,
    or, with an empty ``event_id``, at the first event before ``ts``. The token is a position and
    no state of the server: it stays valid when a node or the service restarts, and can be forged
    only into another position of the same user's history.
    """

    ts: int
    event_id: str = ""

    def token(self) -> str:
        """Return the cursor as text that needs no escaping in a URL."""
        return base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).rstrip(b"=").decode("ascii")

    @classmethod
    def from_token(cls, token: str) -> EventCursor:
        """Return the cursor of ``token``.

        Raises:
            InvalidPageTokenError: It is not one.
        """
        try:
            packed = base64.b64decode(
                token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True
            )
            cursor = msgspec.msgpack.decode(packed, type=cls)
        except (UnicodeEncodeError, binascii.Error, msgspec.DecodeError) as error:
            msg = "not a page token"
            raise InvalidPageTokenError(msg) from error
        if not 0 <= cursor.ts <= _MAX_TS + 1 or len(cursor.event_id) > _MAX_STORED_ID:
            msg = "not a page token"
            raise InvalidPageTokenError(msg)
        return cursor


def check_range(start: int, end: int, limit: int) -> None:
    """Check the arguments of `RecommendationStore.events`.

    Raises:
        ValueError: One is out of bounds; the message names it.
    """
    if not 0 <= start <= end <= _MAX_TS + 1:
        msg = f"start {start} and end {end}: must be 0 <= start <= end <= {_MAX_TS + 1}"
        raise ValueError(msg)
    if limit < 1:
        msg = f"limit {limit}: must be at least 1"
        raise ValueError(msg)


class RecommendationStore(Protocol):
    """Where the service reads, and records erasures. Safe to use from several threads.

    Every method may raise `StoreUnavailable` and `StoreTimeout`, and no other error for the state
    of the servers.
    """

    def recommendations(self, user_id: str) -> RecommendationList | None:
        """Return the newest list of ``user_id``; None for a user without one."""
        ...

    def events(
        self, user_id: str, *, start: int, end: int, limit: int, page: str | None = None
    ) -> EventPage:
        """Return events of ``user_id`` with ``start`` <= ts < ``end``, newest first.

        Events of one millisecond come in ascending order of their ids, then products. Following
        the pages to the end gives each event once, whatever arrives meanwhile.

        Args:
            user_id: Whose.
            start: Epoch milliseconds, inclusive.
            end: Epoch milliseconds, exclusive.
            limit: Events a page at most, from 1.
            page: ``next`` of the page before, with the same range; None for the first.

        Raises:
            ValueError: The range or the limit is out of bounds.
            InvalidPageTokenError: ``page`` is not a token.
        """
        ...

    def products(self, product_ids: Sequence[str]) -> dict[str, ProductRow]:
        """Return the products that exist, by their ids.

        Raises:
            ValueError: More than `MAX_PRODUCTS` ids.
        """
        ...

    def trending(self, scope: str) -> TrendingList | None:
        """Return the list of ``scope`` (see `cassandra_schema`); None where there is none."""
        ...

    def lists_of_product(self, product_id: str) -> ListsOfProduct | None:
        """Return the lists of a product; None where it has none, or none yet."""
        ...

    def products_in(
        self, scope: str, *, least: float | None = None, most: float | None = None, limit: int
    ) -> list[str]:
        """Return ids of products in stock, by ascending price; those without a price are last.

        Args:
            scope: A category's or a part's of the catalogue.
            least: The lowest price; with it or ``most``, products without a price are left out.
            most: The highest price, inclusive.
            limit: Ids at most, from 1.
        """
        ...

    def request_erasure(self, user_id: str, requested_at: int) -> None:
        """Record that a user shall be erased; ``requested_at`` is the erase event's time."""
        ...

    def erasure(self, user_id: str) -> Erasure | None:
        """Return how far the newest erasure of ``user_id`` is; None where there was none."""
        ...

    def ping(self) -> None:
        """Return if a read would succeed now, raise otherwise."""
        ...

    def close(self) -> None:
        """Let go of connections and threads; may be called again."""
        ...


class CassandraRecommendationStore:
    """Reads the pipeline's tables with prepared statements, each of one partition.

    Args:
        session: A session of `cassandra_session.connect`.
        keyspace: Lower-case CQL identifier.
        timeout_seconds: Of one call of a method, however many partitions it reads; less where
            the request has less left (`connectors.request_budget`).
        max_days: Days that one call of `events` reads at most, from 1.
        cluster: What `close` shuts down; None: the caller's business.

    Raises:
        StoreUnavailable: No node answers, or a table does not exist yet.
        StoreTimeout: A statement was not prepared in time.
    """

    name: Final = "cassandra"

    def __init__(
        self,
        session: Any,
        keyspace: str,
        *,
        timeout_seconds: float = 2.0,
        max_days: int = DEFAULT_MAX_DAYS,
        cluster: Cluster | None = None,
    ) -> None:
        if max_days < 1:
            msg = f"max_days {max_days}: must be at least 1"
            raise ValueError(msg)
        self._session = session
        self._cluster = cluster
        self._timeout = timeout_seconds
        self._max_days = max_days
        try:

            def prepare(name: str) -> Any:
                return session.prepare(statement(name, keyspace))

            self._select_list = decode_here(prepare("select_recommendations"))
            self._select_events = prepare("select_events")
            self._select_tie = prepare("select_events_of_ts")
            self._select_products = prepare("select_products")
            self._select_trending = prepare("select_trending")
            self._select_product_lists = prepare("select_product_lists")
            self._select_in_scope = prepare("select_products_in_scope")
            self._select_in_range = prepare("select_products_in_price_range")
            self._select_erasure = prepare("select_erasure")
            self._insert_erasure = prepare("insert_erasure")
        except RequestValidationException as error:
            # The table is made by a deployment step that may run after this service has started:
            # at this moment, and only at this one, that is a reason to wait.
            detail = f"keyspace {keyspace} does not have the tables"
            raise StoreUnavailable(self.name, detail) from error
        except _DRIVER_ERRORS as error:
            _raise_mapped(self.name, error)

    @classmethod
    def open(
        cls, options: CassandraOptions, *, role: str = "api", max_days: int = DEFAULT_MAX_DAYS
    ) -> CassandraRecommendationStore:
        """Connect and return a store that owns its connection.

        Raises:
            StoreUnavailable: No node answers, the data centre is not clear, or a table is missing.
            StoreTimeout: A node did not answer in time.
            OSError: The authority's file cannot be read.
        """
        try:
            cluster, session = connect(options, role=role)
        except DataCenterError as error:
            raise StoreUnavailable(cls.name, str(error)) from error
        except _DRIVER_ERRORS as error:
            _raise_mapped(cls.name, error)
        try:
            return cls(
                session,
                options.keyspace,
                timeout_seconds=options.read_timeout_seconds,
                max_days=max_days,
                cluster=cluster,
            )
        except BaseException:
            cluster.shutdown()
            raise

    def recommendations(self, user_id: str) -> RecommendationList | None:
        """See `RecommendationStore.recommendations`."""
        rows = self._read(self._select_list, (user_id,))
        if not rows:
            return None
        items, space, event_ts, generated_at, excluded, variant = rows[0]
        return RecommendationList(
            user_id,
            # None is a row that was written without a list: as empty as an empty one.
            tuple(items or ()),
            space,
            _epoch_ms(event_ts),
            _epoch_ms(generated_at),
            tuple(excluded or ()),
            variant or "",
        )

    def products(self, product_ids: Sequence[str]) -> dict[str, ProductRow]:
        """See `RecommendationStore.products`."""
        check_products(product_ids)
        if not product_ids:
            return {}
        # Sorted out of the caller's order and doubles: Cassandra would read a partition twice.
        rows = self._read(self._select_products, (list(set(product_ids)),))
        return {
            row[0]: ProductRow(
                row[0],
                row[1] or "",
                row[2] or "",
                None if row[3] is None or math.isnan(row[3]) else row[3],
                bool(row[4]),
                _epoch_ms(row[5]),
            )
            for row in rows
        }

    def trending(self, scope: str) -> TrendingList | None:
        """See `RecommendationStore.trending`."""
        rows = self._read(self._select_trending, (scope,))
        if not rows:
            return None
        items, generated_at = rows[0]
        return TrendingList(tuple(items or ()), _epoch_ms(generated_at))

    def lists_of_product(self, product_id: str) -> ListsOfProduct | None:
        """See `RecommendationStore.lists_of_product`."""
        rows = self._read(self._select_product_lists, (product_id,))
        if not rows:
            return None
        similar, bought_together, generated_at = rows[0]
        return ListsOfProduct(
            tuple(similar or ()), tuple(bought_together or ()), _epoch_ms(generated_at)
        )

    def products_in(
        self, scope: str, *, least: float | None = None, most: float | None = None, limit: int
    ) -> list[str]:
        """See `RecommendationStore.products_in`."""
        if limit < 1:
            msg = f"limit {limit}: must be at least 1"
            raise ValueError(msg)
        if least is None and most is None:
            rows = self._read(self._select_in_scope, (scope, limit))
        else:
            low = -math.inf if least is None else least
            high = math.inf if most is None else most
            rows = self._read(self._select_in_range, (scope, low, high, limit))
        return [product_id for (product_id,) in rows]

    def request_erasure(self, user_id: str, requested_at: int) -> None:
        """See `RecommendationStore.request_erasure`; acknowledged at the write consistency."""
        self._read(self._insert_erasure, (user_id, requested_at), WRITE_PROFILE)

    def erasure(self, user_id: str) -> Erasure | None:
        """See `RecommendationStore.erasure`."""
        rows = self._read(self._select_erasure, (user_id,))
        if not rows:
            return None
        requested_at, done_for, done_at = (
            None if value is None else _epoch_ms(value) for value in rows[0]
        )
        return erasure_of(requested_at, done_for, done_at)

    def events(
        self, user_id: str, *, start: int, end: int, limit: int, page: str | None = None
    ) -> EventPage:
        """See `RecommendationStore.events`; reads at most ``max_days`` days."""
        check_range(start, end, limit)
        deadline = time.monotonic() + time_limit(self._timeout)
        # One more than asked for tells whether there is a next page.
        wanted = limit + 1
        found: list[_Placed] = []
        upper = end
        if page is not None:
            cursor = EventCursor.from_token(page)
            upper = min(end, cursor.ts)
            if cursor.event_id and start <= cursor.ts < end:
                key = (user_id, day_of(cursor.ts), cursor.ts, cursor.event_id, wanted)
                found.extend(self._collect([(self._select_tie, key)], deadline))
        lowest = window_start(start, upper, self._max_days)
        days = list(_days(lowest, upper))
        parallel = 1
        while days and len(found) < wanted:
            batch, days = days[:parallel], days[parallel:]
            found.extend(
                self._collect(
                    [
                        (self._select_events, (user_id, day, low, high, wanted - len(found)))
                        for day, low, high in batch
                    ],
                    deadline,
                )
            )
            parallel = min(parallel * 2, _MAX_PARALLEL_DAYS)
        return cut_page(found, limit, start=start, lowest=lowest)

    def ping(self) -> None:
        """Read one row the way a request does; see `RecommendationStore.ping`."""
        self._read(self._select_list, (_PING_USER,))

    def close(self) -> None:
        """Shut down the cluster if this store opened it."""
        if self._cluster is not None:
            self._cluster.shutdown()

    def _read(
        self, prepared: Any, values: tuple[Any, ...], profile: str = READ_PROFILE
    ) -> list[Any]:
        count_reads()
        try:
            return _rows(
                self._session.execute_async(
                    prepared, values, timeout=None, execution_profile=profile
                ),
                time_limit(self._timeout),
            )
        except RequestValidationException:
            # A table has been dropped or a permission withdrawn: no time limit helps.
            raise
        except _DRIVER_ERRORS as error:
            _raise_mapped(self.name, error)

    def _collect(self, reads: list[tuple[Any, tuple[Any, ...]]], deadline: float) -> list[_Placed]:
        """Run ``reads`` at once and return their events in the order of ``reads``."""
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise StoreTimeout(self.name, "the days were not read in time")
        count_reads(len(reads))
        events: list[_Placed] = []
        try:
            futures = [
                self._session.execute_async(
                    prepared, values, timeout=remaining, execution_profile=READ_PROFILE
                )
                for prepared, values in reads
            ]
            for future in futures:
                # list() follows the driver's own pages, should a limit exceed its fetch size.
                events.extend(_event(row) for row in future.result())
        except RequestValidationException:
            raise
        except _DRIVER_ERRORS as error:
            _raise_mapped(self.name, error)
        return events


_Answer = TypeVar("_Answer")


class LazyRecommendationStore:
    """A store that connects in the background and says so until it has.

    The service starts, and stays alive, while its database is away; and the driver's threads are
    made in the process that uses them, which matters because they do not survive a fork: nothing
    is started before `start` or the first call.

    Where no server answers for some seconds it connects anew, in the background too, since the
    servers may have come back under other addresses (`cassandra_session.Silence`).

    Args:
        name: Of the store, for errors while there is no connection.
        open_store: Makes the connected store, or raises. It is called again, after a pause that
            doubles from half a second to ten, until it succeeds.
        wait_seconds: How long a call waits for the first attempt; later ones do not wait.
        silence: Tells when to connect anew.
    """

    def __init__(
        self,
        name: str,
        open_store: Callable[[], RecommendationStore],
        *,
        wait_seconds: float = 2.0,
        first_pause_seconds: float = 0.5,
        max_pause_seconds: float = 10.0,
        silence: Silence | None = None,
    ) -> None:
        self.name = name
        self._open_store = open_store
        self._wait = wait_seconds
        self._first_pause = first_pause_seconds
        self._max_pause = max_pause_seconds
        self._silence = Silence() if silence is None else silence
        self._store: RecommendationStore | None = None
        self._reason = "not connected yet"
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._tried = threading.Event()
        self._closed = threading.Event()

    def start(self) -> None:
        """Begin to connect, without waiting; may be called again."""
        with self._lock:
            if self._store is None:
                self._start_thread()

    def recommendations(self, user_id: str) -> RecommendationList | None:
        """See `RecommendationStore.recommendations`."""
        return self._ask(lambda store: store.recommendations(user_id))

    def events(
        self, user_id: str, *, start: int, end: int, limit: int, page: str | None = None
    ) -> EventPage:
        """See `RecommendationStore.events`."""
        return self._ask(
            lambda store: store.events(user_id, start=start, end=end, limit=limit, page=page)
        )

    def products(self, product_ids: Sequence[str]) -> dict[str, ProductRow]:
        """See `RecommendationStore.products`."""
        return self._ask(lambda store: store.products(product_ids))

    def trending(self, scope: str) -> TrendingList | None:
        """See `RecommendationStore.trending`."""
        return self._ask(lambda store: store.trending(scope))

    def lists_of_product(self, product_id: str) -> ListsOfProduct | None:
        """See `RecommendationStore.lists_of_product`."""
        return self._ask(lambda store: store.lists_of_product(product_id))

    def products_in(
        self, scope: str, *, least: float | None = None, most: float | None = None, limit: int
    ) -> list[str]:
        """See `RecommendationStore.products_in`."""
        return self._ask(
            lambda store: store.products_in(scope, least=least, most=most, limit=limit)
        )

    def request_erasure(self, user_id: str, requested_at: int) -> None:
        """See `RecommendationStore.request_erasure`."""
        self._ask(lambda store: store.request_erasure(user_id, requested_at))

    def erasure(self, user_id: str) -> Erasure | None:
        """See `RecommendationStore.erasure`."""
        return self._ask(lambda store: store.erasure(user_id))

    def ping(self) -> None:
        """See `RecommendationStore.ping`."""
        self._ask(lambda store: store.ping())

    def close(self) -> None:
        """Stop connecting and close the store, if there is one."""
        with self._lock:
            self._closed.set()
            self._tried.set()
            store, self._store = self._store, None
            self._reason = "closed"
        if store is not None:
            store.close()

    def _ask(self, question: Callable[[RecommendationStore], _Answer]) -> _Answer:
        store = self._connected()
        try:
            answer = question(store)
        except StoreError as error:
            if not isinstance(error.__cause__, UNANSWERED):
                self._silence.end()
            elif self._silence.lasts():
                logger.warning("%s does not answer where it was; connecting anew", self.name)
                with self._lock:
                    self._start_thread()
            raise
        self._silence.end()
        return answer

    def _start_thread(self) -> None:
        if self._thread is None and not self._closed.is_set():
            self._thread = threading.Thread(
                target=self._connect, name=f"connect-{self.name}", daemon=True
            )
            self._thread.start()

    def _connected(self) -> RecommendationStore:
        store = self._store
        if store is not None:
            return store
        self.start()
        self._tried.wait(time_limit(self._wait))
        store = self._store
        if store is None:
            raise StoreUnavailable(self.name, self._reason)
        return store

    def _connect(self) -> None:
        pause = self._first_pause
        while not self._closed.is_set():
            try:
                store = self._open_store()
            except StoreError as error:
                self._reason = error.detail
                logger.warning(
                    "%s is not there, next attempt in %.1f s: %s; cause: %r",
                    *(self.name, pause, error, error.__cause__),
                )
            except Exception as error:
                # A thread that ended here would leave the service without its store for good;
                # what failed stands in the log and in every answer.
                self._reason = f"{type(error).__name__} while connecting"
                logger.exception(
                    "connecting to %s failed, next attempt in %.1f s", self.name, pause
                )
            else:
                self._publish(store)
                return
            self._tried.set()
            self._closed.wait(pause)
            pause = min(pause * 2, self._max_pause)

    def _publish(self, store: RecommendationStore) -> None:
        with self._lock:
            closed = self._closed.is_set()
            before = None if closed else self._store
            if not closed:
                self._store = store
            self._thread = None
        self._tried.set()
        if closed:
            store.close()
        else:
            logger.info("connected to %s", self.name)
        if before is not None:
            before.close()


def _rows(future: ResponseFuture, seconds: float) -> list[Any]:
    """Wait for the rows of a statement that has at most one page of them.

    The wait is limited here and not by the driver: its limit is a timer in the event loop, which
    has to be woken up for it a second time in each request.

    Raises:
        OperationTimedOut: There was no answer within ``seconds``.
    """
    waiting = threading.Lock()
    waiting.acquire()
    found: list[Any] = []
    failures: list[BaseException] = []

    def succeeded(rows: list[Any] | None) -> None:
        # Nothing comes back of a write.
        found.extend(rows or ())
        waiting.release()

    def failed(error: BaseException) -> None:
        failures.append(error)
        waiting.release()

    future.add_callbacks(succeeded, failed)
    if not waiting.acquire(timeout=seconds):
        raise OperationTimedOut(last_host=future.coordinator_host)
    if failures:
        raise failures[0]
    if future.has_more_pages:
        msg = "more rows than the driver fetches at once"
        raise RuntimeError(msg)
    return found


def check_products(product_ids: Sequence[str]) -> None:
    """Check the argument of `RecommendationStore.products`.

    Raises:
        ValueError: There are too many.
    """
    if len(product_ids) > MAX_PRODUCTS:
        msg = f"{len(product_ids)} products: at most {MAX_PRODUCTS} a call"
        raise ValueError(msg)


def erasure_of(
    requested_at: int | None, done_for: int | None, done_at: int | None
) -> Erasure | None:
    """Return the state that the columns of `erasures` mean, epoch milliseconds.

    ``done_for`` is the time of the newest erase event that was carried out; one that came from
    elsewhere than this service has no request.
    """
    if requested_at is None:
        return None if done_for is None else Erasure(done_for, done_at)
    return Erasure(
        requested_at, done_at if done_for is not None and done_for >= requested_at else None
    )


def cut_page(found: list[_Placed], limit: int, *, start: int, lowest: int) -> EventPage:
    """Make a page of what was read.

    Args:
        found: Events in order, with their stored ids, at most as many as were wanted, from
            ``lowest`` on.
        limit: Events a page.
        start: Where the asked range begins, epoch milliseconds.
        lowest: Where what was read begins, epoch milliseconds, not before ``start``.
    """
    events = tuple(event for _, event in found[:limit])
    if len(found) > limit:
        stored_id, last = found[limit - 1]
        return EventPage(events, EventCursor(last.ts, stored_id).token())
    return EventPage(events, EventCursor(lowest).token() if lowest > start else None)


def window_start(start: int, upper: int, max_days: int) -> int:
    """Return where a read of at most ``max_days`` UTC days below ``upper`` ends, from ``start``.

    All three times are epoch milliseconds (``upper`` exclusive).
    """
    newest_day = (upper - 1) // MS_A_DAY
    return max(start, (newest_day - max_days + 1) * MS_A_DAY)


def _days(start: int, end: int) -> Iterator[tuple[dt.date, int, int]]:
    """Yield (day, from, to) of the UTC days in [start, end), newest first, clipped to it."""
    high = end
    while high > start:
        day = day_of(high - 1)
        low = max(start, start_of_day(day))
        yield day, low, high
        high = low


def _event(row: tuple[Any, ...]) -> _Placed:
    ts, stored_id, kind, product_id, *optional = row
    event_id = event_id_of(stored_id, product_id)
    return stored_id, StoredEvent(event_id, kind, _epoch_ms(ts), product_id, *optional)


def _epoch_ms(value: dt.datetime) -> int:
    # The driver's datetimes are naive and in UTC. Integer division of whole microseconds is exact.
    return (value - _EPOCH) // _ONE_MS


# What the driver raises for the state of the servers. ConnectionException and ConnectionBusy come
# out of a request whose connection broke or was full; ErrorMessage is the server's own answer.
_DRIVER_ERRORS: Final = (
    NoHostAvailable,
    DriverException,
    ConnectionException,
    ConnectionBusy,
    ErrorMessage,
)


def _why_no_host(error: NoHostAvailable) -> str:
    """Tell a node that is away from one that does not let us in: waiting mends only the first."""
    for cause in dict(error.errors or {}).values():
        if isinstance(cause, AuthenticationFailed):
            return "it refuses the user name or the password"
        # The driver raises it anew without the original, as an OSError with its text.
        if "CERTIFICATE_VERIFY_FAILED" in str(cause):
            return "its certificate is not of the authority that was given"
    return "no node answers"


def _raise_mapped(store: str, error: BaseException) -> NoReturn:
    """Raise the store's error for a driver's.

    Raises:
        StoreTimeout: The client or the coordinator waited in vain.
        StoreUnavailable: Any other state of the servers.
    """
    # Addresses of nodes stay in the chained error, for the log: the detail reaches clients.
    if isinstance(error, (OperationTimedOut, Timeout)):
        raise StoreTimeout(store, "no answer within the time limit") from error
    if isinstance(error, NoHostAvailable):
        raise StoreUnavailable(store, _why_no_host(error)) from error
    raise StoreUnavailable(store, f"cannot serve ({type(error).__name__})") from error
