"""The catalogue operator against a small runtime written by hand: states, timers, failures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from pyflink.common import Row

from connectors.dead_letters import to_row
from tests.unit.builders import product_json, wire_key
from tests.unit.metric_doubles import Counter, Group
from udfs.catalogue_function import (
    DEAD_LETTERS,
    MOST_PRODUCTS,
    PRODUCTS,
    RELATED,
    CatalogueConfig,
    CatalogueFunction,
    text_encoder,
)
from udfs.product_record import (
    ProductRecord,
    SpaceSwitch,
    decode_record,
    decode_related,
    decode_switch,
    same,
)
from udfs.schemas import (
    SPACE_KEY,
    TEXT_SPACE,
    DeadLetter,
    Origin,
    ProductChange,
    Reason,
    SaveBatch,
    SpaceNotice,
    encode_space_notice,
    frame_record,
)

START_MS = 1_732_300_000_050


class KilledError(RuntimeError):
    """The task has failed."""


class Backend:
    """What a checkpoint holds, and the key that is current."""

    def __init__(self) -> None:
        self.key = ""
        self.values: dict[tuple[str, str], bytes] = {}
        self.lists: dict[str, list[bytes]] = {}
        self.timers: set[tuple[int, str]] = set()

    def copy(self) -> Backend:
        made = Backend()
        made.values = dict(self.values)
        made.lists = {key: list(items) for key, items in self.lists.items()}
        made.timers = set(self.timers)
        return made


class State:
    """A value or a list of the current key."""

    def __init__(self, backend: Backend, name: str) -> None:
        self._backend = backend
        self._name = name

    def value(self) -> bytes | None:
        return self._backend.values.get((self._name, self._backend.key))

    def update(self, value: bytes) -> None:
        assert type(value) is bytes
        self._backend.values[self._name, self._backend.key] = value

    def get(self) -> Iterator[bytes]:
        return iter(list(self._backend.lists.get(self._backend.key, [])))

    def add(self, value: bytes) -> None:
        self._backend.lists.setdefault(self._backend.key, []).append(value)

    def clear(self) -> None:
        self._backend.lists.pop(self._backend.key, None)


class Context:
    """Of the runtime, of an element and of a timer."""

    def __init__(self, backend: Backend, counters: dict[str, Counter]) -> None:
        self._backend = backend
        self._counters = counters

    def get_state(self, descriptor: Any) -> State:
        return State(self._backend, descriptor.get_name())

    get_list_state = get_state

    def get_metrics_group(self) -> Group:
        return Group(self._counters)

    def get_current_key(self) -> str:
        return self._backend.key

    def timer_service(self) -> Context:
        return self

    def register_processing_time_timer(self, timestamp: int) -> None:
        self._backend.timers.add((timestamp, self._backend.key))


class Table:
    """The table `products`, which outlives every task: saver and reader of it."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[int, bytes]] = {}
        self.reads: list[list[str]] = []
        self.batches: list[list[ProductChange]] = []
        self.refused: set[str] = set()
        self.killed_in: str | None = None

    def read(self, product_ids: Sequence[str]) -> dict[str, ProductRecord]:
        self.reads.append(list(product_ids))
        return {
            name: decode_record(wire_key(name), self.rows[name][1])
            for name in product_ids
            if name in self.rows and self.rows[name][1]
        }

    def save(self, batch: SaveBatch) -> list[DeadLetter]:
        assert batch.last
        if self.killed_in == "before":
            raise KilledError
        self.batches.append(batch.products)
        letters = []
        for change in batch.products:
            name = next(one for one in (*change[:2], *change.between) if one).product_id
            if name in self.refused:
                letters.append(
                    DeadLetter(
                        "cassandra:products",
                        wire_key(name),
                        b"{}",
                        Reason.REFUSED,
                        "",
                        Origin(-1, -1),
                    )
                )
                continue
            at_us, _ = self.rows.get(name, (0, b""))
            assert change.changed_us > at_us, "a write that an older one hides"
            self.rows[name] = (change.changed_us, change.record)
        if self.killed_in == "after":
            raise KilledError
        return letters

    def close(self) -> None: ...


