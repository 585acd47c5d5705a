"""The wire formats: what is taken, what is rejected and why."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.unit.builders import NOW_MS, event_json, product_json, wire_key
from udfs import schemas
from udfs.profile import Profile
from udfs.schemas import (
    CONTROL_TYPES,
    EVENT_TYPES,
    MAX_CATEGORY_BYTES,
    MAX_EVENT_BYTES,
    MAX_FUTURE_MS,
    MAX_ID,
    MAX_PRODUCT_BYTES,
    MAX_TIMESTAMP_MS,
    MAX_TITLE_BYTES,
    MIN_TIMESTAMP_MS,
    PLACEHOLDER_IDS,
    SPACE_KEY,
    TEXT_DIMENSIONS,
    TEXT_SPACE,
    Event,
    Origin,
    PartialProduct,
    Product,
    Reason,
    RejectedError,
    decode_accepted_event,
    decode_event,
    decode_event_line,
    decode_product,
    decode_product_line,
    decode_tombstone,
    decode_vector,
    encode_event,
    encode_product,
    encode_vector,
    frame_record,
    parse_placeholders,
    record_value,
    split_record,
)

# JSON text cannot carry a lone surrogate, everything else can stand in an id.
characters = st.characters(exclude_categories=["Cs"])
texts = st.text(characters, min_size=1, max_size=128)
json_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(characters, max_size=30),
    st.lists(st.integers(), max_size=2),
)
identifiers = texts.filter(
    lambda text: not text.startswith("\0") and text.strip().lower() not in PLACEHOLDER_IDS
)


def rejection(key: str, payload: bytes | None, now_ms: int = NOW_MS) -> Reason:
    with pytest.raises(RejectedError) as caught:
        decode_event(key, payload, now_ms)
    assert caught.value.detail
    return caught.value.reason


def partial_json(**changes: object) -> bytes:
    """A partial update on the wire, of nothing unless told otherwise."""
    return product_json(**{"partial": True, "space": ..., "embedding": ..., **changes})


def product_rejection(key: str, payload: bytes) -> Reason:
    with pytest.raises(RejectedError) as caught:
        decode_product(key, payload)
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("kind", EVENT_TYPES)
def test_event_of_every_type_is_taken(kind: str) -> None:
    field = {"query": "usb", "product_id": ...} if kind == "search" else {"product_id": "p0"}
    assert decode_event("u", event_json(type=kind, **field), NOW_MS).type == kind


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"type": "search", "product_id": ...}, Reason.MISSING_FIELD),
        ({"type": "search", "query": "  \t\n"}, Reason.INVALID_FIELD),
        ({"type": "search", "query": ""}, Reason.INVALID_FIELD),
        *(
            ({"type": kind, "product_id": ..., "query": "q"}, Reason.MISSING_FIELD)
            for kind in EVENT_TYPES
            if kind != "search"
        ),
        ({"type": "view"}, Reason.INVALID_FIELD),
        ({"type": None}, Reason.INVALID_FIELD),
        ({"event_id": ...}, Reason.INVALID_FIELD),
        ({"event_id": ""}, Reason.INVALID_FIELD),
        ({"event_id": "x" * 129}, Reason.INVALID_FIELD),
        ({"event_id": 7.0}, Reason.INVALID_FIELD),
        ({"user_id": ...}, Reason.INVALID_FIELD),
        ({"product_id": ""}, Reason.INVALID_FIELD),
        ({"product_id": "x" * 129}, Reason.INVALID_FIELD),
        ({"session_id": "x" * 129}, Reason.INVALID_FIELD),
        ({"ts": ...}, Reason.INVALID_FIELD),
        ({"ts": "1"}, Reason.INVALID_FIELD),
        ({"ts": -1}, Reason.INVALID_FIELD),
        ({"ts": 1.5}, Reason.INVALID_FIELD),
        ({"ts": MAX_TIMESTAMP_MS + 1}, Reason.INVALID_FIELD),
        ({"ts": 10**30}, Reason.INVALID_FIELD),
        ({"dwell_ms": -1}, Reason.INVALID_FIELD),
        ({"dwell_ms": 2**31}, Reason.INVALID_FIELD),
        ({"quantity": 2**31}, Reason.INVALID_FIELD),
        ({"quantity": True}, Reason.INVALID_FIELD),
        ({"ts": NOW_MS + MAX_FUTURE_MS + 1}, Reason.IN_THE_FUTURE),
        ({"user_id": "v"}, Reason.KEY_MISMATCH),
    ],
)
def test_invalid_event_is_rejected_with_its_reason(
    changes: dict[str, object], reason: Reason
) -> None:
    assert rejection("u", event_json(**changes)) is reason


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"not json",
        event_json() + b"x",
        b"\xef\xbb\xbf" + event_json(),
        event_json().replace(b'"e1"', b'"\xff"'),
        event_json().replace(b'"e1"', rb'"\ud800"'),  # a lone surrogate is no text
        event_json().decode().encode("utf-16"),
    ],
)
def test_what_is_not_json_is_rejected(payload: bytes) -> None:
    assert rejection("u", payload) is Reason.NOT_JSON


@pytest.mark.parametrize("payload", [b"null", b"[]", b"1", b'"x"'])
def test_json_that_is_no_object_is_rejected(payload: bytes) -> None:
    assert rejection("u", payload) is Reason.INVALID_FIELD
    assert product_rejection("p0", payload) is Reason.INVALID_FIELD


def test_missing_value_is_rejected() -> None:
    assert rejection("u", None) is Reason.EMPTY_VALUE


def test_missing_key_is_rejected() -> None:
    assert rejection("", event_json()) is Reason.MISSING_KEY
    assert product_rejection("", product_json()) is Reason.MISSING_KEY


def test_value_is_taken_up_to_64_kib() -> None:
    padding = MAX_EVENT_BYTES - len(event_json(note=""))
    largest = event_json(note="x" * padding)
    assert len(largest) == 64 * 1024
    assert decode_event("u", largest, NOW_MS).event_id == "e1"
    assert rejection("u", event_json(note="x" * (padding + 1))) is Reason.TOO_LARGE


def test_too_large_is_told_before_it_is_parsed() -> None:
    assert rejection("u", b"x" * (MAX_EVENT_BYTES + 1)) is Reason.TOO_LARGE


def test_event_is_taken_up_to_five_minutes_ahead() -> None:
    assert decode_event("u", event_json(ts=NOW_MS + 5 * 60_000), NOW_MS).ts == NOW_MS + 300_000


def test_unknown_fields_are_ignored() -> None:
    made = decode_event("u", event_json(colour="red", nested={"a": [1, {"b": None}]}), NOW_MS)
    assert made == decode_event("u", event_json(), NOW_MS)
    product, _ = decode_product("p0", product_json(brand="x", tags=["a"]))
    assert product == decode_product("p0", product_json())[0]


@pytest.mark.parametrize("character", ["x", "é", "漢", "😀"])
def test_id_has_up_to_128_characters_whatever_their_bytes(character: str) -> None:
    longest = character * 128
    made = decode_event(wire_key(longest), event_json(user_id=longest), NOW_MS)
    assert made.user_id == longest
    assert rejection(wire_key(longest + "x"), event_json(user_id=longest + "x")) is (
        Reason.INVALID_FIELD
    )


@given(identifiers)
def test_key_is_compared_as_utf8(user_id: str) -> None:
    assert decode_event(wire_key(user_id), event_json(user_id=user_id), NOW_MS).user_id == user_id


@pytest.mark.parametrize("key_bytes", [b"\xff", b"u\x80", b"\xc3", b"\xed\xa0\x80"])
def test_key_that_is_not_utf8_is_rejected(key_bytes: bytes) -> None:
    assert rejection(key_bytes.decode("latin-1"), event_json()) is Reason.KEY_MISMATCH


@pytest.mark.parametrize(
    ("key_bytes", "user_id"),
    [(b"\xe9", "é"), ("é".encode(), "Ã©"), (b"\xff\xfe", "ÿþ")],
)
def test_key_that_only_looks_like_the_id_in_another_encoding_is_rejected(
    key_bytes: bytes, user_id: str
) -> None:
    key = key_bytes.decode("latin-1")
    assert rejection(key, event_json(user_id=user_id)) is Reason.KEY_MISMATCH
    assert product_rejection(key, product_json(product_id=user_id)) is Reason.KEY_MISMATCH


@pytest.mark.parametrize("nest", [b"[" * 30_000 + b"]" * 30_000, b'{"x":' * 10_000])
def test_json_nested_without_end_is_rejected(nest: bytes) -> None:
    assert rejection("u", event_json()[:-1] + b',"x":' + nest + b"}") is Reason.NOT_JSON
    assert product_rejection("p0", product_json()[:-1] + b',"x":' + nest) is Reason.NOT_JSON


events = st.builds(
    Event,
    event_id=identifiers,
    user_id=identifiers,
    type=st.sampled_from([kind for kind in EVENT_TYPES if kind != "search"]),
    ts=st.integers(MIN_TIMESTAMP_MS, NOW_MS),
    product_id=identifiers,
    query=st.none() | st.text(characters, min_size=1, max_size=20),
    session_id=st.none() | st.text(characters, max_size=20),
    dwell_ms=st.none() | st.integers(0, 2**31 - 1),
    quantity=st.none() | st.integers(0, 2**31 - 1),
)


@given(events)
def test_event_survives_the_wire(made: Event) -> None:
    encoded = encode_event(made)
    assert decode_event(wire_key(made.user_id), encoded, NOW_MS) == made
    assert json.loads(encoded)["user_id"] == made.user_id


@given(
    st.builds(
        Product,
        product_id=identifiers,
        space=identifiers,
        embedding=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8).map(lambda v: [*v, 1.0]),
        title=st.text(characters, max_size=20),
        category=st.text(characters, max_size=20),
        price=st.none() | st.floats(0, 1e9),
        in_stock=st.booleans(),
    )
)
def test_product_survives_the_wire(made: Product) -> None:
    product, vector = decode_product(wire_key(made.product_id), encode_product(made))
    assert product == made
    assert vector is not None
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector.astype(np.float64)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"product_id": "q"}, Reason.KEY_MISMATCH),
        ({"product_id": ...}, Reason.INVALID_FIELD),
        ({"product_id": "x" * 129}, Reason.INVALID_FIELD),
        ({"space": ...}, Reason.MISSING_FIELD),
        ({"space": ""}, Reason.INVALID_FIELD),
        ({"embedding": ...}, Reason.MISSING_FIELD),
        ({"embedding": None}, Reason.MISSING_FIELD),
        ({"partial": "true"}, Reason.INVALID_FIELD),
        ({"updated_at": -1}, Reason.INVALID_FIELD),
        ({"updated_at": 1_795_639_289}, Reason.INVALID_FIELD),
        ({"updated_at": MAX_TIMESTAMP_MS + 1}, Reason.INVALID_FIELD),
        ({"updated_at": "2024-11-22T18:26:40"}, Reason.INVALID_FIELD),
        ({"embedding": [1, None]}, Reason.INVALID_FIELD),
        ({"embedding": ["1"]}, Reason.INVALID_FIELD),
        ({"embedding": [True]}, Reason.INVALID_FIELD),
        ({"embedding": []}, Reason.INVALID_VECTOR),
        ({"embedding": ""}, Reason.INVALID_VECTOR),
        ({"embedding": [0, 0.0, -0.0]}, Reason.INVALID_VECTOR),
        ({"in_stock": 1}, Reason.INVALID_FIELD),
        ({"price": "1"}, Reason.INVALID_FIELD),
        ({"embedding": [float("nan")]}, Reason.NOT_JSON),  # JSON has no NaN
        ({"embedding": [float("inf")]}, Reason.NOT_JSON),
    ],
)
def test_invalid_product_is_rejected_with_its_reason(
    changes: dict[str, object], reason: Reason
) -> None:
    assert product_rejection("p0", product_json(**changes)) is reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"product_id": "q"}, Reason.KEY_MISMATCH),
        ({"product_id": ...}, Reason.INVALID_FIELD),
        ({"title": None}, Reason.INVALID_FIELD),
        ({"title": "x" * (MAX_TITLE_BYTES + 1)}, Reason.INVALID_FIELD),
        ({"category": "x" * (MAX_CATEGORY_BYTES + 1)}, Reason.INVALID_FIELD),
        ({"price": "1"}, Reason.INVALID_FIELD),
        ({"in_stock": None}, Reason.INVALID_FIELD),
        ({"space": "s"}, Reason.MISSING_FIELD),
        ({"embedding": [1.0]}, Reason.MISSING_FIELD),
        ({"space": "s", "embedding": [0.0]}, Reason.INVALID_VECTOR),
        ({"space": TEXT_SPACE, "embedding": [1.0]}, Reason.WRONG_LENGTH),
        ({"note": "x" * MAX_PRODUCT_BYTES}, Reason.TOO_LARGE),
    ],
)
def test_invalid_partial_update_is_rejected_as_a_whole_record_is(
    changes: dict[str, object], reason: Reason
) -> None:
    assert product_rejection("p0", partial_json(**changes)) is reason


def test_a_partial_update_has_what_is_present_alone() -> None:
    said, vector = decode_product("p0", partial_json(price=None, product_id="p0"))
    assert said == PartialProduct("p0", price=None)
    assert vector is None
    said, vector = decode_product("7", partial_json(product_id=7, space="s", embedding=[3, 4]))
    assert said == PartialProduct("7", space="s", embedding=[3.0, 4.0])
    assert vector is not None
    assert vector.tolist() == pytest.approx([0.6, 0.8])
    assert (
        decode_product("p0", product_json(partial=False))[0]
        == decode_product("p0", product_json())[0]
    )


@pytest.mark.parametrize("partial", [True, False])
def test_when_the_shop_changed_a_product_is_a_time_as_that_of_an_event(partial: bool) -> None:
    make = partial_json if partial else product_json
    for form in (NOW_MS, float(NOW_MS), str(NOW_MS), "2024-11-22T18:26:40Z"):
        said, _ = decode_product("p0", make(updated_at=form), NOW_MS)
        assert said.updated_at == NOW_MS
    # It would keep out all that follows.
    late = make(updated_at=NOW_MS + 300_001)
    with pytest.raises(RejectedError) as caught:
        decode_product("p0", late, NOW_MS)
    assert caught.value.reason is Reason.IN_THE_FUTURE


def test_a_product_needs_no_vector() -> None:
    said, vector = decode_product("p0", product_json(space=..., embedding=...))
    assert vector is None
    assert isinstance(said, Product)


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"9" * 5000])
def test_number_outside_the_float_range_is_rejected(number: bytes) -> None:
    embedding = product_json().replace(b"3.0", number)
    assert product_rejection("p0", embedding) is Reason.INVALID_FIELD
    price = product_json(price=12345).replace(b"12345", number)
    assert product_rejection("p0", price) is Reason.INVALID_FIELD


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("as_text", [True, False])
def test_vector_that_is_not_finite_is_rejected(bad: float, as_text: bool) -> None:
    vector: Any = np.array([1, bad], dtype=np.float32)
    with pytest.raises(RejectedError) as caught:
        decode_vector(encode_vector(vector) if as_text else vector.tolist())
    assert caught.value.reason is Reason.INVALID_VECTOR


@pytest.mark.parametrize(
    "text", ["!!!!", "AAAA", "AAAAAA", "AAAAAA==\n", " AAAAAA==", "é", "=", "A"]
)
def test_text_that_is_no_base64_of_floats_is_rejected(text: str) -> None:
    with pytest.raises(RejectedError) as caught:
        decode_vector(text)
    assert caught.value.reason is Reason.INVALID_VECTOR


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "wire",
    [
        [1e308, 1e308],
        [1e-11, 1e-11],
        [3, 3],
        encode_vector(np.array([3e38, 3e38], dtype=np.float32)),
        encode_vector(np.array([1e-11, 1e-11], dtype=np.float32)),
    ],
)
def test_huge_and_tiny_vectors_keep_their_direction(wire: list[float] | str) -> None:
    np.testing.assert_allclose(decode_vector(wire), [0.5**0.5, 0.5**0.5], rtol=1e-6)


@pytest.mark.parametrize("tiny", [1e-13, 1e-300, 5e-324, 0.0])
def test_vector_without_a_direction_is_rejected(tiny: float) -> None:
    with pytest.raises(RejectedError) as caught:
        decode_vector([tiny, -tiny])
    assert caught.value.reason is Reason.INVALID_VECTOR


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40).filter(any))
def test_base64_and_numbers_are_the_same_vector(numbers: list[float]) -> None:
    text = base64.b64encode(np.array(numbers, dtype="<f4").tobytes()).decode()
    try:
        expected = decode_vector(numbers)
    except RejectedError:
        with pytest.raises(RejectedError):
            decode_vector(text)
    else:
        assert decode_vector(text).tolist() == expected.tolist()
        assert encode_vector(np.array(numbers, dtype=np.float32)) == text


@given(
    st.none() | st.binary(max_size=200),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**63 - 1),
    st.integers(MIN_TIMESTAMP_MS, MAX_TIMESTAMP_MS - 1),
)
def test_framed_record_gives_back_value_and_origin(
    payload: bytes | None, partition: int, offset: int, time_ms: int
) -> None:
    origin = Origin(partition, offset, time_ms)
    framed = frame_record(payload, origin)
    assert split_record(framed) == (payload, origin)
    assert record_value(framed) == (payload, time_ms)


@given(
    st.none() | st.binary(max_size=200),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**63 - 1),
)
def test_a_frame_of_the_first_version_is_read_as_before(
    payload: bytes | None, partition: int, offset: int
) -> None:
    framed = b"%d %d %b %b" % (partition, offset, b"n" if payload is None else b"v", payload or b"")
    assert split_record(framed) == (payload, Origin(partition, offset, 0))
    # Its time is not known: nothing in it is in the future.
    assert record_value(framed) == (payload, MAX_TIMESTAMP_MS)


@pytest.mark.parametrize("kafka_ms", [-1, 0, 999, MIN_TIMESTAMP_MS - 1])
def test_a_record_without_a_kafka_time_is_not_judged_by_it(kafka_ms: int) -> None:
    """Kafka says -1, of which Flink's SQL makes 999."""
    framed = frame_record(event_json(), Origin(1, 2, kafka_ms))
    payload, known_ms = record_value(framed)
    assert decode_event("u", payload, known_ms).ts == NOW_MS
    assert not Profile().erased(NOW_MS - 2, NOW_MS - 1, 1).is_erased(NOW_MS, known_ms)
    assert split_record(framed) == (payload, Origin(1, 2, 0))


