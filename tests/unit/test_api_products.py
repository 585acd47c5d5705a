"""Products: reads, writes into the catalogue topic, and the lists of one."""

from __future__ import annotations

import json
import threading
from typing import Any, ClassVar

import numpy as np
import pytest

from api.catalogue_memory import CatalogueMemory
from api.config import ApiConfig
from api.products import MAX_PRODUCTS
from connectors.recommendation_store import StoreUnavailable
from tests.unit.api_doubles import NOW, Shop, ids, product
from tests.unit.test_api_routes import assert_problem
from udfs.query_encoder import encode_texts
from udfs.schemas import (
    Product,
    SavedProductList,
    decode_product,
    encode_product,
    encode_vector,
)

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


def record(product_id: str, vector: list[float], **fields: Any) -> bytes:
    return encode_product(Product(product_id, "s", vector, **fields))


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
    def test_product_goes_whole_into_the_topic(self) -> None:
        shop = Shop()
        response = put(shop, "p1", FULL)
        assert (response.status_code, json.loads(response.data)) == (202, {"accepted": 1})
        ((topic, key, value),) = shop.records.sent
        assert (topic, key) == ("catalogue", "p1")
        assert value is not None
        found, vector = decode_product("p1", value)
        assert found == Product("p1", "s", [3.0, 4.0], "Monitor", "MONITOR", 9.5, in_stock=False)
        np.testing.assert_allclose(vector, [0.6, 0.8], atol=1e-6)

    def test_title_becomes_the_embedding_where_there_is_none(self) -> None:
        shop = Shop()
        assert put(shop, "ü", {"title": "Wireless Mouse"}).status_code == 202
        ((_, key, value),) = shop.records.sent
        assert key == "ü"
        assert value is not None
        found, vector = decode_product("ü".encode().decode("latin-1"), value)
        assert found.space == "text64-v1"
        np.testing.assert_allclose(vector, encode_texts(["Wireless Mouse"])[0], atol=1e-6)

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
            {"embedding": None, "space": None, "title": ""},
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


