"""A store in memory, for tests: as the real one behaves, without a server."""

from __future__ import annotations

import math
from collections.abc import Sequence

from connectors.cassandra_schema import (
    bucket_of,
    catalogue_scope,
    category_scope,
    stored_event_id,
)
from connectors.product_rows import ProductRow
from connectors.recommendation_store import (
    DEFAULT_MAX_DAYS,
    MS_A_DAY,
    Erasure,
    EventCursor,
    EventPage,
    ListsOfProduct,
    RecommendationList,
    StoredEvent,
    StoreError,
    TrendingList,
    check_products,
    check_range,
    cut_page,
    erasure_of,
    window_start,
)
from connectors.request_budget import count_reads
from udfs.schemas import SavedProductList


class InMemoryRecommendationStore:
    """Implements `RecommendationStore`; set ``failure`` and every call raises it."""

    def __init__(self, *, max_days: int = DEFAULT_MAX_DAYS) -> None:
        self.failure: StoreError | None = None
        self.closed = False
        self._max_days = max_days
        self._lists: dict[str, RecommendationList] = {}
        self._events: dict[str, dict[tuple[int, str], StoredEvent]] = {}
        self._products: dict[str, ProductRow] = {}
        self._trending: dict[str, TrendingList] = {}
        self._product_lists: dict[str, tuple[int, ListsOfProduct | None]] = {}
        self._requested: dict[str, int] = {}
        self._done: dict[str, tuple[int, int]] = {}
        self.reads = 0

    def save_list(self, found: RecommendationList) -> None:
        known = self._lists.get(found.user_id)
        if known is None or known.generated_at <= found.generated_at:
            self._lists[found.user_id] = found

    def save_event(self, user_id: str, event: StoredEvent) -> None:
        stored_id = stored_event_id(event.event_id, event.product_id)
        self._events.setdefault(user_id, {})[event.ts, stored_id] = event

    def save_old_event(self, user_id: str, event: StoredEvent) -> None:
        self._events.setdefault(user_id, {})[event.ts, event.event_id] = event

    def save_product(self, old: ProductRow | None, new: ProductRow | None) -> None:
        if old is not None:
            self._products.pop(old.product_id, None)
        if new is not None:
            self._products[new.product_id] = new

    def save_trending(self, scope: str, found: TrendingList) -> None:
        self._trending[scope] = found

    def save_lists_of_product(self, saved: SavedProductList) -> None:
        at, _ = self._product_lists.get(saved.product_id, (0, None))
        if saved.generated_us < at:
            return
        found = ListsOfProduct(
            tuple(saved.similar), tuple(saved.bought_together), saved.generated_us // 1000
        )
        empty = not (saved.similar or saved.bought_together)
        self._product_lists[saved.product_id] = saved.generated_us, None if empty else found

    def finish_erasure(self, user_id: str, done_for: int, done_at: int) -> None:
        self._done[user_id] = (done_for, done_at)

    def products(self, product_ids: Sequence[str]) -> dict[str, ProductRow]:
        self.ping()
        check_products(product_ids)
        return {one: self._products[one] for one in product_ids if one in self._products}

    def trending(self, scope: str) -> TrendingList | None:
        self.ping()
        return self._trending.get(scope)

    def lists_of_product(self, product_id: str) -> ListsOfProduct | None:
        self.ping()
        return self._product_lists.get(product_id, (0, None))[1]

    def products_in(
        self, scope: str, *, least: float | None = None, most: float | None = None, limit: int
    ) -> list[str]:
        self.ping()
        if limit < 1:
            msg = f"limit {limit}: must be at least 1"
            raise ValueError(msg)
        bounded = least is not None or most is not None
        low = -math.inf if least is None else least
        high = math.inf if most is None else most
        found = [
            (row.price is None, row.price or 0.0, row.product_id)
            for row in self._products.values()
            if row.in_stock
            and scope in (category_scope(row.category), catalogue_scope(bucket_of(row.product_id)))
            and (not bounded if row.price is None else low <= row.price <= high)
        ]
        return [product_id for _, _, product_id in sorted(found)[:limit]]

    def request_erasure(self, user_id: str, requested_at: int) -> None:
        self.ping()
        self._requested[user_id] = requested_at

    def erasure(self, user_id: str) -> Erasure | None:
        self.ping()
        return erasure_of(self._requested.get(user_id), *self._done.get(user_id, (None, None)))

    def recommendations(self, user_id: str) -> RecommendationList | None:
        self.ping()
        return self._lists.get(user_id)

    def events(
        self, user_id: str, *, start: int, end: int, limit: int, page: str | None = None
    ) -> EventPage:
        self.ping()
        check_range(start, end, limit)
        cursor = EventCursor(end) if page is None else EventCursor.from_token(page)
        upper = min(end, cursor.ts)
        lowest = window_start(start, upper, self._max_days)
        # A day a statement, as long as the page is not full; the first was counted above.
        days = max(1, day_of_ms(upper - 1) - day_of_ms(lowest) + 1)
        found = sorted(
            (
                (stored_id, event)
                for (ts, stored_id), event in self._events.get(user_id, {}).items()
                if lowest <= ts < end and _follows(ts, stored_id, cursor)
            ),
            key=lambda placed: (-placed[1].ts, placed[0]),
        )
        if len(found) > limit:
            days = day_of_ms(upper - 1) - day_of_ms(found[limit][1].ts) + 1
        count_reads(days - 1)
        return cut_page(found[: limit + 1], limit, start=start, lowest=lowest)

    def ping(self) -> None:
        self.reads += 1
        count_reads()
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        self.closed = True


def day_of_ms(ts: int) -> int:
    """The number of the UTC day of a time."""
    return ts // MS_A_DAY


def _follows(ts: int, stored_id: str, cursor: EventCursor) -> bool:
    if ts == cursor.ts:
        return bool(cursor.event_id) and stored_id > cursor.event_id
    return ts < cursor.ts