@pytest.mark.parametrize(
    "cut",
    [b"", b"1", b"1 2", b"1 2 v", b"1 2 3", b"1 2 3 v", b"1 2 x y z", b"a 2 v {}", b"1 b 3 v {}"],
)
def test_what_is_no_framed_record_is_refused(cut: bytes) -> None:
    with pytest.raises(ValueError, match=r"unpack|invalid literal"):
        split_record(cut)


def test_reasons_are_stable_codes() -> None:
    # They stand in dead letters and in dashboards.
    assert {reason.value for reason in schemas.Reason} >= {
        "empty_value", "too_large", "not_json", "invalid_field", "missing_field", "missing_key",
        "key_mismatch", "in_the_future", "invalid_vector", "wrong_length", "refused_by_cassandra",
        "placeholder_user",
    }  # fmt: skip


# --- what other systems send ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ts": float(NOW_MS)}, {"ts": NOW_MS}),
        ({"ts": str(NOW_MS)}, {"ts": NOW_MS}),
        ({"ts": "2024-11-22T18:26:40Z"}, {"ts": NOW_MS}),
        ({"ts": "2024-11-22T18:26:40.123456Z"}, {"ts": NOW_MS + 123}),
        ({"ts": "2024-11-22T18:26:40.5+00:00"}, {"ts": NOW_MS + 500}),
        ({"ts": "2024-11-22 20:26:40,07+02:00"}, {"ts": NOW_MS + 70}),
        ({"ts": "2024-11-22T12:56:40-0530"}, {"ts": NOW_MS}),
        ({"ts": "2024-11-22t18:26z"}, {"ts": NOW_MS - 40_000}),
        ({"quantity": 1.0}, {"quantity": 1}),
        ({"dwell_ms": 5.0}, {"dwell_ms": 5}),
        ({"quantity": "3"}, {"quantity": 3}),
        ({"product_id": 632910392}, {"product_id": "632910392"}),
        ({"event_id": 12345678901234567890}, {"event_id": "12345678901234567890"}),
        ({"session_id": 0}, {"session_id": "0"}),
        ({"ts": float(NOW_MS), "quantity": 2.0, "event_id": 7}, {"quantity": 2, "event_id": "7"}),
    ],
)
def test_numbers_and_times_in_other_forms_are_read(
    changes: dict[str, object], expected: dict[str, object]
) -> None:
    made = decode_event("u", event_json(**changes), NOW_MS)
    plain = decode_event("u", event_json(), NOW_MS)
    assert made == msgspec.structs.replace(plain, **{"ts": NOW_MS, **expected})


