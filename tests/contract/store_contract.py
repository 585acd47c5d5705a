"""What every `RecommendationStore` does; a test module subclasses the suite with its store."""

from __future__ import annotations

import uuid
from typing import Protocol

import pytest

from connectors.cassandra_schema import bucket_of, catalogue_scope, category_scope
from connectors.product_rows import ProductRow
from connectors.recommendation_store import (
    MAX_PRODUCTS,
    Erasure,
    EventPage,
    InvalidPageTokenError,
    ListsOfProduct,
    RecommendationList,
    RecommendationStore,
    StoredEvent,
    TrendingList,
)
from udfs.schemas import SavedProductList

DAY = 86_400_000
# 2026-03-10T00:00:00Z
MIDNIGHT = 1_773_100_800_000
NOON = MIDNIGHT + DAY // 2


class Subject(Protocol):
    """A store under test (``max_days`` of 31) and how its tables are filled."""

    store: RecommendationStore

    def save_list(self, found: RecommendationList) -> None: ...

    def save_event(self, user_id: str, event: StoredEvent) -> None: ...

    def save_old_event(self, user_id: str, event: StoredEvent) -> None:
        """Save as versions did whose rows have the id of the event alone."""
        ...

    def save_product(self, old: ProductRow | None, new: ProductRow | None) -> None: ...

    def save_trending(self, scope: str, found: TrendingList) -> None: ...

    def save_lists_of_product(self, saved: SavedProductList) -> None: ...

    def finish_erasure(self, user_id: str, done_for: int, done_at: int) -> None: ...


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
            (("p2", 0.5, "profile"), ("p1", -0.25, "été")),
            "text64-v1",
            NOON + 1,
            NOON + 2,
            ("bought", "disliked"),
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
        new = RecommendationList(user, (("new", 1.0, "r"),), "s", NOON, NOON + 9)
        old = RecommendationList(user, (("old", 1.0, "r"),), "s", NOON, NOON + 1)
        subject.save_list(new)
        subject.save_list(old)
        assert subject.store.recommendations(user) == new

    def test_unknown_user_has_no_events(self, subject: Subject, user: str) -> None:
        page = subject.store.events(user, start=NOON - DAY, end=NOON, limit=10)
        assert page == EventPage((), None)

    def test_every_field_of_an_event_comes_back(self, subject: Subject, user: str) -> None:
        full = StoredEvent("e1", "purchase", NOON + 123, "p", "q", "s", 250, 3, "bold")
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

    @pytest.mark.parametrize("limit", [1, 2, 3, 100])
    def test_lines_of_one_order_share_an_id_and_are_each_an_event(
        self, subject: Subject, user: str, limit: int
    ) -> None:
        # Ids of which one begins as another, and one that sorts between an id and its products.
        lines = [("o1", "a"), ("o1", "a"), ("o1", "b"), ("o1", "c"), ("o1x", "a"), ("o10", "b")]
        events = [StoredEvent(one, "purchase", NOON, product_id=item) for one, item in lines]
        events.append(StoredEvent("o1", "search", NOON, query="q"))
        for event in events:
            subject.save_event(user, event)
        found = pages(subject, user, start=NOON, end=NOON + 1, limit=limit)
        assert [(one.event_id, one.product_id) for page in found for one in page] == [
            ("o1", None), ("o1", "a"), ("o1", "b"), ("o1", "c"), ("o10", "b"), ("o1x", "a"),
        ]  # fmt: skip

    @pytest.mark.parametrize("limit", [1, 2, 100])
    def test_rows_of_earlier_versions_are_read_beside_new_ones(
        self, subject: Subject, user: str, limit: int
    ) -> None:
        for event in (click("e1", NOON), click("e2", NOON)):
            subject.save_old_event(user, event)
        other = StoredEvent("e1", "click", NOON, product_id="a")
        subject.save_event(user, other)
        found = pages(subject, user, start=NOON, end=NOON + 1, limit=limit)
        events = [event for page in found for event in page]
        assert events == [click("e1", NOON), other, click("e2", NOON)]

    def test_longest_ids_can_be_paged(self, subject: Subject, user: str) -> None:
        for letter in "ab":
            event = StoredEvent("i" * 128, "click", NOON, product_id=letter * 128)
            subject.save_event(user, event)
        found = pages(subject, user, start=NOON, end=NOON + 1, limit=1)
        assert [event.product_id for page in found for event in page] == ["a" * 128, "b" * 128]

    def test_empty_excluded_replaces_what_was_there(self, subject: Subject, user: str) -> None:
        bought = RecommendationList(user, (), "s", NOON, NOON, ("bought",))
        rebuyable = RecommendationList(user, (("bought", 1.0, "r"),), "s", NOON, NOON + 1)
        subject.save_list(bought)
        subject.save_list(rebuyable)
        assert subject.store.recommendations(user) == rebuyable

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

    def test_products_come_back_as_saved_and_absent_ones_not(
        self, subject: Subject, user: str
    ) -> None:
        one = ProductRow(f"1{user}", "Été 4K", "MONITOR", 189.5, True, NOON)
        two = ProductRow(f"2{user}", "", "", None, False, NOON + 1)
        for row in (one, two):
            subject.save_product(None, row)
        ids = [one.product_id, "absent", two.product_id, one.product_id]
        assert subject.store.products(ids) == {one.product_id: one, two.product_id: two}
        assert subject.store.products([]) == {}

    def test_product_that_changes_is_replaced_and_a_deleted_one_is_absent(
        self, subject: Subject, user: str
    ) -> None:
        first = ProductRow(user, "t", f"A{user}", 10.0, True, NOON)
        second = ProductRow(user, "t2", f"B{user}", None, True, NOON + 1)
        subject.save_product(None, first)
        subject.save_product(first, second)
        assert subject.store.products([user]) == {user: second}
        assert subject.store.products_in(category_scope(f"A{user}"), limit=5) == []
        assert subject.store.products_in(category_scope(f"B{user}"), limit=5) == [user]
        subject.save_product(second, None)
        assert subject.store.products([user]) == {}
        assert subject.store.products_in(category_scope(f"B{user}"), limit=5) == []

    def test_too_many_products_are_refused(self, subject: Subject) -> None:
        with pytest.raises(ValueError, match="at most"):
            subject.store.products(["p"] * (MAX_PRODUCTS + 1))

    def test_products_of_a_category_within_a_price_range(self, subject: Subject, user: str) -> None:
        category = f"C{user}"
        prices = {"a": 5.0, "b": 10.0, "c": None, "d": 20.0, "e": 20.01, "f": 0.0}
        for name, price in prices.items():
            subject.save_product(None, ProductRow(name + user, "", category, price, True, NOON))
        gone = ProductRow("g" + user, "", category, 7.0, True, NOON)
        subject.save_product(None, gone)
        subject.save_product(gone, ProductRow("g" + user, "", category, 7.0, False, NOON + 1))
        scope = category_scope(category)

        def found(**bounds: float) -> str:
            ids = subject.store.products_in(scope, limit=50, **bounds)
            return "".join(one[0] for one in ids)

        assert found(least=5, most=20) == "abd"
        assert found(least=10) == "bde"
        assert found(most=10) == "fab"
        assert found() == "fabdec"
        assert len(subject.store.products_in(scope, limit=2)) == 2
        with pytest.raises(ValueError, match="limit"):
            subject.store.products_in(scope, limit=0)

    def test_product_stands_in_its_part_of_the_catalogue(self, subject: Subject, user: str) -> None:
        subject.save_product(None, ProductRow(user, "", "", 1e9, True, NOON))
        scope = catalogue_scope(bucket_of(user))
        assert user in subject.store.products_in(scope, least=1e9, most=1e9, limit=1000)

    def test_lists_of_a_product_come_back_as_saved(self, subject: Subject, user: str) -> None:
        assert subject.store.lists_of_product(user) is None
        similar, together = [("b", 1.5), ("é", 0.5)], [("b", 0.5)]
        subject.save_lists_of_product(SavedProductList(user, similar, together, NOON * 1000))
        found = ListsOfProduct(tuple(similar), tuple(together), NOON)
        assert subject.store.lists_of_product(user) == found

    def test_product_can_have_one_of_its_lists(self, subject: Subject, user: str) -> None:
        subject.save_lists_of_product(SavedProductList(user, [("b", 0.5)], [], NOON * 1000))
        assert subject.store.lists_of_product(user) == ListsOfProduct((("b", 0.5),), (), NOON)

    def test_newest_lists_of_a_product_win_and_so_does_a_deletion(
        self, subject: Subject, user: str
    ) -> None:
        new, old = (SavedProductList(user, [(at, 0.5)], [], NOON * 1000) for at in ("new", "old"))
        subject.save_lists_of_product(new._replace(generated_us=NOON * 1000 + 5))
        subject.save_lists_of_product(old)
        assert subject.store.lists_of_product(user) == ListsOfProduct((("new", 0.5),), (), NOON)
        subject.save_lists_of_product(SavedProductList(user, [], [], NOON * 1000 + 4))
        assert subject.store.lists_of_product(user) is not None
        subject.save_lists_of_product(SavedProductList(user, [], [], NOON * 1000 + 6))
        assert subject.store.lists_of_product(user) is None
        subject.save_lists_of_product(new)
        assert subject.store.lists_of_product(user) is None

    def test_trending_list_comes_back_as_saved(self, subject: Subject, user: str) -> None:
        assert subject.store.trending(user) is None
        saved = TrendingList((("p2", 2.5), ("p1", 0.5)), NOON)
        subject.save_trending(user, saved)
        assert subject.store.trending(user) == saved
        subject.save_trending(user, TrendingList((), NOON + 1))
        assert subject.store.trending(user) == TrendingList((), NOON + 1)

    def test_erasure_is_done_when_its_own_event_was_carried_out(
        self, subject: Subject, user: str
    ) -> None:
        assert subject.store.erasure(user) is None
        subject.store.request_erasure(user, NOON)
        assert subject.store.erasure(user) == Erasure(NOON, None)
        subject.finish_erasure(user, NOON, NOON + 700)
        assert subject.store.erasure(user) == Erasure(NOON, NOON + 700)
        subject.store.request_erasure(user, NOON + 5)
        assert subject.store.erasure(user) == Erasure(NOON + 5, None)

    def test_erasure_that_nobody_asked_the_service_for_is_known(
        self, subject: Subject, user: str
    ) -> None:
        subject.finish_erasure(user, NOON, NOON + 1)
        assert subject.store.erasure(user) == Erasure(NOON, NOON + 1)

    def test_ping(self, subject: Subject) -> None:
        subject.store.ping()
