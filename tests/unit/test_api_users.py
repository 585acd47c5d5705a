"""Erasure, objection and profile of a user."""

from __future__ import annotations

import json
import time

import pytest

from connectors.recommendation_store import RecommendationList, StoredEvent
from tests.unit.api_doubles import Shop, ids, product
from tests.unit.test_api_routes import DAY, NOW, assert_problem
from udfs.profile import ProfileConfig


class TestErasure:
    def test_request_is_recorded_and_sent_behind_the_users_events(self) -> None:
        shop = Shop()
        response = shop.client.delete("/v1/users/a%2Fb")
        assert response.status_code == 202
        body = json.loads(response.data)
        ((topic, key, value),) = shop.records.sent
        assert (topic, key) == ("events", "a/b")
        assert value is not None
        event = json.loads(value)
        assert event.pop("event_id")
        assert event == {"user_id": "a/b", "ts": body["requested_at"], "type": "erase"}
        assert body["status"] == "requested"
        assert shop.get("/v1/users/a%2Fb/erasure") == body

    def test_status_says_when_it_is_done(self) -> None:
        shop = Shop()
        assert_problem(shop.client.get("/v1/users/u/erasure"), 404)
        at = json.loads(shop.client.delete("/v1/users/u").data)["requested_at"]
        shop.store.finish_erasure("u", at - 1, at + 5)
        assert shop.get("/v1/users/u/erasure")["status"] == "requested"
        shop.store.finish_erasure("u", at, at + 900)
        assert shop.get("/v1/users/u/erasure") == {
            "user_id": "u",
            "status": "done",
            "requested_at": at,
            "done_at": at + 900,
        }

    def test_kafka_away_is_503_and_the_request_stays_open(self) -> None:
        shop = Shop()
        shop.records.away = True
        assert_problem(shop.client.delete("/v1/users/u"), 503, store="kafka")
        assert shop.get("/v1/users/u/erasure")["status"] == "requested"

    @pytest.mark.parametrize("path", ["u/events", "u/recommendations", "u/profile", "u/erasure"])
    def test_path_of_a_user_is_not_taken_for_an_id(self, path: str) -> None:
        shop = Shop()
        response = shop.client.delete(f"/v1/users/{path}")
        assert response.status_code in (404, 405)
        assert not shop.records.sent

    @pytest.mark.parametrize("slash", ["%2F", "%2f"])
    def test_id_that_ends_like_a_route_is_an_id(self, slash: str) -> None:
        shop = Shop()
        answer = shop.client.delete(f"/v1/users/victim{slash}objection")
        assert json.loads(answer.data)["user_id"] == "victim/objection"
        ((_, key, value),) = shop.records.sent
        assert (key, json.loads(value or b"")["type"]) == ("victim/objection", "erase")

    @pytest.mark.parametrize(
        ("before", "script"), [("http://host:80", ""), ("/shop", "/shop"), ("", "")]
    )
    def test_path_may_follow_an_origin_or_a_prefix(self, before: str, script: str) -> None:
        shop = Shop()
        raw = f"{before}/v1/users/victim%2Fobjection"
        shop.client.delete(
            "/v1/users/victim/objection",
            environ_overrides={"RAW_URI": raw, "SCRIPT_NAME": script},
        )
        assert [key for _, key, _ in shop.records.sent] == ["victim/objection"]

    def test_what_is_escaped_twice_stays_escaped_once(self) -> None:
        shop = Shop()
        answer = shop.client.delete("/v1/users/100%25%252Fobjection%2F%C3%BC")
        assert json.loads(answer.data)["user_id"] == "100%%2Fobjection/ü"


