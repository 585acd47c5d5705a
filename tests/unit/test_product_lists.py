"""The lists by product: each product has its own, only changes are saved, and time is kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.unit.builders import FloatMatrix, unit_vectors
from udfs import product_lists
from udfs.index import Slots, SlotTable
from udfs.product_lists import BATCH, REFRESH_PER_SECOND, ProductLists
from udfs.schemas import SavedProductList

LENGTH = 4
NOW_US = 1_732_300_000_000_000
VECTORS = unit_vectors(200, 8, seed=5)
Lists = tuple[list[tuple[str, float]], list[tuple[str, float]]]


class Facts:
    def __init__(self, slots: SlotTable) -> None:
        self.rows: dict[str, dict[str, float]] = {}
        self._slots = slots

    def related(self, slots: NDArray[np.intp]) -> tuple[Slots, FloatMatrix]:
        width = max((len(row) for row in self.rows.values()), default=0) + 1
        related = np.full((len(slots), width), -1, dtype=np.int32)
        weights = np.zeros((len(slots), width), dtype=np.float32)
        for at, slot in enumerate(slots.tolist()):
            row = self.rows.get(self._slots.product_id(slot), {}) if slot >= 0 else {}
            for place, (other, weight) in enumerate(row.items()):
                related[at, place] = self._slots.get(other)
                weights[at, place] = weight
        return related, weights


class Shop:
    """A catalogue of plain dictionaries; ``searches``: how many vectors were looked up at once."""

    def __init__(self) -> None:
        self.slots = SlotTable()
        self.facts = Facts(self.slots)
        self.space: str | None = "s"
        self.vectors: dict[str, FloatMatrix | None] = {}
        self.sold_out: set[str] = set()
        self.searches: list[int] = []

    def put(self, product_id: str, vector: int | None = None, *, in_stock: bool = True) -> None:
        self.slots.add(product_id)
        self.vectors[product_id] = None if vector is None else VECTORS[vector]
        (self.sold_out.discard if in_stock else self.sold_out.add)(product_id)

    def relate(self, product_id: str, **related: float) -> None:
        for name in (product_id, *related):
            self.slots.add(name)
        self.facts.rows[product_id] = related

    def remove(self, product_id: str) -> None:
        self.vectors.pop(product_id, None)
        self.sold_out.discard(product_id)

    def renumber(self) -> None:
        named = {*self.vectors, *self.facts.rows}.union(*self.facts.rows.values())
        ids = [self.slots.product_id(slot) for slot in range(len(self.slots))]
        self.slots.keep(np.array([one in named for one in ids], dtype=bool))

    def knows(self, product_id: str) -> bool:
        return product_id in self.vectors

    def product_vector(self, product_id: str) -> FloatMatrix | None:
        return self.vectors.get(product_id)

    def search_slots(self, queries: FloatMatrix, k: int) -> tuple[NDArray[np.intp], FloatMatrix]:
        self.searches.append(len(queries))
        found = np.full((len(queries), k), -1, dtype=np.intp)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        for at, query in enumerate(queries):
            for place, (name, cosine) in enumerate(self.near(query)[:k]):
                found[at, place], scores[at, place] = self.slots.get(name), cosine
        return found, scores

    def near(self, query: FloatMatrix) -> list[tuple[str, float]]:
        cosines = [
            (name, round(float(query @ vector), 3))
            for name, vector in self.vectors.items()
            if vector is not None and name not in self.sold_out
        ]
        return sorted(cosines, key=lambda one: (-one[1], one[0]))

    def expected(self, product_id: str) -> Lists:
        """The lists of a product, said once more and without batches."""
        if product_id not in self.vectors:
            return [], []
        together = [
            (other, weight)
            for other, weight in self.facts.rows.get(product_id, {}).items()
            if weight > 0 and other in self.vectors and other != product_id
        ]
        together.sort(key=lambda one: (-one[1], one[0]))
        del together[LENGTH:]
        vector = self.vectors[product_id]
        names = {product_id, *dict(together)}
        near = [] if vector is None else [one for one in self.near(vector) if one[0] not in names]
        return [*((one, 1 + weight) for one, weight in together), *near][:LENGTH], together


class Clock:
    """Time that only passes where it is told to, or ``step`` seconds with each look."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 100.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Table:
    """What Cassandra would hold; a deletion takes the row."""

    def __init__(self) -> None:
        self.rows: dict[str, SavedProductList] = {}
        self.times: dict[str, int] = {}

    def take(self, saved: Iterable[SavedProductList]) -> None:
        for row in saved:
            # The newest wins, and of the same time a deletion.
            assert row.generated_us > self.times.get(row.product_id, 0)
            self.times[row.product_id] = row.generated_us
            self.rows.pop(row.product_id, None)
            if row.similar or row.bought_together:
                self.rows[row.product_id] = row

    def check(self, shop: Shop) -> None:
        expected = {name: shop.expected(name) for name in shop.vectors}
        assert self.rows.keys() == {name for name, lists in expected.items() if any(lists)}
        for name, row in self.rows.items():
            similar, together = expected[name]
            assert row.bought_together == together
            assert [one for one, _ in row.similar] == [one for one, _ in similar]
            scores = [score for _, score in row.similar]
            assert scores == pytest.approx([score for _, score in similar], abs=0.0006)
            assert scores == sorted(scores, reverse=True)


