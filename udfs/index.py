"""The numbering of the products, what an index is, and the exact one.

The exact index finds nearest neighbours by one matrix product and block maxima, updated in place;
the approximate one of a large catalogue is `udfs.inverted`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

FloatMatrix = NDArray[np.float32]
Rows = NDArray[np.intp]
Slots = NDArray[np.int32]

# Queries scored in one matrix product: large enough for the BLAS kernel, small enough that the
# scores (queries × products × 4 bytes) stay within a bounded memory at large catalogues.
SCORE_BYTES: Final = 64 * 2**20
MAX_CHUNK: Final = 256


class Numbering(dict[str, int]):
    """Numbers names from 0 on: ``numbering[name]`` is the number of a name, new ones included."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Number distinct names in their order."""
        self.names = list(names)
        super().__init__(zip(self.names, range(len(self.names)), strict=True))

    def __missing__(self, name: str) -> int:
        """Give a new name the next number."""
        number = self[name] = len(self.names)
        self.names.append(name)
        return number

    def of(self, names: Sequence[str]) -> Slots:
        """Number of each name, shape (n,)."""
        return np.fromiter(map(self.__getitem__, names), np.int32, len(names))


class SlotTable:
    """Numbers product ids from 0 on: what refers to a product need not follow its moves.

    A slot is a few bytes in each array that is addressed by it; it is kept when its product goes,
    as others may still name it, until :meth:`keep` drops those that nobody needs.
    """

    def __init__(self) -> None:
        """Make an empty table."""
        self._numbering = Numbering()
        self._followers: list[Callable[[Slots], None]] = []

    def __len__(self) -> int:
        """Number of slots."""
        return len(self._numbering.names)

    def get(self, product_id: str) -> int:
        """Slot of a product id; -1 where it has none."""
        return self._numbering.get(product_id, -1)

    def add(self, product_id: str) -> int:
        """Slot of a product id, a new one where it has none yet."""
        return self._numbering[product_id]

    def ids(self) -> Sequence[str]:
        """Product ids by slot; not to be changed."""
        return self._numbering.names

    def extend(self, product_ids: Sequence[str]) -> Slots:
        """Slots of product ids, shape (n,); new ones where they have none yet."""
        return self._numbering.of(product_ids)

    def find(self, product_ids: Iterable[str]) -> list[int]:
        """Slots of product ids, -1 for each that has none."""
        get = self._numbering.get
        return [get(product_id, -1) for product_id in product_ids]

    def names(self, slots: NDArray[np.intp]) -> list[list[str]]:
        """Product ids of slots (q, k), whatever where a slot is -1."""
        ids = self._numbering.names
        return [[ids[slot] for slot in row] for row in slots.tolist()]

    def follow(self, follower: Callable[[Slots], None]) -> None:
        """Call ``follower`` after each :meth:`keep`, with what that returns."""
        self._followers.append(follower)

    def keep(self, kept: NDArray[np.bool_]) -> Slots:
        """Drop the slots that are not ``kept``, shape (slots,); the others keep their order.

        Returns:
            The new slot of each old one, -1 where it was dropped.
        """
        self._numbering = Numbering(compress(self._numbering.names, kept.tolist()))
        renumbered = np.full(len(kept), -1, dtype=np.int32)
        renumbered[kept] = np.arange(len(self))
        for follower in self._followers:
            follower(renumbered)
        return renumbered

    def product_id(self, slot: int) -> str:
        """Product id of a slot."""
        return self._numbering.names[slot]


