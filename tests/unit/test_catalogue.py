"""The catalogue: stock, spaces that never mix, a bulk load that equals changes one by one."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.unit.builders import (
    FloatMatrix,
    assert_same_list,
    record,
    related_row,
    unit_vectors,
)
from udfs import catalogue as catalogue_module
from udfs import inverted
from udfs.catalogue import Catalogue
from udfs.inverted import InvertedIndex
from udfs.product_record import ProductRecord, RelatedRow, SpaceSwitch
from udfs.schemas import Reason, RejectedError, encode_vector

DIMENSIONS = {"a": 4, "b": 6, "c": 3}
VECTORS = {space: unit_vectors(12, length, seed=length) for space, length in DIMENSIONS.items()}
NAMES = [f"p{at}" for at in range(12)]


def of(number: int, *spaces: str, vector: int = -1, **fields: Any) -> ProductRecord:
    """A product with its number's vector, or another, in each of the spaces."""
    chosen = vector if vector >= 0 else number
    return record(f"p{number}", vectors={one: VECTORS[one][chosen] for one in spaces}, **fields)


def found(catalogue: Catalogue, k: int = 20, seed: int = 5) -> dict[str, float]:
    """What a search of the active space finds, with the scores."""
    if catalogue.space is None:
        return {}
    queries = unit_vectors(1, DIMENSIONS[catalogue.space], seed)
    ids, scores = catalogue.search(queries, k)[0]
    return {one: round(float(score), 5) for one, score in zip(ids, scores, strict=True)}


def with_products(*records: ProductRecord, **options: Any) -> Catalogue:
    made = Catalogue(**options)
    for one in records:
        made.put(one)
    return made


def answers(catalogue: Catalogue) -> dict[str, Any]:
    """All that a lookup can see, by names and not by slots, which come in any order."""
    slots = np.array(catalogue.slots.find(NAMES), dtype=np.intp)
    related, weights = catalogue.facts.related(slots)
    name = catalogue.slots.product_id
    categories = catalogue.facts.categories(slots).tolist()
    words, shares = catalogue.matches("mug", 12)
    return {
        "size": (len(catalogue), catalogue.searchable, catalogue.space, catalogue.dimensions),
        "known": [catalogue.knows(one) for one in NAMES],
        "found": found(catalogue),
        "vectors": catalogue.vectors(slots).tolist(),
        "related": [
            {name(slot): weight for slot, weight in zip(*row, strict=True) if slot >= 0}
            for row in zip(related.tolist(), weights.tolist(), strict=True)
        ],
        "repeats": catalogue.facts.repeats(slots).tolist(),
        "rebuys": [column.tolist() for column in catalogue.facts.rebuys(slots)],
        "categories": [[a == b for b in categories] for a in categories],
        "newcomers": sorted(map(name, catalogue.newcomers(4500, 12).tolist())),
        "matches": {
            name(s): round(share, 5)
            for s, share in zip(words.tolist(), shares.tolist(), strict=True)
        },
    }


def test_an_inserted_product_is_found_at_once() -> None:
    catalogue = with_products(of(1, "a"), of(2, "a"))
    assert set(found(catalogue)) == {"p1", "p2"}
    assert (len(catalogue), catalogue.searchable) == (2, 2)
    assert (catalogue.space, catalogue.dimensions) == ("a", 4)
    assert catalogue.knows("p1")
    assert not catalogue.knows("p3")


def test_an_update_replaces_the_vector() -> None:
    catalogue = with_products(of(1, "a"), of(1, "a", vector=7))
    vector = catalogue.product_vector("p1")
    assert vector is not None
    np.testing.assert_array_equal(vector, VECTORS["a"][7])
    ids, scores = catalogue.search(VECTORS["a"][7:8], 5)[0]
    assert ids == ["p1"]
    assert scores[0] == pytest.approx(1, abs=1e-3)


def test_out_of_stock_is_not_found_but_still_moves_users() -> None:
    catalogue = with_products(of(1, "a"), of(2, "a"), of(1, "a", in_stock=False))
    assert set(found(catalogue)) == {"p2"}
    assert (len(catalogue), catalogue.searchable) == (2, 1)
    assert catalogue.product_vector("p1") is not None
    np.testing.assert_array_equal(catalogue.vectors(np.array([0, 1])), VECTORS["a"][1:3])
    catalogue.put(of(1, "a"))
    assert set(found(catalogue)) == {"p1", "p2"}


