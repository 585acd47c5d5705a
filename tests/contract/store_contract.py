"""What every `RecommendationStore` does; a test module subclasses the suite with its store."""

from __future__ import annotations

import uuid
from typing import Protocol

import pytest

from connectors.recommendation_store import (
    EventPage,
    InvalidPageTokenError,
    Recommendation,
    RecommendationList,
    RecommendationStore,
    StoredEvent,
)

DAY = 86_400_000
# 2026-03-10T00:00:00Z
MIDNIGHT = 1_773_100_800_000
NOON = MIDNIGHT + DAY // 2


class Subject(Protocol):
    """A store under test (``max_days`` of 31) and how its tables are filled."""

    store: RecommendationStore

    def save_list(self, found: RecommendationList) -> None: ...

    def save_event(self, user_id: str, event: StoredEvent) -> None: ...


def click(event_id: str, ts: int) -> StoredEvent:
    return StoredEvent(event_id, "click", ts, product_id="p1")


def pages(
    subject: Subject, user: str, *, start: int, end: int, limit: int
) -> list[tuple[StoredEvent, ...]]:
    found: list[tuple[StoredEvent, ...]] = []
    token: str | None = None
    while True:
        page: EventPage = subject.store.events(user, start=start, end=end, limit=limit, page=token)
        assert len(page.events) <= limit
        found.append(page.events)
        if page.next is None:
            return found
        assert len(found) < 100, "the pages do not end"
        token = page.next


class StoreContract:
    @pytest.fixture
    def user(self) -> str:
        # Of its own for each test, because a real server keeps what earlier ones wrote.
        return f"u-{uuid.uuid4()}"

    def test_unknown_user_has_no_list(self, subject: Subject, user: str) -> None:
        assert subject.store.recommendations(user) is None

    def test_list_comes_back_as_saved(self, subject: Subject, user: str) -> None:
        saved = RecommendationList(
            user,
            (Recommendation("p2", 0.5, "profile"), Recommendation("p1", -0.25, "été")),
            "text64-v1",
            NOON + 1,
            NOON + 2,
        )
        subject.save_list(saved)
        assert subject.store.recommendations(user) == saved

    def test_empty_list_is_not_an_unknown_user(self, subject: Subject, user: str) -> None:
        saved = RecommendationList(user, (), "text64-v1", NOON, NOON)
        subject.save_list(saved)
        assert subject.store.recommendations(user) == saved

    def test_newest_generation_wins_in_any_order_of_arrival(
        self, subject: Subject, user: str
    ) -> None:
        new = RecommendationList(user, (Recommendation("new", 1.0, "r"),), "s", NOON, NOON + 9)
        old = RecommendationList(user, (Recommendation("old", 1.0, "r"),), "s", NOON, NOON + 1)
        subject.save_list(new)
        subject.save_list(old)
        assert subject.store.recommendations(user) == new

    def test_unknown_user_has_no_events(self, subject: Subject, user: str) -> None:
        page = subject.store.events(user, start=NOON - DAY, end=NOON, limit=10)
        assert page == EventPage((), None)

    def test_every_field_of_an_event_comes_back(self, subject: Subject, user: str) -> None:
        full = StoredEvent("e1", "purchase", NOON + 123, "p", "q", "s", 250, 3)
        bare = StoredEvent("e2", "search", NOON, query="quiet fan")
        subject.save_event(user, full)
        subject.save_event(user, bare)
        page = subject.store.events(user, start=NOON, end=NOON + DAY, limit=10)
        assert page == EventPage((full, bare), None)

    def test_same_event_saved_twice_is_one(self, subject: Subject, user: str) -> None:
        subject.save_event(user, click("e", NOON))
        subject.save_event(user, click("e", NOON))
        page = subject.store.events(user, start=NOON, end=NOON + 1, limit=10)
        assert page.events == (click("e", NOON),)

    def test_range_includes_start_and_excludes_end(self, subject: Subject, user: str) -> None:
        for offset in (-1, 0, 5, 6):
            subject.save_event(user, click(f"e{offset}", NOON + offset))
        page = subject.store.events(user, start=NOON, end=NOON + 6, limit=10)
        assert [event.event_id for event in page.events] == ["e5", "e0"]

    def test_empty_range_has_no_events(self, subject: Subject, user: str) -> None:
        subject.save_event(user, click("e", NOON))
        assert subject.store.events(user, start=NOON, end=NOON, limit=1) == EventPage((), None)

    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
    def test_pages_give_each_event_once_newest_first(
        self, subject: Subject, user: str, limit: int
    ) -> None:
        # Several in one millisecond, on both sides of midnight, and an idle week between.
        times = [NOON, NOON, NOON, NOON, MIDNIGHT, MIDNIGHT - 1, MIDNIGHT - 1, NOON - 9 * DAY]
        events = [click(f"e{n}", ts) for n, ts in enumerate(times)]
        for event in events:
            subject.save_event(user, event)
        found = pages(subject, user, start=NOON - 20 * DAY, end=NOON + 1, limit=limit)
        assert [event for page in found for event in page] == sorted(
            events, key=lambda event: (-event.ts, event.event_id)
        )

    def test_event_that_arrives_between_pages_shifts_none(
        self, subject: Subject, user: str
    ) -> None:
        for n in range(4):
            subject.save_event(user, click(f"e{n}", NOON - n))
        first = subject.store.events(user, start=0, end=NOON + DAY, limit=2)
        subject.save_event(user, click("late", NOON + 5))
        second = subject.store.events(user, start=0, end=NOON + DAY, limit=2, page=first.next)
        assert [event.event_id for event in second.events] == ["e2", "e3"]

    def test_long_range_is_read_a_month_a_call(self, subject: Subject, user: str) -> None:
        old = click("old", NOON - 100 * DAY)
        subject.save_event(user, old)
        found = pages(subject, user, start=NOON - 120 * DAY, end=NOON + 1, limit=5)
        assert found[0] == ()
        assert [page for page in found if page] == [(old,)]
        assert len(found) == 4

    @pytest.mark.parametrize("token", ["", "x", "!!", "é", "AAAA", "kwEC", "a" * 5000])
    def test_foreign_page_token_is_refused(self, subject: Subject, user: str, token: str) -> None:
        with pytest.raises(InvalidPageTokenError):
            subject.store.events(user, start=0, end=NOON, limit=1, page=token)

    @pytest.mark.parametrize(
        ("start", "end", "limit"), [(-1, 5, 1), (6, 5, 1), (0, 253_402_300_800_001, 1), (0, 5, 0)]
    )
    def test_argument_out_of_bounds_is_refused(
        self, subject: Subject, user: str, start: int, end: int, limit: int
    ) -> None:
        with pytest.raises(ValueError, match="must be"):
            subject.store.events(user, start=start, end=end, limit=limit)

    def test_ids_of_any_text(self, subject: Subject) -> None:
        user = f"a/b ü\u2028'\";{uuid.uuid4()}"
        subject.save_event(user, click("e'\n", NOON))
        page = subject.store.events(user, start=NOON, end=NOON + 1, limit=1)
        assert page.events == (click("e'\n", NOON),)

    def test_ping(self, subject: Subject) -> None:
        subject.store.ping()
