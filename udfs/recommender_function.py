"""Operator: keyed user state, broadcast catalogue, and the ticks in which lookups are batched.

An accepted event is appended to its user's pending list in keyed state and to the operator's
memory. Once a tick, the first of the touched users' timers takes all of them: one batched update,
one batched lookup, batches for the writer chained behind. Each user's own timer then stores the
moved profile and clears the pending list, in that user's key context. A failure between checkpoint
and save restores the old profile and the pending events, and the tick runs again: the saves are
idempotent. The cost of a touch is one state read, one append an event, one write a tick.

What is to be done later for a user, an erasure's repetition or another look for a product, hangs on
a timer of theirs; which one it is tells the profile, so that a timer of no meaning does nothing.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import msgspec
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
from udfs.catalogue_progress import CatalogueProgress
from udfs.memory import BatchReference, TickCollector, by_reference
from udfs.metrics import METRIC_GROUP, Gauge
from udfs.profile import Profile
from udfs.query_encoder import DIMENSIONS as ENCODER_DIMENSIONS
from udfs.query_encoder import SPACE as ENCODER_SPACE
from udfs.query_encoder import encode_query
from udfs.recommend import RecommendConfig, Touched, recommend
from udfs.schemas import (
    CONTROL_TYPES,
    ERASE,
    HEARTBEAT_PARTITION,
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
    ProductChange,
    ProductDetails,
    Reason,
    RejectedError,
    SaveBatch,
    decode_accepted_event,
    decode_event,
    decode_product,
    decode_space_notice,
    decode_tombstone,
    record_value,
    split_record,
)
from udfs.unresolved import UnresolvedItems

THREAD_MODE: Final = "thread"
PROCESS_MODE: Final = "process"
# The input has dried up when no event came for so long; a backlog's next event comes at once.
_IDLE_MS: Final = 100
# Keys of the broadcast state beside the catalogue's own: products whose rows are not saved yet,
# with what is saved of them as msgpack, empty where that is nothing; the newest write time of a
# product's row, epoch microseconds; and how far the topic was read.
_UNSAVED_PREFIX: Final = "u"
_CLOCK_KEY: Final = "c"
_PROGRESS_KEY: Final = "o"
_MICROSECONDS: Final = struct.Struct("<q")
# Rows may have been written after the checkpoint by a machine whose clock was ahead by so much: a
# restored job writes above them.
_CLOCK_MARGIN_US: Final = 60 * 1_000_000
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
# Products that are saved at once; fewer wait for the next heartbeat.
_PRODUCTS_PER_BATCH: Final = 256


_details_encoder = msgspec.msgpack.Encoder()
_details_decoder = msgspec.msgpack.Decoder(ProductDetails)


class ExecutionModeError(RuntimeError):
    """The job runs in another Python execution mode than it was configured for."""


@dataclass(frozen=True)
class RecommenderConfig:
    """Constants of the operator; every one is an option of the job."""

    recommend: RecommendConfig = field(default_factory=RecommendConfig)
    """Constants of profile and lookup."""
    tick_ms: int = 1000
    """Time between lookups of one user, milliseconds; 0: at every event."""
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
    """Share of the active space's products that a new space needs to become active."""
    catalogue_ends: Mapping[int, int] = field(default_factory=dict)
    """End offset of each partition of the catalogue topic at submission: until all of it is read,
    lists are made of a part and made again later. Empty: what is there is complete."""
    dimensions: int = 0
    """Vector length that every product must have; 0: the first product of a space decides."""
    execution_mode: str = THREAD_MODE
    """The Python execution mode that must be in force."""
    events_topic: str = "events"
    """Named in dead letters."""
    catalogue_topic: str = "catalogue"
    """Named in dead letters."""
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
        for name in ("max_pending", "waiting_retry_max_ms"):
            if getattr(self, name) < 1:
                msg = f"{name} must be positive"
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
    """Describe the broadcast state; made anew at each call, as a shared one cannot be pickled."""
    return MapStateDescriptor("catalogue", Types.STRING(), Types.PICKLED_BYTE_ARRAY())