def test_an_only_product_out_of_stock_leaves_nothing_to_find() -> None:
    catalogue = with_products(of(1, "a", in_stock=False))
    assert found(catalogue) == {}
    assert catalogue.dimensions == 4


def test_a_removed_product_is_gone_and_removing_again_is_no_error() -> None:
    catalogue = with_products(of(1, "a"), of(2, "a"))
    for name in ("p1", "p1", "p9"):
        catalogue.remove(name)
    assert set(found(catalogue)) == {"p2"}
    assert catalogue.product_vector("p1") is None
    assert not catalogue.knows("p1")
    assert len(catalogue) == 1


def test_a_product_without_a_vector_is_known_and_found_once_it_has_one() -> None:
    catalogue = with_products(of(1))
    assert (len(catalogue), catalogue.space, catalogue.dimensions) == (1, None, 0)
    assert catalogue.vectors(np.array([0])).shape == (1, 0)
    catalogue.put(of(2, "a"))
    assert found(catalogue).keys() == {"p2"}
    catalogue.put(of(1, "a"))
    assert found(catalogue).keys() == {"p1", "p2"}
    catalogue.put(of(1))  # the shop took it back
    assert found(catalogue).keys() == {"p2"}


@pytest.mark.parametrize("space", ["a", "b"])
def test_a_vector_of_another_length_than_its_space_is_left_out_and_the_rest_is_taken(
    space: str,
) -> None:
    catalogue = with_products(of(0, "a", "b", title="Mug"), of(1, "a"), of(2, "a", "b"))
    wrong, other = unit_vectors(1, 5)[0], "ab".replace(space, "")
    changes: dict[str, Any] = {"title": "red mug", "category": "X"}
    for number, in_stock in ((0, False), (9, True)):
        vectors = {space: wrong, other: VECTORS[other][number]}
        change = record(f"p{number}", vectors=vectors, in_stock=in_stock, **changes)
        left_out = catalogue.put(change)
        assert left_out is not None
        assert left_out.reason is Reason.WRONG_LENGTH
        assert left_out.detail == f"5 dimensions in a space of {DIMENSIONS[space]}: {space}"
    expected = with_products(
        of(1, "a"),
        of(2, "a", "b"),
        of(0, other, in_stock=False, **changes),
        of(9, other, **changes),
    )
    assert answers(catalogue) == answers(expected)


@pytest.mark.parametrize("bad_at", [0, 1, 2])
@pytest.mark.parametrize("at_once", [3, 100])
def test_in_a_bulk_load_most_of_the_first_products_decide_the_length_of_their_space(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, at_once: int, bad_at: int
) -> None:
    monkeypatch.setattr(catalogue_module, "_AT_ONCE", at_once)
    records = [of(at, "a") for at in range(6)]
    records.insert(bad_at, record("bad", unit_vectors(1, 5)[0], "a", title="Mug"))
    records.append(record("worse", unit_vectors(1, 5)[0], "a"))
    loaded = Catalogue()
    assert loaded.load(records, [], None) == 2
    assert (len(loaded), loaded.searchable, loaded.dimensions) == (8, 6, 4)
    # It is known, and found by its words.
    assert loaded.slots.product_id(loaded.matches("mug", 1)[0][0]) == "bad"
    assert [one.getMessage() for one in caplog.records] == [
        "product bad is left out or lacks a vector: wrong_length: 5 dimensions in a space of 4: a"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "AAA",
        base64.b64encode(b"123").decode(),
        *(
            encode_vector(np.array([one, 4, 0, 0], dtype=np.float32))
            for one in (np.nan, np.inf, 3.0)
        ),
        encode_vector(np.zeros(4, dtype=np.float32)),
        "",
    ],
)
def test_what_is_no_unit_vector_is_refused_whichever_way_it_comes(text: str) -> None:
    broken = replace(of(9, "a"), vectors={"a": text})
    catalogue = with_products(of(1, "a"))
    with pytest.raises(RejectedError) as caught:
        catalogue.put(broken)
    assert caught.value.reason is Reason.INVALID_VECTOR
    loaded = Catalogue()
    assert loaded.load([of(1, "a"), broken], [], None) == 1
    assert answers(loaded) == answers(catalogue)


