"""What the job must have saved, recomputed from the event log by other means, and the comparison.

Nothing here uses the recommender's own profile or index. A user's vector is summed directly from
the documented formula, in float64, over the whole log; a list is a full sort of all scores. The
vector that the job really used is recovered from what it saved: the scores of a list are the inner
products of that vector with the products of the list, so a list longer than the vector gives an
overdetermined linear system for it. The catalogue is replayed from its topic by the documented
rules, record by record, without the job's merge.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from connectors.cassandra_schema import bucket_of, catalogue_scope, category_scope
from udfs.profile import ProfileConfig
from udfs.schemas import Event

Vector = NDArray[np.float64]
Encoder = Callable[[str], Any]

# The job sums and scores in float32; Cassandra keeps scores as float32.
SCORE_TOLERANCE: Final = 1e-5
VECTOR_TOLERANCE: Final = 1e-4
# Vectors are kept as base64 of float32.
_FLOAT32_TOLERANCE: Final = 1e-6
# A list by product is saved again where a cosine differs by its third decimal.
_COSINE_TOLERANCE: Final = 2e-3
# A list needs so many more products than dimensions for the system to be well conditioned.
_SURPLUS: Final = 16


@dataclass(frozen=True)
class CatalogueItem:
    """A product as it stands at the end."""

    vector: Vector
    """Unit vector, shape (d,), rounded to float16: so the job holds it, whatever it was given."""
    in_stock: bool = True

    def __post_init__(self) -> None:
        """Round the vector in the same two steps: one step rounds some components otherwise."""
        short = self.vector.astype(np.float32).astype(np.float16)
        object.__setattr__(self, "vector", short.astype(np.float64))


@dataclass(frozen=True)
class SaidProduct:
    """A product as the shop has said it by now."""

    title: str = ""
    category: str = ""
    price: float | None = None
    in_stock: bool = True
    vectors: Mapping[str, Vector] = field(default_factory=dict)
    """Unit vectors (d,) by space."""
    updated_at: int = 0
    """The newest that was sent, epoch milliseconds; 0: none."""


@dataclass(frozen=True)
class StoredCatalogue:
    """What is saved and passed on of the products, each by product id."""

    rows: Mapping[str, Mapping[str, Any]]
    """What `products` shows of each."""
    records: Mapping[str, Mapping[str, Any]]
    """Its column `record`, decoded."""
    scopes: Mapping[str, set[tuple[str, float | None]]]
    """Scopes and prices of `products_by_scope`."""
    emitted: Mapping[str, Mapping[str, Any]]
    """The newest records of the topic `products`, decoded."""
    similar: Mapping[str, Sequence[tuple[str, float]]]
    """The similar products of each, and their scores, best first."""


@dataclass(frozen=True)
class StoredList:
    """One user's row in Cassandra."""

    product_ids: tuple[str, ...]
    scores: Vector
    space: str
    event_ms: int
    generated_ms: int


@dataclass(frozen=True)
class StoredRow:
    """One row of the events table: the event as it was read back, and the day of its partition."""

    event: Event
    day_number: int


@dataclass(frozen=True)
class ExpectedUser:
    """A user's final state by the formulas."""

    vector: Vector | None
    """The lookup's unit vector; None where the user points nowhere."""
    excluded: frozenset[str]


