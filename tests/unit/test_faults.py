"""Inputs of other people's systems, one a line of a file, each with what must become of it.

The file is not part of the project: it stands beside the checkout. The cases of the wire formats
alone are judged here, and each must be known by name: a new one fails until its outcome is stated.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.builders import NOW_MS, wire_key
from udfs.schemas import (
    Event,
    PartialProduct,
    Product,
    Reason,
    RejectedError,
    decode_event,
    decode_product,
    decode_tombstone,
    encode_vector,
)

FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "faults.jsonl"
# What becomes of each record of a case: a reason, and what its detail says; or fields that it has.
EXPECTED: dict[str, list[tuple[Reason, str] | dict[str, object]]] = {
    "shifted columns": [(Reason.INVALID_FIELD, "category has 70000 bytes")],
    "first product of a text space with 128 numbers": [(Reason.WRONG_LENGTH, "128 dimensions")],
    "just under Kafka's limit": [(Reason.TOO_LARGE, "at most 65536")],
    "order id as event id": [{"product_id": one, "event_id": "order-1001"} for one in "abc"],
    "retry with a new time": [{"event_id": "e1", "product_id": "p1"}] * 2,
    "seconds": [(Reason.INVALID_FIELD, "seconds?")],
    "float time": [{"ts": 1_795_639_289_010}],
    "text time": [{"ts": 1_795_600_800_000}],
    "whole float quantity": [{"quantity": 1}],
    "numeric ids": [{"user_id": "12345", "product_id": "632910392"}],
    "placeholder user": [(Reason.PLACEHOLDER, "'undefined'")],
    "ids with a prefix": [{"product_id": "wc_post_id_4638"}],
}


def filled(value: Any) -> Any:
    """Put in what the file only names."""
    if isinstance(value, dict):
        if value.keys() == {"repeat", "times"}:
            return value["repeat"] * value["times"]
        return {name: filled(one) for name, one in value.items()}
    if isinstance(value, list):
        return [filled(one) for one in value]
    if not isinstance(value, str):
        return value
    if value in ("<now>", "<T>"):
        return NOW_MS
    if later := re.fullmatch(r"<T \+ (\d+)>", value):
        return NOW_MS + int(later[1])
    if wide := re.fullmatch(r"<(\d+) float32, base64>", value):
        return encode_vector(np.ones(int(wide[1]), dtype=np.float32))
    return value


def cases() -> list[dict[str, Any]]:
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return [case for case in map(json.loads, lines) if case["where"] in ("events", "catalogue")]


@pytest.mark.skipif(not FILE.exists(), reason=f"{FILE} is not there")
def test_every_case_of_the_file_has_the_outcome_that_is_right() -> None:
    found = cases()
    assert [case["case"] for case in found] == list(EXPECTED)
    for case in found:
        values = filled(case["value"])
        values = values if isinstance(values, list) else [values]
        expected = EXPECTED[case["case"]]
        assert len(values) == len(expected), case["case"]
        for value, outcome in zip(values, expected, strict=True):
            check(case, json.dumps(value).encode(), outcome)


def check(
    case: dict[str, Any], payload: bytes, outcome: tuple[Reason, str] | dict[str, object]
) -> None:
    def decode() -> Event | Product | PartialProduct:
        key = wire_key(case["key"])
        if case["where"] == "catalogue":
            return decode_product(key, payload)[0]
        # Kafka took the record a year after: no time of the file is ahead of it.
        return decode_event(key, payload, 2_000_000_000_000)

    if isinstance(outcome, dict):
        made = decode()
        assert {name: getattr(made, name) for name in outcome} == outcome, case["case"]
        return
    with pytest.raises(RejectedError) as refused:
        decode()
    assert refused.value.reason is outcome[0], case["case"]
    assert outcome[1] in refused.value.detail
    if case["where"] == "catalogue":
        # What follows under the same key is taken.
        assert decode_tombstone(wire_key(case["key"])) == case["key"]
