"""The products in memory, as columns by slot: vectors, stock, what was learned, and the indexes."""

from __future__ import annotations

import binascii
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from udfs.facts import ProductFacts
from udfs.index import (
    Boosts,
    NearestNeighbours,
    SlotSnapshot,
    SlotTable,
    VectorTable,
    lengthen,
)
from udfs.inverted import fitting, index_of
from udfs.lexical_index import LexicalIndex
from udfs.product_record import MAX_SPACES, ProductRecord, RelatedRow, SpaceSwitch, most_held
from udfs.schemas import Reason, RejectedError

logger = logging.getLogger(__name__)

FloatMatrix = NDArray[np.float32]
Slots = NDArray[np.int32]
QueryEncoder = Callable[[str], FloatMatrix | None]

# Slots and categories are cleared of what is gone when there are twice as many as then, and these.
_LEAST_NUMBERED: Final = 4096
# Records that are taken at once where many come: products, and what was learned, which is larger.
_AT_ONCE: Final = 32_768
_LEARNED_AT_ONCE: Final = 4096
# A product has vectors of few spaces, but products may differ in which. Beside the active and the
# announced space, those that most products hold are kept, up to so many.
_MOST_SPACES: Final = 2 * MAX_SPACES
# A unit vector's length at most, with all that rounding does to it.
_LONGEST: Final = 1.01
_ABSENT: Final = 0
_OUT_OF_STOCK: Final = 1
_IN_STOCK: Final = 2


# A record and its vectors (d,) by space.
_Read = tuple[ProductRecord, dict[str, FloatMatrix]]


