"""The catalogue in a worker's memory: followed in its Kafka topic, for titles, prices and stock.

Why so: a list names twenty products, and each answer needs title, price and stock of all of them
as they are now. The compacted topic holds exactly that and tells every change within
milliseconds; asking Cassandra costs a second query of each request, or a cache that is wrong for
its time to live. The shop window's search and map need the vectors too; the same class as in the
job holds them here (`udfs.catalogue.Catalogue`), so the same space is active. Memory is bounded by
a number of products; what is beyond is read from Cassandra when it is asked for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, KafkaException, TopicPartition

from connectors.kafka_client import KafkaClientOptions, log_errors
from connectors.product_rows import ProductRow
from udfs.catalogue import Catalogue
from udfs.index import FloatMatrix
from udfs.query_encoder import DIMENSIONS, SPACE, encode_query
from udfs.schemas import (
    SPACE_KEY,
    RejectedError,
    decode_product,
    decode_space_notice,
    decode_tombstone,
)

logger = logging.getLogger(__name__)

_BATCH: Final = 500
_POLL_SECONDS: Final = 0.5
# How often new partitions of the topic are looked for.
_PARTITIONS_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 2.0


class Learned(NamedTuple):
    """What a product's record holds that a shop does not write, see `job.vectors`.

    ``vector`` is that of the space that is searched, or None where the product has none of its own
    there. ``title`` is the one that it may have been made of; None where it was learned otherwise.
    """

    space: str = ""
    vector: FloatMatrix | None = None
    title: str | None = None
    related: dict[str, float] | None = None
    rebuy_days: float | None = None
    rebuy_share: float = 0.0


class CatalogueMemory:
    """Products by id and their vectors; safe for several threads.

    Args:
        max_products: Products that are kept; those that come when it is full are counted in
            ``skipped`` and left out.
    """

    def __init__(self, max_products: int) -> None:
        self._max_products = max_products
        self._listener: Callable[[str, ProductRow | None], None] | None = None
        self._lock = threading.Lock()
        self._rows: dict[str, ProductRow] = {}
        # The encoder is that of the job; only the shop window asks for the vector of a text.
        self._vectors = Catalogue(
            encoder=encode_query, encoder_space=SPACE, encoder_dimensions=DIMENSIONS
        )
        self._left_out: set[str] = set()
        # Changes that were taken since the process began.
        self.changes = 0
        self._caught_up = threading.Event()
        self.rejected = 0

    def __len__(self) -> int:
        """Number of products."""
        return len(self._rows)

    @property
    def caught_up(self) -> bool:
        """Whether everything was read that was in the topic when reading began."""
        return self._caught_up.is_set()

    @caught_up.setter
    def caught_up(self, caught_up: bool) -> None:
        (self._caught_up.set if caught_up else self._caught_up.clear)()

    def wait_caught_up(self, timeout_s: float) -> bool:
        """Wait until `caught_up`, at most so many seconds; whether it is."""
        return self._caught_up.wait(timeout_s)

    @property
    def skipped(self) -> int:
        """Number of products that had no room."""
        return len(self._left_out)

    @property
    def complete(self) -> bool:
        """Whether a product that is not here does not exist."""
        return self.caught_up and not self._left_out

    @property
    def rows(self) -> Mapping[str, ProductRow]:
        """Products by id, as they are at each look; what is absent: see `complete`."""
        return self._rows

    def apply(self, key: bytes | None, value: bytes | None, ts: int, partition: int = 0) -> None:
        """Take one record of the topic; one that the job would reject is counted and ignored.

        Args:
            key: The record's key.
            value: The record's value; None deletes.
            ts: The record's time, epoch milliseconds.
            partition: Where it stands.
        """
        wire_key = (key or b"").decode("latin-1")
        try:
            if wire_key == SPACE_KEY and value is not None:
                notice = decode_space_notice(value)
                with self._lock:
                    self._vectors.notice(notice, partition)
                # Other vectors may be active now.
                self.changes += 1
                return
            if value is None:
                product_id = decode_tombstone(wire_key)
                with self._lock:
                    self._rows.pop(product_id, None)
                    self._left_out.discard(product_id)
                    self._vectors.delete(product_id)
                self._changed(product_id, None)
                return
            product, vector = decode_product(wire_key, value)
            with self._lock:
                if product.product_id not in self._rows and len(self._rows) >= self._max_products:
                    if not self._left_out:
                        logger.error(
                            "the catalogue has more than %d products; the rest is read from"
                            " Cassandra",
                            self._max_products,
                        )
                    self._left_out.add(product.product_id)
                    return
                self._vectors.upsert(product, vector)
                row = self._rows[product.product_id] = ProductRow.of(product, ts)
                self._left_out.discard(product.product_id)
            self._changed(product.product_id, row)
        except RejectedError:
            # The job sends it to the dead letters, with its reason.
            self.rejected += 1

    def follow(self, listener: Callable[[str, ProductRow | None], None]) -> None:
        """Tell ``listener`` of each product there is, and of each change from now on.

        To be called before the topic is read; it is called in the thread that reads it.

        Args:
            listener: Takes a product id and its new row; None where it was deleted.
        """
        for product_id, row in self._rows.items():
            listener(product_id, row)
        self._listener = listener

    def _changed(self, product_id: str, row: ProductRow | None) -> None:
        self.changes += 1
        if self._listener is not None:
            self._listener(product_id, row)

    @contextmanager
    def vectors(self) -> Iterator[Catalogue]:
        """Give the catalogue with its vectors, to be read; it does not change meanwhile."""
        with self._lock:
            yield self._vectors

    def learned(self, product_id: str) -> Learned:
        """Return what was learned of a product; of one that is not here, nothing."""
        with self.vectors() as catalogue:
            row = self._rows.get(product_id)
            if row is None:
                return Learned()
            facts = catalogue.facts.product(product_id)
            return Learned(
                catalogue.space or "",
                catalogue.own_vector(product_id),
                row.title if catalogue.space == SPACE else None,
                facts.related,
                facts.rebuy_days,
                facts.rebuy_share,
            )


class CatalogueFollower:
    """The thread that reads the topic from its beginning into a `CatalogueMemory`, and goes on.

    Args:
        memory: What it fills.
        options: Where Kafka is.
        make_consumer: Makes the consumer from its settings; for tests.
    """

    def __init__(
        self,
        memory: CatalogueMemory,
        options: KafkaClientOptions,
        *,
        make_consumer: Callable[[dict[str, Any]], Any] = Consumer,
    ) -> None:
        self._memory = memory
        self._options = options
        self._make_consumer = make_consumer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="catalogue", daemon=True)
        # Partition -> where it ended when reading began.
        self._ends: dict[int, int] = {}
        self._behind: set[int] = set()

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self) -> None:
        """Stop reading; returns when the thread has ended."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5 * _POLL_SECONDS)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except Exception:
                # A thread that ended here would leave the service with an old catalogue for good.
                logger.exception("following the catalogue failed, again in %g s", _RETRY_SECONDS)
                self._stop.wait(_RETRY_SECONDS)

    def _follow(self) -> None:
        consumer = self._make_consumer(
            {
                "bootstrap.servers": self._options.bootstrap,
                "client.id": "recommender-api-catalogue",
                # Partitions are assigned here: each worker reads all. Nothing is committed.
                "group.id": "recommender-api-catalogue",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "reconnect.backoff.max.ms": 2000,
                "log_level": 2,
                "error_cb": log_errors(logger),
                **self._options.properties,
            }
        )
        try:
            known: set[int] = set()
            self._ends, self._behind = {}, set()
            looked = float("-inf")
            while not self._stop.is_set():
                if time.monotonic() - looked > _PARTITIONS_SECONDS:
                    known |= self._assign_new(consumer, known)
                    looked = time.monotonic() if known else looked
                    if not known:
                        # Nothing is assigned: it only gives what the client has to say, such as
                        # a wrong password.
                        consumer.poll(0)
                        self._stop.wait(_RETRY_SECONDS)
                        continue
                for message in consumer.consume(_BATCH, _POLL_SECONDS):
                    self._take(message)
                self._check_caught_up(consumer)
        finally:
            consumer.close()

    def _assign_new(self, consumer: Any, known: set[int]) -> set[int]:
        topic = self._options.catalogue_topic
        try:
            found = consumer.list_topics(topic, timeout=5).topics[topic]
            if found.error is not None:
                logger.warning("catalogue topic %s: %s", topic, found.error)
                return set()
            new = set(found.partitions) - known
            ends = {
                partition: consumer.get_watermark_offsets(
                    TopicPartition(topic, partition), timeout=5
                )[1]
                for partition in new
            }
        except KafkaException as error:
            logger.warning("catalogue topic %s cannot be read: %s", topic, error)
            return set()
        if new:
            self._ends |= ends
            self._behind |= new
            consumer.incremental_assign([TopicPartition(topic, one, 0) for one in sorted(new)])
        return new

    def _take(self, message: Any) -> None:
        if message.error() is not None:
            logger.warning("catalogue topic: %s", message.error())
            return
        self._memory.apply(
            message.key(), message.value(), message.timestamp()[1], message.partition()
        )

    def _check_caught_up(self, consumer: Any) -> None:
        if not self._behind:
            return
        topic = self._options.catalogue_topic
        # A position, not the last record's offset: compaction leaves gaps, also at the end.
        positions = consumer.position([TopicPartition(topic, one) for one in self._behind])
        for one in positions:
            if one.offset >= self._ends[one.partition] or self._ends[one.partition] == 0:
                self._behind.discard(one.partition)
        if not self._behind and not self._memory.caught_up:
            self._memory.caught_up = True
            logger.info("the catalogue is read: %d products", len(self._memory))
