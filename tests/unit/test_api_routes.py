"""The routes with a store in memory: answers, parameters, and every error as problem+json."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from api.config import ApiConfig
from api.factory import create_app
from connectors.product_rows import ProductRow
from connectors.recommendation_store import (
    RecommendationList,
    StoredEvent,
    StoreTimeout,
    StoreUnavailable,
)
from tests.contract.memory_store import InMemoryRecommendationStore

NOW = int(time.time() * 1000)
DAY = 86_400_000


@pytest.fixture
def store() -> InMemoryRecommendationStore:
    store = InMemoryRecommendationStore()
    items = tuple((f"p{n}", 0.8999999761581421 - n, "profile") for n in range(150))
    store.save_list(RecommendationList("u1", items, "text64-v1", NOW - 5, NOW))
    for n in range(150):
        store.save_product(None, ProductRow(f"p{n}", f"T{n}", "MONITOR", 10.0 + n, True, NOW))
    for n in range(5):
        store.save_event("u1", StoredEvent(f"e{n}", "click", NOW - n, product_id=f"p{n}"))
    return store


@pytest.fixture
def app(store: InMemoryRecommendationStore) -> Flask:
    return create_app(ApiConfig(), store=store)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def assert_problem(response: TestResponse, status: int, **members: object) -> dict[str, Any]:
    assert response.status_code == status
    assert response.mimetype == "application/problem+json"
    body: dict[str, Any] = json.loads(response.data)
    assert body["status"] == status
    assert body["type"]
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == response.headers["X-Request-ID"]
    assert {name: body[name] for name in members} == members
    return body


def test_list_has_twenty_items_by_default(client: FlaskClient) -> None:
    response = client.get("/v1/users/u1/recommendations")
    body = json.loads(response.data)
    assert response.status_code == 200
    assert response.mimetype == "application/json"
    assert len(body["items"]) == 20
    assert body["items"][0] == {
        "product_id": "p0",
        "title": "T0",
        "category": "MONITOR",
        "price": 10.0,
        "score": 0.9,
        "reason": "profile",
        "source": "personal",
    }
    del body["items"]
    assert body == {
        "user_id": "u1",
        "source": "personal",
        "space": "text64-v1",
        "event_ts": NOW - 5,
        "generated_at": NOW,
        "freshness_ms": 5,
        "degraded": False,
        "variant": None,
    }


@pytest.mark.parametrize("limit", [1, 100])
def test_limit_is_kept(client: FlaskClient, limit: int) -> None:
    body = json.loads(client.get(f"/v1/users/u1/recommendations?limit={limit}").data)
    assert len(body["items"]) == limit


def test_unknown_user_of_an_empty_shop_gets_an_empty_list() -> None:
    client = create_app(ApiConfig(), store=InMemoryRecommendationStore()).test_client()
    response = client.get("/v1/users/nobody/recommendations")
    assert response.status_code == 200
    assert json.loads(response.data) == {
        "user_id": "nobody",
        "source": "none",
        "items": [],
        "space": None,
        "event_ts": None,
        "generated_at": None,
        "freshness_ms": None,
        "degraded": False,
        "variant": None,
    }


@pytest.mark.parametrize(
    ("path", "user"),
    [
        ("a%2Fb", "a/b"),
        ("a//b", "a//b"),
        ("a%0Ab%0A", "a\nb\n"),
        ("%C3%BC%20x", "ü x"),
        ("u" * 128, "u" * 128),
    ],
)
def test_any_text_is_an_id(client: FlaskClient, path: str, user: str) -> None:
    response = client.get(f"/v1/users/{path}/recommendations")
    assert response.status_code == 200
    assert json.loads(response.data)["user_id"] == user


def test_escaped_slash_belongs_to_an_id_and_not_to_the_route(
    client: FlaskClient, store: InMemoryRecommendationStore
) -> None:
    store.save_product(None, ProductRow("p1/similar", "T", "MONITOR", 10.0, True, NOW))
    answer = client.get("/v1/products/p1%2Fsimilar")
    assert json.loads(answer.data)["product_id"] == "p1/similar"
    # There is no such route of a user as a whole.
    assert_problem(client.get("/v1/users/u1%2Fevents"), 405)
    assert_problem(client.post("/v1/users/u1%2Ftoken"), 405)


@pytest.mark.parametrize("route", ["recommendations", "events"])
@pytest.mark.parametrize("user", ["", "u" * 129])
def test_id_out_of_bounds_is_named(client: FlaskClient, route: str, user: str) -> None:
    assert_problem(client.get(f"/v1/users/{user}/{route}"), 400, parameter="id")


def test_id_that_is_not_utf8_is_named(client: FlaskClient) -> None:
    response = client.get("/v1/users/%FF/recommendations")
    assert_problem(response, 400, parameter="id")


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("recommendations?limit=0", "limit"),
        ("recommendations?limit=101", "limit"),
        ("recommendations?limit=x", "limit"),
        ("recommendations?limit=", "limit"),
        ("recommendations?limit=-1", "limit"),
        ("recommendations?limit=1.5", "limit"),
        ("recommendations?limit=%D9%A1", "limit"),
        ("recommendations?limit=1&limit=2", "limit"),
        ("recommendations?limt=5", "limt"),
        ("recommendations?category=", "category"),
        ("recommendations?min_price=x", "min_price"),
        ("recommendations?min_price=-1", "min_price"),
        ("recommendations?max_price=nan", "max_price"),
        ("recommendations?max_price=inf", "max_price"),
        ("recommendations?min_price=2&max_price=1", "min_price"),
        ("events?limit=501", "limit"),
        ("events?from=yesterday", "from"),
        ("events?from=2026-01-31T12:00:00", "from"),
        ("events?from=1960-01-01T00:00:00Z", "from"),
        ("events?to=9999999999999999999", "to"),
        ("events?from=20&to=10", "from"),
        ("events?page=x", "page"),
        ("events?page=", "page"),
    ],
)
def test_wrong_parameter_is_named(client: FlaskClient, query: str, parameter: str) -> None:
    response = client.get(f"/v1/users/u1/{query}")
    body = assert_problem(response, 400, parameter=parameter)
    assert body["type"] == "urn:recommender:problem:invalid-parameter"


def test_events_come_newest_first_in_the_wire_format(client: FlaskClient) -> None:
    body = json.loads(client.get("/v1/users/u1/events?limit=2").data)
    assert body["user_id"] == "u1"
    assert body["events"] == [
        {"event_id": f"e{n}", "type": "click", "ts": NOW - n, "product_id": f"p{n}"}
        for n in range(2)
    ]
    assert body["next"]


def test_pages_give_every_event_once(client: FlaskClient) -> None:
    found: list[str] = []
    query = f"limit=2&from={NOW - DAY}&to={NOW + DAY}"
    token = None
    for _ in range(10):
        body = json.loads(
            client.get(f"/v1/users/u1/events?{query}" + (f"&page={token}" if token else "")).data
        )
        found += [event["event_id"] for event in body["events"]]
        token = body["next"]
        if token is None:
            break
    assert found == ["e0", "e1", "e2", "e3", "e4"]


@pytest.mark.parametrize(
    "times",
    [
        "from=1773144000000&to=1773144000001",
        "from=2026-03-10T12:00:00Z&to=2026-03-10T12:00:00.001Z",
        "from=2026-03-10T14:00:00%2B02:00&to=2026-03-10T14:00:00.001+02:00",
    ],
)
def test_times_are_milliseconds_or_rfc_3339(
    client: FlaskClient, store: InMemoryRecommendationStore, times: str
) -> None:
    store.save_event("u2", StoredEvent("e", "click", 1_773_144_000_000, product_id="p"))
    body = json.loads(client.get(f"/v1/users/u2/events?{times}").data)
    assert [event["event_id"] for event in body["events"]] == ["e"]


def test_live_asks_no_store(client: FlaskClient, store: InMemoryRecommendationStore) -> None:
    store.failure = StoreUnavailable("cassandra", "gone")
    assert client.get("/health/live").status_code == 200


def test_ready_names_the_store(client: FlaskClient, store: InMemoryRecommendationStore) -> None:
    response = client.get("/health/ready")
    assert json.loads(response.data) == {"status": "ready", "stores": {"cassandra": "up"}}
    store.failure = StoreUnavailable("cassandra", "no node answers")
    response = client.get("/health/ready")
    assert_problem(response, 503, stores={"cassandra": "down: no node answers"})
    assert response.headers["Retry-After"] == "2"


@pytest.mark.parametrize("route", ["recommendations", "events"])
@pytest.mark.parametrize(
    ("failure", "type_"),
    [
        (StoreTimeout("cassandra", "late"), "urn:recommender:problem:store-timeout"),
        (StoreUnavailable("cassandra", "gone"), "urn:recommender:problem:store-unavailable"),
    ],
)
def test_store_that_does_not_answer_is_503(
    client: FlaskClient,
    store: InMemoryRecommendationStore,
    route: str,
    failure: StoreTimeout | StoreUnavailable,
    type_: str,
) -> None:
    store.failure = failure
    response = client.get(f"/v1/users/u1/{route}")
    assert_problem(response, 503, type=type_, store="cassandra")
    assert response.headers["Retry-After"] == "2"


@pytest.mark.parametrize("path", ["/shop", "/v1", "/v1/users", "/v1/products/a/b", "/v1/trending/"])
def test_unknown_path_is_a_404_problem(client: FlaskClient, path: str) -> None:
    assert_problem(client.get(path), 404)


def test_wrong_method_is_a_405_problem_that_names_the_right_ones(client: FlaskClient) -> None:
    response = client.post("/v1/users/u1/recommendations")
    assert_problem(response, 405)
    assert "GET" in response.headers["Allow"]


@pytest.mark.parametrize("testing", [False, True])
def test_unexpected_error_is_a_500_problem_without_its_text(
    app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, testing: bool
) -> None:
    def broken(*_: object) -> None:
        msg = "secret"
        raise RuntimeError(msg)

    app.testing = testing
    monkeypatch.setattr(InMemoryRecommendationStore, "recommendations", broken)
    response = app.test_client().get("/v1/users/u1/recommendations")
    body = assert_problem(response, 500)
    assert "secret" not in response.text
    assert body["request_id"] in caplog.text


@pytest.mark.parametrize(("sent", "kept"), [("abc-1.2_3", True), ("a b", False), ("x" * 65, False)])
def test_request_id_is_taken_over_if_it_is_harmless(
    client: FlaskClient, sent: str, kept: bool
) -> None:
    response = client.get("/health/live", headers={"X-Request-ID": sent})
    assert (response.headers["X-Request-ID"] == sent) is kept
    assert response.headers["X-Request-ID"]


def test_nothing_is_cached_unless_a_route_says_so(client: FlaskClient) -> None:
    assert client.get("/v1/users/u1/events").headers["Cache-Control"] == "no-store"
    assert client.get("/v1/users/u1/recommendations?limit=0").headers["Cache-Control"] == "no-store"


def test_list_may_be_used_for_a_second_and_is_not_sent_again(
    client: FlaskClient, store: InMemoryRecommendationStore
) -> None:
    url = "/v1/users/u1/recommendations"
    first = client.get(url)
    assert first.headers["Cache-Control"] == "private, max-age=1"
    assert "Authorization" in first.headers["Vary"]
    tag = first.headers["ETag"]
    for sent in (tag, f'W/{tag}, "other"', "*"):
        again = client.get(url, headers={"If-None-Match": sent})
        assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", tag)
    changed = RecommendationList("u1", (), "text64-v1", NOW, NOW + 1)
    store.save_list(changed)
    assert client.get(url, headers={"If-None-Match": tag}).status_code == 200


def test_pages_from_elsewhere_may_not_read_answers(client: FlaskClient) -> None:
    origin = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    for method in ("GET", "OPTIONS"):
        response = client.open("/v1/trending", method=method, headers=origin)
        assert not [name for name, _ in response.headers if name.startswith("Access-Control")]
