"""Builders and independent oracles of the unit tests; nothing here uses the code it checks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from udfs.product_record import VERSION, ProductRecord, RelatedRow
from udfs.profile import ProfileConfig
from udfs.schemas import (
    Event,
    EventType,
    Origin,
    PendingEvent,
    SavedList,
    decode_vector,
    encode_vector,
    frame_record,
)

FloatMatrix = NDArray[np.float32]
Float64 = NDArray[np.float64]

NOW_MS: Final = 1_732_300_000_000
SECOND_MS: Final = 1_000
MINUTE_MS: Final = 60_000
DAY_MS: Final = 86_400_000
# The sums are float32: each addition and each decay rounds by 2**-24 of the largest sum so far.
SUM_TOLERANCE: Final = 1e-5


def event(
    event_id: str = "e1",
    kind: EventType = "click",
    product_id: str | None = "p0",
    ts: int = NOW_MS,
    **fields: Any,
) -> Event:
    """A valid event of the user ``u``, unless told otherwise."""
    fields = {"user_id": "u", **fields}
    return Event(event_id=event_id, type=kind, ts=ts, product_id=product_id, **fields)


def event_json(**changes: object) -> bytes:
    """A valid event on the wire; a field changed to ... is left out."""
    fields: dict[str, object] = {
        "event_id": "e1",
        "user_id": "u",
        "type": "click",
        "ts": NOW_MS,
        "product_id": "p0",
        **changes,
    }
    kept = {name: value for name, value in fields.items() if value is not ...}
    return json.dumps(kept, ensure_ascii=False).encode()


def product_json(**changes: object) -> bytes:
    """A valid product on the wire; a field changed to ... is left out."""
    fields: dict[str, object] = {
        "product_id": "p0",
        "space": "s",
        "embedding": [3.0, 4.0],
        **changes,
    }
    kept = {name: value for name, value in fields.items() if value is not ...}
    return json.dumps(kept, ensure_ascii=False).encode()


def wire_key(identifier: str) -> str:
    """A record key as the Kafka source hands it over: its UTF-8 bytes read as ISO-8859-1."""
    return identifier.encode().decode("latin-1")


def pending(made: Event, payload: bytes = b"{}", offset: int = 0) -> PendingEvent:
    return PendingEvent(made, frame_record(payload, Origin(0, offset)))


def saved_list(user_id: str = "u", products: Sequence[str] = ("p0",), **fields: Any) -> SavedList:
    values: dict[str, Any] = {
        "scores": np.linspace(1, 0, len(products), dtype=np.float32),
        "space": "s",
        "event_ms": NOW_MS,
        "generated_us": NOW_MS * 1000 + 7,
        "reasons": ["profile"] * len(products),
        "excluded": [],
        "variant": "",
        **fields,
    }
    return SavedList(user_id, list(products), **values)


def unit(vector: Any) -> FloatMatrix:
    wide = np.asarray(vector, dtype=np.float64)
    return np.asarray(wide / np.linalg.norm(wide), dtype=np.float32)


def unit_vectors(n: int, dimensions: int, seed: int = 0) -> FloatMatrix:
    """Random unit vectors, shape (n, d), rounded to float16 as the catalogue holds them."""
    raw = np.random.default_rng(seed).standard_normal((n, dimensions))
    return np.asarray(
        (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float16), dtype=np.float32
    )


def stored(vectors: FloatMatrix) -> FloatMatrix:
    """Vectors that lose nothing as float16, nor as int8 with a scale each; shorter than 1."""
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    return np.asarray(np.rint(vectors / largest * 127) / 512, dtype=np.float32)


def record(
    product_id: str = "p0", vector: FloatMatrix | None = None, space: str = "s", **fields: Any
) -> ProductRecord:
    """A product as `products` has it; further ``vectors`` by space stand behind the first."""
    vectors = {space: vector} if vector is not None else {}
    vectors |= fields.pop("vectors", {})
    values: dict[str, Any] = {
        "title": "",
        "category": "",
        "price": None,
        "in_stock": True,
        "is_text": False,
        "first_seen_ms": 1000,
        "updated_us": 1,
        **fields,
    }
    texts = {name: encode_vector(one) for name, one in vectors.items()}
    return ProductRecord(VERSION, product_id, vectors=texts, **values)


def record_vectors(whole: ProductRecord) -> dict[str, FloatMatrix]:
    """Vectors (d,) of a product by space, the newest last."""
    return {space: decode_vector(text) for space, text in whole.vectors.items()}


def related_row(product_id: str = "p0", **fields: Any) -> RelatedRow:
    """What was learned of a product."""
    return RelatedRow(VERSION, product_id, **{"related": {}, **fields})


class Vectors:
    """A vector source over plain dictionaries."""

    def __init__(
        self,
        products: Mapping[str, FloatMatrix],
        queries: Mapping[str, FloatMatrix] | None = None,
        space: str | None = "s",
    ) -> None:
        self.products = dict(products)
        self.queries = dict(queries or {})
        self.space = space
        self.dimensions = len(next(iter(self.products.values()))) if self.products else 0

    def product_vector(self, product_id: str) -> FloatMatrix | None:
        return self.products.get(product_id)

    def query_vector(self, query: str) -> FloatMatrix | None:
        return self.queries.get(query)


def naive_weight(one: Event, config: ProfileConfig) -> float:
    """What an event's vector counts: by its type, but a scroll that was left at once."""
    bounced = one.type == "scroll" and one.dwell_ms is not None and one.dwell_ms < config.bounce_ms
    return config.bounce_weight if bounced else config.weights[one.type]


