"""What the catalogue knows of products beside their vectors, as arrays that a lookup can gather.

Addressed by slot (:class:`udfs.index.SlotTable`), so that a list of related products may name one
that is not there yet.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from udfs.index import SlotTable
from udfs.schemas import Product

Floats = NDArray[np.float32]
Slots = NDArray[np.int32]

NOWHERE: Final = -1
_LONGEST_DAYS: Final = 1e30
# Rows of the related products that are walked at once, so that masks stay small.
_ROWS_AT_ONCE: Final = 65_536


class ProductFacts:
    """Category, related products and rebuy times by slot.

    The related products are two matrices as wide as the longest list, padded with ``NOWHERE`` and
    0: gathering those of many interactions is one operation. At 100,000 products with 50 each they
    take 40 MB.
    """

    def __init__(self, slots: SlotTable) -> None:
        """Make an empty store over a table of slots."""
        self._slots = slots
        self._related: Slots = np.zeros((0, 0), dtype=np.int32)
        self._weights: Floats = np.zeros((0, 0), dtype=np.float32)
        self._repeats: Floats = np.zeros(0, dtype=np.float32)
        self._rebuy_days: Floats = np.zeros(0, dtype=np.float32)
        self._rebuy_shares: Floats = np.zeros(0, dtype=np.float32)
        self._categories: Slots = np.zeros(0, dtype=np.int32)
        self._first_seen_ms: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._category_names: list[str] = []
        self._category_numbers: dict[str, int] = {"": NOWHERE}

    @property
    def width(self) -> int:
        """Length of the longest list of related products so far; 0 where there was none."""
        return int(self._related.shape[1])

    @property
    def category_count(self) -> int:
        """Number of categories so far, those included that no product has any more."""
        return len(self._category_names)

    def put(self, product: Product, seen_ms: int = 0) -> None:
        """Store what a product says of itself, in place of what it said before.

        Args:
            product: The product.
            seen_ms: Now, epoch milliseconds; counts where the product was not there before.
        """
        slot = self._slots.add(product.product_id)
        related = dict(product.related or {})
        repeat = related.pop(product.product_id, 0.0)
        others = [self._slots.add(other) for other in related]
        self._make_room(len(self._slots), len(others))
        self._related[slot] = NOWHERE
        self._weights[slot] = 0
        self._related[slot, : len(others)] = others
        self._weights[slot, : len(others)] = list(related.values())
        self._repeats[slot] = repeat
        days = product.rebuy_days
        # What is beyond float32 is never, too.
        self._rebuy_days[slot] = np.inf if days is None or days > _LONGEST_DAYS else days
        self._rebuy_shares[slot] = product.rebuy_share
        number = self._category_numbers.setdefault(product.category, len(self._category_names))
        if number == len(self._category_names):
            self._category_names.append(product.category)
        self._categories[slot] = number
        if not self._first_seen_ms[slot]:
            self._first_seen_ms[slot] = seen_ms

    def remove(self, product_id: str) -> None:
        """Forget a product; it may still be named by others."""
        slot = self._slots.get(product_id)
        if not 0 <= slot < len(self._repeats):
            return
        self._related[slot] = NOWHERE
        self._weights[slot] = 0
        self._repeats[slot] = 0
        self._rebuy_days[slot] = np.inf
        self._rebuy_shares[slot] = 0
        self._categories[slot] = NOWHERE
        self._first_seen_ms[slot] = 0

    def first_seen_ms(self, product_id: str) -> int:
        """Time of a product's first sight, epoch milliseconds; 0 where it is not known."""
        slot = self._slots.get(product_id)
        return int(self._first_seen_ms[slot]) if 0 <= slot < len(self._first_seen_ms) else 0

    def seen_since(self, since_ms: int) -> NDArray[np.intp]:
        """Slots of the products first seen after a time, epoch milliseconds, the newest first."""
        slots = np.flatnonzero(self._first_seen_ms > since_ms)
        return slots[np.argsort(-self._first_seen_ms[slots], kind="stable")]

    def product(self, product_id: str) -> Product:
        """Say of a product what :meth:`put` stored, and nothing of its texts and vectors."""
        slot = self._slots.get(product_id)
        if not 0 <= slot < len(self._repeats):
            return Product(product_id, "", "")
        related = {
            self._slots.product_id(other): weight
            for other, weight in zip(
                self._related[slot].tolist(), self._weights[slot].tolist(), strict=True
            )
            if other != NOWHERE
        }
        if self._repeats[slot]:
            related[product_id] = float(self._repeats[slot])
        days = float(self._rebuy_days[slot])
        category = int(self._categories[slot])
        return Product(
            product_id,
            "",
            "",
            category="" if category == NOWHERE else self._category_names[category],
            related=related or None,
            rebuy_days=None if days == np.inf else days,
            rebuy_share=float(self._rebuy_shares[slot]),
        )

    def related(self, slots: NDArray[np.intp]) -> tuple[Slots, Floats]:
        """Related products and their weights for slots (e,): shapes (e, width), padded.

        ``NOWHERE`` and slots without a product have none.
        """
        if not len(self._repeats):
            empty = np.zeros((len(slots), 0))
            return empty.astype(np.int32), empty.astype(np.float32)
        known = (slots >= 0) & (slots < len(self._repeats))
        at = np.where(known, slots, 0)
        related = np.where(known[:, None], self._related[at], NOWHERE)
        return related, self._weights[at]

    def has_related(self, slots: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Tell which of the slots (e,) have related products."""
        if not self.width:
            return np.zeros(len(slots), dtype=bool)
        found: NDArray[np.bool_] = _gather(self._related[:, 0], slots, NOWHERE) != NOWHERE
        return found

    def repeats(self, slots: NDArray[np.intp]) -> Floats:
        """Weight of a product for those who have just touched it, shape (e,); 0 where unknown."""
        return _gather(self._repeats, slots, 0)

    def rebuys(self, slots: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Days until a bought product may come back (infinite: never), and its share of rebuys."""
        days = _gather(self._rebuy_days, slots, np.inf)
        return days, _gather(self._rebuy_shares, slots, 0)

    def categories(self, slots: NDArray[np.intp]) -> Slots:
        """Number of each product's category; ``NOWHERE`` where it has none."""
        return _gather(self._categories, slots, NOWHERE)

    def mark_related(self, kept: NDArray[np.bool_]) -> None:
        """Set ``kept``, shape (slots,), where a product names another one."""
        for start in range(0, len(self._related), _ROWS_AT_ONCE):
            part = self._related[start : start + _ROWS_AT_ONCE]
            kept[part[part != NOWHERE]] = True

    def renumber(self, new: Slots) -> None:
        """Follow the slots to new numbers, see :meth:`SlotTable.keep`, and forget what is unused.

        Slots keep their order, categories do not.
        """
        rows = np.flatnonzero(new[: len(self._repeats)] >= 0)
        related, weights = self._related[rows], self._weights[rows]
        width = int((related != NOWHERE).sum(axis=1).max(initial=0))
        width = -(-width // 8) * 8
        related, weights = related[:, :width], weights[:, :width]
        self._related = np.where(related == NOWHERE, NOWHERE, new[related])
        self._weights = weights.copy()
        self._repeats = self._repeats[rows]
        self._rebuy_days = self._rebuy_days[rows]
        self._rebuy_shares = self._rebuy_shares[rows]
        self._first_seen_ms = self._first_seen_ms[rows]
        used, numbers = np.unique(self._categories[rows], return_inverse=True)
        first = int(len(used) > 0 and used[0] == NOWHERE)
        self._categories = (numbers - first).astype(np.int32)
        self._category_names = [self._category_names[number] for number in used[first:].tolist()]
        self._category_numbers = {"": NOWHERE} | {
            name: number for number, name in enumerate(self._category_names)
        }

    def _make_room(self, slots: int, width: int) -> None:
        old, old_width = self._related.shape
        if slots <= old and width <= old_width:
            return
        rows = old if slots <= old else max(1024, slots + slots // 2)
        columns = old_width if width <= old_width else -(-width // 8) * 8
        related = np.full((rows, columns), NOWHERE, dtype=np.int32)
        weights = np.zeros((rows, columns), dtype=np.float32)
        related[:old, :old_width] = self._related
        weights[:old, :old_width] = self._weights
        self._related, self._weights = related, weights
        more = rows - old
        self._repeats = np.r_[self._repeats, np.zeros(more, dtype=np.float32)]
        self._rebuy_days = np.r_[self._rebuy_days, np.full(more, np.inf, dtype=np.float32)]
        self._rebuy_shares = np.r_[self._rebuy_shares, np.zeros(more, dtype=np.float32)]
        self._categories = np.r_[self._categories, np.full(more, NOWHERE, dtype=np.int32)]
        self._first_seen_ms = np.r_[self._first_seen_ms, np.zeros(more, dtype=np.int64)]


_Value = TypeVar("_Value", np.float32, np.int32)


def _gather(
    values: NDArray[_Value], slots: NDArray[np.integer[Any]], missing: float
) -> NDArray[_Value]:
    if not len(values):
        return np.full(slots.shape, missing, dtype=values.dtype)
    known = (slots >= 0) & (slots < len(values))
    return np.where(known, values[np.where(known, slots, 0)], values.dtype.type(missing))
