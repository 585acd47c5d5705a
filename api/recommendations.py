"""GET /v1/users/{id}/recommendations: one partition-local read."""

from __future__ import annotations

import msgspec
from flask import Blueprint, Response

from api import parameters
from api.responses import json_response
from api.services import services

DEFAULT_LIMIT = 20
MAX_LIMIT = 100
# Scores are float32: what follows the sixth decimal is the conversion, not the score.
_SCORE_DECIMALS = 6

blueprint = Blueprint("recommendations", __name__)


class Item(msgspec.Struct, frozen=True, gc=False):
    """One recommended product."""

    product_id: str
    score: float
    reason: str


class Recommendations(msgspec.Struct, frozen=True, gc=False):
    """The answer; times in epoch milliseconds, null where there is no list.

    ``source`` is "personal", or "none" for a user without a list.
    """

    user_id: str
    source: str
    items: list[Item]
    space: str | None
    event_ts: int | None
    generated_at: int | None


@blueprint.get("/v1/users/<id:user_id>/recommendations")
def recommendations(user_id: str) -> Response:
    """Answer with the newest list of a user, best first; empty for an unknown one."""
    parameters.identifier("id", user_id)
    parameters.only("limit")
    limit = parameters.whole_number("limit", default=DEFAULT_LIMIT, least=1, most=MAX_LIMIT)
    found = services().store.recommendations(user_id)
    if found is None:
        return json_response(Recommendations(user_id, "none", [], None, None, None))
    return json_response(
        Recommendations(
            user_id,
            "personal",
            [
                Item(item.product_id, round(item.score, _SCORE_DECIMALS), item.reason)
                for item in found.items[:limit]
            ],
            found.space,
            found.event_ts,
            found.generated_at,
        )
    )