def test_a_numeric_user_is_the_one_of_that_text() -> None:
    assert decode_event("12345", event_json(user_id=12345), NOW_MS).user_id == "12345"
    assert rejection("12346", event_json(user_id=12345)) is Reason.KEY_MISMATCH
    product, _ = decode_product("42", product_json(product_id=42))
    assert product.product_id == "42"
    with pytest.raises(RejectedError, match=r"product_id: an id is text or a whole number"):
        decode_product("42.0", product_json(product_id=42.0))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ts": 1_795_639_289}, "seconds?"),
        ({"ts": "1795639289"}, "seconds?"),
        ({"ts": 0}, "seconds?"),
        ({"ts": MIN_TIMESTAMP_MS - 1}, "before the year 2000"),
        ({"ts": 1_795_639_289_010_000}, "micro- or nanoseconds?"),
        ({"ts": "2024-11-22T18:26:40"}, "has no zone"),
        ({"ts": "2024-11-22"}, "is no time"),
        ({"ts": "yesterday"}, "is no time"),
        ({"ts": "2024-02-30T00:00:00Z"}, "day"),
        ({"ts": "2024-11-22T18:26:60Z"}, "second"),
        ({"ts": "2024-11-22T18:26:40+24:00"}, "is no time"),
        ({"ts": NOW_MS + 0.5}, r"\$.ts"),
        ({"ts": True}, r"\$.ts"),
        ({"ts": None}, r"\$.ts"),
        ({"quantity": 1.5}, r"\$.quantity"),
        ({"quantity": "one"}, r"\$.quantity"),
        ({"quantity": True}, r"\$.quantity"),
        ({"dwell_ms": -1.0}, r"\$.dwell_ms"),
        ({"event_id": 1.0}, "event_id: an id is text or a whole number"),
        ({"event_id": True}, r"\$.event_id"),
        ({"session_id": 1.5}, "session_id: an id is text"),
        ({"product_id": ["p"]}, r"\$.product_id"),
        ({"product_id": "\0space"}, "product_id: an id must not begin with NUL"),
        ({"query": 5}, r"\$.query"),
    ],
)
def test_what_has_no_one_meaning_is_refused_and_the_detail_says_why(
    changes: dict[str, object], said: str
) -> None:
    with pytest.raises(RejectedError, match=said) as caught:
        decode_event("u", event_json(**changes), NOW_MS)
    assert caught.value.reason is Reason.INVALID_FIELD


