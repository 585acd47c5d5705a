"""The dead-letter command without Kafka: how letters are read, chosen and planned."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.command_line import since
from connectors.dead_letter_tool import (
    Filter,
    Letter,
    Mark,
    Place,
    ToolError,
    main,
    mark_key,
    plan,
    read_config,
)
from connectors.dead_letters import to_row
from udfs.schemas import DeadLetter, Origin, Reason

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
IDS = {"events": "topic-id-1", "catalogue": "topic-id-2"}


def letter(
    at: int,
    *,
    topic: str = "events",
    partition: int = 0,
    offset: int | None = None,
    key: bytes = b"u",
    reason: str = "not_json",
    failed_at_ms: int = 0,
) -> Letter:
    origin = Place(partition, at if offset is None else offset)
    return Letter(Place(0, at), key, b"{}", reason, "", topic, origin, failed_at_ms)


@given(
    key=st.text(st.characters(max_codepoint=255)),
    value=st.none() | st.binary(),
    reason=st.sampled_from(Reason),
    detail=st.text(max_size=900),
    partition=st.integers(0, 2**31 - 1),
    offset=st.integers(0, 2**63 - 1),
    timestamp_ms=st.integers(0, 2**50),
)
def test_a_letter_is_read_as_the_job_writes_it(
    key: str,
    value: bytes | None,
    reason: Reason,
    detail: str,
    partition: int,
    offset: int,
    timestamp_ms: int,
) -> None:
    origin = Origin(partition, offset, timestamp_ms)
    row = to_row(DeadLetter("events", key, value, reason, detail, origin))
    row_key, row_value, headers = row

    read = Letter.read(Place(1, 2), row_key, row_value, headers.items())

    assert (read.key, read.value) == (key.encode("latin-1"), value)
    assert (read.reason, read.topic, read.origin) == (reason, "events", (partition, offset))
    assert (read.timestamp_ms, read.truncated) == (timestamp_ms, None)
    # A header is UTF-8; half a character in a detail is not.
    assert read.detail == detail.encode("utf-8", "replace").decode()
    assert abs(read.failed_at_ms / 1000 - datetime.now(UTC).timestamp()) < 600


def test_a_record_that_is_no_letter_is_named() -> None:
    with pytest.raises(ValueError, match="1/2 has no header 'topic'"):
        Letter.read(Place(1, 2), None, None, [("reason", b"x"), ("detail", b"")])


def test_a_line_cannot_command_the_terminal() -> None:
    hostile = Letter(Place(0, 1), b"\x1b[2J", b"", "r", "\x1b]0;x\x07\n", "t\r", Place(0, 0), 0)

    assert hostile.line().isprintable()


letters = st.lists(
    st.builds(
        letter,
        st.integers(0, 30),
        topic=st.sampled_from([*IDS, "gone"]),
        partition=st.integers(0, 1),
        offset=st.integers(0, 8),
        key=st.sampled_from([b"a", b"b"]),
    ),
    max_size=20,
    unique_by=lambda one: one.place,
)


@given(letters, st.integers(0, 25), st.randoms(use_true_random=False))
def test_however_often_a_replay_runs_each_record_is_sent_once(
    chosen: list[Letter], limit: int, rng: random.Random
) -> None:
    written: list[bytes] = []
    sent: list[tuple[str, Place]] = []
    for _ in range(len(chosen) + 1):
        rng.shuffle(chosen)
        step = plan(chosen, IDS, frozenset(written), {}, limit=max(1, limit))
        assert len(step.send) <= max(1, limit)
        assert len(step.send) + step.left.total() == len(chosen)
        written += [mark_key(mark) for mark, _ in step.send]
        sent += [(one.topic, one.origin) for _, one in step.send]

    assert len(sent) == len(set(sent))
    assert set(sent) == {(one.topic, one.origin) for one in chosen if one.topic in IDS}


def test_records_go_back_in_the_order_in_which_they_came() -> None:
    chosen = [letter(1, offset=30), letter(2, offset=10), letter(3, partition=1, offset=5)]

    sent = [one.origin for _, one in plan(chosen, IDS, frozenset(), {}).send]

    assert sent == [(0, 10), (0, 30), (1, 5)]


def test_what_was_replayed_goes_again_only_on_purpose() -> None:
    marks = frozenset({mark_key(("topic-id-1", 0, 4))})

    assert plan([letter(4)], IDS, marks, {}).left == {"replayed before": 1}
    assert len(plan([letter(4)], IDS, marks, {}, again=True).send) == 1


def test_a_topic_that_was_made_anew_is_another_topic() -> None:
    marks = frozenset({mark_key(("an-older-id", 0, 4))})

    assert len(plan([letter(4)], IDS, marks, {}).send) == 1


def test_a_newer_product_is_not_overwritten() -> None:
    old = letter(4, topic="catalogue", key=b"p1")
    other = letter(5, topic="catalogue", key=b"p2")
    newest = {("catalogue", 0, b"p1"): 9, ("catalogue", 0, b"p2"): 5}

    for again in (False, True):
        decided = plan([old, other], IDS, frozenset(), newest, again=again)
        assert [one for _, one in decided.send] == [other]
        assert decided.left == {"superseded by a newer record of the key": 1}


def test_copies_of_one_record_are_one() -> None:
    decided = plan([letter(7, offset=3), letter(8, offset=3)], IDS, frozenset(), {}, again=True)

    assert [one.place.offset for _, one in decided.send] == [7]
    assert decided.left == {"copies of one record": 1}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Filter(), [1, 2, 3]),
        (Filter(reasons=frozenset({"too_large"})), [2]),
        (Filter(topics=frozenset({"catalogue"})), [3]),
        (Filter(since_ms=20), [2, 3]),
        (Filter(places=frozenset({Place(0, 1), Place(0, 3)})), [1, 3]),
        (Filter(topics=frozenset({"events"}), since_ms=20), [2]),
    ],
)
def test_filters(wanted: Filter, found: list[int]) -> None:
    all_letters = [
        letter(1, failed_at_ms=10),
        letter(2, failed_at_ms=20, reason="too_large"),
        letter(3, failed_at_ms=30, topic="catalogue"),
    ]

    assert [one.place.offset for one in all_letters if one in wanted] == found
    assert bool(wanted) == (len(found) < 3)


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("90m", timedelta(minutes=90)),
        ("2d", timedelta(days=2)),
        ("2026-03-01T11:00", timedelta(hours=1)),
        ("2026-03-01T13:00+02:00", timedelta(hours=1)),
    ],
)
def test_times(text: str, ago: timedelta) -> None:
    assert since(text, NOW) == int((NOW - ago).timestamp() * 1000)


def test_a_time_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="yesterday"):
        since("yesterday", NOW)


@pytest.mark.parametrize("text", ["", "1", "1/", "/1", "a/1", "-1/2", "1/2/3"])
def test_a_place_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="partition/offset"):
        Place.parse(text)


def test_settings_come_from_a_file_and_no_message_quotes_it() -> None:
    text = "# how to get in\nsecurity.protocol = SASL_SSL\n\nsasl.password=a=b\n"

    assert read_config(text) == {"security.protocol": "SASL_SSL", "sasl.password": "a=b"}
    with pytest.raises(ToolError, match="line 2") as caught:
        read_config("a=b\nsecret\n")
    assert "secret" not in str(caught.value)


def test_nothing_chosen_is_not_everything(capsys: pytest.CaptureFixture[str]) -> None:
    # Refused before any broker is asked.
    assert main(["--bootstrap", "127.0.0.1:1", "replay"]) == 1
    assert "a filter, or --all" in capsys.readouterr().err


def test_marks_differ_where_records_do() -> None:
    marks: list[Mark] = [("a", 0, 1), ("a", 1, 0), ("a", 0, 11), ("b", 0, 1)]

    assert len({mark_key(mark) for mark in marks}) == 4


def size_in_kafka(row: Any) -> int:
    """What a record batch with this one record takes, by the format's own description."""
    key, value, headers = row

    def varint(number: int) -> int:
        encoded = number << 1
        return max(1, -(-encoded.bit_length() // 7))

    body = 1 + 10 + 1 + varint(len(key)) + len(key) + varint(len(value or b"")) + len(value or b"")
    body += varint(len(headers))
    for name, text in headers.items():
        body += varint(len(name)) + len(name.encode()) + varint(len(text)) + len(text)
    return 61 + varint(body) + body


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (2, 1_048_398),
        (0, 1_048_588),
        (128, 4_000_000),
        (1_048_000, None),
        (1_048_000, 0),
        (1_048_000, 300),
        (900_000, 900_000),
        (2_000_000, 2_000_000),
    ],
)
@pytest.mark.parametrize("detail", ["", "漢" * 5000])
def test_a_letter_that_does_not_fit_a_default_topic_is_cut_and_says_so(
    key: int, value: int | None, detail: str
) -> None:
    payload = None if value is None else b"x" * value
    origin = Origin(2**31 - 1, 2**63 - 1, 1_732_300_000_123)
    row = to_row(DeadLetter("t" * 249, "k" * key, payload, Reason.TOO_LARGE, detail, origin))

    assert size_in_kafka(row) <= 1_048_588
    read = Letter.read(Place(0, 0), row[0], row[1], row[2].items())
    assert read.truncated == key + (value or 0)
    assert read.kept_back
    assert f"cut from {read.truncated:,}" in read.line()
    assert (b"k" * key).startswith(read.key or b"")
    if payload is not None:
        assert payload.startswith(read.value or b"")


