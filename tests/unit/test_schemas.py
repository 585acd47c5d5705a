"""The wire formats: what is taken, what is rejected and why."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.builders import NOW_MS, event_json, product_json, wire_key
from udfs import schemas
from udfs.schemas import (
    EVENT_TYPES,
    MAX_EVENT_BYTES,
    MAX_FUTURE_MS,
    MAX_TIMESTAMP_MS,
    Event,
    Origin,
    Product,
    Reason,
    RejectedError,
    decode_event,
    decode_product,
    decode_vector,
    encode_event,
    encode_product,
    encode_vector,
    frame_record,
    split_record,
)

# JSON text cannot carry a lone surrogate, everything else can stand in an id.
characters = st.characters(exclude_categories=["Cs"])
identifiers = st.text(characters, min_size=1, max_size=128)


def rejection(key: str, payload: bytes | None, now_ms: int = NOW_MS) -> Reason:
    with pytest.raises(RejectedError) as caught:
        decode_event(key, payload, now_ms)
    assert caught.value.detail
    return caught.value.reason


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
        ({"event_id": 7}, Reason.INVALID_FIELD),
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
    ts=st.integers(0, NOW_MS),
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
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector.astype(np.float64)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"product_id": "q"}, Reason.KEY_MISMATCH),
        ({"product_id": ...}, Reason.INVALID_FIELD),
        ({"product_id": "x" * 129}, Reason.INVALID_FIELD),
        ({"space": ...}, Reason.INVALID_FIELD),
        ({"space": ""}, Reason.INVALID_FIELD),
        ({"embedding": ...}, Reason.INVALID_FIELD),
        ({"embedding": None}, Reason.INVALID_FIELD),
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
)
def test_framed_record_gives_back_value_and_origin(
    payload: bytes | None, partition: int, offset: int
) -> None:
    origin = Origin(partition, offset)
    assert split_record(frame_record(payload, origin)) == (payload, origin)


@pytest.mark.parametrize("cut", [b"", b"1", b"1 2", b"1 2 v", b"a 2 v {}", b"1 b v {}"])
def test_what_is_no_framed_record_is_refused(cut: bytes) -> None:
    with pytest.raises(ValueError, match=r"unpack|invalid literal"):
        split_record(cut)


def test_reasons_are_stable_codes() -> None:
    # They stand in dead letters and in dashboards.
    assert {reason.value for reason in schemas.Reason} >= {
        "empty_value", "too_large", "not_json", "invalid_field", "missing_field", "missing_key",
        "key_mismatch", "in_the_future", "invalid_vector", "wrong_length", "refused_by_cassandra",
    }  # fmt: skip