def lists(clock: Clock | None = None, subtask: int = 0, parallelism: int = 1) -> ProductLists:
    return ProductLists(subtask, parallelism, LENGTH, clock=clock or Clock())


def drain(made: ProductLists, shop: Shop, clock: Clock | None = None) -> list[SavedProductList]:
    """Work until there is rest."""
    rows: list[SavedProductList] = []
    for _ in range(1000):
        rows += made.work(shop, 1.0, NOW_US)
        if not made.pending:
            if clock is None:
                return rows
            clock.now += 3600
            if not made.pending:
                return rows
    pytest.fail("there is no end")


def shop_of(count: int) -> Shop:
    shop = Shop()
    for at in range(count):
        shop.put(f"p{at}", at)
    return shop


@given(
    st.lists(
        st.tuples(
            st.none() | st.integers(0, 199),
            st.booleans(),
            st.dictionaries(
                st.integers(0, 45), st.sampled_from([-1.0, 0.0, 0.25, 0.5, 2.0]), max_size=7
            ),
        ),
        max_size=40,
    ),
    st.integers(1, 4),
)
@settings(max_examples=50, deadline=None)
def test_sweep_gives_every_product_its_row_from_one_subtask(
    products: list[tuple[int | None, bool, dict[int, float]]], parallelism: int
) -> None:
    shop = Shop()
    for at, (_, _, related) in enumerate(products):
        shop.relate(f"p{at}", **{f"p{other}": weight for other, weight in related.items()})
    used: set[int] = set()
    for at, (vector, in_stock, _) in enumerate(products):
        # Each vector once: which of two of the same cosine is the last of a list is anybody's.
        shop.put(f"p{at}", vector if vector not in used else None, in_stock=in_stock)
        used |= {vector} - {None} if vector is not None else set()
    table = Table()
    for subtask in range(parallelism):
        made = lists(subtask=subtask, parallelism=parallelism)
        made.start(shop)
        assert made.pending or not len(shop.slots)
        rows = drain(made, shop)
        assert all(crc32(row.product_id.encode()) % parallelism == subtask for row in rows)
        assert {row.product_id for row in rows}.isdisjoint(table.times)
        table.take(rows)
    assert table.times.keys() == shop.vectors.keys()
    table.check(shop)