class RecommenderFunction(KeyedBroadcastProcessFunction):
    """Takes framed records by user (:func:`udfs.schemas.frame_record`).

    Broadcasts Row(key, value, partition, offset, time), and heartbeats in between, rows of
    ``HEARTBEAT_PARTITION``: a broadcast element can set no timer, and the last of many changed
    products must be saved too.

    Emits :class:`SaveBatch` and :class:`DeadLetter`, both for the Cassandra sink chained behind.
    """

    def __init__(self, config: RecommenderConfig) -> None:
        """Keep the constants; everything else is made in :meth:`open`."""
        self._config = config

    def open(self, runtime_context: RuntimeContext) -> None:
        """Check the execution mode and open states and metrics."""
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
        self._catalogue_loaded = False
        self._progress = CatalogueProgress(config.catalogue_ends, time.monotonic())
        self._changed_us = 0
        self._unsaved: dict[str, ProductChange] = {}
        subtask = subtask_index(runtime_context)
        self._reports_catalogue = subtask == 0
        self._unresolved = UnresolvedItems(time.monotonic())
        self._unresolved_scope = f"unresolved:{subtask}"
        self._touched: dict[str, Touched] = {}
        self._pending_count = 0
        self._tick_end_ms = 0
        self._stretched_ms = config.tick_ms
        self._probe_ms = 0
        self._event_ms = 0
        self._event_ts = 0
        self._active_ms = 0
        self._catching_up = False
        group = runtime_context.get_metrics_group().add_group(METRIC_GROUP)
        self._events = group.counter("events")
        self._updates = group.counter("updates")
        self._lookups = group.counter("lookups")
        self._duplicates = group.counter("duplicates")
        self._unresolved_events = group.counter("unresolved_events")
        self._erased_events = group.counter("erased_events")
        self._opted_out_events = group.counter("opted_out_events")
        self._dead_letters = {
            reason: group.add_group("reason", reason.value).counter("dead_letters")
            for reason in Reason
        }
        self._batch_size = Gauge(group, "lookup_batch_size")
        self._catalogue_size = Gauge(group, "catalogue_size")
        self._catalogue_searchable = Gauge(group, "catalogue_searchable")
        self._tick_gauge = Gauge(group, "tick_ms")
        self._collector = TickCollector()

    def process_element(
        self, value: bytes, ctx: KeyedBroadcastProcessFunction.ReadOnlyContext
    ) -> Iterator[SaveBatch | BatchReference | DeadLetter]:
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
        self._event_ts = event.ts
        self._event_ms = self._active_ms = now_ms
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
    ) -> Iterator[SaveBatch | BatchReference]:
        """Run the tick if this is its first timer, then store this user's moved profile."""
        key = ctx.get_current_key()
        now_ms = time.time_ns() // 1_000_000
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
                if timestamp == self._probe_ms:
                    yield from self._probe(ctx, now_ms)
                return
        self._active_ms = now_ms
        if not touched.flushed:
            yield from self._flush(ctx)
        self._finish(key, touched, ctx, now_ms)

    def process_broadcast_element(
        self, value: Row, ctx: KeyedBroadcastProcessFunction.Context
    ) -> Iterator[SaveBatch | BatchReference | DeadLetter]:
        """Apply one change of the catalogue; every lookup after it sees it."""
        self._load_catalogue(ctx)
        state = ctx.get_broadcast_state(catalogue_descriptor())
        if value[2] == HEARTBEAT_PARTITION:
            yield from self._save_products(state)
            yield from self._keep_house(state)
            return
        key, payload = value[0], value[1]
        self._progress.read(value[2], value[3], time.monotonic())
        changed_us = self._changed_us = max(time.time_ns() // 1000, self._changed_us + 1)
        shown: list[ProductChange] = []
        try:
            if payload is None:
                changes = self._catalogue.delete(
                    decode_tombstone(key), changed_us=changed_us, changes=shown
                )
            elif key == SPACE_KEY:
                changes = self._catalogue.notice(
                    decode_space_notice(payload), value[2], changed_us=changed_us, changes=shown
                )
            else:
                changes = self._catalogue.upsert(
                    *decode_product(key, payload), changed_us=changed_us, changes=shown
                )
        except RejectedError as error:
            # Every subtask sees every product; one of them speaks for all.
            if self._reports_catalogue:
                topic = self._config.catalogue_topic
                kafka_ms = value[4] if value[4] >= MIN_TIMESTAMP_MS else 0
                origin = Origin(value[2], value[3], kafka_ms)
                yield self._dead_letter(topic, key, payload, origin, error)
            return
        for state_key, entry in changes:
            if entry is None:
                state.remove(state_key)
            else:
                state.put(state_key, entry)
        self._show_catalogue()
        # Every subtask holds every product; one of them saves for all.
        if self._reports_catalogue:
            for change in shown:
                self._note_unsaved(change, state)
            if len(self._unsaved) >= _PRODUCTS_PER_BATCH:
                yield from self._save_products(state)

    def _note_unsaved(self, change: ProductChange, state: Any) -> None:
        """Remember a change until it is saved, in the broadcast state too, for after a failure."""
        known = change.new or change.old
        if known is None:
            return
        earlier = self._unsaved.get(known.product_id)
        if earlier is None:
            saved = b"" if change.old is None else _details_encoder.encode(change.old)
            state.put(_UNSAVED_PREFIX + known.product_id, saved)
        elif earlier.old is not None:
            # What is saved must go, whatever came in between.
            change = change._replace(old=earlier.old)
        self._unsaved[known.product_id] = change

    def _save_products(self, state: Any) -> Iterator[SaveBatch | BatchReference]:
        """Save the rows of all products that changed since the last time."""
        if not self._unsaved:
            return
        yield from self._emit(SaveBatch(products=list(self._unsaved.values())))
        for product_id in self._unsaved:
            state.remove(_UNSAVED_PREFIX + product_id)
        self._unsaved.clear()
        # A job that goes on elsewhere must not write below this, however its clock is set.
        state.put(_CLOCK_KEY, _MICROSECONDS.pack(self._changed_us))

    def _keep_house(self, state: Any) -> Iterator[SaveBatch | BatchReference]:
        """Do what is due by time and belongs to no user."""
        now_s = time.monotonic()
        self._progress.look(now_s)
        progress = self._progress.unstored()
        if progress is not None:
            state.put(_PROGRESS_KEY, progress)
        unresolved = self._unresolved.report(now_s)
        if unresolved is not None:
            yield from self._emit(
                SaveBatch(unresolved=unresolved, unresolved_scope=self._unresolved_scope)
            )
        self._collector.collect(idle=not self._touched)

    def _erase(
        self,
        key: str,
        event: Event,
        kafka_ms: int,
        ctx: KeyedBroadcastProcessFunction.ReadOnlyContext,
    ) -> Iterator[SaveBatch | BatchReference]:
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
        yield from self._emit(SaveBatch(erasures=[erasure]))

    def _erase_again(
        self, key: str, timestamp: int, profile: Profile
    ) -> Iterator[SaveBatch | BatchReference]:
        """Repeat the erasure of the user of the current key, if that is what a timer is for."""
        if profile.erased_us and timestamp - profile.erased_us // 1000 in ERASE_AGAIN_MS:
            erasure = Erasure(
                _user_id(key),
                profile.erasure_ms,
                profile.oldest_ms,
                profile.erased_us,
                repeated=True,
            )
            yield from self._emit(SaveBatch(erasures=[erasure]))

    def _opt_out(self, key: str, event: Event) -> Iterator[SaveBatch | BatchReference]:
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
        yield from self._emit(SaveBatch(objections=[Objection(event.user_id, at_us)]))

    def _opt_in(
        self, key: str, ctx: KeyedBroadcastProcessFunction.ReadOnlyContext, now_ms: int
    ) -> Iterator[SaveBatch | BatchReference]:
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

    def _emit(self, batch: SaveBatch) -> Iterator[SaveBatch | BatchReference]:
        if self._config.execution_mode == THREAD_MODE:
            with by_reference(batch) as reference:
                yield reference
        else:
            yield batch

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
        # Not ahead of the clock, or so far that the clock must have gone back.
        if not 0 < self._tick_end_ms - now_ms <= self._config.tick_max_ms:
            if now_ms - self._active_ms >= _IDLE_MS:
                self._stretched_ms = self._config.tick_ms  # the load that stretched it is over
                self._catching_up = False
            self._tick_end_ms = (now_ms // self._stretched_ms + 1) * self._stretched_ms
            if self._tick_end_ms - now_ms > self._config.tick_ms:
                self._schedule_probe(ctx, now_ms)
        if touched.due_ms != self._tick_end_ms:
            touched.due_ms = self._tick_end_ms
            ctx.timer_service().register_processing_time_timer(self._tick_end_ms)

    def _schedule_probe(
        self, ctx: KeyedBroadcastProcessFunction.ReadOnlyContext, now_ms: int
    ) -> None:
        self._probe_ms = now_ms + self._config.tick_ms
        ctx.timer_service().register_processing_time_timer(self._probe_ms)

    def _probe(
        self, ctx: KeyedBroadcastProcessFunction.OnTimerContext, now_ms: int
    ) -> Iterator[SaveBatch | BatchReference]:
        """Within a stretched tick: save at once where its reason is gone, else look later."""
        caught_up = self._catching_up and now_ms - self._event_ts <= self._config.tick_max_ms
        if now_ms - self._event_ms < _IDLE_MS and not caught_up:
            self._schedule_probe(ctx, now_ms)
            return
        yield from self._flush(ctx)
        self._tick_end_ms = 0  # what comes now belongs to a tick of its own

    def _revisit(
        self,
        key: str,
        profile: Profile,
        ctx: KeyedBroadcastProcessFunction.OnTimerContext,
        now_ms: int,
    ) -> Touched | None:
        """Handle a timer of a user who is not in memory: after a restore, or a waiting one."""
        self._load_catalogue(ctx)
        if next(iter(self._pending.get()), None) is None:
            if not (profile.waiting or profile.partial) or profile.retry_ms > now_ms:
                return None
            is_due = profile.partial and self._progress.complete
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
        never come, where a catalogue does become complete.
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

    def _flush(
        self, ctx: KeyedBroadcastProcessFunction.ReadOnlyContext
    ) -> Iterator[SaveBatch | BatchReference]:
        """Move, look up and save all users touched since their last flush."""
        self._load_catalogue(ctx)
        started = time.monotonic()
        users = [touched for touched in self._touched.values() if not touched.flushed]
        # One of a user's events stands for all; the newest of all users' is no straggler.
        newest_ms = max(
            (user.events[-1].event.ts for user in users if user.events),
            default=self._active_ms,
        )
        unknown: list[str] | None = [] if self._progress.complete else None
        for batch in recommend(
            users,
            self._catalogue,
            self._config.recommend,
            time.time_ns() // 1000,
            complete=self._progress.complete,
            unknown=unknown,
        ):
            self._events.inc(batch.updates + batch.duplicates + batch.opted_out + batch.erased)
            self._updates.inc(batch.updates)
            self._duplicates.inc(batch.duplicates)
            self._erased_events.inc(batch.erased)
            self._opted_out_events.inc(batch.opted_out)
            self._lookups.inc(len(batch.lists))
            self._batch_size.set(len(batch.lists))
            yield from self._emit(batch)
        if unknown:
            self._unresolved_events.inc(len(unknown))
            self._unresolved.add(unknown)
        self._pending_count = 0
        self._active_ms = time.time_ns() // 1_000_000
        spent_ms = round((time.monotonic() - started) * 1000)
        if self._config.tick_ms:
            longest_ms = self._config.tick_max_ms
            self._catching_up = self._active_ms - spent_ms - newest_ms > longest_ms
            wanted_ms = longest_ms if self._catching_up else 2 * spent_ms
            self._stretched_ms = min(max(self._config.tick_ms, wanted_ms), longest_ms)
            self._tick_gauge.set(self._stretched_ms)

    def _load_catalogue(self, ctx: Any) -> None:
        """Read the broadcast state after a restore; it is out of reach while opening."""
        if not self._catalogue_loaded:
            entries = dict(ctx.get_broadcast_state(catalogue_descriptor()).items())
            if entries:
                self._changed_us = time.time_ns() // 1000 + _CLOCK_MARGIN_US
            progress = entries.pop(_PROGRESS_KEY, None)
            if progress is not None:
                self._progress.load(progress, time.monotonic())
            clock = entries.pop(_CLOCK_KEY, None)
            if clock is not None:
                self._changed_us = max(self._changed_us, *_MICROSECONDS.unpack(clock))
            self._catalogue.load(
                (key, value)
                for key, value in entries.items()
                if not key.startswith(_UNSAVED_PREFIX)
            )
            self._catalogue_loaded = True
            if self._reports_catalogue:
                unsaved = {
                    key[len(_UNSAVED_PREFIX) :]: value
                    for key, value in entries.items()
                    if key.startswith(_UNSAVED_PREFIX)
                }
                self._restore_unsaved(unsaved)
            self._show_catalogue()

    def _restore_unsaved(self, unsaved: dict[str, bytes]) -> None:
        """Take up the products whose rows were on their way; some may have arrived."""
        self._changed_us = max(time.time_ns() // 1000, self._changed_us + 1)
        for product_id, saved in unsaved.items():
            new = self._catalogue.detail(product_id)
            old = _details_decoder.decode(saved) if saved else None
            if old is None and new is None:
                # It came and went unsaved, but a row of it may have been on its way.
                old = ProductDetails(product_id, "", "", None, False)
            self._unsaved[product_id] = ProductChange(old, new, self._changed_us)

    def _show_catalogue(self) -> None:
        self._catalogue_size.set(len(self._catalogue))
        self._catalogue_searchable.set(self._catalogue.searchable)

    def _dead_letter(
        self, topic: str, key: str, payload: bytes | None, origin: Origin, error: RejectedError
    ) -> DeadLetter:
        self._dead_letters[error.reason].inc()
        return DeadLetter(topic, key, payload, error.reason, error.detail, origin)


def _user_id(key: str) -> str:
    """Read a user id from a record key, one character a byte; an accepted event had it."""
    return key.encode("latin-1").decode()


def subtask_index(runtime_context: RuntimeContext) -> int:
    """Tell which of the parallel subtasks this is, from 0."""
    if _is_embedded(runtime_context):
        # PyFlink 2.3 still calls, in thread mode, a Java method that Flink 2.0 moved to TaskInfo.
        return int(runtime_context._runtime_context.getTaskInfo().getIndexOfThisSubtask())
    return int(runtime_context.get_index_of_this_subtask())


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