class Catalogue:
    """Products by id, with one active embedding space that alone is searched.

    The vectors of another space wait beside those of the active one. It becomes active in one step
    once it is announced (:class:`SpaceSwitch`) and at least ``switch_share`` as many products have
    a vector of it, or the announcement forces it. At no time do two spaces mix. A product without
    a vector of the active space stays: it is known, and found by no search until it has one.
    Without any announcement the first product's space is the active one.
    """

    def __init__(
        self,
        *,
        encoder: QueryEncoder | None = None,
        encoder_space: str | None = None,
        encoder_dimensions: int = 0,
        switch_share: float = 0.9,
        dimensions: int = 0,
    ) -> None:
        """Make an empty catalogue.

        Args:
            encoder: Embeds a search query; None where searches shall move nobody.
            encoder_space: The space in which ``encoder`` has a meaning.
            encoder_dimensions: Length of its vectors, which those of its space must have; 0: any.
            switch_share: Products that an announced space needs, as a share of those that have a
                vector of the active one, 0 to 1.
            dimensions: The vector length that every product must have; 0: a space's first product
                decides for that space, in :meth:`load` most of the first ones.
        """
        if not 0 < switch_share <= 1:
            msg = f"switch_share must be above 0 and at most 1, not {switch_share}"
            raise ValueError(msg)
        self._encoder = encoder
        self._encoder_space = encoder_space
        self._encoder_dimensions = encoder_dimensions
        self._switch_share = switch_share
        self._required_dimensions = dimensions
        self.slots = SlotTable()
        """Numbers the products for boosts and facts."""
        self.facts = ProductFacts(self.slots)
        """What is known of products beside their vectors."""
        self._stock: NDArray[np.int8] = np.zeros(0, dtype=np.int8)
        self._size = 0
        self._most_numbered = _LEAST_NUMBERED
        self._vectors: dict[str, VectorTable] = {}
        self._lexical = LexicalIndex()
        self._announced: SpaceSwitch | None = None
        self._is_loading = False
        self._active: str | None = None
        self._index: NearestNeighbours | None = None

    def __len__(self) -> int:
        """Number of products, in stock or not."""
        return self._size

    def knows(self, product_id: str) -> bool:
        """Tell whether the catalogue has a product."""
        slot = self.slots.get(product_id)
        return 0 <= slot < len(self._stock) and bool(self._stock[slot] != _ABSENT)

    @property
    def searchable(self) -> int:
        """Number of products that a lookup can return."""
        return len(self._index) if self._index is not None else 0

    @property
    def space(self) -> str | None:
        """Name of the active embedding space; None while no product has a vector."""
        return self._active

    @property
    def dimensions(self) -> int:
        """Vector length of the active space; 0 while there is none."""
        return self._vectors[self._active].dimensions if self._active is not None else 0

    def product_vector(self, product_id: str) -> FloatMatrix | None:
        """Vector (d,) of a product in the active space; None where there is none yet."""
        if self._active is None:
            return None
        return self._vectors[self._active].vector(self.slots.get(product_id))

    def query_vector(self, query: str) -> FloatMatrix | None:
        """Unit vector (d,) of a search; None where it has none in the active space."""
        if self._encoder is None or self._active is None or self._active != self._encoder_space:
            return None
        vector = self._encoder(query)
        return vector if vector is not None and len(vector) == self.dimensions else None

    def matches(self, query: str, limit: int) -> tuple[Slots, FloatMatrix]:
        """Find the products in stock that hold a search's words; see :class:`LexicalIndex`.

        Returns:
            Their slots and scores, both of shape (at most ``limit``,), best first.
        """
        return self._lexical.matches(query, limit)

    def search(self, queries: FloatMatrix, k: int) -> list[tuple[list[str], FloatMatrix]]:
        """Find the k products in stock nearest to each query: their ids and scores, best first."""
        found, scores = self.search_slots(queries, k)
        listed = [[slot for slot in row if slot >= 0] for row in found.tolist()]
        return [
            (list(map(self.slots.product_id, row)), given[: len(row)])
            for row, given in zip(listed, scores, strict=True)
        ]

    def search_slots(
        self, queries: FloatMatrix, k: int, boosts: Sequence[Boosts] = ()
    ) -> tuple[NDArray[np.intp], FloatMatrix]:
        """Find the k best products in stock; see :class:`NearestNeighbours`."""
        if self._index is None:
            shape = len(queries), k
            return np.full(shape, -1, dtype=np.intp), np.full(shape, -np.inf, dtype=np.float32)
        return self._index.search_slots(queries, k, boosts)

    def newcomers(self, since_ms: int, limit: int) -> NDArray[np.intp]:
        """Find the products in stock that were first seen after a time, the newest first.

        Where most of the catalogue is that new it has just been loaded, and nothing in it is.

        Args:
            since_ms: Epoch milliseconds.
            limit: The most products to return.

        Returns:
            Their slots, shape (at most ``limit``,).
        """
        if self._index is None:
            return np.zeros(0, dtype=np.intp)
        return self.facts.newest(since_ms, limit, self._size // 2, self._index.holds)

    def vectors(self, slots: NDArray[np.intp]) -> FloatMatrix:
        """Vectors of products in the active space by slot: (*slots.shape, d), zeros for others."""
        if self._active is None:
            return np.zeros((*slots.shape, 0), dtype=np.float32)
        return self._vectors[self._active].vectors(slots)

    def put(self, record: ProductRecord) -> RejectedError | None:
        """Insert or replace a product; the change holds for every later lookup.

        Returns:
            Why a vector is left out: it has another length than its space. The rest is taken.

        Raises:
            RejectedError: A vector is none; nothing changes.
        """
        slots, left_out = self._take({record.product_id: (record, _vectors(record))})
        self._settle()
        self._index_anew(slots)
        self._renumber_if_many()
        return left_out.get(record.product_id)

    def remove(self, product_id: str) -> None:
        """Remove a product (a tombstone); an absent one is no error.

        What was learned of it stays until :meth:`remove_related`.
        """
        if not self.knows(product_id):
            return
        slot = self.slots.get(product_id)
        self._stock[slot] = _ABSENT
        self._size -= 1
        self.facts.remove(slot)
        self._lexical.remove(slot)
        for table in self._vectors.values():
            table.drop(slot)
        self._index_anew(np.array([slot], dtype=np.int32))
        # Fewer products of the active space can be what an announced space was waiting for.
        self._settle()

    def put_related(self, row: RelatedRow) -> None:
        """Store what was learned of a product, which need not be there yet, nor what it names."""
        self.facts.put_related([row])
        self._renumber_if_many()

    def remove_related(self, product_id: str) -> None:
        """Forget what was learned of a product; an absent one is no error."""
        self.facts.remove_related(self.slots.get(product_id))

    def switch(self, announced: SpaceSwitch) -> None:
        """Take note of an announcement; of two the one that started later holds."""
        if self._announced is None or announced.started_ms >= self._announced.started_ms:
            self._announced = announced
            self._settle()

    def load(
        self,
        products: Iterable[ProductRecord],
        related: Iterable[RelatedRow],
        switch: SpaceSwitch | None,
    ) -> int:
        """Fill an empty catalogue, much faster than one by one; of equal ids the last one holds.

        Without an announcement the active space is the one that most products had first, as it is
        where they come one by one; else the one that most products have, or the announced one.

        Args:
            products: Consumed first, and whole.
            related: What was learned.
            switch: The newest announcement; one that :meth:`switch` is told meanwhile counts too.

        Returns:
            How many products :meth:`put` would refuse, or take without a vector; one is logged.
        """
        refused = 0
        first: tuple[str, RejectedError] | None = None
        # By slot the number of the space that a product had first.
        numbers = {"": 0}
        oldest = np.zeros(0, dtype=np.int32)
        self._announced = switch
        self._is_loading = True
        for records in _chunks(products, _AT_ONCE):
            taken: dict[str, _Read] = {}
            for record in records:
                try:
                    taken[record.product_id] = record, _vectors(record)
                except RejectedError as error:
                    refused += 1
                    first = first or (record.product_id, error)
            slots, left_out = self._take(taken)
            refused += len(left_out)
            first = first or next(iter(left_out.items()), None)
            lengthen(oldest, len(self.slots))
            oldest[slots] = [
                numbers.setdefault(next(iter(read), ""), len(numbers)) for _, read in taken.values()
            ]
        slots_of = SlotSnapshot(self.slots)
        for rows in _chunks(related, _LEARNED_AT_ONCE):
            self.facts.put_related(list({row.product_id: row for row in rows}.values()), slots_of)
        if first is not None:
            logger.error("product %s is left out or lacks a vector: %s", *first)
        self._is_loading = False
        counts = np.bincount(oldest, minlength=len(numbers)).tolist()
        self._settle(dict(zip(numbers, counts, strict=True)))
        self._expect_twice()
        return refused

    def _fit(self, taken: dict[str, _Read]) -> dict[str, RejectedError]:
        """Take out vectors that do not fit their space, and return why by product id.

        A new space has the length that most of these records have; of as many, the first.
        """
        lengths: dict[str, Counter[int]] = {}
        for _, vectors in taken.values():
            for space, vector in vectors.items():
                lengths.setdefault(space, Counter())[len(vector)] += 1
        left_out: dict[str, RejectedError] = {}
        for space, counts in lengths.items():
            table = self._vectors.get(space)
            wanted = {
                self._required_dimensions,
                table.dimensions if table is not None else 0,
                self._encoder_dimensions if space == self._encoder_space else 0,
            } - {0} or {counts.most_common(1)[0][0]}
            if wanted == counts.keys():
                continue
            for product_id, (_, vectors) in taken.items():
                length = len(vectors.get(space, ()))
                if length and wanted != {length}:
                    del vectors[space]
                    detail = f"{length} dimensions in a space of {min(wanted - {length})}: {space}"
                    left_out[product_id] = RejectedError(Reason.WRONG_LENGTH, detail)
        return left_out

    def _take(self, taken: dict[str, _Read]) -> tuple[Slots, dict[str, RejectedError]]:
        """Store records by product id in all columns but the index.

        Returns:
            Their slots, and what :meth:`_fit` left out.
        """
        left_out = self._fit(taken)
        slots = self.slots.extend(list(taken))
        lengthen(self._stock, len(self.slots))
        before = self._stock[slots]
        self._size += int(np.count_nonzero(before == _ABSENT))
        records = [record for record, _ in taken.values()]
        self._stock[slots] = [_IN_STOCK if one.in_stock else _OUT_OF_STOCK for one in records]
        self.facts.put(
            slots, [one.category for one in records], [one.first_seen_ms for one in records]
        )
        self._lexical.extend(
            (slot, one.title, one.category)
            for slot, one in zip(slots.tolist(), records, strict=True)
            if one.in_stock
        )
        for slot, one, stock in zip(slots.tolist(), records, before.tolist(), strict=True):
            if stock == _IN_STOCK and not one.in_stock:
                self._lexical.remove(slot)
        by_space: dict[str, dict[int, FloatMatrix]] = {space: {} for space in self._vectors}
        for at, (_, vectors) in enumerate(taken.values()):
            for space, vector in vectors.items():
                by_space.setdefault(space, {})[at] = vector
        for space, held in by_space.items():
            table = self._vectors.get(space)
            if table is None:
                table = self._vectors[space] = VectorTable(len(next(iter(held.values()))))
            if len(held) < len(slots):
                gone = table.holds(slots)
                gone[list(held)] = False
                for slot in slots[gone].tolist():
                    table.drop(slot)
            if held:
                table.extend(slots[list(held)], np.array(list(held.values())))
            if len(self._vectors) > _MOST_SPACES:
                safe = {space, self._active, self._announced.space if self._announced else None}
                others = {one: len(of) for one, of in self._vectors.items() if one not in safe}
                del self._vectors[min(others, key=lambda one: (others[one], one))]
        return slots, left_out

    def _settle(self, oldest: Mapping[str, int] | None = None) -> None:
        """Forget spaces without a product, and make that space the active one that should be.

        Args:
            oldest: By space, products that had it first; where nothing is announced they decide.
        """
        if self._is_loading:
            return  # once all is there: to fill an index takes seconds
        self._vectors = {space: table for space, table in self._vectors.items() if len(table)}
        held = {space: len(table) for space, table in self._vectors.items()}
        announced = self._announced
        votes = held
        if oldest is not None and announced is None:
            votes = {space: oldest.get(space, 0) for space in held}
        active = self._active if self._active in held else most_held(votes)
        if (
            announced is not None
            and active is not None
            and announced.space in held
            and (announced.force or held[announced.space] >= self._switch_share * held[active])
        ):
            active = announced.space
        if active == self._active:
            return
        self._active = active
        self._index = None
        if active is not None:
            slots, vectors = self._vectors[active].rows()
            shown = np.flatnonzero(self._stock[slots] == _IN_STOCK)
            self._index = index_of(self.slots, slots[shown], vectors[shown])

    def _index_anew(self, slots: Slots) -> None:
        """Bring the index up to date with the columns, for distinct slots (n,)."""
        if self._index is None or self._active not in self._vectors:
            return
        table = self._vectors[self._active]
        shown = (self._stock[slots] == _IN_STOCK) & table.holds(slots)
        for slot in slots[~shown].tolist():
            self._index.drop(slot)
        if shown.any():
            self._index.extend(slots[shown], table.vectors(slots[shown]))
            self._index = fitting(self._index)

    def _renumber_if_many(self) -> None:
        if len(self.slots) + self.facts.category_count > self._most_numbered:
            self._renumber()

    def _renumber(self) -> None:
        """Drop the slots and categories of products that are gone and that nothing names."""
        kept = np.zeros(len(self.slots), dtype=bool)
        stock = self._stock[: len(kept)]
        kept[: len(stock)] = stock != _ABSENT
        self.facts.mark_named(kept)
        renumbered = self.slots.keep(kept)
        self._stock = stock[kept[: len(stock)]]
        self.facts.renumber(renumbered)
        for table in self._vectors.values():
            table.renumber(renumbered)
        if self._index is not None:
            self._index.renumber(renumbered)
        self._lexical.renumber(renumbered)
        self._expect_twice()

    def _expect_twice(self) -> None:
        numbered = len(self.slots) + self.facts.category_count
        self._most_numbered = max(_LEAST_NUMBERED, 2 * numbered)


def _vectors(record: ProductRecord) -> dict[str, FloatMatrix]:
    return {space: _vector(text) for space, text in record.vectors.items()}


def _vector(text: str) -> FloatMatrix:
    """Decode a record's vector (d,); its maker has checked it, so that this costs little."""
    try:
        vector = np.frombuffer(binascii.a2b_base64(text), dtype="<f4")
    except ValueError as error:
        raise RejectedError(Reason.INVALID_VECTOR, f"no base64 of float32: {error}") from error
    # False for NaN, too. Nothing longer has a place in float16, and in the bounds of a search.
    if not 0 < vector.dot(vector) < _LONGEST**2:
        detail = "a vector that is not of length 1"
        raise RejectedError(Reason.INVALID_VECTOR, detail)
    return vector


_Item = TypeVar("_Item")


def _chunks(items: Iterable[_Item], length: int) -> Iterator[list[_Item]]:
    left = iter(items)
    while chunk := list(islice(left, length)):
        yield chunk
