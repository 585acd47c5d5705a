"""Writes the golden files: one record of every format that a savepoint or a topic holds.

Run it (``.venv/bin/python -m tests.golden.make``) only for a new version of a format, under a new
name: a file that exists is never written again, since states in the field look like it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from udfs.product_record import ProductRecord, RelatedRow, SpaceSwitch, encode
from udfs.profile import Profile, ProfileConfig, update_profiles
from udfs.schemas import (
    Event,
    EventType,
    Origin,
    Product,
    SpaceNotice,
    decode_vector,
    encode_event,
    encode_product,
    encode_space_notice,
    encode_vector,
    frame_record,
)
from udfs.space_notices import count_notice

FOLDER: Final = Path(__file__).parent
NOW_MS: Final = 1_732_300_000_000


def _event(number: int, kind: EventType, item: str, minutes_ago: int) -> Event:
    is_search = kind == "search"
    return Event(
        event_id=f"0190-{number}",
        user_id="u-42 é",
        type=kind,
        ts=NOW_MS - 60_000 * minutes_ago,
        product_id=None if is_search else item,
        query=item if is_search else None,
        session_id="s1",
        dwell_ms=1200 if kind == "scroll" else None,
        quantity=2 if kind == "purchase" else None,
    )


EVENTS: Final = (
    _event(1, "click", "p1", 90),
    _event(2, "search", "usb hub 漢", 60),
    _event(3, "scroll", "p2", 45),
    _event(4, "purchase", "p3", 30),
    _event(5, "add_to_cart", "unknown-é", 20),
    _event(6, "dislike", "p2", 10),
    _event(7, "click", "p1", 120),
)
# What format v2 of the profile added: bounces, returns, and which exclusions are purchases.
EVENTS_V2: Final = (
    *EVENTS,
    Event("0190-8", "u-42 é", "scroll", NOW_MS - 5 * 60_000, "p1", dwell_ms=300),
    _event(9, "return", "p3", 3),
)
# What format v3 added: lines of one order under one id, and what is kept beside the columns.
EVENTS_V3: Final = (
    *EVENTS_V2,
    Event("0190-10", "u-42 é", "purchase", NOW_MS - 2 * 60_000, "p1"),
    Event("0190-10", "u-42 é", "purchase", NOW_MS - 2 * 60_000, "p2"),
)
PRODUCTS: Final = {"p1": [1.0, 0.0, 0.0], "p2": [0.0, 1.0, 0.0], "p3": [0.0, 3.0, 4.0]}
QUERY: Final = [0.0, 0.0, 1.0]


class _Source:
    space = "text3-v1"
    dimensions = 3

    def product_vector(self, product_id: str) -> Any:
        return decode_vector(PRODUCTS[product_id]) if product_id in PRODUCTS else None

    def query_vector(self, _query: str) -> Any:
        return np.array(QUERY, dtype=np.float32)


def _profile_v3() -> tuple[bytes, dict[str, Any]]:
    profile = Profile()
    update_profiles([profile], [EVENTS_V3], _Source(), ProfileConfig())
    profile.generation_us = NOW_MS * 1000 + 123
    profile.touched_ms = NOW_MS + 5
    profile.erased_until_ms = NOW_MS - 86_400_000
    profile.erasure_ms = NOW_MS - 86_400_001
    profile.erased_us = 1000 * NOW_MS - 86_400_000_000
    profile.retry_ms = NOW_MS + 1000
    profile.partial = True
    added = ("oldest_ms", "erased_until_ms", "erasure_ms", "erased_us", "retry_ms", "partial",
             "opted_out")  # fmt: skip
    return profile.pack(), {
        **_shown(profile),
        "exclusions": [list(row) for row in profile.exclusions()],
        **{name: getattr(profile, name) for name in added},
    }


def _profile_v2() -> tuple[bytes, dict[str, Any]]:
    profile = Profile()
    update_profiles([profile], [EVENTS_V2], _Source(), ProfileConfig())
    profile.generation_us = NOW_MS * 1000 + 123
    profile.touched_ms = NOW_MS + 5
    return profile.pack(), {
        **_shown(profile),
        "exclusions": [list(row) for row in profile.exclusions()],
    }


def _profile() -> tuple[bytes, dict[str, Any]]:
    profile = Profile()
    update_profiles([profile], [EVENTS], _Source(), ProfileConfig())
    profile.generation_us = NOW_MS * 1000 + 123
    profile.touched_ms = NOW_MS + 5
    return profile.pack(), _shown(profile)


def _shown(profile: Profile) -> dict[str, Any]:
    return {
        "space": profile.space,
        "sums": [[float(value) for value in row] for row in profile.sums],
        "landmarks_ms": list(profile.landmarks_ms),
        "reference_ms": profile.reference_ms,
        "generation_us": profile.generation_us,
        "touched_ms": profile.touched_ms,
        "waiting": profile.waiting,
        "interactions": [list(row) for row in profile.interactions()],
        "excluded": profile.excluded(),
    }


def _pending_v2() -> tuple[bytes, dict[str, Any]]:
    """A framed record as the events source makes it since it knows the record's time."""
    payload = encode_event(EVENTS[3])
    return frame_record(payload, Origin(3, 2**40 + 1, NOW_MS + 77)), {
        "payload": payload.decode(),
        "partition": 3,
        "offset": 2**40 + 1,
        "timestamp_ms": NOW_MS + 77,
    }


