"""Operator: merges what the shop says of a product into its whole, saves it, and passes it on.

An accepted record is appended to its product's pending list in keyed state and to the operator's
memory. Once a tick, the first of the touched products' timers takes all of them: one bulk read of
their rows, the merges, one bulk write, then the records of `products` and `related`. Each product's
own timer then clears its pending list, in that product's key context. After a failure the pending
records are merged again, into what was saved by then: merges converge.

The whole of a product stands in its row and not in the state, so that a checkpoint does not grow
with the catalogue, and a job that starts without a savepoint keeps what partial updates said.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from pyflink.common import Row, Time, Types
from pyflink.common.typeinfo import TypeInformation
from pyflink.datastream import RuntimeContext
from pyflink.datastream.functions import KeyedProcessFunction
from pyflink.datastream.state import ListStateDescriptor, StateTtlConfig, ValueStateDescriptor

from udfs.memory import TickCollector
from udfs.metrics import METRIC_GROUP, dead_letter_counters
from udfs.ports import BaseReader, BatchSaver
from udfs.product_record import FloatVector, ProductRecord, TextEncoder, encode
from udfs.product_updates import Outcome, Update, apply_updates
from udfs.query_encoder import encode_products, encode_query
from udfs.schemas import (
    MAX_DIMENSIONS,
    MAX_FUTURE_MS,
    MS_A_DAY,
    SPACE_KEY,
    DeadLetter,
    Product,
    Reason,
    RejectedError,
    SaveBatch,
    decode_product,
    decode_space_notice,
    decode_tombstone,
    record_value,
    split_record,
)
from udfs.space_notices import count_notice

# Where a row that is emitted belongs.
PRODUCTS: Final = "products"
RELATED: Final = "related"
DEAD_LETTERS: Final = "dead-letters"
# Products that are merged at once at the most, and bytes of their records.
MOST_PRODUCTS: Final = 512
MOST_BYTES: Final = 16 * 1024 * 1024
# When a product was deleted: version, write time (epoch µs). A day is longer than clocks differ.
_DELETED: Final = struct.Struct("<Bq")
_DELETED_VERSION: Final = 1
# The topics of the dead letters of rows that Cassandra refused.
_ROWS: Final = frozenset({"cassandra:products", "cassandra:products_by_scope"})


@dataclass(frozen=True)
class CatalogueConfig:
    """Constants of the operator; every one is an option of the job."""

    tick_ms: int = 100
    """Time between merges of one product, milliseconds."""
    dimensions: int = 0
    """Vector length that the shop's products must have; 0: any."""
    catalogue_topic: str = "catalogue"
    """Named in dead letters."""
    max_future_ms: int = MAX_FUTURE_MS
    """How far ``updated_at`` may lie ahead of its record's Kafka time, milliseconds."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if self.tick_ms < 1:
            msg = f"catalogue_tick_ms must be positive, not {self.tick_ms}"
            raise ValueError(msg)
        if not 0 <= self.dimensions <= MAX_DIMENSIONS:
            msg = f"dimensions must be within 0 and {MAX_DIMENSIONS}, not {self.dimensions}"
            raise ValueError(msg)


def row_type() -> TypeInformation:
    """Type of what the operator emits: where it belongs, and a record's key, value and headers."""
    array = Types.PRIMITIVE_ARRAY(Types.BYTE())
    return Types.ROW_NAMED(
        ["kind", "key", "value", "headers"],
        [Types.STRING(), array, array, Types.MAP(Types.STRING(), array)],
    )


def text_encoder(texts: Iterable[tuple[str, str]]) -> TextEncoder:
    """Return what makes the unit vector (64,) of a title and a category.

    Of ``texts``, titles and categories that are asked for most likely, all are made at once, which
    takes a fifth of the time.
    """
    distinct = list(dict.fromkeys(texts))
    titles, categories = [title for title, _ in distinct], [category for _, category in distinct]
    made = dict(zip(distinct, encode_products(titles, categories), strict=True))

    def encode_text(title: str, category: str) -> FloatVector | None:
        vector = made.get((title, category))
        if vector is None:
            vector = encode_products([title], [category])[0]
        return vector if vector.any() else None

    return encode_text


def _texts(base: ProductRecord | None, updates: Sequence[Update]) -> Iterator[tuple[str, str]]:
    """Yield the texts of which a product needs vectors, as far as whole records say them."""
    for update in updates:
        said = update.said
        if isinstance(said, Product) and update.vector is None:
            text = (said.title, said.category)
            if base is None or (base.is_text and text != (base.title, base.category)):
                yield text


