"""Dead letters on the wire."""

from __future__ import annotations

import pytest

from connectors.dead_letters import to_row
from udfs.schemas import DeadLetter, Origin, Reason


@pytest.mark.parametrize("payload", [b"\xff{", b"", None])
def test_a_letter_passes_whole_with_its_headers(payload: bytes | None) -> None:
    letter = DeadLetter("events", "\xff\xe9", payload, Reason.NOT_JSON, "d" * 5000, Origin(3, 9))
    row = to_row(letter)
    assert (row[0], row[1]) == (b"\xff\xe9", payload)
    headers = {name: value.decode() for name, value in row[2].items()}
    assert headers.pop("failed_at").isdigit()
    assert headers == {
        "reason": "not_json", "detail": "d" * 1000, "topic": "events", "partition": "3",
        "offset": "9", "timestamp": "0",
    }  # fmt: skip
