"""Schemas: events and products on the wire, and what passes between the job's operators."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from udfs.lenient import event_fields, product_fields

# --- limits: they stand here alone, for Kafka, the service and the commands ----------------------
# Characters of an id, whatever their bytes.
MAX_ID: Final = 128
MAX_EVENT_BYTES: Final = 64 * 1024
# Kafka's own limit of a record is a megabyte; a vector of 8,192 numbers takes 160 KB.
MAX_PRODUCT_BYTES: Final = 512 * 1024
# Of UTF-8. A category is part of a key in Cassandra, which takes 64 KiB.
MAX_TITLE_BYTES: Final = 4000
MAX_CATEGORY_BYTES: Final = 1000
# Far above any embedding in use, and within the 16 bits of the packed profile.
MAX_DIMENSIONS: Final = 8192
# Related products that a product may name: what a lookup gathers is as wide as the longest list.
MAX_RELATED: Final = 128
MAX_RELATED_WEIGHT: Final = 1000.0
# 2000-01-01: an earlier time is one in seconds, or none.
MIN_TIMESTAMP_MS: Final = 946_684_800_000
# 9999-12-31, the last day that every reader of a CQL timestamp can show.
MAX_TIMESTAMP_MS: Final = 253_402_300_799_999
# How far an event's time may lie ahead of its record's Kafka time, by default.
MAX_FUTURE_MS: Final = 5 * 60 * 1000
# JSON numbers that fit a CQL int.
MAX_INT32: Final = 2**31 - 1
# Keys of the topics that begin with this are the pipeline's own: no user and no product has one.
RESERVED_PREFIX: Final = "\0"
# The key of what the catalogue topic says of a space.
SPACE_KEY: Final = RESERVED_PREFIX + "space"
# The space of the query encoder (:mod:`udfs.query_encoder`), and the length of its vectors.
TEXT_SPACE: Final = "text64-v1"
TEXT_DIMENSIONS: Final = 64
# Ids that programs send for a user whom they do not know: they would become one profile of
# everybody. Compared without case and without spaces around; the empty one stands for a blank id.
PLACEHOLDER_IDS: Final = frozenset(
    {
        "", "undefined", "null", "(null)", "<null>", "none", "nil", "nan", "[object object]",
        "0", "-1", "00000000-0000-0000-0000-000000000000", "false", "true",
        "guest", "anonymous", "anon", "unknown", "n/a", "(not set)",
    }
)  # fmt: skip

Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID)]
RelatedWeights = Annotated[
    dict[
        Identifier,
        Annotated[float, msgspec.Meta(ge=-MAX_RELATED_WEIGHT, le=MAX_RELATED_WEIGHT)],
    ],
    msgspec.Meta(max_length=MAX_RELATED),
]
Timestamp = Annotated[int, msgspec.Meta(ge=0, le=MAX_TIMESTAMP_MS)]
EventType = Literal[
    "click",
    "search",
    "scroll",
    "purchase",
    "add_to_cart",
    "dislike",
    "return",
    "erase",
    "opt_out",
    "opt_in",
]

ERASE: Final = "erase"
OPT_OUT: Final = "opt_out"
OPT_IN: Final = "opt_in"
# What is said of a user, not done by one; the key and ``user_id`` are enough.
CONTROL_TYPES: Final = frozenset({ERASE, OPT_OUT, OPT_IN})
# What moves a profile. A type's place is its code in packed profiles: add at the end only.
EVENT_TYPES: Final = (
    "click", "search", "scroll", "purchase", "add_to_cart", "dislike", "return",
)  # fmt: skip

MS_A_DAY: Final = 86_400_000


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
    PLACEHOLDER = "placeholder_user"
    UNKNOWN_PRODUCT = "unknown_product"


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
    session_id: Annotated[str, msgspec.Meta(max_length=MAX_ID)] | None = None
    dwell_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_INT32)] | None = None
    quantity: Annotated[int, msgspec.Meta(ge=0, le=MAX_INT32)] | None = None


class Product(msgspec.Struct, frozen=True, gc=False):
    """One product of the catalogue as it stands on the wire.

    ``related`` says which products follow this one, with weights of which 1 is a typical best one;
    under its own id, how likely it is touched again. ``rebuy_days`` says when a person who bought
    it may be shown it again, ``rebuy_share`` how many of those who buy it do so again, 0 to 1.
    """

    product_id: Identifier
    space: Identifier | None = None
    embedding: list[float] | str | None = None
    title: str = ""
    category: str = ""
    price: float | None = None
    in_stock: bool = True
    related: RelatedWeights | None = None
    rebuy_days: Annotated[float, msgspec.Meta(ge=0)] | None = None
    rebuy_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    updated_at: Timestamp | None = None


class PartialProduct(msgspec.Struct, frozen=True, gc=False):
    """A partial update of a product: what is present replaces, what is absent stays.

    On the wire it has ``"partial": true``. A ``price`` of null takes the price away.
    """

    product_id: Identifier
    title: str | msgspec.UnsetType = msgspec.UNSET
    category: str | msgspec.UnsetType = msgspec.UNSET
    price: float | msgspec.UnsetType | None = msgspec.UNSET
    in_stock: bool | msgspec.UnsetType = msgspec.UNSET
    space: Identifier | None = None
    embedding: list[float] | str | None = None
    updated_at: Timestamp | None = None


class _Kind(msgspec.Struct, frozen=True, gc=False):
    """What tells a partial update from a whole record."""

    partial: bool | None = None


class ProductLine(msgspec.Struct, frozen=True, gc=False):
    """A product of a catalogue file: the wire format's, of which only the id is needed."""

    product_id: Identifier
    title: str = ""
    category: str = ""
    price: Annotated[float, msgspec.Meta(ge=0)] | None = None
    in_stock: bool = True
    space: Identifier | None = None
    embedding: list[float] | str | None = None
    updated_at: Timestamp | None = None
    partial: bool | None = None


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
    force: bool = False
    """Whether the space becomes active however few products it has."""


