"""Approximate nearest neighbours for a large catalogue: inverted lists, updated in place.

Products stand in lists of at most ``LIST_ROWS``, each with the mean direction of its vectors, its
centroid. A new vector goes into a pending list that every search reads; when it is full its
vectors move to the lists with the nearest centroids. A full list is split in two by two-means, and
what then lies nearer to a neighbouring list moves there; a sparse list is dissolved. So the lists
follow the catalogue in small steps, and there is nothing to rebuild (SPFresh, Xu et al., SOSP
2023, calls this LIRE). The same calls in the same order make the same lists.

A search reads the lists nearest to the query, takes the score of its k-th best product there, and
reads every other list whose centroid lies within a margin of that score. How wide the margin must
be for a recall of ``RECALL_AIM`` depends on the vectors; the index measures it on a sample of its
own products whenever a quarter of them has changed.

Vectors are int8 with a scale each, 64 dimensions in 68 bytes instead of 256. An inner product
errs by about 0.001.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from udfs.index import (
    SCORE_BYTES,
    Boosts,
    ExactIndex,
    FloatMatrix,
    NearestNeighbours,
    Rows,
    Slots,
    SlotTable,
    gathered,
    lengthen,
)

# Up to so many products scoring all of them costs no more than choosing candidates. CPU of a list
# in one run of `benchmarks.tick`, exact and lists: 170 and 205 us at 10,000 products, 194 and 215
# at 20,000, 255 and 198 at 40,000, 427 and 208 at 100,000.
EXACT_UP_TO: Final = 25_000
LIST_ROWS: Final = 512
RECALL_AIM: Final = 0.98
"""Share of the nearest whose lists the margin takes in: int8 and other queries cost the rest."""

_PENDING: Final = 0
_SPARSE_ROWS: Final = LIST_ROWS // 8
# Splits a call at most, of about 2 ms each: what needs more waits in the pending list.
_MAX_SPLITS: Final = 16
_ROUNDS: Final = 8
_NEIGHBOURS: Final = 8
# How full many products at once make a list, as a share of LIST_ROWS.
_FILL: Final = 0.8
# Up to so many lists are one clustering; more are clusters of clusters.
_MOST_CLUSTERS: Final = 512
# Small clusters that a vector is compared with, for each of its own large one.
_AROUND: Final = 8
_SAMPLE_OF_CLUSTER: Final = 128
_ROWS_AT_ONCE: Final = 16_384
_FIRST_LISTS: Final = 4
_QUERIES_AT_ONCE: Final = 1024
# Products found better than the k-th best so far, before they are reduced to the k best.
_MAX_HITS: Final = 1_000_000
# Queries that the margin is measured with, fewer where that many inner products would take longer.
_SAMPLE: Final = 64
_LEAST_SAMPLE: Final = 16
_SAMPLE_PRODUCTS: Final = 64_000_000
_SAMPLE_NEIGHBOURS: Final = 50
_SEED: Final = 1
_EMPTY: Final = np.iinfo(np.int64).min
_FULL: Final = np.iinfo(np.int64).max
_LOW: Final = (1 << 32) - 1

Ints = NDArray[np.int64]
Bytes = NDArray[np.int8]


def index_of(
    table: SlotTable, slots: Slots, vectors: NDArray[np.floating[Any]]
) -> NearestNeighbours:
    """Make the index that fits the number of products: distinct slots (n,) and vectors (n, d)."""
    kind = ExactIndex if len(slots) <= EXACT_UP_TO else InvertedIndex
    index = kind(vectors.shape[1], table)
    index.extend(slots, vectors)
    return index


def fitting(index: NearestNeighbours) -> NearestNeighbours:
    """Return the index, or an approximate one of the same products where it has grown large."""
    if not isinstance(index, ExactIndex) or len(index) <= EXACT_UP_TO:
        return index
    return index_of(index.slots, *index.rows())


class InvertedIndex:
    """Products in lists by direction; see the module.

    A search scores the boosted products, and looks for others among the lists only where one
    could enter: where the k-th best boosted product has less than an inner product of 1 alone
    would give. With every list read it finds what :class:`ExactIndex` finds.
    """

    def __init__(self, dimensions: int, slots: SlotTable | None = None) -> None:
        """Make an empty index; see :class:`ExactIndex`."""
        if dimensions < 1:
            msg = f"dimensions must be positive, not {dimensions}"
            raise ValueError(msg)
        self.dimensions = dimensions
        self.slots = slots if slots is not None else SlotTable()
        self._lists = 1
        """Lists in use, the first of them the pending one."""
        self._counts: Ints = np.zeros(1, dtype=np.int64)
        self._centroids: FloatMatrix = np.zeros((1, dimensions), dtype=np.float32)
        self._vectors: Bytes = np.zeros((LIST_ROWS, dimensions), dtype=np.int8)
        self._scales: FloatMatrix = np.zeros(LIST_ROWS, dtype=np.float32)
        self._slot_of_row: Slots = np.zeros(LIST_ROWS, dtype=np.int32)
        self._row_of_slot: Slots = np.zeros(0, dtype=np.int32)
        self._size = 0
        self._margin = np.inf
        self._changes = 0
        """Products placed or removed since the margin was measured."""

    def __len__(self) -> int:
        """Number of products that a search can return."""
        return self._size

    def __contains__(self, product_id: object) -> bool:
        """Tell whether the product can be found."""
        slot = self.slots.get(product_id) if isinstance(product_id, str) else -1
        return bool(self.holds(np.array([slot], dtype=np.intp))[0])

    def upsert(self, product_id: str, vector: FloatMatrix) -> None:
        """Insert or replace a product's unit vector, shape (d,).

        Raises:
            ValueError: The vector has another length than the index.
        """
        if vector.shape != (self.dimensions,):
            msg = f"a vector of shape {vector.shape} in an index of {self.dimensions} dimensions"
            raise ValueError(msg)
        self._put_one(self.slots.add(product_id), vector)

    def extend(self, slots: Slots, vectors: NDArray[np.floating[Any]]) -> None:
        """Insert or replace many products: distinct slots (n,) and their unit vectors (n, d).

        Many into an empty index are clustered at once.

        Raises:
            ValueError: The vectors have another length than the index.
        """
        if vectors.shape != (len(slots), self.dimensions):
            msg = f"vectors of shape {vectors.shape} in an index of {self.dimensions} dimensions"
            raise ValueError(msg)
        if self._lists == 1 and not self._size and len(slots) > LIST_ROWS:
            self._fill(slots, vectors)
            return
        for slot, vector in zip(slots.tolist(), vectors.astype(np.float32), strict=True):
            self._put_one(slot, vector)

    def _put_one(self, slot: int, vector: FloatMatrix) -> None:
        (packed,), (scale,) = _packed(vector[None, :])
        lengthen(self._row_of_slot, slot + 1, -1)
        row = int(self._row_of_slot[slot])
        if row >= 0:
            if self._scales[row] == scale and (self._vectors[row] == packed).all():
                return
            self._take_out(row)
        if self._counts[_PENDING] == LIST_ROWS:
            self._distribute()
        row = int(self._counts[_PENDING])
        self._vectors[row] = packed
        self._scales[row] = scale
        self._slot_of_row[row] = slot
        self._row_of_slot[slot] = row
        self._counts[_PENDING] += 1
        self._size += 1
        self._changes += 1

    def remove(self, product_id: str) -> None:
        """Take a product out; an absent one is no error."""
        self.drop(self.slots.get(product_id))

    def drop(self, slot: int) -> None:
        """Take a product out by its slot; an absent one is no error."""
        row = int(self._row_of_slot[slot]) if 0 <= slot < len(self._row_of_slot) else -1
        if row >= 0:
            self._take_out(row)

    def renumber(self, new: Slots) -> None:
        """Follow the slots to new numbers; see :class:`NearestNeighbours`."""
        held = np.flatnonzero(self._row_of_slot >= 0)
        rows, slots = self._row_of_slot[held], new[held]
        self._slot_of_row[rows] = slots
        self._row_of_slot = np.full(max(1024, len(self.slots)), -1, dtype=np.int32)
        self._row_of_slot[slots] = rows

    def holds(self, slots: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Tell which of the slots are products that a search can return."""
        held: NDArray[np.bool_] = self._rows(slots) >= 0
        return held

    def vectors(self, slots: NDArray[np.intp]) -> FloatMatrix:
        """Vectors of products by slot: shape (*slots.shape, d); zeros where not in the index."""
        rows = self._rows(slots)
        found = self._floats(np.maximum(rows, 0))
        found[rows < 0] = 0
        return found

    def search_slots(
        self, queries: FloatMatrix, k: int, boosts: Sequence[Boosts] = ()
    ) -> tuple[Rows, FloatMatrix]:
        """Find the k best products by inner product and boosts for each query, best first.

        As :meth:`ExactIndex.search_slots`, but for what the lists miss; and where a query is zero
        nothing is near, so that only boosted products are found.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dimensions:
            msg = f"queries of shape {queries.shape} for {self.dimensions} dimensions"
            raise ValueError(msg)
        if k < 1:
            msg = f"k must be positive, not {k}"
            raise ValueError(msg)
        slots = np.full((len(queries), k), -1, dtype=np.intp)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        at_once = max(1, min(_QUERIES_AT_ONCE, SCORE_BYTES // (4 * self._lists)))
        for start in range(0, len(queries), at_once):
            end = start + at_once
            part = [_between(one, start, end) for one in boosts]
            slots[start:end], scores[start:end] = self._search(queries[start:end], k, part)
        return slots, scores

    def _search(
        self, queries: FloatMatrix, k: int, boosts: Sequence[Boosts]
    ) -> tuple[Rows, FloatMatrix]:
        count = len(queries)
        candidates = _summed(count, boosts)
        rows = self._rows(candidates.slots)
        kept = (rows >= 0) & (candidates.weights > -np.inf)
        owners, rows = candidates.queries[kept], rows[kept]
        scored = candidates.weights[kept] + self._products(queries, owners, rows)
        slots, scores = _best(count, k, [Boosts(owners, candidates.slots[kept], scored)])
        lengths = np.linalg.norm(queries, axis=1)
        asked = np.flatnonzero((scores[:, -1] < lengths) & (lengths > 0) & (self._size > 0))
        if len(asked):
            number = np.full(count, -1)
            number[asked] = np.arange(len(asked))
            known = _kept(candidates, number[candidates.queries] >= 0)
            known = known._replace(queries=number[known.queries])
            scale = lengths[asked]
            near = self._nearest(
                queries[asked] / scale[:, None], k, scores[asked, -1] / scale, known
            )
            near = near._replace(weights=near.weights * scale[near.queries])
            own = Boosts(
                np.repeat(np.arange(len(asked)), k),
                slots[asked].ravel().astype(np.int32),
                scores[asked].ravel(),
            )
            slots[asked], scores[asked] = _best(len(asked), k, [own, near])
        return slots, scores

    def _nearest(self, queries: FloatMatrix, k: int, floors: FloatMatrix, known: Boosts) -> Boosts:
        """Find products by the inner product alone, among them the k best that are not known.

        Args:
            queries: Unit vectors, shape (q, d).
            k: How many are wanted.
            floors: Only what is better counts, shape (q,).
            known: What does not count, ascending by query and slot.
        """
        least, closeness, first, found = self._first(queries, k, floors, known)
        known_keys = known.queries * len(self.slots) + known.slots
        wanted = closeness >= (least - self._margin)[:, None]
        np.put_along_axis(wanted, first, values=False, axis=1)
        parts, hits = [found], 0
        for number, members in _grouped(*np.nonzero(wanted.T)):
            scores = self._scores(queries[members], number)
            better = np.flatnonzero(scores > least[members, None])
            if not len(better):
                continue
            at, column = np.divmod(better, scores.shape[1])
            slots = self._slot_of_row[number * LIST_ROWS + column]
            one = Boosts(members[at], slots, scores.ravel()[better])
            if len(known_keys):
                keys = one.queries * len(self.slots) + slots
                place = np.searchsorted(known_keys, keys)
                one = _kept(one, known_keys[np.minimum(place, len(known_keys) - 1)] != keys)
            parts.append(one)
            hits += len(slots)
            if hits > _MAX_HITS:
                best, values = _best(len(queries), k, [_joined(parts)])
                least = np.maximum(least, values[:, -1])
                query, place = np.nonzero(best >= 0)
                slots = best[query, place].astype(np.int32)
                parts, hits = [Boosts(query, slots, values[query, place])], 0
        return _joined(parts)

    def _first(
        self, queries: FloatMatrix, k: int, floors: FloatMatrix, known: Boosts
    ) -> tuple[FloatMatrix, FloatMatrix, Rows, Boosts]:
        """Read the lists nearest to each query.

        Returns:
            What a product must exceed to be among the k best that are not known, shape (q,); the
            closeness of each list's centroid, (q, lists); the lists that were read, (q, f); what
            was found in them that does exceed it, or equals it.
        """
        closeness = queries @ self._centroids[: self._lists].T
        closeness[:, _PENDING] = np.inf
        width = min(self._lists, _FIRST_LISTS + 4 * k // LIST_ROWS)
        first = np.argpartition(-closeness, width - 1, axis=1)[:, :width]
        scores = np.full((len(queries), width, LIST_ROWS), -np.inf, dtype=np.float32)
        order = np.argsort(first, axis=None, kind="stable")
        query, place = np.divmod(order, width)
        for number, at in _grouped(first.ravel()[order], np.arange(len(order))):
            found = self._scores(queries[query[at]], number)
            scores[query[at], place[at], : found.shape[1]] = found
        place_of = np.full(closeness.shape, -1, dtype=np.int16)
        np.put_along_axis(place_of, first, np.arange(width, dtype=np.int16)[None, :], axis=1)
        rows = self._rows(known.slots)
        place = np.where(rows < 0, -1, place_of[known.queries, rows // LIST_ROWS])
        read = place >= 0
        scores[known.queries[read], place[read], rows[read] % LIST_ROWS] = -np.inf
        flat = scores.reshape(len(queries), -1)
        least = floors
        if k <= flat.shape[1]:
            least = np.maximum(floors, np.partition(flat, -k, axis=1)[:, -k])
        at = np.flatnonzero((flat >= least[:, None]) & (flat > -np.inf))
        query, column = np.divmod(at, flat.shape[1])
        rows = first[query, column // LIST_ROWS] * LIST_ROWS + column % LIST_ROWS
        return least, closeness, first, Boosts(query, self._slot_of_row[rows], flat.ravel()[at])

    def _scores(self, queries: FloatMatrix, number: int) -> FloatMatrix:
        """Inner products with a list's vectors, shape (q, count)."""
        rows = slice(number * LIST_ROWS, number * LIST_ROWS + int(self._counts[number]))
        scores: FloatMatrix = queries @ self._vectors[rows].astype(np.float32).T
        scores *= self._scales[rows]
        return scores

    def _products(self, queries: FloatMatrix, owners: Rows, rows: Slots) -> FloatMatrix:
        """Inner products of each owner's query with each row's vector; owners ascending."""
        products = np.empty(len(rows), dtype=np.float32)
        bounds = np.searchsorted(owners, np.arange(len(queries) + 1)).tolist()
        for query, a, b in zip(queries, bounds[:-1], bounds[1:], strict=True):
            if a < b:
                products[a:b] = self._vectors.take(rows[a:b], axis=0).astype(np.float32) @ query
        products *= self._scales[rows]
        return products

    def _floats(self, rows: NDArray[np.integer[Any]]) -> FloatMatrix:
        floats: FloatMatrix = self._vectors[rows] * self._scales[rows][..., None]
        return floats

    def _rows(self, slots: NDArray[np.integer[Any]]) -> Slots:
        return gathered(self._row_of_slot, slots, -1)

    def _take_out(self, row: int) -> None:
        number = row // LIST_ROWS
        self._row_of_slot[self._slot_of_row[row]] = -1
        self._counts[number] -= 1
        self._size -= 1
        self._changes += 1
        last = number * LIST_ROWS + int(self._counts[number])
        if row != last:
            self._copy(np.array([last]), np.array([row]))
        if number != _PENDING and self._counts[number] < _SPARSE_ROWS:
            self._dissolve(number)

    def _dissolve(self, number: int) -> None:
        """Move a list's products to the pending list, and the last list into its place."""
        count = int(self._counts[number])
        if self._counts[_PENDING] + count > LIST_ROWS:
            return  # when the pending list has been distributed
        self._append(_PENDING, number * LIST_ROWS + np.arange(count))
        self._lists -= 1
        last = self._lists
        if number != last:
            there = np.arange(int(self._counts[last]))
            self._copy(last * LIST_ROWS + there, number * LIST_ROWS + there)
            self._counts[number] = self._counts[last]
            self._centroids[number] = self._centroids[last]
        self._counts[last] = 0

    def _append(self, number: int, rows: Ints) -> None:
        start = number * LIST_ROWS + int(self._counts[number])
        self._copy(rows, start + np.arange(len(rows)))
        self._counts[number] += len(rows)

    def _copy(self, rows: Ints, to: Ints) -> None:
        self._put(to, self._vectors[rows], self._scales[rows], self._slot_of_row[rows])

    def _put(self, to: Ints, vectors: Bytes, scales: FloatMatrix, slots: Slots) -> None:
        self._vectors[to] = vectors
        self._scales[to] = scales
        self._slot_of_row[to] = slots
        self._row_of_slot[slots] = to

    def _distribute(self) -> None:
        """Move the pending products to the lists with the nearest centroids."""
        rows = np.arange(int(self._counts[_PENDING]))
        vectors = self._floats(rows)
        if self._lists == 1:
            nearest = np.ones(len(rows), dtype=np.intp)
            self._add_list(_unit(vectors.mean(axis=0)))
        else:
            nearest = 1 + np.argmax(vectors @ self._centroids[1 : self._lists].T, axis=1)
        order = np.argsort(nearest, kind="stable")
        left: list[Ints] = []
        splits = 0
        for number, part in _grouped(nearest[order], rows[order]):
            if self._counts[number] + len(part) <= LIST_ROWS:
                self._append(number, part)
            elif splits < _MAX_SPLITS:
                splits += 1
                self._split(number, part)
            else:
                left.append(part)
        waiting = np.concatenate(left) if left else rows[:0]
        self._copy(np.sort(waiting), np.arange(len(waiting)))
        self._counts[_PENDING] = len(waiting)
        if 4 * self._changes > self._size:
            self._measure_margin()

    def _add_list(self, centroid: FloatMatrix) -> int:
        number = self._lists
        self._lists += 1
        self._make_room()
        self._counts[number] = 0
        self._centroids[number] = centroid
        return number

    def _make_room(self) -> None:
        if self._lists > len(self._counts):
            lists = self._lists + max(4, self._lists // 8)
            for column, rows in (
                (self._counts, lists),
                (self._centroids, lists),
                (self._vectors, lists * LIST_ROWS),
                (self._scales, lists * LIST_ROWS),
                (self._slot_of_row, lists * LIST_ROWS),
            ):
                column.resize((rows, *column.shape[1:]), refcheck=False)

    def _fill(self, slots: Slots, vectors: NDArray[np.floating[Any]]) -> None:
        """Make lists of many products (n,), n above one list's, in an empty index."""
        nearest = _clustered(vectors, math.ceil(len(slots) / (_FILL * LIST_ROWS)))
        order = np.argsort(nearest, kind="stable")
        todo = [part for _, part in _grouped(nearest[order], order)]
        lengthen(self._row_of_slot, int(slots.max()) + 1, -1)
        members: list[Ints] = []
        while todo:
            part = todo.pop()
            if len(part) > LIST_ROWS:
                second = _two_means(vectors[part].astype(np.float32))
                todo += [part[~second], part[second]]
            else:
                members.append(part)
        self._lists = 1 + len(members)
        self._make_room()
        for number, part in enumerate(members, 1):
            floats = vectors[part].astype(np.float32)
            self._centroids[number] = _unit(floats.mean(axis=0))
            self._put(number * LIST_ROWS + np.arange(len(part)), *_packed(floats), slots[part])
            self._counts[number] = len(part)
        self._size = len(slots)
        self._measure_margin()

    def _split(self, number: int, more: Ints) -> None:
        """Make two or more lists of one and of pending rows that no longer fit into it."""
        start = number * LIST_ROWS
        rows = np.concatenate([start + np.arange(int(self._counts[number])), more])
        vectors = self._floats(rows)
        packed, scales, slots = self._vectors[rows], self._scales[rows], self._slot_of_row[rows]
        todo, made = [np.arange(len(rows))], [number]
        self._counts[number] = 0
        while todo:
            part = todo.pop()
            if len(part) > LIST_ROWS:
                second = _two_means(vectors[part])
                todo += [part[~second], part[second]]
                continue
            centroid = _unit(vectors[part].mean(axis=0))
            target = number
            if self._counts[number]:
                target = self._add_list(centroid)
                made.append(target)
            self._centroids[target] = centroid
            self._put(
                target * LIST_ROWS + np.arange(len(part)), packed[part], scales[part], slots[part]
            )
            self._counts[target] = len(part)
        self._settle(made)

    def _settle(self, made: list[int]) -> None:
        """Move what lies nearer to another list, of new lists and those around them."""
        centroids = self._centroids[: self._lists]
        closeness = (centroids[made] @ centroids.T).max(axis=0)
        closeness[_PENDING] = -np.inf
        near = np.sort(np.argsort(-closeness, kind="stable")[:_NEIGHBOURS])
        near = near[near != _PENDING]
        rows = np.concatenate([n * LIST_ROWS + np.arange(self._counts[n]) for n in near])
        best = near[np.argmax(self._floats(rows) @ centroids[near].T, axis=1)]
        moving = np.flatnonzero(best != rows // LIST_ROWS)
        moving = moving[np.argsort(best[moving], kind="stable")]
        gone: list[Ints] = []
        for number, part in _grouped(best[moving], rows[moving]):
            room = LIST_ROWS - int(self._counts[number])
            self._append(number, part[:room])
            gone.append(part[:room])
        if not gone:
            return
        # The rows left behind are closed up from the end of each list.
        empty = np.sort(np.concatenate(gone))
        for number, part in _grouped(empty // LIST_ROWS, empty):
            start = number * LIST_ROWS
            taken = np.zeros(int(self._counts[number]), dtype=bool)
            taken[part - start] = True
            staying = start + np.flatnonzero(~taken)
            self._copy(staying, start + np.arange(len(staying)))
            self._counts[number] = len(staying)

    def _measure_margin(self) -> None:
        """Measure how far from the best the lists of a sample's true neighbours are."""
        held = np.flatnonzero(self._row_of_slot >= 0)
        count = max(_LEAST_SAMPLE, min(_SAMPLE, _SAMPLE_PRODUCTS // self._size))
        chosen = np.random.default_rng(_SEED).choice(held, (3, count))
        mixed = self.vectors(chosen)
        mixed[1:, : count // 2] = 0  # half of them single products, half users of three
        queries = _unit(mixed.sum(axis=0))
        floors = np.full(count, -np.inf, dtype=np.float32)
        nobody = np.zeros(0, dtype=np.intp)
        nothing = Boosts(nobody, nobody.astype(np.int32), nobody.astype(np.float32))
        k = _SAMPLE_NEIGHBOURS
        least, closeness, _, _ = self._first(queries, k, floors, nothing)
        self._margin = np.inf
        everything = self._nearest(queries, k, floors, nothing)
        slots, _ = _best(count, k, [everything])
        query, place = np.nonzero(slots >= 0)
        lists = self._rows(slots[query, place]) // LIST_ROWS
        # Not below -2, where a list is read anyway: the pending one, or all of a small index.
        needed = np.maximum(least[query] - closeness[query, lists], -2)
        self._margin = float(np.quantile(needed, RECALL_AIM))
        self._changes = 0


def _between(boosts: Boosts, start: int, end: int) -> Boosts:
    a, b = np.searchsorted(boosts.queries, (start, end)).tolist()
    return Boosts(boosts.queries[a:b] - start, boosts.slots[a:b], boosts.weights[a:b])


def _kept(boosts: Boosts, kept: NDArray[np.bool_]) -> Boosts:
    return Boosts(boosts.queries[kept], boosts.slots[kept], boosts.weights[kept])


def _joined(parts: Sequence[Boosts]) -> Boosts:
    """One of several, ascending by query."""
    queries, slots, weights = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(queries, kind="stable")
    return Boosts(queries[order], slots[order], weights[order])


def _places(count: int, parts: Sequence[Boosts]) -> tuple[Rows, int, list[Rows]]:
    """Lay the entries of all parts out in a row a query.

    Returns:
        How many each query has, the width of a row, and the place of each part's entries in the
        rows one after another.
    """
    bounds = [np.searchsorted(part.queries, np.arange(count + 1)) for part in parts]
    lengths = [np.diff(one) for one in bounds]
    used = np.sum(lengths, axis=0, dtype=np.intp) if parts else np.zeros(count, dtype=np.intp)
    width = int(used.max(initial=0))
    begin = np.arange(count) * width
    places = []
    for bound, length in zip(bounds, lengths, strict=True):
        places.append(np.arange(bound[-1]) + np.repeat(begin - bound[:-1], length))
        begin = begin + length
    return used, width, places


def _summed(count: int, parts: Sequence[Boosts]) -> Boosts:
    """Add up the weights of each (query, product), ascending by both.

    Slot and weight are one integer; sorting many short rows of them is five times faster than one
    long one.
    """
    used, width, places = _places(count, parts)
    keys = np.full((count, width), _FULL)
    for part, place in zip(parts, places, strict=True):
        key = part.slots.astype(np.int64) << 32
        key |= part.weights.view(np.uint32)
        keys.ravel()[place] = key
    keys.sort(axis=1)
    found = keys[np.arange(width) < used[:, None]]
    slots = (found >> 32).astype(np.int32)
    weights = found.astype(np.uint32).view(np.float32)
    new = np.ones(len(found), dtype=bool)
    new[1:] = slots[1:] != slots[:-1]
    new[(np.cumsum(used) - used)[used > 0]] = True
    starts = np.flatnonzero(new)
    sums = np.add.reduceat(weights, starts) if len(starts) else weights
    return Boosts(np.repeat(np.arange(count), used)[starts], slots[starts], sums)


def _best(count: int, k: int, parts: Sequence[Boosts]) -> tuple[Rows, FloatMatrix]:
    """Slots and weights of the k best a query, both (count, k), best first; -1 where there is none.

    Of equal ones the lowest slot is first, whatever else is in the batch: weight and slot are one
    integer that sorts as both do.
    """
    _, width, places = _places(count, parts)
    if width > 4 * k:
        # Most are left out by the k-th best weight alone, which is quicker to find.
        weights = np.full((count, width), -np.inf, dtype=np.float32)
        for part, place in zip(parts, places, strict=True):
            weights.ravel()[place] = part.weights
        least = np.partition(weights, width - k, axis=1)[:, width - k]
        parts = [_kept(part, part.weights >= least[part.queries]) for part in parts]
        _, width, places = _places(count, parts)
    keys = np.full((count, width), _EMPTY)
    for part, place in zip(parts, places, strict=True):
        bits = part.weights.view(np.int32).astype(np.int64)
        ascending = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        key = (ascending << 32) | (_LOW - part.slots.astype(np.int64))
        keys.ravel()[place] = np.where(part.slots >= 0, key, _EMPTY)
    if k < width:
        keys = np.partition(keys, width - k, axis=1)[:, width - k :]
    elif k > width:
        keys = np.pad(keys, ((0, 0), (0, k - width)), constant_values=_EMPTY)
    keys = np.sort(keys, axis=1)[:, ::-1]
    bits = keys >> 32
    weights = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(np.int32).view(np.float32)
    empty = keys == _EMPTY
    slots = np.where(empty, -1, _LOW - (keys & _LOW)).astype(np.intp)
    return slots, np.where(empty, np.float32(-np.inf), weights)


def _grouped(numbers: Rows, values: Ints) -> Iterator[tuple[int, Ints]]:
    """Yield each of the ascending numbers once, with its values."""
    new = np.ones(len(numbers), dtype=bool)
    new[1:] = numbers[1:] != numbers[:-1]
    starts = np.flatnonzero(new)
    for a, b in pairwise([*starts.tolist(), len(numbers)]):
        yield int(numbers[a]), values[a:b]


def _two_means(vectors: FloatMatrix) -> NDArray[np.bool_]:
    """Tell which of the vectors (n, d) belong to the second of two clusters."""
    a = vectors[np.argmin(vectors @ vectors.mean(axis=0))]
    centroids = np.stack([a, vectors[np.argmin(vectors @ a)]])
    halves: NDArray[np.bool_] = np.arange(len(vectors)) % 2 == 0
    second = halves
    for _ in range(_ROUNDS):
        closeness = vectors @ centroids.T
        second = np.greater(closeness[:, 1], closeness[:, 0])
        if second.all() or not second.any():  # all alike
            return halves
        centroids = np.stack(
            [_unit(vectors[~second].mean(axis=0)), _unit(vectors[second].mean(axis=0))]
        )
    return second


def _clustered(vectors: NDArray[np.floating[Any]], count: int) -> Rows:
    """Number the cluster of each of the vectors (n, d), of about so many.

    Many are clusters of clusters: to compare each vector with all centroids would take most of the
    time. It is compared with those around its own large cluster, so that their borders do not show.
    """
    rng = np.random.default_rng(_SEED)
    rows = np.arange(len(vectors))
    if count <= _MOST_CLUSTERS:
        return _nearest_of(vectors, rows, _k_means(vectors, rows, count, rng))
    large = _k_means(vectors, rows, math.isqrt(count), rng)
    cluster = _nearest_of(vectors, rows, large)
    order = np.argsort(cluster, kind="stable")
    parts = list(_grouped(cluster[order], order))
    each = len(vectors) / count
    centroids = np.concatenate(
        [_k_means(vectors, part, math.ceil(len(part) / each), rng) for _, part in parts]
    )
    nearest = np.empty(len(vectors), dtype=np.intp)
    for number, part in parts:
        around = _AROUND * math.ceil(len(part) / each)
        near = np.argsort(-(centroids @ large[number]), kind="stable")[:around]
        nearest[part] = near[_nearest_of(vectors, part, centroids[near])]
    return nearest


def _k_means(
    vectors: NDArray[np.floating[Any]], rows: Ints, count: int, rng: np.random.Generator
) -> FloatMatrix:
    """Directions (at most count, d) of the clusters among rows of vectors, by a sample of these."""
    sample = rows[rng.permutation(len(rows))[: _SAMPLE_OF_CLUSTER * count]]
    learned = vectors[sample].astype(np.float32)
    centroids: FloatMatrix = learned[:count]
    for _ in range(_ROUNDS):
        nearest = np.argmax(learned @ centroids.T, axis=1)
        order = np.argsort(nearest, kind="stable")
        used, starts = np.unique(nearest[order], return_index=True)
        # One that lost all of its vectors starts anew at another of them.
        sums = learned[rng.integers(len(learned), size=len(centroids))]
        sums[used] = np.add.reduceat(learned[order], starts, axis=0)
        centroids = _unit(sums)
    return centroids


def _nearest_of(vectors: NDArray[np.floating[Any]], rows: Ints, centroids: FloatMatrix) -> Rows:
    """Number of the nearest centroid of each of some rows of vectors."""
    nearest = np.empty(len(rows), dtype=np.intp)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        nearest[part] = np.argmax(vectors[rows[part]].astype(np.float32) @ centroids.T, axis=1)
    return nearest


def _packed(vectors: FloatMatrix) -> tuple[Bytes, FloatMatrix]:
    """Vectors (n, d) as int8, and the scale (n,) of each."""
    scales: FloatMatrix = np.maximum(np.abs(vectors).max(axis=1), np.float32(1e-30))
    scales = scales / np.float32(127)
    packed: Bytes = np.rint(vectors / scales[:, None]).astype(np.int8)
    return packed, scales


def _unit(vectors: FloatMatrix) -> FloatMatrix:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-30), dtype=np.float32)
