"""The page of the formats says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from connectors import dead_letters
from udfs import schemas
from udfs.schemas import decode_event, decode_product

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> dict[str, list[str]]:
    """The tables' rows by their first cell."""
    cells = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells}


LIMITS = {
    "`event_id`, `user_id`, `product_id`, `space`": [schemas.MAX_ID],
    "`session_id`": [schemas.MAX_ID],
    "an event": [schemas.MAX_EVENT_BYTES],
    "a product": [schemas.MAX_PRODUCT_BYTES],
    "`title`": [schemas.MAX_TITLE_BYTES],
    "`category`": [schemas.MAX_CATEGORY_BYTES],
    "`embedding`": [schemas.MAX_DIMENSIONS, schemas.TEXT_DIMENSIONS],
    "`related`": [schemas.MAX_RELATED, int(schemas.MAX_RELATED_WEIGHT)],
    "`ts`": [schemas.MIN_TIMESTAMP_MS, schemas.MAX_TIMESTAMP_MS],
    "`dwell_ms`, `quantity`": [schemas.MAX_INT32],
    "how far `ts` may be ahead": [schemas.MAX_FUTURE_MS],
}


def test_every_limit_is_the_one_of_the_code() -> None:
    table = rows(section("Limits"))
    assert table.keys() - {"what", "---"} == LIMITS.keys()
    for what, numbers in LIMITS.items():
        for number in numbers:
            assert f"{number:,}" in table[what][0], what


def test_every_reason_has_a_meaning_and_a_remedy() -> None:
    table = rows(section("Dead letter"))
    for reason in schemas.Reason:
        meaning, remedy = table[f"`{reason.value}`"]
        assert meaning
        assert remedy
    assert f"{dead_letters.MAX_RECORD_BYTES:,}" in section("Dead letter")


def test_the_list_of_placeholders_is_the_one_of_the_code() -> None:
    quoted = "".join(line for line in PAGE.splitlines() if line.startswith(">"))
    assert {*re.findall(r"`([^`]+)`", quoted), ""} == schemas.PLACEHOLDER_IDS


@pytest.mark.parametrize("block", re.findall(r"```json\n(.*?)\n```", PAGE, re.DOTALL))
def test_every_example_is_taken(block: str) -> None:
    value = json.loads(block)
    if "user_id" not in value:
        decode_product(value["product_id"], block.encode())
    else:
        decode_event(str(value["user_id"]), block.encode(), schemas.MAX_TIMESTAMP_MS)


def test_every_type_of_event_is_named() -> None:
    for kind in (*schemas.EVENT_TYPES, *schemas.CONTROL_TYPES):
        assert f"`{kind}`" in section("Event")
