"""The client of the services that send: what is sent, and what each event is counted as.

Brokers: none at all, librdkafka's own mock cluster, or a double that fails as librdkafka does.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException
from hypothesis import given
from hypothesis import strategies as st

from connectors.event_client import Counts, EventClient, make_event, make_record, new_event_id
from local.processes import wait_until
from udfs.schemas import (
    EVENT_TYPES,
    MAX_EVENT_BYTES,
    MAX_FUTURE_MS,
    MAX_TIMESTAMP_MS,
    MIN_TIMESTAMP_MS,
    PLACEHOLDER_IDS,
    Event,
    Reason,
    RejectedError,
    decode_event,
    encode_event,
)

ROOT = Path(__file__).parents[2]
NOW = 1_732_300_000_123
# Nothing listens on it.
NOWHERE = "127.0.0.1:1"
CLICK = {"user_id": "u", "type": "click", "product_id": "p"}
MOCK: dict[str, str | int | bool] = {"test.mock.num.brokers": 1}


@pytest.fixture
def unconnected() -> Iterator[EventClient]:
    with EventClient(NOWHERE, max_events=10, flush_timeout_s=0.01) as client:
        yield client


@given(st.integers(0, 2**48 - 1))
def test_an_event_id_is_a_uuid_of_version_7_with_its_time(at_ms: int) -> None:
    made = uuid.UUID(new_event_id(at_ms))

    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert made.int >> 80 == at_ms


@given(st.integers(0, 2**48 - 2), st.integers(1, 2**20))
def test_event_ids_sort_by_time(at_ms: int, later: int) -> None:
    after = min(at_ms + later, 2**48 - 1)

    assert new_event_id(at_ms) < new_event_id(after)
    assert new_event_id(at_ms) != new_event_id(at_ms)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128).filter(
    lambda text: not text.startswith("\0") and text.strip().lower() not in PLACEHOLDER_IDS
)


@given(
    user_id=texts,
    kind=st.sampled_from([one for one in EVENT_TYPES if one != "search"]),
    product_id=texts,
    ts=st.integers(MIN_TIMESTAMP_MS, NOW + MAX_FUTURE_MS),
    dwell_ms=st.none() | st.integers(0, 2**31 - 1),
)
def test_what_is_sent_is_what_the_job_reads(
    user_id: str, kind: str, product_id: str, ts: int, dwell_ms: int | None
) -> None:
    fields = {"user_id": user_id, "type": kind, "product_id": product_id, "dwell_ms": dwell_ms}
    event = make_event({**fields, "ts": ts}, NOW)

    key, value = make_record(event, NOW)

    assert key == user_id.encode()
    assert decode_event(key.decode("latin-1"), value, NOW) == event
    assert (event.user_id, event.type, event.product_id) == (user_id, kind, product_id)
    assert (event.ts, event.dwell_ms) == (ts, dwell_ms)


def test_id_and_time_are_made_only_where_they_are_missing() -> None:
    made = make_event({**CLICK, "ts": None, "event_id": None, "colour": "unknown"}, NOW)
    given_ones = make_event({**CLICK, "ts": NOW - 5, "event_id": "mine"}, NOW)

    assert made.ts == NOW
    assert uuid.UUID(made.event_id).int >> 80 == NOW
    assert (given_ones.ts, given_ones.event_id) == (NOW - 5, "mine")


REFUSED: dict[str, tuple[dict[str, Any], Reason]] = {
    "unknown type": ({"type": "clik", "product_id": "p"}, Reason.INVALID_FIELD),
    "no product": ({"type": "click"}, Reason.MISSING_FIELD),
    "no query": ({"type": "search"}, Reason.MISSING_FIELD),
    "blank query": ({"type": "search", "query": " "}, Reason.INVALID_FIELD),
    "no user": ({"type": "click", "product_id": "p", "user_id": ""}, Reason.INVALID_FIELD),
    "user None": ({"type": "click", "product_id": "p", "user_id": None}, Reason.INVALID_FIELD),
    "user a list": ({"type": "click", "product_id": "p", "user_id": ["u"]}, Reason.INVALID_FIELD),
    "product an object": ({"type": "click", "product_id": object()}, Reason.INVALID_FIELD),
    "half a character": ({"type": "click", "product_id": "\ud800"}, Reason.INVALID_FIELD),
    "misspelt field": ({"type": "click", "prodct_id": "p"}, Reason.INVALID_FIELD),
    "seconds, not text": ({"type": "click", "product_id": "p", "ts": "now"}, Reason.INVALID_FIELD),
    "far too late": ({"type": "click", "product_id": "p", "ts": 2**70}, Reason.INVALID_FIELD),
    "the future": (
        {"type": "click", "product_id": "p", "ts": MAX_TIMESTAMP_MS},
        Reason.IN_THE_FUTURE,
    ),
    "too large": ({"type": "search", "query": "x" * MAX_EVENT_BYTES}, Reason.TOO_LARGE),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_job_would_refuse_is_counted_and_logged_and_never_raised(
    name: str, unconnected: EventClient, caplog: pytest.LogCaptureFixture
) -> None:
    fields, reason = REFUSED[name]

    with caplog.at_level(logging.ERROR, "connectors.event_client"):
        for _ in range(3):
            unconnected.track(**{"user_id": "secret-user", **fields})

    assert unconnected.counts == Counts(rejected=3, rejected_by={reason.value: 3})
    # The absent broker is logged as well.
    lines = [one.getMessage() for one in caplog.records if "rejected" in one.getMessage()]
    assert len(lines) == 1
    assert reason.value in lines[0]
    assert "secret-user" not in caplog.text


def test_an_event_is_as_large_as_its_record(unconnected: EventClient) -> None:
    """A record has the names of absent fields too, and quotes around a number that is an id."""
    fields = {"user_id": 1, "type": "search", "event_id": 2, "ts": NOW, "query": ""}
    room = MAX_EVENT_BYTES - len(encode_event(make_event({**fields, "query": "q"}, NOW))) + 1

    fitting = make_event({**fields, "query": "q" * room}, NOW)
    assert len(make_record(fitting, NOW)[1]) == MAX_EVENT_BYTES
    with pytest.raises(RejectedError, match="too_large"):
        make_event({**fields, "query": "q" * (room + 1)}, NOW)

    # An event of `track` has an id and a time of its own.
    unconnected.track("u1", "search", query="q" * 65_400)
    assert unconnected.counts == Counts(rejected=1, rejected_by={"too_large": 1})


def test_ids_of_nobody_are_refused_and_the_list_can_be_changed() -> None:
    with EventClient(NOWHERE, flush_timeout_s=0.01) as client:
        client.track("undefined", "click", product_id="p")
        assert client.counts == Counts(rejected=1, rejected_by={"placeholder_user": 1})
    with EventClient(NOWHERE, flush_timeout_s=0.01, placeholders=frozenset({"tester"})) as client:
        client.track("undefined", "click", product_id="p")
        client.track("Tester", "click", product_id="p")
        assert client.counts.sent == 1
        assert client.counts.rejected_by == {"placeholder_user": 1}


def test_offer_raises_what_track_only_counts(unconnected: EventClient) -> None:
    bad = cast("Any", Event)(event_id="e", user_id=7, type="click", ts=NOW, product_id="p")

    with pytest.raises(RejectedError) as caught:
        unconnected.offer(bad)

    assert caught.value.reason == Reason.INVALID_FIELD
    assert unconnected.counts == Counts(rejected=1, rejected_by={"invalid_field": 1})


def test_a_full_buffer_drops_and_counts(
    unconnected: EventClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "connectors.event_client"):
        for _ in range(13):
            unconnected.track("u", "click", product_id="p")
        accepted = unconnected.offer(make_event(CLICK, NOW))

        assert not accepted
        assert unconnected.counts == Counts(sent=10, dropped=4)

        # Nobody to deliver to: what is left at the end is lost, and said so.
        unconnected.close()

    assert unconnected.counts == Counts(sent=10, dropped=4, lost=10)
    messages = [record.getMessage() for record in caplog.records]
    assert sum("dropped" in message for message in messages) == 1
    assert sum("was lost" in message for message in messages) == 1


def test_a_closed_client_drops(unconnected: EventClient) -> None:
    unconnected.close()
    unconnected.close()

    unconnected.track("u", "click", product_id="p")

    assert unconnected.counts == Counts(dropped=1)
    assert not unconnected.offer(make_event(CLICK, NOW))


def test_a_wrong_setting_is_an_error_at_once() -> None:
    with pytest.raises(KafkaException, match=r"no\.such\.setting"):
        EventClient(NOWHERE, properties={"no.such.setting": 1})


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (KafkaError._PURGE_QUEUE, Counts(sent=1, lost=1)),
        (KafkaError._PURGE_INFLIGHT, Counts(sent=1, lost=1)),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, Counts(sent=1, failed=1)),
        (KafkaError.MSG_SIZE_TOO_LARGE, Counts(sent=1, failed=1)),
    ],
)
def test_what_kafka_refuses_and_what_dies_in_the_buffer_are_told_apart(
    code: int, expected: Counts
) -> None:
    made: list[BreakingProducer] = []

    def make(_settings: dict[str, Any]) -> BreakingProducer:
        made.append(BreakingProducer(room=3))
        return made[-1]

    client = EventClient(NOWHERE, make_producer=make)
    client.track("u", "click", product_id="p")
    ((key, value, report),) = made[0].held
    made[0].held.clear()
    report(KafkaError(code), Message(key, value))
    client.close()

    assert client.counts == expected


def test_the_producer_stays_idempotent() -> None:
    with pytest.raises(KafkaException, match="acks"):
        EventClient(NOWHERE, properties={"acks": 0, "enable.idempotence": False})


def test_events_are_delivered_and_counted() -> None:
    with EventClient("unused", properties=MOCK) as client:
        for number in range(500):
            client.track(f"u{number % 7}", "click", product_id="p")
        assert client.flush(30) == 0
        counts = client.counts

    assert counts == Counts(sent=500, delivered=500)


def test_leaving_the_context_flushes() -> None:
    with EventClient("unused", properties={**MOCK, "linger.ms": 5000}) as client:
        client.track("u", "click", product_id="p")

    assert client.counts == Counts(sent=1, delivered=1)


FORK = """
import os, sys
from connectors.event_client import Counts, EventClient