def test_the_required_length_holds_for_the_first_product_of_any_space() -> None:
    catalogue = Catalogue(dimensions=4)
    assert "4" in str(catalogue.put(of(1, "b")))
    assert (len(catalogue), catalogue.space) == (1, None)
    catalogue.put(of(1, "a"))
    assert catalogue.searchable == 1


@pytest.mark.parametrize(
    ("space", "length", "taken"), [("text", 6, True), ("text", 5, False), ("text+", 5, True)]
)
def test_the_space_of_texts_has_their_length_from_its_first_product_on(
    space: str, length: int, *, taken: bool
) -> None:
    query = unit_vectors(1, 6)[0]
    catalogue = Catalogue(encoder=lambda _: query, encoder_space="text", encoder_dimensions=6)
    one = record("p1", unit_vectors(1, length)[0], space)
    assert (catalogue.put(one) is None) == taken
    assert catalogue.space == (space if taken else None)
    assert (catalogue.query_vector("mug") is not None) == (taken and space == "text")


def announced(space: str, started_ms: int = 1, *, force: bool = False) -> SpaceSwitch:
    return SpaceSwitch(1, space, started_ms, force)


def test_a_space_without_an_announcement_never_takes_over() -> None:
    catalogue = with_products(*(of(at, "a") for at in range(4)))
    for at in range(4):
        catalogue.put(of(at, "a", "b"))
    assert catalogue.space == "a"
    assert set(found(catalogue)) == {"p0", "p1", "p2", "p3"}


@pytest.mark.parametrize("is_first", [True, False])
def test_an_announced_space_takes_over_in_one_step_once_enough_products_have_it(
    *, is_first: bool
) -> None:
    catalogue = with_products(*(of(at, "a") for at in range(4)), switch_share=0.75)
    if is_first:
        catalogue.switch(announced("b"))
    catalogue.put(of(0, "a", "b"))
    catalogue.put(of(1, "a", "b"))
    if not is_first:
        catalogue.switch(announced("b"))
    # Staged: still the old space, whole.
    assert set(found(catalogue)) == {"p0", "p1", "p2", "p3"}
    catalogue.put(of(2, "a", "b", in_stock=False))
    assert (catalogue.space, catalogue.dimensions) == ("b", 6)
    assert set(found(catalogue)) == {"p0", "p1"}
    # A switch deletes nothing: what has no vector of the new space waits for one.
    assert len(catalogue) == 4
    assert catalogue.knows("p3")
    assert catalogue.product_vector("p3") is None
    catalogue.put(of(3, "b"))
    assert set(found(catalogue)) == {"p0", "p1", "p3"}


def test_removing_what_the_announced_space_lacks_can_complete_the_switch() -> None:
    catalogue = with_products(of(0, "a", "b"), of(1, "a"), switch_share=1.0)
    catalogue.switch(announced("b"))
    assert catalogue.space == "a"
    catalogue.remove("p1")
    assert found(catalogue).keys() == {"p0"}
    assert catalogue.space == "b"


def test_force_needs_one_product_and_an_empty_space_never_takes_over() -> None:
    catalogue = with_products(*(of(at, "a") for at in range(9)))
    catalogue.switch(announced("b", force=True))
    assert catalogue.space == "a"
    catalogue.put(of(0, "b"))
    assert (catalogue.space, len(catalogue)) == ("b", 9)


def test_of_two_announcements_the_one_that_started_later_holds() -> None:
    catalogue = with_products(of(0, "a", "b"))
    catalogue.switch(announced("c", 2))
    catalogue.switch(announced("b", 1))
    assert catalogue.space == "a"
    catalogue.put(of(0, "a", "c"))
    assert catalogue.space == "c"


