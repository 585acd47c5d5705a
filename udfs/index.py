"""Exact nearest neighbours by one matrix product and block maxima, updated in place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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

    def keep(self, kept: NDArray[np.bool_]) -> Slots:
        """Drop the slots that are not ``kept``, shape (slots,); the others keep their order.

        Returns:
            The new slot of each old one, -1 where it was dropped.
        """
        self._ids = list(compress(self._ids, kept.tolist()))
        self._slot_of = {product_id: slot for slot, product_id in enumerate(self._ids)}
        renumbered = np.full(len(kept), -1, dtype=np.int32)
        renumbered[kept] = np.arange(len(self._ids))
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
    """What the job asks of an index; an approximate one can stand here."""

    def __len__(self) -> int:
        """Number of products that a search can return."""

    def upsert(self, product_id: str, vector: FloatMatrix) -> None:
        """Insert or replace a product's unit vector, shape (d,)."""

    def remove(self, product_id: str) -> None:
        """Take a product out; an absent one is no error."""

    def search(
        self,
        queries: FloatMatrix,
        k: int,
        excluded: Sequence[Sequence[str]] | None = None,
        boosts: Sequence[Boosts] = (),
    ) -> list[tuple[list[str], FloatMatrix]]:
        """Find the k best products by inner product and boosts for each query, best first."""


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
        self._slots = slots if slots is not None else SlotTable()
        self._row_of_slot: Slots = np.zeros(0, dtype=np.int32)
        self._slot_of_row: Slots = np.zeros(0, dtype=np.int32)

    def __len__(self) -> int:
        """Number of products in the index."""
        return len(self._ids)

    def __contains__(self, product_id: object) -> bool:
        """Tell whether the product can be found."""
        return product_id in self._row_of

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
        self._row_of_slot[self._slots.get(product_id)] = -1
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
        self._row_of_slot = np.full(max(1024, len(self._slots)), -1, dtype=np.int32)
        self._row_of_slot[self._slot_of_row[:n]] = np.arange(n)

    def _place(self, product_id: str, row: int) -> None:
        slot = self._slots.add(product_id)
        if slot >= len(self._row_of_slot):
            grown = np.full(max(1024, len(self._slots) + slot // 2), -1, dtype=np.int32)
            grown[: len(self._row_of_slot)] = self._row_of_slot
            self._row_of_slot = grown
        self._row_of[product_id] = row
        self._row_of_slot[slot] = row
        self._slot_of_row[row] = slot

    def search(
        self,
        queries: FloatMatrix,
        k: int,
        excluded: Sequence[Sequence[str]] | None = None,
        boosts: Sequence[Boosts] = (),
    ) -> list[tuple[list[str], FloatMatrix]]:
        """Find the k best products by inner product and boosts for each query, best first.

        Args:
            queries: Shape (q, d).
            k: How many; fewer come back only where fewer exist.
            excluded: A sequence of product ids a query, never returned for it.
            boosts: What is added to the inner products; minus infinity keeps a product out.

        Returns:
            For each query the product ids and their scores, float32 of shape (<= k,).

        Raises:
            ValueError: A wrong shape, or k below 1.
        """
        rows, scores = self._search(queries, k, excluded, boosts)
        ids = self._ids
        found: list[tuple[list[str], FloatMatrix]] = []
        for row_list, score_row in zip(rows.tolist(), scores, strict=True):
            if len(score_row) and score_row[-1] == -np.inf:  # fewer than k exist
                score_row = score_row[score_row > -np.inf]
            found.append(([ids[row] for row in row_list[: len(score_row)]], score_row))
        return found

    def search_slots(
        self, queries: FloatMatrix, k: int, boosts: Sequence[Boosts] = ()
    ) -> tuple[Rows, FloatMatrix]:
        """Find as :meth:`search` does, as arrays: slots and scores, both of shape (q, k).

        Where fewer than k exist, the last slots are -1 and their scores minus infinity.
        """
        rows, scores = self._search(queries, k, None, boosts)
        slots = np.full((len(queries), k), -1, dtype=np.intp)
        padded = np.full((len(queries), k), -np.inf, dtype=np.float32)
        width = scores.shape[1]
        padded[:, :width] = scores
        found = scores > -np.inf
        slots[:, :width][found] = self._slot_of_row[rows[found]]
        return slots, padded

    def _search(
        self,
        queries: FloatMatrix,
        k: int,
        excluded: Sequence[Sequence[str]] | None,
        boosts: Sequence[Boosts],
    ) -> tuple[Rows, FloatMatrix]:
        """Rows and scores, shape (q, min(k, n)), best first; minus infinity is none."""
        if queries.ndim != 2 or queries.shape[1] != self.dimensions:
            msg = f"queries of shape {queries.shape} for {self.dimensions} dimensions"
            raise ValueError(msg)
        if k < 1:
            msg = f"k must be positive, not {k}"
            raise ValueError(msg)
        width = min(k, len(self._ids))
        rows = np.zeros((len(queries), width), dtype=np.intp)
        scores = np.zeros((len(queries), width), dtype=np.float32)
        if not width:
            return rows, scores
        chunk = max(1, min(MAX_CHUNK, SCORE_BYTES // (4 * len(self._ids))))
        for start in range(0, len(queries), chunk):
            end = start + chunk
            part = excluded[start:end] if excluded is not None else None
            added = [self._boosted_rows(one, start, end) for one in boosts]
            rows[start:end], scores[start:end] = self._search_rows(
                queries[start:end], k, part, added
            )
        return rows, scores

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
        excluded: Sequence[Sequence[str]] | None,
        boosted: Sequence[tuple[NDArray[np.intp], Slots, FloatMatrix]],
    ) -> tuple[Rows, FloatMatrix]:
        n = len(self._ids)
        k = min(k, n)
        q = len(queries)
        block, blocks = _block_shape(n, k)
        padded = block * blocks
        scores = np.empty((q, padded), dtype=np.float32)
        np.matmul(queries, self._vectors[:n].T, out=scores[:, :n])
        scores[:, n:] = -np.inf
        for of_query, rows, weights in boosted:
            np.add.at(scores.reshape(-1), of_query * padded + rows, weights)
        if excluded is not None:
            self._mask(scores, excluded)
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

    def _mask(self, scores: FloatMatrix, excluded: Sequence[Sequence[str]]) -> None:
        query_of: list[int] = []
        rows: list[int] = []
        row_of = self._row_of
        for query, product_ids in enumerate(excluded):
            for product_id in product_ids:
                row = row_of.get(product_id)
                if row is not None:
                    query_of.append(query)
                    rows.append(row)
        if rows:
            scores[query_of, rows] = -np.inf


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
