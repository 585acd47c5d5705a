"""What the views work with: stores, clients and the settings, kept on the application object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Protocol, cast

from flask import Flask, current_app

from api.access import Access
from api.catalogue_memory import CatalogueMemory
from api.config import ApiConfig
from api.rate_limit import RateLimiter
from api.shelf import Shelf
from api.shop.projection import Mapper
from api.shop.pulse import Pulse
from api.shop.shelves import Shelves
from connectors.event_client import Counts
from connectors.recommendation_store import RecommendationStore
from udfs.schemas import Event

_EXTENSION = "recommender"


class EventSink(Protocol):
    """Takes events without waiting; `connectors.event_client.EventClient`."""

    @property
    def counts(self) -> Counts:
        """What became of the events so far."""
        ...

    def offer(self, event: Event) -> bool:
        """Take an event; False where there is no room for it."""
        ...

    def close(self) -> None:
        """Wait until they are delivered, within a time limit, and end."""
        ...


class RecordSink(Protocol):
    """Takes records and returns when they are safe; `kafka_client.AcknowledgedProducer`."""

    def send(self, topic: str, records: Sequence[tuple[str, bytes | None]]) -> None:
        """Send (key, value) pairs and wait for their acknowledgement."""
        ...

    def close(self) -> None:
        """End."""
        ...


@dataclass(frozen=True, slots=True)
class ShopWindow:
    """The parts behind the routes of the shop window alone."""

    shelves: Shelves
    mapper: Mapper
    pulse: Pulse


@dataclass(frozen=True, slots=True)
class Services:
    """The parts behind the routes.

    Attributes:
        config: The settings.
        access: Who may do what.
        limiter: How often.
        store: Recommendations, events, products, erasures.
        shelf: Products and public lists, from memory first.
        catalogue: The catalogue in memory; None where it is not followed.
        window: The parts of the shop window; None where there is none.
        events: Where events go.
        records: Where catalogue changes and erasures go.
        waiting_writes: Bounds the requests that wait for ``records``.
        probes: Name of a server -> a call that raises `StoreError` while it cannot be used;
            what ``/health/ready`` asks.
        start: Called in the process that serves, after a fork; begins to connect.
        stop: Called when that process ends; closes what `start` or a request has opened.
    """

    config: ApiConfig
    access: Access
    limiter: RateLimiter
    store: RecommendationStore
    shelf: Shelf
    catalogue: CatalogueMemory | None
    window: ShopWindow | None
    events: EventSink
    records: RecordSink
    waiting_writes: BoundedSemaphore
    probes: Mapping[str, Callable[[], None]]
    start: Callable[[], None]
    stop: Callable[[], None]


def install(app: Flask, services: Services) -> None:
    """Keep ``services`` on ``app``."""
    app.extensions[_EXTENSION] = services


def services_of(app: Flask) -> Services:
    """Return the services of ``app``, outside a request."""
    return cast("Services", app.extensions[_EXTENSION])


def services() -> Services:
    """Return the services of the application that handles this request."""
    return services_of(current_app)
