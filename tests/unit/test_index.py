"""The index against a full sort of all scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.builders import FloatMatrix, assert_same_list, unit_vectors
from udfs import index as index_module
from udfs.index import Boosts, ExactIndex, NearestNeighbours, SlotTable

DIMENSIONS = 5


def search(
    index: NearestNeighbours,
    queries: FloatMatrix,
    k: int,
    excluded: Sequence[Sequence[str]] | None = None,
    boosts: Sequence[Boosts] = (),
) -> list[tuple[list[str], FloatMatrix]]:
    """Ids and scores of a search that leaves out some products a query."""
    if excluded:
        find = index.slots.find
        rows = [(at, slot) for at, names in enumerate(excluded) for slot in find(names)]
        users, slots = np.array(rows, dtype=np.int32).reshape(-1, 2).T
        minus = np.full(len(rows), -np.inf, dtype=np.float32)
        boosts = [*boosts, Boosts(users.astype(np.intp), slots, minus)]
    found, scores = index.search_slots(queries, k, boosts)
    assert found.shape == scores.shape == (len(queries), k)
    np.testing.assert_array_equal(found >= 0, scores > -np.inf)
    lists = [[index.slots.product_id(slot) for slot in row if slot >= 0] for row in found.tolist()]
    return [(ids, row[: len(ids)]) for ids, row in zip(lists, scores, strict=True)]


def filled(vectors: FloatMatrix) -> tuple[ExactIndex, dict[str, FloatMatrix]]:
    products = {f"p{n}": vector for n, vector in enumerate(vectors)}
    index = ExactIndex(vectors.shape[1])
    for product_id, vector in products.items():
        index.upsert(product_id, vector)
    return index, products


@given(
    n=st.integers(1, 300),
    k=st.integers(1, 40),
    distinct=st.integers(1, 300),
    seed=st.integers(0, 10_000),
    data=st.data(),
)
def test_search_equals_a_full_sort(
    n: int, k: int, distinct: int, seed: int, data: st.DataObject
) -> None:
    # Few distinct vectors make many equal scores.
    index, products = filled(unit_vectors(n, DIMENSIONS, seed)[np.arange(n) % distinct])
    queries = unit_vectors(3, DIMENSIONS, seed + 1)
    ids = st.lists(st.sampled_from([*products, "unknown"]), max_size=n)
    excluded = data.draw(st.none() | st.lists(ids, min_size=3, max_size=3))
    found = search(index, queries, k, excluded)
    assert len(found) == 3
    for at, one in enumerate(found):
        assert_same_list(one, products, queries[at], k, excluded[at] if excluded else ())


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "remove"]), st.integers(0, 25), st.integers(0, 5)),
        max_size=120,
    )
)
def test_every_change_holds_for_the_next_search(changes: list[tuple[str, int, int]]) -> None:
    vectors = unit_vectors(6, DIMENSIONS)
    index = ExactIndex(DIMENSIONS)
    products: dict[str, FloatMatrix] = {}
    query = unit_vectors(1, DIMENSIONS, seed=9)
    for kind, number, vector in changes:
        product_id = f"p{number}"
        if kind == "put":
            index.upsert(product_id, vectors[vector])
            products[product_id] = vectors[vector]
        else:
            index.remove(product_id)
            products.pop(product_id, None)
        assert len(index) == len(products)
        assert (product_id in index) == (kind == "put")
        assert_same_list(search(index, query, 4)[0], products, query[0], 4)


@pytest.mark.parametrize("n", [1023, 1024, 1025, 5000])
@pytest.mark.parametrize("k", [1, 20, 1000])
def test_large_index_equals_a_full_sort(n: int, k: int) -> None:
    index, products = filled(unit_vectors(n, 8, seed=n))
    queries = unit_vectors(2, 8, seed=k)
    best = search(index, queries[:1], k)[0][0]
    # The best are excluded for the second query, so that whole blocks lose their maximum.
    found = search(index, queries[[0, 0]], k, [[], best])
    assert_same_list(found[0], products, queries[0], k)
    assert_same_list(found[1], products, queries[0], k, best)


boosts_drawn = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(0, 40),
        st.sampled_from([0.5, -0.5, 2.0, -np.inf]) | st.floats(-3, 3, width=32),
    ),
    max_size=60,
)


@given(
    n=st.integers(1, 40),
    k=st.integers(1, 45),
    removed=st.sets(st.integers(0, 39), max_size=10),
    rows=st.lists(boosts_drawn, max_size=3),
    chunk=st.sampled_from([1, 2, 256]),
)
def test_boosts_are_added_to_the_inner_products(
    n: int, k: int, removed: set[int], rows: list[list[tuple[int, int, float]]], chunk: int
) -> None:
    vectors, queries = unit_vectors(n, DIMENSIONS), unit_vectors(3, DIMENSIONS, seed=1)
    slots = SlotTable()
    slots.add("named before it is there")
    index = ExactIndex(DIMENSIONS, slots)
    for at, vector in enumerate(vectors):
        index.upsert(f"p{at}", vector)
    kept = [f"p{at}" for at in range(n) if at not in removed]
    for at in removed:
        index.remove(f"p{at}")
    for at in range(41):
        slots.add(f"p{at}")  # of some there is no product
    scores = {name: queries @ vectors[int(name[1:])] for name in kept}
    boosts = []
    for part in rows:
        part = sorted(part, key=lambda row: row[0])
        for query, item, weight in part:
            if f"p{item}" in scores:
                scores[f"p{item}"] = scores[f"p{item}"] + np.where(
                    np.arange(3) == query, weight, 0.0
                )
        boosts.append(
            Boosts(
                np.array([row[0] for row in part], dtype=np.intp),
                np.array([slots.get(f"p{row[1]}") for row in part], dtype=np.int32),
                np.array([row[2] for row in part], dtype=np.float32),
            )
        )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(index_module, "MAX_CHUNK", chunk)
        found = search(index, queries, k, boosts=boosts)
    for at, (ids, given_scores) in enumerate(found):
        expected = sorted((s[at] for s in scores.values() if s[at] > -np.inf), reverse=True)[:k]
        np.testing.assert_allclose(given_scores, expected, atol=1e-4)
        assert len(set(ids)) == len(ids)
        np.testing.assert_allclose(given_scores, [scores[one][at] for one in ids], atol=1e-4)


def test_vectors_by_slot_follow_the_moves_of_the_rows() -> None:
    index, products = filled(unit_vectors(5, DIMENSIONS))
    index.remove("p1")
    index.upsert("p2", products["p0"])
    slots = np.array([[index.slots.get(f"p{at}")] for at in range(5)] + [[-1], [99_999]])
    expected = [products[name] for name in ("p0", "p0", "p0", "p3", "p4")]
    expected[1] = np.zeros(DIMENSIONS, dtype=np.float32)
    zeros = np.zeros((2, DIMENSIONS), dtype=np.float32)
    wanted = np.concatenate([np.stack(expected), zeros])
    np.testing.assert_array_equal(index.vectors(slots)[:, 0], wanted)


def test_slots_are_kept_for_good() -> None:
    slots = SlotTable()
    assert [slots.add(name) for name in ("b", "a", "b")] == [0, 1, 0]
    assert (slots.get("a"), slots.get("c"), len(slots)) == (1, -1, 2)
    assert slots.find(["c", "a"]) == [-1, 1]
    assert slots.product_id(0) == "b"


def test_queries_of_several_chunks_each_get_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MAX_CHUNK", 7)
    index, products = filled(unit_vectors(200, DIMENSIONS))
    queries = unit_vectors(25, DIMENSIONS, seed=3)
    excluded = [[f"p{at}", f"p{at + 1}"] for at in range(25)]
    for at, one in enumerate(search(index, queries, 5, excluded)):
        assert_same_list(one, products, queries[at], 5, excluded[at])


def test_scores_stay_within_the_memory_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "SCORE_BYTES", 1)  # less than one query
    index, products = filled(unit_vectors(50, DIMENSIONS))
    queries = unit_vectors(3, DIMENSIONS, seed=3)
    for query, one in zip(queries, search(index, queries, 5), strict=True):
        assert_same_list(one, products, query, 5)


@pytest.mark.parametrize(("n", "k", "out", "left"), [(3, 10, 0, 3), (10, 5, 7, 3), (4, 4, 4, 0)])
def test_fewer_come_back_only_where_fewer_exist(n: int, k: int, out: int, left: int) -> None:
    index, _ = filled(unit_vectors(n, DIMENSIONS))
    ids, scores = search(index, unit_vectors(1, DIMENSIONS), k, [[f"p{at}" for at in range(out)]])[
        0
    ]
    assert len(ids) == len(scores) == left
    assert np.isfinite(scores).all()


def test_product_with_the_opposite_vector_is_still_found() -> None:
    vector = unit_vectors(1, DIMENSIONS)
    index, _ = filled(-vector)
    assert search(index, vector, 3)[0][0] == ["p0"]


def test_empty_index_finds_nothing() -> None:
    index = ExactIndex(DIMENSIONS)
    found = search(index, unit_vectors(2, DIMENSIONS), 3)
    assert [ids for ids, _ in found] == [[], []]
    index.upsert("p0", unit_vectors(1, DIMENSIONS)[0])
    index.remove("p0")
    assert search(index, unit_vectors(1, DIMENSIONS), 3)[0][0] == []
    assert search(index, np.zeros((0, DIMENSIONS), dtype=np.float32), 3) == []


@pytest.mark.parametrize("shape", [(DIMENSIONS,), (1, DIMENSIONS + 1), (1, 1, DIMENSIONS)])
def test_queries_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    index, _ = filled(unit_vectors(3, DIMENSIONS))
    with pytest.raises(ValueError, match="shape"):
        search(index, np.ones(shape, dtype=np.float32), 3)


@pytest.mark.parametrize("shape", [(DIMENSIONS + 1,), (1, DIMENSIONS), ()])
def test_vector_of_a_wrong_shape_is_refused_and_changes_nothing(shape: tuple[int, ...]) -> None:
    index, _ = filled(unit_vectors(3, DIMENSIONS))
    with pytest.raises(ValueError, match="shape"):
        index.upsert("new", np.ones(shape, dtype=np.float32))
    assert len(index) == 3
    assert "new" not in index


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_1_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="k must be positive"):
        search(filled(unit_vectors(3, DIMENSIONS))[0], unit_vectors(1, DIMENSIONS), k)


def test_dimensions_below_1_are_refused() -> None:
    with pytest.raises(ValueError, match="dimensions"):
        ExactIndex(0)