class TestSimilar:
    def test_learned_come_first_and_the_nearest_fill_up(self) -> None:
        shop = shop_of(9)
        shop.relate("p0", p0=9.0, p5=0.5, p6=1.5, p7=-1.0, unknown=3.0)
        made = lists()
        made.changed("p0")
        row = made.work(shop, 1.0, NOW_US)[0]
        assert row.bought_together == [("p6", 1.5), ("p5", 0.5)]
        assert row.similar[:2] == [("p6", 2.5), ("p5", 1.5)]
        near = [name for name, _ in shop.near(VECTORS[0]) if name not in {"p0", "p5", "p6"}]
        assert [name for name, _ in row.similar[2:]] == near[:2]

    def test_nothing_is_looked_up_where_enough_is_learned(self) -> None:
        shop = shop_of(9)
        shop.relate("p0", p5=0.5, p6=1.5, p7=1.0, p8=0.1)
        made = lists(Clock(step=1.0))
        made.changed("p0")
        assert [row.product_id for row in made.work(shop, 0.5, NOW_US)] == ["p0"]
        assert shop.searches == []

    def test_many_are_looked_up_at_once(self) -> None:
        shop = shop_of(130)
        made = lists()
        drain(made, shop)
        assert shop.searches == [BATCH, BATCH, 2]

    def test_product_out_of_stock_has_a_list_and_is_near_to_nobody(self) -> None:
        shop = shop_of(4)
        shop.put("p1", 1, in_stock=False)
        table = Table()
        table.take(drain(lists(), shop))
        assert table.rows.keys() == {"p0", "p1", "p2", "p3"}
        named = {name for row in table.rows.values() for name, _ in row.similar}
        assert named == {"p0", "p2", "p3"}

    def test_length_must_be_positive(self) -> None:
        with pytest.raises(ValueError, match="length"):
            ProductLists(0, 1, 0)


