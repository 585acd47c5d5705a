"""Dead letters on the wire: the record whole, and why and from where as Kafka headers."""

from __future__ import annotations

import time
from typing import Final

from pyflink.common import Row, Types

from udfs.schemas import DeadLetter

# A detail can quote the record; a header is for reading.
_MAX_DETAIL: Final = 1000


def row_type() -> Types:
    """Type of a dead letter on its way to Kafka: key, value, headers."""
    array = Types.PRIMITIVE_ARRAY(Types.BYTE())
    return Types.ROW_NAMED(
        ["key", "value", "headers"], [array, array, Types.MAP(Types.STRING(), array)]
    )


def to_row(letter: DeadLetter) -> Row:
    """Make the Kafka record of a dead letter.

    Headers (UTF-8): ``reason``, ``detail``, ``topic``, ``partition``, ``offset``, ``failed_at``
    (epoch milliseconds).
    """
    headers = {
        "reason": letter.reason.value,
        "detail": letter.detail[:_MAX_DETAIL],
        "topic": letter.topic,
        "partition": str(letter.origin.partition),
        "offset": str(letter.origin.offset),
        "failed_at": str(time.time_ns() // 1_000_000),
    }
    return Row(
        letter.key.encode("latin-1"),
        letter.payload,
        {name: value.encode("utf-8", "replace") for name, value in headers.items()},
    )
