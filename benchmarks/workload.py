"""The benchmarks' made-up workload: Zipf users and products, loaded into Kafka before the clock.

Every contestant of a benchmark reads the same records.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from confluent_kafka import Producer
from numpy.typing import NDArray

from udfs.product_record import VERSION, ProductRecord, RelatedRow, encode
from udfs.schemas import Event, Product, encode_event, encode_product, encode_vector

DIMENSIONS: Final = 64
SPACE: Final = "bench-v1"
# Half of what people do on a shop's pages is looking; the shares are made up.
_TYPES: Final = ("click", "scroll", "add_to_cart", "purchase")
_SHARES: Final = (0.55, 0.35, 0.07, 0.03)
_POPULARITY: Final = -0.8
_CATEGORIES: Final = 40
# Made-up words of the titles: eight each, of so many, by Zipf.
_TITLE_WORDS: Final = 8
_WORDS: Final = 30_000
# Products whose vectors, related products and titles are drawn at once.
_CHUNK: Final = 50_000
_FIRST_SEEN_MS: Final = 1_600_000_000_000


@dataclass(frozen=True)
class Workload:
    """What is drawn; the same seed gives the same records."""

    events: int = 500_000
    users: int = 100_000
    products: int = 10_000
    related: int = 50
    """Related products that each product names, at random; 0: none."""
    zipf: float = 1.0
    """Exponent of the users' activity: the r-th user's share is proportional to r ** -zipf."""
    seed: int = 1

    def vectors(self) -> NDArray[np.float32]:
        """Unit vectors of the products, shape (products, 64), in clusters as real ones are."""
        rng, centres, cluster_of = self._clusters()
        vectors = np.empty((self.products, DIMENSIONS), dtype=np.float32)
        for part in self._chunks():
            chosen = centres[cluster_of[part]]
            raw = chosen + 0.6 * rng.standard_normal(chosen.shape)
            vectors[part] = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        return vectors

    def _clusters(self) -> tuple[np.random.Generator, NDArray[np.float64], NDArray[np.int64]]:
        """Draw the clusters' centres, and the cluster of each product."""
        rng = np.random.default_rng(self.seed)
        centres = rng.standard_normal((max(10, self.products // 50), DIMENSIONS))
        return rng, centres, rng.integers(0, len(centres), self.products)

    def _chunks(self) -> Iterator[slice]:
        for at in range(0, self.products, _CHUNK):
            yield slice(at, min(at + _CHUNK, self.products))

    def titles(self) -> Iterator[str]:
        """Titles of the products: words by Zipf, and one that is their own."""
        rng = np.random.default_rng(self.seed + 5)
        share = np.arange(1, _WORDS + 1, dtype=np.float64) ** -1.0
        share /= share.sum()
        for part in self._chunks():
            shape = (part.stop - part.start, _TITLE_WORDS - 1)
            drawn = rng.choice(_WORDS, shape, p=share).tolist()
            for number, words in zip(range(part.start, part.stop), drawn, strict=True):
                yield " ".join([f"Product{number}", *(f"word{word}" for word in words)])

    def product_id(self, number: int) -> str:
        """Id of a product, as long as a real one."""
        return f"B{number:09d}"

    def catalogue(self) -> Iterator[tuple[str, bytes]]:
        """Records of the catalogue topic: key and value."""
        rng = np.random.default_rng(self.seed + 2)
        fading = [round(float(one), 4) for one in np.linspace(1, 0.1, self.related)]
        for number, (vector, title) in enumerate(zip(self.vectors(), self.titles(), strict=True)):
            others = map(self.product_id, rng.integers(0, self.products, self.related).tolist())
            product = Product(
                product_id=self.product_id(number),
                space=SPACE,
                embedding=encode_vector(vector),
                title=title,
                category=_category(number),
                price=_price(number),
                related=dict(zip(others, fading, strict=True)) or None,
            )
            yield product.product_id, encode_product(product)

    def records(self) -> Iterator[tuple[str, bytes]]:
        """Records of the topic `products`, as the catalogue operator writes them."""
        for number, (vector, title) in enumerate(zip(self.vectors(), self.titles(), strict=True)):
            record = ProductRecord(
                version=VERSION,
                product_id=self.product_id(number),
                title=title,
                category=_category(number),
                price=_price(number),
                in_stock=True,
                vectors={SPACE: encode_vector(vector)},
                is_text=False,
                first_seen_ms=_FIRST_SEEN_MS,
                updated_us=_FIRST_SEEN_MS * 1000,
            )
            yield record.product_id, encode(record)

    def related_rows(self) -> Iterator[tuple[str, bytes]]:
        """Records of the topic `related`: in turns of the product's cluster, and popular ones."""
        rng = np.random.default_rng(self.seed + 6)
        _, _, cluster_of = self._clusters()
        # The next in this order are of the same cluster, mostly.
        order = np.argsort(cluster_of, kind="stable")
        place = np.empty(self.products, dtype=np.int64)
        place[order] = np.arange(self.products)
        near = np.arange(1, self.related - self.related // 2 + 1)
        share = self._popularity()
        fading = [round(float(one), 4) for one in np.linspace(1, 0.1, self.related)]
        for part in self._chunks():
            shape = (part.stop - part.start, self.related // 2)
            drawn = rng.choice(self.products, shape, p=share)
            mates = order[(place[part, None] + near) % self.products]
            others = np.empty((shape[0], self.related), dtype=np.int64)
            others[:, ::2], others[:, 1::2] = mates, drawn
            for number, row in zip(range(part.start, part.stop), others.tolist(), strict=True):
                related = dict(zip(map(self.product_id, row), fading, strict=True))
                related.pop(self.product_id(number), None)
                yield (
                    self.product_id(number),
                    encode(RelatedRow(VERSION, self.product_id(number), related)),
                )

    def _popularity(self) -> NDArray[np.float64]:
        popularity = np.arange(1, self.products + 1, dtype=np.float64) ** _POPULARITY
        share: NDArray[np.float64] = popularity / popularity.sum()
        return share

    def stream(self, *, start_ms: int | None = None) -> Iterator[tuple[str, bytes]]:
        """Records of the events topic, one millisecond of event time apart, ending at now."""
        rng = np.random.default_rng(self.seed + 1)
        share = np.arange(1, self.users + 1, dtype=np.float64) ** -self.zipf
        share /= share.sum()
        users = rng.choice(self.users, self.events, p=share).tolist()
        products = rng.choice(self.products, self.events, p=self._popularity()).tolist()
        types = rng.choice(len(_TYPES), self.events, p=_SHARES).tolist()
        first = start_ms if start_ms is not None else int(time.time() * 1000) - self.events
        for number in range(self.events):
            event = Event(
                event_id=f"0190{self.seed:04x}-{number:012x}",
                user_id=f"user-{users[number]:07d}",
                type=_TYPES[types[number]],
                ts=first + number,
                product_id=self.product_id(products[number]),
                session_id=f"s{users[number]}",
            )
            yield event.user_id, encode_event(event)


def _category(number: int) -> str:
    return f"CATEGORY_{number % _CATEGORIES}"


def _price(number: int) -> float:
    return round(1 + (number * 37 % 20_000) / 100, 2)


def producer(bootstrap: str) -> Any:
    """Make the producer that all of the benchmarks' records come from."""
    return Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "linger.ms": 50,
            "queue.buffering.max.messages": 200_000,
            "compression.type": "lz4",
        }
    )


def load(bootstrap: str, topic: str, records: Iterator[tuple[str, bytes]]) -> int:
    """Put records into a topic and wait until Kafka has acknowledged all of them.

    Returns:
        How many.

    Raises:
        RuntimeError: Kafka did not take one.
    """
    client = producer(bootstrap)
    failed: list[str] = []

    def delivered(error: object, _message: object) -> None:
        if error is not None:
            failed.append(str(error))

    count = 0
    for key, value in records:
        while True:
            try:
                client.produce(topic, value, key, on_delivery=delivered)
                break
            except BufferError:
                client.poll(0.1)
        count += 1
        if count % 1000 == 0:
            client.poll(0)
    left = client.flush(60)
    if failed or left:
        msg = f"{len(failed) + left} of {count} records were not taken: {failed[:1]}"
        raise RuntimeError(msg)
    return count
