"""The application factory: settings and store in, Flask application out; nothing connects here."""

from __future__ import annotations

from flask import Flask

from api import events, health, problems, recommendations, request_id
from api.config import ApiConfig
from api.parameters import IdConverter
from api.services import Services, install
from connectors.recommendation_store import (
    CassandraRecommendationStore,
    LazyRecommendationStore,
    RecommendationStore,
)

_BLUEPRINTS = (recommendations.blueprint, events.blueprint, health.blueprint)


def create_app(
    config: ApiConfig | None = None, *, store: RecommendationStore | None = None
) -> Flask:
    """Return the application.

    Without ``store`` it reads from the Cassandra of ``config`` and connects in the background, at
    the first request or at ``services_of(app).start()``, in the process that serves.

    Args:
        config: The settings; None: from the environment.
        store: What to read from instead, for tests. It stays the caller's to close.

    Raises:
        ValueError: A variable of the environment is not valid; the message names it.
    """
    config = ApiConfig.from_env() if config is None else config
    # No static folder and no templates yet; the shop window brings them.
    app = Flask(__name__, static_folder=None)
    # "a//b" is an id of its own; a redirect to "a/b" would answer for another user.
    app.url_map.merge_slashes = False
    app.url_map.converters["id"] = IdConverter
    install(app, _cassandra(config) if store is None else _given(config, store))
    request_id.register(app)
    problems.register(app)
    for blueprint in _BLUEPRINTS:
        app.register_blueprint(blueprint)
    return app


def _cassandra(config: ApiConfig) -> Services:
    store = LazyRecommendationStore(
        CassandraRecommendationStore.name,
        lambda: CassandraRecommendationStore.open(config.cassandra, role="api"),
        # As long as a read may take, so that a request has one time limit whatever happens.
        wait_seconds=config.cassandra.read_timeout_seconds,
    )
    return Services(
        config=config,
        store=store,
        probes={store.name: store.ping},
        start=store.start,
        stop=store.close,
    )


def _given(config: ApiConfig, store: RecommendationStore) -> Services:
    def nothing() -> None:
        """Do nothing: a given store is ready, and its owner closes it."""

    return Services(
        config=config,
        store=store,
        probes={CassandraRecommendationStore.name: store.ping},
        start=nothing,
        stop=nothing,
    )
