"""The inverted lists against a full scan of the vectors as they are stored."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.unit.builders import FloatMatrix, stored, unit_vectors
from udfs import inverted
from udfs.index import Boosts, ExactIndex, SlotTable
from udfs.inverted import InvertedIndex, fitting
from udfs.query_encoder import encode_texts

DIMENSIONS = 6
PURCHASES = Path(__file__).resolve().parents[3] / "shared" / "data" / "purchases_dev.csv.gz"
Entry = tuple[int, int, float]


@pytest.fixture
def small_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


def make_small(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(inverted, "LIST_ROWS", 8)
    patched.setattr(inverted, "_SPARSE_ROWS", 2)
    patched.setattr(inverted, "_FIRST_LISTS", 1)


def filled(vectors: FloatMatrix, index: InvertedIndex | None = None) -> InvertedIndex:
    index = index or InvertedIndex(vectors.shape[1])
    for at, vector in enumerate(vectors):
        index.upsert(f"p{at}", vector)
    return index


def boosts_of(entries: Sequence[Entry]) -> Boosts:
    ordered = sorted(entries, key=lambda entry: entry[0])
    return Boosts(
        np.array([one[0] for one in ordered], dtype=np.intp),
        np.array([one[1] for one in ordered], dtype=np.int32),
        np.array([one[2] for one in ordered], dtype=np.float32),
    )


def full_scan(
    vectors: FloatMatrix, queries: FloatMatrix, parts: Sequence[Sequence[Entry]]
) -> NDArray[np.float64]:
    """Every score, (queries, products): products are slots 0, 1, …"""
    scores = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    for part in parts:
        for query, slot, weight in part:
            if 0 <= slot < len(vectors):
                scores[query, slot] += weight
    return scores


def assert_best(
    slots: NDArray[np.intp],
    scores: FloatMatrix,
    expected: NDArray[np.float64],
    k: int,
    among: Sequence[set[int]] | None = None,
) -> None:
    """The lists are the k best of all products, or of those among which they were chosen."""
    for at, (row, given_scores) in enumerate(zip(slots.tolist(), scores, strict=True)):
        allowed = sorted(among[at]) if among else list(range(expected.shape[1]))
        possible = expected[at, allowed]
        best = np.sort(possible[possible > -np.inf])[::-1][:k]
        found = [slot for slot in row if slot >= 0]
        assert row == found + [-1] * (k - len(found))
        assert len(set(found)) == len(found) == len(best)
        np.testing.assert_allclose(given_scores[: len(found)], best, atol=2e-5)
        np.testing.assert_allclose(given_scores[: len(found)], expected[at, found], atol=2e-5)
        assert (given_scores[len(found) :] == -np.inf).all()


entries = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(-1, 65),
        st.sampled_from([0.5, -0.5, 2.0, -np.inf]) | st.floats(-3, 3, width=32),
    ),
    max_size=60,
)
cases = given(
    n=st.integers(1, 60),
    distinct=st.integers(1, 60),
    k=st.integers(1, 70),
    parts=st.lists(entries, max_size=3),
    length=st.sampled_from([0.1, 1.0]),
    at_once=st.sampled_from([1, 3, 1024]),
)


@cases
def test_with_every_list_read_a_search_equals_the_exact_one(
    n: int, distinct: int, k: int, parts: list[list[Entry]], length: float, at_once: int
) -> None:
    vectors = stored(unit_vectors(n, DIMENSIONS)[np.arange(n) % distinct])
    queries = np.float32(length) * unit_vectors(4, DIMENSIONS, seed=1)
    with pytest.MonkeyPatch.context() as patched:
        make_small(patched)
        patched.setattr(inverted, "_QUERIES_AT_ONCE", at_once)
        patched.setattr(inverted, "_MAX_HITS", 5)
        index = filled(vectors)
        index.slots.add("named, but never there")
        index._margin = np.inf
        slots, scores = index.search_slots(queries, k, list(map(boosts_of, parts)))
    expected = full_scan(vectors, queries, parts)
    assert_best(slots, scores, expected, k)
    exact = ExactIndex(DIMENSIONS, index.slots)
    for at, vector in enumerate(vectors):
        exact.upsert(f"p{at}", vector)
    _, wanted = exact.search_slots(queries, k, list(map(boosts_of, parts)))
    np.testing.assert_allclose(scores, wanted, atol=2e-5)


@cases
def test_a_list_is_the_best_of_what_is_boosted_and_what_was_near(
    n: int, distinct: int, k: int, parts: list[list[Entry]], length: float, at_once: int
) -> None:
    vectors = stored(unit_vectors(n, DIMENSIONS)[np.arange(n) % distinct])
    queries = np.float32(length) * unit_vectors(4, DIMENSIONS, seed=1)
    with pytest.MonkeyPatch.context() as patched:
        make_small(patched)
        patched.setattr(inverted, "_QUERIES_AT_ONCE", at_once)
        index = filled(vectors)
        index._margin = 0.1
        slots, scores = index.search_slots(queries, k, list(map(boosts_of, parts)))
    boosted: list[set[int]] = [set() for _ in range(4)]
    for query, slot, _ in (one for part in parts for one in part):
        if 0 <= slot < n:
            boosted[query].add(slot)
    among = [own | set(row) - {-1} for own, row in zip(boosted, slots.tolist(), strict=True)]
    assert_best(slots, scores, full_scan(vectors, queries, parts), k, among)
    full = np.minimum(k, n - np.array([
        len({slot for part in parts for query, slot, weight in part
             if query == at and 0 <= slot < n and weight == -np.inf}) for at in range(4)
    ]))  # fmt: skip
    # Nothing says that all k are in the lists read, but the nearest one always is.
    assert all((row >= 0).any() or not most for row, most in zip(slots, full, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "put", "remove"]), st.integers(0, 60), st.integers(0, 9)),
        max_size=200,
    ),
    st.integers(1, 3),
)
def test_every_change_holds_for_the_next_search(
    changes: list[tuple[str, int, int]], splits: int
) -> None:
    vectors = stored(unit_vectors(10, DIMENSIONS))
    query = unit_vectors(1, DIMENSIONS, seed=9)
    held: dict[str, int] = {}
    with pytest.MonkeyPatch.context() as patched:
        make_small(patched)
        index = InvertedIndex(DIMENSIONS)
        patched.setattr(inverted, "_MAX_SPLITS", splits)
        for kind, number, vector in changes:
            name = f"p{number}"
            if kind == "put":
                index.upsert(name, vectors[vector])
                held[name] = vector
            else:
                index.remove(name)
                held.pop(name, None)
            assert len(index) == len(held)
            assert (name in index) == (name in held)
        index._margin = np.inf
        slots, scores = index.search_slots(query, 7)
        found = [index.slots.product_id(slot) for slot in slots[0].tolist() if slot >= 0]
        expected = sorted((float(query[0] @ vectors[at]) for at in held.values()), reverse=True)
        np.testing.assert_allclose(scores[0, : len(found)], expected[:7], atol=2e-5)
        assert len(set(found)) == len(found) == min(7, len(held))
        names = [*held, "never there"]
        where = np.array(index.slots.find(names), dtype=np.intp)
        np.testing.assert_array_equal(index.holds(where), [True] * len(held) + [False])
        wanted = np.concatenate([vectors[list(held.values())], np.zeros((1, DIMENSIONS))])
        np.testing.assert_allclose(index.vectors(where), wanted, atol=1e-6)


def test_the_same_vector_again_moves_nothing(small_lists: None) -> None:
    vectors = unit_vectors(30, DIMENSIONS)
    index = filled(vectors)
    before = index._row_of_slot.copy()
    filled(vectors, index)
    np.testing.assert_array_equal(index._row_of_slot, before)


def test_the_lists_shrink_with_the_catalogue(small_lists: None) -> None:
    index = filled(unit_vectors(400, DIMENSIONS))
    assert index._lists > 400 // inverted.LIST_ROWS
    for at in range(380):
        index.remove(f"p{at}")
    assert index._lists < 20
    index._margin = np.inf
    slots, _ = index.search_slots(unit_vectors(1, DIMENSIONS, seed=3), 30)
    assert sorted(slots[0].tolist()) == [-1] * 10 + list(range(380, 400))


def clustered(n: int, seed: int = 2) -> FloatMatrix:
    """Clusters of about 25 products within clusters of about 1,000, 64 dimensions."""
    rng = np.random.default_rng(seed)
    large = rng.standard_normal((max(2, n // 1000), 64))
    small = large[rng.integers(0, len(large), n // 25)] + rng.standard_normal((n // 25, 64))
    made = small[rng.integers(0, len(small), n)] + 0.7 * rng.standard_normal((n, 64))
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), dtype=np.float32)


def users(vectors: FloatMatrix, count: int = 200) -> FloatMatrix:
    """Half of them near one product, half between it and another."""
    rng = np.random.default_rng(4)
    made = vectors[rng.integers(0, len(vectors), count)].astype(np.float64)
    made[count // 2 :] += 0.7 * vectors[rng.integers(0, len(vectors), count - count // 2)]
    made += 0.03 * rng.standard_normal(made.shape)
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), dtype=np.float32)


def recall(index: InvertedIndex, vectors: FloatMatrix, held: NDArray[np.intp]) -> float:
    queries = users(vectors[held])
    slots, _ = index.search_slots(queries, 50)
    truth = held[np.argsort(-(queries @ vectors[held].T), axis=1)[:, :50]]
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(truth, slots, strict=True)]))


def test_recall_on_clusters_through_churn() -> None:
    vectors = clustered(24_000)
    index = filled(vectors[:16_000])
    assert recall(index, vectors, np.arange(16_000)) >= 0.95
    for at in range(0, 16_000, 2):
        index.remove(f"p{at}")
    for at in range(16_000, 24_000):
        index.upsert(f"p{at}", vectors[at])
    held = np.r_[np.arange(1, 16_000, 2), np.arange(16_000, 24_000)]
    assert recall(index, vectors, held) >= 0.95
    # Half of a catalogue's vectors change: the lists follow.
    for at in range(16_000, 24_000):
        index.upsert(f"p{at}", vectors[at - 16_000])
    vectors[16_000:] = vectors[:8_000]
    queries = users(vectors[held])
    _, scores = index.search_slots(queries, 50)
    least = np.sort(queries @ vectors[held].T, axis=1)[:, -50]  # many are alike: by the score
    assert (scores >= least[:, None] - 0.003).mean() >= 0.95
    assert index._lists < 4 * len(index) / inverted.LIST_ROWS


@pytest.mark.skipif(not PURCHASES.is_file(), reason=f"{PURCHASES.name} is absent")
def test_recall_on_real_titles() -> None:
    def titles() -> Iterator[str]:
        with gzip.open(PURCHASES, "rt", newline="") as file:
            for row in csv.DictReader(file):
                yield row["title"]

    vectors = encode_texts(list(dict.fromkeys(islice(titles(), 25_000))))
    vectors = vectors[vectors.any(axis=1)]
    index = filled(vectors)
    assert np.isfinite(index._margin)
    assert recall(index, vectors, np.arange(len(vectors))) >= 0.95


@settings(max_examples=40)
@given(st.lists(entries, min_size=1, max_size=3), st.permutations(range(4)), st.randoms())
def test_a_query_finds_the_same_whatever_stands_around_it(
    parts: list[list[Entry]], order: list[int], random: object
) -> None:
    vectors = stored(unit_vectors(60, DIMENSIONS))  # equal scores would differ by their rounding
    queries = 0.5 * unit_vectors(4, DIMENSIONS, seed=1)
    with pytest.MonkeyPatch.context() as patched:
        make_small(patched)
        index = filled(vectors)
        together, _ = index.search_slots(queries, 9, list(map(boosts_of, parts)))
        place = {query: at for at, query in enumerate(order)}
        moved = [[(place[q], slot, w) for q, slot, w in reversed(part)] for part in parts[::-1]]
        permuted, _ = index.search_slots(queries[order], 9, list(map(boosts_of, moved)))
        for query in range(4):
            own = [[(0, slot, w) for q, slot, w in part if q == query] for part in parts]
            alone, _ = index.search_slots(queries[[query]], 9, list(map(boosts_of, own)))
            np.testing.assert_array_equal(alone[0], together[query])
            np.testing.assert_array_equal(permuted[place[query]], together[query])


def test_an_index_becomes_approximate_when_it_grows_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted, "EXACT_UP_TO", 20)
    vectors = stored(unit_vectors(21, DIMENSIONS))
    slots = SlotTable()
    slots.add("named before it is there")
    index = ExactIndex(DIMENSIONS, slots)
    for at, vector in enumerate(vectors[:20]):
        index.upsert(f"p{at}", vector)
    assert fitting(index) is index
    index.upsert("p20", vectors[20])
    grown = fitting(index)
    assert isinstance(grown, InvertedIndex)
    assert fitting(grown) is grown
    query = unit_vectors(2, DIMENSIONS, seed=3)
    for ours, theirs in zip(
        index.search_slots(query, 5), grown.search_slots(query, 5), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_what_is_wrong_is_refused() -> None:
    with pytest.raises(ValueError, match="dimensions"):
        InvertedIndex(0)
    index = InvertedIndex(DIMENSIONS)
    with pytest.raises(ValueError, match="shape"):
        index.upsert("p", np.ones(DIMENSIONS + 1, dtype=np.float32))
    with pytest.raises(ValueError, match="shape"):
        index.search_slots(np.ones((1, 2), dtype=np.float32), 3)
    with pytest.raises(ValueError, match="k must be positive"):
        index.search_slots(np.ones((1, DIMENSIONS), dtype=np.float32), 0)


def test_an_empty_index_and_a_query_that_points_nowhere_find_nothing() -> None:
    index = InvertedIndex(DIMENSIONS)
    boosts = boosts_of([(0, 0, 1.0)])
    slots, scores = index.search_slots(unit_vectors(2, DIMENSIONS), 3, [boosts])
    assert (slots == -1).all()
    assert (scores == -np.inf).all()
    index = filled(unit_vectors(5, DIMENSIONS))
    slots, _ = index.search_slots(np.zeros((1, DIMENSIONS), dtype=np.float32), 3, [boosts])
    assert slots.tolist() == [[0, -1, -1]]


@pytest.mark.parametrize("kind", [ExactIndex, InvertedIndex])
def test_index_follows_its_slots_to_new_numbers(
    kind: type[ExactIndex] | type[InvertedIndex], small_lists: None
) -> None:
    vectors = unit_vectors(200, DIMENSIONS, seed=7)
    index = kind(DIMENSIONS)
    for at, vector in enumerate(vectors):
        index.upsert(f"p{at}", vector)
    for at in range(0, 200, 3):
        index.remove(f"p{at}")
    kept = np.arange(200) % 3 != 0
    found, scores = index.search_slots(vectors[:20], 5)
    expected = [[index.slots.product_id(slot) for slot in row] for row in found.tolist()]

    index.renumber(index.slots.keep(kept))

    again, again_scores = index.search_slots(vectors[:20], 5)
    names = [[index.slots.product_id(slot) for slot in row] for row in again.tolist()]
    assert len(index.slots) == kept.sum()
    assert names == expected
    assert np.array_equal(again_scores, scores)
    # What comes and goes afterwards finds its place.
    index.upsert("new", vectors[0])
    index.remove("p1")
    assert "new" in index
    assert "p1" not in index
    assert index.slots.product_id(int(index.search_slots(vectors[:1], 1)[0][0, 0])) == "new"


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(9, 400),
    distinct=st.integers(1, 400),
    changed=st.lists(st.tuples(st.booleans(), st.integers(0, 400)), max_size=60),
    most=st.sampled_from([1, 3, 512]),
)
def test_many_at_once_are_found_as_one_by_one_and_change_in_place(
    n: int, distinct: int, changed: list[tuple[bool, int]], most: int
) -> None:
    vectors = stored(unit_vectors(401, DIMENSIONS)[np.arange(401) % distinct])
    queries = unit_vectors(4, DIMENSIONS, seed=1)
    with pytest.MonkeyPatch.context() as patched:
        make_small(patched)
        patched.setattr(inverted, "_MOST_CLUSTERS", most)
        patched.setattr(inverted, "_ROWS_AT_ONCE", 50)
        index = InvertedIndex(DIMENSIONS)
        slots = index.slots.extend([f"p{at}" for at in range(401)])
        index.extend(slots[:n], vectors[:n].astype(np.float16))
        assert (index._counts[: index._lists] <= inverted.LIST_ROWS).all()
        assert index._counts[: index._lists].sum() == n == len(index)
        held = set(range(n))
        for is_put, at in changed:
            if is_put:
                index.extend(slots[at : at + 1], vectors[at : at + 1])
                held.add(at)
            else:
                index.drop(at)
                held.discard(at)
        index._margin = np.inf
        found, scores = index.search_slots(queries, 7)
    np.testing.assert_array_equal(index.holds(slots), [at in held for at in range(401)])
    np.testing.assert_allclose(index.vectors(slots[sorted(held)]), vectors[sorted(held)], atol=1e-6)
    assert_best(found, scores, full_scan(vectors, queries, []), 7, [held] * 4)


def test_recall_of_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(16_000)
    for most in (8, 512):  # clusters of clusters, and one clustering
        monkeypatch.setattr(inverted, "_MOST_CLUSTERS", most)
        index = InvertedIndex(64)
        index.extend(index.slots.extend([f"p{at}" for at in range(16_000)]), vectors)
        assert np.isfinite(index._margin)
        assert recall(index, vectors, np.arange(16_000)) >= 0.95
        assert index._lists < 4 * len(index) / inverted.LIST_ROWS
