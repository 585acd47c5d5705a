"""What answers need to know of products and of lists that belong to nobody, from memory first."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, Generic, TypeVar

from api.catalogue_memory import CatalogueMemory
from connectors.cassandra_schema import ALL_SCOPE, NEWEST_SCOPE
from connectors.product_rows import ProductRow
from connectors.recommendation_store import (
    MAX_PRODUCTS,
    RecommendationStore,
    StoreError,
    TrendingList,
)

logger = logging.getLogger(__name__)

_K = TypeVar("_K")
_V = TypeVar("_V")

# Seconds that a product read from Cassandra is used: what is out of stock is gone that soon.
PRODUCT_SECONDS: Final = 2.0
# Lists of thousands of decayed counts change slowly.
TRENDING_SECONDS: Final = 5.0
_MAX_CACHED_PRODUCTS: Final = 50_000
_MAX_CACHED_LISTS: Final = 2_000
# Products that are looked at for a filter while the store is away: a few milliseconds.
_MAX_SCANNED: Final = 50_000


class _Cache(Generic[_K, _V]):
    """The newest ``most`` values with the times of their reading; safe for several threads."""

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._values: OrderedDict[_K, tuple[float, _V]] = OrderedDict()

    def get(self, key: _K, max_age: float) -> tuple[_V] | None:
        """Return (value,) if there is one of at most ``max_age`` seconds."""
        found = self._values.get(key)
        if found is None or self._clock() - found[0] > max_age:
            return None
        return (found[1],)

    def last(self, most: int) -> list[_V]:
        """Return the values of the ``most`` keys that were put first, however old."""
        with self._lock:
            return [value for _, value in islice(self._values.values(), most)]

    def put(self, key: _K, value: _V) -> None:
        """Keep a value."""
        with self._lock:
            self._values[key] = (self._clock(), value)
            self._values.move_to_end(key)
            while len(self._values) > self._most:
                self._values.popitem(last=False)


class Shelf:
    """Products and public lists.

    Args:
        store: Where they are read when the memory does not have them.
        memory: The catalogue as the topic tells it; None: there is none, all is read.
        clock: Seconds.
    """

    def __init__(
        self,
        store: RecommendationStore,
        memory: CatalogueMemory | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._memory = memory
        self._products: _Cache[str, ProductRow | None] = _Cache(_MAX_CACHED_PRODUCTS, clock)
        self._trending: _Cache[str, TrendingList | None] = _Cache(_MAX_CACHED_LISTS, clock)

    def products(self, product_ids: Iterable[str]) -> dict[str, ProductRow]:
        """Return the products that exist.

        Where the store does not answer, those that it or the topic told before are returned as
        they were.

        Raises:
            StoreError: It does not answer, and nothing is known of any of them.
        """
        memory = self._memory
        found: dict[str, ProductRow] = {}
        unknown: Iterable[str] = product_ids
        # While the topic is read, what was read last of a product can be an earlier state of it.
        if memory is not None and memory.caught_up:
            rows = memory.rows
            unknown = []
            for product_id in product_ids:
                row = rows.get(product_id)
                if row is not None:
                    found[product_id] = row
                else:
                    unknown.append(product_id)
            if not unknown or memory.complete:
                return found
        missing: list[str] = []
        for product_id in unknown:
            cached = self._products.get(product_id, PRODUCT_SECONDS)
            if cached is None:
                missing.append(product_id)
            elif cached[0] is not None:
                found[product_id] = cached[0]
        if missing:
            self._read(missing, found)
        return found

    def _read(self, missing: list[str], found: dict[str, ProductRow]) -> None:
        for start in range(0, len(missing), MAX_PRODUCTS):
            part = missing[start : start + MAX_PRODUCTS]
            try:
                rows = self._store.products(part)
            except StoreError:
                old = {one: self._products.get(one, float("inf")) for one in part}
                held = self._memory.rows if self._memory is not None else {}
                known = {one: held[one] for one in part if one in held}
                known |= {one: row[0] for one, row in old.items() if row and row[0] is not None}
                if not known and not found:
                    raise
                found.update(known)
                return
            for product_id in part:
                self._products.put(product_id, rows.get(product_id))
            found.update(rows)

    def trending(self, scope: str) -> TrendingList | None:
        """Return the public list of ``scope``; where the store does not answer, the last known.

        Raises:
            StoreError: The store does not answer, and none is known.
        """
        cached = self._trending.get(scope, TRENDING_SECONDS)
        if cached is not None:
            return cached[0]
        try:
            found = self._store.trending(scope)
        except StoreError:
            last = self._trending.get(scope, float("inf"))
            if last is None or last[0] is None:
                raise
            return last[0]
        self._trending.put(scope, found)
        return found

    def known(self, admits: Callable[[ProductRow], bool], most: int) -> list[str]:
        """Return ids of ``most`` products in memory that ``admits`` lets through; none is asked."""
        rows: list[ProductRow | None] = self._products.last(_MAX_SCANNED)
        if self._memory is not None and self._memory.rows:
            # In one step, since another thread changes them.
            rows = list(islice(self._memory.rows.values(), _MAX_SCANNED))
        fitting = (row.product_id for row in rows if row is not None and admits(row))
        return list(islice(fitting, most))

    def warm(self) -> None:
        """Keep the lists that stand in for all others known, so that an outage finds them here."""
        for scope in (ALL_SCOPE, NEWEST_SCOPE):
            try:
                found = self.trending(scope)
                self.products([product_id for product_id, _ in (found.items if found else ())])
            except StoreError as error:
                logger.debug("%s cannot be read: %s", scope, error)
