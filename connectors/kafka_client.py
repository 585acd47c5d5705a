"""Kafka without Flink: the options of plain clients, and a producer whose caller waits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from connectors.sparing_log import SparingLog

logger = logging.getLogger(__name__)

PROPERTY_PREFIX: Final = "KAFKA_PROPERTY_"
_POLL: Final = 0.2
_REFUSED: Final = (KafkaError._AUTHENTICATION, KafkaError._SSL)


@dataclass(frozen=True, slots=True)
class KafkaClientOptions:
    """Where Kafka is and how it is spoken to; ``repr`` shows no property, which may be a secret.

    Attributes:
        bootstrap: Bootstrap servers, host:port separated by commas.
        events_topic: The topic of events, key = user id.
        catalogue_topic: The compacted topic of what the shop says of products, key = product id.
        products_topic: The compacted topic of whole products, which the job writes.
        related_topic: The compacted topic of what was learned of products.
        properties: Further settings of librdkafka, such as security.protocol, sasl.mechanism,
            sasl.username, sasl.password and ssl.ca.location.
    """

    bootstrap: str = "127.0.0.1:9092"
    events_topic: str = "events"
    catalogue_topic: str = "catalogue"
    products_topic: str = "products"
    related_topic: str = "related"
    properties: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_env(cls, prefix: str, environ: Mapping[str, str]) -> KafkaClientOptions:
        """Read ``<prefix>KAFKA_BOOTSTRAP``, ``<prefix>KAFKA_EVENTS_TOPIC`` and so on, properties.

        A property's name is its variable's, with dots for the underscores:
        ``<prefix>KAFKA_PROPERTY_SASL_PASSWORD`` sets sasl.password.

        Raises:
            ValueError: A variable is set but empty.
        """
        values: dict[str, Any] = {}
        for name in (one.name for one in fields(cls) if one.name != "properties"):
            raw = environ.get(f"{prefix}KAFKA_{name.upper()}")
            if raw is None:
                continue
            if not raw.strip():
                msg = f"{prefix}KAFKA_{name.upper()} is set but empty; unset it for the default"
                raise ValueError(msg)
            values[name] = raw
        start = prefix + PROPERTY_PREFIX
        properties = {
            name[len(start) :].lower().replace("_", "."): value
            for name, value in environ.items()
            if name.startswith(start)
        }
        return cls(**values, properties=properties)


class RefusedError(Exception):
    """Kafka does not let this client in; the message says why."""


class Refusal:
    """Remembers why Kafka does not let a client in; to be given to it as ``error_cb``.

    Without it a wrong password looks like a broker that is away: requests run into their limit.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    def __call__(self, error: KafkaError) -> None:
        """Take an error of the client's."""
        if error.code() in _REFUSED:
            self.reason = error.str()


def reach(admin: Any, refusal: Refusal, timeout_s: float) -> None:
    """Wait until Kafka answers.

    Args:
        admin: An AdminClient whose ``error_cb`` is ``refusal``.
        refusal: Its.
        timeout_s: How long, seconds.

    Raises:
        RefusedError: It does not let the client in, which is known within a second or two.
        KafkaException: It did not answer.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            admin.list_topics(timeout=1.0)
        except KafkaException as error:
            admin.poll(0)
            if refusal.reason is not None:
                msg = f"Kafka does not let this client in: {refusal.reason}"
                raise RefusedError(msg) from error
            if time.monotonic() > deadline:
                raise
        else:
            return


class NotAcknowledgedError(Exception):
    """Kafka did not acknowledge a record in time, or refused it.

    Whether it holds the record is not known: send it again, which is harmless where the key names
    what is replaced.
    """


def log_errors(logger: logging.Logger) -> Callable[[KafkaError], None]:
    """Make an ``error_cb`` that logs what a client says of Kafka, one line a kind and minute."""
    log = SparingLog(logger)
    return lambda error: log(f"kafka {error.name()}", f"Kafka: {error}")


class AcknowledgedProducer:
    """Sends records and returns when all in-sync replicas have them; safe for several threads.

    Args:
        options: Where Kafka is.
        timeout_s: How long a call waits, seconds; a record is given up then.
        make_producer: Makes the producer from its settings; for tests.

    Raises:
        KafkaException: A setting is unknown or not valid. An absent broker is no error.
    """

    def __init__(
        self, options: KafkaClientOptions, *, timeout_s: float = 5.0, make_producer: Any = Producer
    ) -> None:
        self._timeout_s = timeout_s
        self._producer = make_producer(
            {
                "bootstrap.servers": options.bootstrap,
                "client.id": "recommender-api",
                "linger.ms": 5,
                "partitioner": "murmur2_random",
                "reconnect.backoff.max.ms": 2000,
                # Errors come to `error_cb`; librdkafka would also print each one.
                "log_level": 2,
                "error_cb": log_errors(logger),
                **options.properties,
                "enable.idempotence": True,
                # What nobody waits for any more shall not arrive later either.
                "message.timeout.ms": int(timeout_s * 1000),
            }
        )
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="kafka-producer", daemon=True)
        self._thread.start()

    def send(self, topic: str, records: Sequence[tuple[str, bytes | None]]) -> None:
        """Send (key, value) pairs, in this order; a value of None deletes.

        Raises:
            NotAcknowledgedError: At least one was not acknowledged.
        """
        deadline = time.monotonic() + self._timeout_s
        pending = threading.Semaphore(0)
        failed: list[str] = []

        def delivered(error: Any, _message: Any) -> None:
            if error is not None:
                failed.append(str(error.name()))
            pending.release()

        sent = 0
        try:
            for key, value in records:
                self._producer.produce(topic, value, key.encode(), on_delivery=delivered)
                sent += 1
        except (BufferError, KafkaException) as error:
            msg = f"the producer does not take it: {error}"
            raise NotAcknowledgedError(msg) from error
        for _ in range(sent):
            # A little longer than the records' own limit, whose report says more.
            if not pending.acquire(timeout=max(0.0, deadline + 0.5 - time.monotonic())):
                msg = f"not acknowledged within {self._timeout_s:g} s"
                raise NotAcknowledgedError(msg)
        if failed:
            msg = f"{len(failed)} of {sent} not acknowledged: {failed[0]}"
            raise NotAcknowledgedError(msg)

    def close(self) -> None:
        """Wait for what is under way, at most as long as a call may, and end; may be repeated."""
        if self._closed.is_set():
            return
        self._producer.flush(self._timeout_s)
        self._closed.set()
        self._thread.join(5 * _POLL)

    def _poll(self) -> None:
        while not self._closed.is_set():
            self._producer.poll(_POLL)
