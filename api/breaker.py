"""A store that answers at once while its server hangs, so that requests do not pile up behind it.

Each read has a time limit, but with a few threads a server that hangs would hold them all, and
every request would wait for its turn to wait. After a time-out the next calls fail at once; one a
pause tries again, and its success lets all through.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from connectors.product_rows import ProductRow
from connectors.recommendation_store import (
    Erasure,
    EventPage,
    RecommendationList,
    RecommendationStore,
    StoreTimeout,
    TrendingList,
)

_T = TypeVar("_T")
PAUSE_SECONDS: Final = 1.0


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
        self._pause = pause_seconds
        self._clock = clock
        self._lock = threading.Lock()
        # When the next try is; None while all is well.
        self._next_try: float | None = None

    def recommendations(self, user_id: str) -> RecommendationList | None:
        """See `RecommendationStore.recommendations`."""
        return self._call(lambda: self._store.recommendations(user_id))

    def events(
        self, user_id: str, *, start: int, end: int, limit: int, page: str | None = None
    ) -> EventPage:
        """See `RecommendationStore.events`."""
        return self._call(
            lambda: self._store.events(user_id, start=start, end=end, limit=limit, page=page)
        )

    def products(self, product_ids: Sequence[str]) -> dict[str, ProductRow]:
        """See `RecommendationStore.products`."""
        return self._call(lambda: self._store.products(product_ids))

    def trending(self, scope: str) -> TrendingList | None:
        """See `RecommendationStore.trending`."""
        return self._call(lambda: self._store.trending(scope))

    def products_in(
        self, scope: str, *, least: float | None = None, most: float | None = None, limit: int
    ) -> list[str]:
        """See `RecommendationStore.products_in`."""
        return self._call(
            lambda: self._store.products_in(scope, least=least, most=most, limit=limit)
        )

    def request_erasure(self, user_id: str, requested_at: int) -> None:
        """See `RecommendationStore.request_erasure`."""
        self._call(lambda: self._store.request_erasure(user_id, requested_at))

    def erasure(self, user_id: str) -> Erasure | None:
        """See `RecommendationStore.erasure`."""
        return self._call(lambda: self._store.erasure(user_id))

    def ping(self) -> None:
        """See `RecommendationStore.ping`."""
        self._call(self._store.ping)

    def close(self) -> None:
        """See `RecommendationStore.close`."""
        self._store.close()

    def _call(self, call: Callable[[], _T]) -> _T:
        if self._next_try is not None:
            with self._lock:
                now = self._clock()
                if self._next_try is not None:
                    if now < self._next_try:
                        raise StoreTimeout(self._name, "has not answered lately")
                    self._next_try = now + self._pause
        try:
            found = call()
        except StoreTimeout:
            with self._lock:
                self._next_try = self._clock() + self._pause
            raise
        # Any other error is an answer too: whoever gave it does not hang.
        self._next_try = None
        return found
