"""A user's objection to profiling: carried out by the job in the order of the events."""

from __future__ import annotations

import msgspec
from flask import Blueprint, Response

from api.operations import Answer, Operation, now_ms, route
from api.responses import json_response
from api.writing import WRITE_PROBLEMS, send_control

blueprint = Blueprint("objection", __name__)


class ObjectionState(msgspec.Struct, frozen=True, gc=False):
    """What was asked for, and when (epoch milliseconds); the job follows within about a second."""

    user_id: str
    objects: bool
    requested_at: int


@route(
    blueprint,
    "PUT",
    "/v1/users/<id:user_id>/objection",
    Operation(
        "Keep a user out of profiles",
        {202: Answer(ObjectionState, "Kafka has the objection.")},
        scope="erase",
        problems=WRITE_PROBLEMS,
    ),
)
def object_to_profiling(user_id: str) -> Response:
    """Have a user's profile and list deleted, and none made until the objection is withdrawn.

    The user's events are still saved as history; erase the user to have them deleted too. It may
    be repeated, and must be after a 503.
    """
    return _send(user_id, objects=True)


@route(
    blueprint,
    "DELETE",
    "/v1/users/<id:user_id>/objection",
    Operation(
        "Withdraw a user's objection",
        {202: Answer(ObjectionState, "Kafka has the withdrawal.")},
        scope="erase",
        problems=WRITE_PROBLEMS,
    ),
)
def withdraw_objection(user_id: str) -> Response:
    """Have a profile made of the user's events from now on; it may be repeated."""
    return _send(user_id, objects=False)


def _send(user_id: str, *, objects: bool) -> Response:
    now = now_ms()
    send_control("opt_out" if objects else "opt_in", user_id, now)
    return json_response(ObjectionState(user_id, objects, now), 202)
