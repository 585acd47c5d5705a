"""GET /v1/users/{id}/events: what a user did, newest first, by pages."""

from __future__ import annotations

import time

import msgspec
from flask import Blueprint, Response, request

from api import parameters
from api.problems import InvalidParameterError
from api.responses import json_response
from api.services import services
from connectors.cassandra_schema import SECONDS_A_DAY
from connectors.recommendation_store import InvalidPageTokenError, StoredEvent

DEFAULT_LIMIT = 50
MAX_LIMIT = 500
# Clocks of shops may be ahead: the job accepts events up to five minutes from now.
_AHEAD_MS = 5 * 60 * 1000

blueprint = Blueprint("events", __name__)


class Events(msgspec.Struct, frozen=True, gc=False):
    """The answer; ``ts`` of an event in epoch milliseconds.

    ``next`` is the ``page`` of the following request, with the same ``from`` and ``to``; null at
    the end. A page can be short, even empty, and have a next one: a request reads a month at most.
    """

    user_id: str
    events: tuple[StoredEvent, ...]
    next: str | None


@blueprint.get("/v1/users/<id:user_id>/events")
def events(user_id: str) -> Response:
    """Answer with the events of a user in [from, to); by default all that are kept."""
    parameters.identifier("id", user_id)
    parameters.only("limit", "from", "to", "page")
    limit = parameters.whole_number("limit", default=DEFAULT_LIMIT, least=1, most=MAX_LIMIT)
    # Exclusive, hence one more than the latest time that the job accepts.
    latest = int(time.time() * 1000) + _AHEAD_MS + 1
    end = parameters.instant("to", default=latest)
    history = services().config.event_history_days * SECONDS_A_DAY * 1000
    start = parameters.instant("from", default=max(0, min(end, latest) - history))
    if start > end:
        raise InvalidParameterError(parameter="from", detail="must not be after to")
    try:
        page = services().store.events(
            user_id, start=start, end=end, limit=limit, page=request.args.get("page")
        )
    except InvalidPageTokenError as error:
        raise InvalidParameterError(
            parameter="page", detail="must be the next of an earlier answer"
        ) from error
    return json_response(Events(user_id, page.events, page.next))
