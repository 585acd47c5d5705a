"""Operator: keyed user state, the catalogue in memory, and the ticks in which lookups are batched.

An accepted event is appended to its user's pending list in keyed state and to the operator's
memory. Once a tick, the first of the touched users' timers takes all of them: one batched update,
one batched lookup, one saving, which returns when all of it is acknowledged. Each user's own timer
then stores the moved profile and clears the pending list, in that user's key context. A failure
between checkpoint and save restores the old profile and the pending events, and the tick runs
again: the saves are idempotent. The cost of a touch is one state read, one append an event, one
write a tick. A user of a tick::

    away ──event──▶ pending ──tick's end──▶ flushed ──own timer──▶ away
                       ▲──────────event────────┘

What is to be done later for a user, an erasure's repetition or another look for a product, hangs on
a timer of theirs; which one it is tells the profile, so that a timer of no meaning does nothing.

The catalogue is no state: the topics ``products`` and ``related`` are its durable copy. A task
reads them whole before its first event, and takes by broadcast what stands behind that.
"""

from __future__ import annotations

import logging
import math
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from pyflink.common import Row, Time, Types
from pyflink.datastream import RuntimeContext
from pyflink.datastream.functions import KeyedBroadcastProcessFunction
from pyflink.datastream.state import (
    ListStateDescriptor,
    MapStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)

from udfs.catalogue import Catalogue
from udfs.catalogue_growth import CatalogueGrowth
from udfs.memory import TickCollector
from udfs.metrics import METRIC_GROUP, Gauge, dead_letter_counters
from udfs.ports import BatchSaver, Record, TopicReader
from udfs.product_lists import ProductLists
from udfs.product_record import (
    ProductRecord,
    RelatedRow,
    decode_record,
    decode_related,
    decode_switch,
)
from udfs.profile import Profile
from udfs.query_encoder import DIMENSIONS as ENCODER_DIMENSIONS
from udfs.query_encoder import SPACE as ENCODER_SPACE
from udfs.query_encoder import encode_query
from udfs.recommend import MoveCap, RecommendConfig, Touched, recommend
from udfs.schemas import (
    CONTROL_TYPES,
    ERASE,
    MAX_DIMENSIONS,
    MAX_FUTURE_MS,
    MAX_TIMESTAMP_MS,
    MIN_TIMESTAMP_MS,
    MS_A_DAY,
    OPT_OUT,
    PLACEHOLDER_IDS,
    SPACE_KEY,
    DeadLetter,
    Erasure,
    Event,
    Objection,
    Origin,
    PendingEvent,
    RejectedError,
    SaveBatch,
    decode_accepted_event,
    decode_event,
    decode_tombstone,
    record_value,
    split_record,
)
from udfs.tick import Tick
from udfs.unresolved import UnresolvedItems

logger = logging.getLogger(__name__)

THREAD_MODE: Final = "thread"
PROCESS_MODE: Final = "process"
# The user's objection, kept apart as the profile leaves with its TTL: version, time (epoch µs).
_OBJECTION: Final = struct.Struct("<Bq")
_OBJECTION_VERSION: Final = 1
# After an erasure it is carried out again: a write that was under way, or a replica that was away,
# may bring back what was deleted.
ERASE_AGAIN_MS: Final = (60_000, 600_000, 3_600_000, 6 * 3_600_000, 24 * 3_600_000)
# An erasure deletes events up to tomorrow's. Of the day, an hour is for Kafka, which takes a record
# that is so far ahead of the broker's clock, and one for clocks that differ.
LONGEST_FUTURE_MS: Final = MS_A_DAY - 2 * 3_600_000
# A user whose product has not come by then is looked at with their next event only.
RETRIES_END_MS: Final = MS_A_DAY
# Fields of a broadcast row: key (str, one character a byte), value, partition, offset, Kafka time
# (epoch milliseconds), and which of the two topics it is of.
PRODUCTS_ROW: Final = 0
RELATED_ROW: Final = 1
# How often a task that reads the topics says how far it is; and how long it waits for more records
# at once, so at a topic's end.
_TELL_S: Final = 5.0
_READ_S: Final = 0.1
# Share of the time for lists by product: where there is nothing else to do, and under load.
_IDLE_SHARE: Final = 0.5
_BUSY_SHARE: Final = 0.1
# How often lists by product are worked at where no tick ends.
_LISTS_MS: Final = 100