class TestWhatWasLearned:
    """A shop that changes a price knows nothing of what `make vectors` found out."""

    LEARNED: ClassVar[dict[str, Any]] = {
        "related": {"b": 1.0, "a": 0.25},
        "rebuy_days": 30.0,
        "rebuy_share": 0.5,
    }

    def shop(self, space: str, vector: Any) -> Shop:
        memory = CatalogueMemory(5)
        value = encode_product(
            Product("a", space, encode_vector(np.array(vector)), "Old", "C", 1.0, **self.LEARNED)
        )
        memory.apply(b"a", value, NOW)
        memory.caught_up = True
        return Shop(catalogue=memory)

    def sent(self, shop: Shop) -> tuple[Product, Any]:
        ((_, _, value),) = shop.records.sent
        assert value is not None
        found, vector = decode_product("a", value)
        assert (found.related, found.rebuy_days, found.rebuy_share) == tuple(self.LEARNED.values())
        return found, vector

    def test_stays_when_a_price_changes(self) -> None:
        shop = self.shop("learned", [0.6, 0.8])
        assert put(shop, "a", {"title": "Old", "category": "C", "price": 2.0}).status_code == 202
        found, vector = self.sent(shop)
        assert (found.space, found.price) == ("learned", 2.0)
        np.testing.assert_allclose(vector, [0.6, 0.8], atol=1e-6)

    def test_stays_in_a_bulk(self) -> None:
        shop = self.shop("learned", [0.6, 0.8])
        body = {"products": [{"product_id": "a", "title": "New"}]}
        assert shop.client.post("/v1/products:bulk", json=body).status_code == 202
        found, _ = self.sent(shop)
        assert (found.space, found.title) == ("learned", "New")

    def test_vector_of_the_title_follows_the_title(self) -> None:
        shop = self.shop("text64-v1", encode_texts(["Green Tea"])[0])
        assert put(shop, "a", {"title": "Wireless Mouse"}).status_code == 202
        found, vector = self.sent(shop)
        assert found.space == "text64-v1"
        np.testing.assert_allclose(vector, encode_texts(["Wireless Mouse"])[0], atol=1e-6)

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"embedding": [1.0, 0.0], "space": "learned"}, [1.0, 0.0]),
            ({"space": "text64-v1"}, encode_texts(["Green Tea"])[0]),
        ],
    )
    def test_vector_gives_way_to_one_that_is_given(self, given: Any, expected: Any) -> None:
        shop = self.shop("learned", [0.6, 0.8])
        assert put(shop, "a", {"title": "Green Tea", **given}).status_code == 202
        found, vector = self.sent(shop)
        assert found.space == given["space"]
        np.testing.assert_allclose(vector, expected, atol=1e-6)

    def test_vector_stays_with_its_title(self) -> None:
        # The owner of the catalogue made it of more than the title.
        vector = encode_texts(["Old thing made of glass"])[0]
        shop = self.shop("text64-v1", vector)
        assert put(shop, "a", {"title": "Old", "in_stock": False}).status_code == 202
        found, stays = self.sent(shop)
        assert (found.space, found.in_stock) == ("text64-v1", False)
        np.testing.assert_allclose(stays, vector, atol=1e-6)

    def test_deleted_product_comes_back_with_nothing(self) -> None:
        shop = self.shop("learned", [0.6, 0.8])
        memory = shop.app.extensions["recommender"].catalogue
        memory.apply(b"a", None, NOW)
        assert put(shop, "a", {"title": "Green Tea"}).status_code == 202
        ((_, _, value),) = shop.records.sent
        found, _ = decode_product("a", value or b"")
        assert (found.space, found.related) == ("text64-v1", None)

    def test_write_waits_until_the_catalogue_is_read(self) -> None:
        memory = CatalogueMemory(5)
        shop = Shop(ApiConfig(write_timeout_seconds=1), catalogue=memory)
        assert_problem(put(shop, "a", FULL), 503, store="kafka")
        assert not shop.records.sent
        threading.Timer(0.1, memory._caught_up.set).start()
        assert put(shop, "a", FULL).status_code == 202


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
        assert decode_product("632910392", written[2] or b"")[0].product_id == "632910392"
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
            ],
        )
        assert (response.status_code, json.loads(response.data)) == (202, {"accepted": 3})
        assert [(key, value is None) for _, key, value in shop.records.sent] == [
            ("a", False),
            ("b", True),
            ("c", False),
        ]

    def test_one_wrong_product_stops_all_and_is_named(self) -> None:
        shop = Shop()
        response = self.post(shop, [{"product_id": "a", **FULL}, {"product_id": "b", "title": ""}])
        body = assert_problem(response, 400)
        assert [error["index"] for error in body["errors"]] == [1]
        assert not shop.records.sent

    @pytest.mark.parametrize(
        "partial",
        [
            {"in_stock": False},
            {"price": 3.5},
            {"category": "C", "price": 3.5, "in_stock": True},
            {"embedding": [1.0, 0.0], "space": "s"},
            {"title": None, "price": 3.5},
            {"deleted": False},
        ],
    )
    def test_entry_that_is_a_part_of_a_product_is_refused_and_named(
        self, partial: dict[str, Any]
    ) -> None:
        """Else a price alone would clear title and category and put sold-out goods on sale."""
        memory = CatalogueMemory(5)
        memory.apply(b"b", record("b", [1.0, 0.0], title="Tea", category="C", in_stock=False), NOW)
        memory.caught_up = True
        shop = Shop(catalogue=memory)
        entries = [{"product_id": "a", **FULL}, {"product_id": "b", **partial}]
        body = assert_problem(self.post(shop, entries), 400)
        ((index, reason, detail),) = [
            (e["index"], e["reason"], e["detail"]) for e in body["errors"]
        ]
        assert (index, reason) == (1, "missing_field")
        assert "title" in detail
        assert "partial updates" in detail
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
                memory.apply(one.encode(), record(one, [1.0]), NOW)
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
