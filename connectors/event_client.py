"""The client of the services that send events: fire and forget, with a bounded buffer.

    client = EventClient("kafka1:9092,kafka2:9092")
    client.track("u42", "click", product_id="B0001")

``track`` never waits and never raises: an event is checked with the job's own schema, put into the
buffer of an idempotent Kafka producer, and sent by its threads. Ids and times are made where none
are given. While the brokers are away the buffer fills, and what it holds is sent when they are
back, however long that takes; when it is full, events are dropped.

What became of the events is counted (:class:`Counts`) and logged, at most one line a kind and
minute, without user ids.

One client a process is enough, for all threads. After a fork (gunicorn with ``preload_app``,
multiprocessing) the child's copy begins anew, with a producer and counts of its own; what the
parent had buffered stays the parent's. ``close`` flushes; it also runs at the interpreter's exit,
but not when a signal that Python does not handle (SIGTERM, by default) ends the process, and not
in children of multiprocessing, which leave by ``os._exit``: there use the client as a context
manager, or call ``close``. gunicorn's workers exit in an orderly way.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import secrets
import threading
import time
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Self, TypedDict, Unpack

import msgspec
from confluent_kafka import KafkaError, KafkaException, Producer

from connectors.sparing_log import SparingLog
from udfs.schemas import (
    MAX_EVENT_BYTES,
    PLACEHOLDER_IDS,
    Event,
    Reason,
    RejectedError,
    decode_event,
    encode_event,
)

logger = logging.getLogger(__name__)

# How long the polling thread waits for news, seconds: what an idle close takes at most.
_POLL: Final = 0.2
_FIELDS: Final = frozenset(Event.__struct_fields__)
_encoder = msgspec.json.Encoder()
# More than an event grows when it is written as a record: names of absent fields, an id's quotes.
_GROWTH: Final = 256
_PURGED: Final = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})


class EventFields(TypedDict, total=False):
    """What :meth:`EventClient.track` takes by keyword; None means not given."""

    product_id: str | None
    query: str | None
    session_id: str | None
    dwell_ms: int | None
    quantity: int | None
    ts: int | None
    event_id: str | None


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the events of this process.

    ``sent - delivered - failed - lost`` are on their way. What a killed process had in its buffer
    is lost and counted by nobody.

    Attributes:
        sent: Put into the buffer.
        delivered: Acknowledged by Kafka (all in-sync replicas).
        failed: Put into the buffer, and Kafka refused them for good (no such topic, no permission).
        lost: Still in the buffer when the time limit of ``close`` was over.
        dropped: Not put into the buffer, because it was full, the client closed, or the producer
            could not be made.
        rejected: Not put into the buffer, because the job would have refused them: a programming
            error of the caller's, such as an unknown type or a missing product_id.
        rejected_by: ``rejected`` by reason, a code of :class:`udfs.schemas.Reason`.
    """

    sent: int = 0
    delivered: int = 0
    failed: int = 0
    lost: int = 0
    dropped: int = 0
    rejected: int = 0
    rejected_by: Mapping[str, int] = field(default_factory=dict)


def new_event_id(at_ms: int) -> str:
    """Make an event id: UUID version 7 (RFC 9562), which sorts by ``at_ms``, epoch milliseconds."""
    random = secrets.randbits(74)
    high, low = random >> 62, random & ((1 << 62) - 1)
    number = (at_ms & ((1 << 48) - 1)) << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low
    return str(uuid.UUID(int=number))


def make_event(
    fields: Mapping[str, object], now_ms: int, placeholders: frozenset[str] = PLACEHOLDER_IDS
) -> Event:
    """Make an event of its wire fields; ``event_id`` and ``ts`` may be missing or None.

    The fields are read as the job reads them: unknown ones are ignored, and every form is accepted
    that the wire has.

    Args:
        fields: Field name -> value.
        now_ms: The time of an event without one, and what its ``ts`` is judged against.
        placeholders: Ids that stand for unknown users; see `udfs.schemas.PLACEHOLDER_IDS`.

    Raises:
        RejectedError: The job would refuse it.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    if "event_id" not in given:
        given["event_id"] = new_event_id(now_ms)
    if "ts" not in given:
        given["ts"] = now_ms
    try:
        payload = _encoder.encode(given)
        key = _id_text(given.get("user_id", "")).encode()
    except (OverflowError, RecursionError, TypeError, ValueError) as error:
        raise RejectedError(Reason.INVALID_FIELD, str(error)) from error
    event = decode_event(key.decode("latin-1"), payload, now_ms, placeholders)
    if len(payload) > MAX_EVENT_BYTES - _GROWTH:
        size = len(encode_event(event))
        if size > MAX_EVENT_BYTES:
            detail = f"{size} bytes as a record, at most {MAX_EVENT_BYTES}"
            raise RejectedError(Reason.TOO_LARGE, detail)
    return event


def _id_text(value: object) -> str:
    """Return an id as the text that the record's key must be: a number's decimal digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else ""