@dataclass
class Verdict:
    """What differs between the saved and the expected."""

    events: int = 0
    users: int = 0
    lost: list[str] = field(default_factory=list)
    """Acknowledged events without a row."""
    unexpected: list[str] = field(default_factory=list)
    """Rows that nobody sent."""
    duplicated: list[str] = field(default_factory=list)
    """Events with more than one row."""
    altered: list[str] = field(default_factory=list)
    """Rows that differ from what was sent."""
    wrong_lists: dict[str, str] = field(default_factory=dict)
    """User to what is wrong."""
    max_vector_error: float = 0.0
    """Largest distance of a recovered from a recomputed unit vector."""
    vectors_compared: int = 0
    max_score_error: float = 0.0
    products: int = 0
    wrong_products: dict[str, str] = field(default_factory=dict)
    """Product to what is wrong: in its rows, in the topic `products`, or in its list."""

    @property
    def right(self) -> bool:
        """Whether nothing differs."""
        return not self.problems()

    def problems(self) -> str:
        """What differs, a line each, with the first examples; empty where nothing does."""
        lines = [
            f"{len(found)} of {self.events} events {name}: {found[:3]}"
            for name, found in (
                ("lost", self.lost),
                ("unexpected", self.unexpected),
                ("duplicated", self.duplicated),
                ("altered", self.altered),
            )
            if found
        ]
        if self.wrong_lists:
            some = dict(list(self.wrong_lists.items())[:3])
            lines.append(f"{len(self.wrong_lists)} of {self.users} lists wrong: {some}")
        if self.wrong_products:
            some = dict(list(self.wrong_products.items())[:3])
            lines.append(f"{len(self.wrong_products)} of {self.products} products wrong: {some}")
        if self.max_vector_error > VECTOR_TOLERANCE:
            lines.append(f"a vector is off by {self.max_vector_error:.2e}")
        return "\n".join(lines)


def unit(vector: Any) -> Vector:
    """Scale to length 1, in float64."""
    wide = np.asarray(vector, dtype=np.float64)
    return np.asarray(wide / np.linalg.norm(wide))


def identity(event: Event) -> str:
    """Name an event: its id, and what it is about. The lines of an order share one id."""
    return f"{event.event_id} {event.product_id or event.query}"


def expected_users(
    events: Iterable[Event],
    catalogue: Mapping[str, CatalogueItem],
    encode: Encoder | None = None,
    config: ProfileConfig | None = None,
) -> dict[str, ExpectedUser]:
    """Recompute every user from the log; an event counts once, as it came first.

    Holds for users with at most ``exclusions`` bought or disliked products, and for a product that
    came late as long as its interactions were among the newest ``interactions``: keep the test's
    data within that.

    Args:
        events: All acknowledged events, in any order, with or without duplicates.
        catalogue: The products at the end, all of one space.
        encode: The vector of a search in that space, or None where it has none.
        config: The constants; by default the job's.
    """
    config = config or ProfileConfig()
    logs: dict[str, dict[str, Event]] = {}
    for event in events:
        logs.setdefault(event.user_id, {}).setdefault(identity(event), event)
    return {user: _expected(log.values(), catalogue, encode, config) for user, log in logs.items()}


def _expected(
    log: Iterable[Event],
    catalogue: Mapping[str, CatalogueItem],
    encode: Encoder | None,
    config: ProfileConfig,
) -> ExpectedUser:
    moved: list[tuple[int, float, Vector]] = []
    excluded = set()
    for event in log:
        found: Vector | None = None
        if event.type == "search":
            embedded = encode(event.query or "") if encode is not None else None
            found = unit(embedded) if embedded is not None else None
        elif event.product_id is not None and event.product_id in catalogue:
            found = catalogue[event.product_id].vector
        if event.type in ("purchase", "dislike", "return"):
            excluded.add(event.product_id or "")
        if found is not None:
            weight = config.weights[event.type]
            if event.type == "scroll" and event.dwell_ms is not None:
                weight = config.bounce_weight if event.dwell_ms < config.bounce_ms else weight
            moved.append((event.ts, weight, found))
    if not moved:
        return ExpectedUser(None, frozenset(excluded))
    newest = max(ts for ts, _, _ in moved)
    query = np.zeros_like(moved[0][2])
    for half_life_s, share in (
        (config.fast_half_life_s, config.fast_share),
        (config.slow_half_life_s, 1 - config.fast_share),
    ):
        total = np.zeros_like(query)
        for ts, weight, vector in moved:
            total += weight * 2.0 ** (-(newest - ts) / 1000 / half_life_s) * vector
        query += share * unit(total)
    return ExpectedUser(unit(query), frozenset(excluded))


def recovered_vector(stored: StoredList, catalogue: Mapping[str, CatalogueItem]) -> Vector | None:
    """Solve for the vector that gave a list its scores; None where the list is too short."""
    known = [catalogue[product_id].vector for product_id in stored.product_ids]
    if not known or len(known) < len(known[0]) + _SURPLUS:
        return None
    solution, _, rank, _ = np.linalg.lstsq(np.array(known), stored.scores, rcond=None)
    return np.asarray(solution) if rank == len(known[0]) else None


