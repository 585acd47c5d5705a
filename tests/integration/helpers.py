"""The job on the real servers with topics and a keyspace of its own; a producer that counts."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from msgspec.structs import replace

from connectors.cassandra_schema import create_schema, event_id_of
from connectors.cassandra_session import CassandraOptions, connect
from connectors.kafka_client import KafkaClientOptions
from connectors.topic_publisher import TopicPublisher
from local.cli import CATALOGUE, DEAD_LETTERS, EVENTS, PRODUCTS, RELATED, TOPICS
from local.errors import StackError
from local.stack import Stack
from tests.unit import builders
from tests.verification import (
    CatalogueItem,
    Encoder,
    SaidProduct,
    StoredCatalogue,
    StoredList,
    StoredRow,
    Verdict,
    identity,
    replay,
    unit,
    verify,
)
from udfs.product_record import encode
from udfs.schemas import (
    SPACE_KEY,
    Event,
    Product,
    Reason,
    encode_event,
    encode_product,
    encode_vector,
)

SPACE: Final = "text64-v1"
DIMENSIONS: Final = 64
# As short as the checks allow, so that a test waits little.
JOB_SETTINGS: Final[Mapping[str, str]] = {
    "execution.checkpointing.interval": "2 s",
    "execution.checkpointing.min-pause": "500 ms",
    "restart-strategy.exponential-delay.max-backoff": "3 s",
}
# Kafka's own limit of a record, with room for the batch's and the record's headers.
LARGEST_VALUE: Final = 1_048_588 - 200
# The one of the key's.
ANY_PARTITION: Final = -1
# Topic, partition, offset.
Origin = tuple[str, int, int]
_numbers = itertools.count()


class MissingError(AssertionError):
    """Something did not come in time; the message names it."""


def eventually(check: Callable[[], str], timeout: float, every: float = 0.3) -> None:
    """Repeat ``check`` until it returns no complaint.

    Raises:
        MissingError: It still complains after ``timeout`` seconds; the complaint is the message.
    """
    deadline = time.monotonic() + timeout
    while True:
        complaint = check()
        if not complaint:
            return
        if time.monotonic() > deadline:
            msg = f"after {timeout:.0f} s: {complaint}"
            raise MissingError(msg)
        time.sleep(every)


def now_ms() -> int:
    """The wall clock, epoch milliseconds."""
    return time.time_ns() // 1_000_000


def click(user: str, product: str | None, kind: str = "click", **more: Any) -> Event:
    """Make an event of now with an id of its own."""
    values = {"event_id": uuid.uuid4().hex, "ts": now_ms(), **more}
    return Event(user_id=user, type=kind, product_id=product, **values)  # type: ignore[arg-type]


def clustered_vectors(count: int, seed: int = 1, per_cluster: int = 50) -> Any:
    """Make unit vectors (count, 64), float32, in clusters as real ones are."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(4, count // per_cluster), DIMENSIONS))
    raw = centres[rng.integers(0, len(centres), count)]
    raw = raw + 0.6 * rng.standard_normal((count, DIMENSIONS))
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


class Ledger:
    """A producer that keeps what Kafka acknowledged."""

    def __init__(self, bootstrap: str) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                # Longer than any outage here: nothing is given up, so nothing is of unknown fate.
                "delivery.timeout.ms": 600_000,
                "reconnect.backoff.max.ms": 500,
                "message.max.bytes": 2_000_000,
                "linger.ms": 10,
                "log_level": 0,
            }
        )
        self.acknowledged: list[Event] = []
        self.failed: list[str] = []

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        event: Event | None = None,
        placed: Callable[[Origin], None] | None = None,
        partition: int = ANY_PARTITION,
    ) -> None:
        """Queue a record; ``event`` counts, and ``placed`` is called, once Kafka has it."""

        def delivered(error: object, message: Any) -> None:
            if error is not None:
                self.failed.append(f"{topic}: {error}")
                return
            if event is not None:
                self.acknowledged.append(event)
            if placed is not None:
                placed((message.topic(), message.partition(), message.offset()))

        while True:
            try:
                self._producer.produce(
                    topic,
                    value,
                    key,
                    on_delivery=delivered,
                    partition=partition,
                )
                break
            except BufferError:
                self._producer.poll(0.1)
        self._producer.poll(0)

    def flush(self, timeout: float = 60) -> None:
        """Wait until all is acknowledged.

        Raises:
            MissingError: Kafka did not take all.
        """
        left = self._producer.flush(timeout)
        if left or self.failed:
            msg = f"Kafka did not acknowledge {left}, refused {len(self.failed)}: {self.failed[:3]}"
            raise MissingError(msg)

    def poll(self) -> None:
        """Serve acknowledgements."""
        self._producer.poll(0)


