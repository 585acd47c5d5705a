"""The numbering of the products, what an index is, and the exact one.

The exact index finds nearest neighbours by one matrix product and block maxima, updated in place;
the approximate one of a large catalogue is `udfs.inverted`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

FloatMatrix = NDArray[np.float32]
Rows = NDArray[np.intp]
Slots = NDArray[np.int32]

# Queries scored in one matrix product: large enough for the BLAS kernel, small enough that the
# scores (queries × products × 4 bytes) stay within a bounded memory at large catalogues.
SCORE_BYTES: Final = 64 * 2**20
MAX_CHUNK: Final = 256


class SlotTable:
    """Numbers product ids from 0 on: what refers to a product need not follow its moves.

    A slot is a few bytes in each array that is addressed by it; it is kept when its product goes,
    as others may still name it, until :meth:`keep` drops those that nobody needs.
    """

    def __init__(self) -> None:
        """Make an empty table."""
        self._slot_of: dict[str, int] = {}
        self._ids: list[str] = []
        self._followers: list[Callable[[Slots], None]] = []

    def __len__(self) -> int:
        """Number of slots."""
        return len(self._ids)

    def get(self, product_id: str) -> int:
        """Slot of a product id; -1 where it has none."""
        return self._slot_of.get(product_id, -1)

    def add(self, product_id: str) -> int:
        """Slot of a product id, a new one where it has none yet."""
        slot = self._slot_of.setdefault(product_id, len(self._ids))
        if slot == len(self._ids):
            self._ids.append(product_id)
        return slot

    def find(self, product_ids: Iterable[str]) -> list[int]:
        """Slots of product ids, -1 for each that has none."""
        return [self._slot_of.get(product_id, -1) for product_id in product_ids]

    def names(self, slots: NDArray[np.intp]) -> list[list[str]]:
        """Product ids of slots (q, k), whatever where a slot is -1."""
        ids = self._ids
        return [[ids[slot] for slot in row] for row in slots.tolist()]

    def follow(self, follower: Callable[[Slots], None]) -> None:
        """Call ``follower`` after each :meth:`keep`, with what that returns."""
        self._followers.append(follower)

    def keep(self, kept: NDArray[np.bool_]) -> Slots:
        """Drop the slots that are not ``kept``, shape (slots,); the others keep their order.

        Returns:
            The new slot of each old one, -1 where it was dropped.
        """
        self._ids = list(compress(self._ids, kept.tolist()))
        self._slot_of = {product_id: slot for slot, product_id in enumerate(self._ids)}
        renumbered = np.full(len(kept), -1, dtype=np.int32)
        renumbered[kept] = np.arange(len(self._ids))
        for follower in self._followers:
            follower(renumbered)
        return renumbered

    def product_id(self, slot: int) -> str:
        """Product id of a slot."""
        return self._ids[slot]


class Boosts(NamedTuple):
    """What is added to scores beside the inner product, one entry a (query, product) pair.

    A pair may stand several times: all of its weights count.
    """

    queries: NDArray[np.intp]
    """Query of each entry, ascending, shape (b,)."""
    slots: Slots
    """Product of each entry, shape (b,); one that is not in the index is skipped."""
    weights: FloatMatrix
    """What is added, shape (b,)."""


class NearestNeighbours(Protocol):
    """What the ranking asks of an index."""

    dimensions: int
    slots: SlotTable
    """The numbering that boosts and answers refer to."""

    def __len__(self) -> int:
        """Number of products that a search can return."""

    def upsert(self, product_id: str, vector: FloatMatrix) -> None:
        """Insert or replace a product's unit vector, shape (d,)."""

    def remove(self, product_id: str) -> None:
        """Take a product out; an absent one is no error."""

    def renumber(self, new: Slots) -> None:
        """Follow the slots to new numbers, see :meth:`SlotTable.keep`; products keep theirs."""

    def search_slots(
        self, queries: FloatMatrix, k: int, boosts: Sequence[Boosts] = ()
    ) -> tuple[Rows, FloatMatrix]:
        """Find the k best products by inner product and boosts for each query, best first.

        Args:
            queries: Shape (q, d).
            k: How many.
            boosts: What is added to the inner products; minus infinity keeps a product out.

        Returns:
            Slots and scores, both of shape (q, k); where fewer than k are found, the last slots
            are -1 and their scores minus infinity.

        Raises:
            ValueError: A wrong shape, or k below 1.
        """

    def holds(self, slots: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Tell which of the slots are products that a search can return."""

    def vectors(self, slots: NDArray[np.intp]) -> FloatMatrix:
        """Vectors of products by slot: shape (*slots.shape, d); zeros where not in the index."""


def with_room(row_of_slot: Slots, slot: int) -> Slots:
    """Return the rows by slot with a place for ``slot``, -1 where there is no row."""
    if slot < len(row_of_slot):
        return row_of_slot
    grown = np.full(max(1024, slot + 1 + slot // 2), -1, dtype=np.int32)
    grown[: len(row_of_slot)] = row_of_slot
    return grown


class ExactIndex:
    """Products as rows of one float32 matrix, dense at the front: a removal moves the last row.

    The search scores a chunk of queries with one matrix product. A row of n scores, read as
    (block size, blocks), has a maximum a block; the k blocks with the best maxima hold the k best
    products, so only these k · block size candidates are sorted. Exact, whatever the scores.
    """

    def __init__(self, dimensions: int, slots: SlotTable | None = None) -> None:
        """Make an empty index over vectors of ``dimensions`` float32.

        Args:
            dimensions: Length of the vectors.
            slots: The numbering that boosts refer to; None where there are none.
        """
        if dimensions < 1:
            msg = f"dimensions must be positive, not {dimensions}"
            raise ValueError(msg)
        self.dimensions = dimensions
        self._vectors: FloatMatrix = np.zeros((0, dimensions), dtype=np.float32)
        self._ids: list[str] = []
        self._row_of: dict[str, int] = {}
        self.slots = slots if slots is not None else SlotTable()
        self._row_of_slot: Slots = np.zeros(0, dtype=np.int32)
        self._slot_of_row: Slots = np.zeros(0, dtype=np.int32)

    def __len__(self) -> int:
        """Number of products in the index."""
        return len(self._ids)

    def __contains__(self, product_id: object) -> bool:
        """Tell whether the product can be found."""
        return product_id in self._row_of

    def items(self) -> Iterator[tuple[str, FloatMatrix]]:
        """Yield every product's id and vector."""
        yield from zip(self._ids, self._vectors, strict=False)

    def upsert(self, product_id: str, vector: FloatMatrix) -> None:
        """Insert or replace a product's unit vector, shape (d,).

        Raises:
            ValueError: The vector has another length than the index.
        """
        if vector.shape != (self.dimensions,):
            msg = f"a vector of shape {vector.shape} in an index of {self.dimensions} dimensions"
            raise ValueError(msg)
        row = self._row_of.get(product_id)
        if row is None:
            row = len(self._ids)
            if row == len(self._vectors):
                grown = np.zeros((max(1024, row + row // 2), self.dimensions), dtype=np.float32)
                grown[:row] = self._vectors
                self._vectors = grown
                self._slot_of_row = np.resize(self._slot_of_row, len(grown))
            self._ids.append(product_id)
            self._place(product_id, row)
        self._vectors[row] = vector

    def remove(self, product_id: str) -> None:
        """Take a product out; an absent one is no error."""
        row = self._row_of.pop(product_id, None)
        if row is None:
            return
        self._row_of_slot[self.slots.get(product_id)] = -1
        last = len(self._ids) - 1
        last_id = self._ids.pop()
        if row != last:
            self._vectors[row] = self._vectors[last]
            self._ids[row] = last_id
            self._place(last_id, row)

    def renumber(self, new: Slots) -> None:
        """Follow the slots to new numbers, see :meth:`SlotTable.keep`; products keep theirs."""
        n = len(self._ids)
        self._slot_of_row[:n] = new[self._slot_of_row[:n]]
        self._row_of_slot = np.full(max(1024, len(self.slots)), -1, dtype=np.int32)
        self._row_of_slot[self._slot_of_row[:n]] = np.arange(n)

    def _place(self, product_id: str, row: int) -> None:
        slot = self.slots.add(product_id)
        self._row_of_slot = with_room(self._row_of_slot, slot)
        self._row_of[product_id] = row
        self._row_of_slot[slot] = row
        self._slot_of_row[row] = slot

    def search_slots(
        self, queries: FloatMatrix, k: int, boosts: Sequence[Boosts] = ()
    ) -> tuple[Rows, FloatMatrix]:
        """Find the k best products; see :class:`NearestNeighbours`. Exact."""
        if queries.ndim != 2 or queries.shape[1] != self.dimensions:
            msg = f"queries of shape {queries.shape} for {self.dimensions} dimensions"
            raise ValueError(msg)
        if k < 1:
            msg = f"k must be positive, not {k}"
            raise ValueError(msg)
        slots = np.full((len(queries), k), -1, dtype=np.intp)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        width = min(k, len(self._ids))
        if not width:
            return slots, scores
        chunk = max(1, min(MAX_CHUNK, SCORE_BYTES // (4 * len(self._ids))))
        for start in range(0, len(queries), chunk):
            end = start + chunk
            added = [self._boosted_rows(one, start, end) for one in boosts]
            rows, found = self._search_rows(queries[start:end], width, added)
            slots[start:end, :width] = np.where(found > -np.inf, self._slot_of_row[rows], -1)
            scores[start:end, :width] = found
        return slots, scores

    def holds(self, slots: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Tell which of the slots are products that a search can return."""
        known = (slots >= 0) & (slots < len(self._row_of_slot))
        held: NDArray[np.bool_] = known & (self._row_of_slot[np.where(known, slots, 0)] >= 0)
        return held

    def vectors(self, slots: NDArray[np.intp]) -> FloatMatrix:
        """Vectors of products by slot: shape (*slots.shape, d); zeros where not in the index."""
        if not len(self._row_of_slot):
            return np.zeros((*slots.shape, self.dimensions), dtype=np.float32)
        known = (slots >= 0) & (slots < len(self._row_of_slot))
        rows = np.where(known, self._row_of_slot[np.where(known, slots, 0)], -1)
        found: FloatMatrix = self._vectors[np.maximum(rows, 0)]
        found[rows < 0] = 0
        return found

    def _boosted_rows(
        self, boosts: Boosts, start: int, end: int
    ) -> tuple[NDArray[np.intp], Slots, FloatMatrix]:
        """Queries, rows and weights of the boosts that hold for a chunk of the queries."""
        a, b = np.searchsorted(boosts.queries, (start, end)).tolist()
        slots = boosts.slots[a:b]
        # A slot beyond the table has never been a product of this index.
        known = slots < len(self._row_of_slot)
        rows = self._row_of_slot[np.where(known, slots, 0)]
        kept = np.flatnonzero(known & (rows >= 0) & (slots >= 0))
        return boosts.queries[a:b][kept] - start, rows[kept], boosts.weights[a:b][kept]

    def _search_rows(
        self,
        queries: FloatMatrix,
        k: int,
        boosted: Sequence[tuple[NDArray[np.intp], Slots, FloatMatrix]],
    ) -> tuple[Rows, FloatMatrix]:
        n, q = len(self._ids), len(queries)
        block, blocks = _block_shape(n, k)
        padded = block * blocks
        scores = np.empty((q, padded), dtype=np.float32)
        np.matmul(queries, self._vectors[:n].T, out=scores[:, :n])
        scores[:, n:] = -np.inf
        for of_query, rows, weights in boosted:
            np.add.at(scores.reshape(-1), of_query * padded + rows, weights)
        if blocks <= k:
            return _top(scores, k)
        # Product r stands in block r % blocks: neighbours of a block are far apart in the matrix,
        # and the maximum runs down contiguous rows, which NumPy vectorises.
        maxima = scores.reshape(q, block, blocks).max(axis=1)
        best_blocks = np.argpartition(maxima, blocks - k, axis=1)[:, blocks - k :]
        candidates = (best_blocks[:, None, :] + (np.arange(block) * blocks)[None, :, None]).reshape(
            q, block * k
        )
        chosen, chosen_scores = _top(np.take_along_axis(scores, candidates, axis=1), k)
        return np.take_along_axis(candidates, chosen, axis=1), chosen_scores


def _block_shape(n: int, k: int) -> tuple[int, int]:
    """Choose (block size b, number of blocks).

    Partitioning n / b maxima and b · k candidates is least work at b = sqrt(n / k); gathering a
    candidate costs more than partitioning a maximum, so half of that is fastest as measured.
    """
    block = max(1, round(0.5 * math.sqrt(n / k)))
    return block, -(-n // block)


def _top(scores: FloatMatrix, k: int) -> tuple[Rows, FloatMatrix]:
    """Columns and values of the k best a row, best first; scores (q, m) with m >= k."""
    width = scores.shape[1]
    columns = np.argpartition(scores, width - k, axis=1)[:, width - k :]
    values = np.take_along_axis(scores, columns, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(values, order, axis=1)