@given(st.datetimes(min_value=datetime(2000, 1, 2), timezones=st.timezones()))
def test_any_iso_time_is_the_moment_that_it_names(at: datetime) -> None:
    offset = at.utcoffset()
    assume(offset is not None and offset.total_seconds() % 60 == 0)
    text = at.isoformat()
    payload = event_json(ts=text)
    expected = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assume(expected <= MAX_TIMESTAMP_MS)
    assert decode_event("u", payload, MAX_TIMESTAMP_MS).ts == expected


@given(st.dictionaries(st.sampled_from(list(Event.__struct_fields__)), json_values))
def test_whatever_the_fields_hold_an_event_is_read_or_refused(changes: dict[str, object]) -> None:
    payload = event_json(**changes)
    key = json.loads(payload)["user_id"]
    try:
        made = decode_event(wire_key(str(key)), payload, NOW_MS)
    except RejectedError:
        return
    # What is taken stands for itself when it is read again, in the strict form.
    assert decode_event(wire_key(made.user_id), encode_event(made), NOW_MS) == made


@pytest.mark.parametrize(
    "user_id",
    ["undefined", "NULL", "None", "NaN", "[object Object]", "0", "-1", "Guest", " guest ", "   "],
)
def test_an_id_of_nobody_is_refused_and_can_be_erased(user_id: str) -> None:
    payload = event_json(user_id=user_id)
    assert rejection(user_id, payload) is Reason.PLACEHOLDER
    assert decode_event(user_id, payload, NOW_MS, frozenset()).user_id == user_id
    for kind in CONTROL_TYPES:
        erase = event_json(user_id=user_id, type=kind, product_id=...)
        assert decode_event(user_id, erase, NOW_MS).type == kind