_Wire = TypeVar("_Wire")
_event_decoder = msgspec.json.Decoder(Event)
_kind_decoder = msgspec.json.Decoder(_Kind)
_product_decoder = msgspec.json.Decoder(Product)
_partial_decoder = msgspec.json.Decoder(PartialProduct)
_line_decoder = msgspec.json.Decoder(ProductLine)
_notice_decoder = msgspec.json.Decoder(SpaceNotice)
_any_decoder = msgspec.json.Decoder()
_strict_event = _event_decoder.decode
# Behind all numbers, and before the kinds of a frame.
_LETTERS: Final = b":"
# The first text that does not begin with RESERVED_PREFIX: a comparison costs less than a call.
_FIRST_FREE: Final = "\x01"
_RESERVED: Final = "an id must not begin with NUL"
_encoder = msgspec.json.Encoder()


def key_matches(key: str, identifier: str) -> bool:
    """Tell whether a record key, read byte for byte as ISO-8859-1, is ``identifier`` in UTF-8."""
    # Nearly every id is ASCII, where both readings are the same string.
    if key.isascii():
        return key == identifier
    return key.encode("latin-1") == identifier.encode()


def parse_placeholders(text: str) -> frozenset[str]:
    """Read a list of placeholder ids, one a line; lines that begin with # do not count.

    A blank id is always among them.
    """
    lines = (line.strip().lower() for line in text.splitlines())
    return frozenset({"", *(line for line in lines if not line.startswith("#"))})


_Fields = Callable[[Mapping[str, Any]], dict[str, Any]]


