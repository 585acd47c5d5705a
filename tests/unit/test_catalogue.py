"""The catalogue: stock, spaces that never mix, and the durable copy that equals it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.builders import FloatMatrix, assert_same_list, unit_vectors
from udfs.catalogue import Catalogue, CatalogueVersionError
from udfs.schemas import Product, Reason, RejectedError, SpaceNotice, decode_space_notice

GOLDEN = Path(__file__).parents[1] / "golden"
DIMENSIONS = {"a": 4, "b": 6, "c": 3}
VECTORS = {space: unit_vectors(12, length, seed=length) for space, length in DIMENSIONS.items()}


# What products say of themselves; they name each other before they are there, and themselves.
FACTS: list[dict[str, Any]] = [
    {"category": "X", "related": {"p1": 0.5, "p0": 0.25, "p7": -1.0}, "rebuy_share": 0.5},
    {},
    {"rebuy_days": 2.5, "related": {f"p{at}": 1.0 for at in range(3, 12)}},
    {"category": "é", "related": {}},
]


class Durable:
    """A catalogue and the broadcast state that its changes leave behind."""

    def __init__(self, switch_share: float = 0.9) -> None:
        self.share = switch_share
        self.catalogue = Catalogue(switch_share=switch_share)
        self.state: dict[str, bytes] = {}

    def put(
        self, number: int, space: str = "a", *, in_stock: bool = True, vector: int = -1
    ) -> None:
        product = Product(f"p{number}", space, [], in_stock=in_stock, **FACTS[number % len(FACTS)])
        chosen = VECTORS[space][vector if vector >= 0 else number]
        self._store(self.catalogue.upsert(product, chosen))

    def delete(self, number: int) -> None:
        self._store(self.catalogue.delete(f"p{number}"))

    def note(
        self, space: str, partition: int, *, complete: bool = False, started_ms: int = 1
    ) -> None:
        notice = SpaceNotice(space, started_ms, 2, complete)
        self._store(self.catalogue.notice(notice, partition))

    def restored(self) -> Catalogue:
        again = Catalogue(switch_share=self.share)
        again.load(self.state.items())
        return again

    def _store(self, changes: list[tuple[str, bytes | None]]) -> None:
        for key, entry in changes:
            if entry is None:
                self.state.pop(key, None)
            else:
                self.state[key] = entry


def found(catalogue: Catalogue, k: int = 20, seed: int = 5) -> dict[str, float]:
    """What a search of the active space finds, with the scores."""
    if catalogue.space is None:
        return {}
    queries = unit_vectors(1, DIMENSIONS[catalogue.space], seed)
    ids, scores = catalogue.search(queries, k)[0]
    return {one: round(float(score), 5) for one, score in zip(ids, scores, strict=True)}


def test_inserted_product_is_found_at_once() -> None:
    durable = Durable()
    durable.put(1)
    durable.put(2)
    assert set(found(durable.catalogue)) == {"p1", "p2"}
    assert (len(durable.catalogue), durable.catalogue.searchable) == (2, 2)
    assert (durable.catalogue.space, durable.catalogue.dimensions) == ("a", 4)


def test_update_replaces_the_vector() -> None:
    durable = Durable()
    durable.put(1)
    durable.put(1, vector=7)
    vector = durable.catalogue.product_vector("p1")
    assert vector is not None
    np.testing.assert_array_equal(vector, VECTORS["a"][7])
    ids, scores = durable.catalogue.search(VECTORS["a"][7:8], 5)[0]
    assert ids == ["p1"]
    assert scores[0] == pytest.approx(1, abs=1e-6)


def test_out_of_stock_is_not_found_but_still_moves_users() -> None:
    durable = Durable()
    durable.put(1)
    durable.put(2)
    durable.put(1, in_stock=False)
    assert set(found(durable.catalogue)) == {"p2"}
    assert (len(durable.catalogue), durable.catalogue.searchable) == (2, 1)
    assert durable.catalogue.product_vector("p1") is not None
    durable.put(1)
    assert set(found(durable.catalogue)) == {"p1", "p2"}


def test_only_product_out_of_stock_leaves_nothing_to_find() -> None:
    durable = Durable()
    durable.put(1, in_stock=False)
    assert found(durable.catalogue) == {}
    assert durable.catalogue.dimensions == 4


def test_deleted_product_is_gone_and_deleting_again_is_no_error() -> None:
    durable = Durable()
    durable.put(1)
    durable.put(2)
    durable.delete(1)
    durable.delete(1)
    durable.delete(9)
    assert set(found(durable.catalogue)) == {"p2"}
    assert durable.catalogue.product_vector("p1") is None
    assert set(durable.state) == {"a", "pp2"}


@pytest.mark.parametrize("space", ["a", "b"])
def test_vector_of_another_length_than_its_space_is_refused(space: str) -> None:
    durable = Durable()
    durable.put(0)
    durable.put(1)
    durable.put(2)
    durable.put(1, "b")
    before = found(durable.catalogue)
    with pytest.raises(RejectedError) as caught:
        durable.catalogue.upsert(Product("p9", space, []), unit_vectors(1, 5)[0])
    assert caught.value.reason is Reason.WRONG_LENGTH
    assert found(durable.catalogue) == before
    assert len(durable.catalogue) == 3


def test_required_length_holds_for_the_first_product_of_any_space() -> None:
    catalogue = Catalogue(dimensions=4)
    with pytest.raises(RejectedError, match="4"):
        catalogue.upsert(Product("p1", "b", []), VECTORS["b"][0])
    assert len(catalogue) == 0
    assert catalogue.space is None
    catalogue.upsert(Product("p1", "a", []), VECTORS["a"][0])
    assert catalogue.searchable == 1


def test_new_space_takes_over_in_one_step_and_never_mixes() -> None:
    durable = Durable(switch_share=0.5)
    for number in range(4):
        durable.put(number)
    durable.put(0, "b")
    # Staged: still the old space, whole.
    assert durable.catalogue.space == "a"
    assert set(found(durable.catalogue)) == {"p0", "p1", "p2", "p3"}
    durable.put(1, "b")
    assert durable.catalogue.space == "b"
    assert durable.catalogue.dimensions == 6
    assert set(found(durable.catalogue)) == {"p0", "p1"}
    assert durable.catalogue.product_vector("p2") is None
    assert len(durable.catalogue) == 2
    # The old space's products come again in the new one.
    durable.put(2, "b")
    assert set(found(durable.catalogue)) == {"p0", "p1", "p2"}


def test_stock_published_with_the_new_space_holds_at_once() -> None:
    durable = Durable(switch_share=1.0)
    for number in range(3):
        durable.put(number)
    durable.put(0, "b", in_stock=False)
    assert set(found(durable.catalogue)) == {"p1", "p2"}


def test_deleting_what_the_new_space_lacks_can_complete_the_switch() -> None:
    durable = Durable(switch_share=1.0)
    durable.put(0)
    durable.put(1)
    durable.put(0, "b")
    assert durable.catalogue.space == "a"
    durable.delete(1)
    assert durable.catalogue.space == "b"
    assert set(found(durable.catalogue)) == {"p0"}
    assert durable.restored().space == "b"


def _entries(durable: Durable) -> dict[str, object]:
    return {
        key: value if key == "a" else msgspec.msgpack.decode(value)
        for key, value in durable.state.items()
    }


changes = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "out", "delete"]),
        st.integers(0, 7),
        st.sampled_from(["a", "a", "b", "c"]),
        st.integers(0, 11),
    ),
    max_size=40,
)


@given(changes, st.sampled_from([0.3, 0.9, 1.0]))
def test_state_holds_the_catalogue_at_every_point(
    rows: list[tuple[str, int, str, int]], share: float
) -> None:
    durable = Durable(share)
    for kind, number, space, vector in rows:
        if kind == "delete":
            durable.delete(number)
        else:
            durable.put(number, space, in_stock=kind == "put", vector=vector)
        live, again = durable.catalogue, durable.restored()
        assert again.space == live.space
        assert len(again) == len(live)
        assert again.searchable == live.searchable
        assert found(again) == found(live)
        for one in range(8):
            a, b = live.product_vector(f"p{one}"), again.product_vector(f"p{one}")
            assert (a is None) == (b is None)
            assert a is None or b is None or a.tobytes() == b.tobytes()
            facts = live.facts.product(f"p{one}")
            assert again.facts.product(f"p{one}") == facts
            told = FACTS[one % len(FACTS)] if live.detail(f"p{one}") is not None else {}
            assert facts == Product(
                f"p{one}", "", "", **{**told, "related": told.get("related") or None}
            )


@settings(max_examples=60)
@given(changes)
def test_restored_catalogue_goes_on_as_if_never_stopped(
    rows: list[tuple[str, int, str, int]],
) -> None:
    straight, restarted = Durable(), Durable()
    for kind, number, space, vector in rows:
        for durable in (straight, restarted):
            if kind == "delete":
                durable.delete(number)
            else:
                durable.put(number, space, in_stock=kind == "put", vector=vector)
        restarted.catalogue = restarted.restored()
    # The spaces of an entry can stand in another order.
    assert _entries(restarted) == _entries(straight)
    assert found(restarted.catalogue) == found(straight.catalogue)


@given(changes)
def test_search_is_over_one_space_and_what_is_in_stock(
    rows: list[tuple[str, int, str, int]],
) -> None:
    durable = Durable()
    last: dict[str, dict[str, FloatMatrix]] = {}
    stock: dict[str, bool] = {}
    for kind, number, space, vector in rows:
        name = f"p{number}"
        if kind == "delete":
            durable.delete(number)
            stock.pop(name, None)
            for vectors in last.values():
                vectors.pop(name, None)
        else:
            durable.put(number, space, in_stock=kind == "put", vector=vector)
            stock[name] = kind == "put"
            last.setdefault(space, {})[name] = VECTORS[space][vector]
        active = durable.catalogue.space
        if active is None:
            continue
        for dropped in last.keys() - {active}:
            # What a switch left behind is forgotten, so that it cannot come back stale.
            if dropped not in durable.catalogue._vectors:
                last[dropped] = {}
        products = {n: v for n, v in last[active].items() if stock.get(n)}
        query = unit_vectors(1, DIMENSIONS[active])
        assert_same_list(durable.catalogue.search(query, 5)[0], products, query[0], 5)


def test_emptied_catalogue_is_the_same_after_a_restore_and_takes_any_length() -> None:
    durable = Durable()
    durable.put(1)
    durable.delete(1)
    for catalogue in (durable.restored(), durable.catalogue):
        assert (catalogue.space, catalogue.dimensions, catalogue.searchable) == (None, 0, 0)
        # Under its old name, but longer.
        catalogue.upsert(Product("p1", "a", []), VECTORS["b"][0])
        assert (catalogue.space, catalogue.dimensions) == ("a", 6)
        assert catalogue.search(VECTORS["b"][:1], 3)[0][0] == ["p1"]


def test_entry_of_another_version_is_refused() -> None:
    durable = Durable()
    durable.put(1)
    entry = bytearray(durable.state["pp1"])
    assert entry[1] == 3  # msgpack: the array's head, then the version
    entry[1] = 4
    with pytest.raises(CatalogueVersionError, match="4"):
        Catalogue().load([("a", b"a"), ("pp1", bytes(entry))])


def test_entry_cut_anywhere_is_refused() -> None:
    durable = Durable()
    durable.put(1)
    entry = durable.state["pp1"]
    for length in range(len(entry)):
        with pytest.raises(CatalogueVersionError):
            Catalogue().load([("pp1", entry[:length])])


@pytest.mark.parametrize("version", [1, 2, 3])
def test_golden_entries_are_read(version: int) -> None:
    expected = json.loads((GOLDEN / f"catalogue_v{version}.json").read_text())
    lines = (GOLDEN / f"catalogue_v{version}.bin").read_text().splitlines()
    state = {bytes.fromhex(k).decode(): bytes.fromhex(v) for k, v in map(str.split, lines)}
    catalogue = Catalogue(switch_share=1.0)
    catalogue.load(state.items())
    assert catalogue.space == expected["space"]
    assert len(catalogue) == expected["products"]
    for product_id, vector in expected["vectors"].items():
        held = catalogue.product_vector(product_id)
        assert held is not None
        assert held.tolist() == vector
    for product_id, title in expected.get("titles", {}).items():
        detail = catalogue.detail(product_id)
        assert detail is not None
        assert (detail.title, detail.category, detail.price) == (
            title,
            expected.get("category", "USB"),
            expected["price"],
        )
    assert catalogue.search(unit_vectors(1, 3), 5)[0][0] == expected["searchable"]
    for product_id in expected["vectors"]:
        assert catalogue.facts.first_seen_ms(product_id) == expected.get("first_seen_ms", 0)
    for product_id, facts in expected.get("facts", {}).items():
        held_facts = catalogue.facts.product(product_id)
        assert {name: getattr(held_facts, name) for name in facts} == facts
    # The staged vector of p1 counts: with p2 in the new space too, that becomes the active one.
    catalogue.upsert(Product("p2 é", "text2-v2", []), unit_vectors(1, 2)[0])
    assert catalogue.space == "text2-v2"


def test_query_is_embedded_only_in_the_encoders_space() -> None:
    vector = VECTORS["a"][0]
    catalogue = Catalogue(encoder=lambda _: vector, encoder_space="a", switch_share=0.5)
    assert catalogue.query_vector("usb") is None
    catalogue.upsert(Product("p1", "a", []), vector)
    assert catalogue.query_vector("usb") is vector
    catalogue.upsert(Product("p1", "b", []), VECTORS["b"][0])
    assert catalogue.space == "b"
    assert catalogue.query_vector("usb") is None


def test_empty_catalogue_finds_nothing_for_each_query() -> None:
    assert [ids for ids, _ in Catalogue().search(unit_vectors(2, 4), 3)] == [[], []]


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_share_without_a_meaning_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="switch_share"):
        Catalogue(switch_share=share)


def staged(products: int = 3) -> Durable:
    """Two products in the space a; b is announced in two partitions, and has some already."""
    durable = Durable(switch_share=0.5)
    for number in range(2):
        durable.put(number, "a")
    for partition in range(2):
        durable.note("b", partition)
    for number in range(products):
        durable.put(number, "b")
    return durable


def test_an_announced_space_waits_for_the_notices_of_all_partitions() -> None:
    durable = staged()
    assert durable.catalogue.space == "a"
    assert found(durable.catalogue).keys() == {"p0", "p1"}
    durable.note("b", 1, complete=True)
    durable.note("b", 1, complete=True)  # again: it is one partition
    assert (durable.catalogue.space, durable.restored().space) == ("a", "a")
    durable.note("b", 0, complete=True)
    assert (durable.catalogue.space, durable.restored().space) == ("b", "b")
    assert found(durable.catalogue).keys() == found(durable.restored()).keys() == {"p0", "p1", "p2"}


def test_a_restored_catalogue_goes_on_waiting() -> None:
    durable = staged()
    durable.note("b", 0, complete=True)
    durable.catalogue = durable.restored()
    durable.put(4, "b")
    assert durable.catalogue.space == "a"
    durable.note("b", 1, complete=True)
    assert durable.catalogue.space == "b"


def test_notices_may_come_before_the_products_of_other_partitions() -> None:
    durable = staged(products=0)
    for partition in range(2):
        durable.note("b", partition, complete=True)
    assert durable.catalogue.space == "a"  # never to an empty space
    durable.put(0, "b")
    assert durable.catalogue.space == "b"


def test_what_was_announced_gives_way_only_to_what_is() -> None:
    durable = staged()
    for partition in range(2):
        durable.note("b", partition, complete=True)
    for number in range(3):
        durable.put(number, "a")
    assert durable.catalogue.space == "b"
    for partition in range(2):
        durable.note("c", partition, started_ms=2)
    durable.put(0, "c")
    for partition in range(2):
        durable.note("c", partition, complete=True, started_ms=2)
    assert durable.catalogue.space == "c"
    assert len(durable.catalogue) == len(durable.restored()) == 1


def test_the_publication_that_started_later_holds_whatever_is_read_first() -> None:
    durable = staged()
    durable.note("c", 0, started_ms=2)
    durable.put(5, "c")
    for partition in range(2):  # of the first, read late
        durable.note("b", partition, complete=True)
    assert durable.catalogue.space == "a"
    for partition in range(2):
        durable.note("c", partition, complete=True, started_ms=2)
    assert durable.catalogue.space == "c"
    assert found(durable.catalogue).keys() == {"p5"}


@pytest.mark.parametrize("value", [b"", b"\x95\x02\xa1b\x01\x01\x90"])
def test_an_announcement_of_an_unknown_format_is_refused(value: bytes) -> None:
    with pytest.raises(CatalogueVersionError, match="announced space"):
        Catalogue().load([("s", value)])


def test_a_golden_announcement_is_read() -> None:
    expected = json.loads((GOLDEN / "space_v1.json").read_text(encoding="utf-8"))
    wire, entry = (GOLDEN / "space_v1.bin").read_bytes().splitlines()
    assert decode_space_notice(wire) == SpaceNotice(**expected)
    key, value = (bytes.fromhex(part) for part in entry.decode().split())
    catalogue = Catalogue()
    catalogue.load([(key.decode(), value)])
    space = expected["space"]
    catalogue.upsert(Product("p0", "other", []), VECTORS["a"][0])
    catalogue.upsert(Product("p0", space, []), VECTORS["b"][0])
    for partition in (2, 0):  # 2 has said so before
        catalogue.notice(SpaceNotice(**expected), partition)
        assert catalogue.space == "other"
    catalogue.notice(SpaceNotice(**expected), 1)
    assert catalogue.space == space


WORDS = unit_vectors(4, 3, seed=8)


def vector_of(catalogue: Catalogue, product_id: str) -> FloatMatrix:
    found = catalogue.product_vector(product_id)
    assert found is not None
    return found


def shop_with_text(switch_share: float = 0.9) -> Catalogue:
    """Texts are vectors of 3 dimensions in the space t; the only known query is ``lamp``."""
    return Catalogue(
        encoder=lambda query: WORDS[0] if query == "lamp" else None,
        encoder_space="t",
        switch_share=switch_share,
    )


def test_a_search_is_the_first_part_of_a_space_that_begins_with_text() -> None:
    catalogue = shop_with_text()
    catalogue.upsert(Product("p0", "t+b", []), unit_vectors(1, 5)[0])
    found = catalogue.query_vector("lamp")
    assert found is not None
    np.testing.assert_array_equal(found, [*WORDS[0], 0, 0])
    assert catalogue.query_vector("unheard") is None


@pytest.mark.parametrize(("space", "length"), [("tb", 5), ("u+t", 5), ("t+short", 2)])
def test_a_search_means_nothing_in_other_spaces(space: str, length: int) -> None:
    catalogue = shop_with_text()
    catalogue.upsert(Product("p0", space, []), unit_vectors(1, length)[0])
    assert catalogue.query_vector("lamp") is None


def test_a_product_with_text_alone_has_a_place_in_a_space_that_begins_with_text() -> None:
    catalogue = shop_with_text()
    for number, vector in enumerate(unit_vectors(10, 5)):
        catalogue.upsert(Product(f"p{number}", "t+b", []), vector)
    changes = dict(catalogue.upsert(Product("fresh", "t", []), WORDS[0]))
    placed = vector_of(catalogue, "fresh")
    assert catalogue.own_vector("fresh") is None
    assert catalogue.own_vector("p0") is not None
    np.testing.assert_allclose(placed, [*(WORDS[0] / np.sqrt(2)), 0, 0], atol=1e-7)
    assert catalogue.searchable == 11
    query = np.array([[*WORDS[0], 0, 0]], dtype=np.float32)
    assert "fresh" in catalogue.search(query, 11)[0][0]
    # Its text changes: so does its place; one that was learned stays.
    catalogue.upsert(Product("fresh", "t", []), WORDS[1])
    np.testing.assert_allclose(vector_of(catalogue, "fresh")[:3], WORDS[1] / np.sqrt(2), atol=1e-7)
    learned = vector_of(catalogue, "p3")
    catalogue.upsert(Product("p3", "t", [], in_stock=False), WORDS[1])
    np.testing.assert_array_equal(vector_of(catalogue, "p3"), learned)
    assert catalogue.searchable == 10
    again = shop_with_text()
    again.load([("a", b"t+b"), *((key, value) for key, value in changes.items() if value)])
    np.testing.assert_array_equal(vector_of(again, "fresh"), placed)


def test_a_switch_keeps_the_products_with_text_alone() -> None:
    catalogue = shop_with_text(switch_share=0.5)
    for number in range(4):
        catalogue.upsert(Product(f"p{number}", "t", []), WORDS[number])
    vectors = unit_vectors(2, 5)
    catalogue.upsert(Product("p0", "t+b", []), vectors[0])
    catalogue.upsert(Product("p1", "t+b", []), vectors[1])
    assert catalogue.space == "t+b"
    assert len(catalogue) == catalogue.searchable == 4
    np.testing.assert_array_equal(vector_of(catalogue, "p0"), vectors[0])
    placed = vector_of(catalogue, "p3")
    np.testing.assert_allclose(placed, [*(WORDS[3] / np.sqrt(2)), 0, 0], atol=1e-7)


@pytest.mark.parametrize(
    ("space", "length", "taken"),
    [
        ("text", 6, True),
        ("text", 7, False),
        ("text", 5, False),
        ("text+", 6, True),
        ("text+learned", 12, True),
        ("text+learned", 5, False),
        ("text-v2", 5, True),
    ],
)
def test_a_space_of_texts_has_their_length_from_its_first_product_on(
    space: str, length: int, *, taken: bool
) -> None:
    catalogue = Catalogue(
        encoder=lambda _: unit_vectors(1, 6)[0], encoder_space="text", encoder_dimensions=6
    )
    product, vector = Product("p1", space, [], "Mug"), unit_vectors(1, length)[0]
    if taken:
        catalogue.upsert(product, vector)
    else:
        with pytest.raises(RejectedError) as caught:
            catalogue.upsert(product, vector)
        assert caught.value.reason is Reason.WRONG_LENGTH
        assert len(catalogue) == 0
        catalogue.upsert(Product("p1", "text", []), unit_vectors(1, 6)[0])
    found = catalogue.query_vector("mug")
    assert found is None or len(found) == catalogue.dimensions


def test_the_required_length_holds_in_a_space_of_texts_too() -> None:
    catalogue = Catalogue(encoder_space="text", encoder_dimensions=6, dimensions=4)
    for length in (4, 6):
        with pytest.raises(RejectedError, match="dimensions"):
            catalogue.upsert(Product("p1", "text", []), unit_vectors(1, length)[0])


class Walked(dict[str, Any]):
    """A dictionary that counts how often somebody begins to walk over it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.walks = 0

    def __iter__(self) -> Any:
        self.walks += 1
        return super().__iter__()

    def keys(self) -> Any:
        self.walks += 1
        return super().keys()

    def values(self) -> Any:
        self.walks += 1
        return super().values()

    def items(self) -> Any:
        self.walks += 1
        return super().items()