def test_a_numeric_placeholder_is_one_too() -> None:
    assert rejection("0", event_json(user_id=0)) is Reason.PLACEHOLDER


def test_the_list_of_placeholders_can_be_changed() -> None:
    given_list = parse_placeholders("# of this shop\nTester\n\n  walk-in \n")
    assert given_list == {"", "tester", "walk-in"}
    with pytest.raises(RejectedError) as caught:
        decode_event("TESTER", event_json(user_id="TESTER"), NOW_MS, given_list)
    assert caught.value.reason is Reason.PLACEHOLDER
    assert decode_event("guest", event_json(user_id="guest"), NOW_MS, given_list).user_id == "guest"


@pytest.mark.parametrize("user_id", ["guest-17", "nobody", "test", "00", "u0"])
def test_an_id_that_may_be_somebodys_is_taken(user_id: str) -> None:
    assert decode_event(user_id, event_json(user_id=user_id), NOW_MS).user_id == user_id


@pytest.mark.parametrize("kind", sorted(CONTROL_TYPES))
def test_what_is_said_of_a_user_needs_no_product(kind: str) -> None:
    made = decode_event("u", event_json(type=kind, product_id=...), NOW_MS)
    assert made.type == kind
    assert kind not in EVENT_TYPES


def test_the_future_is_judged_against_the_records_time_by_a_tolerance() -> None:
    payload = event_json(ts=NOW_MS + 60_000)
    assert decode_event("u", payload, NOW_MS, max_future_ms=60_000).ts == NOW_MS + 60_000
    with pytest.raises(RejectedError, match="60000 ms ahead of the time at which Kafka got"):
        decode_event("u", payload, NOW_MS, max_future_ms=59_999)