class Harness:
    """One subtask of the operator, as Flink drives it."""

    def __init__(self, config: CatalogueConfig | None = None) -> None:
        self.table = Table()
        self.now_ms = START_MS
        self.backend = Backend()
        self.counters: dict[str, Counter] = {}
        self.out: list[tuple[str, str, bytes | None, dict[str, bytes]]] = []
        self._config = config or CatalogueConfig()
        self._offset = itertools.count()
        self.start()

    def start(self, backend: Backend | None = None) -> None:
        """Start the task, from a checkpoint if there is one."""
        self.backend = backend or self.backend
        self.function = CatalogueFunction(
            self._config, lambda _: self.table, lambda: self.table, to_row
        )
        self.context: Any = Context(self.backend, self.counters)
        self.function.open(self.context)

    def send(self, key: str, value: bytes | None, partition: int = 1) -> None:
        origin = Origin(partition, next(self._offset), START_MS)
        self.deliver(wire_key(key), frame_record(value, origin))

    def deliver(self, key: str, record: bytes) -> None:
        self.backend.key = key
        self._take(self.function.process_element(record, self.context))

    def product(self, name: str = "p", **fields: Any) -> None:
        values = {"product_id": name, "space": ..., "embedding": ..., **fields}
        self.send(name, product_json(**values))

    def partial(self, name: str = "p", **fields: Any) -> None:
        self.product(name, partial=True, **fields)

    def advance(self, milliseconds: int = 200) -> None:
        end = self.now_ms + milliseconds
        while due := sorted(one for one in self.backend.timers if one[0] < end):
            timestamp, self.backend.key = due[0]
            self.backend.timers.remove(due[0])
            self.now_ms = max(self.now_ms, timestamp + 1)
            self._take(self.function.on_timer(timestamp, self.context))
        self.now_ms = end

    def _take(self, rows: Iterator[Row]) -> None:
        for row in rows:
            self.out.append((row[0], bytes(row[1]).decode(), row[2], row[3]))

    def emitted(self, kind: str = PRODUCTS) -> list[tuple[str, bytes | None]]:
        return [(key, value) for of, key, value, _ in self.out if of == kind]

    def records(self) -> list[ProductRecord | None]:
        return [
            None if value is None else decode_record(wire_key(key), value)
            for key, value in self.emitted()
        ]

    def reasons(self) -> list[str]:
        return [headers["reason"].decode() for of, _, _, headers in self.out if of == DEAD_LETTERS]

    def counts(self) -> dict[str, int]:
        return {name.rsplit(".", 1)[-1]: one.value for name, one in self.counters.items()
                if one.value}  # fmt: skip


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Harness:
    made = Harness()
    monkeypatch.setattr("udfs.catalogue_function.time.time_ns", lambda: made.now_ms * 1_000_000)
    return made


def test_a_product_is_saved_and_passed_on_within_a_tick(harness: Harness) -> None:
    harness.product(title="usb hub", price=3.0)
    assert harness.emitted() == []
    harness.advance()
    (record,) = harness.records()
    assert record is not None
    assert (record.title, record.price, record.is_text) == ("usb hub", 3.0, True)
    assert list(record.vectors) == [TEXT_SPACE]
    assert record.first_seen_ms * 1000 <= record.updated_us
    assert harness.table.rows["p"] == (record.updated_us, harness.out[0][2])
    assert not harness.backend.lists
    assert not harness.backend.timers
    assert harness.counts() == {"catalogue_updates": 1}


def test_a_partial_update_is_merged_into_what_the_row_says(harness: Harness) -> None:
    harness.product(title="usb hub", price=3.0, space="s", embedding=[3.0, 4.0])
    harness.advance()
    harness.partial(price=2.0)
    harness.partial(in_stock=False)
    harness.advance()
    record = harness.records()[-1]
    assert record is not None
    assert (record.title, record.price, record.in_stock) == ("usb hub", 2.0, False)
    assert list(record.vectors) == ["s"]
    # Both in one write and one record.
    assert len(harness.table.batches) == 2
    assert len(harness.records()) == 2


def test_many_products_of_a_tick_are_one_read_and_one_write(harness: Harness) -> None:
    for number in range(MOST_PRODUCTS - 1):
        harness.product(f"p{number}")
    assert harness.table.reads == []
    harness.product("last")
    assert [len(names) for names in harness.table.reads] == [MOST_PRODUCTS]
    assert len(harness.emitted()) == MOST_PRODUCTS
    harness.advance()
    assert len(harness.table.reads) == 1
    assert not harness.backend.lists


def test_what_comes_for_a_product_that_is_saved_but_not_forgotten_is_saved_too(
    harness: Harness,
) -> None:
    for number in range(MOST_PRODUCTS):
        harness.product(f"p{number}")
    harness.partial("p0", price=9.0)
    harness.advance()
    record = harness.records()[-1]
    assert record is not None
    assert (record.product_id, record.price) == ("p0", 9.0)
    assert not harness.backend.lists