def make_record(
    event: Event, now_ms: int, placeholders: frozenset[str] = PLACEHOLDER_IDS
) -> tuple[bytes, bytes]:
    """Make the key and the value of an event's Kafka record, accepted by the job's own check.

    Raises:
        RejectedError: The job would refuse it.
    """
    try:
        key, value = event.user_id.encode(), encode_event(event)
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        # A wrong type, an integer beyond 64 bits, a text that is not Unicode.
        raise RejectedError(Reason.INVALID_FIELD, str(error)) from error
    decode_event(key.decode("latin-1"), value, now_ms, placeholders)
    return key, value


_OnDelivery = Callable[["_Sender", KafkaError | None, Any], None]


class _Sender:
    """A producer and the thread that serves its callbacks, in one process."""

    def __init__(self, producer: Any, on_delivery: _OnDelivery) -> None:
        self.producer = producer
        self.retired = False
        self.reported = partial(on_delivery, self)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="event-client", daemon=True)
        self._thread.start()

    def _poll(self) -> None:
        while not self._stop.is_set():
            self.producer.poll(_POLL)
        if self.retired:
            # What a broken producer still holds comes back through its delivery reports.
            self.producer.purge()
            self.producer.flush(1)

    def retire(self) -> None:
        """Give up a producer that is broken for good; its thread empties it."""
        self.retired = True
        self._stop.set()

    def close(self, timeout: float) -> None:
        """Flush within ``timeout`` seconds; what is left then fails."""
        left = self.producer.flush(timeout)
        self._stop.set()
        self._thread.join(5 * _POLL)
        if left:
            self.producer.purge()
            self.producer.flush(1)