def test_an_event_that_was_accepted_before_the_limits_is_not_judged_again() -> None:
    for changes in ({"ts": 1_795_639_289}, {"user_id": "guest"}, {"ts": MAX_TIMESTAMP_MS}):
        assert decode_accepted_event(event_json(**changes)).event_id == "e1"


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "most"), [("title", MAX_TITLE_BYTES), ("category", MAX_CATEGORY_BYTES)]
)
@pytest.mark.parametrize("character", ["x", "é", "漢", "😀"])
def test_texts_of_a_product_are_limited_in_bytes(field: str, most: int, character: str) -> None:
    size = len(character.encode())
    longest = character * (most // size)
    product, _ = decode_product("p0", product_json(**{field: longest}))
    assert getattr(product, field) == longest
    with pytest.raises(RejectedError, match=rf"{field} has \d+ bytes of UTF-8, at most {most}"):
        decode_product("p0", product_json(**{field: longest + character}))


def test_a_product_is_taken_up_to_its_bytes() -> None:
    padding = MAX_PRODUCT_BYTES - len(product_json(note=""))
    decode_product("p0", product_json(note="x" * padding))
    assert product_rejection("p0", product_json(note="x" * (padding + 1))) is Reason.TOO_LARGE


@pytest.mark.parametrize("size", [1, 63, 65, 128])
def test_a_vector_that_no_search_fits_is_refused_also_as_the_first(size: int) -> None:
    wire = product_json(space=TEXT_SPACE, embedding=[1.0] * size)
    assert product_rejection("p0", wire) is Reason.WRONG_LENGTH
    decode_product("p0", product_json(space=TEXT_SPACE, embedding=[1.0] * TEXT_DIMENSIONS))
    # Another space has its own length, also one that begins with the encoder's.
    decode_product("p0", product_json(space=f"{TEXT_SPACE}+x", embedding=[1.0] * (size + 64)))


@pytest.mark.parametrize("product_id", [SPACE_KEY, "\0", "\0anything"])
def test_a_reserved_key_is_no_product(product_id: str) -> None:
    assert product_rejection(product_id, product_json(product_id=product_id)) is (
        Reason.INVALID_FIELD
    )
    with pytest.raises(RejectedError, match="must not begin with NUL"):
        decode_tombstone(product_id)
    with pytest.raises(RejectedError, match="must not begin with NUL"):
        decode_product_line(json.dumps({"product_id": product_id}).encode())


def test_nul_within_an_id_is_a_character_as_any_other() -> None:
    assert decode_event("a\0b", event_json(user_id="a\0b"), NOW_MS).user_id == "a\0b"
    assert decode_event("u", event_json(event_id="\0e"), NOW_MS).event_id == "\0e"
    assert decode_tombstone("a\0") == "a\0"
    assert rejection("\0u", event_json(user_id="\0u")) is Reason.INVALID_FIELD


def test_a_tombstone_is_for_an_id_that_a_product_can_have() -> None:
    assert decode_tombstone(wire_key("é" * MAX_ID)) == "é" * MAX_ID
    with pytest.raises(RejectedError, match="1 to 128 characters") as caught:
        decode_tombstone("x" * (MAX_ID + 1))
    assert caught.value.reason is Reason.INVALID_FIELD


def test_lines_of_files_are_judged_as_records_are() -> None:
    assert decode_event_line(event_json(user_id=7, ts=float(NOW_MS))).user_id == "7"
    for wrong in (event_json(ts=1), event_json(user_id="null"), event_json(product_id=...)):
        with pytest.raises(RejectedError):
            decode_event_line(wrong)
    assert decode_product_line(b'{"product_id": 7, "title": "x"}').product_id == "7"
    for line in (
        {"category": "c" * 1001},
        {"title": "t" * 4001},
        {"product_id": "x" * 129},
        {"price": 1.0, "partial": True},
        {"updated_at": 1},
    ):
        with pytest.raises(RejectedError):
            decode_product_line(json.dumps({"product_id": "p", **line}).encode())