def test_a_letter_that_fits_is_whole() -> None:
    origin = Origin(0, 1, 1_732_300_000_123)
    row = to_row(DeadLetter("events", "k", b"x" * 1_047_000, Reason.TOO_LARGE, "", origin))

    read = Letter.read(Place(0, 0), row[0], row[1], row[2].items())

    assert len(read.value or b"") == 1_047_000
    assert read.truncated is None
    assert not read.kept_back
    assert read.sent_ms == read.timestamp_ms == 1_732_300_000_123


def test_what_is_not_whole_or_not_from_kafka_is_never_sent_back() -> None:
    cut = replace(letter(1), truncated=2_000_000)
    row = replace(letter(2), topic="cassandra:products", origin=Place(-1, -1))
    good = letter(3)

    for again in (False, True):
        decided = plan([cut, row, good], IDS, frozenset(), {}, again=again)
        assert [one for _, one in decided.send] == [good]
        assert decided.left == {
            "cut: the record is not whole in the letter": 1,
            "not from Kafka (cassandra:products)": 1,
        }


def test_a_letter_of_an_earlier_version_is_sent_with_the_time_when_it_failed() -> None:
    headers = {"reason": "not_json", "detail": "", "topic": "events", "partition": "0",
               "offset": "4", "failed_at": "1732300000999"}  # fmt: skip
    old = Letter.read(Place(0, 0), b"u", b"{", [(k, v.encode()) for k, v in headers.items()])

    assert (old.timestamp_ms, old.sent_ms) == (0, 1_732_300_000_999)
    assert not old.kept_back