def test_an_emptied_space_gives_way_and_takes_any_length_again() -> None:
    catalogue = with_products(of(1, "a"))
    catalogue.remove("p1")
    assert (catalogue.space, catalogue.dimensions, catalogue.searchable) == (None, 0, 0)
    assert found(catalogue) == {}
    # Under its old name, but longer.
    catalogue.put(record("p1", VECTORS["b"][0], "a"))
    assert (catalogue.space, catalogue.dimensions) == ("a", 6)
    assert catalogue.search(VECTORS["b"][:1], 3)[0][0] == ["p1"]


def test_few_spaces_are_kept_whatever_products_have() -> None:
    catalogue = with_products(of(0, "a"), of(1, "a", "b"), of(2, "a", "b"))
    catalogue.switch(announced("never"))
    for at in range(20):
        catalogue.put(record("p3", unit_vectors(1, 5)[0], f"stray{at}"))
        catalogue.put(record(f"q{at}", unit_vectors(1, 5)[0], f"stray{at}"))
        assert len(catalogue._vectors) <= 4
    assert {"a", "b", "stray19"} <= catalogue._vectors.keys()


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_few_spaces_are_kept_of_many_in_a_bulk_load(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(catalogue_module, "_AT_ONCE", at_once)
    records = [record(f"p{at}", VECTORS["a"][at], f"stray{at % 5}") for at in range(5)]
    # Under the name of a space that may have had to go, but longer.
    records += [record(f"p{at}", VECTORS["b"][at], "stray0") for at in range(5, 9)]
    catalogue = Catalogue()
    catalogue.load(records, [], None)
    assert len(catalogue) == 9
    assert len(catalogue._vectors) <= 4


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_a_bulk_load_without_an_announcement_keeps_the_space_that_products_had_first(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(catalogue_module, "_AT_ONCE", at_once)
    live = Catalogue()
    # "a" is first by name; nobody has announced it. One product is told again and again.
    records = [
        *(of(at, "b") for at in range(3)),
        *(of(at, "b", "a") for at in range(3)),
        *(of(5, "a") for _ in range(9)),
    ]
    for one in records:
        live.put(one)
    loaded = Catalogue()
    loaded.load(records, [], None)
    assert live.space == loaded.space == "b"
    assert answers(loaded) == answers(live)


def test_what_is_learned_comes_and_goes_by_itself() -> None:
    catalogue = Catalogue()
    catalogue.put_related(related_row("p1", related={"p2": 0.5, "p1": 0.25}))
    catalogue.put(of(2, "a"))
    catalogue.put(of(1, "a"))
    catalogue.remove("p1")
    slots = np.array(catalogue.slots.find(["p1"]))
    related, weights = catalogue.facts.related(slots)
    assert catalogue.slots.names(related[:, :1]) == [["p2"]]
    assert (weights[0, 0], catalogue.facts.repeats(slots)[0]) == (0.5, 0.25)
    catalogue.remove_related("p1")
    catalogue.remove_related("unknown")
    assert not catalogue.facts.has_related(slots).any()


def test_newcomers_are_in_stock_and_few() -> None:
    catalogue = with_products(*(of(at, "a", first_seen_ms=1000) for at in range(6)))
    catalogue.put(of(6, "a", first_seen_ms=9000))
    catalogue.put(of(7, "a", first_seen_ms=8000))
    catalogue.put(of(8, "a", first_seen_ms=9500, in_stock=False))
    names = [catalogue.slots.product_id(slot) for slot in catalogue.newcomers(5000, 10)]
    assert names == ["p6", "p7"]
    assert len(catalogue.newcomers(5000, 1)) == 1
    assert len(catalogue.newcomers(0, 10)) == 0
    assert len(Catalogue().newcomers(0, 10)) == 0


@dataclass
class Log:
    """What the topics hold in the end, as changes leave it."""

    products: dict[str, ProductRecord] = field(default_factory=dict)
    related: dict[str, RelatedRow] = field(default_factory=dict)
    switch: SpaceSwitch | None = None

    def loaded(self, **options: Any) -> Catalogue:
        again = Catalogue(**options)
        assert again.load(self.products.values(), self.related.values(), self.switch) == 0
        return again


numbers = st.integers(0, 11)
products = st.builds(
    lambda number, spaces, vector, fields: of(number, *spaces, vector=vector, **fields),
    numbers,
    st.sampled_from([("a",), ("a",), ("a", "b"), ("b",), ()]),
    numbers,
    st.fixed_dictionaries(
        {
            "in_stock": st.booleans(),
            "title": st.sampled_from(["", "Mug", "red mugs"]),
            "category": st.sampled_from(["", "X", "é"]),
            "first_seen_ms": st.integers(1, 9).map(lambda second: 1000 * second),
        }
    ),
)
learned = st.builds(
    lambda number, related, days, share: related_row(
        f"p{number}", related=related, rebuy_days=days, rebuy_share=share
    ),
    numbers,
    st.dictionaries(
        st.sampled_from([*NAMES, "unknown"]), st.sampled_from([0.25, 1, -2]), max_size=9
    ),
    st.sampled_from([None, 2.5]),
    st.sampled_from([0.0, 0.5]),
)
changes = st.lists(
    products
    | products
    | learned
    | st.tuples(st.sampled_from(["remove", "remove related"]), numbers)
    | st.builds(announced, st.sampled_from("abc"), st.integers(0, 3), force=st.booleans()),
    max_size=40,
)


def apply(change: Any, catalogue: Catalogue, log: Log) -> None:
    if isinstance(change, ProductRecord):
        catalogue.put(change)
        log.products.pop(change.product_id, None)
        log.products[change.product_id] = change
    elif isinstance(change, RelatedRow):
        catalogue.put_related(change)
        log.related[change.product_id] = change
    elif isinstance(change, SpaceSwitch):
        catalogue.switch(change)
        if log.switch is None or change.started_ms >= log.switch.started_ms:
            log.switch = change
    elif change[0] == "remove":
        catalogue.remove(f"p{change[1]}")
        log.products.pop(f"p{change[1]}", None)
    else:
        catalogue.remove_related(f"p{change[1]}")
        log.related.pop(f"p{change[1]}", None)


@settings(max_examples=150, deadline=None)
@given(changes, st.sampled_from([0.3, 0.9, 1.0]), st.integers(1, 5), st.sets(st.integers(0, 39)))
def test_changes_leave_what_a_fresh_load_of_the_survivors_gives(
    rows: list[Any], share: float, at_once: int, renumbered: set[int]
) -> None:
    churned, log = Catalogue(switch_share=share), Log()
    for at, change in enumerate(rows):
        apply(change, churned, log)
        if at in renumbered:
            churned._renumber()
            kept = log.products.keys() | log.related.keys()
            kept |= {name for row in log.related.values() for name in row.related}
            assert len(churned.slots) <= len(kept)
        assert len(churned) == len(log.products)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(catalogue_module, "_AT_ONCE", at_once)
        patched.setattr(catalogue_module, "_LEARNED_AT_ONCE", at_once)
        loaded = log.loaded(switch_share=share)
    if loaded.space != churned.space:
        # Which space was there first is not in the topics; nor which was once announced.
        assert {loaded.space, churned.space} <= {"a", "b"}
        return
    assert answers(churned) == answers(loaded)


@settings(max_examples=60, deadline=None)
@given(st.lists(products, min_size=8, max_size=60), st.lists(learned, max_size=10))
def test_a_bulk_load_equals_putting_one_by_one_and_of_equal_ids_the_last_one_holds(
    records: list[ProductRecord], rows: list[RelatedRow]
) -> None:
    single = with_products(of(11, "a"))
    for one in records:
        single.put(one)
    for row in rows:
        single.put_related(row)
    single.switch(announced("a", force=True))
    loaded = Catalogue()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(catalogue_module, "_AT_ONCE", 7)
        loaded.load([of(11, "a"), *records], rows, announced("a", force=True))
    assert answers(loaded) == answers(single)


@given(changes)
def test_a_search_is_over_one_space_and_what_is_in_stock(rows: list[Any]) -> None:
    catalogue, log = Catalogue(), Log()
    query = {space: unit_vectors(1, length) for space, length in DIMENSIONS.items()}
    for change in rows:
        apply(change, catalogue, log)
        space = catalogue.space
        if space is None:
            continue
        vectors: dict[str, FloatMatrix] = {
            name: np.frombuffer(base64.b64decode(one.vectors[space]), dtype="<f4")
            for name, one in log.products.items()
            if one.in_stock and space in one.vectors
        }
        assert_same_list(catalogue.search(query[space], 5)[0], vectors, query[space][0], 5)


def test_an_announcement_in_the_middle_of_a_load_counts_and_makes_one_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []

    def index_of(slots: Any, *columns: Any) -> Any:
        made.append(len(columns[0]))
        return inverted.index_of(slots, *columns)

    monkeypatch.setattr(catalogue_module, "index_of", index_of)
    catalogue = Catalogue()

    def related() -> Iterator[RelatedRow]:
        catalogue.switch(announced("c", 1, force=True))
        catalogue.switch(announced("b", 2, force=True))
        yield related_row("p1")

    catalogue.load([of(1, "a", "c"), of(2, "a", "b")], related(), None)
    assert (catalogue.space, catalogue.searchable, made) == ("b", 1, [1])


def test_a_large_load_makes_an_approximate_index_that_goes_on_in_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inverted, "EXACT_UP_TO", 600)
    vectors = unit_vectors(1500, 8)
    catalogue = Catalogue()
    records = [record(f"p{at}", one) for at, one in enumerate(vectors)]
    catalogue.load(records, [], None)
    assert isinstance(catalogue._index, InvertedIndex)
    for at in range(1000, 1500):
        catalogue.remove(f"p{at}")
    ids, scores = catalogue.search(vectors[:1], 3)[0]
    assert ids[0] == "p0"
    assert scores[0] == pytest.approx(1, abs=0.01)
    # One by one it becomes approximate as it grows.
    grown = Catalogue()
    for one in records[:600]:
        grown.put(one)
    assert not isinstance(grown._index, InvertedIndex)
    grown.put(records[600])
    assert "Inverted" in type(grown._index).__name__
    assert grown.searchable == 601


def test_a_query_is_embedded_only_in_the_encoders_space() -> None:
    vector = VECTORS["a"][0]
    catalogue = Catalogue(encoder=lambda _: vector, encoder_space="a")
    assert catalogue.query_vector("usb") is None
    catalogue.put(of(1, "a"))
    assert catalogue.query_vector("usb") is vector
    catalogue.switch(announced("b", force=True))
    catalogue.put(of(1, "a", "b"))
    assert catalogue.space == "b"
    assert catalogue.query_vector("usb") is None


def test_an_empty_catalogue_finds_nothing_for_each_query() -> None:
    assert [ids for ids, _ in Catalogue().search(unit_vectors(2, 4), 3)] == [[], []]
    assert Catalogue().load([], [], None) == 0


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_without_a_meaning_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="switch_share"):
        Catalogue(switch_share=share)