def test_texts_that_are_made_at_once_have_the_vectors_of_each() -> None:
    texts = [("usb hub", "USB"), ("", ""), ("mouse", ""), ("usb hub", "USB")]
    at_once, one_by_one = text_encoder(texts), text_encoder([])
    for text in texts:
        made, expected = at_once(*text), one_by_one(*text)
        if made is None or expected is None:
            assert made is expected
        else:
            np.testing.assert_allclose(made, expected, atol=1e-6)


def test_a_duplicate_writes_no_row_and_is_passed_on_again(harness: Harness) -> None:
    for _ in range(2):
        harness.product(title="usb hub")
        harness.advance()
    assert [len(batch) for batch in harness.table.batches] == [1, 0]
    first, second = harness.emitted()
    assert first == second


def test_what_is_late_by_the_shops_own_times_is_counted_and_dropped(harness: Harness) -> None:
    harness.product(title="new", updated_at=START_MS)
    harness.product(title="old", updated_at=START_MS - 1)
    harness.advance()
    harness.partial(title="older", updated_at=START_MS - 2)
    harness.advance()
    assert [record and record.title for record in harness.records()] == ["new"]
    assert harness.counts() == {"catalogue_updates": 1, "late_updates": 2}


def test_what_is_related_is_passed_on_of_a_late_record_too(harness: Harness) -> None:
    harness.product(updated_at=START_MS)
    harness.advance()
    # As after a failure: the row has been written, and what was related had not been sent.
    harness.product(updated_at=START_MS - 1, related={"q": 1.0})
    harness.advance()
    ((_, value),) = harness.emitted(RELATED)
    assert decode_related("p", value or b"").related == {"q": 1.0}
    assert len(harness.table.batches[-1]) == 0


def test_a_tombstone_deletes_the_row_and_what_is_related(harness: Harness) -> None:
    harness.product(related={"q": 1.0})
    harness.advance()
    harness.send("p", None)
    harness.advance()
    assert harness.emitted()[-1] == ("p", None)
    related = harness.emitted(RELATED)
    assert decode_related("p", related[0][1] or b"").related == {"q": 1.0}
    assert related[1:] == [("p", None)]
    assert harness.table.rows["p"][1] == b""
    (change,) = harness.table.batches[-1]
    assert change.new is None


def test_a_product_that_comes_back_is_written_above_its_deletion(harness: Harness) -> None:
    harness.product()
    harness.advance()
    harness.send("p", None)
    harness.advance()
    harness.now_ms -= 60_000  # another machine's clock
    harness.start(harness.backend.copy())
    harness.product(title="again")
    harness.advance()  # the table refuses a write that an older one hides
    record = harness.records()[-1]
    assert record is not None
    assert record.title == "again"


def test_bad_records_are_dead_letters_with_their_reasons(harness: Harness) -> None:
    harness.send("p", b"{")
    harness.product("p", space="s", embedding=[])
    harness.send("q", product_json(product_id="p"))
    harness.send("", None)
    harness.send(SPACE_KEY, None)
    harness.send(SPACE_KEY, b"{}")
    harness.partial("nobody", price=1.0)
    harness.advance()
    assert harness.reasons() == [
        "not_json", "invalid_vector", "key_mismatch", "missing_key", "invalid_field",
        "invalid_field", "unknown_product",
    ]  # fmt: skip
    letters = [row for row in harness.out if row[0] == DEAD_LETTERS]
    assert (letters[0][1], letters[0][2]) == ("p", b"{")
    assert letters[0][3]["topic"] == b"catalogue"
    assert letters[-1][1] == "nobody"
    assert letters[-1][3]["partition"] == b"1"
    assert harness.emitted() == []


def test_the_shops_vectors_have_the_length_that_is_demanded() -> None:
    harness = Harness(CatalogueConfig(dimensions=3))
    harness.product("p", space="s", embedding=[1.0, 2.0])
    harness.product("q", title="usb hub")
    harness.advance(1 << 45)
    assert harness.reasons() == ["wrong_length"]
    assert [key for key, _ in harness.emitted()] == ["q"]


def test_a_row_that_cassandra_refuses_is_a_dead_letter_and_not_passed_on(
    harness: Harness,
) -> None:
    harness.table.refused = {"é"}
    harness.product("é", related={"q": 1.0})
    harness.product("p")
    harness.advance()
    assert harness.reasons() == ["refused_by_cassandra"]
    assert [key for key, _ in harness.emitted()] == ["p"]
    assert harness.emitted(RELATED) == []


