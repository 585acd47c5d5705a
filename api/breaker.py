"""A store that answers at once while its server hangs, so that requests do not pile up behind it.

Each request has a time limit, but with a few threads a server that hangs would hold them all, and
every request would wait for its turn to wait. When at least half of the last calls were not
answered in time, the next ones fail at once; one a pause tries again, and its answer lets all
through. A single late answer changes nothing. Reads of many days, scans of many products and
writes are judged apart: all can be late while a user's list is not.

pybreaker, purgatory and circuitbreaker count failures in a row, which one answer among many
time-outs sets back, and pybreaker calls under a lock, one call at a time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from connectors.product_rows import ProductRow
from connectors.recommendation_store import (
    Erasure,
    EventPage,
    ListsOfProduct,
    RecommendationList,
    RecommendationStore,
    StoreTimeout,
    TrendingList,
)
from connectors.request_budget import is_over

_T = TypeVar("_T")
PAUSE_SECONDS: Final = 1.0
# Calls that are looked at, how many there must be, and the share of time-outs that is too much.
# So few that the first calls that a hanging server holds up, one a thread, are enough.
WINDOW: Final = 10
LEAST_CALLS: Final = 5
TOO_MANY: Final = 0.5


class _Circuit:
    """Judges calls of one kind by the last of them."""

    def __init__(self, pause_seconds: float, clock: Callable[[], float]) -> None:
        self._pause = pause_seconds
        self._clock = clock
        self._lock = threading.Lock()
        # Whether a call timed out. An append needs no lock, and is all that a good call does.
        self.late: deque[bool] = deque(maxlen=WINDOW)
        # When the next try is; None while all is well.
        self.next_try: float | None = None

    def lets_through(self) -> bool:
        """Tell whether a call may be made, the one that tries, while the circuit is open."""
        with self._lock:
            now, next_try = self._clock(), self.next_try
            if next_try is not None:
                if now < next_try:
                    return False
                self.next_try = now + self._pause
            return True

    def answered(self) -> None:
        """Note that a call was answered in time."""
        if self.next_try is not None:
            with self._lock:
                self.late.clear()
                self.next_try = None
        self.late.append(False)

    def timed_out(self) -> None:
        """Note that a call was not."""
        with self._lock:
            self.late.append(True)
            calls = len(self.late)
            if self.next_try is not None or (
                calls >= LEAST_CALLS and self.late.count(True) >= TOO_MANY * calls
            ):
                self.next_try = self._clock() + self._pause


class BreakerStore:
    """Implements `RecommendationStore` around another.

    Args:
        name: Of the store, for its errors.
        store: The other.
        pause_seconds: Between two tries while it hangs.
        clock: Seconds.
    """

    def __init__(
        self,
        name: str,
        store: RecommendationStore,
        *,
        pause_seconds: float = PAUSE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._store = store
        self._reads, self._days, self._scans, self._writes = (
            _Circuit(pause_seconds, clock) for _ in range(4)
        )

    def recommendations(self, user_id: str) -> RecommendationList | None:
        """See `RecommendationStore.recommendations`."""
        return self._call(self._reads, lambda: self._store.recommendations(user_id))

    def events(
        self, user_id: str, *, start: int, end: int, limit: int, page: str | None = None
    ) -> EventPage:
        """See `RecommendationStore.events`."""
        return self._call(
            self._days,
            lambda: self._store.events(user_id, start=start, end=end, limit=limit, page=page),
        )

    def products(self, product_ids: Sequence[str]) -> dict[str, ProductRow]:
        """See `RecommendationStore.products`."""
        return self._call(self._reads, lambda: self._store.products(product_ids))

    def trending(self, scope: str) -> TrendingList | None:
        """See `RecommendationStore.trending`."""
        return self._call(self._reads, lambda: self._store.trending(scope))

    def lists_of_product(self, product_id: str) -> ListsOfProduct | None:
        """See `RecommendationStore.lists_of_product`."""
        return self._call(self._reads, lambda: self._store.lists_of_product(product_id))

    def products_in(
        self, scope: str, *, least: float | None = None, most: float | None = None, limit: int
    ) -> list[str]:
        """See `RecommendationStore.products_in`."""
        return self._call(
            self._scans,
            lambda: self._store.products_in(scope, least=least, most=most, limit=limit),
        )

    def request_erasure(self, user_id: str, requested_at: int) -> None:
        """See `RecommendationStore.request_erasure`."""
        self._call(self._writes, lambda: self._store.request_erasure(user_id, requested_at))

    def erasure(self, user_id: str) -> Erasure | None:
        """See `RecommendationStore.erasure`."""
        return self._call(self._reads, lambda: self._store.erasure(user_id))

    def ping(self) -> None:
        """See `RecommendationStore.ping`."""
        self._call(self._reads, self._store.ping)

    def close(self) -> None:
        """See `RecommendationStore.close`."""
        self._store.close()

    def _call(self, circuit: _Circuit, call: Callable[[], _T]) -> _T:
        # Before the circuit is asked: a request without time is no try, and says nothing of the
        # store.
        if is_over():
            raise StoreTimeout(self._name, "the time of the request is over")
        if circuit.next_try is not None and not circuit.lets_through():
            raise StoreTimeout(self._name, "has not answered lately")
        try:
            found = call()
        except StoreTimeout:
            circuit.timed_out()
            raise
        except ValueError:
            # A wrong argument: nobody was asked.
            raise
        except Exception:
            # Any other error is an answer too: whoever gave it does not hang.
            circuit.answered()
            raise
        circuit.answered()
        return found