class SlotSnapshot:
    """Finds the slots of many product ids at once, several times faster than one by one.

    By 64 bits of their hash, and with all look-ups of a call in a few steps of NumPy, so that they
    wait for memory together. That two of a million ids have one hash, by which one would be taken
    for the other, has a chance of 1 in 10^7. It knows the slots that were there when it was made.
    """

    def __init__(self, slots: SlotTable) -> None:
        """Take the slots as they are now; 20 bytes each."""
        self._slots = slots
        hashes = _hashes(slots.ids())
        order = np.argsort(hashes)
        self._slot_of = np.append(order, -1).astype(np.int32)
        self._hashes = np.append(hashes[order], np.uint64(2**64 - 1))
        bits = max(1, len(order).bit_length())
        self._shift = np.uint64(64 - bits)
        firsts = np.arange(2**bits, dtype=np.uint64) << self._shift
        self._starts = np.searchsorted(self._hashes[:-1], firsts).astype(np.int32)
        """Where the hashes begin whose highest bits are a number."""

    def extend(self, product_ids: Sequence[str]) -> Slots:
        """Slots of product ids, shape (n,); new ones where they have none yet."""
        wanted = _hashes(product_ids)
        at = self._starts[wanted >> self._shift]
        behind = np.flatnonzero(self._hashes[at] < wanted)
        while len(behind):
            at[behind] += 1
            behind = behind[self._hashes[at[behind]] < wanted[behind]]
        slots = np.where(self._hashes[at] == wanted, self._slot_of[at], np.int32(-1))
        for missing in np.flatnonzero(slots < 0).tolist():
            slots[missing] = self._slots.add(product_ids[missing])
        return slots


def _hashes(names: Sequence[str]) -> NDArray[np.uint64]:
    return np.fromiter(map(hash, names), np.int64, len(names)).view(np.uint64)


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

    def extend(self, slots: Slots, vectors: NDArray[np.floating[Any]]) -> None:
        """Insert or replace many products: distinct slots (n,) and their unit vectors (n, d)."""

    def drop(self, slot: int) -> None:
        """Take a product out by its slot; an absent one is no error."""

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


