"""What the catalogue knows of products beside their vectors, as arrays that a lookup can gather.

Addressed by slot (:class:`udfs.index.SlotTable`), so that a list of related products may name one
that is not there yet. What the shop says of a product and what was learned of it come and go each
by itself.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from udfs.index import Numbering, SlotSnapshot, SlotTable, gathered, lengthen
from udfs.product_record import RelatedRow

Floats = NDArray[np.float32]
Slots = NDArray[np.int32]

NOWHERE: Final = -1
_LONGEST_DAYS: Final = 1e30
# Rows of the related products that are walked at once, so that what is made of them stays small.
_ROWS_AT_ONCE: Final = 65_536
_LATEST_S: Final = 2**32 - 1
_ABSENT: Final = np.uint32(0)


class ProductFacts:
    """Category, first sight, related products and rebuy times by slot.

    The related products are two matrices as wide as the longest list, padded with ``NOWHERE`` and
    0: gathering those of many interactions is one operation. A product with 50 takes 300 bytes:
    slots are int32, weights float16.
    """

    def __init__(self, slots: SlotTable) -> None:
        """Make an empty store over a table of slots."""
        self._slots = slots
        self._related: Slots = np.zeros((0, 0), dtype=np.int32)
        self._weights: NDArray[np.float16] = np.zeros((0, 0), dtype=np.float16)
        self._repeats: NDArray[np.float16] = np.zeros(0, dtype=np.float16)
        self._rebuy_days: Floats = np.zeros(0, dtype=np.float32)
        self._rebuy_shares: NDArray[np.float16] = np.zeros(0, dtype=np.float16)
        self._categories: Slots = np.zeros(0, dtype=np.int32)
        self._first_seen_s: NDArray[np.uint32] = np.zeros(0, dtype=np.uint32)
        self._numbering = _numbering(())
        # Second of the first sight and slot in one integer a product, ascending once it is sorted.
        self._sights = array("Q")
        self._is_sorted = True

    @property
    def width(self) -> int:
        """Length of the longest list of related products so far; 0 where there was none."""
        return int(self._related.shape[1])

    @property
    def category_count(self) -> int:
        """Number of categories so far, those included that no product has any more."""
        return len(self._numbering.names)

    def put(self, slots: Slots, categories: Sequence[str], first_seen_ms: Sequence[int]) -> None:
        """Store what products say of themselves, in place of what they said before.

        Args:
            slots: Distinct slots, shape (n,).
            categories: Their categories; empty where there is none.
            first_seen_ms: When each was first seen, epoch milliseconds.
        """
        lengthen(self._categories, len(self._slots), NOWHERE)
        lengthen(self._first_seen_s, len(self._slots))
        self._categories[slots] = self._numbering.of(categories)
        seconds = [min(max(ms // 1000, 1), _LATEST_S) for ms in first_seen_ms]
        seen = np.array(seconds, dtype=np.uint32)
        changed = np.flatnonzero(self._first_seen_s[slots] != seen)
        if len(changed):
            self._forget_sights(slots[changed])
            self._first_seen_s[slots] = seen
            self._add_sights(_sights(seen[changed], slots[changed]))

    def remove(self, slot: int) -> None:
        """Forget what a product said of itself; what was learned of it stays."""
        if 0 <= slot < len(self._categories):
            self._categories[slot] = NOWHERE
            self._forget_sights(np.array([slot], dtype=np.int32))

    def put_related(self, rows: Sequence[RelatedRow], slots_of: SlotSnapshot | None = None) -> None:
        """Store what was learned of distinct products, in place of what was known before.

        Args:
            rows: What was learned, at most one of each product.
            slots_of: Finds the slots of many products faster.
        """
        count = len(rows)
        extend = (slots_of or self._slots).extend
        slots = extend([row.product_id for row in rows])
        lengths = np.fromiter((len(row.related) for row in rows), np.int64, count)
        others = extend(list(chain.from_iterable(row.related for row in rows)))
        weights = np.fromiter(
            chain.from_iterable(row.related.values() for row in rows), np.float16, len(others)
        )
        own = others == np.repeat(slots, lengths)
        repeats = np.zeros(count, dtype=np.float16)
        if own.any():
            owners = np.repeat(np.arange(count), lengths)
            repeats[owners[own]] = weights[own]
            others, weights = others[~own], weights[~own]
            lengths = np.bincount(owners[~own], minlength=count)
        self._make_room(int(slots.max(initial=-1)) + 1, int(lengths.max(initial=0)))
        filled = np.arange(self.width) < lengths[:, None]
        row = np.full(filled.shape, NOWHERE, dtype=np.int32)
        row[filled] = others
        self._related[slots] = row
        row_weights = np.zeros(filled.shape, dtype=np.float16)
        row_weights[filled] = weights
        self._weights[slots] = row_weights
        self._repeats[slots] = repeats
        # What is beyond float32 is never, too.
        self._rebuy_days[slots] = [
            np.inf if row.rebuy_days is None or row.rebuy_days > _LONGEST_DAYS else row.rebuy_days
            for row in rows
        ]
        self._rebuy_shares[slots] = [row.rebuy_share for row in rows]

    def remove_related(self, slot: int) -> None:
        """Forget what was learned of a product."""
        if 0 <= slot < len(self._repeats):
            self._related[slot] = NOWHERE
            self._weights[slot] = 0
            self._repeats[slot] = 0
            self._rebuy_days[slot] = np.inf
            self._rebuy_shares[slot] = 0

    def newest(
        self,
        since_ms: int,
        limit: int,
        most: int,
        kept: Callable[[NDArray[np.intp]], NDArray[np.bool_]],
    ) -> NDArray[np.intp]:
        """Find the products first seen after a time, the newest first.

        Args:
            since_ms: Epoch milliseconds, of which the second counts.
            limit: The most to return.
            most: Where more than so many were first seen since, none is returned.
            kept: Tells which of some slots may be returned.

        Returns:
            Their slots, shape (at most ``limit``,).
        """
        self._sort_sights()
        since = min(max(0, since_ms // 1000), _LATEST_S)
        first = bisect_right(self._sights, since << 32 | 0xFFFFFFFF)
        parts = [np.zeros(0, dtype=np.intp)]
        end = len(self._sights)
        if end - first > most:
            return parts[0]
        found = 0
        while end > first and found < limit:
            start = max(first, end - 4 * limit)
            keys = np.array(self._sights[start:end])
            slots = (keys & np.uint64(0xFFFFFFFF)).astype(np.intp)[::-1]
            parts.append(slots[kept(slots)])
            found += len(parts[-1])
            end = start
        return np.concatenate(parts)[:limit]

    def related(self, slots: NDArray[np.integer[Any]]) -> tuple[Slots, Floats]:
        """Related products and their weights for slots (e,): shapes (e, width), padded.

        ``NOWHERE`` and slots of which nothing was learned have none.
        """
        if not len(self._repeats):
            empty = np.zeros((len(slots), 0))
            return empty.astype(np.int32), empty.astype(np.float32)
        related = gathered(self._related, slots, NOWHERE)
        return related, gathered(self._weights, slots, 0).astype(np.float32)

    def has_related(self, slots: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Tell which of the slots (e,) have related products."""
        if not self.width:
            return np.zeros(len(slots), dtype=bool)
        found: NDArray[np.bool_] = gathered(self._related[:, 0], slots, NOWHERE) != NOWHERE
        return found

    def repeats(self, slots: NDArray[np.integer[Any]]) -> Floats:
        """Weight of a product for those who have just touched it, shape (e,); 0 where unknown."""
        return gathered(self._repeats, slots, 0).astype(np.float32)

    def rebuys(self, slots: NDArray[np.integer[Any]]) -> tuple[Floats, Floats]:
        """Days until a bought product may come back (infinite: never), and its share of rebuys."""
        days = gathered(self._rebuy_days, slots, np.inf)
        return days, gathered(self._rebuy_shares, slots, 0).astype(np.float32)

    def categories(self, slots: NDArray[np.integer[Any]]) -> Slots:
        """Number of each product's category; ``NOWHERE`` where it has none."""
        return gathered(self._categories, slots, NOWHERE)

    def mark_named(self, kept: NDArray[np.bool_]) -> None:
        """Set ``kept``, shape (slots,), where something was learned of a product, or names it."""
        for start in range(0, len(self._related), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            part = self._related[rows]
            kept[part[part != NOWHERE]] = True
            learned = (part != NOWHERE).any(axis=1) | (self._repeats[rows] != 0)
            learned |= (self._rebuy_days[rows] != np.inf) | (self._rebuy_shares[rows] != 0)
            kept[start + np.flatnonzero(learned)] = True

    def renumber(self, new: Slots) -> None:
        """Follow the slots to new numbers, see :meth:`SlotTable.keep`, and forget what is unused.

        Slots keep their order, categories do not.
        """
        rows = np.flatnonzero(new[: len(self._repeats)] >= 0)
        width = 0
        # Rows only move towards the front, so that they can do so in place.
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            moving = rows[start : start + _ROWS_AT_ONCE]
            part = self._related[moving]
            width = max(width, int((part != NOWHERE).sum(axis=1).max(initial=0)))
            self._related[start : start + len(moving)] = np.where(part >= 0, new[part], NOWHERE)
            self._weights[start : start + len(moving)] = self._weights[moving]
        if width < self.width:
            self._related = self._related[: len(rows), :width].copy()
            self._weights = self._weights[: len(rows), :width].copy()
        else:
            self._related.resize((len(rows), width), refcheck=False)
            self._weights.resize((len(rows), width), refcheck=False)
        self._repeats = self._repeats[rows]
        self._rebuy_days = self._rebuy_days[rows]
        self._rebuy_shares = self._rebuy_shares[rows]
        rows = np.flatnonzero(new[: len(self._categories)] >= 0)
        self._first_seen_s = self._first_seen_s[rows]
        seen = np.flatnonzero(self._first_seen_s)
        self._sights = array("Q", _sights(self._first_seen_s[seen], seen).tobytes())
        self._is_sorted = False
        used, numbers = np.unique(self._categories[rows], return_inverse=True)
        first = int(len(used) > 0 and used[0] == NOWHERE)
        self._categories = (numbers - first).astype(np.int32)
        names = self._numbering.names
        self._numbering = _numbering(names[at] for at in used[first:].tolist())

    def _forget_sights(self, slots: Slots) -> None:
        gone = slots[self._first_seen_s[slots] != _ABSENT]
        if len(gone):
            self._sort_sights()
        for sight in _sights(self._first_seen_s[gone], gone).tolist():
            del self._sights[bisect_left(self._sights, sight)]
        self._first_seen_s[gone] = _ABSENT

    def _add_sights(self, sights: NDArray[np.uint64]) -> None:
        if len(sights) == 1 and self._is_sorted:
            insort(self._sights, int(sights[0]))
        else:
            self._sights.frombytes(sights.tobytes())
            self._is_sorted = self._is_sorted and not len(sights)

    def _sort_sights(self) -> None:
        if not self._is_sorted:
            self._sights = array("Q", np.sort(np.array(self._sights)).tobytes())
            self._is_sorted = True

    def _make_room(self, slots: int, width: int) -> None:
        if width > self.width:
            old = len(self._related)
            related = np.full((old, width), NOWHERE, dtype=np.int32)
            weights = np.zeros((old, width), dtype=np.float16)
            related[:, : self.width] = self._related
            weights[:, : self.width] = self._weights
            self._related, self._weights = related, weights
        lengthen(self._related, slots, NOWHERE)
        lengthen(self._weights, slots)
        lengthen(self._repeats, slots)
        lengthen(self._rebuy_days, slots, np.inf)
        lengthen(self._rebuy_shares, slots)


def _numbering(categories: Iterable[str]) -> Numbering:
    """Number categories, and none where there is none."""
    numbering = Numbering(categories)
    numbering[""] = NOWHERE
    return numbering


def _sights(seconds: NDArray[Any], slots: NDArray[np.integer[Any]]) -> NDArray[np.uint64]:
    """Time and slot of first sights in one integer each, in the order of both."""
    return seconds.astype(np.uint64) << np.uint64(32) | slots.astype(np.uint64)
