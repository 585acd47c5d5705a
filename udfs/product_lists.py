"""The lists of each product, made again when they may differ: similar, and bought together."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, Protocol
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from udfs.index import FloatMatrix, Slots, SlotTable
from udfs.schemas import SavedProductList

# Products of one lookup at most; fewer where a lookup takes longer than the time that is given.
BATCH: Final = 64
# Rows that one call returns, about: a tick waits until all of them are saved.
MOST_ROWS: Final = 1000
# Changed products that are remembered by their ids; where there are more, a sweep finds them.
MOST_WAITING: Final = 10_000
# Products a second whose lists a later round looks at.
REFRESH_PER_SECOND: Final = 20.0
# Slots that are looked at before the clock is.
_SCANNED: Final = 10_000
# Vectors are short floats, and a product's cosine depends on what it is looked up with by the last
# of a float's digits: a change below that is none.
_COSINE_DECIMALS: Final = 3
_NOTHING_SAVED: Final = 0

_Scored = list[tuple[str, float]]


class _Facts(Protocol):
    def related(self, slots: NDArray[np.intp]) -> tuple[Slots, FloatMatrix]:
        """Related products and their weights for slots (e,): shapes (e, width), padded by -1."""


class Products(Protocol):
    """What the lists are made of; :class:`udfs.catalogue.Catalogue`."""

    @property
    def slots(self) -> SlotTable:
        """The numbering of the products."""

    @property
    def facts(self) -> _Facts:
        """What was learned of them."""

    @property
    def space(self) -> str | None:
        """Name of the embedding space that is searched."""

    def knows(self, product_id: str) -> bool:
        """Tell whether there is such a product, in stock or not."""

    def product_vector(self, product_id: str) -> FloatMatrix | None:
        """Unit vector (d,) of a product; None where there is none."""

    def search_slots(self, queries: FloatMatrix, k: int) -> tuple[NDArray[np.intp], FloatMatrix]:
        """Slots and cosines, (q, k), of the nearest products in stock; -1 where there are fewer."""


class ProductLists:
    """Makes the lists of a subtask's share of the products, in the time that it is given.

    *Similar* are the products that were learned to follow one, the greatest weight first, and
    where these are fewer than ``length``, the nearest by vector behind them. *Bought together* are
    those that were learned alone. Today one kind of related products is learned, so both begin
    alike. Products that are not in the catalogue are in no list, those out of stock are left out by
    the reader; the nearest by vector were in stock when the list was made.

    Work is done in this order:

    1. Products that were removed, then those that have changed, or of which something else was
       learned.
    2. The sweep: each product of the share once, as fast as there is time. It follows a start, a
       change of the embedding space, and more changes at once than are remembered.
    3. Rounds: a change of one product can change the lists of others, which name it, or would. So
       after a change all lists of the share are looked at again, `REFRESH_PER_SECOND` products a
       second; a round follows another while there are changes, and then there is rest.

    Only lists that differ from those that were returned last are returned. What was returned is
    remembered as a hash of 8 bytes a slot, and forgotten with the process: after a start, each list
    is saved once. A product without either list has no row, which is what a deletion leaves.
    """

    def __init__(
        self,
        subtask: int,
        parallelism: int,
        length: int = 20,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Have nothing to do.

        Args:
            subtask: Which share: the products whose id has this remainder by its CRC-32.
            parallelism: How many shares there are.
            length: Products a list at most.
            clock: Seconds.
        """
        if length < 1:
            msg = f"length must be positive, not {length}"
            raise ValueError(msg)
        self._subtask = subtask
        self._parallelism = parallelism
        self._length = length
        self._clock = clock
        self._slots: SlotTable | None = None
        self._space: str | None = None
        self._saved: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        # No sweep would find what is gone, and it costs no lookup: so it waits without a bound.
        self._gone: deque[str] = deque()
        self._changed: dict[str, None] = {}
        # The next slot of the sweep or round; None while at rest.
        self._at: int | None = None
        self._sweeping = False
        # Whether another sweep, or round, must follow.
        self._sweep_again = self._look_again = False
        self._due_s = 0.0
        self._size = BATCH
        self._now_us = 0

    def start(self, catalogue: Products) -> None:
        """Begin a sweep."""
        if catalogue.slots is not self._slots:
            self._slots = catalogue.slots
            self._slots.follow(self._renumber)
            self._saved = np.zeros(0, dtype=np.int64)
        self._space = catalogue.space
        self._at, self._sweeping = 0, True

    def changed(self, product_id: str) -> None:
        """Note that a product is new, or that it or what was learned of it has changed."""
        self._touch()
        if not self._owns(product_id):
            return
        if product_id in self._changed or len(self._changed) < MOST_WAITING:
            self._changed[product_id] = None
        elif self._sweeping:
            self._sweep_again = True
        else:
            self._at, self._sweeping = 0, True

    def removed(self, product_id: str) -> None:
        """Note that a product is gone."""
        self._touch()
        if self._owns(product_id):
            self._gone.append(product_id)

    @property
    def pending(self) -> bool:
        """Whether there is something to do now."""
        return self.wait_s == 0

    @property
    def wait_s(self) -> float | None:
        """Seconds until there is something to do; None while at rest."""
        if self._gone or self._changed or (self._at is not None and self._sweeping):
            return 0.0
        return None if self._at is None else max(0.0, self._due_s - self._clock())

    def work(self, catalogue: Products, budget_s: float, now_us: int) -> list[SavedProductList]:
        """Make lists until the time is over or nothing is to do; at least one lookup is made.

        Args:
            catalogue: The products as they are now.
            budget_s: Seconds that it may take, about.
            now_us: The clock, epoch microseconds.

        Returns:
            The rows that have changed.
        """
        if catalogue.slots is not self._slots or catalogue.space != self._space:
            self.start(catalogue)
        self._now_us = max(now_us, self._now_us)
        rows: list[SavedProductList] = []
        began = now = self._clock()
        while len(rows) < MOST_ROWS and now - began <= budget_s and self.pending:
            rows.extend(self._differing(catalogue, self._next(catalogue)))
            before, now = now, self._clock()
            if now - before > budget_s:
                self._size = max(1, self._size // 2)
            elif now - before < budget_s / 4:
                self._size = min(BATCH, self._size * 2)
        return rows

    def _owns(self, product_id: str) -> bool:
        hashed = crc32(product_id.encode("utf-8", "surrogatepass"))
        return hashed % self._parallelism == self._subtask

    def _touch(self) -> None:
        """Have the lists of all others looked at; what was looked at before counts no more."""
        if self._at is None:
            self._at = 0
        else:
            self._look_again = True

    def _next(self, catalogue: Products) -> list[str]:
        """Take the products that are next."""
        if self._gone:
            waiting = (self._gone.popleft() for _ in range(min(self._size, len(self._gone))))
            return list(dict.fromkeys(waiting))
        if self._changed:
            batch = list(islice(self._changed, self._size))
            for product_id in batch:
                del self._changed[product_id]
            return batch
        slots, at = catalogue.slots, self._at or 0
        end = min(len(slots), at + _SCANNED)
        batch = []
        while at < end and len(batch) < self._size:
            product_id = slots.product_id(at)
            if self._owns(product_id) and (catalogue.knows(product_id) or self._has_row(at)):
                batch.append(product_id)
            at += 1
        self._at = at
        if not self._sweeping:
            self._due_s = self._clock() + len(batch) / REFRESH_PER_SECOND
        if at >= len(slots):
            again = self._sweep_again or self._look_again
            self._at, self._sweeping = (0 if again else None), self._sweep_again
            # Of two sweeps it is the second that the round follows.
            self._look_again = self._look_again and self._sweep_again
            self._sweep_again = False
        return batch

    def _differing(
        self, catalogue: Products, product_ids: Sequence[str]
    ) -> Iterator[SavedProductList]:
        """Yield the lists of products that are not as they were saved."""
        # Of the same time a deletion would win, and a product can come twice in one call.
        self._now_us += 1
        slots = catalogue.slots.find(product_ids)
        if len(self._saved) < len(catalogue.slots):
            room = max(1024, len(catalogue.slots) * 3 // 2)
            self._saved = np.r_[self._saved, np.zeros(room - len(self._saved), dtype=np.int64)]
        made = self._lists(catalogue, product_ids, np.array(slots, dtype=np.intp))
        for product_id, slot, (similar, together) in zip(product_ids, slots, made, strict=True):
            if slot >= 0:
                saved = _hash(similar, together)
                if self._saved[slot] == saved:
                    continue
                self._saved[slot] = saved
            yield SavedProductList(product_id, similar, together, self._now_us)

    def _lists(
        self, catalogue: Products, product_ids: Sequence[str], slots: NDArray[np.intp]
    ) -> Iterator[tuple[_Scored, _Scored]]:
        """Yield both lists of each product; of one that is not there, empty ones."""
        if not len(slots):
            return
        related, weights = catalogue.facts.related(slots)
        learned = [
            self._learned(catalogue, product_id, others.tolist(), given.tolist())
            if catalogue.knows(product_id)
            else []
            for product_id, others, given in zip(product_ids, related, weights, strict=True)
        ]
        lacking: dict[str, FloatMatrix] = {}
        for product_id, found in zip(product_ids, learned, strict=True):
            if len(found) < self._length and catalogue.knows(product_id):
                vector = catalogue.product_vector(product_id)
                if vector is not None:
                    lacking[product_id] = vector
        near = self._nearest(catalogue, lacking)
        for product_id, found in zip(product_ids, learned, strict=True):
            # Every weight beats every cosine, also for who sorts by the score.
            similar = [(other, 1.0 + weight) for other, weight in found]
            names = {product_id, *(other for other, _ in found)}
            fitting = (one for one in near.get(product_id, ()) if one[0] not in names)
            similar.extend(islice(fitting, self._length - len(similar)))
            yield similar, found

    def _learned(
        self,
        catalogue: Products,
        product_id: str,
        related: Iterable[int],
        weights: Iterable[float],
    ) -> _Scored:
        # Ties by the id: slots are numbered otherwise in another process.
        best = sorted(
            (-weight, catalogue.slots.product_id(slot))
            for slot, weight in zip(related, weights, strict=True)
            if slot >= 0 and weight > 0
        )
        others = (
            (other, -weight)
            for weight, other in best
            if other != product_id and catalogue.knows(other)
        )
        return list(islice(others, self._length))

    def _nearest(self, catalogue: Products, vectors: dict[str, FloatMatrix]) -> dict[str, _Scored]:
        """Find the nearest products of each vector, the product itself among them, best first."""
        if not vectors:
            return {}
        queries = np.stack(list(vectors.values())).astype(np.float32, copy=False)
        # The product itself is one of them, and each learned one takes a place of the list.
        found, cosines = catalogue.search_slots(queries, self._length + 1)
        cosines = np.minimum(cosines.astype(np.float64).round(_COSINE_DECIMALS), 1)
        return {
            product_id: sorted(
                (
                    (catalogue.slots.product_id(slot), cosine)
                    for slot, cosine in zip(row, scores, strict=True)
                    if slot >= 0
                ),
                key=lambda one: (-one[1], one[0]),
            )
            for product_id, row, scores in zip(
                vectors, found.tolist(), cosines.tolist(), strict=True
            )
        }

    def _has_row(self, slot: int) -> bool:
        """Tell whether a row of the product of a slot was returned, and is to be deleted."""
        return slot < len(self._saved) and self._saved[slot] not in (_NOTHING_SAVED, _EMPTY)

    def _renumber(self, new: Slots) -> None:
        """Follow the slots to new numbers, see :meth:`SlotTable.keep`."""
        known = new[: len(self._saved)]
        self._saved = self._saved[: len(known)][known >= 0]
        if self._at is not None:
            self._at = int((new[: self._at] >= 0).sum())


def _hash(similar: _Scored, together: _Scored) -> int:
    return hash((tuple(similar), tuple(together))) or 1


_EMPTY: Final = _hash([], [])
