"""Products: read, written to the catalogue topic as the shop says them, and the lists of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

import msgspec
from flask import Blueprint, Response
from msgspec import UNSET, UnsetType

from api import problems
from api.filling import Filter, Item, ListBuilder, Source
from api.operations import Answer, Body, Operation, now_ms, route
from api.problems import BodyError, ProblemError
from api.recommendations import CACHE_HEADERS, LIMIT, UNCHANGED
from api.responses import cacheable, json_response
from api.services import services
from api.writing import WRITE_PROBLEMS, Records, send
from connectors.product_rows import ProductRow
from connectors.recommendation_store import ListsOfProduct
from udfs.schemas import (
    MAX_CATEGORY_BYTES,
    MAX_DIMENSIONS,
    MAX_PRODUCT_BYTES,
    MAX_TITLE_BYTES,
    Identifier,
    Reason,
    RejectedError,
    Timestamp,
    check_product_id,
    decode_product,
)

MAX_PRODUCTS: Final = 500
MAX_BULK_BYTES: Final = 8 * 1024 * 1024
# The job saves such a list again when it has changed.
_LIST_SECONDS: Final = 5

blueprint = Blueprint("products", __name__)


class ProductPatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Some fields of a product: these replace, all others stay. A ``price`` of null takes it away.

    The fields mean what they mean in a whole product.
    """

    title: Annotated[str, msgspec.Meta(max_length=MAX_TITLE_BYTES)] | UnsetType = UNSET
    category: Annotated[str, msgspec.Meta(max_length=MAX_CATEGORY_BYTES)] | UnsetType = UNSET
    price: Annotated[float, msgspec.Meta(ge=0, le=1e15)] | UnsetType | None = UNSET
    in_stock: bool | UnsetType = UNSET
    embedding: (
        Annotated[list[float], msgspec.Meta(min_length=1, max_length=MAX_DIMENSIONS)]
        | Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PRODUCT_BYTES)]
        | UnsetType
        | None
    ) = UNSET
    space: Identifier | UnsetType | None = UNSET
    updated_at: Timestamp | UnsetType | None = UNSET


