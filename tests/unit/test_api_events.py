"""POST /v1/events: what is taken, what is refused event by event, times, a full buffer."""

from __future__ import annotations

import json
import time
import typing
from pathlib import Path
from typing import Any

import pytest

from api.config import ApiConfig
from api.events import MAX_BYTES, MAX_EVENTS, EventInput, ShopEventType
from tests.unit.api_doubles import Shop
from tests.unit.test_api_routes import assert_problem
from udfs.schemas import ERASE, EVENT_TYPES, MAX_EVENT_BYTES, Event, decode_event

HOUR = 3_600_000
CLICK = {"user_id": "u", "type": "click", "product_id": "p"}


def post(shop: Shop, body: object, **given: Any) -> Any:
    return shop.client.post("/v1/events", json=body, **given)


def now_ms() -> int:
    return int(time.time() * 1000)


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
    first = now_ms() - HOUR
    given = [{**CLICK, "event_id": f"e{n}", "ts": first + n} for n in range(3)]
    response = post(shop, given)
    assert json.loads(response.data)["event_ids"] == ["e0", "e1", "e2"]
    assert [(one.event_id, one.ts) for one in shop.events.taken] == [
        ("e0", first),
        ("e1", first + 1),
        ("e2", first + 2),
    ]


@pytest.mark.parametrize("form", ["one", "array", "object"])
def test_one_event_an_array_and_an_object_of_events_are_taken(form: str) -> None:
    shop = Shop()
    bodies: dict[str, Any] = {"one": CLICK, "array": [CLICK] * 2, "object": {"events": [CLICK] * 2}}
    response = post(shop, bodies[form])
    assert response.status_code == 202
    body = json.loads(response.data)
    assert body["accepted"] == len(shop.events.taken) == (1 if form == "one" else 2)
    assert body["event_ids"] == [one.event_id for one in shop.events.taken]
    assert "errors" not in body


def test_made_ids_differ() -> None:
    shop = Shop()
    post(shop, [CLICK] * 100)
    assert len({one.event_id for one in shop.events.taken}) == 100


