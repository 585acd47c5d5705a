"""Doubles of the service's clients, and an application over them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from flask.testing import FlaskClient

from api.catalogue_memory import CatalogueMemory
from api.config import ApiConfig
from api.factory import create_app
from connectors.event_client import Counts
from connectors.kafka_client import NotAcknowledgedError
from connectors.product_rows import ProductRow
from tests.contract.memory_store import InMemoryRecommendationStore
from udfs.product_record import VERSION, ProductRecord, encode
from udfs.schemas import Event, encode_vector

NOW = 1_773_144_000_000


class Events:
    """Keeps events up to ``room``."""

    def __init__(self, room: int = 10_000) -> None:
        self.room = room
        self.taken: list[Event] = []

    @property
    def counts(self) -> Counts:
        return Counts(sent=len(self.taken))

    def offer(self, event: Event) -> bool:
        if len(self.taken) >= self.room:
            return False
        self.taken.append(event)
        return True

    def close(self) -> None: ...


class Records:
    """Keeps records; set ``away`` and none is acknowledged."""

    def __init__(self) -> None:
        self.away = False
        self.sent: list[tuple[str, str, bytes | None]] = []

    def send(self, topic: str, records: Sequence[tuple[str, bytes | None]]) -> None:
        if self.away:
            msg = "not acknowledged within 5 s"
            raise NotAcknowledgedError(msg)
        self.sent += [(topic, key, value) for key, value in records]

    def close(self) -> None: ...


class Shop:
    """The application with everything it talks to in memory."""

    def __init__(
        self,
        config: ApiConfig | None = None,
        *,
        catalogue: CatalogueMemory | None = None,
        store: InMemoryRecommendationStore | None = None,
    ) -> None:
        self.store = InMemoryRecommendationStore() if store is None else store
        self.events = Events()
        self.records = Records()
        self.app = create_app(
            config or ApiConfig(),
            store=self.store,
            catalogue=catalogue,
            event_sink=self.events,
            record_sink=self.records,
        )
        self.client: FlaskClient = self.app.test_client()

    def add(self, *rows: ProductRow) -> None:
        for row in rows:
            self.store.save_product(None, row)

    def get(self, path: str, **given: Any) -> Any:
        response = self.client.get(path, **given)
        assert response.status_code == 200, response.text
        return json.loads(response.data)


def product(
    product_id: str,
    category: str = "MONITOR",
    price: float | None = 10.0,
    *,
    in_stock: bool = True,
) -> ProductRow:
    return ProductRow(product_id, f"The {product_id}", category, price, in_stock, NOW)


def record(
    product_id: str,
    vector: Sequence[float] | None = None,
    *,
    space: str = "s",
    title: str = "",
    category: str = "",
    price: float | None = None,
    in_stock: bool = True,
) -> bytes:
    """A record of the topic `products`."""
    vectors = {}
    if vector is not None:
        vectors[space] = encode_vector(np.array(vector, np.float32) / np.linalg.norm(vector))
    return encode(
        ProductRecord(
            version=VERSION,
            product_id=product_id,
            title=title,
            category=category,
            price=price,
            in_stock=in_stock,
            vectors=vectors,
            is_text=False,
            first_seen_ms=NOW,
            updated_us=1000 * NOW,
        )
    )


def ids(items: Iterable[dict[str, Any]]) -> list[str]:
    return [item["product_id"] for item in items]
