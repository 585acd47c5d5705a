"""Kinds of errors, and how a view raises one; `api.error_handlers` answers them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

PROBLEM_JSON = "application/problem+json"


class Kind(NamedTuple):
    """A kind of problem; ``about:blank`` says nothing more than the status itself.

    The others are names, not addresses.
    """

    status: int
    type: str
    meaning: str


def _kind(status: int, name: str, meaning: str) -> Kind:
    return Kind(status, f"urn:recommender:problem:{name}", meaning)


INVALID_PARAMETER = _kind(400, "invalid-parameter", "a parameter is wrong; `parameter` names it")
INVALID_BODY = _kind(400, "invalid-body", "the body is wrong; `detail` or `errors` say where")
UNAUTHENTICATED = _kind(401, "unauthenticated", "no API key, or an unknown one; or a token ended")
FORBIDDEN = _kind(
    403, "forbidden", "the API key lacks the scope of this route, or the token is of another user"
)
NOT_FOUND = _kind(404, "not-found", "there is no such thing")
METHOD_NOT_ALLOWED = Kind(405, "about:blank", "the path has other methods")
TOO_LARGE = _kind(413, "too-large", "the body is too large")
NOT_JSON = _kind(415, "not-json", "the body must be application/json")
TOO_MANY_REQUESTS = _kind(429, "too-many-requests", "above the rate limit of the API key")
FAILED = Kind(500, "about:blank", "the service has an error")
STORE_UNAVAILABLE = _kind(503, "store-unavailable", "a store cannot be reached")
STORE_TIMEOUT = _kind(503, "store-timeout", "a store did not answer in time")
NOT_READY = _kind(503, "not-ready", "a store is down; `stores` says which")
BUFFER_FULL = _kind(
    503,
    "buffer-full",
    "no room; `accepted` events were taken, send again from `resume_at` (counted from 0) on",
)
BUSY = _kind(503, "busy", "as many writes as may wait at once are waiting")


class BodyError(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What is wrong with one element of a body; ``index`` counts from 0.

    ``reason`` is for programs: a code of the dead letters, or ``wrong_user`` where a token is of
    another user.
    """

    index: int
    detail: str
    reason: str | None = None


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as in RFC 9457; ``type`` is for programs, ``detail`` for persons."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    parameter: str | None = None
    store: str | None = None
    stores: dict[str, str] | None = None
    errors: list[BodyError] | None = None
    accepted: int | None = None
    resume_at: int | None = None


class ProblemError(Exception):
    """An error that leaves as a problem.

    Args:
        kind: What kind.
        detail: This occurrence, for a person; nothing that a client may not see.
        retry: Whether the answer says when to come again; seconds, or True for the configured.
        headers: Further headers of the answer.
        members: Further members of `Problem`.
    """

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        retry: bool | int = False,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.retry = retry
        self.headers: Final = dict(headers or {})
        self.members = members


class InvalidParameterError(ProblemError):
    """A parameter of the request is wrong; answered with 400.

    Args:
        parameter: Its name in the interface.
        detail: What it must be. The value itself is not repeated.
    """

    def __init__(self, parameter: str, detail: str) -> None:
        super().__init__(INVALID_PARAMETER, f"{parameter}: {detail}", parameter=parameter)