class EventClient:
    """Sends events to Kafka without ever holding up its caller; see the module's docstring.

    Args:
        bootstrap: Bootstrap servers, host:port separated by commas.
        topic: The topic of events.
        max_events: Events that the buffer holds, those included that Kafka has not acknowledged.
        max_megabytes: The same limit in MiB.
        flush_timeout_s: How long ``close`` waits for Kafka, seconds.
        properties: Further settings of librdkafka, such as security.protocol and sasl.password.
        placeholders: Ids that stand for unknown users, as the job has them (``--placeholder-ids``).
        make_producer: Makes the producer from its settings; for tests.

    Raises:
        KafkaException: A setting is unknown or not valid. An absent broker is no error.
    """

    def __init__(
        self,
        bootstrap: str = "127.0.0.1:9092",
        topic: str = "events",
        *,
        max_events: int = 100_000,
        max_megabytes: int = 64,
        flush_timeout_s: float = 5.0,
        properties: Mapping[str, str | int | bool] | None = None,
        placeholders: frozenset[str] = PLACEHOLDER_IDS,
        make_producer: Callable[[dict[str, Any]], Any] = Producer,
    ) -> None:
        self._topic = topic
        self._placeholders = placeholders
        self._flush_timeout_s = flush_timeout_s
        self._make_producer = make_producer
        self._settings: dict[str, Any] = {
            "bootstrap.servers": bootstrap,
            "client.id": "recommender-event-client",
            "queue.buffering.max.messages": max_events,
            "queue.buffering.max.kbytes": max_megabytes * 1024,
            # A few more milliseconds on the way, for a fraction of the requests.
            "linger.ms": 20,
            # The default is five minutes. The buffer is the limit here, not the time.
            "message.timeout.ms": 0,
            # The partition that Java clients choose, so that a user has one whoever sends.
            "partitioner": "murmur2_random",
            # A returning broker is noticed within two seconds.
            "reconnect.backoff.max.ms": 2000,
            # Errors come to `error_cb`; librdkafka would also print each one.
            "log_level": 2,
            **(properties or {}),
            # Retries inside the producer make no duplicates and keep the order.
            "enable.idempotence": True,
            "error_cb": self._on_error,
        }
        self._begin()
        self._current()
        _clients.add(self)
        atexit.register(self.close)

    def _begin(self) -> None:
        """Set what a process has of its own."""
        # Reentrant: a signal handler may track or close in the middle of either.
        self._lock = threading.RLock()
        self._numbers: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._log = SparingLog(logger)
        self._sender: _Sender | None = None
        self._closed = False

    def _after_fork(self) -> None:
        """Begin anew in a forked child, whose copy of the producer has no threads."""
        old = self._sender
        if old is not None:
            # Its destructor would wait for those threads for ever: it is never to run.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(old.producer))
        closed = self._closed
        self._begin()
        self._closed = closed

    def _new_sender(self) -> _Sender:
        return _Sender(self._make_producer(dict(self._settings)), self._on_delivery)

    def _current(self) -> _Sender | None:
        """The process's sender, made if need be; None once the client is closed."""
        sender = self._sender
        if sender is not None or self._closed:
            return sender
        with self._lock:
            if self._sender is None and not self._closed:
                self._sender = self._new_sender()
            return self._sender

    def _replace(self, broken: _Sender) -> _Sender | None:
        """Put a new producer in the place of one that reported a fatal error."""
        with self._lock:
            if self._sender is broken:
                self._sender = None
                broken.retire()
        return self._current()

    # --- sending ---------------------------------------------------------------------------------

    def track(self, user_id: str, type: str, **fields: Unpack[EventFields]) -> None:  # noqa: A002
        """Send what a user did, now unless ``ts`` (epoch milliseconds) says otherwise.

        Returns at once and raises nothing. An event that the job would refuse (unknown type or
        field, a search without query, another type without product_id) is counted in
        ``counts.rejected`` and logged; one for which the buffer has no room in ``counts.dropped``.
        """
        try:
            unknown = sorted(fields.keys() - _FIELDS)
            if unknown:
                detail = f"unknown field {', '.join(unknown)}"
                self._reject(RejectedError(Reason.INVALID_FIELD, detail))
                return
            now_ms = time.time_ns() // 1_000_000
            given = {"user_id": user_id, "type": type, **fields}
            event = make_event(given, now_ms, self._placeholders)
            self._send(event.user_id.encode(), encode_event(event))
        except RejectedError as error:
            self._reject(error)

    def offer(self, event: Event) -> bool:
        """Send an event; tell at once whether the buffer took it.

        Returns:
            False where the buffer is full or the client closed; the event is dropped.

        Raises:
            RejectedError: The job would refuse the event (counted in ``counts.rejected``).
        """
        try:
            key, value = make_record(event, time.time_ns() // 1_000_000, self._placeholders)
        except RejectedError as error:
            self._reject(error)
            raise
        return self._send(key, value)

    def _send(self, key: bytes, value: bytes) -> bool:
        """Put a record into the buffer; False, counted and logged, where that is not possible."""
        try:
            sender = self._current()
            if sender is None:
                self._drop("the client is closed")
                return False
            # Counted first: the acknowledgement may be faster than the next line.
            self._count("sent")
            try:
                self._produce(sender, key, value)
            except BaseException:
                self._count("sent", -1)
                raise
        except BufferError:
            self._drop("the buffer is full")
            return False
        except Exception as error:
            # No producer, or no thread for it: the caller's request is worth more than this event.
            self._drop(f"the producer fails: {error!r}", trace=True)
            return False
        return True

    def _produce(self, sender: _Sender, key: bytes, value: bytes) -> None:
        try:
            sender.producer.produce(self._topic, value, key, on_delivery=sender.reported)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._FATAL:
                raise
            fresh = self._replace(sender)
            if fresh is None:
                raise
            fresh.producer.produce(self._topic, value, key, on_delivery=fresh.reported)

    def _on_delivery(self, sender: _Sender, error: KafkaError | None, message: Any) -> None:
        if error is None:
            self._count("delivered")
            return
        purged = error.code() in _PURGED
        given_back = sender.retired and (purged or error.code() == KafkaError._FATAL)
        fresh = self._current() if given_back else None
        if fresh is not None:
            try:
                # Kafka may have it already: the job recognises the event's id.
                self._produce(fresh, message.key(), message.value())
            except (BufferError, KafkaException) as again:
                self._log("failed again", f"an event could not be sent anew: {again!r}")
            else:
                return
        elif purged:
            self._count("lost")
            self._log("lost", "an event was lost: the time limit of close was over")
            return
        self._count("failed")
        self._log(f"failed {error.name()}", f"an event was not delivered: {error}")

    def _on_error(self, error: KafkaError) -> None:
        sender = self._sender
        if error.fatal() and sender is not None:
            self._replace(sender)
        self._log(f"kafka {error.name()}", f"Kafka: {error}")

    def _count(self, name: str, by: int = 1) -> None:
        with self._lock:
            self._numbers[name] += by

    def _drop(self, why: str, *, trace: bool = False) -> None:
        self._count("dropped")
        self._log(why, f"an event was dropped: {why}", trace=trace)

    def _reject(self, error: RejectedError) -> None:
        with self._lock:
            self._reasons[error.reason.value] += 1
        self._log(f"rejected {error.reason}", f"an event was rejected: {error}")

    # --- counting and ending ---------------------------------------------------------------------

    @property
    def counts(self) -> Counts:
        """What became of this process's events so far."""
        with self._lock:
            numbers, reasons = Counter(self._numbers), dict(self._reasons)
        return Counts(
            sent=numbers["sent"],
            delivered=numbers["delivered"],
            failed=numbers["failed"],
            lost=numbers["lost"],
            dropped=numbers["dropped"],
            rejected=sum(reasons.values()),
            rejected_by=reasons,
        )

    def flush(self, timeout_s: float) -> int:
        """Wait until Kafka has everything; returns how many events are not yet acknowledged."""
        sender = self._sender
        return 0 if sender is None else int(sender.producer.flush(timeout_s))

    def close(self) -> None:
        """Flush within the time limit and end; what is left is logged and counted as lost."""
        with self._lock:
            sender, self._sender, self._closed = self._sender, None, True
        atexit.unregister(self.close)
        if sender is not None:
            sender.close(self._flush_timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_clients: weakref.WeakSet[EventClient] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
