"""The routes of the shop window: the page, its files, and what it shows beyond ``/v1``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from flask import Blueprint, Response, send_from_directory

from api import problems
from api.catalogue_memory import CatalogueMemory
from api.operations import Answer, Operation, now_ms, route
from api.parameters import MAX_TS, Choice, Text, WholeNumber
from api.problems import Kind, ProblemError
from api.products import ShownProduct
from api.profile import last_events
from api.recommendations import CACHE_HEADERS, CATEGORY, UNCHANGED
from api.responses import cacheable, json_response
from api.services import ShopWindow, services
from api.shop.projection import ProductMap
from api.shop.pulse import Sample, State
from api.shop.shelves import CategorySize, Hit, Match
from connectors.product_rows import ProductRow
from udfs.profile import (
    MAX_QUERY_CHARACTERS,
    Profile,
    ProfileConfig,
    query_vectors,
    update_profiles,
)
from udfs.query_encoder import encode_query
from udfs.schemas import Event

_FOLDER: Final = Path(__file__).parent / "page"
_MIMETYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES: Final = {
    file.name: _MIMETYPES[file.suffix]
    for file in sorted(_FOLDER.iterdir())
    if file.suffix in _MIMETYPES
}
_PAGE: Final = "index.html"
# Nothing from elsewhere, no script or style in the page's text, and no other page may frame it.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

MAX_QUERY: Final = 512
_QUERY: Final = Text("query", "What somebody typed; the answer is what it finds.", most=MAX_QUERY)
_STOCK: Final = Choice("stock", "Which products.", ("in", "all"))
_ORDER: Final = Choice("order", "Mixed, or the last changed first.", ("mixed", "newest"))
_LIMIT: Final = WholeNumber("limit", "How many products.", default=48, least=1, most=500)
_SINCE: Final = WholeNumber(
    "since", "Only samples after this time, epoch milliseconds.", default=0, least=0, most=MAX_TS
)

CATALOGUE_UNAVAILABLE: Final = Kind(
    503,
    "urn:recommender:problem:catalogue-unavailable",
    "the catalogue is not in memory, or not yet",
)

blueprint = Blueprint("shop", __name__)


class Settings(msgspec.Struct, frozen=True, gc=False):
    """What the page must know before it begins."""

    users: tuple[str, ...]
    needs_key: bool


class FoundProduct(ShownProduct, frozen=True, gc=False):
    """A product; ``match`` says how a search has found it: by its words, or by its meaning."""

    match: Match | None


class ShopProducts(msgspec.Struct, frozen=True, gc=False):
    """Products for the shop's shelves; ``total`` counts what there would be without a limit.

    ``complete`` is false while the catalogue is still being read.
    """

    products: list[FoundProduct]
    total: int
    complete: bool


class Categories(msgspec.Struct, frozen=True, gc=False):
    """All categories by name."""

    categories: list[CategorySize]


class UserVector(msgspec.Struct, frozen=True, gc=False):
    """Where the recommender believes a user to be; ``vector`` null where it points nowhere.

    Made anew of the user's last saved events, a month's at most, by the job's own functions with
    its defaults: the job's state cannot be asked. ``event_ts`` is the time of the newest, epoch
    milliseconds.
    """

    space: str | None
    vector: list[float] | None
    events: int
    event_ts: int | None


class Live(msgspec.Struct, frozen=True, gc=False):
    """Figures of the pipeline; ``flink`` says whether ``samples`` can come.

    ``catalogue`` is what the worker that answers has read of the topic: products, and changes
    since it began.
    """

    now: int
    flink: State
    samples: list[Sample]
    catalogue_products: int
    catalogue_changes: int


@route(
    blueprint,
    "GET",
    "/",
    Operation("The shop window", {200: Answer(str, "The page.", mimetype="text/html")}),
)
def window() -> Response:
    """Answer with a page to try the recommender in a browser."""
    response = send_from_directory(_FOLDER, _PAGE, mimetype="text/html", max_age=0)
    response.headers.update(_PAGE_HEADERS)
    return response


@route(
    blueprint,
    "GET",
    "/shop/files/<id:file>",
    Operation(
        "The shop window's files",
        {200: Answer(str, "The file.", mimetype="*/*"), 304: UNCHANGED},
        problems=(problems.NOT_FOUND,),
    ),
)
def window_file(file: str) -> Response:
    """Answer with a script, style or icon of the page."""
    mimetype = _FILES.get(file)
    if mimetype is None:
        raise ProblemError(problems.NOT_FOUND, "there is no such file")
    # Asked again each time, and answered with 304: an upgrade is never half in a browser.
    response = send_from_directory(_FOLDER, file, mimetype=mimetype, max_age=0)
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@route(
    blueprint,
    "GET",
    "/shop/settings",
    Operation("The shop window's settings", {200: Answer(Settings, "The settings.")}),
)
def settings() -> Response:
    """Answer with the users that the page offers, and whether it needs an API key."""
    parts = services()
    # Who a key is needed of gets no ids before, nor does whoever comes through a proxy.
    users = parts.config.shop_users if parts.access.is_open else ()
    return json_response(Settings(users, bool(parts.config.keys)))


@route(
    blueprint,
    "GET",
    "/shop/products",
    Operation(
        "Products on the shop window's shelves",
        {200: Answer(ShopProducts, "The products.", CACHE_HEADERS), 304: UNCHANGED},
        scope="lists",
        query=(_QUERY, CATEGORY, _STOCK, _ORDER, _LIMIT),
        problems=(CATALOGUE_UNAVAILABLE,),
    ),
)
def shop_products() -> Response:
    """Answer with products of all categories or of one, or with those that a query finds.

    A query is answered by words, with one wrong letter forgiven, then by meaning.
    """
    query, category, limit = _QUERY.read(), CATEGORY.read(), _LIMIT.read()
    in_stock, newest = _STOCK.read() == "in", _ORDER.read() == "newest"
    window, memory = _window(), _memory()
    hits: list[Hit] = []
    rows: list[ProductRow] = []
    if query is not None:
        hits = window.shelves.search(memory, query, category, in_stock=in_stock)
        total = len(hits)
    else:
        total = sum(
            one.in_stock if in_stock else one.products
            for one in window.shelves.categories()
            if category in (None, one.category)
        )
        if newest and category is None:
            rows = window.shelves.newest(limit, in_stock=in_stock)
        else:
            rows = window.shelves.browse(category, limit, in_stock=in_stock)
    found = [_found(hit.row, hit.match) for hit in hits[:limit]] + [
        _found(row, None) for row in rows
    ]
    return cacheable(ShopProducts(found, total, memory.caught_up), seconds=0)


@route(
    blueprint,
    "GET",
    "/shop/categories",
    Operation(
        "Categories on the shop window's shelves",
        {200: Answer(Categories, "The categories.", CACHE_HEADERS), 304: UNCHANGED},
        scope="lists",
        problems=(CATALOGUE_UNAVAILABLE,),
    ),
)
def categories() -> Response:
    """Answer with all categories and how many products each has."""
    _memory()
    return cacheable(Categories(_window().shelves.categories()), seconds=0)


@route(
    blueprint,
    "GET",
    "/shop/map",
    Operation(
        "The products on a plane",
        {200: Answer(ProductMap, "The map.", CACHE_HEADERS), 304: UNCHANGED},
        scope="lists",
        problems=(CATALOGUE_UNAVAILABLE,),
    ),
)
def product_map() -> Response:
    """Answer with the places of products, and the axes that give a user's vector its own."""
    _memory()
    found = _window().mapper.map() if _memory().caught_up else None
    if found is None:
        detail = "there is no product with a vector yet"
        raise ProblemError(CATALOGUE_UNAVAILABLE, detail, retry=True)
    return cacheable(found, seconds=0)


