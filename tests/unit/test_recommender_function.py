"""The operator against a small runtime written by hand: states, timers in order of time, keys."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pyflink.common import Row

from tests.unit.builders import (
    NOW_MS,
    Vectors,
    event_json,
    naive_sums,
    record,
    unit,
    unit_vectors,
    wire_key,
)
from tests.unit.metric_doubles import Counter, Group
from udfs.ports import Record
from udfs.product_record import ProductRecord, RelatedRow, SpaceSwitch, encode
from udfs.profile import Profile, ProfileConfig, decayed_sums
from udfs.recommend import RecommendConfig
from udfs.recommender_function import (
    ERASE_AGAIN_MS,
    PROCESS_MODE,
    PRODUCTS_ROW,
    RELATED_ROW,
    THREAD_MODE,
    ExecutionModeError,
    RecommenderConfig,
    RecommenderFunction,
    parallelism,
    subtask_index,
)
from udfs.schemas import (
    MIN_TIMESTAMP_MS,
    SPACE_KEY,
    DeadLetter,
    Erasure,
    Objection,
    Origin,
    Reason,
    SaveBatch,
    SavedProductList,
    decode_event,
    frame_record,
)

START_MS = 1_732_300_000_500
MATRIX = unit_vectors(6, 4)
PARALLELISM = 4
PRODUCTS = {f"p{n}": vector for n, vector in enumerate(MATRIX)}


class Topics:
    """The compacted topics as they stand in Kafka, by name: it outlives every job."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.fails_after: int | None = None
        self.readers = 0

    def append(self, topic: str, key: str, value: bytes | None, partition: int, at_ms: int) -> int:
        """Append a record; returns its offset."""
        there = [one for one in self.records if (one.topic, one.partition) == (topic, partition)]
        wire = key.encode("latin-1")
        self.records.append(Record(topic, wire, value, partition, len(there), at_ms))
        return len(there)

    def reader(self, names: Sequence[str]) -> Reader:
        return Reader(self, [one for one in self.records if one.topic in names])


class Reader:
    """Gives few records at a time, and now and then none."""

    def __init__(self, topics: Topics, records: list[Record]) -> None:
        self._topics = topics
        self._left = records
        self._positions: dict[tuple[str, int], int] = {}
        self._turn = 0
        topics.readers += 1

    @property
    def caught_up(self) -> bool:
        return self._turn > 0 and not self._left

    def read(self, most: int = 2000, timeout_s: float = 0.5) -> list[Record]:  # noqa: ARG002
        self._turn += 1
        if self._turn == self._topics.fails_after:
            raise InterruptedError
        found, self._left = self._left[: self._turn % 3], self._left[self._turn % 3 :]
        for one in found:
            self._positions[one.topic, one.partition] = one.offset + 1
        return found

    def positions(self) -> dict[tuple[str, int], int]:
        return self._positions

    def close(self) -> None:
        self._topics.readers -= 1


class Backend:
    """Keyed and broadcast state, timers: what a checkpoint holds; and the topics, which stay."""

    def __init__(self) -> None:
        self.topics = Topics()
        self.key: str | None = None
        self.values: dict[str, bytes] = {}
        """Profiles by key."""
        self.others: dict[str, dict[str, bytes]] = {}
        """Further value states, by name and key."""
        self.lists: dict[str, list[bytes]] = {}
        self.broadcast: dict[str, bytes] = {}
        self.timers: set[tuple[int, str]] = set()

    def copy(self) -> Backend:
        made = Backend()
        made.topics = self.topics
        made.values = dict(self.values)
        made.others = {name: dict(values) for name, values in self.others.items()}
        made.lists = {key: list(items) for key, items in self.lists.items()}
        made.broadcast = dict(self.broadcast)
        made.timers = set(self.timers)
        return made

    def named(self, name: str) -> dict[str, bytes]:
        return self.values if name == "profile" else self.others.setdefault(name, {})

    def current(self) -> str:
        assert self.key is not None, "keyed state without a key"
        return self.key


class ValueState:
    def __init__(self, backend: Backend, name: str) -> None:
        self._backend = backend
        self._name = name

    def value(self) -> bytes | None:
        return self._backend.named(self._name).get(self._backend.current())

    def update(self, value: bytes) -> None:
        assert type(value) is bytes
        self._backend.named(self._name)[self._backend.current()] = value

    def clear(self) -> None:
        self._backend.named(self._name).pop(self._backend.current(), None)


class ListState:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def get(self) -> Iterator[bytes]:
        return iter(list(self._backend.lists.get(self._backend.current(), [])))

    def add(self, value: bytes) -> None:
        assert type(value) is bytes
        self._backend.lists.setdefault(self._backend.current(), []).append(value)

    def clear(self) -> None:
        self._backend.lists.pop(self._backend.current(), None)


class Broadcast:
    def __init__(self, backend: Backend) -> None:
        self._entries = backend.broadcast

    def clear(self) -> None:
        self._entries.clear()


class RuntimeContext:
    def __init__(self, backend: Backend, counters: dict[str, Counter], subtask: int) -> None:
        self._backend = backend
        self._group = Group(counters)
        task = SimpleNamespace(
            getIndexOfThisSubtask=lambda: subtask, getNumberOfParallelSubtasks=lambda: PARALLELISM
        )
        self._runtime_context = SimpleNamespace(getTaskInfo=lambda: task)

    def get_state(self, descriptor: Any) -> ValueState:
        return ValueState(self._backend, descriptor.get_name())

    def get_list_state(self, _descriptor: Any) -> ListState:
        return ListState(self._backend)

    def get_metrics_group(self) -> Group:
        return self._group


# How PyFlink itself tells thread mode: by the module of its context.
RuntimeContext.__module__ = "tests.embedded.context"