class ProductInput(ProductPatch, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A product to be written, whole: what is absent is empty, without a price and in stock.

    Without ``embedding`` the vector that the shop has sent before stays; where it has sent none,
    one is made of title and category. With ``embedding`` (numbers, or base64 of little-endian
    float32), ``space`` must name its space. ``updated_at`` (epoch milliseconds) is the shop's time
    of what it says: what is older than what is known is dropped. Unknown fields are refused: a
    mistyped one would be lost.
    """

    title: Annotated[str, msgspec.Meta(max_length=MAX_TITLE_BYTES)]


class BulkProduct(ProductPatch, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A product of a bulk: whole as for PUT where it has a title, else some fields as for PATCH.

    With ``partial`` it is some fields even with a title. ``deleted`` removes the product, and then
    its id is enough. A whole number as ``product_id`` is its decimal text.
    """

    product_id: Identifier | int
    partial: bool = False
    deleted: bool = False


class Bulk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Products to be written together; all are checked before the first is."""

    products: Annotated[list[BulkProduct], msgspec.Meta(min_length=1, max_length=MAX_PRODUCTS)]


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """Kafka has the changes; lists and reads follow within about a second."""

    accepted: int


class ShownProduct(msgspec.Struct, frozen=True, gc=False):
    """A product as it is shown; ``updated_at`` in epoch milliseconds."""

    product_id: str
    title: str
    category: str
    price: float | None
    in_stock: bool
    updated_at: int


class ListOfProduct(msgspec.Struct, frozen=True, gc=False):
    """Products in stock that belong to one, best first; empty where none are known yet.

    ``score`` is, of those bought together, the weight that was learned; of the similar ones 1 and
    that weight where one was learned, else the cosine similarity.
    """

    product_id: str
    items: list[Item]


_READ_PROBLEMS: Final = (
    problems.NOT_FOUND,
    problems.STORE_UNAVAILABLE,
    problems.STORE_TIMEOUT,
)


@route(
    blueprint,
    "GET",
    "/v1/products/<id:product_id>",
    Operation(
        "A product",
        {200: Answer(ShownProduct, "The product.", CACHE_HEADERS), 304: UNCHANGED},
        scope="lists",
        problems=_READ_PROBLEMS,
    ),
)
def product(product_id: str) -> Response:
    """Answer with a product as the catalogue has it."""
    row = _known(product_id)
    shown = ShownProduct(
        row.product_id, row.title, row.category, row.price, row.in_stock, row.updated_at
    )
    return cacheable(shown, seconds=1)


@route(
    blueprint,
    "PUT",
    "/v1/products/<id:product_id>",
    Operation(
        "Write a product",
        {202: Answer(Accepted, "Kafka has the product.")},
        scope="catalogue",
        body=Body(ProductInput, max_bytes=MAX_PRODUCT_BYTES, meaning="The whole product."),
        problems=WRITE_PROBLEMS,
    ),
)
def put_product(product_id: str, body: ProductInput) -> Response:
    """Insert or replace a product; it is in the lists within about a second."""
    return _write(product_id, body, partial=False)


@route(
    blueprint,
    "PATCH",
    "/v1/products/<id:product_id>",
    Operation(
        "Change some fields of a product",
        {202: Answer(Accepted, "Kafka has the change.")},
        scope="catalogue",
        body=Body(ProductPatch, max_bytes=MAX_PRODUCT_BYTES, meaning="The fields that change."),
        problems=WRITE_PROBLEMS,
    ),
)
def patch_product(product_id: str, body: ProductPatch) -> Response:
    """Change some fields of a product, such as its price or whether it is in stock.

    The change counts behind what was written before it. Of a product that is not there by then it
    goes to the dead letters.
    """
    return _write(product_id, body, partial=True)


@route(
    blueprint,
    "DELETE",
    "/v1/products/<id:product_id>",
    Operation(
        "Delete a product",
        {202: Answer(Accepted, "Kafka has the deletion.")},
        scope="catalogue",
        problems=WRITE_PROBLEMS,
    ),
)
def delete_product(product_id: str) -> Response:
    """Delete a product, also one that is not there."""
    return json_response(Accepted(send(_topic(), lambda: [(product_id, None)])), 202)


@route(
    blueprint,
    "POST",
    "/v1/products:bulk",
    Operation(
        "Write many products",
        {202: Answer(Accepted, "Kafka has all of them.")},
        scope="catalogue",
        body=Body(Bulk, max_bytes=MAX_BULK_BYTES, meaning=f"Up to {MAX_PRODUCTS} products."),
        problems=WRITE_PROBLEMS,
        units=lambda body: len(body.products),
    ),
)
def bulk(body: Bulk) -> Response:
    """Write, change or delete products; none where one is wrong, and `errors` says which.

    After a 503 some of them may have been written: send them all again.
    """
    return json_response(Accepted(send(_topic(), lambda: _records(body))), 202)


@route(
    blueprint,
    "GET",
    "/v1/products/<id:product_id>/similar",
    Operation(
        "Similar products",
        {200: Answer(ListOfProduct, "The list.", CACHE_HEADERS), 304: UNCHANGED},
        scope="lists",
        query=(LIMIT,),
        problems=_READ_PROBLEMS,
    ),
)
def similar(product_id: str) -> Response:
    """Answer with the products that follow a product, then those that are near to it."""
    return _list_of(product_id, "similar", "similar", lambda found: found.similar)


@route(
    blueprint,
    "GET",
    "/v1/products/<id:product_id>/bought-together",
    Operation(
        "Products bought together",
        {200: Answer(ListOfProduct, "The list.", CACHE_HEADERS), 304: UNCHANGED},
        scope="lists",
        query=(LIMIT,),
        problems=_READ_PROBLEMS,
    ),
)
def bought_together(product_id: str) -> Response:
    """Answer with the products that are bought with a product.

    They are those that were learned to follow it, whatever was done with them.
    """
    return _list_of(
        product_id, "bought_together", "bought together", lambda found: found.bought_together
    )


def _list_of(
    product_id: str,
    source: Source,
    reason: str,
    choose: Callable[[ListsOfProduct], Sequence[tuple[str, float]]],
) -> Response:
    limit = LIMIT.read()
    parts = services()
    # A row can outlive its product by a moment.
    _known(product_id)
    found = parts.store.lists_of_product(product_id)
    builder = ListBuilder(parts.shelf, limit, Filter())
    if found is not None:
        builder.add(source, [(*one, reason) for one in choose(found)])
    return cacheable(ListOfProduct(product_id, builder.items), seconds=_LIST_SECONDS)


def _known(product_id: str) -> ProductRow:
    row = services().shelf.products([product_id]).get(product_id)
    if row is None:
        raise ProblemError(problems.NOT_FOUND, "there is no such product")
    return row


def _topic() -> str:
    return services().config.kafka.catalogue_topic


def _write(product_id: str, given: ProductPatch, *, partial: bool) -> Response:
    def records() -> Records:
        try:
            return [(product_id, _record(product_id, given, partial=partial))]
        except RejectedError as error:
            raise ProblemError(problems.INVALID_BODY, error.detail) from error

    return json_response(Accepted(send(_topic(), records)), 202)


def _records(body: Bulk) -> Records:
    errors: list[BodyError] = []
    records: list[tuple[str, bytes | None]] = []
    for index, one in enumerate(body.products):
        product_id = str(one.product_id)
        try:
            check_product_id(product_id)
            partial = one.partial or one.title is UNSET
            value = None if one.deleted else _record(product_id, one, partial=partial)
            records.append((product_id, value))
        except RejectedError as error:
            errors.append(BodyError(index, error.detail, error.reason.value))
    if errors:
        detail = f"{len(errors)} of {len(body.products)} products are wrong; none was written"
        raise ProblemError(problems.INVALID_BODY, detail, errors=errors)
    return records


def _record(product_id: str, given: ProductPatch, *, partial: bool) -> bytes:
    """Return what the shop said in its wire form, checked as the job checks it.

    Raises:
        RejectedError: It is not valid.
    """
    fields: dict[str, Any] = {
        name: value
        for name in ProductPatch.__struct_fields__
        if (value := getattr(given, name)) is not UNSET
    }
    if partial:
        if not fields:
            detail = "title is missing, and there is no other field to change"
            raise RejectedError(Reason.MISSING_FIELD, detail)
        fields["partial"] = True
    value = msgspec.json.encode({"product_id": product_id, **fields})
    decode_product(product_id.encode().decode("latin-1"), value, now_ms())
    return value