def _decode(
    decoder: msgspec.json.Decoder[_Wire], payload: bytes, lenient: _Fields | None = None
) -> _Wire:
    """Decode strictly, and where that fails in the forms that ``lenient`` reads."""
    try:
        return decoder.decode(payload)
    except msgspec.ValidationError as error:
        if lenient is None:
            raise RejectedError(Reason.INVALID_FIELD, str(error)) from error
        return _decode_leniently(decoder.type, payload, lenient, error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RejectedError(Reason.NOT_JSON, str(error)) from error


def _decode_leniently(
    wire: type[_Wire], payload: bytes, lenient: _Fields, strict: msgspec.ValidationError
) -> _Wire:
    try:
        fields = _any_decoder.decode(payload)
    except msgspec.ValidationError as error:  # a number outside the float range
        raise RejectedError(Reason.INVALID_FIELD, str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RejectedError(Reason.NOT_JSON, str(error)) from error
    if not isinstance(fields, dict):
        raise RejectedError(Reason.INVALID_FIELD, str(strict)) from strict
    try:
        return msgspec.convert(lenient(fields), wire)
    except ValueError as error:  # msgspec's own among them
        raise RejectedError(Reason.INVALID_FIELD, str(error)) from error


def decode_event(
    key: str,
    payload: bytes | None,
    kafka_ms: int,
    placeholders: frozenset[str] = PLACEHOLDER_IDS,
    max_future_ms: int = MAX_FUTURE_MS,
) -> Event:
    """Decode and validate one record of the events topic.

    Args:
        key: The record key, one character a byte (ISO-8859-1); empty where it is missing.
        payload: The record value.
        kafka_ms: The record's Kafka time, epoch milliseconds: what lies far behind it is in the
            future. A replay judges as the first time did.
        placeholders: Ids that stand for unknown users, in lower case; see `PLACEHOLDER_IDS`.
        max_future_ms: How far ahead of ``kafka_ms`` an event may be.

    Raises:
        RejectedError: The record must go to the dead letters.
    """
    # Every event comes this way: what a check costs counts, and a call costs more than most.
    if payload is None:
        raise RejectedError(Reason.EMPTY_VALUE, "the record has no value")
    if len(payload) > MAX_EVENT_BYTES:
        raise RejectedError(Reason.TOO_LARGE, f"{len(payload)} bytes, at most {MAX_EVENT_BYTES}")
    try:
        event = _strict_event(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        event = _decode(_event_decoder, payload, _read_event)
    user_id, ts, product_id, kind = event.user_id, event.ts, event.product_id, event.type
    # A key that is ASCII is the same text as UTF-8 and as ISO-8859-1.
    if not (key == user_id and key.isascii()):
        if not key:
            raise RejectedError(Reason.MISSING_KEY, "the record key must be the user id")
        if not key_matches(key, user_id):
            raise RejectedError(Reason.KEY_MISMATCH, "the record key differs from user_id")
    if kind == "search":
        if event.query is None:
            raise RejectedError(Reason.MISSING_FIELD, "a search needs query")
        if not event.query.strip():
            raise RejectedError(Reason.INVALID_FIELD, "the query is blank")
    elif product_id is None:
        if kind not in CONTROL_TYPES:
            raise RejectedError(Reason.MISSING_FIELD, f"a {kind} needs product_id")
    elif product_id < _FIRST_FREE:
        raise RejectedError(Reason.INVALID_FIELD, f"product_id: {_RESERVED}")
    if ts > kafka_ms + max_future_ms:
        raise RejectedError(
            Reason.IN_THE_FUTURE,
            f"ts is {ts - kafka_ms} ms ahead of the time at which Kafka got the record",
        )
    if ts < MIN_TIMESTAMP_MS:
        detail = f"ts {ts} is before the year 2000; it must be in milliseconds: seconds?"
        raise RejectedError(Reason.INVALID_FIELD, detail)
    if user_id < _FIRST_FREE:
        raise RejectedError(Reason.INVALID_FIELD, f"user_id: {_RESERVED}")
    # What was collected under such an id must be erasable.
    if user_id.strip().lower() in placeholders and kind not in CONTROL_TYPES:
        detail = f"user_id {user_id!r} stands for users that are not known, not for one"
        raise RejectedError(Reason.PLACEHOLDER, detail)
    return event


def decode_event_line(payload: bytes, placeholders: frozenset[str] = PLACEHOLDER_IDS) -> Event:
    """Decode and validate one event of a file, which has neither a key nor a Kafka time.

    Raises:
        RejectedError: The job would not take it.
    """
    key = decode_accepted_event(payload).user_id.encode().decode("latin-1")
    return decode_event(key, payload, MAX_TIMESTAMP_MS, placeholders)


def decode_accepted_event(payload: bytes | None) -> Event:
    """Decode an event that was accepted before, perhaps by an earlier version: it is not judged.

    Raises:
        RejectedError: It is no event at all.
    """
    if payload is None:
        raise RejectedError(Reason.EMPTY_VALUE, "the record has no value")
    return _decode(_event_decoder, payload, _read_event)


def _read_event(fields: Mapping[str, Any]) -> dict[str, Any]:
    read = event_fields(fields)
    ts = read.get("ts")
    if isinstance(ts, int) and ts > MAX_TIMESTAMP_MS:
        msg = f"ts {ts} is after the year 9999; it must be in milliseconds: micro- or nanoseconds?"
        raise ValueError(msg)
    return read


def decode_product(
    key: str,
    payload: bytes,
    kafka_ms: int = MAX_TIMESTAMP_MS,
    max_future_ms: int = MAX_FUTURE_MS,
) -> tuple[Product | PartialProduct, NDArray[np.float32] | None]:
    """Decode and validate one record of the catalogue topic that has a value: whole or partial.

    Args:
        key: The record key, one character a byte (ISO-8859-1); empty where it is missing.
        payload: The record value.
        kafka_ms: The record's Kafka time, epoch milliseconds: ``updated_at`` far behind it is in
            the future, and would keep out all that follows.
        max_future_ms: How far ahead of ``kafka_ms`` it may be.

    Returns:
        The product or what is said of it, and its vector, shape (d,), scaled to length 1; None
        where the record has no vector.

    Raises:
        RejectedError: The record must go to the dead letters.
    """
    if len(payload) > MAX_PRODUCT_BYTES:
        raise RejectedError(Reason.TOO_LARGE, f"{len(payload)} bytes, at most {MAX_PRODUCT_BYTES}")
    product: Product | PartialProduct
    if _decode(_kind_decoder, payload).partial:
        product = _decode(_partial_decoder, payload, product_fields)
    else:
        product = _decode(_product_decoder, payload, product_fields)
    if not key:
        raise RejectedError(Reason.MISSING_KEY, "the record key must be the product id")
    if not key_matches(key, product.product_id):
        raise RejectedError(Reason.KEY_MISMATCH, "the record key differs from product_id")
    _check_product(product)
    if isinstance(product.price, float) and not math.isfinite(product.price):
        raise RejectedError(Reason.INVALID_FIELD, "price is not finite")
    _check_updated_at(product.updated_at, kafka_ms + max_future_ms)
    if isinstance(product, Product):
        _check_related(product)
    if (product.space is None) != (product.embedding is None):
        detail = "space and embedding belong together: both or neither"
        raise RejectedError(Reason.MISSING_FIELD, detail)
    if product.embedding is None:
        return product, None
    vector = decode_vector(product.embedding)
    if product.space == TEXT_SPACE and len(vector) != TEXT_DIMENSIONS:
        # A search's vector, made by the encoder, would not fit its products'.
        detail = f"{len(vector)} dimensions; the space {TEXT_SPACE} has {TEXT_DIMENSIONS}"
        raise RejectedError(Reason.WRONG_LENGTH, detail)
    return product, vector


def _check_updated_at(updated_at: int | None, latest_ms: int) -> None:
    if updated_at is None:
        return
    if updated_at < MIN_TIMESTAMP_MS:
        detail = f"updated_at {updated_at} is before the year 2000; is it in seconds?"
        raise RejectedError(Reason.INVALID_FIELD, detail)
    if updated_at > latest_ms:
        detail = f"updated_at {updated_at} is far ahead of the time at which Kafka got the record"
        raise RejectedError(Reason.IN_THE_FUTURE, detail)


def _check_related(product: Product) -> None:
    if product.rebuy_days is not None and not math.isfinite(product.rebuy_days):
        raise RejectedError(Reason.INVALID_FIELD, "rebuy_days is not finite")


def decode_product_line(payload: bytes) -> ProductLine:
    """Decode and validate one product of a catalogue file.

    Raises:
        RejectedError: The job would not take it.
    """
    line = _decode(_line_decoder, payload, product_fields)
    _check_product(line)
    _check_updated_at(line.updated_at, MAX_TIMESTAMP_MS)
    if line.partial:
        # Its absent fields are not empty, as those of a whole record are.
        raise RejectedError(Reason.INVALID_FIELD, "a partial update is no product of a file")
    return line


def _check_product(product: Product | PartialProduct | ProductLine) -> None:
    check_product_id(product.product_id)
    _check_text("title", product.title, MAX_TITLE_BYTES)
    _check_text("category", product.category, MAX_CATEGORY_BYTES)


def check_product_id(product_id: str) -> None:
    """Check an id that a product is written, or deleted, under.

    Raises:
        RejectedError: No product can have it.
    """
    if not 1 <= len(product_id) <= MAX_ID:
        detail = f"an id has 1 to {MAX_ID} characters, not {len(product_id)}"
        raise RejectedError(Reason.INVALID_FIELD, detail)
    if product_id < _FIRST_FREE:
        raise RejectedError(Reason.INVALID_FIELD, f"product_id: {_RESERVED}")


def _check_text(name: str, text: str | msgspec.UnsetType, most: int) -> None:
    if isinstance(text, msgspec.UnsetType):
        return
    # No character takes more than four.
    if 4 * len(text) > most and len(text.encode()) > most:
        detail = f"{name} has {len(text.encode())} bytes of UTF-8, at most {most}"
        raise RejectedError(Reason.INVALID_FIELD, detail)


def decode_space_notice(payload: bytes) -> SpaceNotice:
    """Decode what the catalogue topic says of a space.

    Raises:
        RejectedError: The record must go to the dead letters.
    """
    return _decode(_notice_decoder, payload)


def decode_tombstone(key: str) -> str:
    """Read the product id that a record without a value deletes.

    Raises:
        RejectedError: The key is missing, not UTF-8, or none that a product can have.
    """
    if not key:
        raise RejectedError(Reason.MISSING_KEY, "a tombstone needs a product id")
    try:
        product_id = key.encode("latin-1").decode()
    except UnicodeDecodeError as error:
        raise RejectedError(Reason.INVALID_FIELD, "the key is not UTF-8") from error
    check_product_id(product_id)
    return product_id


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
    """Where in Kafka a record stands; partition and offset are -1 for what is no record of it."""

    partition: int
    offset: int
    timestamp_ms: int = 0
    """The record's Kafka time, epoch milliseconds; 0: not known."""


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


class SavedProductList(NamedTuple):
    """The lists of one product; what has none of either is deleted."""

    product_id: str
    similar: list[tuple[str, float]]
    """Products that follow it, or are near to it, and their scores, best first."""
    bought_together: list[tuple[str, float]]
    """Products that are bought with it, and their weights, best first."""
    generated_us: int
    """Epoch microseconds; the newest wins."""


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
    record: bytes = b""
    """The whole of it (:class:`udfs.product_record.ProductRecord`) as JSON; empty where deleted."""
    between: tuple[ProductDetails, ...] = ()
    """What the scopes may say of it, left by a writer that failed between these states."""


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
    product_lists: list[SavedProductList] = field(default_factory=list)
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
    erased: int = 0
    """Events that were not taken because their user had them erased."""
    opted_out: int = 0
    """Events that moved nothing because their user objects."""
    capped: int = 0
    """Events that moved nothing because their user had too many in their minute."""
    updates: int = 0
    last: bool = True


def frame_record(payload: bytes | None, origin: Origin) -> bytes:
    """Frame a record as the events source does in SQL: ``partition offset time kind value``.

    Time is the record's Kafka time in epoch milliseconds, kind is ``v``, or ``n`` for a record
    without a value. It is also the form, v2, in which an event that is not saved yet stands in the
    keyed state; v1 had no time.
    """
    kind = b"n" if payload is None else b"v"
    where = (origin.partition, origin.offset, origin.timestamp_ms)
    return b"%d %d %d %b %b" % (*where, kind, payload or b"")


def split_record(record: bytes) -> tuple[bytes | None, Origin]:
    """Undo :func:`frame_record`, also of v1.

    Raises:
        ValueError: It is not a framed record.
    """
    payload, kafka_ms = record_value(record)
    partition, offset, _ = record.split(b" ", 2)
    timestamp_ms = 0 if kafka_ms == MAX_TIMESTAMP_MS else kafka_ms
    return payload, Origin(int(partition), int(offset), timestamp_ms)


def record_value(record: bytes) -> tuple[bytes | None, int]:
    """Take value and Kafka time out of a framed record; an unknown time is `MAX_TIMESTAMP_MS`.

    A v1 frame has none, nor has a record before the year 2000: Kafka says -1 where it has no time,
    of which the source's SQL makes 999.

    What every event goes through: the rest of a frame is read where it is needed.

    Raises:
        ValueError: It is not a framed record.
    """
    try:
        _, _, third, kind, payload = record.split(b" ", 4)
        if third < _LETTERS:
            kafka_ms = int(third)
            known_ms = kafka_ms if kafka_ms >= MIN_TIMESTAMP_MS else MAX_TIMESTAMP_MS
            return (None if kind == b"n" else payload), known_ms
    except ValueError:
        pass  # v1, with no space in the value, or no frame at all
    _, _, kind, payload = record.split(b" ", 3)
    if kind not in (b"v", b"n"):
        msg = f"invalid literal for the kind of a framed record: {kind[:20]!r}"
        raise ValueError(msg)
    return (None if kind == b"n" else payload), MAX_TIMESTAMP_MS


class DeadLetter(NamedTuple):
    """A record that could not be processed, whole, with its origin."""

    topic: str
    key: str
    payload: bytes | None
    reason: Reason
    detail: str
    origin: Origin
