"""The catalogue in a worker's memory: followed in its Kafka topic, for titles, prices and stock.

Why so: a list names twenty products, and each answer needs title, price and stock of all of them
as they are now. The compacted topic `products` holds exactly that and tells every change within
milliseconds; asking Cassandra costs a second query of each request, or a cache that is wrong for
its time to live. The shop window's search and map need the vectors too; the same class as in the
job holds them here (`udfs.catalogue.Catalogue`), so the same space is active. Memory is bounded by
a number of products; what is beyond is read from Cassandra when it is asked for.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from confluent_kafka import Consumer

from connectors.compacted_topic import CompactedTopics
from connectors.kafka_client import KafkaClientOptions
from connectors.product_rows import ProductRow
from udfs.catalogue import Catalogue
from udfs.product_record import ProductRecord, SpaceSwitch, decode_record, decode_switch
from udfs.query_encoder import DIMENSIONS, SPACE, encode_query
from udfs.schemas import SPACE_KEY, RejectedError, decode_tombstone

logger = logging.getLogger(__name__)

_BATCH: Final = 500
_POLL_SECONDS: Final = 0.5
_RETRY_SECONDS: Final = 2.0


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
        # What was read before all was: loaded at once, which is cheaper, and makes the same space
        # the active one as in the job; None: it is loaded.
        self._waiting: dict[str, ProductRecord] | None = {}
        self._switch: SpaceSwitch | None = None
        # Changes that were taken since the process began.
        self.changes = 0
        self._caught_up = False
        self.rejected = 0

    def __len__(self) -> int:
        """Number of products."""
        return len(self._rows)

    @property
    def caught_up(self) -> bool:
        """Whether everything was read that was in the topic when reading began."""
        return self._caught_up

    @caught_up.setter
    def caught_up(self, caught_up: bool) -> None:
        waiting = self._waiting
        if caught_up and waiting is not None:
            # Taken out one by one: what is loaded need not be held twice.
            records = (waiting.pop(product_id) for product_id in list(waiting))
            with self._lock:
                self.rejected += self._vectors.load(records, (), self._switch)
            self._waiting = None
        self._caught_up = caught_up

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

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Take one record of `products`; what is none is counted and ignored.

        Args:
            key: The record's key.
            value: The record's value; None deletes.
        """
        wire_key = (key or b"").decode("latin-1")
        try:
            if wire_key == SPACE_KEY and value is not None:
                self._announced(decode_switch(value))
            elif value is None:
                self._remove(decode_tombstone(wire_key))
            else:
                self._put(decode_record(wire_key, value))
        except RejectedError:
            self.rejected += 1

    def _announced(self, switch: SpaceSwitch) -> None:
        self._switch = switch
        if self._waiting is None:
            with self._lock:
                self._vectors.switch(switch)
            # Other vectors may be active now.
            self.changes += 1

    def _remove(self, product_id: str) -> None:
        with self._lock:
            self._rows.pop(product_id, None)
            self._left_out.discard(product_id)
            if self._waiting is None:
                self._vectors.remove(product_id)
            else:
                self._waiting.pop(product_id, None)
        self._changed(product_id, None)

    def _put(self, record: ProductRecord) -> None:
        product_id = record.product_id
        with self._lock:
            if product_id not in self._rows and len(self._rows) >= self._max_products:
                if not self._left_out:
                    logger.error(
                        "the catalogue has more than %d products; the rest is read from Cassandra",
                        self._max_products,
                    )
                self._left_out.add(product_id)
                return
            row = self._rows[product_id] = ProductRow.of(record, record.updated_us // 1000)
            self._left_out.discard(product_id)
        self._changed(product_id, row)
        if self._waiting is None:
            # Last: what is shown of a product holds also where a vector of it is left out.
            with self._lock:
                self.rejected += self._vectors.put(record) is not None
        else:
            self._waiting[product_id] = record

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
                # It begins anew, with what is older than what is here.
                self._memory.caught_up = False
                self._stop.wait(_RETRY_SECONDS)

    def _follow(self) -> None:
        memory = self._memory
        settings = {
            "bootstrap.servers": self._options.bootstrap,
            "client.id": "recommender-api-catalogue",
            # Each worker reads all. Nothing is committed.
            "group.id": "recommender-api-catalogue",
            **self._options.properties,
        }
        topics = [self._options.products_topic]
        reader = CompactedTopics(settings, topics, make_consumer=self._make_consumer)
        try:
            while not self._stop.is_set():
                for record in reader.read(_BATCH, _POLL_SECONDS):
                    memory.apply(record.key, record.value)
                if reader.caught_up and not memory.caught_up:
                    memory.caught_up = True
                    logger.info("the catalogue is read: %d products", len(memory))
        finally:
            reader.close()
