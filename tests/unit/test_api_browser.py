"""Pages in browsers: allowed origins, beacons, and tokens that are of one user alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from api.access import ApiKey, hash_key
from api.browser import MAX_BEACON_BYTES
from api.config import ApiConfig
from api.openapi import declared
from api.tokens import MAX_SECONDS, Tokens, UserToken, load_secrets
from connectors.recommendation_store import RecommendationList
from tests.unit.api_doubles import NOW, Shop
from tests.unit.test_api_routes import assert_problem

ORIGIN, OTHER = "https://shop.example", "https://evil.example"
BACKEND, SENDER = "rk_backend", "rk_sender"
KEYS = (
    ApiKey("sender", hash_key(SENDER), ("ingest",)),
    ApiKey("backend", hash_key(BACKEND), ("token",)),
)
SECRET = "s" * 32
CLICK = {"user_id": "u1", "type": "click", "product_id": "p"}
LIST = "/v1/users/u1/recommendations"


def config(**changed: Any) -> ApiConfig:
    return ApiConfig(**{"keys": KEYS, "origins": (ORIGIN,), "token_secrets": (SECRET,), **changed})


@pytest.fixture
def shop() -> Shop:
    shop = Shop(config())
    for user in ("u1", "u2"):
        shop.store.save_list(RecommendationList(user, (("p", 1.0, "profile"),), "s", NOW, NOW))
    return shop


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def token(shop: Shop, user_id: str = "u1", query: str = "") -> str:
    path = f"/v1/users/{user_id}/token{query}"
    response = shop.client.post(path, headers=bearer(BACKEND))
    assert response.status_code == 201, response.text
    return str(json.loads(response.data)["token"])


def beacon(shop: Shop, body: object, origin: str | None = ORIGIN) -> Any:
    """What `navigator.sendBeacon` does with a text."""
    headers = {} if origin is None else {"Origin": origin}
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return shop.client.post(
        "/v1/events", data=raw, content_type="text/plain;charset=UTF-8", headers=headers
    )


class TestToken:
    def test_it_reads_the_users_list_and_sends_the_users_events(self, shop: Shop) -> None:
        headers = bearer(token(shop))
        assert shop.get(LIST, headers=headers)["user_id"] == "u1"
        events = [CLICK, {"type": "search", "query": "tea"}, {**CLICK, "user_id": None}]
        assert shop.client.post("/v1/events", json=events, headers=headers).status_code == 202
        assert [one.user_id for one in shop.events.taken] == ["u1"] * 3

    def test_it_ends_by_its_time_and_no_later_than_in_an_hour(self, shop: Shop) -> None:
        before = int(time.time() * 1000)
        response = shop.client.post("/v1/users/u1/token?seconds=60", headers=bearer(BACKEND))
        body = json.loads(response.data)
        assert before + 60_000 <= body["expires_at"] <= time.time() * 1000 + 60_000
        assert response.headers["Cache-Control"] == "no-store"
        path = f"/v1/users/u1/token?seconds={MAX_SECONDS + 1}"
        assert_problem(shop.client.post(path, headers=bearer(BACKEND)), 400, parameter="seconds")
        ended = Tokens([SECRET]).make(UserToken("u1", "backend", before))
        assert_problem(shop.client.get(LIST, headers=bearer(ended)), 401)

    def test_it_never_reads_another_users_list(self, shop: Shop) -> None:
        headers = bearer(token(shop))
        for other in ("u2", "u1%2Fx", "U1", "u1%00"):
            response = shop.client.get(f"/v1/users/{other}/recommendations", headers=headers)
            assert_problem(response, 403)

    @pytest.mark.parametrize("form", ["one", "array", "object", "beacon"])
    def test_it_never_sends_another_users_events(self, shop: Shop, form: str) -> None:
        theirs = {**CLICK, "user_id": "u2"}
        made = token(shop)
        if form == "beacon":
            response = beacon(shop, {"token": made, "events": [theirs]})
        else:
            body: Any = {"one": theirs, "array": [theirs] * 2, "object": {"events": [theirs]}}[form]
            response = shop.client.post("/v1/events", json=body, headers=bearer(made))
        body = assert_problem(response, 403)
        assert {one["reason"] for one in body["errors"]} == {"wrong_user"}
        assert not shop.events.taken

    def test_of_a_batch_only_the_users_own_events_are_taken(self, shop: Shop) -> None:
        events = [{**CLICK, "user_id": "u2"}, CLICK]
        response = shop.client.post("/v1/events", json=events, headers=bearer(token(shop)))
        assert response.status_code == 202
        assert [one.user_id for one in shop.events.taken] == ["u1"]
        (error,) = json.loads(response.data)["errors"]
        assert (error["index"], error["reason"]) == (0, "wrong_user")

    def test_it_opens_no_other_route(self, shop: Shop) -> None:
        headers = bearer(token(shop))
        asked = 0
        for rule, method, one in declared(shop.app):
            if one.scope is None or one.browser:
                continue
            path = rule.rule.replace("<id:user_id>", "u1").replace("<id:product_id>", "p")
            assert_problem(shop.client.open(path, method=method, headers=headers), 401)
            asked += 1
        assert asked > 10
        assert not shop.records.sent

    @pytest.mark.parametrize(
        "forge",
        [
            lambda made: made[:-9] + ("A" if made[-9] != "A" else "B") + made[-8:],
            lambda made: made[:8] + ("A" if made[8] != "A" else "B") + made[9:],
            lambda made: made.rpartition(".")[0],
            lambda made: made.rpartition(".")[0] + ".",
            lambda _: "ut_",
            lambda _: "ut_.",
            lambda _: "ut_" + "x" * 10_000,
            lambda _: Tokens(["t" * 32]).make(UserToken("u1", "backend", 2**50)),
        ],
    )
    def test_a_forged_one_is_unknown(self, shop: Shop, forge: Any) -> None:
        headers = bearer(forge(token(shop)))
        assert_problem(shop.client.get(LIST, headers=headers), 401)
        assert_problem(shop.client.post("/v1/events", json=CLICK, headers=headers), 401)

    def test_it_ends_with_the_key_that_asked_for_it(self, shop: Shop) -> None:
        headers = bearer(token(shop))
        for keys in (KEYS[:1], (KEYS[0], ApiKey("backend", KEYS[1].sha256, ("erase",)))):
            later = Shop(config(keys=keys))
            assert_problem(later.client.get(LIST, headers=headers), 401)

    def test_it_ends_with_the_key_also_where_another_has_its_name(self, shop: Shop) -> None:
        """A key that leaked is replaced by one of the same name."""
        headers = bearer(token(shop))
        later = Shop(config(keys=(KEYS[0], ApiKey("backend", hash_key("rk_new"), ("token",)))))
        assert_problem(later.client.get(LIST, headers=headers), 401)
        # The name of a key, as tokens had it once, is not enough.
        named = Tokens([SECRET]).make(UserToken("u1", "backend", 2**50))
        assert_problem(shop.client.get(LIST, headers=bearer(named)), 401)

    def test_it_does_not_tell_the_hash_of_the_key(self, shop: Shop) -> None:
        made = Tokens([SECRET]).read(token(shop), 0)
        assert KEYS[1].sha256 not in made.key

    def test_without_keys_it_is_of_this_machine(self) -> None:
        shop = Shop(config(keys=()))
        made = json.loads(shop.client.post("/v1/users/u1/token").data)["token"]
        assert shop.get(LIST, headers=bearer(made))["user_id"] == "u1"

    def test_secrets_are_replaced_one_after_the_other(self, shop: Shop) -> None:
        headers = bearer(token(shop))
        both = Shop(config(token_secrets=(SECRET, "t" * 32)))
        assert both.client.get(LIST, headers=headers).status_code == 200
        newer = bearer(token(both))
        only_new = Shop(config(token_secrets=("t" * 32,)))
        assert only_new.client.get(LIST, headers=newer).status_code == 200
        assert_problem(only_new.client.get(LIST, headers=headers), 401)

    def test_without_a_secret_none_is_made_or_taken(self, shop: Shop) -> None:
        made = token(shop)
        without = Shop(config(token_secrets=()))
        response = without.client.post("/v1/users/u1/token", headers=bearer(BACKEND))
        assert_problem(response, 404)
        assert_problem(without.client.get(LIST, headers=bearer(made)), 401)

    def test_only_its_scope_makes_one(self, shop: Shop) -> None:
        response = shop.client.post("/v1/users/u1/token", headers=bearer(SENDER))
        assert_problem(response, 403)
        response = shop.client.post("/v1/users/u1/token", headers=bearer(token(shop)))
        assert_problem(response, 401)

    def test_it_is_counted_with_the_key_that_asked_for_it(self) -> None:
        rates = ApiConfig.from_env({"RECOMMENDER_API_RATE_INGEST": "1"}).rates
        shop = Shop(config(rates=rates))
        made = token(shop)
        answers = [
            shop.client.post("/v1/events", json=CLICK, headers=bearer(made)).status_code
            for _ in range(5)
        ]
        assert answers[0] == 202
        assert answers[-1] == 429
        # Another key's limit is its own.
        assert shop.client.post("/v1/events", json=CLICK, headers=bearer(SENDER)).status_code == 202

    @pytest.mark.parametrize(
        "raw", [b"", b"short", b"s" * 31, b"s" * 40 + b"\nshort", b"\xff" * 40]
    )
    def test_a_weak_secret_ends_the_start_and_is_not_told(self, tmp_path: Path, raw: bytes) -> None:
        file = tmp_path / "secret"
        file.write_bytes(raw)
        with pytest.raises(ValueError, match="secret") as caught:
            load_secrets(file)
        assert "short" not in str(caught.value)

    def test_secrets_come_from_a_file_and_are_never_shown(self, tmp_path: Path) -> None:
        file = tmp_path / "secret"
        file.write_text("old" * 12 + "\n" + "new" * 12 + "\n")
        read = ApiConfig.from_env({"RECOMMENDER_API_TOKEN_SECRET_FILE": str(file)})
        assert read.token_secrets == ("old" * 12, "new" * 12)
        assert "newnew" not in repr(read)
        with pytest.raises(ValueError, match="token secret file"):
            ApiConfig.from_env({"RECOMMENDER_API_TOKEN_SECRET_FILE": str(tmp_path / "absent")})


class TestOrigins:
    """Which pages may read an answer; nothing else has a header of CORS."""

    def preflight(self, shop: Shop, path: str, method: str, origin: str = ORIGIN) -> Any:
        asked = {
            "Origin": origin,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        return shop.client.options(path, headers=asked)

    @pytest.mark.parametrize(("path", "method"), [(LIST, "GET"), ("/v1/events", "POST")])
    def test_a_page_of_an_allowed_origin_may_ask(self, shop: Shop, path: str, method: str) -> None:
        response = self.preflight(shop, path, method)
        assert response.status_code == 200
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        # No other of the path, nor of one that looks like it (DELETE of a user).
        methods = set(response.headers["Access-Control-Allow-Methods"].split(", "))
        assert {method} == methods - {"HEAD", "OPTIONS"}
        allowed = response.headers["Access-Control-Allow-Headers"].lower()
        assert {"authorization", "content-type"} <= {one.strip() for one in allowed.split(",")}
        assert "Access-Control-Allow-Credentials" not in response.headers
        headers = {"Origin": ORIGIN, **bearer(token(shop))}
        given: dict[str, Any] = {"json": CLICK} if method == "POST" else {}
        for asked in (headers, {"Origin": ORIGIN}):
            answer = shop.client.open(path, method=method, headers=asked, **given)
            assert answer.status_code in (200, 202, 401)
            # Errors too: a page must be able to read that its token has ended.
            assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
            assert "Origin" in answer.headers.getlist("Vary")

    @pytest.mark.parametrize(
        "origin", [OTHER, "null", "http://shop.example", "https://shop.example:444", "", "*"]
    )
    def test_no_other_page_may(self, shop: Shop, origin: str) -> None:
        headers = {"Origin": origin, **bearer(token(shop))}
        for response in (
            self.preflight(shop, LIST, "GET", origin),
            shop.client.get(LIST, headers=headers),
        ):
            assert not [one for one in response.headers.keys() if one.startswith("Access-Control")]  # noqa: SIM118
            assert "Origin" in response.headers.getlist("Vary")

    def test_no_other_route_is_open_to_pages(self, shop: Shop) -> None:
        asked = 0
        for rule, method, one in declared(shop.app):
            if one.browser:
                continue
            path = rule.rule.replace("<id:user_id>", "u1").replace("<id:product_id>", "p")
            for response in (
                self.preflight(shop, path, method),
                shop.client.open(path, method=method, headers={"Origin": ORIGIN}),
            ):
                assert "Access-Control-Allow-Origin" not in response.headers
            asked += 1
        assert asked > 10

    def test_the_two_routes_are_these(self, shop: Shop) -> None:
        found = {(method, rule.rule) for rule, method, one in declared(shop.app) if one.browser}
        assert found == {("GET", "/v1/users/<id:user_id>/recommendations"), ("POST", "/v1/events")}

    def test_without_origins_nothing_is_different(self) -> None:
        shop = Shop()
        for response in (
            self.preflight(shop, LIST, "GET"),
            shop.client.get(LIST, headers={"Origin": ORIGIN}),
        ):
            assert "Access-Control-Allow-Origin" not in response.headers
            assert "Origin" not in response.headers.getlist("Vary")
        assert_problem(beacon(shop, CLICK), 415)

    @pytest.mark.parametrize(
        "wrong",
        [
            "*",
            "shop.example",
            "https://shop.example/",
            "https://shop.example/path",
            "https://*.shop.example",
            "https://Shop.example",
            "https://user@shop.example",
            "ftp://shop.example",
            "https://shop.example:443",
            "http://shop.example:80",
            "https://shop.example:port",
            "null",
            "https://",
        ],
    )
    def test_what_is_no_exact_origin_ends_the_start(self, wrong: str) -> None:
        with pytest.raises(ValueError, match="API_ORIGINS"):
            ApiConfig.from_env({"RECOMMENDER_API_ORIGINS": f"{ORIGIN},{wrong}"})

    def test_origins_of_the_environment(self) -> None:
        given = {"RECOMMENDER_API_ORIGINS": f"{ORIGIN}, http://localhost:8000"}
        assert ApiConfig.from_env(given).origins == (ORIGIN, "http://localhost:8000")


class TestBeacon:
    def test_its_token_is_in_its_body(self, shop: Shop) -> None:
        response = beacon(shop, {"token": token(shop), "events": [CLICK, CLICK]})
        assert response.status_code == 202
        assert len(shop.events.taken) == 2
        assert beacon(shop, {"token": token(shop), **CLICK}).status_code == 202

    def test_without_a_token_it_is_not_taken(self, shop: Shop) -> None:
        for body in (CLICK, [CLICK], {"events": [CLICK]}, {"token": "ut_x", **CLICK}, b"{", b""):
            assert_problem(beacon(shop, body), 401)
        assert not shop.events.taken

    @pytest.mark.parametrize("origin", [None, OTHER, "null"])
    def test_it_comes_from_an_allowed_page(self, shop: Shop, origin: str | None) -> None:
        body = {"token": token(shop), "events": [CLICK]}
        assert beacon(shop, body, origin).status_code in (401, 415)
        assert not shop.events.taken

    def test_a_page_from_elsewhere_sends_nothing_to_a_service_without_keys(self) -> None:
        """Any page can send text/plain to this machine: its origin decides."""
        shop = Shop(ApiConfig(origins=(ORIGIN,)))
        for origin in (None, OTHER, "null"):
            assert_problem(beacon(shop, CLICK, origin), 415)
        assert not shop.events.taken
        assert beacon(shop, CLICK).status_code == 202

    def test_it_is_no_larger_than_browsers_send(self, shop: Shop) -> None:
        body = json.dumps({"token": token(shop), "events": [CLICK]}).encode()
        assert beacon(shop, body + b" " * MAX_BEACON_BYTES).status_code == 413
        assert not shop.events.taken

    def test_no_other_route_takes_text(self) -> None:
        response = Shop(ApiConfig(origins=(ORIGIN,))).client.put(
            "/v1/products/p",
            data=b'{"title":"T"}',
            content_type="text/plain",
            headers={"Origin": ORIGIN},
        )
        assert_problem(response, 415)