class Context:
    """Of an element or a timer; also the timer service."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def get_current_key(self) -> str:
        return self._backend.current()

    def get_broadcast_state(self, _descriptor: Any) -> Broadcast:
        return Broadcast(self._backend)

    def timer_service(self) -> Context:
        return self

    def register_processing_time_timer(self, timestamp: int) -> None:
        self._backend.timers.add((timestamp, self._backend.current()))


class Clock:
    def __init__(self) -> None:
        self.now_ms = START_MS

    def time_ns(self) -> int:
        return self.now_ms * 1_000_000

    def monotonic(self) -> float:
        return self.now_ms / 1000


class Harness:
    """Drives one subtask of the operator as Flink does, on one thread; it saves what it is told."""

    def __init__(
        self,
        clock: Clock,
        config: RecommenderConfig,
        backend: Backend | None = None,
        subtask: int = 0,
    ) -> None:
        self.clock = clock
        self.backend = backend or Backend()
        self.counters: dict[str, Counter] = {}
        self.out: list[SaveBatch | DeadLetter] = []
        self.fired: list[tuple[int, str]] = []
        self.save_ms = 0
        """How long a save takes."""
        self.refused: list[DeadLetter] = []
        """What the next save refuses."""
        self.closed = False
        self._offset = 0
        if backend is None:
            self._leave_traces()
        to_row: Callable[[DeadLetter], Any] = lambda letter: letter  # noqa: E731
        self._function = RecommenderFunction(
            config, lambda _: self, self.backend.topics.reader, to_row
        )
        context: Any = RuntimeContext(self.backend, self.counters, subtask)
        self._function.open(context)
        self._context: Any = Context(self.backend)

    def save(self, batch: SaveBatch) -> list[DeadLetter]:
        self.out.append(batch)
        self.clock.now_ms += self.save_ms
        refused, self.refused = self.refused, []
        return refused

    def close(self) -> None:
        self.closed = True

    def _leave_traces(self) -> None:
        """Let products come and go, and come back, before a test's own."""
        append = self.backend.topics.append
        for turn in range(2):
            for name, vector in PRODUCTS.items():
                related = {"gone": 1.0, f"{turn}": 0.5}
                append("products", name, encode(record(name, vector)), 3, START_MS)
                append("related", name, encode(RelatedRow(1, name, related)), 3, START_MS)
            for name in PRODUCTS:
                append("products", name, None, 3, START_MS)
                append("related", name, None, 3, START_MS)

    def send(
        self,
        payload: bytes | None,
        user: str = "u",
        *,
        key: str | None = None,
        kafka_ms: int | None = None,
    ) -> None:
        self.backend.key = wire_key(user) if key is None else key
        self._offset += 1
        at_ms = self.clock.now_ms if kafka_ms is None else kafka_ms
        self.deliver(frame_record(payload, Origin(0, self._offset, at_ms)), self.backend.key)

    def deliver(self, record: bytes, key: str) -> None:
        """Hand over a record as it is framed."""
        self.backend.key = key
        self._take(self._function.process_element(record, self._context))
        self.backend.key = None

    def event(self, number: int = 1, user: str = "u", **changes: object) -> None:
        changes = {"ts": self.clock.now_ms, "user_id": user, **changes}
        self.send(event_json(event_id=f"e{number}", **changes), user)

    def broadcast(
        self,
        key: str,
        payload: bytes | None,
        *,
        partition: int = 3,
        row: int = PRODUCTS_ROW,
        at_ms: int | None = None,
    ) -> None:
        """Let a record stand in its topic and come by broadcast."""
        topic = ("products", "related")[row]
        at_ms = self.clock.now_ms if at_ms is None else at_ms
        offset = self.backend.topics.append(topic, key, payload, partition, at_ms)
        self.rebroadcast(Row(key, payload, partition, offset, at_ms, row))

    def rebroadcast(self, row: Row) -> None:
        self._take(self._function.process_broadcast_element(row, self._context))

    def _take(self, emitted: Iterator[Any]) -> None:
        self.out.extend(emitted)

    def put(self, product: ProductRecord) -> None:
        self.broadcast(wire_key(product.product_id), encode(product))

    def product(self, number: int, **changes: Any) -> None:
        name = f"p{number}"
        self.put(record(name, **{"vector": PRODUCTS[name], **changes}))

    def relate(self, product_id: str, related: dict[str, float] | None) -> None:
        row = None if related is None else encode(RelatedRow(1, product_id, related))
        self.broadcast(product_id, row, row=RELATED_ROW)

    def advance(self, milliseconds: int) -> None:
        """Let time pass; timers fire in their order, a millisecond late as Flink's do.

        What comes in the millisecond of a timer comes before it.
        """
        end = self.clock.now_ms + milliseconds
        while due := sorted(one for one in self.backend.timers if one[0] < end):
            self.clock.now_ms = max(self.clock.now_ms, due[0][0] + 1)
            self.fire(*due[0])
        self.clock.now_ms = end

    def fire(self, timestamp: int, key: str) -> None:
        self.backend.timers.remove((timestamp, key))
        self.fired.append((timestamp, key))
        self.backend.key = key
        self._take(self._function.on_timer(timestamp, self._context))
        self.backend.key = None

    def batches(self) -> list[SaveBatch]:
        """What the ticks emitted."""
        emitted = (one for one in self.out if isinstance(one, SaveBatch))
        return [
            one
            for one in emitted
            if not (one.product_lists or one.erasures or one.objections or one.unresolved_scope)
        ]

    def product_lists(self) -> dict[str, SavedProductList]:
        """The newest lists by product."""
        emitted = (one for one in self.out if isinstance(one, SaveBatch))
        return {one.product_id: one for batch in emitted for one in batch.product_lists}

    def erasures(self) -> list[Erasure]:
        return [one for batch in self.out if isinstance(batch, SaveBatch) for one in batch.erasures]

    def letters(self) -> list[DeadLetter]:
        return [one for one in self.out if isinstance(one, DeadLetter)]

    def listed(self) -> list[str]:
        return [one.user_id for batch in self.batches() for one in batch.lists]

    def saved(self) -> list[str]:
        return [p.event.event_id for batch in self.batches() for p in batch.events]

    def profile(self, user: str = "u") -> Profile:
        return Profile.unpack(self.backend.values[wire_key(user)])

    def count(self, name: str) -> int:
        return self.counters["recommender." + name].value


@pytest.fixture(autouse=True)
def collector_as_before() -> Iterator[None]:
    """The operator takes over Python's cycle collector; give it back."""
    yield
    gc.unfreeze()
    gc.enable()


