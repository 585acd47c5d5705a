"""The shop window's routes: the page and its policy, shelves and search, map, figures."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from api.access import ApiKey, hash_key
from api.catalogue_memory import CatalogueMemory
from api.config import ApiConfig
from api.services import services_of
from api.shop.routes import _FILES, _FOLDER
from connectors.recommendation_store import StoredEvent
from tests.unit.api_doubles import NOW, Shop, record
from tests.unit.test_api_routes import assert_problem
from udfs.catalogue import Catalogue
from udfs.profile import Profile, ProfileConfig, query_vectors, update_profiles
from udfs.query_encoder import SPACE, encode_texts
from udfs.schemas import Event

KEY = "rk_test"
KEYS = (ApiKey("web", hash_key(KEY), ("read", "ingest")),)
TITLES = {
    "m1": ("Wireless Mouse", "MOUSE"),
    "m2": ("Silent Mouse", "MOUSE"),
    "t1": ("Green Tea Sampler", "TEA"),
    "t2": ("Glass Teapot", "TEA"),
    "l1": ("Brass Desk Lamp", "LAMP"),
    "k1": ("Bread Knife", "KNIFE"),
}


def wire(product_id: str, *, in_stock: bool = True, **changed: str) -> bytes:
    title, category = TITLES[product_id]
    title, category = changed.get("title", title), changed.get("category", category)
    vector = encode_texts([f"{title} {category.lower()}"])[0]
    shown = {"title": title, "category": category}
    return record(product_id, vector, space=SPACE, price=5.0, in_stock=in_stock, **shown)


def stocked(config: ApiConfig | None = None) -> tuple[Shop, CatalogueMemory]:
    memory = CatalogueMemory(100)
    for product_id in TITLES:
        memory.apply(product_id.encode(), wire(product_id))
    memory.caught_up = True
    return Shop(config, catalogue=memory), memory


def names(answer: Any) -> list[str]:
    return [one["product_id"] for one in answer["products"]]


class TestPage:
    def test_policy_lets_nothing_in_from_elsewhere_and_no_script_in_the_text(self) -> None:
        response = Shop().client.get("/")
        assert response.mimetype == "text/html"
        policy = dict(
            part.strip().split(" ", 1)
            for part in response.headers["Content-Security-Policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert set(policy.values()) == {"'none'", "'self'"}
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert response.headers["X-Content-Type-Options"] == "nosniff"

    def test_all_that_the_page_asks_for_is_served_here(self) -> None:
        client = Shop().client

        class Links(HTMLParser):
            found: list[str]

            def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
                given = dict(attrs)
                # Neither would the policy let them through.
                assert "style" not in given
                assert not [name for name in given if name.startswith("on")]
                assert tag != "style"
                if tag == "script":
                    assert given["src"]
                self.found += [
                    str(given[name])
                    for name in ("src", "href")
                    if name in given and not str(given[name]).startswith("#")
                ]

        links = Links()
        links.found = []
        links.feed(client.get("/").text)
        assert len(links.found) >= 4
        for link in links.found:
            assert link.startswith("/")
            assert client.get(link).status_code == 200

    @pytest.mark.parametrize("file", sorted(_FILES))
    def test_modules_import_what_is_there_and_put_no_data_into_markup(self, file: str) -> None:
        response = Shop().client.get(f"/shop/files/{file}")
        assert response.status_code == 200
        assert response.mimetype == _FILES[file]
        text = (_FOLDER / file).read_text(encoding="utf-8")
        for imported in re.findall(r'from "(.*?)"', text):
            assert imported.removeprefix("./") in _FILES
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert way not in text
        hosts = re.findall(r"https?://[^/\s\"'`)]+", text)
        # The namespace of SVG, and the address in an advice.
        assert set(hosts) <= {"http://www.w3.org", "http://jobmanager:8081"}

    @pytest.mark.parametrize("file", ["index.html", "../routes.py", "x.js", ".js", "a/b.css"])
    def test_no_other_file_is_served(self, file: str) -> None:
        assert Shop().client.get(f"/shop/files/{file}").status_code == 404

    def test_unchanged_file_is_not_sent_again(self) -> None:
        client = Shop().client
        tag = client.get("/shop/files/main.js").headers["ETag"]
        assert client.get("/shop/files/main.js", headers={"If-None-Match": tag}).status_code == 304


class TestWhoSeesIt:
    def test_it_is_off_where_keys_are_needed(self) -> None:
        client = Shop(ApiConfig(keys=KEYS)).client
        for path in ("/", "/shop/settings", "/shop/products"):
            assert client.get(path).status_code == 404
        assert "/shop/products" not in json.loads(client.get("/openapi.json").data)["paths"]

    def test_it_can_be_off_without_keys(self) -> None:
        assert Shop(ApiConfig(shop_window=False)).client.get("/").status_code == 404

    def test_with_keys_its_data_needs_one(self) -> None:
        shop, _ = stocked(ApiConfig(keys=KEYS, shop_window=True, shop_users=("u1",)))
        client = shop.client
        assert client.get("/").status_code == 200
        # Ids of users are personal: nobody without a key gets them.
        assert shop.get("/shop/settings") == {"users": [], "needs_key": True}
        for path in (
            "/shop/products",
            "/shop/categories",
            "/shop/map",
            "/shop/users/u/vector",
            "/shop/live",
        ):
            assert client.get(path).status_code == 401
            headers = {"Authorization": f"Bearer {KEY}"}
            assert client.get(path, headers=headers).status_code == 200, path
        headers = {"Authorization": f"Bearer {KEY}"}
        response = client.put("/v1/products/m1", json={"title": "Mouse"}, headers=headers)
        assert response.status_code == 403

    def test_settings_come_from_the_environment(self) -> None:
        config = ApiConfig.from_env(
            {
                "RECOMMENDER_SHOP_WINDOW": "off",
                "RECOMMENDER_SHOP_USERS": "u1, u2",
                "RECOMMENDER_FLINK_URL": "http://jobmanager:8081",
            }
        )
        assert (config.shop_window, config.serves_shop_window) == (False, False)
        assert config.shop_users == ("u1", "u2")
        assert config.flink_url == "http://jobmanager:8081"
        assert ApiConfig.from_env({}).serves_shop_window

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("SHOP_WINDOW", "yes"),
            ("SHOP_WINDOW", ""),
            ("SHOP_USERS", "x" * 129),
            ("FLINK_URL", "jobmanager:8081"),
        ],
    )
    def test_wrong_setting_is_named(self, name: str, value: str) -> None:
        with pytest.raises(ValueError, match=f"(?i){name}"):
            ApiConfig.from_env({f"RECOMMENDER_{name}": value})

    def test_users_of_the_settings_are_offered(self) -> None:
        shop = Shop(ApiConfig(shop_users=("u1", "u2")))
        assert shop.get("/shop/settings") == {"users": ["u1", "u2"], "needs_key": False}


class TestShelves:
    def test_categories_take_turns(self) -> None:
        shop, _ = stocked()
        answer = shop.get("/shop/products")
        assert answer["total"] == 6
        assert answer["complete"] is True
        kinds = [one["category"] for one in answer["products"]]
        assert set(kinds[:4]) == {"MOUSE", "TEA", "LAMP", "KNIFE"}
        assert set(kinds[4:]) == {"MOUSE", "TEA"}
        assert shop.get("/shop/products?limit=2")["products"] == answer["products"][:2]
        assert answer["products"][0]["match"] is None

    def test_a_category_and_stock_choose(self) -> None:
        shop, memory = stocked()
        memory.apply(b"t1", wire("t1", in_stock=False))
        assert names(shop.get("/shop/products?category=TEA")) == ["t2"]
        assert sorted(names(shop.get("/shop/products?category=TEA&stock=all"))) == ["t1", "t2"]
        assert shop.get("/shop/products?category=TEA")["total"] == 1
        assert shop.get("/shop/products?category=NONE")["products"] == []
        # The last change stands first.
        assert names(shop.get("/shop/products?stock=all&order=newest"))[0] == "t1"

    def test_changes_show_at_once(self) -> None:
        shop, memory = stocked()
        moved = wire("m1", category="TEA", title="Mouse-shaped Teapot")
        memory.apply(b"m1", moved)
        memory.apply(b"k1", None)
        found = {tuple(one) for one in shop.get("/shop/categories")["categories"]}
        assert found == {("LAMP", 1, 1), ("MOUSE", 1, 1), ("TEA", 3, 3)}
        assert names(shop.get("/shop/products?query=teapot"))[:2] in (["m1", "t2"], ["t2", "m1"])
        assert "k1" not in names(shop.get("/shop/products?stock=all&query=bread+knife"))

    def test_words_come_before_meaning(self) -> None:
        shop, _ = stocked()
        answer = shop.get("/shop/products?query=mouse")["products"]
        assert {one["product_id"] for one in answer if one["match"] == "words"} == {"m1", "m2"}
        assert [one["match"] for one in answer] == ["words"] * 2 + ["meaning"] * 4
        # One letter is wrong.
        assert names(shop.get("/shop/products?query=teapto"))[0] == "t2"

    def test_a_search_shows_what_is_in_stock_and_of_the_category(self) -> None:
        shop, memory = stocked()
        memory.apply(b"m1", wire("m1", in_stock=False))
        assert "m1" not in names(shop.get("/shop/products?query=mouse"))
        assert "m1" in names(shop.get("/shop/products?query=mouse&stock=all"))
        only = shop.get("/shop/products?query=mouse&category=TEA")
        assert {one["category"] for one in only["products"]} == {"TEA"}
        assert only["total"] == 2

    def test_unchanged_shelves_are_not_sent_again(self) -> None:
        shop, memory = stocked()
        tag = shop.client.get("/shop/products").headers["ETag"]
        headers = {"If-None-Match": tag}
        assert shop.client.get("/shop/products", headers=headers).status_code == 304
        memory.apply(b"t1", None)
        assert shop.client.get("/shop/products", headers=headers).status_code == 200

    @pytest.mark.parametrize("query", ["stock=some", "order=oldest", "limit=0", "query=", "x=1"])
    def test_wrong_parameters_are_named(self, query: str) -> None:
        shop, _ = stocked()
        response = shop.client.get(f"/shop/products?{query}")
        assert_problem(response, 400, parameter=query.partition("=")[0])

    def test_without_a_catalogue_in_memory_it_says_so(self) -> None:
        shop = Shop()
        for path in ("/shop/products", "/shop/categories", "/shop/map", "/shop/users/u/vector"):
            assert_problem(
                shop.client.get(path), 503, type="urn:recommender:problem:catalogue-unavailable"
            )


class TestUserVector:
    def test_it_is_what_the_job_makes_of_the_same_events(self) -> None:
        shop, memory = stocked()
        did = [("click", "m1", None), ("search", None, "tea"), ("purchase", "t2", None)]
        for at, (kind, product, query) in enumerate(did):
            stored = StoredEvent(f"e{at}", kind, NOW + at, product, query)
            shop.store.save_event("u/1", stored)
        config = ProfileConfig()
        profile = Profile()
        with memory.vectors() as catalogue:
            assert isinstance(catalogue, Catalogue)
            events = [
                Event(f"e{at}", "u/1", kind, NOW + at, product, query)  # type: ignore[arg-type]
                for at, (kind, product, query) in enumerate(did)
            ]
            update_profiles([profile], [events], catalogue, config)
        expected = query_vectors([profile], config)[0]
        answer = vector_at(shop, "u%2F1", NOW + 1000)
        assert (answer["space"], answer["events"], answer["event_ts"]) == (SPACE, 3, NOW + 2)
        np.testing.assert_allclose(answer["vector"], expected, atol=1e-6)

    def test_who_did_nothing_has_no_place(self) -> None:
        shop, _ = stocked()
        assert shop.get("/shop/users/u/vector") == {
            "space": SPACE,
            "vector": None,
            "events": 0,
            "event_ts": None,
        }


def vector_at(shop: Shop, user: str, now: int) -> Any:
    import api.shop.routes as routes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routes, "now_ms", lambda: now)
        return shop.get(f"/shop/users/{user}/vector")


class TestMapAndFigures:
    def test_map_has_every_product_and_its_category(self) -> None:
        shop, memory = stocked()
        answer = shop.get("/shop/map")
        assert (answer["space"], answer["products"]) == (SPACE, 6)
        places = {one[0]: one for one in answer["points"]}
        assert places.keys() == TITLES.keys()
        for product_id, (_, category) in TITLES.items():
            assert answer["categories"][places[product_id][3]] == category
        with memory.vectors() as catalogue:
            vector = catalogue.product_vector("l1")
        place = np.array(answer["axes"]) @ vector - answer["offset"]
        np.testing.assert_allclose(place, places["l1"][1:3], atol=1e-3)
        tag = shop.client.get("/shop/map").headers["ETag"]
        assert shop.client.get("/shop/map", headers={"If-None-Match": tag}).status_code == 304

    def test_no_map_while_the_catalogue_is_read(self) -> None:
        shop, memory = stocked()
        memory.caught_up = False
        assert_problem(shop.client.get("/shop/map"), 503)

    def test_figures_without_flink_say_that_nobody_named_it(self) -> None:
        shop, memory = stocked()
        answer = shop.get("/shop/live")
        assert (answer["flink"], answer["samples"]) == ("not_configured", [])
        assert (answer["catalogue_products"], answer["catalogue_changes"]) == (6, 6)
        memory.apply(b"t1", None)
        assert shop.get("/shop/live")["catalogue_changes"] == 7

    def test_parts_are_made_once_for_the_application(self) -> None:
        shop, _ = stocked()
        window = services_of(shop.app).window
        assert window is not None
        assert window.mapper.map() is window.mapper.map()
