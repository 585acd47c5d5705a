"""Dead letters on the wire: the record, and why and from where as Kafka headers.

A letter has the record's key and value, whole as long as both fit what a topic takes by default.
What does not fit is cut: the value, then the key. A header ``truncated`` then says how many bytes
key and value had together; such a letter is for reading, and is never sent back.
"""

from __future__ import annotations

import time
from typing import Final

from pyflink.common import Row, Types

from udfs.schemas import DeadLetter

# What a topic takes by default (`max.message.bytes`), of a batch with one record.
MAX_RECORD_BYTES: Final = 1_048_588
# Of it for the frames of a batch (61 bytes), a record (21) and of each header (10).
_FRAME_BYTES: Final = 512
# A detail can quote the record; a header is for reading.
_MAX_DETAIL: Final = 1000
# Longer than any id; a longer key goes last where something must.
_MAX_CUT_KEY: Final = 1024


def row_type() -> Types:
    """Type of a dead letter on its way to Kafka: key, value, headers."""
    array = Types.PRIMITIVE_ARRAY(Types.BYTE())
    return Types.ROW_NAMED(
        ["key", "value", "headers"], [array, array, Types.MAP(Types.STRING(), array)]
    )


def to_row(letter: DeadLetter) -> Row:
    """Make the Kafka record of a dead letter.

    Headers (UTF-8): ``reason``, ``detail``, ``topic``, ``partition``, ``offset``, ``timestamp``
    (the record's Kafka time, epoch milliseconds; 0: not known), ``failed_at`` (epoch milliseconds),
    and ``truncated`` where it was cut.
    """
    texts = {
        "reason": letter.reason.value,
        "detail": letter.detail[:_MAX_DETAIL],
        "topic": letter.topic,
        "partition": str(letter.origin.partition),
        "offset": str(letter.origin.offset),
        "timestamp": str(letter.origin.timestamp_ms),
        "failed_at": str(time.time_ns() // 1_000_000),
    }
    headers = {name: text.encode("utf-8", "replace") for name, text in texts.items()}
    key, value = letter.key.encode("latin-1"), letter.payload
    size = len(key) + len(value or b"")
    room = MAX_RECORD_BYTES - _FRAME_BYTES - sum(len(n) + len(v) for n, v in headers.items())
    if size > room:
        headers["truncated"] = str(size).encode()
        if len(key) > room:
            key = key[:_MAX_CUT_KEY]
        value = value[: room - len(key)] if value is not None else None
    return Row(key, value, headers)
