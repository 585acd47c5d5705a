"""A user's events: what was done, newest first, by pages; and the way in for new ones."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from flask import Blueprint, Response

from api import problems
from api.operations import Answer, Body, Operation, now_ms, route
from api.parameters import Instant, Token, WholeNumber
from api.problems import BodyError, InvalidParameterError, ProblemError
from api.responses import json_response
from api.services import services
from connectors.cassandra_schema import SECONDS_A_DAY
from connectors.event_client import make_record, new_event_id
from connectors.recommendation_store import InvalidPageTokenError, StoredEvent
from udfs.schemas import (
    MAX_FUTURE_MS,
    MAX_INT32,
    MAX_TIMESTAMP_MS,
    Event,
    Identifier,
    RejectedError,
)

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 500
MAX_EVENTS: Final = 1000
MAX_BYTES: Final = 1024 * 1024

_LIMIT: Final = WholeNumber(
    "limit", "Events a page.", default=DEFAULT_LIMIT, least=1, most=MAX_LIMIT
)
_FROM: Final = Instant("from", "The earliest time, inclusive; by default all that is kept.")
_TO: Final = Instant("to", "The latest time, exclusive; by default now.")
_PAGE: Final = Token("page", "`next` of the page before, with the same from and to.")

# All that a shop may send. An erasure comes through its own route, and its own scope.
ShopEventType = Literal["click", "search", "scroll", "purchase", "add_to_cart", "dislike", "return"]

blueprint = Blueprint("events", __name__)


class Events(msgspec.Struct, frozen=True, gc=False):
    """The answer; ``ts`` of an event in epoch milliseconds.

    ``next`` is the ``page`` of the following request, with the same ``from`` and ``to``; null at
    the end. A page can be short, even empty, and have a next one: a request reads a month at most.
    """

    user_id: str
    events: tuple[StoredEvent, ...]
    next: str | None


class EventInput(msgspec.Struct, frozen=True, gc=False):
    """Something that a user did.

    A search needs ``query``, every other type ``product_id``. ``event_id`` and ``ts`` (epoch
    milliseconds) are made by the service where they are absent; send your own id to be able to
    send an event again without counting it twice. Unknown fields are ignored.
    """

    user_id: Identifier
    type: ShopEventType
    event_id: Identifier | None = None
    ts: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIMESTAMP_MS)] | None = None
    product_id: Identifier | None = None
    query: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    session_id: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    dwell_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_INT32)] | None = None
    quantity: Annotated[int, msgspec.Meta(ge=0, le=MAX_INT32)] | None = None

    def to_event(self, now: int) -> Event:
        """Return the event, with an id and a time."""
        return Event(
            event_id=self.event_id if self.event_id is not None else new_event_id(now),
            user_id=self.user_id,
            type=self.type,
            ts=self.ts if self.ts is not None else now,
            product_id=self.product_id,
            query=self.query,
            session_id=self.session_id,
            dwell_ms=self.dwell_ms,
            quantity=self.quantity,
        )


_Batch = Annotated[list[EventInput], msgspec.Meta(min_length=1, max_length=MAX_EVENTS)]


class Taken(msgspec.Struct, frozen=True, gc=False):
    """The events are with the producer; ``event_ids`` in the order of the request."""

    accepted: int
    event_ids: list[str]


@route(
    blueprint,
    "GET",
    "/v1/users/<id:user_id>/events",
    Operation(
        "A user's events",
        {200: Answer(Events, "A page of events, newest first.")},
        scope="personal",
        query=(_LIMIT, _FROM, _TO, _PAGE),
        problems=(problems.STORE_UNAVAILABLE, problems.STORE_TIMEOUT),
    ),
)
def events(user_id: str) -> Response:
    """Answer with the events of a user in [from, to); by default all that are kept."""
    limit = _LIMIT.read()
    # Clocks of shops may be ahead. Exclusive, hence one more than the latest that the job accepts.
    latest = now_ms() + MAX_FUTURE_MS + 1
    end = _TO.read(default=latest)
    history = services().config.event_history_days * SECONDS_A_DAY * 1000
    start = _FROM.read(default=max(0, min(end, latest) - history))
    if start > end:
        raise InvalidParameterError(parameter="from", detail="must not be after to")
    try:
        page = services().store.events(
            user_id, start=start, end=end, limit=limit, page=_PAGE.read()
        )
    except InvalidPageTokenError as error:
        raise InvalidParameterError(
            parameter="page", detail="must be the next of an earlier answer"
        ) from error
    return json_response(Events(user_id, page.events, page.next))


@route(
    blueprint,
    "POST",
    "/v1/events",
    Operation(
        "Send events",
        {202: Answer(Taken, "They are with the producer.")},
        scope="ingest",
        body=Body(
            EventInput | _Batch,
            max_bytes=MAX_BYTES,
            meaning=f"One event, or an array of up to {MAX_EVENTS}.",
        ),
        problems=(problems.BUFFER_FULL,),
        units=lambda body: len(body) if isinstance(body, list) else 1,
    ),
)
def post_events(body: EventInput | list[EventInput]) -> Response:
    """Take events, fire and forget: the answer does not wait for Kafka.

    None is taken where one is wrong, and `errors` says which. After a 503 send those again that
    follow the first `accepted`.
    """
    given = body if isinstance(body, list) else [body]
    now = now_ms()
    made = [one.to_event(now) for one in given]
    errors: list[BodyError] = []
    for index, event in enumerate(made):
        try:
            make_record(event, now)
        except RejectedError as error:
            errors.append(BodyError(index, error.detail))
    if errors:
        detail = f"{len(errors)} of {len(made)} events are wrong, none was taken"
        raise ProblemError(problems.INVALID_BODY, detail, errors=errors)
    sink = services().events
    for accepted, event in enumerate(made):
        if not sink.offer(event):
            detail = "the buffer of events is full; Kafka may be away"
            raise ProblemError(problems.BUFFER_FULL, detail, retry=True, accepted=accepted)
    return json_response(Taken(len(made), [event.event_id for event in made]), 202)
