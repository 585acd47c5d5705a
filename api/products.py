"""Products: read, written to the catalogue's topic, and the lists of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec
from flask import Blueprint, Response

from api import problems
from api.catalogue_memory import Learned
from api.filling import Filter, Item, ListBuilder, Source
from api.operations import Answer, Body, Operation, route
from api.problems import BodyError, ProblemError
from api.recommendations import CACHE_HEADERS, LIMIT, UNCHANGED
from api.responses import cacheable, json_response
from api.services import services
from api.writing import WRITE_PROBLEMS, Records, send
from connectors.product_rows import ProductRow
from connectors.recommendation_store import ListsOfProduct
from udfs.index import FloatMatrix
from udfs.query_encoder import SPACE, encode_texts
from udfs.schemas import (
    MAX_CATEGORY_BYTES,
    MAX_DIMENSIONS,
    MAX_PRODUCT_BYTES,
    MAX_TITLE_BYTES,
    Identifier,
    Product,
    Reason,
    RejectedError,
    check_product_id,
    decode_product,
    encode_product,
    encode_vector,
)

MAX_PRODUCTS: Final = 500
MAX_BULK_BYTES: Final = 8 * 1024 * 1024
# The job saves such a list again when it has changed.
_LIST_SECONDS: Final = 5

blueprint = Blueprint("products", __name__)


class _Details(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What may be absent of a product that is written, and then has its default."""

    category: Annotated[str, msgspec.Meta(max_length=MAX_CATEGORY_BYTES)] = ""
    price: Annotated[float, msgspec.Meta(ge=0, le=1e15)] | None = None
    in_stock: bool = True
    embedding: (
        Annotated[list[float], msgspec.Meta(min_length=1, max_length=MAX_DIMENSIONS)]
        | Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PRODUCT_BYTES)]
        | None
    ) = None
    space: Identifier | None = None


class ProductInput(_Details, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A product to be written, whole: what is absent has its default, whatever it was before.

    Without ``embedding`` the vector that the product has stays, unless it is of the title and the
    title changes; where it has none, or ``space`` is text64-v1, the service makes one of the title.
    With ``embedding`` (numbers, or base64 of little-endian float32), ``space`` must name its space.
    What was learned of related products and of buying again always stays. Unknown fields are
    refused: a mistyped one would be lost.
    """

    title: Annotated[str, msgspec.Meta(max_length=MAX_TITLE_BYTES)]


class BulkProduct(_Details, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A product of a bulk, whole as for PUT; ``deleted`` removes it, and then its id is enough.

    A whole number as ``product_id`` is its decimal text. Partial updates are not possible yet: an
    entry without ``title`` is refused.
    """

    product_id: Identifier | int
    title: Annotated[str, msgspec.Meta(max_length=MAX_TITLE_BYTES)] | None = None
    deleted: bool = False

    def whole(self) -> ProductInput:
        """Return the product as PUT takes it.

        Raises:
            RejectedError: It has no title.
        """
        if self.title is None:
            msg = "title is missing: a product is written whole, partial updates are not possible"
            raise RejectedError(Reason.MISSING_FIELD, f"{msg} yet")
        return ProductInput(
            title=self.title,
            category=self.category,
            price=self.price,
            in_stock=self.in_stock,
            embedding=self.embedding,
            space=self.space,
        )


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

    def records() -> Records:
        try:
            learned = _learned(product_id)
            vector = _title_vectors({0: (body, learned)}).get(0)
            return [(product_id, _record(product_id, body, learned, vector))]
        except RejectedError as error:
            raise ProblemError(problems.INVALID_BODY, error.detail) from error

    return json_response(Accepted(send(_topic(), records)), 202)


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
    """Write or delete products; none where one is wrong, and `errors` says which.

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


def _records(body: Bulk) -> Records:
    errors: list[BodyError] = []
    products: dict[int, tuple[ProductInput, Learned]] = {}
    ids = [str(one.product_id) for one in body.products]
    for index, one in enumerate(body.products):
        try:
            check_product_id(ids[index])
            if not one.deleted:
                products[index] = one.whole(), _learned(ids[index])
        except RejectedError as error:
            errors.append(BodyError(index, error.detail, error.reason.value))
    vectors = _title_vectors(products)
    values: dict[int, bytes] = {}
    for index, (given, learned) in products.items():
        try:
            values[index] = _record(ids[index], given, learned, vectors.get(index))
        except RejectedError as error:
            errors.append(BodyError(index, error.detail, error.reason.value))
    if errors:
        errors.sort(key=lambda one: one.index)
        detail = f"{len(errors)} of {len(body.products)} products are wrong; none was written"
        raise ProblemError(problems.INVALID_BODY, detail, errors=errors)
    # None, a deletion, for those that are not among the products.
    return [(product_id, values.get(index)) for index, product_id in enumerate(ids)]


def _learned(product_id: str) -> Learned:
    """What was learned of a product, and has to stand in its new record too.

    The topic keeps a product's newest record alone: what is not in it is forgotten.

    Raises:
        ProblemError: 503, the catalogue is not read yet.
    """
    memory = services().catalogue
    if memory is None:
        return Learned()
    if not memory.wait_caught_up(services().config.write_timeout_seconds):
        detail = "the catalogue is not read yet"
        raise ProblemError(problems.STORE_UNAVAILABLE, detail, retry=True, store="kafka")
    return memory.learned(product_id)


def _kept_vector(given: ProductInput, learned: Learned) -> FloatMatrix | None:
    """Return the vector of a product if it stays, see `ProductInput`; None: it does not."""
    if given.embedding is not None or given.space is not None:
        return None
    return learned.vector if learned.title in (None, given.title) else None


def _record(
    product_id: str, given: ProductInput, learned: Learned, title_vector: str | None
) -> bytes:
    """Return the wire form of a product, checked as the job checks it.

    Raises:
        RejectedError: It is not valid.
    """
    chosen: Any = given.embedding
    space = given.space
    kept = _kept_vector(given, learned)
    if kept is not None:
        chosen, space = encode_vector(kept), learned.space
    elif chosen is None:
        if space not in (None, SPACE):
            msg = f"without an embedding the space is {SPACE}"
            raise RejectedError(Reason.INVALID_FIELD, msg)
        space = SPACE
        chosen = title_vector
        if chosen is None:
            msg = "the title has no word to make an embedding of; send an embedding"
            raise RejectedError(Reason.INVALID_FIELD, msg)
    elif space is None:
        msg = "an embedding needs the space that it is of"
        raise RejectedError(Reason.INVALID_FIELD, msg)
    value = encode_product(
        Product(
            product_id,
            space,
            chosen,
            given.title,
            given.category,
            given.price,
            given.in_stock,
            learned.related,
            learned.rebuy_days,
            learned.rebuy_share,
        )
    )
    decode_product(product_id.encode().decode("latin-1"), value)
    return value


def _title_vectors(products: Mapping[int, tuple[ProductInput, Learned]]) -> dict[int, str]:
    """Embed the titles that are to be a product's vector, in one call; no word, no vector."""
    wanted = [
        index
        for index, (one, learned) in products.items()
        if one.embedding is None and _kept_vector(one, learned) is None
    ]
    vectors = encode_texts([products[index][0].title for index in wanted])
    return {
        index: encode_vector(vector)
        for index, vector in zip(wanted, vectors, strict=True)
        if vector.any()
    }