# A tick of fixed length, and no lists by product, but where a test is about these.
CONFIG = RecommenderConfig(
    recommend=RecommendConfig(list_length=3), min_tick_ms=1000, product_list_length=0
)
EACH_EVENT = replace(CONFIG, tick_ms=0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    fake = SimpleNamespace(time_ns=made.time_ns, monotonic=made.monotonic, time=time.time)
    monkeypatch.setattr("udfs.recommender_function.time", fake)
    return made


def with_products(clock: Clock, config: RecommenderConfig, count: int = 6) -> Harness:
    """A job that has read its products in bulk."""
    first = Harness(clock, config)
    for number in range(count):
        first.product(number)
    return Harness(clock, config, first.backend)


@pytest.fixture
def shop(clock: Clock) -> Harness:
    return with_products(clock, CONFIG)


def test_users_of_a_tick_are_saved_in_one_batch_at_its_end(shop: Harness) -> None:
    for number, user in enumerate(["a", "b", "a", "c"]):
        shop.event(number, user)
    assert shop.batches() == []
    shop.advance(500)
    assert shop.batches() == []
    shop.advance(1)  # the tick ends with the millisecond of its timer
    (batch,) = shop.batches()
    assert shop.listed() == ["a", "b", "c"]
    assert sorted(shop.saved()) == ["e0", "e1", "e2", "e3"]
    assert batch.last
    shop.advance(60_000)
    assert len(shop.batches()) == 1


def test_pending_events_and_timers_are_gone_after_the_tick(shop: Harness) -> None:
    for number in range(10):
        shop.event(number, f"u{number % 4}")
    assert sum(map(len, shop.backend.lists.values())) == 10
    shop.advance(1000)
    assert shop.backend.lists == {}
    assert shop.backend.timers == set()
    assert set(shop.backend.values) == {"u0", "u1", "u2", "u3"}
    assert shop._function._touched == {}
    assert shop._function._pending_count == 0


def test_stored_profile_equals_the_formula_over_many_ticks(shop: Harness) -> None:
    payloads = []
    for number in range(60):
        payload = event_json(
            event_id=f"e{number}",
            product_id=f"p{number * 5 % 6}",
            ts=shop.clock.now_ms - (number * 7919) % 100_000,
        )
        payloads.append(payload)
        shop.send(payload)
        shop.advance(number * 37 % 900)
    shop.advance(2000)
    events = [decode_event("u", payload, shop.clock.now_ms) for payload in payloads]
    expected, newest = naive_sums(events, Vectors(PRODUCTS), ProfileConfig())
    read = decayed_sums(shop.profile(), ProfileConfig(), newest)
    np.testing.assert_allclose(read, expected, rtol=2e-3, atol=1e-4)  # of vectors in float16
    assert shop.profile().reference_ms == newest
    assert sorted(shop.saved()) == sorted(f"e{n}" for n in range(60))
    assert (shop.count("events"), shop.count("updates")) == (60, 60)


def test_tick_0_looks_up_at_every_event_and_keeps_nothing(clock: Clock) -> None:
    shop = with_products(clock, EACH_EVENT, 1)
    for number in range(3):
        shop.event(number)
        assert shop.listed() == ["u"] * (number + 1)
    assert shop.saved() == ["e0", "e1", "e2"]
    assert shop.backend.lists == {}
    assert shop.backend.timers == set()
    generations = [one.generated_us for batch in shop.batches() for one in batch.lists]
    assert generations == sorted(set(generations))


def test_restore_loses_nothing_and_moves_once(shop: Harness) -> None:
    shop.event(1, "a")
    shop.advance(1000)
    shop.event(2, "a", product_id="p1")
    shop.event(3, "b", product_id="p2")
    checkpoint = shop.backend.copy()
    # Saved after the checkpoint, then the process dies: both saves are made again.
    shop.advance(1000)
    again = Harness(shop.clock, CONFIG, checkpoint)
    again.advance(5000)
    assert sorted(again.saved()) == ["e2", "e3"]
    for user in "ab":
        old, new = shop.profile(user), again.profile(user)
        np.testing.assert_array_equal(old.sums, new.sums)
        assert old.interactions() == new.interactions()
    lists = {one.user_id: one for batch in shop.batches() for one in batch.lists}
    for batch in again.batches():
        for one in batch.lists:
            assert one.product_ids == lists[one.user_id].product_ids
            assert one.generated_us > lists[one.user_id].generated_us
    assert again.backend.lists == {}
    assert again.backend.timers == set()


def test_restored_users_are_taken_in_bulk(shop: Harness) -> None:
    for number in range(20):
        shop.event(number, f"u{number}")
    shop.clock.now_ms += 60_000
    again = Harness(shop.clock, CONFIG, shop.backend.copy())
    again.advance(2000)
    assert [len(batch.lists) for batch in again.batches()] == [20]


def test_restored_events_and_new_ones_move_together(shop: Harness) -> None:
    shop.event(1)
    again = Harness(shop.clock, CONFIG, shop.backend.copy())
    again.event(2, product_id="p1")
    again.event(1)  # Kafka delivers it once more
    again.advance(1000)
    assert again.count("duplicates") == 1
    assert again.count("updates") == 2
    assert again.count("events") == 3
    # Twice under the same key is one row.
    assert sorted(again.saved()) == ["e1", "e1", "e2"]


def test_restored_event_is_kept_although_the_clock_went_back(shop: Harness) -> None:
    shop.event(1)
    shop.clock.now_ms -= 3_600_000
    again = Harness(shop.clock, CONFIG, shop.backend.copy())
    again.advance(2 * 3_600_000)
    assert again.saved() == ["e1"]
    assert again.letters() == []


def test_tick_can_be_turned_off_over_a_restore(shop: Harness) -> None:
    shop.event(1)
    again = Harness(shop.clock, EACH_EVENT, shop.backend.copy())
    again.advance(5000)
    assert again.saved() == ["e1"]
    assert again.listed() == ["u"]
    assert again.backend.lists == {}
    assert again.backend.timers == set()


def test_catalogue_is_there_after_a_restore_without_being_sent_again(shop: Harness) -> None:
    shop.product(1, in_stock=False)
    again = Harness(shop.clock, CONFIG, shop.backend.copy())
    again.event(1)
    again.advance(1000)
    (one,) = again.batches()[0].lists
    assert one.product_ids[0] == "p0"
    assert "p1" not in one.product_ids
    assert again.count("catalogue_size") == 6
    assert again.count("catalogue_searchable") == 5


def test_catalogue_change_holds_for_the_next_lookup(shop: Harness) -> None:
    shop.event(1)
    shop.broadcast("p1", None)
    shop.product(2, in_stock=False)
    shop.advance(1000)
    assert shop.count("catalogue_searchable") == 4
    assert not {"p1", "p2"} & set(shop.batches()[0].lists[0].product_ids)
    assert len(shop.batches()[0].lists[0].product_ids) == 3


def test_user_gets_a_list_once_the_awaited_product_is_there(clock: Clock) -> None:
    shop = Harness(clock, CONFIG)
    shop.event(1, product_id="p3")
    shop.advance(5000)
    assert shop.saved() == ["e1"]
    assert shop.listed() == []
    shop.product(3)
    shop.advance(60_000)
    assert set(shop.listed()) == {"u"}
    assert shop.profile().waiting == 0
    shop.advance(300_000)  # the catalogue has stopped growing
    assert shop.backend.timers == set()


def test_wait_for_a_product_at_most_doubles(clock: Clock) -> None:
    shop = Harness(clock, CONFIG)
    shop.event(1, product_id="p3")
    shop.advance(100_000)
    shop.product(3)
    shop.advance(110_000)
    assert set(shop.listed()) == {"u"}


def test_waiting_survives_a_restore(clock: Clock) -> None:
    shop = Harness(clock, CONFIG)
    shop.event(1, product_id="p3")
    shop.advance(5000)
    again = Harness(clock, CONFIG, shop.backend.copy())
    again.product(3)
    again.advance(60_000)
    assert set(again.listed()) == {"u"}
    assert again.saved() == []


def test_user_who_only_searched_gets_a_list_once_the_catalogue_is_there(clock: Clock) -> None:
    from udfs.query_encoder import encode_texts

    shop = Harness(clock, CONFIG)
    shop.event(1, type="search", query="usb hub", product_id=...)
    shop.advance(5000)
    assert shop.listed() == []
    embedding = encode_texts(["usb hub"])[0].tolist()
    shop.product(0, space="text64-v1", vector=unit(embedding))
    shop.advance(600_000)
    assert set(shop.listed()) == {"u"}


def test_retry_of_a_user_touched_meanwhile_changes_nothing(clock: Clock) -> None:
    shop = with_products(clock, CONFIG, 1)
    shop.event(1, product_id="unknown")
    shop.advance(501)
    (retry,) = shop.backend.timers
    clock.now_ms = retry[0] - 1
    shop.event(2)
    before = len(shop.out)
    shop.backend.timers.add((clock.now_ms, "u"))
    shop.fire(clock.now_ms, "u")
    assert len(shop.out) == before
    assert len(shop.backend.lists["u"]) == 1
    shop.advance(2000)
    assert shop.saved() == ["e1", "e2"]
    assert "u" not in shop.backend.lists


def test_timers_of_a_waiting_user_do_not_pile_up(clock: Clock) -> None:
    shop = with_products(clock, CONFIG, 1)
    for number in range(100):
        shop.event(number, product_id="unknown")
        shop.advance(10_000)
    assert len(shop.backend.timers) <= 3


def test_idle_user_who_left_the_state_is_forgotten_by_the_timer(clock: Clock) -> None:
    shop = Harness(clock, CONFIG)
    shop.event(1, product_id="unknown")
    shop.advance(501)
    assert shop.backend.timers
    shop.backend.values.clear()  # the TTL
    shop.advance(600_000)
    assert shop.backend.timers == set()


def test_late_timers_take_all_touched_users(shop: Harness) -> None:
    shop.event(1, "a")
    shop.clock.now_ms += 1700  # the timer is late, and a user of the next tick comes first
    shop.event(2, "b")
    (first, second) = sorted(shop.backend.timers)
    shop.fire(*first)
    assert shop.listed() == ["a", "b"]
    shop.event(3, "b", product_id="p1")
    shop.clock.now_ms += 1000
    shop.fire(*second)
    assert shop.listed() == ["a", "b", "b"]
    assert shop.saved() == ["e1", "e2", "e3"]
    assert shop.backend.lists == {}
    assert len(shop.profile("b").interactions()) == 2


def test_full_memory_is_flushed_inline(clock: Clock) -> None:
    shop = with_products(clock, replace(CONFIG, max_pending=3), 1)
    for number in range(7):
        shop.event(number, f"u{number % 2}")
    assert [len(batch.events) for batch in shop.batches()] == [3, 3]
    # Saved, but the state keeps them until the user's own timer.
    assert sum(map(len, shop.backend.lists.values())) == 7
    shop.advance(1000)
    assert sorted(shop.saved()) == sorted(f"e{n}" for n in range(7))
    assert shop.backend.lists == {}
    assert len(shop.profile("u0").interactions()) == 4


def test_failure_after_an_inline_flush_moves_once(clock: Clock) -> None:
    shop = with_products(clock, replace(CONFIG, max_pending=2), 1)
    for number in range(3):
        shop.event(number)
    again = Harness(clock, replace(CONFIG, max_pending=2), shop.backend.copy())
    again.advance(2000)
    assert again.saved() == ["e0", "e1", "e2"]
    assert len(again.profile().interactions()) == 3


def test_clock_that_goes_back_does_not_stop_the_ticks(shop: Harness) -> None:
    shop.event(1)
    shop.advance(100)
    shop.clock.now_ms -= 3_600_000
    shop.event(2, "b", ts=MIN_TIMESTAMP_MS)
    assert min(at for at, key in shop.backend.timers if key == "b") <= shop.clock.now_ms + 10_000


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (None, Reason.EMPTY_VALUE),
        (b"{", Reason.NOT_JSON),
        (event_json(user_id="v"), Reason.KEY_MISMATCH),
        (event_json(ts=START_MS + 300_001), Reason.IN_THE_FUTURE),
        (b"x" * 65_537, Reason.TOO_LARGE),
    ],
)
def test_rejected_event_goes_whole_to_the_dead_letters(
    shop: Harness, payload: bytes | None, reason: Reason
) -> None:
    shop.send(payload)
    (letter,) = shop.letters()
    assert letter[:4] == ("events", "u", payload, reason)
    assert letter.origin == Origin(0, 1, START_MS)
    assert shop.backend.lists == {}
    assert shop.backend.timers == set()
    assert shop.count(f"reason.{reason.value}.dead_letters") == 1
    shop.event(1)
    shop.advance(1000)
    assert shop.saved() == ["e1"]


