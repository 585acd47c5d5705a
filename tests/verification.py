"""What the job must have saved, recomputed from the event log by other means, and the comparison.

Nothing here uses the recommender's own profile or index. A user's vector is summed directly from
the documented formula, in float64, over the whole log; a list is a full sort of all scores. The
vector that the job really used is recovered from what it saved: the scores of a list are the inner
products of that vector with the products of the list, so a list longer than the vector gives an
overdetermined linear system for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from udfs.profile import ProfileConfig
from udfs.schemas import Event

Vector = NDArray[np.float64]
Encoder = Callable[[str], Any]

# The job sums and scores in float32; Cassandra keeps scores as float32.
# The last digit of a vector's float32 can round a component to the next float16: 6e-5 of it.
SCORE_TOLERANCE: Final = 5e-5
VECTOR_TOLERANCE: Final = 1e-4
# A list needs so many more products than dimensions for the system to be well conditioned.
_SURPLUS: Final = 16


@dataclass(frozen=True)
class CatalogueItem:
    """A product as it stands at the end."""

    vector: Vector
    """Unit vector, shape (d,), rounded to float16: so the job holds it, whatever it was given."""
    in_stock: bool = True

    def __post_init__(self) -> None:
        """Round the vector, which is compared with a tolerance below that of float16."""
        object.__setattr__(self, "vector", self.vector.astype(np.float16).astype(np.float64))


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