def test_nothing_that_is_done_for_one_event_or_product_walks_over_the_products() -> None:
    """Where many were deleted from its front, even the first key of a dict is far to find."""
    catalogue = Catalogue(
        encoder=lambda _: unit_vectors(1, 4)[0], encoder_space="t", encoder_dimensions=4
    )
    for number in range(12):
        catalogue.upsert(Product(f"p{number}", "t+x", [], "Mug"), VECTORS["b"][number])
    walked = {name: Walked(vectors) for name, vectors in catalogue._vectors.items()}
    catalogue._vectors = dict(walked)
    catalogue._active_vectors = walked["t+x"]
    details = catalogue._details = Walked(catalogue._details)
    for number in range(6):
        catalogue.delete(f"p{number}")
    catalogue.upsert(Product("p1", "t+x", [], "Mug"), VECTORS["b"][1])
    catalogue.upsert(Product("p6", "t", [], "Cup"), VECTORS["a"][6])
    assert (catalogue.space, catalogue.dimensions) == ("t+x", 6)
    assert catalogue.query_vector("mug") is not None
    assert catalogue.product_vector("p7") is not None
    assert catalogue.own_vector("p6") is not None
    catalogue.search(VECTORS["b"][:2], 3)
    catalogue.matches("mug", 3)
    assert (len(catalogue), catalogue.searchable) == (7, 7)
    assert [walked["t+x"].walks, details.walks] == [0, 0]