def test_key_in_another_encoding_does_not_stop_the_job(shop: Harness) -> None:
    shop.send(event_json(user_id="é"), key="\xe9")
    assert [letter.reason for letter in shop.letters()] == [Reason.KEY_MISMATCH]


def test_user_id_outside_ascii_is_saved_under_its_own_name(shop: Harness) -> None:
    shop.event(1, "ü漢😀")
    shop.advance(1000)
    assert shop.listed() == ["ü漢😀"]


def test_the_future_is_judged_by_the_records_time_and_not_by_the_clock(clock: Clock) -> None:
    shop = Harness(clock, replace(CONFIG, max_future_ms=60_000))
    payload = event_json(ts=START_MS + 60_000)
    shop.backend.key = "u"
    for kafka_ms, letters in ((START_MS - 1, 1), (START_MS, 1), (START_MS - 1, 2)):
        # A replay a day later is judged as the first time.
        shop._take(
            shop._function.process_element(
                frame_record(payload, Origin(0, 1, kafka_ms)), shop._context
            )
        )
        assert len(shop.letters()) == letters
        clock.now_ms += 86_400_000
    assert {one.reason for one in shop.letters()} == {Reason.IN_THE_FUTURE}
    assert {one.origin for one in shop.letters()} == {Origin(0, 1, START_MS - 1)}


def test_records_without_a_kafka_time_are_taken(shop: Harness) -> None:
    """Kafka says -1, of which Flink's SQL makes 999."""
    for number, kafka_ms in enumerate((-1, 999)):
        shop.send(event_json(event_id=f"e{number}", ts=START_MS), kafka_ms=kafka_ms)
    shop.advance(1001)
    assert shop.saved() == ["e0", "e1"]
    shop.send(b"{", kafka_ms=999)
    shop.broadcast("p0", b"{", partition=0, at_ms=999)
    assert [one.origin.timestamp_ms for one in shop.letters()] == [0, 0]


def test_an_erasure_without_a_kafka_time_drops_nothing_of_later(shop: Harness) -> None:
    payload = event_json(event_id="gone", type="erase", product_id=None, ts=START_MS)
    shop.send(payload, kafka_ms=999)
    for number, (ts, kafka_ms) in enumerate([(START_MS, 999), (START_MS + 1, 999)]):
        shop.send(event_json(event_id=f"e{number}", ts=ts), kafka_ms=kafka_ms)
    shop.advance(1001)
    assert shop.saved() == ["e1"]


def test_the_ids_of_nobody_are_those_of_the_option(clock: Clock) -> None:
    shop = Harness(clock, replace(CONFIG, placeholder_ids=frozenset({"walk-in"})))
    shop.event(1, "walk-in")
    shop.event(2, "guest")
    assert [one.reason for one in shop.letters()] == [Reason.PLACEHOLDER]


def test_a_frame_of_the_first_version_that_waits_in_the_state_is_saved(clock: Clock) -> None:
    shop = with_products(clock, CONFIG, 1)
    # Accepted by a version that took seconds for a time and anybody for a user.
    old = b"0 7 v " + event_json(event_id="old", ts=1_795_639_289, user_id="guest")
    shop.backend.lists["guest"] = [old]
    shop.send(event_json(event_id="e1", type="click", user_id="other", ts=clock.now_ms), "other")
    shop.backend.key = "guest"
    touched = shop._function._touch("guest", shop._context, clock.now_ms)
    assert [one.event.event_id for one in touched.events] == ["old"]
    shop.backend.key = None


@pytest.mark.parametrize(("subtask", "letters"), [(3, 1), (0, 0), (1, 0)])
@pytest.mark.parametrize("row", [PRODUCTS_ROW, RELATED_ROW])
def test_one_subtask_alone_reports_a_broken_row(
    clock: Clock, row: int, subtask: int, letters: int
) -> None:
    shop = Harness(clock, CONFIG, subtask=subtask)
    shop.broadcast("p0", b"{", partition=7, row=row)
    assert len(shop.letters()) == letters
    for letter in shop.letters():
        assert letter[:3] == (("products", "related")[row], "p0", b"{")
        assert letter.reason is Reason.NOT_JSON
        assert letter.origin == Origin(7, 0, clock.now_ms)
    assert shop.count("reason.not_json.dead_letters") == letters


def test_rejected_product_keeps_the_one_before(clock: Clock) -> None:
    shop = Harness(clock, CONFIG, with_products(clock, CONFIG).backend, subtask=3)
    shop.broadcast("", None)
    shop.broadcast("\xff", encode(record("p0", PRODUCTS["p1"])))
    assert [letter.reason for letter in shop.letters()] == [
        Reason.MISSING_KEY,
        Reason.KEY_MISMATCH,
    ]
    assert shop.count("catalogue_searchable") == 6
    # In bulk they are counted and left out.
    again = Harness(clock, CONFIG, shop.backend.copy())
    assert again.count("rejected_rows") == 2
    assert again.count("catalogue_searchable") == 6


