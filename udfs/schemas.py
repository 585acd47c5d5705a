"""Schemas: events and products on the wire, and what passes between the job's operators."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Final, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
EventType = Literal[
    "click", "search", "scroll", "purchase", "add_to_cart", "dislike", "return", "erase"
]

ERASE: Final = "erase"
# What moves a profile; an erase event ends it. A type's place is its code in packed profiles: add
# at the end only.
EVENT_TYPES: Final = (
    "click", "search", "scroll", "purchase", "add_to_cart", "dislike", "return",
)  # fmt: skip

MAX_EVENT_BYTES: Final = 64 * 1024
# Far above any embedding in use, and within the 16 bits of the packed profile.
MAX_DIMENSIONS: Final = 8192
MAX_FUTURE_MS: Final = 5 * 60 * 1000
# The partition of a row that is no record of the catalogue topic but a heartbeat of the job's own.
HEARTBEAT_PARTITION: Final = -1
MS_A_DAY: Final = 86_400_000
# 9999-12-31, the last day that every reader of a CQL timestamp can show.
MAX_TIMESTAMP_MS: Final = 253_402_300_799_999
# Related products that a product may name: what a lookup gathers is as wide as the longest list.
MAX_RELATED: Final = 128
MAX_RELATED_WEIGHT: Final = 1000.0
# The key of what the catalogue topic says of a space; no product may have it.
SPACE_KEY: Final = "\0space"
# JSON numbers that fit a CQL int.
MAX_INT32: Final = 2**31 - 1


class Reason(StrEnum):
    """Why a record went to the dead letters: a stable code, in its headers and the metrics."""

    EMPTY_VALUE = "empty_value"
    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    INVALID_FIELD = "invalid_field"
    MISSING_FIELD = "missing_field"
    MISSING_KEY = "missing_key"
    KEY_MISMATCH = "key_mismatch"
    IN_THE_FUTURE = "in_the_future"
    INVALID_VECTOR = "invalid_vector"
    WRONG_LENGTH = "wrong_length"
    REFUSED = "refused_by_cassandra"


class RejectedError(ValueError):
    """A record that must go to the dead letters; ``detail`` is for the person who reads it."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Event(msgspec.Struct, frozen=True, gc=False):
    """One thing a user did. ``ts`` is event time in epoch milliseconds."""

    event_id: Identifier
    user_id: Identifier
    type: EventType
    ts: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIMESTAMP_MS)]
    product_id: Identifier | None = None
    query: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    session_id: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    dwell_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_INT32)] | None = None
    quantity: Annotated[int, msgspec.Meta(ge=0, le=MAX_INT32)] | None = None


class Product(msgspec.Struct, frozen=True, gc=False):
    """One product of the catalogue as it stands on the wire.

    ``related`` says which products follow this one, with weights of which 1 is a typical best one;
    under its own id, how likely it is touched again. ``rebuy_days`` says when a person who bought
    it may be shown it again, ``rebuy_share`` how many of those who buy it do so again, 0 to 1.
    """

    product_id: Identifier
    space: Identifier
    embedding: list[float] | str
    title: str = ""
    category: str = ""
    price: float | None = None
    in_stock: bool = True
    related: Annotated[dict[Identifier, float], msgspec.Meta(max_length=MAX_RELATED)] | None = None
    rebuy_days: Annotated[float, msgspec.Meta(ge=0)] | None = None
    rebuy_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0


class SpaceNotice(msgspec.Struct, frozen=True):
    """On the catalogue topic, under :data:`SPACE_KEY`: a space is being published, or is complete.

    It stands in every partition, before and behind the products of the space: order between
    partitions there is none, within one there is. Of two publications the one that started later
    holds.
    """

    space: Identifier
    started_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIMESTAMP_MS)]
    """When the publication started, epoch milliseconds."""
    partitions: Annotated[int, msgspec.Meta(ge=1)]
    """In how many partitions it stands."""
    complete: bool = False


_Wire = TypeVar("_Wire")
_event_decoder = msgspec.json.Decoder(Event)
_product_decoder = msgspec.json.Decoder(Product)
_notice_decoder = msgspec.json.Decoder(SpaceNotice)
_encoder = msgspec.json.Encoder()


def key_matches(key: str, identifier: str) -> bool:
    """Tell whether a record key, read byte for byte as ISO-8859-1, is ``identifier`` in UTF-8."""
    # Nearly every id is ASCII, where both readings are the same string.
    if key.isascii():
        return key == identifier
    return key.encode("latin-1") == identifier.encode()