class TestChanges:
    def test_only_what_differs_is_saved(self) -> None:
        clock = Clock()
        shop, made = shop_of(50), lists(clock)
        assert len(drain(made, shop, clock)) == 50
        made.start(shop)
        assert drain(made, shop, clock) == []
        shop.relate("p7", p8=1.0)
        made.changed("p7")
        assert [row.product_id for row in drain(made, shop, clock)] == ["p7"]

    def test_changed_goes_before_the_sweep(self) -> None:
        shop, made = shop_of(200), lists(Clock(step=1.0))
        made.start(shop)
        made.changed("p199")
        assert [row.product_id for row in made.work(shop, 0.5, NOW_US)] == ["p199"]

    def test_change_of_another_share_is_looked_at_by_its_subtask_alone(self) -> None:
        shop = shop_of(20)
        made = [lists(subtask=subtask, parallelism=2) for subtask in (0, 1)]
        for one in made:
            drain(one, shop)
        shop.relate("p3", p4=1.0)
        rows = []
        for one in made:
            one.changed("p3")
            rows.append([row.product_id for row in drain(one, shop, Clock())])
        assert sorted(rows) == [[], ["p3"]]

    def test_others_learn_of_a_new_product_in_a_round(self) -> None:
        clock = Clock()
        shop, made, table = shop_of(100), lists(clock), Table()
        table.take(drain(made, shop, clock))
        shop.put("new", 150)
        made.changed("new")
        table.take(made.work(shop, 1.0, NOW_US))
        assert "new" in table.rows
        # The first part of the round is looked at already; the others wait for their time.
        assert made.work(shop, 1.0, NOW_US) == []
        clock.now += BATCH / REFRESH_PER_SECOND
        table.take(made.work(shop, 1.0, NOW_US))
        table.check(shop)
        assert any(name == "new" for row in table.rows.values() for name, _ in row.similar)
        clock.now += 3600
        assert not made.pending

    def test_it_says_how_long_it_waits(self) -> None:
        clock = Clock()
        shop, made = shop_of(100), lists(clock)
        waits = [made.wait_s]
        made.start(shop)
        waits.append(made.wait_s)
        drain(made, shop)
        made.changed("p0")
        waits.append(made.wait_s)
        made.work(shop, 1.0, NOW_US)
        for seconds in (0, 1, 3600):
            clock.now += seconds
            waits.append(made.wait_s)
        drain(made, shop, clock)
        round_s = BATCH / REFRESH_PER_SECOND
        assert [*waits, made.wait_s] == [
            *(None, 0.0, 0.0),
            *(pytest.approx(round_s), pytest.approx(round_s - 1), 0.0),
            None,
        ]

    def test_change_during_a_round_makes_another(self) -> None:
        clock = Clock()
        shop, made, table = shop_of(100), lists(clock), Table()
        table.take(drain(made, shop, clock))
        made.changed("p0")
        table.take(made.work(shop, 1.0, NOW_US))
        shop.put("new", 150)
        made.changed("new")
        table.take(drain(made, shop, clock))
        table.check(shop)

    def test_more_changes_than_are_remembered_are_found_by_a_sweep(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(product_lists, "MOST_WAITING", 5)
        shop, made, table = shop_of(100), lists(), Table()
        table.take(drain(made, shop))
        for at in range(100):
            shop.put(f"p{at}", 199 - at)
            made.changed(f"p{at}")
        table.take(drain(made, shop))
        table.check(shop)

    def test_more_changes_than_are_remembered_during_a_sweep(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(product_lists, "MOST_WAITING", 5)
        clock = Clock(step=1.0)
        shop, made, table = shop_of(200), lists(clock), Table()
        made.start(shop)
        table.take(made.work(shop, 0.5, NOW_US))
        for at in range(100):
            shop.put(f"p{at}", 199 - at)
            made.changed(f"p{at}")
        clock.step = 0.0
        table.take(drain(made, shop))
        table.check(shop)

    def test_other_space_is_swept(self) -> None:
        shop, made, table = shop_of(100), lists(), Table()
        table.take(drain(made, shop))
        for at in range(100):
            shop.put(f"p{at}", 199 - at)
        shop.space = "t"
        table.take(made.work(shop, 1.0, NOW_US))
        table.check(shop)


class TestRemoval:
    def test_row_is_deleted_and_others_forget_the_product(self) -> None:
        clock = Clock()
        shop, made, table = shop_of(20), lists(clock), Table()
        shop.relate("p0", p3=1.0)
        table.take(drain(made, shop, clock))
        shop.remove("p3")
        made.removed("p3")
        table.take(made.work(shop, 1.0, NOW_US))
        assert "p3" not in table.rows
        table.take(drain(made, shop, clock))
        table.check(shop)

    def test_row_of_an_earlier_process_is_deleted(self) -> None:
        shop, made = shop_of(3), lists()
        drain(made, shop)
        made.removed("never seen")
        assert drain(made, shop) == [SavedProductList("never seen", [], [], NOW_US + 2)]

    def test_product_that_lost_its_lists_has_no_row(self) -> None:
        shop, made, table = shop_of(3), lists(), Table()
        table.take(drain(made, shop))
        shop.put("p1", None)
        made.changed("p1")
        table.take(drain(made, shop, Clock()))
        assert table.rows.keys() == {"p0", "p2"}

    def test_product_that_comes_back_has_its_row_again(self) -> None:
        shop, made, table = shop_of(3), lists(), Table()
        table.take(drain(made, shop))
        shop.remove("p1")
        made.removed("p1")
        shop.put("p1", 1)
        made.changed("p1")
        table.take(drain(made, shop))
        table.check(shop)

    def test_removal_that_nobody_told_of_is_found_by_a_sweep(self) -> None:
        shop, made, table = shop_of(20), lists(), Table()
        table.take(drain(made, shop))
        shop.remove("p3")
        made.start(shop)
        table.take(drain(made, shop))
        table.check(shop)

    def test_removals_of_a_whole_catalogue_come_in_parts(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(product_lists, "MOST_ROWS", 100)
        shop, made, table = shop_of(200), lists(), Table()
        table.take(drain(made, shop))
        for at in range(200):
            shop.remove(f"p{at}")
            made.removed(f"p{at}")
        rows = made.work(shop, 1.0, NOW_US)
        assert 100 <= len(rows) < 200
        table.take([*rows, *drain(made, shop)])
        assert table.rows == {}


class TestBudget:
    def test_time_ends_the_work_and_later_calls_finish_it(self) -> None:
        clock = Clock(step=0.4)
        shop, made, table = shop_of(200), lists(clock), Table()
        made.start(shop)
        calls = 0
        while made.pending:
            rows = made.work(shop, 1.0, NOW_US)
            assert len(rows) <= 3 * BATCH
            table.take(rows)
            calls += 1
        assert calls > 1
        table.check(shop)

    def test_lookup_that_takes_longer_than_the_budget_is_made_smaller(self) -> None:
        shop, made = shop_of(200), lists(Clock(step=1.0))
        made.start(shop)
        for _ in range(8):
            made.work(shop, 0.01, NOW_US)
        assert shop.searches == [64, 32, 16, 8, 4, 2, 1, 1]

    def test_lookup_is_made_larger_again_where_there_is_time(self) -> None:
        clock = Clock(step=1.0)
        shop, made = shop_of(200), lists(clock)
        made.start(shop)
        for _ in range(3):
            made.work(shop, 0.01, NOW_US)
        clock.step = 0.0
        drain(made, shop)
        assert shop.searches == [64, 32, 16, 8, 16, 32, 32]

    def test_nothing_to_do_takes_no_time(self) -> None:
        made = lists()
        assert not made.pending
        shop = Shop()
        shop.space = None
        assert made.work(shop, 1.0, NOW_US) == []


class TestRenumbering:
    @pytest.mark.parametrize("after", [0, 1, 3])
    def test_nothing_is_lost_or_saved_again(self, after: int) -> None:
        clock = Clock(step=1.0)
        shop, made, table = shop_of(200), lists(clock), Table()
        made.start(shop)
        for _ in range(after):
            table.take(made.work(shop, 0.5, NOW_US))
        for at in range(0, 200, 3):
            shop.remove(f"p{at}")
        shop.renumber()
        assert len(shop.slots) == len(shop.vectors) == 133
        for at in range(0, 200, 3):
            made.removed(f"p{at}")
        clock.step = 0.0
        table.take(drain(made, shop, clock))
        table.check(shop)
        made.start(shop)
        assert drain(made, shop, clock) == []

    def test_other_numbering_is_another_catalogue(self) -> None:
        made, table = lists(), Table()
        table.take(drain(made, shop_of(20)))
        other = shop_of(30)
        table.take(drain(made, other))
        table.check(other)


names = st.integers(0, 14).map("p{}".format)
operations = st.one_of(
    st.tuples(st.just("put"), names, st.none() | st.just(0), st.booleans()),
    st.tuples(
        st.just("relate"), names, st.dictionaries(names, st.sampled_from([0.5, 1.0]), max_size=3)
    ),
    st.tuples(st.just("remove"), names),
    st.tuples(st.just("renumber")),
    st.tuples(st.just("work"), st.sampled_from([0.0, 5.0])),
)


@given(st.lists(operations, max_size=40))
@settings(max_examples=150, deadline=None)
def test_table_ends_as_the_catalogue_says_whatever_happened(steps: list[tuple[Any, ...]]) -> None:
    clock = Clock(step=0.01)
    shop, made, table = shop_of(6), lists(clock), Table()
    made.start(shop)
    for step in steps:
        match step:
            case ("put", name, vector, in_stock):
                # A vector of its own, another one each time it is put in stock again.
                number = int(name[1:]) + (15 if in_stock else 0)
                shop.put(name, None if vector is None else number, in_stock=in_stock)
                made.changed(name)
            case ("relate", name, related):
                shop.relate(name, **related)
                made.changed(name)
            case ("remove", name):
                shop.remove(name)
                made.removed(name)
            case ("renumber",):
                shop.renumber()
            case ("work", seconds):
                clock.now += seconds
                table.take(made.work(shop, 0.005, NOW_US))
    clock.step = 0.0
    table.take(drain(made, shop, clock))
    table.check(shop)
