"""The application factory: settings and stores in, Flask application out; nothing connects here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import BoundedSemaphore
from typing import Any

from flask import Flask, Request
from werkzeug.routing import MapAdapter

from api import (
    cors,
    documentation,
    erasure,
    error_handlers,
    events,
    health,
    metrics,
    objection,
    products,
    profile,
    recommendations,
    request_id,
    trending,
    user_token,
)
from api.access import Access
from api.background import Ticker
from api.breaker import BreakerStore
from api.catalogue_memory import CatalogueFollower, CatalogueMemory
from api.config import ApiConfig
from api.lazy import LazyEventSink, LazyRecordSink
from api.parameters import IdConverter, routed_path
from api.rate_limit import RateLimiter
from api.services import EventSink, RecordSink, Services, ShopWindow, install
from api.shelf import Shelf
from api.shop import routes as shop
from api.shop.projection import Mapper
from api.shop.pulse import Pulse
from api.shop.shelves import Shelves
from api.tokens import Tokens
from connectors.event_client import EventClient
from connectors.kafka_client import AcknowledgedProducer
from connectors.recommendation_store import (
    CassandraRecommendationStore,
    LazyRecommendationStore,
    RecommendationStore,
)

logger = logging.getLogger(__name__)

_BLUEPRINTS = (
    recommendations.blueprint,
    trending.blueprint,
    products.blueprint,
    events.blueprint,
    profile.blueprint,
    erasure.blueprint,
    objection.blueprint,
    user_token.blueprint,
    health.blueprint,
    metrics.blueprint,
    documentation.blueprint,
)


class _Application(Flask):
    """Flask with ids in paths that may have slashes (`api.parameters`).

    It need not look at each call whether a function is a coroutine: none is.
    """

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``func`` as it is."""
        return func

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Return Flask's own, which routes by what the client escaped."""
        adapter = super().create_url_adapter(request)
        if adapter is not None and request is not None:
            adapter.path_info = routed_path(request.environ)
        return adapter


def create_app(
    config: ApiConfig | None = None,
    *,
    store: RecommendationStore | None = None,
    catalogue: CatalogueMemory | None = None,
    event_sink: EventSink | None = None,
    record_sink: RecordSink | None = None,
) -> Flask:
    """Return the application.

    Without ``store`` it works with the Cassandra and Kafka of ``config`` and connects in the
    background, at the first request or at ``services_of(app).start()``, in the process that serves.

    Args:
        config: The settings; None: from the environment.
        store: What to read from instead, for tests. It stays the caller's to close.
        catalogue: The catalogue in memory, for tests with a store; None: there is none.
        event_sink: Where events go instead, for tests.
        record_sink: Where catalogue changes and erasures go instead, for tests.

    Raises:
        ValueError: A variable of the environment is not valid; the message names it.
    """
    config = ApiConfig.from_env() if config is None else config
    # What is served of files are lists of names (`api.documentation`, `api.shop.routes`).
    app = _Application(__name__, static_folder=None)
    # "a//b" is an id of its own; a redirect to "a/b" would answer for another user.
    app.url_map.merge_slashes = False
    app.url_map.converters["id"] = IdConverter
    install(app, _services(config, store, catalogue, event_sink, record_sink))
    request_id.register(app)
    metrics.register(app)
    error_handlers.register(app)
    cors.register(app)
    for blueprint in _BLUEPRINTS:
        app.register_blueprint(blueprint)
    if config.serves_shop_window:
        app.register_blueprint(shop.blueprint)
    return app


def _services(
    config: ApiConfig,
    store: RecommendationStore | None,
    catalogue: CatalogueMemory | None,
    event_sink: EventSink | None,
    record_sink: RecordSink | None,
) -> Services:
    starts: list[Callable[[], None]] = []
    stops: list[Callable[[], None]] = []
    if store is None:
        lazy = LazyRecommendationStore(
            CassandraRecommendationStore.name,
            lambda: CassandraRecommendationStore.open(config.cassandra, role="api"),
            wait_seconds=config.cassandra.read_timeout_seconds,
        )
        store = BreakerStore(lazy.name, lazy)
        starts.append(lazy.start)
        stops.append(lazy.close)
        if config.catalogue_max_products:
            catalogue = CatalogueMemory(config.catalogue_max_products)
            follower = CatalogueFollower(catalogue, config.kafka)
            starts.append(follower.start)
            stops.insert(0, follower.close)
    window: ShopWindow | None = None
    if config.serves_shop_window:
        # Made for an absent catalogue too: the page then says so.
        known = CatalogueMemory(0) if catalogue is None else catalogue
        window = ShopWindow(Shelves(), Mapper(known), Pulse(config.flink_url))
        known.follow(window.shelves.change)
        starts.append(window.pulse.start)
        stops.append(window.pulse.close)
    if event_sink is None:
        event_sink = LazyEventSink(
            lambda: EventClient(
                config.kafka.bootstrap,
                config.kafka.events_topic,
                max_events=config.event_buffer,
                flush_timeout_s=config.flush_seconds,
                properties=config.kafka.properties,
                placeholders=config.placeholder_ids,
            )
        )
        stops.append(event_sink.close)
    if record_sink is None:
        record_sink = LazyRecordSink(
            lambda: AcknowledgedProducer(config.kafka, timeout_s=config.write_timeout_seconds)
        )
        stops.append(record_sink.close)
    limiter = RateLimiter(config.rates, len(config.keys), config.rate_file)
    stops.append(limiter.close)
    shelf = Shelf(store, catalogue)
    ticker = Ticker((metrics.Watch(event_sink, catalogue), shelf.warm))
    starts.append(ticker.start)
    # Last, so that what the flush has delivered is counted too.
    stops.append(ticker.close)

    def start() -> None:
        for one in starts:
            one()

    def stop() -> None:
        for one in stops:
            try:
                one()
            except Exception:
                # The others are closed all the same: they flush events, and count them.
                logger.exception("a part could not be closed")

    return Services(
        config=config,
        access=Access(config.keys, Tokens(config.token_secrets)),
        limiter=limiter,
        store=store,
        shelf=shelf,
        catalogue=catalogue,
        window=window,
        events=event_sink,
        records=record_sink,
        waiting_writes=BoundedSemaphore(config.waiting_writes),
        probes={CassandraRecommendationStore.name: store.ping},
        start=start,
        stop=stop,
    )
