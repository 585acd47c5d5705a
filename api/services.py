"""What the views work with: the stores and the settings, kept on the application object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from flask import Flask, current_app

from api.config import ApiConfig
from connectors.recommendation_store import RecommendationStore

_EXTENSION = "recommender"


@dataclass(frozen=True, slots=True)
class Services:
    """The parts behind the routes.

    Attributes:
        config: The settings.
        store: Recommendations and events.
        probes: Name of a server -> a call that raises `StoreError` while it cannot be used;
            what ``/health/ready`` asks.
        start: Called in the process that serves, after a fork; begins to connect.
        stop: Called when that process ends; closes what `start` or a request has opened.
    """

    config: ApiConfig
    store: RecommendationStore
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
