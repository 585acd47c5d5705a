"""What is read of Cassandra by our own decoding, against the driver's."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import pytest
from cassandra import ProtocolVersion
from cassandra.cqltypes import FloatType, ListType, TupleType, UTF8Type, VarcharType
from cassandra.protocol import ExecuteMessage, ProtocolHandler, QueryMessage
from hypothesis import given
from hypothesis import strategies as st

from connectors.fast_reads import ReadProtocolHandler, decode_here, decode_items

ITEMS = ListType.apply_parameters(
    [TupleType.apply_parameters([VarcharType, FloatType, VarcharType])]
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(st.lists(st.tuples(TEXTS, st.floats(width=32), TEXTS), max_size=30))
def test_items_are_what_the_driver_reads(items: list[tuple[str, float, str]]) -> None:
    written = ITEMS.serialize(items, 5)

    found = decode_items(written)

    # Not a number is not equal to itself.
    assert repr(found) == repr(list(ITEMS.deserialize(written, 5)))


def test_only_the_columns_of_that_type_are_decoded_here() -> None:
    class Prepared:
        result_metadata = (("k", "t", "items", ITEMS), ("k", "t", "space", UTF8Type))

    items, space = decode_here(Prepared()).result_metadata

    assert items[:3] == ("k", "t", "items")
    assert items[3].deserialize(ITEMS.serialize([("a", 0.5, "b")], 5), 5) == [("a", 0.5, "b")]
    assert space == ("k", "t", "space", UTF8Type)


def encoded(handler: Any, message: Any, version: int) -> bytes:
    return bytes(
        handler.encode_message(
            message, 7, version, compressor=None, allow_beta_protocol_version=False
        )
    )


def execute(skip: bool) -> ExecuteMessage:
    return ExecuteMessage(
        *(b"i" * 16, [b"user"], 10),
        fetch_size=5000,
        timestamp=3,
        skip_meta=skip,
        result_metadata_id=b"m" * 16,
    )


def test_a_request_differs_from_the_drivers_by_the_flag_alone() -> None:
    ours = encoded(ReadProtocolHandler, execute(True), ProtocolVersion.V5)
    theirs = encoded(ProtocolHandler, execute(True), ProtocolVersion.V5)

    (at,) = (index for index, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    assert ours[at] == theirs[at] | 0x02
    # Header, two ids of 16 bytes with their lengths, consistency; big-endian flags.
    assert at == 9 + 18 + 18 + 2 + 3
    assert BytesIO(ours[at - 3 :]).read(4) == struct.pack(">I", 0x01 | 0x02 | 0x04 | 0x20)


@pytest.mark.parametrize(
    ("message", "version"),
    [
        (lambda: execute(False), ProtocolVersion.V5),
        # It would not say when the metadata has changed.
        (lambda: execute(True), ProtocolVersion.V4),
        (lambda: QueryMessage("SELECT 1", 1), ProtocolVersion.V5),
    ],
)
def test_other_requests_are_the_drivers(message: Any, version: int) -> None:
    ours = encoded(ReadProtocolHandler, message(), version)

    assert ours == encoded(ProtocolHandler, message(), version)
