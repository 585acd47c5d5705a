"""A user's events: what was done, newest first, by pages; and the way in for new ones."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from flask import Blueprint, Response, g

from api import problems
from api.config import ApiConfig
from api.metrics import REFUSED, WRONG_USER
from api.operations import Answer, Body, Operation, now_ms, route
from api.parameters import Instant, Token, WholeNumber
from api.problems import BodyError, InvalidParameterError, ProblemError
from api.responses import json_response
from api.services import services
from connectors.cassandra_schema import SECONDS_A_DAY
from connectors.event_client import make_event
from connectors.recommendation_store import InvalidPageTokenError, StoredEvent
from udfs.lenient import event_fields
from udfs.schemas import (
    EVENT_TYPES,
    MAX_FUTURE_MS,
    MAX_INT32,
    MAX_TIMESTAMP_MS,
    Event,
    Identifier,
    Reason,
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

# All that a shop may send. Erasures and objections come through routes and a scope of their own.
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


# The forms in which the job takes a time and an id.
_Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=MAX_TIMESTAMP_MS)]
_Time = _Milliseconds | Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
_Id = Identifier | int


class EventInput(msgspec.Struct, frozen=True, gc=False):
    """Something that a user did.

    A search needs ``query``, every other type ``product_id``. ``event_id`` and ``ts`` (epoch
    milliseconds, or ISO 8601 with a zone) are made by the service where they are absent. An event
    that is sent again is recognised by its own ``event_id``, with or without ``ts``; without one
    it counts twice. ``sent_at`` is the sender's clock at sending: ``ts`` is then corrected by what
    that clock is off. With a token of a user, ``user_id`` may be absent. Unknown fields are
    ignored.
    """

    type: ShopEventType
    user_id: _Id | None = None
    event_id: _Id | None = None
    ts: _Time | None = None
    product_id: _Id | None = None
    query: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    session_id: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    dwell_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_INT32)] | None = None
    quantity: Annotated[int, msgspec.Meta(ge=0, le=MAX_INT32)] | None = None
    sent_at: _Time | None = None


class EventBatch(msgspec.Struct, frozen=True, gc=False):
    """Several events; ``sent_at`` is of those that have none of their own.

    ``token`` is the user's token where a beacon cannot send it as a header.
    """

    events: Annotated[list[EventInput], msgspec.Meta(min_length=1, max_length=MAX_EVENTS)]
    sent_at: _Time | None = None
    token: str | None = None


# Each event is read for itself: what is wrong with one is no reason to refuse the others.
_RawEvents = Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=MAX_EVENTS)]


class _Envelope(msgspec.Struct, frozen=True, gc=False):
    """A body that is an object; without ``events`` it is itself an event, whose fields are kept."""

    events: _RawEvents | msgspec.UnsetType = msgspec.UNSET
    sent_at: Any = None


class Sent(NamedTuple):
    """What came in a body: the events as they are in it, and ``sent_at`` of all of them."""

    events: list[msgspec.Raw]
    sent_at: Any


_body_decoder = msgspec.json.Decoder(_RawEvents | _Envelope)


def split(body: bytes) -> Sent:
    """Take a body apart: an event, an array of them, or an object with ``events``.

    Raises:
        DecodeError: It is none of these.
    """
    found = _body_decoder.decode(body)
    if isinstance(found, list):
        return Sent(found, None)
    if isinstance(found.events, msgspec.UnsetType):
        return Sent([msgspec.Raw(body)], None)
    return Sent(found.events, found.sent_at)


class Taken(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """``accepted`` events are with the producer; ``errors`` says which were refused, and why.

    ``event_ids`` are those of the accepted events, in the order of the request.
    """

    accepted: int
    event_ids: list[str]
    errors: list[BodyError] = []


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
        {202: Answer(Taken, "Those that are not in `errors` are with the producer.")},
        scope="ingest",
        browser=True,
        body=Body(
            EventInput,
            EventBatch,
            Annotated[list[EventInput], msgspec.Meta(min_length=1, max_length=MAX_EVENTS)],
            max_bytes=MAX_BYTES,
            meaning=(
                f"One event, or up to {MAX_EVENTS} as an object with `events`, or as an array."
                " Also as text/plain, from a page of an allowed origin (`navigator.sendBeacon`)."
            ),
            decode=split,
        ),
        problems=(problems.BUFFER_FULL,),
        units=lambda body: len(body.events),
    ),
)
def post_events(body: Sent) -> Response:
    """Take events, fire and forget: the answer does not wait for Kafka.

    The good ones are taken, and `errors` names the others. 400 where none is good, 403 where all
    are of another user than the token. After a 503 send the events again from `resume_at` on.
    """
    given = body.events
    config, user_id = services().config, g.caller.user_id
    now = now_ms()
    good: list[tuple[int, Event]] = []
    errors: list[BodyError] = []
    for index, raw in enumerate(given):
        try:
            good.append((index, _read_event(raw, body.sent_at, user_id, config, now)))
        except _WrongUserError:
            errors.append(BodyError(index, "the token is of another user", WRONG_USER))
        except RejectedError as error:
            errors.append(BodyError(index, error.detail, error.reason.value))
    for one in errors:
        REFUSED.labels(one.reason).inc()
    if not good:
        theirs = all(one.reason == WRONG_USER for one in errors)
        kind = problems.FORBIDDEN if theirs else problems.INVALID_BODY
        detail = errors[0].detail if len(given) == 1 else f"all {len(given)} events are refused"
        raise ProblemError(kind, detail, errors=errors)
    sink = services().events
    for accepted, (index, event) in enumerate(good):
        if not sink.offer(event):
            detail = "the buffer of events is full; Kafka may be away"
            raise ProblemError(
                problems.BUFFER_FULL,
                detail,
                retry=True,
                accepted=accepted,
                resume_at=index,
                errors=errors or None,
            )
    return json_response(Taken(len(good), [event.event_id for _, event in good], errors), 202)


class _WrongUserError(Exception):
    """The event is of another user than the token."""


_event_decoder = msgspec.json.Decoder(dict[str, Any])


def _read_event(
    raw: msgspec.Raw, sent_at: Any, user_id: str | None, config: ApiConfig, now: int
) -> Event:
    """Read one event as the job does.

    Args:
        raw: The event.
        sent_at: Of the whole body.
        user_id: The only one that the caller may send for; None: all.
        config: Says what becomes of impossible times, and which ids are nobody's.
        now: Epoch milliseconds.

    Raises:
        RejectedError: The job would refuse it, or no client may send it.
        _WrongUserError: It is of another user.
    """
    try:
        fields = _event_decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise RejectedError(Reason.INVALID_FIELD, "an event must be an object") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RejectedError(Reason.NOT_JSON, str(error)[:500]) from error
    if user_id is not None and fields.get("user_id") is None:
        fields["user_id"] = user_id
    own = fields.pop("sent_at", None)
    event = _in_time(fields, sent_at if own is None else own, config, now)
    if user_id is not None and event.user_id != user_id:
        raise _WrongUserError
    if event.type not in EVENT_TYPES:
        detail = f"type must be one of: {', '.join(EVENT_TYPES)}"
        raise RejectedError(Reason.INVALID_FIELD, detail)
    return event


def _in_time(fields: dict[str, Any], sent_at: Any, config: ApiConfig, now: int) -> Event:
    """Make the event, with a time of this service's clock."""
    try:
        ts = fields.get("ts")
        if ts is not None and sent_at is not None:
            ahead = _read_time("sent_at", sent_at) - now
            fields = {**fields, "ts": _read_time("ts", ts) - ahead}
        return make_event(fields, now, config.placeholder_ids)
    except RejectedError:
        if config.impossible_times == "refuse":
            raise
        # Whatever else is wrong with the event still is.
        return make_event({**fields, "ts": None}, now, config.placeholder_ids)


def _read_time(name: str, value: Any) -> int:
    """Read a time in all forms of the job's; a wrong clock's need not be one that the job takes."""
    try:
        return msgspec.convert(event_fields({"ts": value})["ts"], _Milliseconds)
    except ValueError as error:  # msgspec's own among them
        raise RejectedError(Reason.INVALID_FIELD, f"{name}: {error}") from error
