"""GET /v1/users/{id}/profile: what the recommender knows of a user, readable.

The vectors are in the job's state, and say nothing to a person. What is shown is derived from
what they are made of: the saved events, weighted and aged with the job's defaults.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import msgspec
from flask import Blueprint, Response

from api import problems
from api.filling import SCORE_DECIMALS
from api.operations import Answer, Operation, now_ms, route
from api.parameters import WholeNumber
from api.responses import json_response
from api.services import services
from connectors.cassandra_schema import SECONDS_A_DAY
from connectors.product_rows import ProductRow
from connectors.recommendation_store import StoredEvent
from udfs.profile import ProfileConfig
from udfs.schemas import MAX_FUTURE_MS

_LIMIT: Final = WholeNumber(
    "limit", "Newest interactions that it is derived from.", default=50, least=1, most=200
)
# Calls to the store, of a month each: an idle user's last events may be that old.
_MAX_PAGES: Final = 4

blueprint = Blueprint("profile", __name__)


class Interaction(msgspec.Struct, frozen=True, gc=False):
    """Something the user did; ``title`` and ``category`` null where the product is gone."""

    type: str
    ts: int
    product_id: str | None
    title: str | None
    category: str | None
    query: str | None


class CategoryLean(msgspec.Struct, frozen=True, gc=False):
    """How much the user leans to a category, or away from it where ``score`` is negative.

    ``score`` is the sum of the weights of the interactions, halved with each half-life of their
    age; ``share`` is its part of all positive ones.
    """

    category: str
    score: float
    share: float
    interactions: int


class ShownList(msgspec.Struct, frozen=True, gc=False):
    """The user's list: when it was made, in which space, and how many products it avoids."""

    generated_at: int
    event_ts: int
    space: str
    items: int
    excluded: int


class Profile(msgspec.Struct, frozen=True, gc=False):
    """What is believed of a user; ``derived_from`` says in words what of."""

    user_id: str
    derived_from: str
    interactions: list[Interaction]
    searches: list[str]
    categories: list[CategoryLean]
    # Named `list`, this attribute would hide the type in the annotations above.
    shown_list: ShownList | None = msgspec.field(name="list")


@route(
    blueprint,
    "GET",
    "/v1/users/<id:user_id>/profile",
    Operation(
        "What is believed of a user",
        {200: Answer(Profile, "The profile; empty for an unknown user.")},
        scope="personal",
        query=(_LIMIT,),
        problems=(problems.STORE_UNAVAILABLE, problems.STORE_TIMEOUT),
    ),
)
def profile(user_id: str) -> Response:
    """Answer with a user's last interactions and the categories that they lean to."""
    parts = services()
    now = now_ms()
    events = last_events(user_id, _LIMIT.read(), now)
    rows = parts.shelf.products({one.product_id for one in events if one.product_id is not None})
    found = parts.store.recommendations(user_id)
    config = ProfileConfig()
    half_life_ms = config.slow_half_life_s * 1000
    answer = Profile(
        user_id,
        f"the user's last {len(events)} saved events of at most"
        f" {_MAX_PAGES} months; weights and the half-life of"
        f" {config.slow_half_life_s / SECONDS_A_DAY:g} days are the job's defaults",
        [_interaction(one, rows) for one in events],
        list(dict.fromkeys(one.query for one in events if one.query is not None)),
        lean(events, rows, {str(k): v for k, v in config.weights.items()}, half_life_ms, now),
        None
        if found is None
        else ShownList(
            found.generated_at,
            found.event_ts,
            found.space,
            len(found.items),
            len(found.excluded),
        ),
    )
    return json_response(answer)


def lean(
    events: list[StoredEvent],
    rows: dict[str, ProductRow],
    weights: dict[str, float],
    half_life_ms: float,
    now: int,
) -> list[CategoryLean]:
    """Return how much ``events`` lean to each category, most first.

    Args:
        events: What the user did.
        rows: The products of it that still exist.
        weights: Of each type of event.
        half_life_ms: Of a weight, milliseconds.
        now: Epoch milliseconds.
    """
    scores: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for one in events:
        row = rows.get(one.product_id) if one.product_id is not None else None
        if row is None or not row.category:
            continue
        age = max(0, now - one.ts)
        scores[row.category] += weights.get(one.type, 0.0) * 2.0 ** (-age / half_life_ms)
        counts[row.category] += 1
    positive = sum(score for score in scores.values() if score > 0)
    return [
        CategoryLean(
            category,
            round(score, SCORE_DECIMALS),
            round(max(0.0, score) / positive, SCORE_DECIMALS) if positive else 0.0,
            counts[category],
        )
        for category, score in sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    ]


def last_events(
    user_id: str, limit: int, now: int, *, pages: int = _MAX_PAGES
) -> list[StoredEvent]:
    """Return at most ``limit`` of a user's newest events, newest first.

    Args:
        user_id: Whose.
        limit: From 1.
        now: Epoch milliseconds.
        pages: How far back: calls to the store, of a month each.

    Raises:
        StoreError: The store does not answer.
    """
    parts = services()
    end = now + MAX_FUTURE_MS + 1
    start = max(0, end - parts.config.event_history_days * SECONDS_A_DAY * 1000)
    events: list[StoredEvent] = []
    token: str | None = None
    for _ in range(pages):
        page = parts.store.events(
            user_id, start=start, end=end, limit=limit - len(events), page=token
        )
        events += page.events
        token = page.next
        if token is None or len(events) >= limit:
            break
    return events


def _interaction(event: StoredEvent, rows: dict[str, ProductRow]) -> Interaction:
    row = rows.get(event.product_id) if event.product_id is not None else None
    return Interaction(
        event.type,
        event.ts,
        event.product_id,
        row.title if row is not None else None,
        row.category if row is not None else None,
        event.query,
    )