client = EventClient("127.0.0.1:1", max_events=5, flush_timeout_s=0.01)
for _ in range(5):
    client.track("u", "click", product_id="p")
child = os.fork()
if child == 0:
    assert client.counts == Counts(), client.counts
    for _ in range(7):
        client.track("u", "click", product_id="p")
    assert client.counts == Counts(sent=5, dropped=2), client.counts
    client.close()
    assert client.counts == Counts(sent=5, dropped=2, lost=5), client.counts
    sys.exit(7)  # through the interpreter's own end, with the parent's producer in memory
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert client.counts == Counts(sent=5), client.counts
"""


def test_a_forked_child_begins_anew_and_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK], cwd=ROOT, capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0, done.stderr


class Message:
    """A message as a delivery report has it."""

    def __init__(self, key: bytes, value: bytes) -> None:
        self._key, self._value = key, value

    def key(self) -> bytes:
        return self._key

    def value(self) -> bytes:
        return self._value


class BreakingProducer:
    """Takes ``room`` messages, then reports the fatal error of an idempotent producer."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.held: list[tuple[bytes, bytes, Any]] = []

    def produce(self, _topic: str, value: bytes, key: bytes, on_delivery: Any) -> None:
        if len(self.held) == self.room:
            raise KafkaException(KafkaError(KafkaError._FATAL))
        self.held.append((key, value, on_delivery))

    def poll(self, timeout: float) -> None:
        time.sleep(timeout)

    def purge(self) -> None:
        for key, value, report in self.held:
            report(KafkaError(KafkaError._PURGE_QUEUE), Message(key, value))
        self.held.clear()

    def flush(self, _timeout: float) -> int:
        for key, value, report in self.held:
            report(None, Message(key, value))
        self.held.clear()
        return 0


def test_a_producer_that_breaks_is_replaced_and_what_it_held_is_sent_anew() -> None:
    made: list[BreakingProducer] = []

    def make(_settings: dict[str, Any]) -> BreakingProducer:
        made.append(BreakingProducer(room=3 if not made else 100))
        return made[-1]

    client = EventClient(NOWHERE, make_producer=make)
    for number in range(5):
        client.track(f"u{number}", "click", product_id="p")
    # Two that met the error, and three that the broken one gives back.
    wait_until(lambda: len(made[1].held) == 5, 10, what="that all are sent anew")
    client.close()

    assert len(made) == 2
    assert client.counts == Counts(sent=5, delivered=5)
