"""The erasure of a user: asked for here, carried out by the job in the order of the events."""

from __future__ import annotations

from typing import Literal

import msgspec
from flask import Blueprint, Response

from api import problems
from api.operations import Answer, Operation, now_ms, route
from api.problems import ProblemError
from api.responses import json_response
from api.services import services
from api.writing import WRITE_PROBLEMS, send_control

blueprint = Blueprint("erasure", __name__)


class ErasureState(msgspec.Struct, frozen=True, gc=False):
    """How far an erasure is; times in epoch milliseconds, ``done_at`` null until it is done."""

    user_id: str
    status: Literal["requested", "done"]
    requested_at: int
    done_at: int | None


@route(
    blueprint,
    "DELETE",
    "/v1/users/<id:user_id>",
    Operation(
        "Erase a user",
        {202: Answer(ErasureState, "It is recorded, and Kafka has it.")},
        scope="erase",
        problems=(*WRITE_PROBLEMS, problems.STORE_TIMEOUT),
    ),
)
def erase(user_id: str) -> Response:
    """Have everything deleted that is known of a user: list, events and the job's state.

    The request goes through Kafka behind the user's earlier events, so that none of them is
    processed after it. It may be repeated, and must be after a 503. Ask
    GET /v1/users/{user_id}/erasure whether it is done.
    """
    now = now_ms()
    # Recorded first: what was asked for leaves a trace, whatever happens then.
    services().store.request_erasure(user_id, now)
    send_control("erase", user_id, now)
    return json_response(ErasureState(user_id, "requested", now, None), 202)


@route(
    blueprint,
    "GET",
    "/v1/users/<id:user_id>/erasure",
    Operation(
        "How far an erasure is",
        {200: Answer(ErasureState, "The newest request and what became of it.")},
        scope="erase",
        problems=(problems.NOT_FOUND, problems.STORE_UNAVAILABLE, problems.STORE_TIMEOUT),
    ),
)
def erasure(user_id: str) -> Response:
    """Answer how far the newest erasure of a user is; the record of it is kept for 30 days.

    It is done when what was saved is deleted at the consistency that reads use. Older events of
    the user that come later are dropped.
    """
    found = services().store.erasure(user_id)
    if found is None:
        raise ProblemError(problems.NOT_FOUND, "no erasure of this user was asked for lately")
    status: Literal["requested", "done"] = "requested" if found.done_at is None else "done"
    return json_response(ErasureState(user_id, status, found.requested_at, found.done_at))
