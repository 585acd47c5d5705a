"""A product as the pipeline keeps it: the records of `products` and `related`, and how they merge.

What the shop says of a product comes in parts through the topic `catalogue`. :func:`merge` makes
the whole of it, which stands as JSON in the topic `products` and in the row of the product in
Cassandra. What was learned of a product stands in the topic `related` and never in that record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Final, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from udfs.schemas import (
    MAX_TIMESTAMP_MS,
    TEXT_SPACE,
    Identifier,
    PartialProduct,
    Product,
    Reason,
    RejectedError,
    RelatedWeights,
    check_product_id,
    decode_vector,
    encode_vector,
    key_matches,
)

VERSION: Final = 1
# Version of what was read from the columns of a row that has no record yet; it is never written.
NO_RECORD: Final = 0
# The active space, and the one that is being published.
MAX_SPACES: Final = 2

FloatVector = NDArray[np.float32]
TextEncoder = Callable[[str, str], FloatVector | None]
"""Makes the unit vector (d,) of a title and a category; None where no word is known."""


class ProductRecord(msgspec.Struct, frozen=True, gc=False):
    """All that the shop has said of a product, format v1: JSON, under the product's id.

    ``vectors`` has unit vectors by space, as base64 of little-endian float32, the newest last.
    """

    version: int
    product_id: Identifier
    title: str
    category: str
    price: float | None
    in_stock: bool
    vectors: dict[str, str]
    is_text: bool
    """Whether the vector of ``TEXT_SPACE`` is made here, of title and category; there is none where
    they hold no known word."""
    first_seen_ms: int
    """When the pipeline first saw the product, epoch milliseconds."""
    updated_us: int
    """Write time of the row, epoch microseconds; it never goes back for a product."""
    updated_at: int = 0
    """The newest ``updated_at`` that the shop sent, epoch milliseconds; 0: none."""


class RelatedRow(msgspec.Struct, frozen=True, gc=False):
    """What was learned of a product, format v1: JSON, under the product's id.

    ``related`` as in :class:`udfs.schemas.Product`.
    """

    version: int
    product_id: Identifier
    related: RelatedWeights
    rebuy_days: Annotated[float, msgspec.Meta(ge=0)] | None = None
    rebuy_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0


class SpaceSwitch(msgspec.Struct, frozen=True):
    """A space that has been published whole, format v1: JSON, under ``SPACE_KEY`` of `products`."""

    version: int
    space: Identifier
    started_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIMESTAMP_MS)]
    """When its publication started, epoch milliseconds; of two the later one holds."""
    force: bool = False
    """Whether it becomes active however few products it has."""


_Kept = TypeVar("_Kept", ProductRecord, RelatedRow, SpaceSwitch)
_encoder = msgspec.json.Encoder()
_record_decoder = msgspec.json.Decoder(ProductRecord)
_related_decoder = msgspec.json.Decoder(RelatedRow)
_switch_decoder = msgspec.json.Decoder(SpaceSwitch)


def encode(kept: ProductRecord | RelatedRow | SpaceSwitch) -> bytes:
    """Encode what the decoders below read."""
    return _encoder.encode(kept)


def decode_record(key: str, payload: bytes) -> ProductRecord:
    """Decode a record of `products`; its key is read one character a byte (ISO-8859-1).

    Raises:
        RejectedError: It is none.
    """
    record = _decode(_record_decoder, payload)
    _check_key(key, record.product_id)
    return record


def decode_related(key: str, payload: bytes) -> RelatedRow:
    """Decode a record of `related`; its key is read one character a byte (ISO-8859-1).

    Raises:
        RejectedError: It is none.
    """
    row = _decode(_related_decoder, payload)
    _check_key(key, row.product_id)
    return row


def decode_switch(payload: bytes) -> SpaceSwitch:
    """Decode the record under ``SPACE_KEY``.

    Raises:
        RejectedError: It is none.
    """
    return _decode(_switch_decoder, payload)


def _decode(decoder: msgspec.json.Decoder[_Kept], payload: bytes) -> _Kept:
    try:
        kept = decoder.decode(payload)
    except msgspec.ValidationError as error:
        raise RejectedError(Reason.INVALID_FIELD, str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RejectedError(Reason.NOT_JSON, str(error)) from error
    if kept.version != VERSION:
        detail = f"format v{kept.version}, this reads v{VERSION}"
        raise RejectedError(Reason.INVALID_FIELD, detail)
    return kept


def _check_key(key: str, product_id: str) -> None:
    check_product_id(product_id)
    if not key_matches(key, product_id):
        raise RejectedError(Reason.KEY_MISMATCH, "the record key differs from product_id")


def related_of(product: Product) -> RelatedRow | None:
    """Return what a catalogue record says of related products; None where it says nothing."""
    if product.related is None and product.rebuy_days is None and not product.rebuy_share:
        return None
    return RelatedRow(
        VERSION,
        product.product_id,
        product.related or {},
        product.rebuy_days,
        product.rebuy_share,
    )


def merge(
    base: ProductRecord | None,
    update: Product | PartialProduct,
    *,
    seen_ms: int,
    at_us: int,
    encode_text: TextEncoder,
    vector: FloatVector | None = None,
) -> ProductRecord:
    """Apply what the shop says now to what it said before.

    Args:
        base: The product so far; None where there is none.
        update: A whole record, which replaces all fields but the vectors of other spaces, or a
            partial one, which replaces the fields that it has.
        seen_ms: When the product was first seen, if it is new, epoch milliseconds.
        at_us: Write time of the row, epoch microseconds.
        encode_text: Makes the vector of a product for which the shop sends none.
        vector: The unit vector (d,) of the update, where it is decoded already.

    Raises:
        RejectedError: A partial update of a product that is not there, or a vector that is none.
    """
    title, category, price, in_stock = _fields(base, update)
    vectors = dict(base.vectors) if base is not None else {}
    is_text = base is not None and base.is_text
    of_text = vectors.pop(TEXT_SPACE, None) if is_text else None
    if update.space is not None and update.embedding is not None:
        vectors.pop(update.space, None)
        unit = decode_vector(update.embedding) if vector is None else vector
        vectors[update.space] = encode_vector(unit)
        is_text = is_text and update.space != TEXT_SPACE
    while len(vectors) > MAX_SPACES:
        vectors.pop(next(iter(vectors)))
    # It stays beside the first space that the shop sends, until that one is searched.
    is_text = (is_text or not vectors) and len(vectors) < MAX_SPACES
    if is_text:
        known = None if base is None or not base.is_text else (base.title, base.category)
        if known != (title, category):
            made = encode_text(title, category)
            of_text = None if made is None else encode_vector(made)
        if of_text is not None:
            vectors = {TEXT_SPACE: of_text, **vectors}
    return ProductRecord(
        VERSION,
        update.product_id,
        title,
        category,
        price,
        in_stock,
        vectors,
        is_text,
        base.first_seen_ms if base is not None else seen_ms,
        at_us,
        max(update.updated_at or 0, base.updated_at if base is not None else 0),
    )


def _fields(
    base: ProductRecord | None, update: Product | PartialProduct
) -> tuple[str, str, float | None, bool]:
    """Return title, category, price and whether it is in stock, as they are after an update."""
    if isinstance(update, Product):
        return update.title, update.category, update.price, update.in_stock
    if base is None:
        detail = "a partial update of a product that is not there"
        raise RejectedError(Reason.UNKNOWN_PRODUCT, detail)
    # Not by one loop over the names: each field has a type of its own.
    return (
        base.title if isinstance(update.title, msgspec.UnsetType) else update.title,
        base.category if isinstance(update.category, msgspec.UnsetType) else update.category,
        base.price if isinstance(update.price, msgspec.UnsetType) else update.price,
        base.in_stock if isinstance(update.in_stock, msgspec.UnsetType) else update.in_stock,
    )


def is_late(base: ProductRecord | None, update: Product | PartialProduct) -> bool:
    """Tell whether the shop has said something newer of the product, by its own times."""
    return (
        base is not None and update.updated_at is not None and update.updated_at < base.updated_at
    )


def same(one: ProductRecord | None, other: ProductRecord | None) -> bool:
    """Tell whether two records say the same of a product, whenever they were written.

    ``updated_at`` counts: what is older than it must be known as late. So does the order of the
    spaces, which says which of them leaves.
    """
    if one is None or other is None:
        return one is other
    return list(one.vectors) == list(other.vectors) and one == msgspec.structs.replace(
        other, updated_us=one.updated_us
    )


def most_held(counts: Mapping[str, int]) -> str | None:
    """Name the space that most products hold; of as many the first by name; None of none."""
    return min(counts, key=lambda name: (-counts[name], name), default=None)