@pytest.mark.parametrize(("subtask", "letters"), [(3, 1), (0, 0)])
def test_vector_that_does_not_fit_its_space_is_a_dead_letter_and_the_rest_is_taken(
    clock: Clock, subtask: int, letters: int, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Harness(clock, CONFIG, with_products(clock, CONFIG).backend, subtask=subtask)
    shop.product(0, vector=unit([1.0, 2.0]))  # 2 dimensions in a space of 4
    assert [one.reason for one in shop.letters()] == [Reason.WRONG_LENGTH] * letters
    assert shop.count("catalogue_size") == 6
    assert shop.count("catalogue_searchable") == 5
    # In bulk it is counted, and the first one is shown.
    again = Harness(clock, CONFIG, shop.backend.copy())
    assert again.count("rejected_rows") == 1
    assert again.count("catalogue_size") == 6
    assert again.count("catalogue_searchable") == 5
    assert "product p0 is left out or lacks a vector" in caplog.text


def test_tombstone_of_an_id_outside_ascii_deletes_it(clock: Clock) -> None:
    shop = Harness(clock, CONFIG)
    shop.put(record("pé", unit([3, 4])))
    assert shop.count("catalogue_size") == 1
    shop.broadcast(wire_key("pé"), None)
    assert shop.count("catalogue_size") == 0


@pytest.mark.parametrize("expected", [PROCESS_MODE, THREAD_MODE])
def test_another_execution_mode_than_configured_is_refused(expected: str) -> None:
    context: Any = RuntimeContext(Backend(), {}, 0)
    if expected == THREAD_MODE:

        class ProcessContext(RuntimeContext):
            pass

        ProcessContext.__module__ = "pyflink.fn_execution.datastream.process.runtime_context"
        context = ProcessContext(Backend(), {}, 0)
    unused: Any = None
    made = RecommenderFunction(RecommenderConfig(execution_mode=expected), unused, unused, unused)
    with pytest.raises(ExecutionModeError, match=f"configured for {expected}"):
        made.open(context)


def test_subtask_is_asked_the_way_of_the_execution_mode() -> None:
    thread: Any = RuntimeContext(Backend(), {}, 5)
    process: Any = SimpleNamespace(
        get_index_of_this_subtask=lambda: 4, get_number_of_parallel_subtasks=lambda: 9
    )
    assert (subtask_index(thread), subtask_index(process)) == (5, 4)
    assert (parallelism(thread), parallelism(process)) == (PARALLELISM, 9)


def stretch(shop: Harness, save_ms: int) -> None:
    """Run a tick whose save takes so long."""
    shop.event(0)
    timestamp, key = min(shop.backend.timers)
    shop.clock.now_ms = timestamp
    shop.save_ms = save_ms
    shop.fire(timestamp, key)
    shop.save_ms = 0


def test_tick_stretches_with_the_time_a_save_takes(shop: Harness) -> None:
    stretch(shop, 3000)
    assert shop.count("tick_ms") == 6000
    start = shop.clock.now_ms
    for number in range(1, 200):
        shop.event(number)
        shop.advance(50)
        if len(shop.batches()) > 1:
            break
    assert 3000 < shop.clock.now_ms - start <= 6050
    assert shop.saved()[1:] == [f"e{number}" for number in range(1, number + 1)]


def test_stretched_tick_ends_when_the_input_dries_up(shop: Harness) -> None:
    stretch(shop, 3000)
    start = (shop.clock.now_ms // 6000 + 1) * 6000
    shop.clock.now_ms = start  # a whole stretched tick is ahead
    shop._function._tick.wake(start)
    for number in range(1, 31):
        shop.event(number, f"u{number % 3}")
        shop.advance(50)
    assert len(shop.batches()) == 1
    shop.advance(1000)
    assert sorted(shop.saved()[1:]) == sorted(f"e{number}" for number in range(1, 31))
    shop.event(31, "u1")
    shop.event(32, "new")
    shop.advance(1000)
    assert shop.saved()[31:] == ["e31", "e32"]
    shop.advance(10_000)
    assert shop.backend.timers == set()
    assert shop.backend.lists == {}
    assert len(shop.profile("u1").interactions()) == 11


def test_tick_is_longest_while_old_events_are_read(shop: Harness) -> None:
    for number in range(400):
        shop.event(number, ts=shop.clock.now_ms - 3_600_000)
        shop.advance(50)
    assert shop.count("tick_ms") == 10_000
    behind = len(shop.batches())
    assert behind <= 3
    for number in range(400, 440):  # caught up: events of now, without a pause
        shop.event(number)
        shop.advance(50)
    assert shop.count("tick_ms") == 1000
    assert len(shop.batches()) >= behind + 2
    assert shop.saved() == [f"e{number}" for number in range(len(shop.saved()))]


def test_one_straggler_does_not_stretch_the_tick(shop: Harness) -> None:
    shop.event(1, "slow-phone", ts=shop.clock.now_ms - 86_400_000)
    shop.event(2, "b")
    shop.advance(1000)
    assert shop.count("tick_ms") in (0, 1000)


def erase(shop: Harness, user: str = "u", **changes: object) -> Erasure:
    """Let a user be erased now; returns what the writer is told at once."""
    shop.event(0, user, type="erase", product_id=None, **changes)
    return shop.erasures()[-1]


def test_erased_user_leaves_state_memory_and_rows(shop: Harness) -> None:
    shop.event(1, ts=shop.clock.now_ms - 86_400_000)
    shop.event(2, "other")
    shop.advance(1000)
    generation_us = shop.profile().generation_us
    shop.event(3)
    asked_ms = shop.clock.now_ms
    erasure = erase(shop)
    assert erasure[:3] == ("u", asked_ms, asked_ms - 1000 - 86_400_000)
    assert erasure.erased_us > generation_us
    assert not erasure.repeated
    kept = shop.profile()
    assert (kept.interactions(), kept.excluded(), kept.sums.size) == ([], [], 0)
    assert shop.backend.lists == {}
    shop.advance(10_000)
    assert "e3" not in shop.saved()  # it was not saved yet, and must not be now
    shop.event(5)
    shop.advance(1001)
    assert shop.saved()[-1] == "e5"
    assert len(shop.profile().interactions()) == 1
    assert [one.user_id for one in shop.erasures()] == ["u"]


def test_unknown_user_can_be_erased(shop: Harness) -> None:
    erasure = erase(shop)
    assert (erasure.user_id, erasure.oldest_ms) == ("u", START_MS)


def test_events_of_before_an_erasure_do_not_revive_the_user(shop: Harness) -> None:
    shop.event(1)
    shop.advance(1001)
    asked_ms = shop.clock.now_ms
    erase(shop)
    shop.advance(5000)
    # On its way for long; replayed from the dead letters, with the record's own time; and both
    # from before there was a record's time.
    shop.send(event_json(event_id="late", ts=asked_ms), kafka_ms=shop.clock.now_ms)
    shop.send(event_json(event_id="replayed", ts=asked_ms + 60_000), kafka_ms=asked_ms)
    shop.deliver(b"0 9 v " + event_json(event_id="old frame", ts=asked_ms - 1), "u")
    shop.advance(1001)
    assert shop.saved() == ["e1"]
    assert shop.count("erased_events") == 3
    assert shop.profile().interactions() == []
    assert shop.listed() == ["u"]
    shop.deliver(b"0 10 v " + event_json(event_id="new frame", ts=asked_ms + 1), "u")
    shop.send(event_json(event_id="new", ts=asked_ms + 1), kafka_ms=asked_ms + 1)
    shop.advance(1001)
    assert shop.saved() == ["e1", "new frame", "new"]
    assert shop.count("erased_events") == 3


def test_a_request_that_was_long_on_its_way_erases_up_to_its_record(shop: Harness) -> None:
    shop.send(
        event_json(event_id="gone", type="erase", product_id=None, ts=START_MS - 60_000),
        kafka_ms=START_MS,
    )
    shop.send(event_json(event_id="between", ts=START_MS - 30_000), kafka_ms=START_MS + 1)
    shop.advance(1001)
    assert shop.saved() == []
    assert shop.erasures()[0].requested_ms == START_MS - 60_000


def test_a_request_from_the_future_does_not_keep_the_user_out_for_ever(shop: Harness) -> None:
    year_ms = 365 * 86_400_000
    shop.send(
        event_json(event_id="gone", type="erase", product_id=None, ts=START_MS + year_ms),
        kafka_ms=START_MS + year_ms,
    )
    # Nor one without a record's time.
    payload = event_json(user_id="v", type="erase", product_id=None, ts=START_MS)
    shop.deliver(b"0 5 v " + payload, "v")
    shop.advance(301_000)
    shop.event(1)
    shop.event(2, "v")
    shop.advance(1001)
    assert sorted(shop.saved()) == ["e1", "e2"]


@pytest.mark.parametrize("is_saved", [False, True])
def test_an_event_that_came_before_the_request_is_erased_whatever_its_time(
    shop: Harness, *, is_saved: bool
) -> None:
    """Its clock was ahead. It is not dropped for its time, but goes with all there is."""
    shop.event(1, ts=shop.clock.now_ms + 240_000)
    if is_saved:
        shop.advance(1001)
    erase(shop)
    shop.advance(2000)
    assert shop.saved() == (["e1"] if is_saved else [])
    assert shop.profile().interactions() == []
    assert shop.count("erased_events") == 0


def test_an_erased_user_who_comes_back_gets_lists_above_the_deletion(shop: Harness) -> None:
    shop.event(1)
    shop.advance(1001)
    erasure = erase(shop)
    shop.clock.now_ms -= 3_600_000  # another TaskManager, whose clock is behind
    again = Harness(shop.clock, CONFIG, shop.backend.copy())
    after_ms = erasure.erased_us // 1000 + 1
    again.send(event_json(event_id="e2", ts=after_ms), kafka_ms=after_ms)
    again.advance(2000)
    (one,) = (one for batch in again.batches() for one in batch.lists)
    assert one.generated_us > erasure.erased_us
    second = erase(again)
    assert second.erased_us > one.generated_us


@pytest.mark.parametrize("is_back", [False, True])
@pytest.mark.parametrize("is_restored", [False, True])
def test_an_erasure_is_repeated_for_a_day(
    clock: Clock, shop: Harness, *, is_back: bool, is_restored: bool
) -> None:
    shop.event(1, ts=shop.clock.now_ms - 86_400_000)
    shop.advance(1001)
    first = erase(shop)
    if is_back:
        shop.advance(300)
        shop.event(2)
        shop.advance(59_000)
        shop.event(3, product_id="unknown")  # in a tick, and with retries, as the timers fire
    if is_restored:
        shop = Harness(clock, CONFIG, shop.backend.copy())
    for _ in range(200):
        shop.advance(600_000)
    repeated = [one for one in shop.erasures() if one.repeated]
    assert repeated == [first._replace(repeated=True)] * len(ERASE_AGAIN_MS)
    assert shop.backend.timers == set()


def test_only_the_newest_of_two_erasures_is_repeated(shop: Harness) -> None:
    erase(shop, ts=START_MS - 5)
    shop.advance(30_000)
    second = erase(shop)
    assert second.requested_ms == START_MS + 30_000
    shop.advance(2 * 86_400_000)
    assert shop.erasures()[2:] == [second._replace(repeated=True)] * len(ERASE_AGAIN_MS)


def test_an_erasure_looks_as_far_back_as_the_events_go(shop: Harness) -> None:
    oldest_ms = START_MS - 300 * 86_400_000
    shop.event(0, ts=oldest_ms)
    for number in range(1, 150):  # far more than the log of interactions holds
        shop.event(number)
        shop.advance(100)
    shop.event(150, ts=oldest_ms - 7)
    restored = Harness(shop.clock, CONFIG, shop.backend.copy())
    shop.advance(2000)
    # What waits to be saved may have been saved before a failure.
    for one in (shop, restored):
        assert erase(one).oldest_ms == oldest_ms - 7


def control(shop: Harness, kind: str, user: str = "u") -> None:
    shop.event(0, user, type=kind, product_id=None)


def objections(shop: Harness) -> list[Objection]:
    return [one for batch in shop.out if isinstance(batch, SaveBatch) for one in batch.objections]


def test_a_user_who_objects_has_no_profile_and_no_list_but_a_history(shop: Harness) -> None:
    shop.event(1)
    shop.advance(1001)
    generation_us = shop.profile().generation_us
    shop.event(2, product_id="p1")  # not saved yet
    control(shop, "opt_out")
    (objection,) = objections(shop)
    assert objection.user_id == "u"
    assert objection.at_us > generation_us
    for number in range(3, 6):
        shop.event(number, product_id="p2")
        shop.event(number, "other")
        shop.advance(1001)
    shop.advance(86_400_000)
    assert [one for one in shop.saved() if one != "e1"] == [
        "e2", "e3", "e3", "e4", "e4", "e5", "e5",
    ]  # fmt: skip
    assert shop.listed() == ["u", "other", "other", "other"]
    assert shop.profile().interactions() == []
    assert shop.count("opted_out_events") == 4
    assert shop.backend.timers == set()
    # Asked for once more.
    control(shop, "opt_out")
    assert objections(shop)[1].at_us > objection.at_us


def test_an_objection_ends_with_an_opt_in(shop: Harness) -> None:
    shop.event(1)
    control(shop, "opt_out")
    shop.event(2, product_id="p1")  # comes before it, and moves nothing
    control(shop, "opt_in")
    shop.event(3, product_id="p2")
    shop.advance(1001)
    assert shop.saved() == ["e1", "e2", "e3"]
    assert [item for _, _, item in shop.profile().interactions()] == ["p2"]
    (one,) = (one for batch in shop.batches() for one in batch.lists)
    assert one.generated_us > objections(shop)[0].at_us
    assert shop.backend.others == {"objection": {}}
    before = len(shop.out)
    control(shop, "opt_in")
    control(shop, "opt_in", "nobody")
    assert len(shop.out) == before
    assert set(shop.backend.values) == {"u"}


def test_an_opt_in_after_a_restore_leaves_what_came_before_it(shop: Harness) -> None:
    control(shop, "opt_out")
    shop.event(1)
    again = Harness(shop.clock, CONFIG, shop.backend.copy())
    control(again, "opt_in")
    again.advance(5000)
    assert again.saved() == ["e1"]
    assert again.profile().interactions() == []
    assert again.backend.lists == {}


def test_an_objection_outlives_the_profile(shop: Harness) -> None:
    shop.event(1)
    control(shop, "opt_out")
    shop.advance(1001)
    shop.backend.values.clear()  # the TTL
    shop.event(2)
    shop.advance(1001)
    assert shop.saved() == ["e1", "e2"]
    assert shop.listed() == []
    assert shop.profile().opted_out
    shop.backend.values.clear()
    erase(shop)
    shop.event(3, ts=shop.clock.now_ms + 1)
    shop.advance(1001)
    assert shop.listed() == []
    shop.backend.values.clear()
    control(shop, "opt_in")
    shop.event(4)
    shop.advance(1001)
    assert shop.listed() == ["u"]


def order(shop: Harness, *, ts: int) -> None:
    for item in ("p1", "p2", "p3"):
        shop.event(1001, type="purchase", product_id=item, ts=ts)


def test_the_lines_of_one_order_are_saved_and_none_is_recommended(clock: Clock) -> None:
    shop = with_products(clock, replace(CONFIG, recommend=RecommendConfig()))
    order(shop, ts=START_MS)
    shop.advance(1001)
    (batch,) = shop.batches()
    saved = [(one.event.event_id, one.event.product_id) for one in batch.events]
    assert saved == [("e1001", "p1"), ("e1001", "p2"), ("e1001", "p3")]
    (one,) = batch.lists
    assert set(one.product_ids) == {"p0", "p4", "p5"}
    assert sorted(one.excluded) == ["p1", "p2", "p3"]
    assert shop.count("duplicates") == 0


@pytest.mark.parametrize("pause_ms", [0, 1001, 60_000])
def test_an_event_that_comes_again_is_saved_once(shop: Harness, pause_ms: int) -> None:
    order(shop, ts=START_MS)
    shop.advance(pause_ms)
    order(shop, ts=START_MS + 1500)  # a retry, whose client took the time anew
    shop.event(2)
    shop.advance(2000)
    assert shop.saved() == ["e1001"] * 3 + ["e2"]
    assert shop.count("duplicates") == 3
    assert (shop.count("events"), shop.count("updates")) == (7, 4)
    assert len(shop.profile().interactions()) == 4


def test_a_replay_after_a_failure_saves_again_what_it_had_saved(shop: Harness) -> None:
    """Nothing tells whether the rows stand; to the restored profile the events are new."""
    order(shop, ts=START_MS)
    barrier = shop.backend.copy()
    shop.advance(1001)
    assert len(shop.saved()) == 3
    again = Harness(shop.clock, CONFIG, barrier)
    order(again, ts=START_MS)  # what stands behind the checkpoint's offsets comes again as well
    again.advance(2000)
    # Each of the three rows twice.
    assert again.saved() == ["e1001"] * 6
    assert (again.count("updates"), again.count("duplicates")) == (3, 3)
    # A checkpoint between the lookup and a user's own timer has the old profile and all events.
    for user in "abc":
        shop.event(7, user)
    tick_ms, first = min(shop.backend.timers)
    shop.clock.now_ms = tick_ms + 1
    shop.fire(tick_ms, first)
    third = Harness(shop.clock, CONFIG, shop.backend.copy())
    third.advance(2000)
    assert sorted(one for batch in third.batches() for one in _users(batch)) == sorted(
        set("abc") - {first}
    )


def _users(batch: SaveBatch) -> list[str]:
    return [one.event.user_id for one in batch.events]


def test_the_retries_of_a_waiting_user_are_few_and_end(shop: Harness) -> None:
    for number in range(40):
        shop.event(number, product_id=f"unknown-{number % 3}")
        shop.advance(20_000)
    assert len(shop.backend.timers) == 1
    shop.fired.clear()
    shop.advance(3_600_000)
    # Each after the time already waited, at most five minutes: 20 s, 40 s, … 300 s.
    assert len(shop.fired) <= 12 + 6
    shop.advance(86_400_000)
    assert shop.backend.timers == set()
    # The next event looks by itself, and waits anew.
    shop.event(40, product_id="unknown-9")
    shop.advance(60_000)
    assert len(shop.backend.timers) == 1


def test_timers_of_earlier_versions_become_one(shop: Harness) -> None:
    shop.event(1, product_id="p9")
    shop.advance(1001)
    profile = shop.profile()
    profile.retry_ms = 0
    shop.backend.values["u"] = profile.pack()
    shop.backend.timers = {(shop.clock.now_ms + 10 * at, "u") for at in range(50)}
    again = Harness(shop.clock, CONFIG, shop.backend.copy())
    again.advance(600)
    assert len(again.backend.timers) == 1


def unresolved(shop: Harness) -> list[list[tuple[str, float]]]:
    emitted = (one for one in shop.out if isinstance(one, SaveBatch))
    return [one.unresolved for one in emitted if one.unresolved_scope == "unresolved:3"]


def test_products_that_the_catalogue_does_not_know_are_counted_and_named(clock: Clock) -> None:
    shop = Harness(clock, CONFIG, with_products(clock, CONFIG, 1).backend, subtask=3)
    shop.product(1, space="other")  # known, though without a vector of the active space
    clock.now_ms += 120_000  # the catalogue has stopped growing
    for at in range(30):
        for number in range(20):
            if number <= at:
                item = f"wc_post_id_{number}"
                shop.event(100 * at + number, f"u{number}", product_id=item)
        shop.event(at)
        shop.event(at, "s", type="search", query="mug", product_id=None)
        shop.event(at, "k", product_id="p1")
        shop.event(at, "k", product_id="p1")  # a duplicate
        shop.advance(1001)
    assert shop.count("unresolved_events") == sum(min(at + 1, 20) for at in range(30))
    for _ in range(3):
        shop.event()
        shop.advance(20_000)
    said = max(unresolved(shop), key=len)
    assert [name for name, _ in said] == [f"wc_post_id_{number}" for number in range(10)]
    for _ in range(20):
        shop.event()
        shop.advance(60_001)
    # It is said once that there are none any more.
    assert unresolved(shop)[-1] == []
    assert unresolved(shop).count([]) == 1


def test_cycles_are_collected_by_time_under_a_load_without_a_pause(
    clock: Clock, shop: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected: list[int] = []
    monkeypatch.setattr("udfs.memory.time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr("udfs.memory.gc", SimpleNamespace(collect=collected.append))
    collector = shop._function._collector
    collector._last = collector._last_full = clock.monotonic()
    for number in range(8000):  # somebody is always in a tick, also where one ends
        shop.event(number, f"u{number % 1000}")
        shop.advance(5)
        assert shop._function._touched
    assert len(collected) == 3
    # Where there is a pause: each second.
    shop.advance(2000)
    collected.clear()
    for number in range(10):
        shop.event(number)
        shop.advance(2000)
    assert 9 <= len(collected) <= 10
    assert set(collected) == {1}
    # Now and then all that there is, however long the job was idle.
    clock.now_ms += 600_000
    shop.event()
    shop.advance(2000)
    assert collected[-1] == 2


def test_stretched_tick_is_forgotten_over_a_pause(shop: Harness) -> None:
    stretch(shop, 3000)
    shop.advance(6000)
    shop.event(1)
    shop.advance(1001)
    assert shop.saved() == ["e0", "e1"]


def test_state_of_pending_events_is_the_stated_format(shop: Harness) -> None:
    payload = event_json(ts=START_MS)
    shop.send(payload)
    assert shop.backend.lists == {"u": [b"0 1 %d v " % START_MS + payload]}


def test_pending_events_of_the_format_before_are_read(shop: Harness) -> None:
    shop.event(1)
    payload = event_json(event_id="old")
    shop.backend.lists["u"].insert(0, b"0 1 v " + payload)
    again = Harness(shop.clock, CONFIG, shop.backend.copy())
    again.advance(2000)
    assert again.saved() == ["old", "e1"]


def test_a_record_without_a_kafka_time_is_not_judged_by_the_clock(shop: Harness) -> None:
    ahead = event_json(ts=START_MS + 3_600_000)
    shop.deliver(b"0 1 v " + ahead, "u")
    assert shop.letters() == []
    shop.send(ahead, kafka_ms=START_MS)
    assert [letter.reason for letter in shop.letters()] == [Reason.IN_THE_FUTURE]
    # However the clock stands when it is replayed.
    shop.clock.now_ms += 86_400_000
    shop.send(ahead, kafka_ms=START_MS)
    assert len(shop.letters()) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_future_ms": -1},
        {"max_future_ms": 22 * 3_600_000 + 1},
        {"tick_ms": -1},
        {"tick_ms": 2000, "tick_max_ms": 1999},
        {"max_pending": 0},
        {"profile_ttl_days": 0},
        {"min_tick_ms": 0},
        {"max_moves_per_minute": -1},
        {"product_list_length": -1},
        {"waiting_retry_max_ms": 0},
        {"execution_mode": "loopback"},
        {"dimensions": -1},
        {"space_switch_share": 0.0},
        {"space_switch_share": 1.5},
    ],
)
def test_constants_without_a_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RecommenderConfig(**wrong)


def test_what_was_read_in_bulk_is_not_taken_again(clock: Clock) -> None:
    """The broadcast begins an hour before the job, and at an older offset after a failure."""
    first = Harness(clock, CONFIG, subtask=3)
    first.product(1)
    first.product(1, in_stock=False)
    first.relate("p1", {"p2": 0.5})
    again = Harness(clock, CONFIG, first.backend.copy(), subtask=3)
    assert again.count("catalogue_searchable") == 0
    for one in again.backend.topics.records:
        row = (PRODUCTS_ROW, RELATED_ROW)[one.topic == "related"]
        key = (one.key or b"").decode("latin-1")
        again.rebroadcast(Row(key, one.value, 3, one.offset, START_MS, row))
        assert again.count("catalogue_size") == 1
        assert again.count("catalogue_searchable") == 0
    # Other partitions have their own offsets, and each topic.
    again.broadcast("p2", encode(record("p2", PRODUCTS["p2"])), partition=0)
    assert again.count("catalogue_size") == 2
    again.product(1)
    assert again.count("catalogue_searchable") == 2


def test_what_was_learned_is_read_and_broadcast(clock: Clock) -> None:
    shop = with_products(clock, CONFIG)
    lists: list[list[str]] = []
    for related in ({"p4": 1.0}, {"p5": 1.0}, None):
        shop.relate("p0", related)
        for job in (shop, Harness(clock, CONFIG, shop.backend.copy())):
            job.event(len(lists), f"u{len(lists)}")
            job.advance(1001)
            lists.append(job.batches()[-1].lists[0].product_ids)
    assert [one[0] for one in lists[:4]] == ["p4", "p4", "p5", "p5"]
    assert lists[4] == lists[5]


def test_a_task_that_shall_end_while_it_reads_leaves_no_reader(clock: Clock) -> None:
    backend = Backend()
    backend.topics.append("products", "p0", encode(record("p0", unit([3, 4]))), 0, START_MS)
    backend.topics.fails_after = 1
    with pytest.raises(InterruptedError):
        Harness(clock, CONFIG, backend)
    assert backend.topics.readers == 0


def test_the_catalogue_of_an_earlier_version_leaves_the_state(clock: Clock) -> None:
    backend = Backend()
    backend.broadcast = {"pp0": b"an entry of the version before", "a": b"s"}
    shop = Harness(clock, CONFIG, backend)
    assert shop.count("catalogue_size") == 0
    shop.product(0)
    assert backend.broadcast == {}
    assert shop.count("catalogue_size") == 1


def test_what_the_database_refuses_goes_to_the_dead_letters(shop: Harness) -> None:
    letter = DeadLetter("events", "u", b"{}", Reason.REFUSED, "too long", Origin(0, 1))
    shop.refused = [letter]
    shop.event()
    shop.advance(1001)
    assert shop.letters() == [letter]
    shop._function.close()
    assert shop.closed


def test_a_list_of_a_growing_catalogue_is_made_again(clock: Clock) -> None:
    shop = Harness(clock, CONFIG)
    shop.product(0)
    shop.event(1)
    shop.event(2, "searcher", type="search", query="usb hub", product_id=None)
    shop.event(3, "w", product_id="p1")
    shop.advance(1001)
    assert shop.profile().partial
    assert shop.count("unresolved_events") == 0  # it may be on its way
    shop.product(1)
    shop.product(2)
    shop.product(3)
    before = len(shop.listed())
    shop.advance(600_000)
    assert not shop.profile().partial
    assert {"u", "w"} <= set(shop.listed()[before:])
    last = {one.user_id: one for batch in shop.batches() for one in batch.lists}
    assert len(last["u"].product_ids) == 3
    assert shop.backend.timers == set()
    # Few new ones among many are no reason to look again, nor is a change.
    again = Harness(clock, CONFIG, shop.backend.copy())
    again.product(1, in_stock=False)
    again.event(4)
    again.advance(1001)
    assert not again.profile().partial


def test_a_partial_list_is_made_again_after_a_failure(clock: Clock) -> None:
    shop = Harness(clock, CONFIG)
    shop.product(0)
    shop.event(1)
    shop.advance(1001)
    for number in range(1, 6):
        shop.product(number)
    clock.now_ms += 3 * 86_400_000
    again = Harness(clock, CONFIG, shop.backend.copy())
    again.advance(600_000)
    assert again.listed() == ["u"]
    assert len(again.batches()[0].lists[0].product_ids) == 3
    assert again.backend.timers == set()


def test_an_announced_space_takes_over(clock: Clock, shop: Harness) -> None:
    shop.event(1, product_id="p1")
    shop.advance(1000)
    old = shop.profile().space
    new = {f"p{n}": unit([1.0, float(n)]) for n in range(len(PRODUCTS))}
    for name, vector in new.items():
        shop.put(record(name, PRODUCTS[name], vectors={"new": vector}))
    shop.event(2, product_id="p2")
    shop.advance(1000)
    assert shop.profile().space == old
    shop.broadcast(SPACE_KEY, encode(SpaceSwitch(1, "new", START_MS)))
    # Rebuilt from what the user touched, in the vectors of the new space.
    for job in (shop, Harness(clock, CONFIG, shop.backend.copy())):
        job.event(3, product_id="p2")
        job.advance(1000)
        moved = job.profile()
        assert (moved.space, moved.sums.shape, moved.waiting) == ("new", (2, 2), 0)
        events = [
            decode_event("u", event_json(event_id=f"e{at}", ts=ms, product_id=item), NOW_MS * 2)
            for at, (ms, _, item) in enumerate(moved.interactions())
        ]
        assert len(events) == 3
        expected, newest = naive_sums(events, Vectors(new), ProfileConfig())
        np.testing.assert_allclose(
            decayed_sums(moved, ProfileConfig(), newest), expected, rtol=1e-2, atol=1e-3
        )


@pytest.mark.parametrize("payload", [b"{", b'{"space":"new"}'])
def test_a_switch_that_is_none_is_left_out(clock: Clock, payload: bytes) -> None:
    shop = Harness(clock, CONFIG, subtask=3)
    shop.broadcast(SPACE_KEY, payload)
    assert [letter.payload for letter in shop.letters()] == [payload]
    assert Harness(clock, CONFIG, shop.backend.copy()).count("rejected_rows") == 1


ADAPTIVE = replace(CONFIG, min_tick_ms=100)


def freshness_ms(shop: Harness, events: int, every_ms: int) -> list[int]:
    """Let events come; returns how long each waited until it was saved."""
    saved_ms: dict[str, int] = {}
    sent_ms = {}
    save = shop.save

    def note(batch: SaveBatch) -> list[DeadLetter]:
        letters = save(batch)
        saved_ms.update((one.event.event_id, shop.clock.now_ms) for one in batch.events)
        return letters

    shop._function._saver = SimpleNamespace(save=note)
    for number in range(events):
        sent_ms[f"e{number}"] = shop.clock.now_ms
        shop.event(number, f"u{number % 17}", product_id=f"p{number % 6}")
        shop.advance(every_ms)
    shop.advance(20_000)
    return sorted(saved_ms[name] - sent for name, sent in sent_ms.items())


@pytest.mark.parametrize(("config", "p50_ms"), [(ADAPTIVE, 120), (CONFIG, 600)])
def test_lists_are_fresh_on_an_idle_machine(
    clock: Clock, config: RecommenderConfig, p50_ms: int
) -> None:
    shop = with_products(clock, config)
    shop.save_ms = 15
    waits = freshness_ms(shop, 400, 20)
    assert p50_ms / 3 < waits[200] < p50_ms
    assert shop.count("tick_ms") == config.min_tick_ms
    assert shop.backend.timers == set()
    assert shop.backend.lists == {}


def test_a_tick_grows_with_what_it_costs_and_shrinks_again(clock: Clock) -> None:
    shop = with_products(clock, ADAPTIVE, 1)
    for save_ms, expected in ((10, 100), (100, 400), (400, 1000), (3000, 6000), (50, 200)):
        shop.save_ms = save_ms
        shop.event()
        shop.advance(20_000)
        assert shop.count("tick_ms") == expected
    # After a pause it is short at once.
    shop.save_ms = 0
    shop.event(2)
    shop.advance(101)
    assert shop.saved()[-1] == "e2"


LISTS = replace(CONFIG, product_list_length=3)


def test_lists_by_product_are_made_for_the_own_share_and_when_something_changes(
    clock: Clock,
) -> None:
    first = Harness(clock, LISTS)
    for number in range(6):
        first.product(number)
    jobs = [Harness(clock, LISTS, first.backend.copy(), subtask=at) for at in range(PARALLELISM)]
    for job in jobs:
        assert job.product_lists() == {}
        job.event()  # there is no key before
        job.advance(5000)
        assert job.backend.timers == set()
    made = [set(job.product_lists()) for job in jobs]
    assert sorted(name for names in made for name in names) == sorted(PRODUCTS)
    owner = next(job for job in jobs if "p1" in job.product_lists())
    clock.now_ms += 60_000
    owner.relate("p1", {"p5": 1.0})
    assert owner.product_lists()["p1"].bought_together == [("p5", 1.0)]
    clock.now_ms += 60_000
    owner.broadcast("p1", None)
    gone = owner.product_lists()["p1"]
    assert (gone.similar, gone.bought_together) == ([], [])


def test_a_round_of_lists_by_product_goes_on_without_another_event(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("udfs.product_lists.BATCH", 1)
    config = replace(LISTS, product_list_length=30)
    first = with_products(clock, config)
    for number in range(20):
        first.put(record(f"q{number}", PRODUCTS["p1"]))
    shop = Harness(clock, config, first.backend)
    lists: Any = shop._function._lists
    lists._clock = clock.monotonic
    shop.event(1)
    shop.advance(5000)
    made = shop.product_lists().values()
    assert len(made) > 4
    assert all("p5" in dict(one.similar) for one in made)
    shop.product(5, in_stock=False)
    shop.event(2)
    shop.advance(60_000)
    made = shop.product_lists().values()
    assert not any("p5" in dict(one.similar) for one in made)
    assert shop.backend.timers == set()
    assert len(shop.fired) < 25


@pytest.mark.parametrize(("save_ms", "at_most"), [(0, 0.55), (600, 0.15)])
def test_lists_by_product_have_their_share_of_the_time(
    clock: Clock, save_ms: int, at_most: float
) -> None:
    shop = with_products(clock, LISTS, 1)
    spent: list[int] = []

    def work(_catalogue: object, budget_s: float, _now_us: int) -> list[SavedProductList]:
        spent.append(round(budget_s * 1000))
        clock.now_ms += spent[-1]
        return []

    lists: Any = SimpleNamespace(pending=True, wait_s=0.0, work=work, changed=lambda _: None)
    shop._function._lists = lists
    shop.save_ms = save_ms
    began_ms = clock.now_ms
    for number in range(200):
        shop.event(number)
        shop.product(number % 6)
        shop.advance(50)
    shop.save_ms = 0
    share = sum(spent) / (clock.now_ms - began_ms)
    assert at_most / 3 < share < at_most
    lists.pending, lists.wait_s = False, None
    shop.advance(300_000)
    assert shop.backend.timers == set()


def test_what_a_bot_does_is_saved_and_moves_little(clock: Clock) -> None:
    clock.now_ms = START_MS // 60_000 * 60_000
    shop = with_products(clock, replace(CONFIG, max_moves_per_minute=5))
    for number in range(60):
        shop.event(number, "bot", product_id=f"p{number % 6}")
        if number % 20 == 0:
            shop.event(number)
        shop.advance(500)
    assert len(shop.profile("bot").interactions()) == 5
    assert len(shop.profile().interactions()) == 3
    # The last one waits for its tick.
    assert shop.count("capped_events") == 54
    assert (shop.count("events"), shop.count("updates")) == (62, 8)
    assert len(shop.saved()) == 62
    assert shop.listed().count("bot") == 2
    # A minute later it moves again.
    shop.advance(60_000)
    shop.event(60, "bot")
    shop.advance(1001)
    assert len(shop.profile("bot").interactions()) == 6
