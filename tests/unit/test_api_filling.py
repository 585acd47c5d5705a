"""Lists: what is shown of the personal one, what it is filled up with, what when all is away."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.catalogue_memory import CatalogueMemory
from api.filling import Filter
from connectors.product_rows import ProductRow
from connectors.recommendation_store import (
    RecommendationList,
    StoreTimeout,
    StoreUnavailable,
    TrendingList,
)
from tests.unit.api_doubles import NOW, Shop, ids, product, record


def saved(shop: Shop, *product_ids: str, excluded: tuple[str, ...] = ()) -> None:
    items = tuple((one, 1.0 - n / 10, "profile") for n, one in enumerate(product_ids))
    shop.store.save_list(RecommendationList("u", items, "s", NOW, NOW + 1, excluded))


def trending(shop: Shop, scope: str, *product_ids: str) -> None:
    items = tuple((one, 9.0 - n) for n, one in enumerate(product_ids))
    shop.store.save_trending(scope, TrendingList(items, NOW))


def asked(shop: Shop, query: str = "") -> tuple[list[str], list[str]]:
    """Ids and sources of the answer."""
    body = shop.get(f"/v1/users/u/recommendations?{query}")
    return ids(body["items"]), [item["source"] for item in body["items"]]


def test_what_is_deleted_or_out_of_stock_is_left_out() -> None:
    shop = Shop()
    shop.add(product("a"), product("b", in_stock=False), product("c"))
    saved(shop, "b", "gone", "c", "a")
    assert asked(shop, "limit=2") == (["c", "a"], ["personal"] * 2)


def test_list_is_filled_up_in_the_order_of_the_sources() -> None:
    shop = Shop()
    for one in ("own", "cat", "all", "new"):
        shop.add(product(one, "MONITOR"))
    shop.add(product("rest", "MONITOR", 1.0), product("away", in_stock=False))
    saved(shop, "own")
    trending(shop, "category:MONITOR", "away", "own", "cat")
    trending(shop, "all", "cat", "all")
    trending(shop, "newest", "new")
    assert asked(shop, "limit=9") == (
        ["own", "cat", "all", "new", "rest"],
        ["personal", "trending_category", "trending", "newest", "catalogue"],
    )


def test_user_without_a_list_gets_what_trends() -> None:
    shop = Shop()
    shop.add(product("a"), product("b"))
    trending(shop, "all", "b")
    body = shop.get("/v1/users/u/recommendations")
    assert ids(body["items"]) == ["b", "a"]
    assert body["source"] == "fallback"
    assert body["generated_at"] is None


def test_bought_and_disliked_products_do_not_come_back_as_filling() -> None:
    shop = Shop()
    shop.add(product("a"), product("b"), product("c"))
    trending(shop, "all", "b", "a")
    saved(shop, "c", excluded=("b",))
    assert asked(shop)[0] == ["c", "a"]


def test_many_excluded_products_do_not_hide_the_rest_of_the_catalogue() -> None:
    shop = Shop()
    shop.add(*(product(f"p{n:03}", price=float(n)) for n in range(400)))
    saved(shop, excluded=tuple(f"p{n:03}" for n in range(390)))
    assert sorted(asked(shop, "category=MONITOR")[0]) == [f"p{n}" for n in range(390, 400)]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("category=TEA", {"t1", "t2", "t3", "t4"}),
        ("category=TEA&max_price=6", {"t1", "t2"}),
        ("min_price=6.5&max_price=100", {"t3", "m1"}),
        ("min_price=100", {"m1", "m2"}),
        ("category=TEA&min_price=1000", set()),
        ("category=NONE", set()),
    ],
)
def test_filters_give_all_that_fits(query: str, expected: set[str]) -> None:
    shop = Shop()
    prices: dict[str, float | None] = {"t1": 5.0, "t2": 6.0, "t3": 7.0, "t4": None}
    shop.add(*(product(one, "TEA", price) for one, price in prices.items()))
    shop.add(product("m1", "MONITOR", 100.0), product("m2", "MONITOR", 200.0))
    shop.add(product("t9", "TEA", 5.5, in_stock=False))
    saved(shop, "m1", "t1")
    trending(shop, "all", "m2", "t9", "t4")
    assert set(asked(shop, query)[0]) == expected


rows = st.builds(
    ProductRow,
    st.uuids().map(str),
    st.just("t"),
    st.sampled_from(["A", "B"]),
    st.none() | st.floats(0, 100),
    st.booleans(),
    st.just(1),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(rows, max_size=40), st.data())
def test_list_is_as_long_as_products_allow_and_never_shows_what_it_must_not(
    products: list[ProductRow], data: st.DataObject
) -> None:
    shop = Shop()
    shop.add(*products)
    every = [one.product_id for one in products]
    some = st.lists(st.sampled_from(every), unique=True) if every else st.just([])
    excluded = data.draw(some)
    saved(shop, *data.draw(some), "gone", excluded=tuple(excluded))
    trending(shop, "all", *data.draw(some), "gone")
    trending(shop, "category:A", *data.draw(some))
    category = data.draw(st.sampled_from([None, "A", "B"]))
    low = data.draw(st.none() | st.floats(0, 100))
    high = data.draw(st.none() | st.floats(low or 0, 100))
    limit = data.draw(st.integers(1, 50))
    asked_for = {"limit": limit, "category": category, "min_price": low, "max_price": high}
    query = {name: value for name, value in asked_for.items() if value is not None}
    response = shop.client.get("/v1/users/u/recommendations", query_string=query)
    found = ids(json.loads(response.data)["items"])
    wanted = Filter(category, low, high)
    allowed = {
        one.product_id for one in products if wanted.admits(one) and one.product_id not in excluded
    }
    assert len(set(found)) == len(found) == min(limit, len(allowed))
    assert set(found) <= allowed


class TestStoreAway:
    def answer(self, shop: Shop) -> Any:
        return shop.client.get("/v1/users/u/recommendations")

    @pytest.mark.parametrize(
        "failure", [StoreUnavailable("cassandra", "gone"), StoreTimeout("cassandra", "late")]
    )
    def test_last_known_trending_list_stands_in(
        self, failure: StoreUnavailable | StoreTimeout
    ) -> None:
        shop = Shop()
        shop.add(product("a"), product("b"))
        saved(shop, "b")
        trending(shop, "all", "a")
        # What the background task of a worker does.
        shop.app.extensions["recommender"].shelf.warm()
        shop.store.failure = failure
        response = self.answer(shop)
        assert response.status_code == 200
        body = json.loads(response.data)
        assert body["degraded"] is True
        assert ids(body["items"]) == ["a"]
        assert response.headers["Cache-Control"] == "no-store"
        shop.store.failure = None
        assert json.loads(self.answer(shop).data)["degraded"] is False

    def test_nothing_known_is_503(self) -> None:
        shop = Shop()
        shop.store.failure = StoreUnavailable("cassandra", "gone")
        response = self.answer(shop)
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "2"

    @pytest.mark.parametrize("of_list", [True, False])
    def test_log_of_a_503_has_what_the_driver_said(
        self, of_list: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The failure that counts is the first one: of the list, or of what fills it up."""
        shop = Shop()
        shop.store.failure = StoreUnavailable("cassandra", "gone")
        shop.store.failure.__cause__ = OSError("the driver's words")
        if not of_list:
            monkeypatch.setattr(shop.store, "recommendations", lambda _user_id: None)
        assert self.answer(shop).status_code == 503
        assert 'cause: OSError("the driver\'s words")' in caplog.text

    def test_personal_list_is_shown_though_nothing_can_be_added(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shop = Shop()
        shop.add(product("a"))
        saved(shop, "a")

        failure = StoreTimeout("cassandra", "late")

        def away(_scope: str) -> None:
            raise failure

        monkeypatch.setattr(shop.store, "trending", away)
        assert asked(shop)[0] == ["a"]


class TestFilterWhileTheStoreIsAway:
    """What a plain request shows, as far as it fits the filter."""

    def away(self, shop: Shop) -> None:
        """Let the shop know what a worker's background task makes known, then nothing new."""
        shop.app.extensions["recommender"].shelf.warm()
        shop.store.failure = StoreTimeout("cassandra", "late")

    def shop(self, **given: Any) -> Shop:
        shop = Shop(**given)
        shop.add(product("m1", "MONITOR", 100.0), product("t1", "TEA", 5.0))
        shop.add(product("t2", "TEA", 7.0), product("t3", "TEA", 6.0, in_stock=False))
        trending(shop, "all", "m1", "t1", "t3", "t2")
        return shop

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ("", ["m1", "t1", "t2"]),
            ("category=TEA", ["t1", "t2"]),
            ("min_price=6", ["m1", "t2"]),
            ("category=TEA&max_price=5.5", ["t1"]),
            ("category=NONE", []),
        ],
    )
    def test_recommendations(self, query: str, expected: list[str]) -> None:
        shop = self.shop()
        self.away(shop)
        body = shop.get(f"/v1/users/u/recommendations?{query}")
        assert body["degraded"] is True
        assert ids(body["items"]) == expected

    @pytest.mark.parametrize(
        ("query", "expected"), [("", ["m1", "t1", "t2"]), ("category=TEA", ["t1", "t2"])]
    )
    def test_trending(self, query: str, expected: list[str]) -> None:
        shop = self.shop()
        self.away(shop)
        assert ids(shop.get(f"/v1/trending?{query}")["items"]) == expected

    def test_products_that_do_not_trend_come_from_the_catalogue_in_memory(self) -> None:
        memory = CatalogueMemory(100)
        shop = self.shop(catalogue=memory)
        for product_id, in_stock in (("c1", True), ("c2", False), ("c3", True)):
            value = record(
                product_id,
                title=f"The {product_id}",
                category="COFFEE",
                price=3.0,
                in_stock=in_stock,
            )
            memory.apply(product_id.encode(), value)
        self.away(shop)
        body = shop.get("/v1/users/u/recommendations?category=COFFEE")
        assert (ids(body["items"]), body["degraded"]) == (["c1", "c3"], True)
        assert {item["source"] for item in body["items"]} == {"catalogue"}

    def test_nothing_known_at_all_is_503_with_a_filter_too(self) -> None:
        shop = self.shop()
        shop.store.failure = StoreTimeout("cassandra", "late")
        for path in ("/v1/users/u/recommendations?category=TEA", "/v1/trending?category=TEA"):
            assert shop.client.get(path).status_code == 503

    def test_an_empty_answer_of_an_outage_is_not_kept(self) -> None:
        shop = self.shop()
        self.away(shop)
        response = shop.client.get("/v1/users/u/recommendations?category=NONE")
        assert response.headers["Cache-Control"] == "no-store"

    def test_list_whose_products_cannot_be_read_is_degraded_and_not_an_error(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shop = self.shop()
        shop.add(product("p"))
        saved(shop, "p")
        shop.app.extensions["recommender"].shelf.warm()
        failure = StoreTimeout("cassandra", "late")

        def away(_ids: object) -> None:
            raise failure

        monkeypatch.setattr(shop.store, "products", away)
        body = shop.get("/v1/users/u/recommendations")
        assert body["degraded"] is True
        assert ids(body["items"]) == ["m1", "t1", "t2"]


class TestTrending:
    def test_of_all_and_of_a_category(self) -> None:
        shop = Shop()
        shop.add(product("m"), product("t", "TEA"), product("x", "TEA", in_stock=False))
        trending(shop, "all", "x", "t", "m")
        trending(shop, "category:TEA", "x", "t")
        body = shop.get("/v1/trending?limit=5")
        assert ids(body["items"]) == ["t", "m"]
        assert body["generated_at"] == NOW
        body = shop.get("/v1/trending?category=TEA")
        assert (ids(body["items"]), body["category"]) == (["t"], "TEA")
        assert body["items"][0]["source"] == "trending_category"

    def test_nothing_trends_yet(self) -> None:
        shop = Shop()
        assert shop.get("/v1/trending") == {"category": None, "items": [], "generated_at": None}