class TestObjection:
    @pytest.mark.parametrize(
        ("method", "type_", "objects"), [("PUT", "opt_out", True), ("DELETE", "opt_in", False)]
    )
    def test_it_goes_behind_the_users_events(self, method: str, type_: str, objects: bool) -> None:
        shop = Shop()
        response = shop.client.open("/v1/users/a%2Fb/objection", method=method)
        assert response.status_code == 202
        ((topic, key, value),) = shop.records.sent
        assert (topic, key) == ("events", "a/b")
        event = json.loads(value or b"")
        assert event.pop("event_id")
        at = event.pop("ts")
        assert event == {"user_id": "a/b", "type": type_}
        assert json.loads(response.data) == {
            "user_id": "a/b",
            "objects": objects,
            "requested_at": at,
        }

    def test_id_may_itself_end_like_the_route(self) -> None:
        shop = Shop()
        assert shop.client.put("/v1/users/u%2Fobjection/objection").status_code == 202
        ((_, key, _),) = shop.records.sent
        assert key == "u/objection"

    @pytest.mark.parametrize("method", ["PUT", "DELETE"])
    def test_what_kafka_has_not_acknowledged_is_503(self, method: str) -> None:
        shop = Shop()
        shop.records.away = True
        response = shop.client.open("/v1/users/u/objection", method=method)
        assert_problem(response, 503, store="kafka")
        assert response.headers["Retry-After"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", ""), ("PUT", "/objection"), ("DELETE", "/objection"), ("POST", "/token")],
)
def test_what_is_no_users_id_is_asked_nothing(method: str, path: str) -> None:
    """The job would refuse it, and an erasure would be open for ever."""
    shop = Shop()
    response = shop.client.open(f"/v1/users/%00u{path}", method=method)
    assert_problem(response, 400, parameter="id")
    assert not shop.records.sent
    assert shop.store.erasure("\0u") is None


class TestProfile:
    def test_interactions_and_what_they_lean_to(self) -> None:
        shop = Shop()
        # The weights fade by the wall clock, and the modules were read long ago.
        now = int(time.time() * 1000)
        shop.add(product("m", "MONITOR"), product("t", "TEA"), product("x", ""))
        half_life = int(ProfileConfig().slow_half_life_s * 1000)
        weights = ProfileConfig().weights
        events = [
            StoredEvent("1", "click", now, "m"),
            StoredEvent("2", "purchase", now - half_life, "t"),
            StoredEvent("3", "search", now - DAY, query="green tea"),
            StoredEvent("4", "click", now - 40 * DAY, "gone"),
            StoredEvent("5", "click", now - 40 * DAY, "x"),
        ]
        for one in events:
            shop.store.save_event("u", one)
        items = (("m", 1.0, "profile"),)
        shop.store.save_list(RecommendationList("u", items, "s", now, now + 1, ("t",)))
        body = shop.get("/v1/users/u/profile")
        newest_first = sorted(events, key=lambda one: (-one.ts, one.event_id))
        assert [(one["type"], one["ts"]) for one in body["interactions"]] == [
            (one.type, one.ts) for one in newest_first
        ]
        assert body["interactions"][0]["title"] == "The m"
        assert [one["title"] for one in body["interactions"] if one["product_id"] == "gone"] == [
            None
        ]
        assert body["searches"] == ["green tea"]
        lean = {one["category"]: one for one in body["categories"]}
        assert lean.keys() == {"MONITOR", "TEA"}
        # A few milliseconds pass between the events and the answer.
        assert lean["MONITOR"]["score"] == pytest.approx(weights["click"], abs=1e-3)
        assert lean["TEA"]["score"] == pytest.approx(weights["purchase"] / 2, abs=1e-3)
        assert sum(one["share"] for one in lean.values()) == pytest.approx(1, abs=1e-5)
        assert body["list"] == {
            "generated_at": now + 1,
            "event_ts": now,
            "space": "s",
            "items": 1,
            "excluded": 1,
        }
        assert "last 5 saved events" in body["derived_from"]

    def test_disliked_category_is_leaned_away_from(self) -> None:
        shop = Shop()
        shop.add(product("m", "MONITOR"), product("t", "TEA"))
        shop.store.save_event("u", StoredEvent("1", "dislike", NOW, "t"))
        shop.store.save_event("u", StoredEvent("2", "click", NOW, "m"))
        categories = shop.get("/v1/users/u/profile")["categories"]
        assert [(one["category"], one["share"]) for one in categories] == [
            ("MONITOR", 1.0),
            ("TEA", 0.0),
        ]
        assert categories[1]["score"] < 0

    def test_unknown_user_is_empty(self) -> None:
        body = Shop().get("/v1/users/nobody/profile")
        assert (body["interactions"], body["categories"], body["list"]) == ([], [], None)

    def test_limit(self) -> None:
        shop = Shop()
        for n in range(5):
            shop.store.save_event("u", StoredEvent(f"e{n}", "click", NOW - n, f"p{n}"))
        body = shop.get("/v1/users/u/profile?limit=2")
        assert ids(body["interactions"]) == ["p0", "p1"]
