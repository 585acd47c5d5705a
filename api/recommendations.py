"""GET /v1/users/{id}/recommendations: one partition-local read, the rest from memory."""

from __future__ import annotations

import logging
from typing import Final, Literal

import msgspec
from flask import Blueprint, Response

from api import problems
from api.filling import Filter, Item, ListBuilder, fallbacks
from api.metrics import DEGRADED
from api.operations import Answer, Operation, route
from api.parameters import Price, Text, WholeNumber
from api.problems import InvalidParameterError
from api.request_id import request_id
from api.responses import cacheable, json_response
from api.services import services
from connectors.recommendation_store import RecommendationList, StoreError
from udfs.schemas import MAX_CATEGORY_BYTES

logger = logging.getLogger(__name__)

DEFAULT_LIMIT: Final = 20
MAX_LIMIT: Final = 100
# A list changes at most once a tick of a second.
CACHE_SECONDS: Final = 1

LIMIT: Final = WholeNumber(
    "limit", "How many items.", default=DEFAULT_LIMIT, least=1, most=MAX_LIMIT
)
CATEGORY: Final = Text("category", "Only products of this category.", most=MAX_CATEGORY_BYTES)
MIN_PRICE: Final = Price("min_price", "Only products of at least this price.")
MAX_PRICE: Final = Price("max_price", "Only products of at most this price.")
CACHE_HEADERS: Final = {
    "ETag": "Names this very answer, for If-None-Match.",
    "Cache-Control": "How long it may be used.",
}
UNCHANGED: Final = Answer(None, "If-None-Match names the answer as it still is.", CACHE_HEADERS)

blueprint = Blueprint("recommendations", __name__)


class Recommendations(msgspec.Struct, frozen=True, gc=False):
    """The answer, best first; times in epoch milliseconds, null where there is no list.

    ``source`` is "personal" where the user has a list that shows something, "fallback" where all
    items come from elsewhere, "none" where there is nothing at all to show. ``event_ts`` is the
    time of the newest event that the list knows of, ``generated_at`` that of its making, and
    ``freshness_ms`` lies between the two. ``degraded`` says that the list could not be read, or
    that there is nothing to show while a store does not answer; ``variant`` names the setting that
    made it where several are compared.
    """

    user_id: str
    source: Literal["personal", "fallback", "none"]
    items: list[Item]
    space: str | None
    event_ts: int | None
    generated_at: int | None
    freshness_ms: int | None
    degraded: bool
    variant: str | None = None


@route(
    blueprint,
    "GET",
    "/v1/users/<id:user_id>/recommendations",
    Operation(
        "A user's recommendations",
        {200: Answer(Recommendations, "The list.", CACHE_HEADERS), 304: UNCHANGED},
        scope="lists",
        browser=True,
        query=(LIMIT, CATEGORY, MIN_PRICE, MAX_PRICE),
        problems=(problems.STORE_UNAVAILABLE, problems.STORE_TIMEOUT),
    ),
)
def recommendations(user_id: str) -> Response:
    """Answer with the newest list of a user, filled up where it is short.

    What is deleted, out of stock, bought or disliked is left out. The list is filled up from the
    trending products of its categories, then of all, then the newest, then the catalogue, so that
    it is full wherever enough products exist. While the store does not answer, the last known
    trending products stand in, or the products in memory, as far as they fit the filter.
    """
    limit = LIMIT.read()
    wanted = read_filter()
    parts = services()
    degraded: StoreError | None = None
    found: RecommendationList | None = None
    try:
        found = parts.store.recommendations(user_id)
    except StoreError as error:
        degraded = error
    excluded = found.excluded if found is not None else ()
    builder = ListBuilder(parts.shelf, limit, wanted, excluded)
    if found is not None:
        try:
            builder.add("personal", found.items)
        except StoreError as error:
            # Of none of its first products is anything known.
            degraded = error
    personal = bool(builder.items)
    if not builder.full:
        needed = limit + len(excluded)
        sources = fallbacks(parts.shelf, parts.store, wanted, needed, builder.categories())
        try:
            failure = builder.fill(sources)
        except StoreError:
            if degraded is None:
                raise
            # The first failure says more than what followed from it, and keeps its own cause.
            raise degraded from degraded.__cause__
        if not builder.items:
            degraded = degraded or failure
    if degraded is not None:
        DEGRADED.inc()
        logger.warning("request %s: trending instead of a list: %s", request_id(), degraded)
    answer = Recommendations(
        user_id,
        "personal" if personal else "fallback" if builder.items else "none",
        builder.items,
        found.space if found is not None else None,
        found.event_ts if found is not None else None,
        found.generated_at if found is not None else None,
        found.generated_at - found.event_ts if found is not None else None,
        degraded is not None,
        (found.variant or None) if found is not None else None,
    )
    if degraded is not None:
        return json_response(answer)
    return cacheable(answer, seconds=CACHE_SECONDS)


def read_filter() -> Filter:
    """Return the filter of this request.

    Raises:
        InvalidParameterError: A parameter is wrong, or the lowest price above the highest.
    """
    wanted = Filter(CATEGORY.read(), MIN_PRICE.read(), MAX_PRICE.read())
    low, high = wanted.min_price, wanted.max_price
    if low is not None and high is not None and low > high:
        raise InvalidParameterError(MIN_PRICE.name, "must not be above max_price")
    return wanted