class ExecutionModeError(RuntimeError):
    """The job runs in another Python execution mode than it was configured for."""


@dataclass(frozen=True)
class RecommenderConfig:
    """Constants of the operator; every one is an option of the job."""

    recommend: RecommendConfig = field(default_factory=RecommendConfig)
    """Constants of profile and lookup."""
    tick_ms: int = 1000
    """Time between lookups of one user, milliseconds; 0: at every event."""
    min_tick_ms: int = 100
    """The tick shrinks to this on an idle machine, see :mod:`udfs.tick`; at ``tick_ms`` or above it
    does not shrink."""
    tick_max_ms: int = 10_000
    """The tick stretches under load, so that saving takes at most half of it, up to this; while
    the events read are older than this, it has this length: no list would be fresh anyway."""
    max_pending: int = 100_000
    """Events of one subtask that are kept for the next tick; then it is taken at once."""
    profile_ttl_days: float = 90
    """A user idle for so long leaves the state, days."""
    waiting_retry_max_ms: int = 300_000
    """A user whose products are unknown is looked at again after the time already waited, at
    most this."""
    space_switch_share: float = 0.9
    """Share of the active space's products that an announced space needs to become active."""
    product_list_length: int = 20
    """Products of each list by product; 0: none are made."""
    max_moves_per_minute: int = 0
    """Events of a user and minute, by their own times, that move the profile; 0: all do."""
    dimensions: int = 0
    """Vector length that every product must have; 0: a space's first products decide."""
    execution_mode: str = THREAD_MODE
    """The Python execution mode that must be in force."""
    events_topic: str = "events"
    """Named in dead letters."""
    products_topic: str = "products"
    """The compacted topic of whole products."""
    related_topic: str = "related"
    """The compacted topic of what was learned of products."""
    max_future_ms: int = MAX_FUTURE_MS
    """How far an event's time may lie ahead of its record's Kafka time, milliseconds; at most
    ``LONGEST_FUTURE_MS``."""
    placeholder_ids: frozenset[str] = PLACEHOLDER_IDS
    """User ids that stand for users that are not known; their events are refused."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if not 0 <= self.max_future_ms <= LONGEST_FUTURE_MS:
            msg = (
                f"max_future_ms must be within 0 and {LONGEST_FUTURE_MS} (22 hours), as an erasure"
                f" deletes events up to tomorrow's, but is {self.max_future_ms}"
            )
            raise ValueError(msg)
        if self.tick_ms < 0 or self.tick_max_ms < self.tick_ms:
            msg = "tick_ms must not be negative, nor above tick_max_ms"
            raise ValueError(msg)
        for name in ("max_pending", "min_tick_ms", "waiting_retry_max_ms"):
            if getattr(self, name) < 1:
                msg = f"{name} must be positive"
                raise ValueError(msg)
        for name in ("max_moves_per_minute", "product_list_length"):
            if getattr(self, name) < 0:
                msg = f"{name} must not be negative"
                raise ValueError(msg)
        if not 1 / MS_A_DAY <= self.profile_ttl_days <= 36_500:
            msg = "profile_ttl_days must be at least a millisecond and at most 100 years"
            raise ValueError(msg)
        if not 0 < self.space_switch_share <= 1:
            msg = f"space_switch_share must be above 0 and at most 1, not {self.space_switch_share}"
            raise ValueError(msg)
        if not 0 <= self.dimensions <= MAX_DIMENSIONS:
            msg = f"dimensions must be within 0 and {MAX_DIMENSIONS}, not {self.dimensions}"
            raise ValueError(msg)
        if self.execution_mode not in (THREAD_MODE, PROCESS_MODE):
            msg = f"execution_mode must be thread or process, not {self.execution_mode}"
            raise ValueError(msg)


def catalogue_descriptor() -> MapStateDescriptor:
    """Describe the broadcast state, which Flink requires and which stays empty.

    An earlier version kept the catalogue there. Made anew at each call, as a shared one cannot be
    pickled.
    """
    return MapStateDescriptor("catalogue", Types.STRING(), Types.PICKLED_BYTE_ARRAY())


class RecommenderFunction(KeyedBroadcastProcessFunction):
    """Takes framed records by user (:func:`udfs.schemas.frame_record`).

    Broadcasts Row(key, value, partition, offset, time, topic), see ``PRODUCTS_ROW``. Emits dead
    letters as ``to_row`` makes them; all else it saves.
    """

    def __init__(
        self,
        config: RecommenderConfig,
        saver: Callable[[RuntimeContext], BatchSaver],
        reader: Callable[[Sequence[str]], TopicReader],
        to_row: Callable[[DeadLetter], Row],
    ) -> None:
        """Keep the constants; everything else is made in :meth:`open`.

        Args:
            config: The constants.
            saver: Makes what saves, where it runs.
            reader: Makes what reads the topics of these names whole, where it runs.
            to_row: Makes the row of a dead letter.
        """
        self._config = config
        self._make_saver = saver
        self._make_reader = reader
        self._to_row = to_row

    def open(self, runtime_context: RuntimeContext) -> None:
        """Check the execution mode, open states and metrics, and read the catalogue."""
        config = self._config
        check_execution_mode(runtime_context, config.execution_mode)
        ttl = (
            StateTtlConfig.new_builder(Time.milliseconds(round(config.profile_ttl_days * MS_A_DAY)))
            .set_update_type(StateTtlConfig.UpdateType.OnCreateAndWrite)
            .set_state_visibility(StateTtlConfig.StateVisibility.NeverReturnExpired)
            .cleanup_incrementally(10, False)
            # PyFlink hands the time on to nobody, and makes its own default by starting a JVM.
            .cleanup_in_rocksdb_compact_filter(100_000, timedelta(days=30))
            .disable_cleanup_in_background()
            .build()
        )
        profile = ValueStateDescriptor("profile", Types.PICKLED_BYTE_ARRAY())
        profile.enable_time_to_live(ttl)
        self._profile = runtime_context.get_state(profile)
        self._objection = runtime_context.get_state(
            ValueStateDescriptor("objection", Types.PICKLED_BYTE_ARRAY())
        )
        self._pending = runtime_context.get_list_state(
            ListStateDescriptor("pending", Types.PICKLED_BYTE_ARRAY())
        )
        encode_query("any")  # loads the encoder now and not within the first search's tick
        self._catalogue = Catalogue(
            encoder=encode_query,
            encoder_space=ENCODER_SPACE,
            encoder_dimensions=ENCODER_DIMENSIONS,
            switch_share=config.space_switch_share,
            dimensions=config.dimensions,
        )
        self._growth = CatalogueGrowth()
        self._topics = {PRODUCTS_ROW: config.products_topic, RELATED_ROW: config.related_topic}
        # Where reading the topics whole ended: the next offset by topic and partition.
        self._read_to: dict[tuple[str, int], int] = {}
        self._cleared = False
        self._rejected = False
        self._subtask = subtask_index(runtime_context)
        self._parallelism = parallelism(runtime_context)
        self._lists = (
            ProductLists(self._subtask, self._parallelism, config.product_list_length)
            if config.product_list_length
            else None
        )
        # Until then lists by product have had their share of the time; and when they are next
        # worked at.
        self._lists_rest_s = 0.0
        self._lists_ms = 0
        self._cap = MoveCap(config.max_moves_per_minute) if config.max_moves_per_minute else None
        self._unresolved = UnresolvedItems(time.monotonic())
        self._touched: dict[str, Touched] = {}
        self._pending_count = 0
        self._tick = Tick(config.min_tick_ms, config.tick_ms, config.tick_max_ms)
        group = runtime_context.get_metrics_group().add_group(METRIC_GROUP)
        self._events = group.counter("events")
        self._updates = group.counter("updates")
        self._lookups = group.counter("lookups")
        self._duplicates = group.counter("duplicates")
        self._unresolved_events = group.counter("unresolved_events")
        self._erased_events = group.counter("erased_events")
        self._opted_out_events = group.counter("opted_out_events")
        self._capped_events = group.counter("capped_events")
        self._rejected_rows = group.counter("rejected_rows")
        self._dead_letters = dead_letter_counters(group)
        self._batch_size = Gauge(group, "lookup_batch_size")
        self._catalogue_size = Gauge(group, "catalogue_size")
        self._catalogue_searchable = Gauge(group, "catalogue_searchable")
        self._tick_gauge = Gauge(group, "tick_ms")
        self._saver = self._make_saver(runtime_context)
        self._collector = TickCollector()
        self._read_catalogue()
        self._collector.settle()

    def close(self) -> None:
        """Let go of the connections."""
        # Flink also closes what failed to open.
        if hasattr(self, "_saver"):
            self._saver.close()

    def _read_catalogue(self) -> None:
        """Fill the catalogue from the topics: everything that stands in them now."""
        began_s = time.monotonic()
        # Deleted, and not sent again since.
        gone: set[str] = set()
        unrelated: set[str] = set()
        catalogue = self._catalogue
        refused = catalogue.load(self._read_products(gone), self._read_related(unrelated), None)
        for product_id in gone:
            catalogue.remove(product_id)
        for product_id in unrelated:
            catalogue.remove_related(product_id)
        if self._lists is not None:
            self._lists.start(catalogue)
            for product_id in gone:
                self._lists.removed(product_id)
        self._rejected_rows.inc(refused)
        self._show_catalogue()
        spent_s = time.monotonic() - began_s
        logger.info("the catalogue is read: %d products in %.1f s", len(catalogue), spent_s)
        if refused:
            logger.error("%d products are left out or lack a vector that does not fit", refused)

    def _read_products(self, gone: set[str]) -> Iterator[ProductRecord]:
        for record, key in self._read_whole(self._config.products_topic):
            try:
                if record.value is None:
                    gone.add(decode_tombstone(key))
                elif key == SPACE_KEY:
                    self._catalogue.switch(decode_switch(record.value))
                else:
                    product = decode_record(key, record.value)
                    gone.discard(product.product_id)
                    yield product
            except RejectedError as error:
                self._reject_row(record, error)

    def _read_related(self, gone: set[str]) -> Iterator[RelatedRow]:
        for record, key in self._read_whole(self._config.related_topic):
            try:
                if record.value is None:
                    gone.add(decode_tombstone(key))
                else:
                    row = decode_related(key, record.value)
                    gone.discard(row.product_id)
                    yield row
            except RejectedError as error:
                self._reject_row(record, error)

    def _read_whole(self, topic: str) -> Iterator[tuple[Record, str]]:
        """Read a topic up to its end, with keys of one character a byte.

        It waits for Kafka, and ends with the task.
        """
        reader = self._make_reader([topic])
        read, told_s = 0, time.monotonic()
        try:
            while not reader.caught_up:
                records = reader.read(timeout_s=_READ_S)
                read += len(records)
                if time.monotonic() - told_s >= _TELL_S:
                    told_s = time.monotonic()
                    logger.info("reading the topic %s: %d records so far", topic, read)
                for record in records:
                    yield record, (record.key or b"").decode("latin-1")
            self._read_to.update(reader.positions())
        finally:
            reader.close()

    def _reject_row(self, record: Record, error: RejectedError) -> None:
        """Count a broken record; the first one is shown."""
        self._rejected_rows.inc()
        if not self._rejected:
            self._rejected = True
            where = (record.topic, record.partition, record.offset)
            logger.error("record of %s %d:%d is left out: %s", *where, error)

    def process_element(
        self, value: bytes, ctx: KeyedBroadcastProcessFunction.ReadOnlyContext
    ) -> Iterator[Row]:
        """Accept or reject one framed record; an accepted one is durable in the state on return."""
        key = ctx.get_current_key()
        now_ms = time.time_ns() // 1_000_000
        payload, kafka_ms = record_value(value)
        try:
            event = decode_event(
                key,
                payload,
                kafka_ms,
                self._config.placeholder_ids,
                self._config.max_future_ms,
            )
        except RejectedError as error:
            yield self._dead_letter(self._config.events_topic, key, *split_record(value), error)
            return
        if event.type in CONTROL_TYPES:
            if event.type == ERASE:
                yield from self._erase(key, event, kafka_ms, ctx)
            elif event.type == OPT_OUT:
                yield from self._opt_out(key, event)
            else:
                yield from self._opt_in(key, ctx, now_ms)
            return
        touched = self._touched.get(key)
        if touched is None:
            touched = self._touch(key, ctx, now_ms)
        elif touched.flushed:
            self._schedule(touched, ctx, now_ms)
        touched.events.append(PendingEvent(event, value))
        touched.flushed = False
        self._tick.take(event.ts, now_ms)
        self._pending_count += 1
        if self._config.tick_ms == 0:
            yield from self._flush(ctx)
            self._finish(key, touched, ctx, now_ms)
            return
        self._pending.add(value)
        if self._pending_count >= self._config.max_pending:
            yield from self._flush(ctx)

    def on_timer(
        self, timestamp: int, ctx: KeyedBroadcastProcessFunction.OnTimerContext
    ) -> Iterator[Row]:
        """Run the tick if this is its first timer, then store this user's moved profile."""
        key = ctx.get_current_key()
        now_ms = time.time_ns() // 1_000_000
        yield from self._take_timer(key, timestamp, ctx, now_ms)
        if timestamp == self._lists_ms:
            yield from self._keep_house(ctx)

    def _take_timer(
        self,
        key: str,
        timestamp: int,
        ctx: KeyedBroadcastProcessFunction.OnTimerContext,
        now_ms: int,
    ) -> Iterator[Row]:
        touched = self._touched.get(key)
        if touched is None:
            profile = Profile.unpack(self._profile.value())
            yield from self._erase_again(key, timestamp, profile)
            touched = self._revisit(key, profile, ctx, now_ms)
            if touched is None or self._config.tick_ms:
                return
        else:
            if touched.profile is None:
                touched.profile = Profile.unpack(touched.packed)
            yield from self._erase_again(key, timestamp, touched.profile)
            if timestamp < touched.due_ms:
                # A waiting user's retry, touched meanwhile, or a stretched tick's probe: the
                # user's own timer follows.
                if timestamp == self._tick.probe_ms:
                    yield from self._probe(ctx, now_ms)
                return
        self._tick.wake(now_ms)
        if not touched.flushed:
            yield from self._flush(ctx)
        self._finish(key, touched, ctx, now_ms)

    def process_broadcast_element(
        self, value: Row, ctx: KeyedBroadcastProcessFunction.Context
    ) -> Iterator[Row]:
        """Apply one change of the catalogue; every lookup after it sees it."""
        if not self._cleared:
            # An earlier version's savepoint has the catalogue there.
            ctx.get_broadcast_state(catalogue_descriptor()).clear()
            self._cleared = True
        key, payload, partition, offset = value[0], value[1], value[2], value[3]
        topic = self._topics[value[5]]
        if offset < self._read_to.get((topic, partition), 0):
            return
        rejected: RejectedError | None = None
        try:
            if value[5] == RELATED_ROW:
                self._change_related(key, payload)
            else:
                rejected = self._change_product(key, payload)
        except RejectedError as error:
            rejected = error
        # Every subtask sees every product; one of them speaks for all.
        if rejected is not None and partition % self._parallelism == self._subtask:
            origin = Origin(partition, offset, value[4] if value[4] >= MIN_TIMESTAMP_MS else 0)
            yield self._dead_letter(topic, key, payload, origin, rejected)
        self._show_catalogue()
        yield from self._make_lists()

    def _change_product(self, key: str, payload: bytes | None) -> RejectedError | None:
        """Apply a record of `products`, and return why a vector of it is left out."""
        left_out = None
        catalogue, lists = self._catalogue, self._lists
        if payload is None:
            product_id = decode_tombstone(key)
            catalogue.remove(product_id)
            if lists is not None:
                lists.removed(product_id)
        elif key == SPACE_KEY:
            catalogue.switch(decode_switch(payload))
        else:
            record = decode_record(key, payload)
            is_new = not catalogue.knows(record.product_id)
            left_out = catalogue.put(record)
            if is_new:
                self._growth.add(time.monotonic())
            if lists is not None:
                lists.changed(record.product_id)
        return left_out

    def _change_related(self, key: str, payload: bytes | None) -> None:
        if payload is None:
            product_id = decode_tombstone(key)
            self._catalogue.remove_related(product_id)
        else:
            row = decode_related(key, payload)
            product_id = row.product_id
            self._catalogue.put_related(row)
        if self._lists is not None:
            self._lists.changed(product_id)

    def _is_growing(self) -> bool:
        return self._growth.is_growing(len(self._catalogue), time.monotonic())

    def _keep_house(self, ctx: KeyedBroadcastProcessFunction.ReadOnlyContext) -> Iterator[Row]:
        """Do what is due and belongs to no user; a timer of the current key goes on with it.

        A user's, as there is no other: a broadcast element cannot set one. So before a task's first
        event, and after a change that finds lists at rest, these are worked at with broadcast
        elements alone.
        """
        unresolved = self._unresolved.report(time.monotonic())
        if unresolved is not None:
            scope = f"unresolved:{self._subtask}"
            yield from self._save(SaveBatch(unresolved=unresolved, unresolved_scope=scope))
        yield from self._make_lists()
        self._collector.collect(idle=not self._touched)
        wait_s = None if self._lists is None else self._lists.wait_s
        if wait_s is None:
            return
        now_ms = time.time_ns() // 1_000_000
        due_ms = now_ms + max(_LISTS_MS, math.ceil(wait_s * 1000))
        if not now_ms < self._lists_ms <= due_ms:
            self._lists_ms = due_ms
            ctx.timer_service().register_processing_time_timer(self._lists_ms)

    def _make_lists(self) -> Iterator[Row]:
        """Work at lists by product, and then let them rest, so that they have their share."""
        began_s = time.monotonic()
        if self._lists is None or not self._lists.pending or began_s < self._lists_rest_s:
            return
        share = _IDLE_SHARE if self._tick.is_idle else _BUSY_SHARE
        budget_s = share * max(self._tick.length_ms, _LISTS_MS) / 1000
        made = self._lists.work(self._catalogue, budget_s, time.time_ns() // 1000)
        if made:
            yield from self._save(SaveBatch(product_lists=made))
        now_s = time.monotonic()
        self._lists_rest_s = now_s + (now_s - began_s) * (1 / share - 1)

    def _erase(
        self,
        key: str,
        event: Event,
        kafka_ms: int,
        ctx: KeyedBroadcastProcessFunction.ReadOnlyContext,
    ) -> Iterator[Row]:
        """Forget the user of the current key: state, what is not saved yet, and all rows."""
        touched = self._touched.pop(key, None)
        if touched is not None:
            self._pending_count -= len(touched.events)
        known = self._known(touched)
        known.note_time(event.ts)
        for record in self._pending.get():
            # Not saved yet, or saved before a failure.
            known.note_time(decode_accepted_event(record_value(record)[0]).ts)
        now_us = time.time_ns() // 1000
        erased_us = max(now_us, known.generation_us + 1)
        until_ms = event.ts if kafka_ms == MAX_TIMESTAMP_MS else max(event.ts, kafka_ms)
        # A request whose clock is far ahead must not keep the user out until then.
        latest_ms = now_us // 1000 + self._config.max_future_ms
        kept = known.erased(event.ts, min(until_ms, latest_ms), erased_us)
        self._profile.update(kept.pack())
        self._pending.clear()
        for after_ms in ERASE_AGAIN_MS:
            ctx.timer_service().register_processing_time_timer(erased_us // 1000 + after_ms)
        erasure = Erasure(event.user_id, kept.erasure_ms, kept.oldest_ms, erased_us)
        yield from self._save(SaveBatch(erasures=[erasure]))

    def _erase_again(self, key: str, timestamp: int, profile: Profile) -> Iterator[Row]:
        """Repeat the erasure of the user of the current key, if that is what a timer is for."""
        if profile.erased_us and timestamp - profile.erased_us // 1000 in ERASE_AGAIN_MS:
            erasure = Erasure(
                _user_id(key),
                profile.erasure_ms,
                profile.oldest_ms,
                profile.erased_us,
                repeated=True,
            )
            yield from self._save(SaveBatch(erasures=[erasure]))

    def _opt_out(self, key: str, event: Event) -> Iterator[Row]:
        """Delete profile and list of the user of the current key; what comes moves nothing."""
        touched = self._touched.get(key)
        known = self._known(touched)
        at_us = max(time.time_ns() // 1000, known.generation_us + 1)
        kept = known.objected(at_us)
        self._objection.update(_OBJECTION.pack(_OBJECTION_VERSION, at_us))
        self._profile.update(kept.pack())
        if touched is not None:
            # Events that are not saved yet are saved all the same, as history.
            touched.profile = kept
        yield from self._save(SaveBatch(objections=[Objection(event.user_id, at_us)]))

    def _opt_in(
        self, key: str, ctx: KeyedBroadcastProcessFunction.ReadOnlyContext, now_ms: int
    ) -> Iterator[Row]:
        """Let what the user of the current key does from now on move a profile again."""
        touched = self._touched.get(key)
        if not self._known(touched).opted_out:
            return
        if touched is None:
            touched = self._touch(key, ctx, now_ms)
        # What came before it moves nothing, also where it is not saved yet.
        if not touched.flushed:
            yield from self._flush(ctx)
        if touched.profile is not None:
            touched.profile.opted_out = False
        self._finish(key, touched, ctx, now_ms)
        self._objection.clear()

    def _stored(self) -> bytes | None:
        """Read the profile of the current key; where it has left, the user's objection stays."""
        packed: bytes | None = self._profile.value()
        if packed is None:
            objection = self._objection.value()
            if objection is not None:
                _, at_us = _OBJECTION.unpack(objection)
                packed = Profile().objected(at_us).pack()
        return packed

    def _known(self, touched: Touched | None) -> Profile:
        """Read the profile of the current key as the tick has moved it so far."""
        if touched is None:
            return Profile.unpack(self._stored())
        return touched.profile or Profile.unpack(touched.packed)

    def _save(self, batch: SaveBatch) -> Iterator[Row]:
        """Save a batch; where it is the last of its tick, all of it is acknowledged on return."""
        for letter in self._saver.save(batch):
            yield self._to_row(letter)

    def _touch(
        self, key: str, ctx: KeyedBroadcastProcessFunction.ReadOnlyContext, now_ms: int
    ) -> Touched:
        """Take the user of the current key into this tick, with what a restore left pending."""
        touched = Touched(_user_id(key), self._stored())
        for record in self._pending.get():
            # It was accepted once, perhaps by a version that accepted more.
            event = decode_accepted_event(record_value(record)[0])
            touched.events.append(PendingEvent(event, record))
            self._pending_count += 1
        self._touched[key] = touched
        if self._config.tick_ms:
            self._schedule(touched, ctx, now_ms)
        return touched

    def _schedule(
        self, touched: Touched, ctx: KeyedBroadcastProcessFunction.ReadOnlyContext, now_ms: int
    ) -> None:
        """Let the user of the current key be saved at the end of this tick, or of a new one."""
        probe_ms = self._tick.probe_ms
        end_ms = self._tick.end(now_ms)
        for timer_ms, known_ms in ((end_ms, touched.due_ms), (self._tick.probe_ms, probe_ms)):
            if timer_ms != known_ms:
                ctx.timer_service().register_processing_time_timer(timer_ms)
        touched.due_ms = end_ms

    def _probe(
        self, ctx: KeyedBroadcastProcessFunction.OnTimerContext, now_ms: int
    ) -> Iterator[Row]:
        """Within a stretched tick: save at once where its reason is gone, else look later."""
        if self._tick.is_over(now_ms):
            yield from self._flush(ctx)
        else:
            ctx.timer_service().register_processing_time_timer(self._tick.probe_ms)

    def _revisit(
        self,
        key: str,
        profile: Profile,
        ctx: KeyedBroadcastProcessFunction.OnTimerContext,
        now_ms: int,
    ) -> Touched | None:
        """Handle a timer of a user who is not in memory: after a restore, or a waiting one."""
        if next(iter(self._pending.get()), None) is None:
            if not (profile.waiting or profile.partial) or profile.retry_ms > now_ms:
                return None
            is_due = profile.partial and not self._is_growing()
            if not is_due and not profile.can_advance(self._catalogue):
                self._schedule_retry(profile, ctx, now_ms)
                self._profile.update(profile.pack())
                return None
        return self._touch(key, ctx, now_ms)

    def _finish(
        self,
        key: str,
        touched: Touched,
        ctx: KeyedBroadcastProcessFunction.ReadOnlyContext,
        now_ms: int,
    ) -> None:
        """Store the moved profile of the current key, whose events are all saved."""
        profile = touched.profile
        if profile is None or touched.events:
            msg = "a user of the tick has events that are not saved"
            raise RuntimeError(msg)
        if profile.waiting or profile.partial:
            self._schedule_retry(profile, ctx, now_ms)
        self._profile.update(profile.pack())
        self._pending.clear()
        del self._touched[key]
        if not self._touched:
            self._collector.collect(idle=True)

    def _schedule_retry(
        self, profile: Profile, ctx: KeyedBroadcastProcessFunction.ReadOnlyContext, now_ms: int
    ) -> None:
        """Look at a waiting user again after the time already waited, so that it at most doubles.

        A timer, because a broadcast element cannot reach the keyed state of those who wait for it;
        one a user. It ends for who waits for a product, after ``RETRIES_END_MS``: the product may
        never come, where a catalogue does get filled and stop to grow.
        """
        longest_ms = self._config.waiting_retry_max_ms
        if now_ms < profile.retry_ms <= now_ms + longest_ms:
            return
        waited_ms = now_ms - profile.touched_ms
        if waited_ms >= RETRIES_END_MS and not profile.partial:
            profile.retry_ms = 0
            return
        profile.retry_ms = now_ms + min(max(waited_ms, self._config.tick_ms, 100), longest_ms)
        ctx.timer_service().register_processing_time_timer(profile.retry_ms)

    def _flush(self, ctx: KeyedBroadcastProcessFunction.ReadOnlyContext) -> Iterator[Row]:
        """Move, look up and save all users touched since their last flush."""
        started = time.monotonic()
        users = [touched for touched in self._touched.values() if not touched.flushed]
        # One of a user's events stands for all; the newest of all users' is no straggler.
        newest_ms = max((user.events[-1].event.ts for user in users if user.events), default=None)
        is_growing = self._is_growing()
        unknown: list[str] | None = None if is_growing else []
        for batch in recommend(
            users,
            self._catalogue,
            self._config.recommend,
            time.time_ns() // 1000,
            complete=not is_growing,
            unknown=unknown,
            cap=self._cap,
        ):
            self._events.inc(
                batch.updates + batch.duplicates + batch.opted_out + batch.erased + batch.capped
            )
            self._updates.inc(batch.updates)
            self._duplicates.inc(batch.duplicates)
            self._erased_events.inc(batch.erased)
            self._opted_out_events.inc(batch.opted_out)
            self._capped_events.inc(batch.capped)
            self._lookups.inc(len(batch.lists))
            self._batch_size.set(len(batch.lists))
            yield from self._save(batch)
        if unknown:
            self._unresolved_events.inc(len(unknown))
            self._unresolved.add(unknown)
        self._pending_count = 0
        spent_ms = round((time.monotonic() - started) * 1000)
        if self._config.tick_ms:
            self._tick.saved(time.time_ns() // 1_000_000, spent_ms, newest_ms)
            self._tick_gauge.set(self._tick.length_ms)
        yield from self._keep_house(ctx)

    def _show_catalogue(self) -> None:
        self._catalogue_size.set(len(self._catalogue))
        self._catalogue_searchable.set(self._catalogue.searchable)

    def _dead_letter(
        self, topic: str, key: str, payload: bytes | None, origin: Origin, error: RejectedError
    ) -> Row:
        self._dead_letters[error.reason].inc()
        letter = DeadLetter(topic, key, payload, error.reason, error.detail, origin)
        return self._to_row(letter)


def _user_id(key: str) -> str:
    """Read a user id from a record key, one character a byte; an accepted event had it."""
    return key.encode("latin-1").decode()


def subtask_index(runtime_context: RuntimeContext) -> int:
    """Tell which of the parallel subtasks this is, from 0."""
    if _is_embedded(runtime_context):
        # PyFlink 2.3 still calls, in thread mode, a Java method that Flink 2.0 moved to TaskInfo.
        return int(runtime_context._runtime_context.getTaskInfo().getIndexOfThisSubtask())
    return int(runtime_context.get_index_of_this_subtask())


def parallelism(runtime_context: RuntimeContext) -> int:
    """Tell how many parallel subtasks there are."""
    if _is_embedded(runtime_context):
        task = runtime_context._runtime_context.getTaskInfo()
        return int(task.getNumberOfParallelSubtasks())
    return int(runtime_context.get_number_of_parallel_subtasks())


def _is_embedded(runtime_context: RuntimeContext) -> bool:
    return ".embedded." in type(runtime_context).__module__


def check_execution_mode(runtime_context: RuntimeContext, expected: str) -> None:
    """Fail where Flink did not start Python in the configured way.

    Raises:
        ExecutionModeError: With the remedy. Flink itself falls back to process mode in silence.
    """
    actual = THREAD_MODE if _is_embedded(runtime_context) else PROCESS_MODE
    if actual != expected:
        msg = (
            f"Python runs in {actual} mode, the job is configured for {expected}: set"
            f" python.execution-mode to {expected} in Flink, or the job's --execution-mode"
        )
        raise ExecutionModeError(msg)