def list_problem(
    stored: StoredList | None,
    expected: ExpectedUser,
    catalogue: Mapping[str, CatalogueItem],
    k: int,
    space: str | None = None,
) -> tuple[str, float]:
    """Compare one list with a full sort of all products.

    Ids may differ from the sort's only where scores are equal within the tolerance.

    Returns:
        What is wrong (empty: nothing), and the largest difference of a score.
    """
    if expected.vector is None:
        return ("" if stored is None else "a list for a user who points nowhere"), 0.0
    if stored is None:
        return "no list", 0.0
    if space is not None and stored.space != space:
        return f"space {stored.space}, not {space}", 0.0
    allowed = [
        product_id
        for product_id, item in catalogue.items()
        if item.in_stock and product_id not in expected.excluded
    ]
    ids = stored.product_ids
    if len(set(ids)) != len(ids):
        return "a product twice", 0.0
    strangers = sorted(set(ids) - set(allowed))
    if strangers:
        return f"products that must not be shown: {strangers[:3]}", 0.0
    if len(ids) != min(k, len(allowed)):
        return f"{len(ids)} products, not {min(k, len(allowed))}", 0.0
    if not ids:
        return "", 0.0
    best = np.sort(np.array([catalogue[one].vector for one in allowed]) @ expected.vector)[::-1]
    own = np.array([catalogue[one].vector for one in ids]) @ expected.vector
    # The saved score must be the product's own, and the whole list as good as the sort.
    error = float(
        max(np.abs(stored.scores - own).max(), np.abs(stored.scores - best[: len(ids)]).max())
    )
    if error > SCORE_TOLERANCE:
        return f"scores off by {error:.2e}", error
    return "", error


def replay(records: Iterable[tuple[str, bytes | None]]) -> dict[str, SaidProduct]:
    """Apply valid records of `catalogue`, in the order of each product, by the documented rules.

    Args:
        records: Product ids and values; None deletes.
    """
    products: dict[str, SaidProduct] = {}
    for product_id, value in records:
        if value is None:
            products.pop(product_id, None)
            continue
        said = json.loads(value)
        before = products.get(product_id, SaidProduct())
        is_partial, at = said.get("partial", False), said.get("updated_at")
        if is_partial and product_id not in products:
            continue  # a dead letter
        if at is not None and at < before.updated_at:
            continue  # late
        start = before if is_partial else SaidProduct(vectors=before.vectors)
        names = ("title", "category", "price", "in_stock")
        now = replace(start, **{name: said[name] for name in names if name in said})
        if said.get("embedding") is not None:
            vector = unit(np.frombuffer(base64.b64decode(said["embedding"]), dtype="<f4"))
            now = replace(now, vectors={**now.vectors, said["space"]: vector})
        products[product_id] = replace(now, updated_at=max(at or 0, before.updated_at))
    return products


def verify_catalogue(
    said: Mapping[str, SaidProduct], stored: StoredCatalogue, space: str, k: int = 20
) -> dict[str, str]:
    """Compare what is saved and passed on of each product with what the shop said.

    Holds while nothing was learned of any product, and each has a vector of the shop.

    Args:
        said: The products at the end.
        stored: What is saved.
        space: The active space.
        k: Length of a list by product.

    Returns:
        What is wrong, by product.
    """
    problems: dict[str, str] = {}
    parts = (stored.rows, stored.records, stored.scopes, stored.emitted, stored.similar)
    for product_id in set().union(*parts) - said.keys():
        problems[product_id] = "is there and must not be"
    shown = [name for name, product in said.items() if product.in_stock]
    matrix = np.array([said[name].vectors[space] for name in shown])
    for product_id, product in said.items():
        near = {}
        if shown:
            cosines = matrix @ product.vectors[space]
            near = dict(zip(shown, cosines.tolist(), strict=True))
        near.pop(product_id, None)
        problem = _product_problem(product_id, product, stored) or _similar_problem(
            stored.similar.get(product_id, ()), near, k
        )
        if problem:
            problems[product_id] = problem
    return problems