@route(
    blueprint,
    "GET",
    "/shop/users/<id:user_id>/vector",
    Operation(
        "Where a user is among the products",
        {200: Answer(UserVector, "The user's vector.")},
        scope="personal",
        problems=(
            CATALOGUE_UNAVAILABLE,
            problems.STORE_UNAVAILABLE,
            problems.STORE_TIMEOUT,
        ),
    ),
)
def user_vector(user_id: str) -> Response:
    """Answer with the vector of a user, as the job makes it of the same events."""
    memory = _memory()
    config = ProfileConfig()
    # A month's: what is older counts little in the vector, and each costs as much to look for.
    stored = last_events(user_id, config.interactions, now_ms(), pages=1)
    events = [
        Event(one.event_id, user_id, one.type, one.ts, one.product_id, one.query)  # type: ignore[arg-type]
        for one in stored
        if one.type in config.weights
    ]
    for one in events:
        # Kept for the update, and not made while the catalogue is locked.
        if one.query is not None:
            encode_query(one.query[:MAX_QUERY_CHARACTERS])
    profile = Profile()
    with memory.vectors() as catalogue:
        space = catalogue.space
        if space is not None and events:
            update_profiles([profile], [events], catalogue, config)
    vector = query_vectors([profile], config)[0] if profile.space else None
    answer = UserVector(
        space,
        None if vector is None or not vector.any() else vector.tolist(),
        len(events),
        max((one.ts for one in events), default=None),
    )
    return json_response(answer)


@route(
    blueprint,
    "GET",
    "/shop/live",
    Operation(
        "Live figures of the pipeline",
        {200: Answer(Live, "The figures.")},
        scope="lists",
        query=(_SINCE,),
    ),
)
def live() -> Response:
    """Answer with samples of the last minutes, taken once a second while somebody asks."""
    pulse = _window().pulse
    memory = services().catalogue
    samples = pulse.samples(_SINCE.read())
    return json_response(
        Live(
            now_ms(),
            pulse.state,
            samples,
            0 if memory is None else len(memory),
            0 if memory is None else memory.changes,
        )
    )


def _window() -> ShopWindow:
    found = services().window
    if found is None:
        msg = "the routes of the shop window are registered, and there is none"
        raise RuntimeError(msg)
    return found


def _memory() -> CatalogueMemory:
    memory = services().catalogue
    if memory is None:
        detail = "this service does not follow the catalogue"
        raise ProblemError(CATALOGUE_UNAVAILABLE, detail)
    return memory


def _found(row: ProductRow, match: Match | None) -> FoundProduct:
    return FoundProduct(
        row.product_id, row.title, row.category, row.price, row.in_stock, row.updated_at, match
    )