def lengthen(values: NDArray[Any], length: int, fill: float = 0) -> None:
    """Give an array at least ``length`` rows, in place; nobody else may hold a view of it.

    A large array grows without a copy and by an eighth, so that little memory waits for use.
    """
    old = len(values)
    if length > old:
        rows = length + max(1024, length // 8)
        values.resize((rows, *values.shape[1:]), refcheck=False)
        values[old:] = fill


class VectorTable:
    """Vectors of products by slot, as rows of one matrix, dense at the front.

    A removal moves the last row.
    """

    def __init__(self, dimensions: int, dtype: type[np.floating[Any]] = np.float16) -> None:
        """Make an empty table of vectors of ``dimensions`` numbers."""
        if dimensions < 1:
            msg = f"dimensions must be positive, not {dimensions}"
            raise ValueError(msg)
        self.dimensions = dimensions
        self._size = 0
        self._vectors: NDArray[np.floating[Any]] = np.zeros((0, dimensions), dtype=dtype)
        self._row_of_slot: Slots = np.zeros(0, dtype=np.int32)
        self._slot_of_row: Slots = np.zeros(0, dtype=np.int32)

    def __len__(self) -> int:
        """Number of products."""
        return self._size

    def rows(self) -> tuple[Slots, NDArray[np.floating[Any]]]:
        """Slots (n,) and vectors (n, d) of all products: views, to be dropped before a change."""
        return self._slot_of_row[: self._size], self._vectors[: self._size]

    def extend(self, slots: Slots, vectors: NDArray[np.floating[Any]]) -> None:
        """Insert or replace many products: distinct slots (n,) and their vectors (n, d)."""
        if vectors.shape != (len(slots), self.dimensions):
            msg = f"vectors of shape {vectors.shape} for {self.dimensions} dimensions"
            raise ValueError(msg)
        lengthen(self._row_of_slot, int(slots.max(initial=-1)) + 1, -1)
        rows = self._row_of_slot[slots]
        new = np.flatnonzero(rows < 0)
        rows[new] = np.arange(self._size, self._size + len(new))
        self._size += len(new)
        lengthen(self._vectors, self._size)
        lengthen(self._slot_of_row, self._size)
        self._vectors[rows] = vectors
        self._slot_of_row[rows] = slots
        self._row_of_slot[slots] = rows

    def drop(self, slot: int) -> None:
        """Take a product out by its slot; an absent one is no error."""
        row = int(self._row_of_slot[slot]) if 0 <= slot < len(self._row_of_slot) else -1
        if row < 0:
            return
        self._size -= 1
        last = int(self._slot_of_row[self._size])
        self._vectors[row] = self._vectors[self._size]
        self._slot_of_row[row] = last
        self._row_of_slot[last] = row
        self._row_of_slot[slot] = -1

    def renumber(self, new: Slots) -> None:
        """Follow the slots to new numbers, see :meth:`SlotTable.keep`; products keep theirs."""
        slots = new[self._slot_of_row[: self._size]]
        self._slot_of_row[: self._size] = slots
        self._row_of_slot = np.full(int(new.max(initial=-1)) + 1, -1, dtype=np.int32)
        self._row_of_slot[slots] = np.arange(self._size)

    def holds(self, slots: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Tell which of the slots have a vector."""
        held: NDArray[np.bool_] = self._rows_of(slots) >= 0
        return held

    def vectors(self, slots: NDArray[np.integer[Any]]) -> FloatMatrix:
        """Vectors of products by slot: shape (*slots.shape, d); zeros where there is none."""
        if not self._size:
            return np.zeros((*slots.shape, self.dimensions), dtype=np.float32)
        rows = self._rows_of(slots)
        found: FloatMatrix = self._vectors[np.maximum(rows, 0)].astype(np.float32, copy=False)
        found[rows < 0] = 0
        return found

    def _rows_of(self, slots: NDArray[np.integer[Any]]) -> Slots:
        return gathered(self._row_of_slot, slots, -1)


_Value = TypeVar("_Value", bound=np.generic)


def gathered(
    values: NDArray[_Value], slots: NDArray[np.integer[Any]], missing: float
) -> NDArray[_Value]:
    """Values by slot, in the shape of ``slots``; ``missing`` for slots beyond the array, and -1."""
    if not len(values):
        return np.full(slots.shape, missing, dtype=values.dtype)
    found: NDArray[_Value] = values.take(slots, axis=0, mode="clip")
    unknown = (slots < 0) | (slots >= len(values))
    if unknown.any():
        found[unknown] = missing
    return found


class ExactIndex(VectorTable):
    """An index that scores every product.

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
        super().__init__(dimensions, np.float32)
        self.slots = slots if slots is not None else SlotTable()

    def __contains__(self, product_id: object) -> bool:
        """Tell whether the product can be found."""
        slot = self.slots.get(product_id) if isinstance(product_id, str) else -1
        return bool(self.holds(np.array([slot]))[0])

    def upsert(self, product_id: str, vector: FloatMatrix) -> None:
        """Insert or replace a product's unit vector, shape (d,).

        Raises:
            ValueError: The vector has another length than the index.
        """
        if vector.shape != (self.dimensions,):
            msg = f"a vector of shape {vector.shape} in an index of {self.dimensions} dimensions"
            raise ValueError(msg)
        self.extend(np.array([self.slots.add(product_id)], dtype=np.int32), vector[None, :])

    def remove(self, product_id: str) -> None:
        """Take a product out; an absent one is no error."""
        self.drop(self.slots.get(product_id))

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
        width = min(k, self._size)
        if not width:
            return slots, scores
        chunk = max(1, min(MAX_CHUNK, SCORE_BYTES // (4 * self._size)))
        for start in range(0, len(queries), chunk):
            end = start + chunk
            added = [self._boosted_rows(one, start, end) for one in boosts]
            rows, found = self._search_rows(queries[start:end], width, added)
            slots[start:end, :width] = np.where(found > -np.inf, self._slot_of_row[rows], -1)
            scores[start:end, :width] = found
        return slots, scores

    def _boosted_rows(
        self, boosts: Boosts, start: int, end: int
    ) -> tuple[NDArray[np.intp], Slots, FloatMatrix]:
        """Queries, rows and weights of the boosts that hold for a chunk of the queries."""
        a, b = np.searchsorted(boosts.queries, (start, end)).tolist()
        # A slot beyond the table has never been a product of this index.
        rows = self._rows_of(boosts.slots[a:b])
        kept = np.flatnonzero(rows >= 0)
        return boosts.queries[a:b][kept] - start, rows[kept], boosts.weights[a:b][kept]

    def _search_rows(
        self,
        queries: FloatMatrix,
        k: int,
        boosted: Sequence[tuple[NDArray[np.intp], Slots, FloatMatrix]],
    ) -> tuple[Rows, FloatMatrix]:
        n, q = self._size, len(queries)
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