def _product_problem(product_id: str, said: SaidProduct, stored: StoredCatalogue) -> str:
    expected = {
        "title": said.title,
        "category": said.category,
        "price": said.price,
        "in_stock": said.in_stock,
    }
    row, record = stored.rows.get(product_id), stored.records.get(product_id)
    if row != expected or record is None:
        return f"row {row}, not {expected}"
    whole = {**expected, "product_id": product_id, "updated_at": said.updated_at}
    if {name: record[name] for name in whole} != whole:
        return f"record {record}, not {whole}"
    if record["vectors"].keys() != said.vectors.keys():
        return f"vectors of {list(record['vectors'])}, not {list(said.vectors)}"
    for space, vector in said.vectors.items():
        found = np.frombuffer(base64.b64decode(record["vectors"][space]), dtype="<f4")
        if np.abs(found - vector).max() > _FLOAT32_TOLERANCE:
            return f"another vector of {space}"
    emitted = stored.emitted.get(product_id)
    if emitted != record:
        return f"the topic says {emitted}, the row {record}"
    names = category_scope(said.category), catalogue_scope(bucket_of(product_id))
    scopes = {(name, said.price) for name in names} if said.in_stock else set()
    found_in = stored.scopes.get(product_id, set())
    return "" if found_in == scopes else f"in scopes {found_in}, not {scopes}"


def _similar_problem(found: Sequence[tuple[str, float]], near: Mapping[str, float], k: int) -> str:
    """Compare a list with a full sort; ids may differ where cosines are equal within tolerance."""
    best = sorted(near.values(), reverse=True)[:k]
    ids = [name for name, _ in found]
    if len(set(ids)) != len(best) or len(ids) != len(best) or not near.keys() >= set(ids):
        return f"similar products {ids}, of {len(near)} in stock"
    if not ids:
        return ""
    scores = np.array([score for _, score in found])
    own = np.array([near[name] for name in ids])
    error = float(max(np.abs(scores - own).max(), np.abs(scores - best).max()))
    return f"similar products are off by {error:.2e}" if error > _COSINE_TOLERANCE else ""


def verify_events(acknowledged: Iterable[Event], rows: Sequence[StoredRow]) -> Verdict:
    """Compare the saved events with the acknowledged ones: all, once, unchanged, no other."""
    sent: dict[str, Event] = {}
    for event in acknowledged:
        # A retry may have another time; the first one holds.
        sent.setdefault(identity(event), event)
    verdict = Verdict(events=len(sent))
    seen: set[str] = set()
    for row in rows:
        name = identity(row.event)
        if name in seen:
            verdict.duplicated.append(name)
        elif name not in sent:
            verdict.unexpected.append(name)
        elif row.event != sent[name] or row.day_number != row.event.ts // 86_400_000:
            verdict.altered.append(name)
        seen.add(name)
    verdict.lost = sorted(sent.keys() - seen)
    return verdict


def verify(
    acknowledged: Sequence[Event],
    rows: Sequence[StoredRow],
    lists: Mapping[str, StoredList],
    catalogue: Mapping[str, CatalogueItem],
    *,
    k: int,
    space: str | None = None,
    encode: Encoder | None = None,
) -> Verdict:
    """Compare everything that the job saved with what it must have saved."""
    verdict = verify_events(acknowledged, rows)
    expected = expected_users(acknowledged, catalogue, encode)
    verdict.users = len(expected)
    for user, should_be in expected.items():
        stored = lists.get(user)
        problem, error = list_problem(stored, should_be, catalogue, k, space)
        verdict.max_score_error = max(verdict.max_score_error, error)
        if problem:
            verdict.wrong_lists[user] = problem
        if stored is None or should_be.vector is None:
            continue
        if not all(one in catalogue for one in stored.product_ids):
            continue  # counted as a wrong list
        recovered = recovered_vector(stored, catalogue)
        if recovered is not None:
            verdict.vectors_compared += 1
            distance = float(np.linalg.norm(recovered - should_be.vector))
            verdict.max_vector_error = max(verdict.max_vector_error, distance)
    for user in lists.keys() - expected.keys():
        verdict.wrong_lists[user] = "a list for a user without an event"
    return verdict