WRONG: dict[str, tuple[Any, str]] = {
    "no product": ({"user_id": "u", "type": "click"}, "missing_field"),
    "no query": ({"user_id": "u", "type": "search"}, "missing_field"),
    "blank query": ({"user_id": "u", "type": "search", "query": "  "}, "invalid_field"),
    "seconds": ({**CLICK, "ts": now_ms() // 1000}, "invalid_field"),
    "a reserved id": ({**CLICK, "user_id": "\0space"}, "invalid_field"),
    "a placeholder": ({**CLICK, "user_id": "undefined"}, "placeholder_user"),
    "a clock ahead": ({**CLICK, "ts": now_ms() + HOUR}, "in_the_future"),
    "unknown type": ({**CLICK, "type": "stare"}, "invalid_field"),
    "erase": ({**CLICK, "type": ERASE}, "invalid_field"),
    "opt_out": ({**CLICK, "type": "opt_out"}, "invalid_field"),
    "no user": ({"type": "click", "product_id": "p"}, "invalid_field"),
    "empty user": ({**CLICK, "user_id": ""}, "invalid_field"),
    "a list as user": ({**CLICK, "user_id": ["u"]}, "invalid_field"),
    "no time": ({**CLICK, "ts": "now"}, "invalid_field"),
    "a long id": ({**CLICK, "product_id": "p" * 129}, "invalid_field"),
    "a wrong quantity": ({**CLICK, "quantity": "two"}, "invalid_field"),
    "a large number": ({**CLICK, "quantity": 2**70}, "invalid_field"),
    "too large": ({"user_id": "u", "type": "search", "query": "x" * MAX_EVENT_BYTES}, "too_large"),
    "too large as a record": (
        {"user_id": "u", "type": "search", "query": "x" * 65_400},
        "too_large",
    ),
    "a text": ("click", "invalid_field"),
    "null": (None, "invalid_field"),
    "an array": ([CLICK], "invalid_field"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("around", ["array", "object"])
def test_a_wrong_event_is_named_and_the_others_are_taken(name: str, around: str) -> None:
    shop = Shop()
    wrong, reason = WRONG[name]
    events = [CLICK, wrong, {**CLICK, "product_id": "q"}]
    response = post(shop, events if around == "array" else {"events": events})
    assert response.status_code == 202
    body = json.loads(response.data)
    assert body["accepted"] == 2
    assert body["event_ids"] == [one.event_id for one in shop.events.taken]
    assert [one.product_id for one in shop.events.taken] == ["p", "q"]
    (error,) = body["errors"]
    assert (error["index"], error["reason"]) == (1, reason)
    assert error["detail"]


@pytest.mark.parametrize("name", WRONG)
def test_nothing_but_wrong_events_is_400(name: str) -> None:
    wrong, reason = WRONG[name]
    for body in ([wrong, wrong], {"events": [wrong]}):
        shop = Shop()
        problem = assert_problem(post(shop, body), 400, type="urn:recommender:problem:invalid-body")
        assert {error["reason"] for error in problem["errors"]} == {reason}
        assert not shop.events.taken


@pytest.mark.parametrize(
    "wrong",
    [
        {**CLICK, "type": "stare"},
        {**CLICK, "type": ERASE},
        {},
        [],
        {"events": []},
        {"events": None},
        {"events": {"0": CLICK}},
        [CLICK] * (MAX_EVENTS + 1),
        {"events": [CLICK] * (MAX_EVENTS + 1)},
        "text",
        7,
    ],
)
def test_body_of_another_shape_is_refused(wrong: object) -> None:
    shop = Shop()
    assert_problem(post(shop, wrong), 400, type="urn:recommender:problem:invalid-body")
    assert not shop.events.taken


def test_refused_events_are_counted_by_reason() -> None:
    shop = Shop()

    def refused() -> float:
        text = shop.client.get("/metrics").text
        start = 'recommender_api_events_refused_total{reason="missing_field"}'
        return sum(float(one.split()[1]) for one in text.splitlines() if one.startswith(start))

    before = refused()
    post(shop, [CLICK, {"user_id": "u", "type": "click"}])
    post(shop, {"user_id": "u", "type": "search"})
    assert refused() - before == 2


LENIENT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "numeric ids": (
        {"user_id": 12345, "product_id": 632910392},
        {"user_id": "12345", "product_id": "632910392"},
    ),
    "numeric event id": ({"event_id": 1001}, {"event_id": "1001"}),
    "whole float time": ({"ts": 1732300000123.0}, {"ts": 1732300000123}),
    "text time": ({"ts": "2024-11-22T18:26:40.123Z"}, {"ts": 1732300000123}),
    "text time of a zone": ({"ts": "2024-11-22T19:26:40.123+01:00"}, {"ts": 1732300000123}),
    "whole float quantity": ({"type": "purchase", "quantity": 1.0}, {"quantity": 1}),
}


@pytest.mark.parametrize("name", LENIENT)
def test_every_form_that_the_job_takes_is_taken(name: str) -> None:
    """There is one validation: of Kafka's records and of this route."""
    fields, expected = LENIENT[name]
    for body in ({**CLICK, **fields}, {"events": [{**CLICK, **fields}]}):
        shop = Shop()
        assert post(shop, body).status_code == 202
        (event,) = shop.events.taken
        assert {field: getattr(event, field) for field in expected} == expected


@pytest.mark.parametrize("sent_at", ["text", "float", "number"])
def test_the_time_of_sending_has_the_forms_of_a_time(sent_at: str) -> None:
    clock = 1732300000000
    forms: dict[str, object] = {
        "text": "2024-11-22T18:26:40.000Z", "float": 1732300000000.0, "number": clock
    }  # fmt: skip
    shop = Shop()
    before = now_ms()
    assert post(shop, {**CLICK, "ts": clock - 7, "sent_at": forms[sent_at]}).status_code == 202
    (event,) = shop.events.taken
    assert before - 7 <= event.ts <= now_ms() - 7


class TestPlaceholders:
    """`undefined` is nobody: else everybody's actions would be one profile."""

    @pytest.mark.parametrize("user_id", ["undefined", "NULL", "[object Object]", "guest", 0, "0"])
    def test_an_event_of_nobody_is_refused(self, user_id: object) -> None:
        shop = Shop()
        response = post(shop, [{**CLICK, "user_id": user_id}, CLICK])
        assert response.status_code == 202
        (error,) = json.loads(response.data)["errors"]
        assert (error["index"], error["reason"]) == (0, "placeholder_user")
        assert [one.user_id for one in shop.events.taken] == ["u"]

    def test_the_list_can_be_changed(self, tmp_path: Path) -> None:
        file = tmp_path / "ids"
        file.write_text("# of this shop\nTester\n")
        config = ApiConfig.from_env({"RECOMMENDER_PLACEHOLDER_IDS_FILE": str(file)})
        shop = Shop(config)
        assert_problem(post(shop, {**CLICK, "user_id": "tester"}), 400)
        assert post(shop, {**CLICK, "user_id": "guest"}).status_code == 202

    def test_there_may_be_no_list(self) -> None:
        shop = Shop(ApiConfig.from_env({"RECOMMENDER_PLACEHOLDER_IDS_FILE": "none"}))
        assert post(shop, {**CLICK, "user_id": "undefined"}).status_code == 202

    def test_a_list_that_is_not_there_ends_the_start(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="PLACEHOLDER_IDS_FILE"):
            ApiConfig.from_env({"RECOMMENDER_PLACEHOLDER_IDS_FILE": str(tmp_path / "absent")})

    def test_what_was_collected_under_such_an_id_can_be_erased(self) -> None:
        shop = Shop()
        assert shop.client.delete("/v1/users/undefined").status_code == 202
        ((_, key, value),) = shop.records.sent
        decoded = decode_event(key, value, now_ms())
        assert (decoded.user_id, decoded.type) == ("undefined", "erase")


class TestTimes:
    """Clocks of devices are wrong; what the service does about it."""

    def sent(self, shop: Shop, body: object) -> list[Event]:
        assert post(shop, body).status_code == 202
        return shop.events.taken

    @pytest.mark.parametrize("off", [HOUR, -HOUR, 400 * 24 * HOUR])
    def test_a_clock_that_is_off_is_corrected_by_the_time_of_sending(self, off: int) -> None:
        """The event was ten seconds before it was sent, whatever that clock shows."""
        before = now_ms()
        clock = before + off
        event = {**CLICK, "ts": clock - 10_000, "sent_at": clock}
        (found,) = self.sent(Shop(), event)
        assert before - 10_000 <= found.ts <= now_ms() - 10_000

    def test_time_of_sending_of_a_batch_is_of_each_event_without_one(self) -> None:
        before = now_ms()
        early, late = before - HOUR, before + HOUR
        events = [
            {**CLICK, "ts": late - 5_000},
            {**CLICK, "ts": early - 5_000, "sent_at": early},
            CLICK,
        ]
        found = self.sent(Shop(), {"events": events, "sent_at": late})
        after = now_ms()
        assert before - 5_000 <= found[0].ts <= after - 5_000
        assert before - 5_000 <= found[1].ts <= after - 5_000
        assert before <= found[2].ts <= after

    @pytest.mark.parametrize(
        ("ts", "sent_at"),
        [
            (80_000, 90_000),
            (80_000.0, 90_000.0),
            ("1970-01-01T00:01:20Z", "1970-01-01T00:01:30Z"),
        ],
    )
    def test_a_clock_that_began_in_1970_is_corrected_too(self, ts: object, sent_at: object) -> None:
        """A device without a clock of its own counts from its start."""
        before = now_ms()
        body = {"sent_at": sent_at, "events": [{**CLICK, "ts": ts}]}
        (found,) = self.sent(Shop(), body)
        assert before - 10_000 <= found.ts <= now_ms() - 10_000

    def test_the_corrected_time_is_judged(self) -> None:
        seconds = now_ms() // 1000
        for ts, sent_at in ((seconds, now_ms()), (now_ms(), seconds), (5, 2**40), (2**47, 0)):
            body = assert_problem(post(Shop(), {**CLICK, "ts": ts, "sent_at": sent_at}), 400)
            assert body["errors"][0]["reason"] in ("invalid_field", "in_the_future")
            shop = Shop(ApiConfig(impossible_times="now"))
            before = now_ms()
            (found,) = self.sent(shop, {**CLICK, "ts": ts, "sent_at": sent_at})
            assert before <= found.ts <= now_ms()

    @pytest.mark.parametrize("wrong", [2**70, 10**400])
    def test_a_time_that_is_no_time_is_refused(self, wrong: int) -> None:
        for times in ({"ts": now_ms(), "sent_at": wrong}, {"ts": wrong, "sent_at": now_ms()}):
            assert_problem(post(Shop(), {**CLICK, **times}), 400)

    @pytest.mark.parametrize("wrong", ["soon", -1, [], {}, True])
    def test_a_wrong_time_of_sending_is_the_errors_subject(self, wrong: object) -> None:
        body = assert_problem(post(Shop(), {**CLICK, "ts": now_ms(), "sent_at": wrong}), 400)
        assert body["errors"][0]["detail"].startswith("sent_at: ")

    @pytest.mark.parametrize("ts", [now_ms() + HOUR, 2**63, -1, "yesterday", 1.5, True])
    def test_impossible_times_become_now_where_the_option_says_so(self, ts: object) -> None:
        assert_problem(post(Shop(), {**CLICK, "ts": ts}), 400)
        before = now_ms()
        shop = Shop(ApiConfig(impossible_times="now"))
        (found,) = self.sent(shop, {**CLICK, "event_id": "mine", "ts": ts})
        assert before <= found.ts <= now_ms()
        assert found.event_id == "mine"

    def test_the_option_leaves_possible_times_and_other_faults_alone(self) -> None:
        shop = Shop(ApiConfig(impossible_times="now"))
        ts = now_ms() - HOUR
        (found,) = self.sent(shop, {**CLICK, "ts": ts})
        assert found.ts == ts
        wrong = {"user_id": "u", "type": "click", "ts": ts + 10 * HOUR}
        body = assert_problem(post(shop, wrong), 400)
        assert body["errors"][0]["reason"] == "missing_field"

    def test_a_retry_with_its_id_and_no_time_keeps_its_id(self) -> None:
        """Job and store know an event by its id and its product: not by its time."""
        shop = Shop()
        for _ in range(2):
            post(shop, {**CLICK, "event_id": "order-1"})
            post(shop, CLICK)
        ids = [one.event_id for one in shop.events.taken]
        assert ids[0] == ids[2] == "order-1"
        assert len(set(ids)) == 3

    @pytest.mark.parametrize(
        ("value", "expected"), [("refuse", "refuse"), ("now", "now"), (None, "refuse")]
    )
    def test_option_of_the_environment(self, value: str | None, expected: str) -> None:
        variables = {} if value is None else {"RECOMMENDER_API_IMPOSSIBLE_TIMES": value}
        assert ApiConfig.from_env(variables).impossible_times == expected

    def test_wrong_option_ends_the_start(self) -> None:
        with pytest.raises(ValueError, match="refuse or now"):
            ApiConfig.from_env({"RECOMMENDER_API_IMPOSSIBLE_TIMES": "later"})


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


def test_full_buffer_is_503_and_says_where_to_go_on() -> None:
    shop = Shop()
    shop.events.room = 2
    response = post(shop, [CLICK, {"type": "click"}, CLICK, CLICK, CLICK])
    kind = "urn:recommender:problem:buffer-full"
    body = assert_problem(response, 503, type=kind, accepted=2, resume_at=3)
    assert [one["index"] for one in body["errors"]] == [1]
    assert response.headers["Retry-After"] == "2"
    response = post(shop, CLICK)
    assert_problem(response, 503, accepted=0, resume_at=0)


def test_every_type_of_the_wire_is_taken_but_what_controls_a_user() -> None:
    assert typing.get_args(ShopEventType) == EVENT_TYPES


def test_the_description_names_every_field_of_an_event() -> None:
    assert {*EventInput.__struct_fields__} == {*Event.__struct_fields__, "sent_at"}