@dataclass(frozen=True)
class Letter:
    """A record of the dead-letters topic."""

    key: bytes | None
    value: bytes | None
    headers: dict[str, str]

    @property
    def origin(self) -> Origin:
        """Where the rejected record stands."""
        at = self.headers
        return at["topic"], int(at["partition"]), int(at["offset"])


@dataclass(frozen=True)
class Poison:
    """A record that must arrive whole among the dead letters."""

    topic: str
    key: bytes | None
    value: bytes | None
    reason: Reason


def poisoned_events() -> dict[str, Poison]:
    """One of each kind of bad event, by its name."""

    def wire(**changed: Any) -> bytes:
        good = {
            "event_id": uuid.uuid4().hex,
            "user_id": "bad",
            "type": "click",
            "ts": now_ms(),
            "product_id": "p0",
        }
        kept = {name: value for name, value in {**good, **changed}.items() if value is not None}
        return json.dumps(kept).encode()

    def bad(reason: Reason, value: bytes | None, key: bytes | None = b"bad") -> Poison:
        return Poison(EVENTS, key, value, reason)

    return {
        "garbage": bad(Reason.NOT_JSON, b"\x00\xff not json"),
        "cut off": bad(Reason.NOT_JSON, wire()[:-5]),
        "not UTF-8": bad(Reason.NOT_JSON, wire().replace(b"p0", b"p\xff")),
        "empty": bad(Reason.NOT_JSON, b""),
        "null value": bad(Reason.EMPTY_VALUE, None),
        "null key": bad(Reason.MISSING_KEY, wire(), None),
        "empty key": bad(Reason.MISSING_KEY, wire(), b""),
        "other key": bad(Reason.KEY_MISMATCH, wire(), b"somebody"),
        "key not UTF-8": bad(Reason.KEY_MISMATCH, wire(), b"b\xffd\xfe"),
        "no event_id": bad(Reason.INVALID_FIELD, wire(event_id=None)),
        "long event_id": bad(Reason.INVALID_FIELD, wire(event_id="x" * 129)),
        "unknown type": bad(Reason.INVALID_FIELD, wire(type="stare")),
        "text as time": bad(Reason.INVALID_FIELD, wire(ts="yesterday")),
        "seconds": bad(Reason.INVALID_FIELD, wire(ts=now_ms() // 1000)),
        "a user of nobody": bad(Reason.PLACEHOLDER, wire(user_id="undefined"), b"undefined"),
        "negative time": bad(Reason.INVALID_FIELD, wire(ts=-1)),
        "no product_id": bad(Reason.MISSING_FIELD, wire(product_id=None)),
        "no query": bad(Reason.MISSING_FIELD, wire(type="search")),
        "in the future": bad(Reason.IN_THE_FUTURE, wire(ts=now_ms() + 3_600_000)),
        "over 64 KiB": bad(Reason.TOO_LARGE, wire(session_id="x" * 66_000)),
        # The dead letter is then larger than what a topic takes by default, and is cut.
        "as large as Kafka takes": bad(Reason.TOO_LARGE, b"x" * LARGEST_VALUE),
    }


def poisoned_products(space: str = SPACE) -> dict[str, Poison]:
    """One of each kind of bad product, by its name; the space must hold 64 dimensions already."""
    ones = np.ones(DIMENSIONS, dtype=np.float32)
    not_a_number = ones.copy()
    not_a_number[3] = np.nan

    def wire(embedding: object) -> bytes:
        return json.dumps({"product_id": "bad", "space": space, "embedding": embedding}).encode()

    def bad(reason: Reason, value: bytes | None, key: bytes | None = b"bad") -> Poison:
        return Poison(CATALOGUE, key, value, reason)

    return {
        "product garbage": bad(Reason.NOT_JSON, b"{"),
        "vector without space": bad(Reason.MISSING_FIELD, b'{"product_id":"bad","embedding":[1]}'),
        "partial of nothing": bad(Reason.UNKNOWN_PRODUCT, b'{"product_id":"bad","partial":true}'),
        "product other key": bad(Reason.KEY_MISMATCH, wire([1.0] * DIMENSIONS), b"good"),
        "wrong length": bad(Reason.WRONG_LENGTH, wire([1.0] * (DIMENSIONS - 1))),
        "NaN": bad(Reason.INVALID_VECTOR, wire(encode_vector(not_a_number))),
        "zero vector": bad(Reason.INVALID_VECTOR, wire([0.0] * DIMENSIONS)),
        "no base64": bad(Reason.INVALID_VECTOR, wire("*" * 8)),
        "half a float": bad(Reason.INVALID_VECTOR, wire("AAAA")),
        "shifted columns": bad(
            Reason.INVALID_FIELD,
            wire([1.0] * DIMENSIONS).replace(b"{", b'{"category":"%b",' % (b"c" * 70_000), 1),
        ),
        "reserved key": bad(Reason.INVALID_FIELD, None, b"\0space"),
    }


@dataclass
class Pipeline:
    """The job with topics and a keyspace of its own.

    Example::

        with Pipeline.create(stack, "names") as pipeline:
            pipeline.publish(...)
            pipeline.submit()
    """

    stack: Stack
    suffix: str
    options: tuple[str, ...] = ()
    list_length: int = 20
    job_id: str | None = None
    catalogue: dict[str, CatalogueItem] = field(default_factory=dict)
    poisoned: dict[Origin, tuple[str, Poison]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.keyspace = f"test_{self.suffix}"
        self.topics = {name: f"{name}-{self.suffix}" for name in TOPICS}
        self.ledger = Ledger(self.stack.kafka.bootstrap)
        # For all but events: while a stream goes on, the ledger is never empty for long.
        self._control = Ledger(self.stack.kafka.bootstrap)
        self.parallelism = 1

    @classmethod
    def create(
        cls, stack: Stack, name: str, *options: str, list_length: int = 20, partitions: int = 4
    ) -> Pipeline:
        """Make the topics (with the configuration of the real ones) and the tables."""
        suffix = f"{name}_{next(_numbers)}"
        pipeline = cls(stack, suffix, options, list_length)
        for topic, (count, config) in TOPICS.items():
            stack.kafka.create_topic(pipeline.topics[topic], min(count, partitions), config)
        pipeline.create_tables()
        return pipeline

    def create_tables(self) -> None:
        """Make the tables that are not there."""
        server = self.stack.cassandra
        options = CassandraOptions(hosts=(server.host,), port=server.port, keyspace=self.keyspace)
        cluster, session = connect(options, role="test")
        try:
            replication: dict[str, str | int] = {"class": "SimpleStrategy", "replication_factor": 1}
            create_schema(session, self.keyspace, replication)
        finally:
            cluster.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.job_id is not None:
            with contextlib.suppress(StackError, TimeoutError):
                self.stack.flink.cancel(self.job_id)
            self.job_id = None

    # --- the job -----------------------------------------------------------------------------

    def arguments(self) -> list[str]:
        """The job's command line."""
        stack = self.stack
        return [
            *("--kafka-bootstrap", stack.kafka.bootstrap),
            *("--kafka-group", self.suffix),
            *("--events-topic", self.topics[EVENTS]),
            *("--catalogue-topic", self.topics[CATALOGUE]),
            *("--dead-letters-topic", self.topics[DEAD_LETTERS]),
            *("--products-topic", self.topics[PRODUCTS]),
            *("--related-topic", self.topics[RELATED]),
            *("--cassandra-hosts", stack.cassandra.host),
            *("--cassandra-port", str(stack.cassandra.port)),
            *("--cassandra-keyspace", self.keyspace),
            *("--list-length", str(self.list_length)),
            *self.options,
        ]

    def submit(
        self,
        parallelism: int = 1,
        *,
        savepoint: str | None = None,
        settings: Mapping[str, str] | None = None,
        running: bool = True,
    ) -> str:
        """Submit the job, and wait until it runs."""
        self.parallelism = parallelism
        flink = self.stack.flink
        self.job_id = flink.run(
            "job/main.py",
            self.arguments(),
            parallelism=parallelism,
            savepoint=savepoint,
            settings={**JOB_SETTINGS, **(settings or {})},
        )
        if running:
            flink.wait_running(self.job_id)
        return self.job_id

    @property
    def job(self) -> str:
        """The id of the submitted job."""
        if self.job_id is None:
            msg = "the job is not submitted"
            raise RuntimeError(msg)
        return self.job_id

    def failures(self) -> str:
        """The beginning of the job's newest stack trace, for a test's message."""
        with contextlib.suppress(StackError):
            found = self.stack.flink.exceptions(self.job)
            return "\n".join(found[0].splitlines()[:25]) if found else ""
        return ""

    # --- what goes in ------------------------------------------------------------------------

    def publish(
        self,
        vectors: Mapping[str, Any],
        *,
        in_stock: bool = True,
        space: str = SPACE,
        remember: bool = True,
    ) -> None:
        """Upsert products and wait for Kafka."""
        self.upsert(
            (Product(name, space, "", title=name, in_stock=in_stock), vector)
            for name, vector in vectors.items()
        )
        if remember:
            for product_id, vector in vectors.items():
                self.catalogue[product_id] = CatalogueItem(unit(vector), in_stock)

    def fill(self, vectors: Mapping[str, Any]) -> None:
        """Put whole products into the topic of products, as a job has left them."""
        for product_id, vector in vectors.items():
            whole = encode(builders.record(product_id, unit(vector).astype(np.float32), SPACE))
            self._control.send(self.topics["products"], product_id.encode(), whole)
            self.catalogue[product_id] = CatalogueItem(unit(vector))
        self._control.flush()

    def announce(self, space: str) -> None:
        """Say that a space is published whole."""
        topic = self.topics[CATALOGUE]
        options = KafkaClientOptions(bootstrap=self.stack.kafka.bootstrap, catalogue_topic=topic)
        TopicPublisher(options, topic).announce(space)

    def say(self, product_id: str, value: bytes | None, partition: int = ANY_PARTITION) -> None:
        """Send a record of the catalogue topic as it is, without waiting."""
        self._control.send(self.topics[CATALOGUE], product_id.encode(), value, partition=partition)

    def upsert(self, products: Iterable[tuple[Product, Any]]) -> None:
        """Upsert products with their vectors, and wait for Kafka."""
        for product, vector in products:
            wire = replace(product, embedding=encode_vector(vector))
            self._control.send(
                self.topics[CATALOGUE], wire.product_id.encode(), encode_product(wire), None
            )
        self._control.flush()

    def delete(self, product_id: str) -> None:
        """Publish a tombstone and wait for Kafka."""
        self._control.send(self.topics[CATALOGUE], product_id.encode(), None)
        self.catalogue.pop(product_id, None)
        self._control.flush()

    def send(self, events: Iterable[Event]) -> None:
        """Send events and wait for Kafka."""
        for event in events:
            self.post(event)
        self.ledger.flush()

    def post(self, event: Event) -> None:
        """Send an event without waiting."""
        self.ledger.send(self.topics[EVENTS], event.user_id.encode(), encode_event(event), event)

    def erase(self, user: str) -> None:
        """Send what erases a user, and wait for Kafka; from now on nothing is expected of them."""
        erase = Event(uuid.uuid4().hex, user, "erase", now_ms())
        self._control.send(self.topics[EVENTS], user.encode(), encode_event(erase))
        self._control.flush()
        kept = [event for event in self.ledger.acknowledged if event.user_id != user]
        self.ledger.acknowledged[:] = kept

    def poison(self, records: Mapping[str, Poison]) -> None:
        """Send records that must become dead letters; :meth:`wait_poison` looks for them."""
        for name, record in records.items():

            def placed(origin: Origin, name: str = name, record: Poison = record) -> None:
                self.poisoned[origin] = (name, record)

            self._control.send(self.topics[record.topic], record.key, record.value, None, placed)
        self._control.flush()

    # --- what came out -----------------------------------------------------------------------

    def query(self, cql: str) -> list[Any]:
        """Run a statement on the job's keyspace; ``{}`` in it is the keyspace's name."""
        return self.stack.cassandra.query(cql.format(self.keyspace), timeout=60)

    def count_events(self) -> int:
        """How many rows the events table has."""
        return int(self.query("SELECT count(*) AS n FROM {}.events_by_user_day")[0].n)

    def rows(self) -> list[StoredRow]:
        """All saved events."""
        found = self.query(
            "SELECT user_id, day, toUnixTimestamp(ts) AS ts_ms, event_id, type, product_id, query,"
            " session_id, dwell_ms, quantity FROM {}.events_by_user_day"
        )
        return [
            StoredRow(
                Event(
                    event_id=event_id_of(row.event_id, row.product_id),
                    user_id=row.user_id,
                    type=row.type,
                    ts=row.ts_ms,
                    product_id=row.product_id,
                    query=row.query,
                    session_id=row.session_id,
                    dwell_ms=row.dwell_ms,
                    quantity=row.quantity,
                ),
                row.day.days_from_epoch,
            )
            for row in found
        ]

    def lists(self) -> dict[str, StoredList]:
        """All saved lists by user."""
        found = self.query(
            "SELECT user_id, items, space, toUnixTimestamp(event_ts) AS event_ms,"
            " toUnixTimestamp(generated_at) AS generated_ms FROM {}.recommendations_by_user"
        )
        return {
            row.user_id: StoredList(
                tuple(item[0] for item in row.items or ()),
                np.array([item[1] for item in row.items or ()], dtype=np.float64),
                row.space,
                row.event_ms,
                row.generated_ms,
            )
            for row in found
        }

    def said(self) -> dict[str, SaidProduct]:
        """The products by a replay of all that the topic `catalogue` holds but the poison.

        Raises:
            MissingError: Compaction has removed some: what is left says no whole.
        """
        records = self.records(CATALOGUE)
        sent = sum(self.stack.kafka.end_offsets(self.topics[CATALOGUE]).values())
        if len(records) != sent:
            msg = f"{len(records)} of {sent} records of the catalogue can be read"
            raise MissingError(msg)
        others = {poison.key for _, poison in self.poisoned.values()} | {SPACE_KEY.encode()}
        return replay(
            ((one.key or b"").decode(), one.value) for one in records if one.key not in others
        )

    def stored_catalogue(self) -> StoredCatalogue:
        """What the tables and the topic `products` hold of the products, and the lists of each."""
        rows = self.query(
            "SELECT product_id, title, category, price, in_stock, record FROM {}.products"
        )
        scopes: dict[str, set[tuple[str, float | None]]] = {}
        for row in self.query("SELECT scope, price, product_id FROM {}.products_by_scope"):
            price = None if math.isnan(row.price) else row.price
            scopes.setdefault(row.product_id, set()).add((row.scope, price))
        lists = self.query("SELECT product_id, similar FROM {}.recommendations_by_product")
        return StoredCatalogue(
            {
                row.product_id: {
                    "title": row.title,
                    "category": row.category,
                    "price": None if math.isnan(row.price) else row.price,
                    "in_stock": row.in_stock,
                }
                for row in rows
            },
            {row.product_id: json.loads(row.record) for row in rows},
            scopes,
            {
                name: json.loads(value)
                for name, value in self.newest(PRODUCTS).items()
                if value is not None and name != SPACE_KEY
            },
            {row.product_id: [tuple(one) for one in row.similar or ()] for row in lists},
        )

    def list_of(self, user: str) -> StoredList | None:
        """One user's list; None where there is none."""
        return self.lists().get(user)

    def letters(self) -> list[Letter]:
        """All records of the dead-letters topic up to its present end."""
        return self.records(DEAD_LETTERS)

    def newest(self, name: str) -> dict[str, bytes | None]:
        """The newest value of each key of a compacted topic."""
        return {(one.key or b"").decode(): one.value for one in self.records(name)}

    def records(self, name: str) -> list[Letter]:
        """All records of a topic up to its present end, in the order of each partition."""
        topic = self.topics[name]
        ends = self.stack.kafka.end_offsets(topic)
        consumer = Consumer(
            {
                "bootstrap.servers": self.stack.kafka.bootstrap,
                "group.id": f"letters-{self.suffix}",
                "enable.auto.commit": False,
                "message.max.bytes": 4_000_000,
                "log_level": 0,
            }
        )
        found: list[Letter] = []
        try:
            consumer.assign([TopicPartition(topic, part, 0) for part in ends])
            missing = sum(ends.values())
            deadline = time.monotonic() + 30
            while len(found) < missing and time.monotonic() < deadline:
                message = consumer.poll(0.5)
                if message is None or message.error() is not None:
                    continue
                headers = {name: value.decode() for name, value in message.headers() or ()}
                found.append(Letter(message.key(), message.value(), headers))
        finally:
            consumer.close()
        return found

    def kafka_time(self, origin: Origin) -> int:
        """The Kafka time of a record, epoch milliseconds."""
        settings = {"bootstrap.servers": self.stack.kafka.bootstrap, "group.id": "times"}
        consumer = Consumer({**settings, "message.max.bytes": 4_000_000, "log_level": 0})
        try:
            consumer.assign([TopicPartition(*origin)])
            message = consumer.poll(30)
            assert message is not None
            assert message.offset() == origin[2]
            return int(message.timestamp()[1])
        finally:
            consumer.close()

    # --- metrics -----------------------------------------------------------------------------

    def wait_metric(self, name: str, value: float, timeout: float = 30) -> None:
        """Wait until a metric has this value in each subtask of the recommender."""
        found: list[float] = []

        def complaint() -> str:
            found[:] = self.stack.flink.metric(self.job, name)
            right = len(found) == self.parallelism and set(found) == {value}
            return "" if right else f"{name} is {found}, not {value}\n{self.failures()}"

        eventually(complaint, timeout)

    def wait_products(self, timeout: float = 30) -> None:
        """Wait until every subtask has as many products, and in stock, as were published."""
        self.wait_metric("catalogue_size", len(self.catalogue), timeout)
        in_stock = sum(item.in_stock for item in self.catalogue.values())
        self.wait_metric("catalogue_searchable", in_stock, timeout)

    # --- checks ------------------------------------------------------------------------------

    def verdict(self, encode: Encoder | None = None, space: str | None = SPACE) -> Verdict:
        """Compare what is saved now with the recomputation from what was acknowledged."""
        acknowledged = list(self.ledger.acknowledged)
        return verify(
            acknowledged,
            self.rows(),
            self.lists(),
            self.catalogue,
            k=self.list_length,
            space=space,
            encode=encode,
        )

    def wait_saved(self, timeout: float = 60) -> None:
        """Wait until there are as many saved events as acknowledged ones."""

        def complaint() -> str:
            expected = len({identity(event) for event in self.ledger.acknowledged})
            found = self.count_events()
            if found >= expected:
                return ""
            return f"{expected - found} of {expected} events are not saved\n{self.failures()}"

        eventually(complaint, timeout)

    def wait_right(
        self, encode: Encoder | None = None, timeout: float = 60, space: str | None = SPACE
    ) -> Verdict:
        """Wait until all that is saved equals the recomputation, and return the comparison."""
        self.wait_saved(timeout)
        verdicts: list[Verdict] = []

        def complaint() -> str:
            verdicts.append(self.verdict(encode, space))
            problems = verdicts[-1].problems()
            return f"{problems}\n{self.failures()}" if problems else ""

        eventually(complaint, timeout, every=1.0)
        return verdicts[-1]

    def wait_list(
        self, user: str, good: Callable[[StoredList], bool], what: str, timeout: float = 45
    ) -> StoredList:
        """Wait until a user's list is ``good``, and return it."""
        found: list[StoredList] = []

        def complaint() -> str:
            stored = self.list_of(user)
            if stored is not None and good(stored):
                found.append(stored)
                return ""
            shown = "no list" if stored is None else f"{stored.space} {stored.product_ids[:5]}"
            return f"{user}: {what}; there is: {shown}\n{self.failures()}"

        eventually(complaint, timeout)
        return found[-1]

    def wait_poison(
        self, timeout: float = 45, harmless: Callable[[Letter], bool] = lambda _letter: False
    ) -> list[Letter]:
        """Wait until all that was poisoned, and nothing else, is among the dead letters, whole.

        Args:
            timeout: How long to wait, seconds.
            harmless: Tells which other letters may be there.

        Returns:
            The dead letters; one can stand there twice after a restart.
        """
        found: list[Letter] = []

        def complaint() -> str:
            found[:] = self.letters()
            by_origin = {letter.origin: letter for letter in found}
            missing = [self.poisoned[at] for at in self.poisoned.keys() - by_origin.keys()]
            if missing:
                names = sorted(name for name, _ in missing)
                return f"dead letters are missing: {names}\n{self.failures()}"
            return ""

        eventually(complaint, timeout)
        wrong = []
        for letter in found:
            if letter.origin not in self.poisoned:
                if harmless(letter):
                    continue
                wrong.append(f"not poisoned: {letter.headers} {(letter.value or b'')[:200]!r}")
                continue
            name, record = self.poisoned[letter.origin]
            value = record.value
            if value is not None and "truncated" in letter.headers:
                wrong += [f"{name}: cut"] if len(value) < LARGEST_VALUE else []
                value = value[: len(letter.value or b"")]
            # A missing key cannot be told from an empty one.
            if (letter.key or b"") != (record.key or b"") or letter.value != value:
                wrong.append(f"{name}: not whole: key {letter.key!r}")
            if letter.headers["reason"] != record.reason.value:
                wrong.append(f"{name}: {letter.headers['reason']}, not {record.reason.value}")
        if wrong:
            raise AssertionError("\n".join(wrong))
        return found


class SteadyStream(threading.Thread):
    """Sends records at a steady rate until stopped."""

    def __init__(self, ledger: Ledger, send: Callable[[], None], rate: int) -> None:
        """Call ``send``, which sends through ``ledger``, ``rate`` times a second."""
        super().__init__(daemon=True)
        self._ledger = ledger
        self._send = send
        self._rate = rate
        self._end = threading.Event()
        self._failure: BaseException | None = None

    def run(self) -> None:
        try:
            started, sent = time.monotonic(), 0
            while not self._end.wait(0.02):
                due = int((time.monotonic() - started) * self._rate)
                while sent < due and not self._end.is_set():
                    self._send()
                    sent += 1
                self._ledger.poll()
        except BaseException as error:
            self._failure = error
            raise

    def stop(self) -> None:
        """Stop sending, and wait until Kafka has acknowledged all."""
        self._end.set()
        self.join(30)
        if self.is_alive() or self._failure is not None:
            msg = f"the stream did not end well: {self._failure}"
            raise MissingError(msg)
        self._ledger.flush(120)