def test_what_is_gone_leaves_no_slots_and_no_categories_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("udfs.catalogue._LEAST_NUMBERED", 30)
    churned = Durable(switch_share=0.9)
    churned.catalogue._most_numbered = 30
    sizes = []
    for turn in range(300):
        # Each turn other ids, other related ones, another category; six of ten stay forever.
        for number in (*range(6), 100 + turn):
            related = {f"p{(number + 1) % 6}": 0.5, f"unknown{turn}": 0.25, f"p{number}": 1.0}
            product = Product(
                f"p{number}", "a", [], "Mug", f"c{turn}-{number % 2}", related=related
            )
            churned._store(churned.catalogue.upsert(product, VECTORS["a"][number % 12]))
        churned.catalogue.matches("mug", 5)
        churned.delete(100 + turn)
        sizes.append(len(churned.catalogue.slots) + churned.catalogue.facts.category_count)
    assert max(sizes) <= 60
    # And everything is where it was.
    restored = churned.restored()
    assert found(churned.catalogue) == found(restored)
    for number in range(6):
        product_id = f"p{number}"
        assert churned.catalogue.facts.product(product_id) == restored.facts.product(product_id)
        assert churned.catalogue.facts.first_seen_ms(product_id) == 0
    slots, _ = churned.catalogue.matches("mug", 10)
    names = {churned.catalogue.slots.product_id(slot) for slot in slots.tolist()}
    assert names == {f"p{number}" for number in range(6)}
    held = churned.catalogue.vectors(np.array(churned.catalogue.slots.find(["p3", "gone"])))
    np.testing.assert_array_equal(held[0], VECTORS["a"][3])
    assert not held[1].any()


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 3), st.booleans()), max_size=60))
def test_numbering_anew_at_any_time_changes_nothing(rows: list[tuple[int, int, bool]]) -> None:
    plain, renumbered = Durable(), Durable()
    for number, facts, is_deleted in rows:
        for one in (plain, renumbered):
            if is_deleted:
                one.delete(number)
            else:
                product = Product(f"p{number}", "a", [], f"Mug {number}", **FACTS[facts])
                one._store(one.catalogue.upsert(product, VECTORS["a"][number], changed_us=5000))
        renumbered.catalogue._renumber()
        slots = renumbered.catalogue.slots
        assert -1 not in slots.find(renumbered.catalogue._details)
        assert renumbered.state == plain.state
        assert found(renumbered.catalogue) == found(plain.catalogue)
        named = {one for at in range(12) for one in _related(renumbered, at)}
        assert len(slots) == len(named | renumbered.catalogue._details.keys())
        for at in range(12):
            assert _related(renumbered, at) == _related(plain, at)
        boosted = [_matched(one, "mug 3") for one in (renumbered, plain)]
        assert boosted[0] == boosted[1]


def _related(durable: Durable, number: int) -> dict[str, float]:
    catalogue = durable.catalogue
    slots = np.array(catalogue.slots.find([f"p{number}"]), dtype=np.intp)
    others, weights = catalogue.facts.related(slots)
    return {
        catalogue.slots.product_id(slot): weight
        for slot, weight in zip(others[0].tolist(), weights[0].tolist(), strict=True)
        if slot >= 0
    }


def _matched(durable: Durable, query: str) -> dict[str, float]:
    slots, scores = durable.catalogue.matches(query, 5)
    return {
        durable.catalogue.slots.product_id(slot): score
        for slot, score in zip(slots.tolist(), scores.tolist(), strict=True)
    }