def test_what_is_gone_leaves_no_slots_and_no_categories_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalogue_module, "_LEAST_NUMBERED", 30)
    churned = Catalogue()
    churned._most_numbered = 30
    sizes = []
    for turn in range(300):
        # Each turn other ids, other related ones, another category; six of ten stay forever.
        for number in (*range(6), 100 + turn):
            related = {f"p{(number + 1) % 6}": 0.5, f"unknown{turn}": 0.25, f"p{number}": 1.0}
            one = record(f"p{number}", VECTORS["a"][number % 12], "a", title="Mug",
                         category=f"c{turn}-{number % 2}")  # fmt: skip
            churned.put(one)
            churned.put_related(related_row(f"p{number}", related=related))
        churned.matches("mug", 5)
        churned.remove(f"p{100 + turn}")
        churned.remove_related(f"p{100 + turn}")
        sizes.append(len(churned.slots) + churned.facts.category_count)
    assert max(sizes) <= 60
    # And everything is where it was.
    slots, _ = churned.matches("mug", 10)
    assert {churned.slots.product_id(slot) for slot in slots.tolist()} == set(NAMES[:6])
    held = churned.vectors(np.array(churned.slots.find(["p3", "gone"])))
    np.testing.assert_array_equal(held[0], VECTORS["a"][3])
    assert not held[1].any()
