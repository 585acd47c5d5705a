"""A store in memory, for tests: as the real one behaves, without a server."""

from __future__ import annotations

from connectors.recommendation_store import (
    DEFAULT_MAX_DAYS,
    EventCursor,
    EventPage,
    RecommendationList,
    StoredEvent,
    StoreError,
    check_range,
    cut_page,
    window_start,
)


class InMemoryRecommendationStore:
    """Implements `RecommendationStore`; set ``failure`` and every call raises it."""

    def __init__(self, *, max_days: int = DEFAULT_MAX_DAYS) -> None:
        self.failure: StoreError | None = None
        self.closed = False
        self._max_days = max_days
        self._lists: dict[str, RecommendationList] = {}
        self._events: dict[str, dict[tuple[int, str], StoredEvent]] = {}

    def save_list(self, found: RecommendationList) -> None:
        known = self._lists.get(found.user_id)
        if known is None or known.generated_at <= found.generated_at:
            self._lists[found.user_id] = found

    def save_event(self, user_id: str, event: StoredEvent) -> None:
        self._events.setdefault(user_id, {})[event.ts, event.event_id] = event

    def recommendations(self, user_id: str) -> RecommendationList | None:
        self.ping()
        return self._lists.get(user_id)

    def events(
        self, user_id: str, *, start: int, end: int, limit: int, page: str | None = None
    ) -> EventPage:
        self.ping()
        check_range(start, end, limit)
        cursor = EventCursor(end) if page is None else EventCursor.from_token(page)
        lowest = window_start(start, min(end, cursor.ts), self._max_days)
        found = sorted(
            (
                event
                for event in self._events.get(user_id, {}).values()
                if lowest <= event.ts < end and _follows(event, cursor)
            ),
            key=lambda event: (-event.ts, event.event_id),
        )
        return cut_page(found[: limit + 1], limit, start=start, lowest=lowest)

    def ping(self) -> None:
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        self.closed = True


def _follows(event: StoredEvent, cursor: EventCursor) -> bool:
    if event.ts == cursor.ts:
        return bool(cursor.event_id) and event.event_id > cursor.event_id
    return event.ts < cursor.ts
