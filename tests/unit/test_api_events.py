"""POST /v1/events: what is taken, what is refused, what becomes of a full buffer."""

from __future__ import annotations

import json
import time
import typing
from typing import Any

import pytest

from api.erasure import ERASE
from api.events import MAX_BYTES, MAX_EVENTS, ShopEventType
from tests.unit.api_doubles import Shop
from tests.unit.test_api_routes import assert_problem
from udfs.schemas import EVENT_TYPES, MIN_TIMESTAMP_MS

CLICK = {"user_id": "u", "type": "click", "product_id": "p"}


def post(shop: Shop, body: object, **given: Any) -> Any:
    return shop.client.post("/v1/events", json=body, **given)


def test_one_event_gets_an_id_and_a_time() -> None:
    shop = Shop()
    before = int(time.time() * 1000)
    response = post(shop, {**CLICK, "unknown": 1})
    assert response.status_code == 202
    (event,) = shop.events.taken
    assert json.loads(response.data) == {"accepted": 1, "event_ids": [event.event_id]}
    assert before <= event.ts <= time.time() * 1000
    assert (event.user_id, event.type, event.product_id) == ("u", "click", "p")


def test_given_id_and_time_are_kept_and_the_order_too() -> None:
    shop = Shop()
    given = [{**CLICK, "event_id": f"e{n}", "ts": MIN_TIMESTAMP_MS + n} for n in range(3)]
    response = post(shop, given)
    assert json.loads(response.data)["event_ids"] == ["e0", "e1", "e2"]
    assert [(one.event_id, one.ts) for one in shop.events.taken] == [
        ("e0", MIN_TIMESTAMP_MS),
        ("e1", MIN_TIMESTAMP_MS + 1),
        ("e2", MIN_TIMESTAMP_MS + 2),
    ]


def test_made_ids_differ() -> None:
    shop = Shop()
    post(shop, [CLICK] * 100)
    assert len({one.event_id for one in shop.events.taken}) == 100


@pytest.mark.parametrize(
    "wrong",
    [
        {"user_id": "u", "type": "click"},
        {"user_id": "u", "type": "search"},
        {"user_id": "u", "type": "search", "query": "  "},
        {**CLICK, "ts": int(time.time() * 1000) + 3_600_000},
    ],
)
def test_wrong_event_is_named_and_none_is_taken(wrong: dict[str, Any]) -> None:
    shop = Shop()
    body = assert_problem(post(shop, [CLICK, wrong]), 400)
    assert [error["index"] for error in body["errors"]] == [1]
    assert not shop.events.taken


@pytest.mark.parametrize(
    "wrong",
    [
        {**CLICK, "type": "stare"},
        {**CLICK, "type": ERASE},
        {**CLICK, "user_id": ""},
        {**CLICK, "ts": "now"},
        {**CLICK, "product_id": "p" * 129},
        [],
        [CLICK] * (MAX_EVENTS + 1),
        "text",
        7,
    ],
)
def test_body_of_another_shape_is_refused(wrong: object) -> None:
    shop = Shop()
    assert_problem(post(shop, wrong), 400, type="urn:recommender:problem:invalid-body")
    assert not shop.events.taken


def test_body_that_is_no_json_is_refused() -> None:
    shop = Shop()
    for raw in (b"{", b"", b"\xff", b"[" * 100_000):
        response = shop.client.post("/v1/events", data=raw, content_type="application/json")
        assert_problem(response, 400)
    response = shop.client.post("/v1/events", data=json.dumps(CLICK), content_type="text/plain")
    assert_problem(response, 415)


def test_body_that_is_too_large_is_refused() -> None:
    shop = Shop()
    raw = json.dumps([CLICK]).encode() + b" " * MAX_BYTES
    response = shop.client.post("/v1/events", data=raw, content_type="application/json")
    assert_problem(response, 413)


def test_full_buffer_is_503_and_says_how_many_were_taken() -> None:
    shop = Shop()
    shop.events.room = 2
    response = post(shop, [CLICK] * 5)
    assert_problem(response, 503, type="urn:recommender:problem:buffer-full", accepted=2)
    assert response.headers["Retry-After"] == "2"
    response = post(shop, CLICK)
    assert_problem(response, 503, accepted=0)


def test_every_type_of_the_wire_is_taken_but_the_erasure() -> None:
    assert {*typing.get_args(ShopEventType), ERASE} == {*EVENT_TYPES, ERASE}
