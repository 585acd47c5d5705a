"""The catalogue in memory: any records leave what the last of each product says; the shelf."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.catalogue_memory import CatalogueFollower, CatalogueMemory
from api.shelf import PRODUCT_SECONDS, TRENDING_SECONDS, Shelf
from connectors.kafka_client import KafkaClientOptions
from connectors.recommendation_store import StoreUnavailable, TrendingList
from tests.contract.memory_store import InMemoryRecommendationStore
from tests.unit import api_doubles as doubles
from tests.unit.api_doubles import NOW, product
from udfs.product_record import VERSION, SpaceSwitch, decode_record, encode
from udfs.schemas import SPACE_KEY

IDS = ("a", "b", "c")


def record(product_id: str, title: str = "", *, dimensions: int = 2) -> bytes:
    return doubles.record(product_id, [1.0] * dimensions, title=title)


def nearest_to(memory: CatalogueMemory, product_id: str) -> list[str]:
    """Products near to one, the best first; none where it has no vector in the active space."""
    with memory.vectors() as catalogue:
        vector = catalogue.product_vector(product_id)
        if vector is None:
            return []
        return [one for one in catalogue.search(vector[None, :], 5)[0][0] if one != product_id]


@given(
    st.lists(st.tuples(st.sampled_from(IDS), st.none() | st.sampled_from(["x", "y"]))),
    st.integers(0, 10),
)
def test_last_record_of_a_product_counts(records: list[tuple[str, str | None]], read: int) -> None:
    """Of what is loaded at once, the first ``read`` records, and of what follows."""
    memory = CatalogueMemory(10)
    expected: dict[str, str] = {}
    for number, (product_id, title) in enumerate(records):
        if number == read:
            memory.caught_up = True
        value = None if title is None else record(product_id, title)
        memory.apply(product_id.encode(), value)
        expected.pop(product_id, None)
        if title is not None:
            expected[product_id] = title
    memory.caught_up = True
    found = {one: memory.rows.get(one) for one in IDS}
    assert {one: row.title for one, row in found.items() if row is not None} == expected
    with memory.vectors() as catalogue:
        near = catalogue.search(np.array([[1, 0]], dtype=np.float32), 5)[0][0]
    assert set(near) == expected.keys()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"a", b"{"),
        (b"other", record("a")),
        (None, record("a")),
        (None, None),
    ],
)
def test_what_is_no_record_changes_nothing(key: bytes | None, value: bytes) -> None:
    memory = CatalogueMemory(10)
    memory.caught_up = True
    memory.apply(b"z", record("z"))
    memory.apply(b"a", record("a", "before"))
    memory.apply(key, value)
    row = memory.rows.get("a")
    assert row is not None
    assert row.title == "before"
    assert memory.rejected == 1


@pytest.mark.parametrize("read", [True, False])
def test_vector_that_does_not_fit_its_space_keeps_nothing_else_back(read: bool) -> None:
    memory = CatalogueMemory(10)
    memory.caught_up = read
    for name in ("y", "z", "a"):
        memory.apply(name.encode(), record(name, "before"))
    memory.apply(b"a", record("a", "after", dimensions=3))
    memory.caught_up = True
    row = memory.rows.get("a")
    assert row is not None
    assert row.title == "after"
    assert nearest_to(memory, "y") == ["z"]
    assert memory.rejected == 1


def test_full_memory_leaves_out_and_is_not_complete_until_there_is_none_left_out() -> None:
    memory = CatalogueMemory(1)
    memory.caught_up = True
    memory.apply(b"a", record("a"))
    assert memory.complete
    memory.apply(b"b", record("b"))
    memory.apply(b"a", record("a", "changed"))
    assert (len(memory), memory.skipped, memory.complete) == (1, 1, False)
    row = memory.rows.get("a")
    assert row is not None
    assert row.title == "changed"
    memory.apply(b"b", None)
    assert memory.complete


class Consumer:
    """A topic of two partitions; gives its records once, then nothing."""

    def __init__(self, partitions: dict[int, list[tuple[bytes, bytes | None]]]) -> None:
        self._partitions = partitions
        self.closed = False

    def list_topics(self, topic: str, timeout: float) -> Any:  # noqa: ARG002
        assert topic == "products"
        found = SimpleNamespace(error=None, partitions=dict.fromkeys(self._partitions))
        return SimpleNamespace(topics={topic: found})

    def get_watermark_offsets(self, partition: Any, timeout: float) -> tuple[int, int]:  # noqa: ARG002
        return 0, len(self._partitions[partition.partition])

    def incremental_assign(self, partitions: list[Any]) -> None:
        self._waiting = [
            SimpleNamespace(
                error=lambda: None,
                topic=lambda: "products",
                key=lambda key=key: key,
                value=lambda value=value: value,
                timestamp=lambda: (1, NOW),
                partition=lambda number=one.partition: number,
                offset=lambda offset=offset: offset,
            )
            for one in partitions
            for offset, (key, value) in enumerate(self._partitions[one.partition])
        ]

    def consume(self, count: int, timeout: float) -> list[Any]:  # noqa: ARG002
        # One at a time, so that being behind can be seen.
        found, self._waiting = self._waiting[:1], self._waiting[1:]
        return found

    def close(self) -> None:
        self.closed = True


def test_follower_reads_all_partitions_and_says_when_it_has_caught_up() -> None:
    memory = CatalogueMemory(10)
    seen: list[tuple[int, bool]] = []
    consumer = Consumer({0: [(b"a", record("a")), (b"b", record("b"))], 1: [(b"c", record("c"))]})
    follower = CatalogueFollower(
        memory, KafkaClientOptions(), make_consumer=lambda _settings: consumer
    )
    original = consumer.consume

    def consume(count: int, timeout: float) -> list[Any]:
        seen.append((len(memory), memory.caught_up))
        if memory.caught_up:
            follower._stop.set()
        return original(count, timeout)

    consumer.consume = consume  # type: ignore[method-assign]
    follower.start()
    follower._thread.join(10)
    assert seen == [(0, False), (1, False), (2, False), (3, True)]
    assert consumer.closed


def test_follower_goes_on_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    memory = CatalogueMemory(10)
    consumers = [Consumer({0: [(b"a", record("a"))]}), Consumer({0: [(b"a", record("a"))]})]

    def broken(count: int, timeout: float) -> list[Any]:
        msg = "bug"
        raise RuntimeError(msg)

    consumers[0].consume = broken  # type: ignore[method-assign]
    follower = CatalogueFollower(
        memory, KafkaClientOptions(), make_consumer=lambda _settings: consumers.pop(0)
    )
    follower.start()
    for _ in range(100):
        if memory.caught_up:
            break
        follower._stop.wait(0.1)
    follower.close()
    assert memory.caught_up
    assert "following the catalogue failed" in caplog.text


def test_follower_that_reads_anew_is_behind_until_it_has() -> None:
    memory = CatalogueMemory(10)
    first = Consumer({0: [(b"a", record("a", "old")), (b"a", record("a", "new"))]})
    again = Consumer(first._partitions)
    consumers, seen = [first, again], []
    original = first.consume, again.consume

    def breaks(count: int, timeout: float) -> list[Any]:
        if memory.caught_up:
            msg = "bug"
            raise RuntimeError(msg)
        return original[0](count, timeout)

    def watched(count: int, timeout: float) -> list[Any]:
        seen.append((memory.rows["a"].title, memory.caught_up))
        if memory.caught_up:
            follower._stop.set()
        return original[1](count, timeout)

    first.consume, again.consume = breaks, watched  # type: ignore[method-assign]
    follower = CatalogueFollower(
        memory, KafkaClientOptions(), make_consumer=lambda _settings: consumers.pop(0)
    )
    follower.start()
    follower._thread.join(10)
    assert seen == [("new", False), ("old", False), ("new", True)]


class TestShelf:
    def shelf(self, memory: CatalogueMemory | None = None) -> None:
        self.now = 0.0
        self.store = InMemoryRecommendationStore()
        self.made = Shelf(self.store, memory, clock=lambda: self.now)

    def test_complete_memory_asks_nobody(self) -> None:
        memory = CatalogueMemory(10)
        memory.apply(b"a", record("a"))
        memory.caught_up = True
        self.shelf(memory)
        self.store.failure = StoreUnavailable("cassandra", "gone")
        assert self.made.products(["a", "absent"]).keys() == {"a"}

    def test_what_memory_does_not_have_is_read_for_a_moment(self) -> None:
        memory = CatalogueMemory(10)
        memory.apply(b"a", record("a", "an earlier title"))
        self.shelf(memory)
        self.store.save_product(None, product("a"))
        self.store.save_product(None, product("b"))
        # The topic may have more of it, which is not read yet.
        assert self.made.products(["a"])["a"].title == "The a"
        memory = CatalogueMemory(1)
        memory.apply(b"a", record("a"))
        memory.apply(b"b", record("b"))
        memory.caught_up = True
        self.shelf(memory)
        self.store.save_product(None, product("b"))
        for _ in range(3):
            assert self.made.products(["a", "b", "absent"]).keys() == {"a", "b"}
        assert self.store.reads == 1
        self.store.save_product(product("b"), None)
        self.now = PRODUCT_SECONDS + 0.1
        assert self.made.products(["b", "absent"]) == {}
        assert self.store.reads == 2

    def test_change_in_the_topic_wins_over_what_was_read(self) -> None:
        memory = CatalogueMemory(10)
        self.shelf(memory)
        self.store.save_product(None, product("a"))
        assert self.made.products(["a"])["a"].title == "The a"
        memory.apply(b"a", record("a", "new"))
        memory.caught_up = True
        assert self.made.products(["a"])["a"].title == "new"

    def test_store_that_is_away_leaves_what_was_known(self) -> None:
        self.shelf()
        self.store.save_product(None, product("a"))
        self.store.save_trending("all", TrendingList((("a", 1.0),), NOW))
        self.made.products(["a"])
        self.made.trending("all")
        self.now = 1e6
        self.store.failure = StoreUnavailable("cassandra", "gone")
        assert self.made.products(["a", "b"]).keys() == {"a"}
        assert self.made.trending("all") == TrendingList((("a", 1.0),), NOW)
        with pytest.raises(StoreUnavailable):
            self.made.products(["b"])
        with pytest.raises(StoreUnavailable):
            self.made.trending("other")

    def test_store_that_is_away_leaves_what_was_read_of_the_topic(self) -> None:
        memory = CatalogueMemory(10)
        memory.apply(b"a", record("a"))
        self.shelf(memory)
        self.store.failure = StoreUnavailable("cassandra", "gone")
        assert self.made.products(["a", "b"]).keys() == {"a"}

    def test_trending_is_read_again_after_its_time(self) -> None:
        self.shelf()
        for at, reads in ((0.0, 1), (1.0, 1), (TRENDING_SECONDS + 0.1, 2)):
            self.now = at
            assert self.made.trending("all") is None
            assert self.store.reads == reads

    def test_more_products_than_one_call_may_read(self) -> None:
        self.shelf()
        self.store.save_product(None, product("p450"))
        assert self.made.products([f"p{n}" for n in range(500)]).keys() == {"p450"}
        assert self.store.reads == 3


def switch(space: str) -> bytes:
    return encode(SpaceSwitch(VERSION, space, NOW))


@pytest.mark.parametrize("read", [True, False])
def test_a_space_is_searched_when_it_is_announced(read: bool) -> None:
    memory = CatalogueMemory(10)
    memory.caught_up = read
    vectors = {"p0": [1.0, 0.0], "p1": [0.8, 0.6], "p2": [0.0, 1.0]}
    before: dict[str, dict[str, str]] = {}

    def publish(space: str) -> None:
        for product_id, vector in vectors.items():
            made = decode_record(product_id, doubles.record(product_id, vector, space=space))
            spaces = {**before.get(product_id, {}), **made.vectors}
            before[product_id] = made.vectors
            made = msgspec.structs.replace(made, vectors=spaces)
            memory.apply(product_id.encode(), encode(made))

    def nearest() -> list[str]:
        return nearest_to(memory, "p0")[:1]

    publish("old")
    vectors["p2"] = vectors["p0"]
    publish("new")
    assert nearest() == (["p1"] if read else [])
    memory.apply(SPACE_KEY.encode(), switch("new"))
    memory.caught_up = True
    assert nearest() == ["p2"]


def test_what_is_read_at_first_is_searched_in_the_space_that_most_hold() -> None:
    memory = CatalogueMemory(10)
    memory.apply(b"text", doubles.record("text", [1.0, 0.0, 0.0], space="text"))
    for name in ("a", "b"):
        memory.apply(name.encode(), record(name))
    memory.caught_up = True
    assert nearest_to(memory, "a") == ["b"]
    assert nearest_to(memory, "text") == []
    assert memory.rows.keys() == {"text", "a", "b"}
