"""Products: reads, writes into the catalogue topic, and the lists of one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from api.catalogue_memory import CatalogueMemory
from api.products import MAX_PRODUCTS
from connectors.recommendation_store import StoreUnavailable
from tests.unit.api_doubles import NOW, Shop, ids, product, record
from tests.unit.test_api_routes import assert_problem
from udfs.schemas import SavedProductList, decode_product, encode_vector

FULL = {
    "title": "Monitor",
    "category": "MONITOR",
    "price": 9.5,
    "in_stock": False,
    "embedding": [3.0, 4.0],
    "space": "s",
}


def put(shop: Shop, product_id: str, body: object) -> Any:
    return shop.client.put(f"/v1/products/{product_id}", json=body)


def patch(shop: Shop, product_id: str, body: object) -> Any:
    return shop.client.patch(f"/v1/products/{product_id}", json=body)


def sent(shop: Shop) -> list[Any]:
    """What went to the catalogue topic, as JSON; None deletes."""
    assert {topic for topic, _, _ in shop.records.sent} <= {"catalogue"}
    return [None if value is None else json.loads(value) for _, _, value in shop.records.sent]


class TestRead:
    def test_product_as_it_is_shown(self) -> None:
        shop = Shop()
        shop.add(product("a/b ü", "TEA", None))
        assert shop.get("/v1/products/a%2Fb%20%C3%BC") == {
            "product_id": "a/b ü",
            "title": "The a/b ü",
            "category": "TEA",
            "price": None,
            "in_stock": True,
            "updated_at": NOW,
        }

    def test_unknown_product_is_404(self) -> None:
        response = Shop().client.get("/v1/products/a")
        assert_problem(response, 404, type="urn:recommender:problem:not-found")


class TestWrite:
    def test_product_goes_into_the_topic_as_the_shop_said_it(self) -> None:
        shop = Shop()
        response = put(shop, "p1", FULL)
        assert (response.status_code, json.loads(response.data)) == (202, {"accepted": 1})
        assert [key for _, key, _ in shop.records.sent] == ["p1"]
        assert sent(shop) == [{"product_id": "p1", **FULL}]

    def test_nothing_is_added_to_what_the_shop_said(self) -> None:
        shop = Shop()
        assert put(shop, "ü", {"title": "Wireless Mouse", "updated_at": NOW}).status_code == 202
        assert sent(shop) == [{"product_id": "ü", "title": "Wireless Mouse", "updated_at": NOW}]
        ((_, _, value),) = shop.records.sent
        found, vector = decode_product("ü".encode().decode("latin-1"), value or b"")
        assert (found.space, vector) == (None, None)

    def test_some_fields_of_a_product_are_a_partial_record(self) -> None:
        shop = Shop()
        for body in ({"price": None}, {"in_stock": False, "title": "New"}):
            assert patch(shop, "p%2F1", body).status_code == 202
        assert sent(shop) == [
            {"product_id": "p/1", "price": None, "partial": True},
            {"product_id": "p/1", "title": "New", "in_stock": False, "partial": True},
        ]

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"title": None},
            {"price": -1},
            {"embedding": [1.0]},
            {"space": "s"},
            {"partial": True},
            {"updated_at": 2 * 10**12 * 10},
        ],
    )
    def test_wrong_change_is_refused(self, body: dict[str, Any]) -> None:
        shop = Shop()
        assert_problem(patch(shop, "p", body), 400)
        assert not shop.records.sent

    def test_base64_embedding(self) -> None:
        shop = Shop()
        encoded = encode_vector(np.array([1.0, 0.0], dtype=np.float32))
        assert put(shop, "p", {"title": "", "embedding": encoded, "space": "s"}).status_code == 202

    @pytest.mark.parametrize(
        "changed",
        [
            {"space": None},
            {"embedding": None},
            {"embedding": [0.0, 0.0]},
            {"embedding": []},
            {"embedding": "*"},
            {"price": -1},
            {"price": "9"},
            {"title": "x" * 4001},
            {"title": "漢" * 1334},
            {"category": "ü" * 501},
            {"titel": "typo"},
            {"title": None},
            {"embedding": None, "space": "text64-v1"},
            {"updated_at": 10**13},
        ],
    )
    def test_wrong_product_is_refused(self, changed: dict[str, Any]) -> None:
        shop = Shop()
        assert_problem(put(shop, "p", {**FULL, **changed}), 400)
        assert not shop.records.sent

    @pytest.mark.parametrize("key", ["%00space", "%00", "%00anything"])
    def test_reserved_key_is_refused_and_no_record_is_sent(self, key: str) -> None:
        shop = Shop()
        path = f"/v1/products/{key}"
        for response in (shop.client.delete(path), shop.client.put(path, json=FULL)):
            assert_problem(response, 400, parameter="id")
        assert not shop.records.sent

    @pytest.mark.parametrize("body", [{}, {"in_stock": False}, {"price": 2}, {"category": "C"}])
    def test_product_without_a_title_is_refused(self, body: dict[str, Any]) -> None:
        shop = Shop()
        assert_problem(put(shop, "p", body), 400)
        assert not shop.records.sent

    def test_delete_is_a_tombstone(self) -> None:
        shop = Shop()
        assert shop.client.delete("/v1/products/p%2F1").status_code == 202
        assert shop.records.sent == [("catalogue", "p/1", None)]

    def test_path_below_a_product_is_not_taken_for_its_id(self) -> None:
        shop = Shop()
        assert_problem(shop.client.delete("/v1/products/p/similar"), 404)
        assert not shop.records.sent

    def test_kafka_that_does_not_acknowledge_is_503(self) -> None:
        shop = Shop()
        shop.records.away = True
        for response in (put(shop, "p", FULL), shop.client.delete("/v1/products/p")):
            assert_problem(response, 503, store="kafka")
            assert response.headers["Retry-After"] == "2"

    def test_no_more_writes_wait_than_may(self) -> None:
        shop = Shop()
        waiting = shop.app.extensions["recommender"].waiting_writes
        for _ in range(2):
            waiting.acquire()
        response = put(shop, "p", FULL)
        assert_problem(response, 503, type="urn:recommender:problem:busy")
        waiting.release()
        assert put(shop, "p", FULL).status_code == 202
        assert put(shop, "p", FULL).status_code == 202


class TestBulk:
    def post(self, shop: Shop, products: list[dict[str, Any]]) -> Any:
        return shop.client.post("/v1/products:bulk", json={"products": products})

    def test_a_whole_number_as_an_id_is_its_decimal_text(self) -> None:
        """As in the topic, and in an event of that product."""
        shop = Shop()
        products: list[dict[str, Any]] = [
            {"product_id": 632910392, **FULL},
            {"product_id": 7, "deleted": True},
        ]
        assert self.post(shop, products).status_code == 202
        written, deleted = shop.records.sent
        assert written[1] == "632910392"
        assert json.loads(written[2] or b"")["product_id"] == "632910392"
        assert deleted[1:] == ("7", None)

    @pytest.mark.parametrize("wrong", [5.0, 1e30, True, None, 10**200, [1], ""])
    def test_no_other_value_is_an_id(self, wrong: Any) -> None:
        shop = Shop()
        assert_problem(self.post(shop, [{"product_id": wrong, "deleted": True}]), 400)
        assert not shop.records.sent

    def test_products_and_deletions_keep_their_order(self) -> None:
        shop = Shop()
        response = self.post(
            shop,
            [
                {"product_id": "a", "title": "Green Tea"},
                {"product_id": "b", "deleted": True},
                {"product_id": "c", **FULL},
                {"product_id": "d", "price": 2.5},
                {"product_id": "e", "title": "New", "partial": True},
            ],
        )
        assert (response.status_code, json.loads(response.data)) == (202, {"accepted": 5})
        assert [key for _, key, _ in shop.records.sent] == list("abcde")
        assert sent(shop) == [
            {"product_id": "a", "title": "Green Tea"},
            None,
            {"product_id": "c", **FULL},
            {"product_id": "d", "price": 2.5, "partial": True},
            {"product_id": "e", "title": "New", "partial": True},
        ]

    def test_one_wrong_product_stops_all_and_is_named(self) -> None:
        shop = Shop()
        response = self.post(shop, [{"product_id": "a", **FULL}, {"product_id": "b", "space": "s"}])
        body = assert_problem(response, 400)
        assert [error["index"] for error in body["errors"]] == [1]
        assert not shop.records.sent

    @pytest.mark.parametrize("empty", [{}, {"deleted": False}, {"partial": True}])
    def test_entry_that_says_nothing_is_refused_and_named(self, empty: dict[str, Any]) -> None:
        shop = Shop()
        entries = [{"product_id": "a", **FULL}, {"product_id": "b", **empty}]
        body = assert_problem(self.post(shop, entries), 400)
        ((index, reason, detail),) = [
            (e["index"], e["reason"], e["detail"]) for e in body["errors"]
        ]
        assert (index, reason) == (1, "missing_field")
        assert "title" in detail
        assert not shop.records.sent

    def test_reserved_key_stops_all_and_is_named(self) -> None:
        shop = Shop()
        entries = [{"product_id": "a", **FULL}, {"product_id": "\0space", "deleted": True}]
        body = assert_problem(self.post(shop, entries), 400)
        assert [error["index"] for error in body["errors"]] == [1]
        assert not shop.records.sent

    @pytest.mark.parametrize("count", [0, MAX_PRODUCTS + 1])
    def test_number_is_bounded(self, count: int) -> None:
        shop = Shop()
        assert_problem(self.post(shop, [{"product_id": "a", "deleted": True}] * count), 400)


class TestLists:
    @pytest.fixture
    def shop(self) -> Shop:
        shop = Shop()
        shop.add(*map(product, "acd"), product("b", in_stock=False))
        similar = [("b", 1.75), ("c", 1.5), ("gone", 0.9), ("d", 0.8)]
        shop.store.save_lists_of_product(SavedProductList("a", similar, [("c", 0.5)], NOW * 1000))
        return shop

    def test_similar_in_stock_come_as_saved(self, shop: Shop) -> None:
        body = shop.get("/v1/products/a/similar?limit=5")
        assert body["product_id"] == "a"
        assert [(item["product_id"], item["score"]) for item in body["items"]] == [
            ("c", 1.5), ("d", 0.8),
        ]  # fmt: skip
        assert body["items"][0]["source"] == body["items"][0]["reason"] == "similar"
        assert body["items"][0]["title"] == "The c"

    def test_bought_together(self, shop: Shop) -> None:
        (item,) = shop.get("/v1/products/a/bought-together")["items"]
        assert (item["product_id"], item["score"]) == ("c", 0.5)
        assert (item["source"], item["reason"]) == ("bought_together", "bought together")

    @pytest.mark.parametrize("name", ["similar", "bought-together"])
    class TestBoth:
        def test_list_costs_one_read(self, shop: Shop, name: str) -> None:
            memory = CatalogueMemory(5)
            for one in "abcd":
                memory.apply(one.encode(), record(one, [1.0]))
            memory.caught_up = True
            followed = Shop(catalogue=memory, store=shop.store)
            reads = shop.store.reads
            assert ids(followed.get(f"/v1/products/a/{name}")["items"])
            assert shop.store.reads == reads + 1

        def test_limit_holds(self, shop: Shop, name: str) -> None:
            assert ids(shop.get(f"/v1/products/a/{name}?limit=1")["items"]) == ["c"]
            assert_problem(shop.client.get(f"/v1/products/a/{name}?limit=0"), 400)

        def test_known_product_without_a_row_has_an_empty_list(self, shop: Shop, name: str) -> None:
            assert shop.get(f"/v1/products/d/{name}") == {"product_id": "d", "items": []}

        def test_product_that_is_gone_is_404_also_where_its_row_is_not(
            self, shop: Shop, name: str
        ) -> None:
            assert_problem(shop.client.get(f"/v1/products/x/{name}"), 404)
            saved = SavedProductList("x", [("a", 1.0)], [("a", 1.0)], 1)
            shop.store.save_lists_of_product(saved)
            assert_problem(shop.client.get(f"/v1/products/x/{name}"), 404)

        def test_store_that_is_away_is_503(self, shop: Shop, name: str) -> None:
            shop.store.failure = StoreUnavailable("cassandra", "no node answers")
            response = shop.client.get(f"/v1/products/a/{name}")
            assert_problem(response, 503, type="urn:recommender:problem:store-unavailable")