def _wire_event_v2() -> tuple[bytes, dict[str, Any]]:
    """What other systems send: ids as numbers, whole numbers as floats or text, a time as text."""
    value = (
        b'{"event_id":1001,"user_id":12345,"type":"purchase","ts":"2024-11-22T19:56:40.123+01:30",'
        b'"product_id":632910392,"session_id":7,"dwell_ms":5.0,"quantity":"2"}'
    )
    return value, {
        "event_id": "1001",
        "user_id": "12345",
        "type": "purchase",
        "ts": NOW_MS + 123,
        "product_id": "632910392",
        "query": None,
        "session_id": "7",
        "dwell_ms": 5,
        "quantity": 2,
    }


def _wire_event() -> tuple[bytes, dict[str, Any]]:
    return encode_event(EVENTS[3]), {
        "event_id": "0190-4",
        "user_id": "u-42 é",
        "type": "purchase",
        "ts": NOW_MS - 30 * 60_000,
        "product_id": "p3",
        "query": None,
        "session_id": "s1",
        "dwell_ms": None,
        "quantity": 2,
    }


def _wire_product() -> tuple[bytes, dict[str, Any]]:
    embedding = encode_vector(np.array([0.0, 3.0, 4.0], dtype=np.float32))
    product = Product("p3", "text3-v1", embedding, "Hub é", "USB", 18.5, False)
    return encode_product(product), {
        "product_id": "p3",
        "space": "text3-v1",
        "title": "Hub é",
        "category": "USB",
        "price": 18.5,
        "in_stock": False,
        "vector": [0.0, 0.6, 0.8],
    }


def _wire_product_v2() -> tuple[bytes, dict[str, Any]]:
    embedding = encode_vector(np.array([0.0, 3.0, 4.0], dtype=np.float32))
    facts: dict[str, Any] = {"related": {"p1": 1.5, "p3": 0.5}, "rebuy_days": 30.0,
                             "rebuy_share": 0.25}  # fmt: skip
    product = Product("p3", "text3-v1", embedding, "Hub é", "USB", 18.5, False, **facts)
    return encode_product(product), {
        "product_id": "p3",
        "space": "text3-v1",
        "title": "Hub é",
        "category": "USB",
        "price": 18.5,
        "in_stock": False,
        "vector": [0.0, 0.6, 0.8],
        **facts,
    }


def _notice_v2() -> tuple[bytes, dict[str, Any]]:
    """A space's notice as on the wire."""
    notice = SpaceNotice("text3-v1+é", NOW_MS, 3, complete=True, force=True)
    return encode_space_notice(notice), msgspec.to_builtins(notice)


def _partial() -> tuple[bytes, dict[str, Any]]:
    """What the shop sends of a product that has become cheaper, and is sold out."""
    value = (
        b'{"product_id":"p3","partial":true,"price":null,"in_stock":false,'
        b'"updated_at":"2024-11-22T18:26:40Z"}'
    )
    return value, {
        "product_id": "p3",
        "price": None,
        "in_stock": False,
        "space": None,
        "embedding": None,
        "updated_at": NOW_MS,
    }


RECORD_V1: Final = ProductRecord(
    version=1,
    product_id="p3 é",
    title="Hub é",
    category="USB",
    price=18.5,
    in_stock=False,
    vectors={
        "text3-v1": encode_vector(np.array([0.0, 0.6, 0.8], dtype=np.float32)),
        "shop-v2": encode_vector(np.array([1.0, 0.0], dtype=np.float32)),
    },
    is_text=False,
    first_seen_ms=NOW_MS,
    updated_us=1000 * NOW_MS + 7,
    updated_at=NOW_MS - 1000,
)
RELATED_V1: Final = RelatedRow(1, "p3 é", {"p1": 1.5, "p3 é": 0.5}, 30.0, 0.25)
SWITCH_V1: Final = SpaceSwitch(1, "text3-v1+é", NOW_MS, force=True)


def _kept(kept: ProductRecord | RelatedRow | SpaceSwitch) -> tuple[bytes, dict[str, Any]]:
    return encode(kept), msgspec.to_builtins(kept)


def _announced_space() -> tuple[bytes, dict[str, Any]]:
    """State of a space of which two of three partitions have said that it is complete."""
    known = None
    for partition, force in ((0, False), (1, True)):
        notice = SpaceNotice("text3-v1+é", 7, 3, complete=True, force=force)
        known, _ = count_notice(known, notice, partition)
    assert known is not None
    return known, {
        "version": 1,
        "space": "text3-v1+é",
        "started_ms": 7,
        "partitions": 3,
        "complete": [0, 1],
        "force": True,
    }


def main() -> None:
    """Write the files that do not exist yet."""
    for name, make in (
        ("profile_v1", _profile),
        ("event_v1", _wire_event),
        ("product_v1", _wire_product),
        ("profile_v2", _profile_v2),
        ("profile_v3", _profile_v3),
        ("product_v2", _wire_product_v2),
        ("space_v2", _notice_v2),
        ("partial_v1", _partial),
        ("pending_v2", _pending_v2),
        ("event_v2", _wire_event_v2),
        ("record_v1", lambda: _kept(RECORD_V1)),
        ("related_v1", lambda: _kept(RELATED_V1)),
        ("switch_v1", lambda: _kept(SWITCH_V1)),
        ("announced_v1", _announced_space),
    ):
        target = FOLDER / f"{name}.bin"
        if target.exists():
            print(f"{target.name}: kept")
            continue
        content, expected = make()
        target.write_bytes(content)
        text = json.dumps(expected, indent=2, ensure_ascii=False)
        target.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
        print(f"{target.name}: {len(content)} bytes")


if __name__ == "__main__":
    main()