def naive_sums(
    events: Iterable[Event], source: Vectors, config: ProfileConfig
) -> tuple[Float64, int]:
    """S(T) = sum_i w_i · 2 ** (-(T - t_i) / h) · v_i, in float64 over the list of events.

    An event id counts once; T is the time of the newest event that has a vector.

    Returns:
        Fast and slow sums, shape (2, d), and T in milliseconds.
    """
    moved: list[tuple[int, float, FloatMatrix]] = []
    seen: set[str] = set()
    for one in events:
        if one.event_id in seen:
            continue
        seen.add(one.event_id)
        vector = (
            source.query_vector(one.query or "")
            if one.type == "search"
            else source.product_vector(one.product_id or "")
        )
        if vector is not None:
            moved.append((one.ts, naive_weight(one, config), vector))
    newest = max((ts for ts, _, _ in moved), default=0)
    sums = np.zeros((2, source.dimensions), dtype=np.float64)
    for row, half_life_s in enumerate((config.fast_half_life_s, config.slow_half_life_s)):
        for ts, weight, vector in moved:
            age_s = (newest - ts) / 1000
            sums[row] += weight * 2.0 ** (-age_s / half_life_s) * vector.astype(np.float64)
    return sums, newest


def naive_query_vector(sums: Float64, config: ProfileConfig) -> Float64:
    """The blend of the two directions, shape (d,); zeros where there is none."""
    fast, slow = (_direction(row) for row in sums)
    return _direction(config.fast_share * fast + (1 - config.fast_share) * slow)


def _direction(vector: Float64) -> Float64:
    norm = np.linalg.norm(vector)
    return np.asarray(vector / norm) if norm > 0 else np.zeros_like(vector)


def brute_force(
    products: Mapping[str, FloatMatrix],
    query: FloatMatrix,
    k: int,
    excluded: Sequence[str] = (),
) -> list[tuple[float, str]]:
    """The k best products by a full sort of all scores in float64: (score, id), best first."""
    scored = [
        (float(vector.astype(np.float64) @ query.astype(np.float64)), product_id)
        for product_id, vector in products.items()
        if product_id not in set(excluded)
    ]
    return sorted(scored, reverse=True)[:k]


def assert_same_list(
    found: tuple[list[str], FloatMatrix],
    products: Mapping[str, FloatMatrix],
    query: FloatMatrix,
    k: int,
    excluded: Sequence[str] = (),
) -> None:
    """A list must be as good as the full sort; ids may differ only where scores tie."""
    ids, scores = found
    expected = brute_force(products, query, k, excluded)
    assert len(ids) == len(scores) == len(expected)
    assert len(set(ids)) == len(ids)
    assert not set(ids) & set(excluded)
    own = [float(products[one].astype(np.float64) @ query.astype(np.float64)) for one in ids]
    np.testing.assert_allclose(scores, own, atol=1e-5)
    np.testing.assert_allclose(scores, [score for score, _ in expected], atol=1e-5)
    assert (np.diff(scores) <= 0).all()
