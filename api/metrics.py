"""/metrics for Prometheus, over all workers, and what is counted; no label names a person."""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Final, Protocol

from flask import Blueprint, Flask, Response, g, request
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from api.catalogue_memory import CatalogueMemory
from api.operations import Answer, Operation, route
from api.shared import EVENTS_METRIC, FOLDER_VARIABLE, OUTCOMES
from connectors.event_client import Counts
from udfs.schemas import Reason

_SECONDS = Histogram(
    "recommender_api_request_seconds",
    "Time from the first look at a request to its answer.",
    ("route", "method"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
_REQUESTS = Counter(
    "recommender_api_requests", "Answers by their status.", ("route", "method", "status")
)
DEGRADED = Counter(
    "recommender_api_degraded", "Answers with trending products, because the list was not readable."
)
_EVENTS = Counter(
    EVENTS_METRIC,
    "Events by what became of them: sent (put into the buffer), delivered, failed (Kafka refused"
    " them), lost (in the buffer when its worker ended), dropped (no room).",
    ("outcome",),
)
# Beside the reasons of the job (`udfs.schemas.Reason`): of another user than the token.
WRONG_USER: Final = "wrong_user"
# Made with all reasons: a rate cannot see a counter's first value.
REFUSED = Counter(
    "recommender_api_events_refused", "Events of requests that were refused.", ("reason",)
)
for _reason in (*Reason, WRONG_USER):
    REFUSED.labels(_reason)
_PRODUCTS = Gauge(
    "recommender_api_catalogue_products",
    "Products in a worker's memory.",
    multiprocess_mode="livemin",
)
_CAUGHT_UP = Gauge(
    "recommender_api_catalogue_caught_up",
    "1 if all workers have read the catalogue.",
    multiprocess_mode="livemin",
)
_SKIPPED = Gauge(
    "recommender_api_catalogue_skipped",
    "Products that had no room in a worker's memory.",
    multiprocess_mode="livemax",
)

blueprint = Blueprint("metrics", __name__)


class _Counting(Protocol):
    @property
    def counts(self) -> Counts: ...


class Watch:
    """Takes over what clients count for themselves; called again and again.

    Args:
        events: Where events go.
        catalogue: The catalogue in memory, if there is one.
    """

    def __init__(self, events: _Counting, catalogue: CatalogueMemory | None) -> None:
        self._events = events
        self._catalogue = catalogue
        self._last = Counts()

    def __call__(self) -> None:
        """Add what is new since the last call."""
        counts, last = self._events.counts, self._last
        for outcome in OUTCOMES:
            # `sent` is taken back where the producer refuses; a counter cannot go down.
            new = getattr(counts, outcome) - getattr(last, outcome)
            _EVENTS.labels(outcome).inc(max(0, new))
        self._last = counts
        if self._catalogue is not None:
            _PRODUCTS.set(len(self._catalogue))
            _CAUGHT_UP.set(self._catalogue.caught_up)
            _SKIPPED.set(self._catalogue.skipped)


def register(app: Flask) -> None:
    """Time and count the requests of ``app``."""
    app.before_request(_begin)
    app.after_request(_count)


@route(
    blueprint,
    "GET",
    "/metrics",
    Operation(
        "Metrics for Prometheus",
        {200: Answer(str, "The text format of Prometheus.", mimetype="text/plain")},
        scope="metrics",
    ),
)
def metrics() -> Response:
    """Answer with the metrics of all workers."""
    registry: CollectorRegistry = REGISTRY
    if FOLDER_VARIABLE in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def _begin() -> None:
    g.began = time.perf_counter()


def _count(response: Response) -> Response:
    # The rule and not the path, which names a user.
    matched = request.url_rule
    rule = matched.rule if matched is not None else "none"
    method = request.method if matched is not None else "any"
    began = g.get("began")
    if began is not None:
        _seconds(rule, method).observe(time.perf_counter() - began)
    _requests(rule, method, response.status_code).inc()
    return response


# The sets of labels are few: rules, methods and statuses of this service.
@cache
def _seconds(rule: str, method: str) -> Histogram:
    return _SECONDS.labels(rule, method)


@cache
def _requests(rule: str, method: str, status: int) -> Counter:
    return _REQUESTS.labels(rule, method, status)