@dataclass
class _Touched:
    """A product of which records came in this tick."""

    product_id: str
    deleted_us: int
    stored_deleted_us: int
    updates: list[Update] = field(default_factory=list)
    """Records that are not merged yet."""


class CatalogueFunction(KeyedProcessFunction):
    """Takes framed records of `catalogue` by product id (:func:`udfs.schemas.frame_record`).

    Emits rows of :func:`row_type`.

    Args:
        config: Constants.
        saver: Makes what saves rows, of the operator's context.
        bases: Makes what reads rows.
        to_row: Makes key, value and headers of a dead letter.
    """

    def __init__(
        self,
        config: CatalogueConfig,
        saver: Callable[[RuntimeContext], BatchSaver],
        bases: Callable[[], BaseReader],
        to_row: Callable[[DeadLetter], Row],
    ) -> None:
        """Keep how to make what holds sockets; it is made where it runs."""
        self._config = config
        self._make_saver = saver
        self._make_bases = bases
        self._to_row = to_row

    def open(self, runtime_context: RuntimeContext) -> None:
        """Connect, and open states and metrics."""
        ttl = (
            StateTtlConfig.new_builder(Time.milliseconds(MS_A_DAY))
            .set_update_type(StateTtlConfig.UpdateType.OnCreateAndWrite)
            .set_state_visibility(StateTtlConfig.StateVisibility.NeverReturnExpired)
            .cleanup_incrementally(10, False)
            # PyFlink hands the time on to nobody, and makes its own default by starting a JVM.
            .cleanup_in_rocksdb_compact_filter(100_000, timedelta(days=1))
            .disable_cleanup_in_background()
            .build()
        )
        deleted = ValueStateDescriptor("deleted", Types.PICKLED_BYTE_ARRAY())
        deleted.enable_time_to_live(ttl)
        self._deleted = runtime_context.get_state(deleted)
        self._announced = runtime_context.get_state(
            ValueStateDescriptor("announced", Types.PICKLED_BYTE_ARRAY())
        )
        self._pending = runtime_context.get_list_state(
            ListStateDescriptor("pending", Types.PICKLED_BYTE_ARRAY())
        )
        encode_query("any")  # loads the encoder now and not within the first tick
        self._touched: dict[str, _Touched] = {}
        self._waiting = 0
        self._waiting_bytes = 0
        group = runtime_context.get_metrics_group().add_group(METRIC_GROUP)
        self._updates = group.counter("catalogue_updates")
        self._late = group.counter("late_updates")
        self._dead_letters = dead_letter_counters(group)
        self._saver = self._make_saver(runtime_context)
        self._bases = self._make_bases()
        self._collector = TickCollector()

    def process_element(self, value: bytes, ctx: KeyedProcessFunction.Context) -> Iterator[Row]:
        """Accept or reject one framed record; an accepted one is durable in the state on return."""
        key: str = ctx.get_current_key()
        try:
            if key == SPACE_KEY:
                yield from self._notice(value)
                return
            update = self._decode(key, value)
        except RejectedError as error:
            yield self._letter(key, value, error)
            return
        touched = self._touched.get(key)
        if touched is None:
            touched = yield from self._touch(key, ctx)
        self._add(touched, update)
        self._pending.add(value)
        if self._waiting >= MOST_PRODUCTS or self._waiting_bytes >= MOST_BYTES:
            yield from self._flush()

    def on_timer(self, _timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[Row]:
        """Run the tick if this is its first timer, then forget what is pending of this product."""
        key: str = ctx.get_current_key()
        touched = self._touched.get(key)
        if touched is None:
            # After a restore: what was pending is merged in a tick of its own, with others.
            if next(iter(self._pending.get()), None) is not None:
                yield from self._touch(key, ctx)
            return
        if touched.updates:
            yield from self._flush()
        self._pending.clear()
        if touched.deleted_us != touched.stored_deleted_us:
            self._deleted.update(_DELETED.pack(_DELETED_VERSION, touched.deleted_us))
        del self._touched[key]

    def close(self) -> None:
        """Close the connections."""
        # Flink also closes what failed to open.
        for name in ("_saver", "_bases"):
            if hasattr(self, name):
                getattr(self, name).close()

    def _notice(self, record: bytes) -> Iterator[Row]:
        """Count what the topic says of a space; the last notice that was missing switches."""
        payload, origin = split_record(record)
        if payload is None:
            decode_tombstone(SPACE_KEY)  # no product has this key
            return
        known, switch = count_notice(
            self._announced.value(), decode_space_notice(payload), origin.partition
        )
        self._announced.update(known)
        if switch is not None:
            yield Row(PRODUCTS, SPACE_KEY.encode(), encode(switch), {})

    def _decode(self, key: str, record: bytes) -> Update:
        payload, kafka_ms = record_value(record)
        if payload is None:
            decode_tombstone(key)
            return Update(None, None, record)
        said, vector = decode_product(key, payload, kafka_ms, self._config.max_future_ms)
        needed = self._config.dimensions
        if vector is not None and needed and len(vector) != needed:
            detail = f"{len(vector)} dimensions, --dimensions demands {needed}"
            raise RejectedError(Reason.WRONG_LENGTH, detail)
        return Update(said, vector, record, kafka_ms)

    def _touch(self, key: str, ctx: KeyedProcessFunction.Context) -> Generator[Row, None, _Touched]:
        """Take the product of the current key into this tick, with what a restore left pending."""
        packed = self._deleted.value()
        deleted_us = 0 if packed is None else _DELETED.unpack(packed)[1]
        touched = _Touched(key.encode("latin-1").decode(), deleted_us, deleted_us)
        self._touched[key] = touched
        now_ms = time.time_ns() // 1_000_000
        due_ms = (now_ms // self._config.tick_ms + 1) * self._config.tick_ms
        ctx.timer_service().register_processing_time_timer(due_ms)
        for record in self._pending.get():
            try:
                self._add(touched, self._decode(key, record))
            except RejectedError as error:
                # A version that accepted more had accepted it.
                yield self._letter(key, record, error)
        return touched

    def _add(self, touched: _Touched, update: Update) -> None:
        self._waiting += not touched.updates
        self._waiting_bytes += len(update.record)
        touched.updates.append(update)

    def _flush(self) -> Iterator[Row]:
        """Merge, save and emit all products of which records wait."""
        waiting = {key: touched for key, touched in self._touched.items() if touched.updates}
        bases = self._bases.read([touched.product_id for touched in waiting.values()])
        encode_text = text_encoder(
            text
            for touched in waiting.values()
            for text in _texts(bases.get(touched.product_id), touched.updates)
        )
        now_us = time.time_ns() // 1000
        outcomes: list[tuple[str, Outcome, bytes]] = []
        for key, touched in waiting.items():
            outcome = apply_updates(
                bases.get(touched.product_id),
                touched.updates,
                now_us=now_us,
                deleted_us=touched.deleted_us,
                encode_text=encode_text,
            )
            outcomes.append((key, outcome, b"" if outcome.after is None else encode(outcome.after)))
            self._updates.inc(outcome.accepted)
            self._late.inc(outcome.late)
            for update, error in outcome.rejected:
                yield self._letter(key, update.record, error)
        changes = [outcome.change(encoded) for _, outcome, encoded in outcomes]
        letters = self._saver.save(
            SaveBatch(products=[change for change in changes if change is not None])
        )
        for key, outcome, _ in outcomes:
            touched = waiting[key]
            touched.updates.clear()
            touched.deleted_us = outcome.deleted_us
        self._waiting = self._waiting_bytes = 0
        for letter in letters:
            yield Row(DEAD_LETTERS, *self._to_row(letter))
        refused = {letter.key for letter in letters if letter.topic in _ROWS}
        for key, outcome, encoded in outcomes:
            if (outcome.accepted or outcome.related is not None) and key not in refused:
                yield from _rows(key.encode("latin-1"), outcome, encoded)
        self._collector.collect(idle=True)

    def _letter(self, key: str, record: bytes, error: RejectedError) -> Row:
        self._dead_letters[error.reason].inc()
        payload, origin = split_record(record)
        topic = self._config.catalogue_topic
        letter = DeadLetter(topic, key, payload, error.reason, error.detail, origin)
        return Row(DEAD_LETTERS, *self._to_row(letter))


def _rows(key: bytes, outcome: Outcome, encoded: bytes) -> Iterator[Row]:
    """Make the records of a product that is saved; one without a value deletes."""
    yield Row(PRODUCTS, key, encoded or None, {})
    if outcome.related is not None:
        yield Row(RELATED, key, encode(outcome.related), {})
    elif outcome.deletes_related:
        yield Row(RELATED, key, None, {})