def _decode(decoder: msgspec.json.Decoder[_Wire], payload: bytes) -> _Wire:
    try:
        return decoder.decode(payload)
    except msgspec.ValidationError as error:
        raise RejectedError(Reason.INVALID_FIELD, str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RejectedError(Reason.NOT_JSON, str(error)) from error


def decode_event(key: str, payload: bytes | None, now_ms: int) -> Event:
    """Decode and validate one record of the events topic.

    Args:
        key: The record key, one character a byte (ISO-8859-1); empty where it is missing.
        payload: The record value.
        now_ms: The wall clock, epoch milliseconds, against which a future event is judged.

    Raises:
        RejectedError: The record must go to the dead letters.
    """
    if payload is None:
        raise RejectedError(Reason.EMPTY_VALUE, "the record has no value")
    if len(payload) > MAX_EVENT_BYTES:
        raise RejectedError(Reason.TOO_LARGE, f"{len(payload)} bytes, at most {MAX_EVENT_BYTES}")
    event = _decode(_event_decoder, payload)
    if not key:
        raise RejectedError(Reason.MISSING_KEY, "the record key must be the user id")
    if not key_matches(key, event.user_id):
        raise RejectedError(Reason.KEY_MISMATCH, "the record key differs from user_id")
    if event.type == "search":
        if event.query is None:
            raise RejectedError(Reason.MISSING_FIELD, "a search needs query")
        if not event.query.strip():
            raise RejectedError(Reason.INVALID_FIELD, "the query is blank")
    elif event.product_id is None and event.type != ERASE:
        raise RejectedError(Reason.MISSING_FIELD, f"a {event.type} needs product_id")
    if event.ts > now_ms + MAX_FUTURE_MS:
        raise RejectedError(
            Reason.IN_THE_FUTURE, f"ts is {event.ts - now_ms} ms ahead of the clock"
        )
    return event


def decode_product(key: str, payload: bytes) -> tuple[Product, NDArray[np.float32]]:
    """Decode and validate one upsert of the catalogue topic.

    Returns:
        The product and its vector, shape (d,), scaled to length 1.

    Raises:
        RejectedError: The record must go to the dead letters.
    """
    product = _decode(_product_decoder, payload)
    if not key:
        raise RejectedError(Reason.MISSING_KEY, "the record key must be the product id")
    if not key_matches(key, product.product_id):
        raise RejectedError(Reason.KEY_MISMATCH, "the record key differs from product_id")
    if product.price is not None and not math.isfinite(product.price):
        raise RejectedError(Reason.INVALID_FIELD, "price is not finite")
    if product.rebuy_days is not None and not math.isfinite(product.rebuy_days):
        raise RejectedError(Reason.INVALID_FIELD, "rebuy_days is not finite")
    for weight in (product.related or {}).values():
        if not abs(weight) <= MAX_RELATED_WEIGHT:
            detail = f"a weight of related must be within ±{MAX_RELATED_WEIGHT:g}, not {weight}"
            raise RejectedError(Reason.INVALID_FIELD, detail)
    return product, decode_vector(product.embedding)


def decode_space_notice(payload: bytes) -> SpaceNotice:
    """Decode what the catalogue topic says of a space.

    Raises:
        RejectedError: The record must go to the dead letters.
    """
    return _decode(_notice_decoder, payload)


def decode_tombstone(key: str) -> str:
    """Read the product id that a record without a value deletes.

    Raises:
        RejectedError: The key is missing, or not UTF-8.
    """
    if not key:
        raise RejectedError(Reason.MISSING_KEY, "a tombstone needs a product id")
    try:
        return key.encode("latin-1").decode()
    except UnicodeDecodeError as error:
        raise RejectedError(Reason.INVALID_FIELD, "the key is not UTF-8") from error


def decode_vector(embedding: list[float] | str) -> NDArray[np.float32]:
    """Turn a wire embedding (numbers, or base64 of little-endian float32) into a unit vector (d,).

    Raises:
        RejectedError: Empty, not base64 of float32s, not finite, or of length zero.
    """
    if isinstance(embedding, str):
        try:
            raw = base64.b64decode(embedding, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RejectedError(Reason.INVALID_VECTOR, f"not base64: {error}") from error
        if len(raw) % 4:
            raise RejectedError(Reason.INVALID_VECTOR, f"{len(raw)} bytes are no float32 array")
        vector = np.frombuffer(raw, dtype="<f4").astype(np.float64)
    else:
        vector = np.asarray(embedding, dtype=np.float64)
    if vector.size > MAX_DIMENSIONS:
        detail = f"{vector.size} dimensions, at most {MAX_DIMENSIONS}"
        raise RejectedError(Reason.INVALID_VECTOR, detail)
    if vector.size == 0:
        raise RejectedError(Reason.INVALID_VECTOR, "the embedding is empty")
    if not np.isfinite(vector).all():
        raise RejectedError(Reason.INVALID_VECTOR, "the embedding has NaN or infinity")
    largest = float(np.abs(vector).max())
    if largest < 1e-12:
        raise RejectedError(Reason.INVALID_VECTOR, "the embedding is the zero vector")
    # Scaled by the largest element first: the squares of huge or tiny elements leave float range.
    vector = vector / largest
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def encode_event(event: Event) -> bytes:
    """Encode an event for the wire, the inverse of :func:`decode_event`."""
    return _encoder.encode(event)


def encode_product(product: Product) -> bytes:
    """Encode a product for the wire, the inverse of :func:`decode_product`."""
    return _encoder.encode(product)


def encode_space_notice(notice: SpaceNotice) -> bytes:
    """Encode what the catalogue topic says of a space; goes under :data:`SPACE_KEY`."""
    return _encoder.encode(notice)


def encode_vector(vector: NDArray[np.float32]) -> str:
    """Encode a vector (d,) as base64 of little-endian float32, the compact wire form."""
    return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode("ascii")


class Origin(NamedTuple):
    """Where in Kafka a record stands."""

    partition: int
    offset: int


class PendingEvent(NamedTuple):
    """An accepted event that is not saved yet, with the record it came as."""

    event: Event
    record: bytes
    """The framed record, see :func:`frame_record`."""


class SavedList(NamedTuple):
    """One user's new recommendations, best first."""

    user_id: str
    product_ids: list[str]
    scores: NDArray[np.float32]
    space: str
    event_ms: int
    generated_us: int
    reasons: Sequence[str]
    """Why each product is there: ``viewed:``, ``bought:`` or ``searched:`` and the product id or
    query that contributed most to its score; or ``profile`` where no single one is known."""
    excluded: list[str]
    """The newest bought or disliked products that must not be shown, newest first."""
    variant: str
    """The setting that made the list; empty where only one is in use."""


class ProductDetails(msgspec.Struct, frozen=True, gc=False):
    """A product without its vectors: what is shown of it, and searched in it by words."""

    product_id: str
    title: str
    category: str
    price: float | None
    in_stock: bool


class ProductChange(NamedTuple):
    """A product before and after a change; None: it was not there, or is no more."""

    old: ProductDetails | None
    new: ProductDetails | None
    changed_us: int
    """Epoch microseconds; the newest change wins."""


class Erasure(NamedTuple):
    """A user of whom nothing may stay."""

    user_id: str
    requested_ms: int
    """Time of the erase event, epoch milliseconds."""
    oldest_ms: int
    """Time of the oldest event that the job remembers of the user, epoch milliseconds."""
    erased_us: int
    """Not before the newest list of the user, epoch microseconds."""
    repeated: bool = False
    """Whether it was carried out before: what a replica brought back since then goes too."""


class Objection(NamedTuple):
    """A user who is to have no profile and no list, while the events stay."""

    user_id: str
    at_us: int
    """Not before the newest list of the user, epoch microseconds."""


@dataclass
class SaveBatch:
    """What the writer must save; after ``last`` it returns only when all is acknowledged."""

    lists: list[SavedList] = field(default_factory=list)
    events: list[PendingEvent] = field(default_factory=list)
    products: list[ProductChange] = field(default_factory=list)
    erasures: list[Erasure] = field(default_factory=list)
    variants: dict[str, str] = field(default_factory=dict)
    """Variant of each user of the events; empty where only one setting is in use."""
    objections: list[Objection] = field(default_factory=list)
    unresolved: list[tuple[str, float]] = field(default_factory=list)
    """Products that users touched lately and the catalogue does not know, and how often, the most
    frequent first; what ``unresolved_scope`` is saved as."""
    unresolved_scope: str = ""
    """Under which scope; empty where nothing is to be saved of them."""
    duplicates: int = 0
    updates: int = 0
    last: bool = True


def frame_record(payload: bytes | None, origin: Origin) -> bytes:
    """Frame a record as the events source does in SQL: ``partition offset kind value``.

    Kind is ``v``, or ``n`` for a record without a value. It is also the form, v1, in which an
    event that is not saved yet stands in the keyed state.
    """
    kind = b"n" if payload is None else b"v"
    return b"%d %d %b %b" % (origin.partition, origin.offset, kind, payload or b"")


def split_record(record: bytes) -> tuple[bytes | None, Origin]:
    """Undo :func:`frame_record`.

    Raises:
        ValueError: It is not a framed record.
    """
    partition, offset, kind, payload = record.split(b" ", 3)
    return (None if kind == b"n" else payload), Origin(int(partition), int(offset))


class DeadLetter(NamedTuple):
    """A record that could not be processed, whole, with its origin."""

    topic: str
    key: str
    payload: bytes | None
    reason: Reason
    detail: str
    origin: Origin