def test_one_switch_when_all_partitions_say_that_a_space_is_complete(harness: Harness) -> None:
    for partition in (0, 0, 1, 1):
        notice = SpaceNotice("s", 7, 2, complete=True)
        harness.send(SPACE_KEY, encode_space_notice(notice), partition)
    ((key, value),) = harness.emitted()
    assert key == SPACE_KEY
    assert decode_switch(value or b"") == SpaceSwitch(1, "s", 7)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_failure_amid_a_save_loses_nothing(harness: Harness, moment: str) -> None:
    harness.product("a", title="usb hub", price=1.0)
    harness.advance()
    harness.partial("a", price=2.0)
    harness.product("b", title="mouse")
    checkpoint = harness.backend.copy()
    harness.table.killed_in = moment
    with pytest.raises(KilledError):
        harness.advance()
    harness.table.killed_in = None
    harness.out.clear()
    harness.start(checkpoint)
    harness.advance()  # without another record
    found = {record.product_id: record for record in harness.records() if record}
    assert (found["a"].title, found["a"].price) == ("usb hub", 2.0)
    assert found["b"].title == "mouse"
    assert not harness.backend.lists
    # Restored timers put their products into one tick.
    assert len(harness.table.reads) == 3


def test_a_record_between_a_restore_and_its_timer_comes_behind_what_was_pending(
    harness: Harness,
) -> None:
    harness.product(title="hub")
    harness.start(harness.backend.copy())
    harness.partial(price=4.0)
    harness.advance()
    (record,) = harness.records()
    assert record is not None
    assert (record.title, record.price) == ("hub", 4.0)


ACTIONS = st.one_of(
    st.builds(lambda p, t: ("product", p, t), st.sampled_from("ab"), st.sampled_from(["x", "hub"])),
    st.builds(lambda p, n: ("partial", p, n), st.sampled_from("ab"), st.integers(1, 3)),
    st.builds(lambda p: ("delete", p, 0), st.sampled_from("ab")),
    st.just(("advance", "", 0)),
    st.just(("checkpoint", "", 0)),
    st.sampled_from([("kill", "before", 0), ("kill", "after", 0)]),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(ACTIONS, max_size=25))
def test_whatever_fails_the_table_and_the_topic_end_as_the_records_say(actions: list[Any]) -> None:
    """Kafka is replayed from the checkpoint, as the source does it."""
    with pytest.MonkeyPatch.context() as patch:
        harness = Harness()
        patch.setattr("udfs.catalogue_function.time.time_ns", lambda: harness.now_ms * 1_000_000)
        log: list[tuple[str, bytes]] = []
        checkpoint, read = harness.backend.copy(), 0
        for kind, name, value in actions:
            if kind == "checkpoint":
                checkpoint, read = harness.backend.copy(), len(log)
            elif kind == "advance":
                harness.advance()
            elif kind == "kill":
                harness.table.killed_in = name
                try:
                    harness.advance()
                except KilledError:
                    harness.table.killed_in = None
                    harness.now_ms += 1  # no deletion is known that no checkpoint has
                    harness.start(checkpoint.copy())
                    for key, record in log[read:]:
                        harness.deliver(key, record)
                harness.table.killed_in = None
            else:
                fields = {"product_id": name, "space": ..., "embedding": ...}
                payload: bytes | None = None
                if kind == "product":
                    payload = product_json(**fields, title=value)
                elif kind == "partial":
                    payload = product_json(**fields, partial=True, price=float(value))
                record = frame_record(payload, Origin(0, len(log), START_MS))
                log.append((name, record))
                harness.deliver(name, record)
        harness.advance()

        expected = Harness()
        patch.setattr("udfs.catalogue_function.time.time_ns", lambda: expected.now_ms * 1_000_000)
        for key, record in log:
            expected.deliver(key, record)
        expected.advance()
        newest = dict(harness.emitted())
        for name in "ab":
            made, wanted = (one.table.read([name]).get(name) for one in (harness, expected))
            if wanted is None or made is None:
                assert made is wanted
            else:
                # A product that was deleted in between was first seen later.
                assert same(_seen(made), _seen(wanted))
                assert newest[name] == harness.table.rows[name][1]


def _seen(record: ProductRecord) -> ProductRecord:
    return replace(record, first_seen_ms=0)
