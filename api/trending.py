"""GET /v1/trending: what many want now, of all products or of a category."""

from __future__ import annotations

from typing import Final

import msgspec
from flask import Blueprint, Response

from api import problems
from api.filling import Filter, Item, ListBuilder, fallbacks
from api.operations import Answer, Operation, route
from api.recommendations import CACHE_HEADERS, CATEGORY, LIMIT, UNCHANGED
from api.responses import cacheable
from api.services import services
from connectors.cassandra_schema import ALL_SCOPE, category_scope
from connectors.recommendation_store import StoreError

CACHE_SECONDS: Final = 5

blueprint = Blueprint("trending", __name__)


class Trending(msgspec.Struct, frozen=True, gc=False):
    """The answer, best first; ``generated_at`` in epoch milliseconds, null where nothing trends."""

    category: str | None
    items: list[Item]
    generated_at: int | None


@route(
    blueprint,
    "GET",
    "/v1/trending",
    Operation(
        "Trending products",
        {200: Answer(Trending, "The list.", CACHE_HEADERS), 304: UNCHANGED},
        scope="lists",
        query=(LIMIT, CATEGORY),
        problems=(problems.STORE_UNAVAILABLE, problems.STORE_TIMEOUT),
    ),
)
def trending() -> Response:
    """Answer with the trending products that are in stock, filled up with the newest.

    While the store does not answer, the last known list stands in, or the products in memory, as
    far as they are of the category.
    """
    limit = LIMIT.read()
    category = CATEGORY.read()
    parts = services()
    wanted = Filter(category)
    builder = ListBuilder(parts.shelf, limit, wanted)
    builder.fill(fallbacks(parts.shelf, parts.store, wanted, limit))
    try:
        found = parts.shelf.trending(ALL_SCOPE if category is None else category_scope(category))
    except StoreError:
        # The items are not of this list then.
        found = None
    answer = Trending(category, builder.items, None if found is None else found.generated_at)
    return cacheable(answer, seconds=CACHE_SECONDS)
