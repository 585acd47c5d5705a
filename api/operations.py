"""Routes, declared with everything that the interface's description says of them.

The declaration is what the request is checked against (scope, rate limit, path, query, body) and
what `api.openapi` describes: the two cannot differ. The libraries that derive OpenAPI from Flask
code were tried: of those only spectree takes msgspec types, and it costs 35 µs of a request of
120, answers wrong requests in a format of its own, and passes unknown parameters. What is left to
do beside msgspec's own schemas is here.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from flask import Blueprint, Response, g, request
from werkzeug.exceptions import RequestEntityTooLarge

from api import browser, parameters, problems
from api.access import Caller, Scope
from api.parameters import Parameter
from api.problems import Kind, ProblemError
from api.services import services
from connectors import request_budget

View = Callable[..., Response]
_ATTRIBUTE: Final = "recommender_operation"


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer: its body's type (None: without a body), meaning and headers."""

    body: Any
    meaning: str
    headers: Mapping[str, str] = field(default_factory=dict)
    mimetype: str = "application/json"


class Body:
    """A JSON body with at most ``max_bytes``.

    Args:
        types: What it may be, for the description.
        max_bytes: Its size.
        meaning: For the description.
        decode: Reads it; raises what msgspec does. None: as the only one of ``types``.
    """

    def __init__(
        self,
        *types: Any,
        max_bytes: int,
        meaning: str,
        decode: Callable[[bytes], Any] | None = None,
    ) -> None:
        self.types = types
        self.max_bytes = max_bytes
        self.meaning = meaning
        self._decode = msgspec.json.Decoder(types[0]).decode if decode is None else decode

    def read(self, *, beacon: bool = False) -> Any:
        """Return the body of this request; ``beacon``: it may be one (`api.browser`).

        Raises:
            ProblemError: It is too large, no JSON, or not of the type.
        """
        if request.mimetype != "application/json" and not (beacon and browser.is_beacon()):
            # It is also what keeps pages from elsewhere out: a browser asks before it sends JSON.
            raise ProblemError(problems.NOT_JSON, "the Content-Type must be application/json")
        request.max_content_length = self.max_bytes
        try:
            raw = request.get_data(cache=False)
        except RequestEntityTooLarge as error:
            detail = f"at most {self.max_bytes} bytes"
            raise ProblemError(problems.TOO_LARGE, detail) from error
        try:
            return self._decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProblemError(problems.INVALID_BODY, str(error)[:500]) from error


def _one(_body: Any) -> int:
    return 1


@dataclass(frozen=True, slots=True)
class Operation:
    """What the description says of one route; ``scope`` None: open to everyone.

    ``browser``: pages of the allowed origins may ask, with a token of the user that the path or
    the body names (`api.browser`).

    A request of a scope has one time limit for all that it reads. It costs units of its caller's
    rate: one, or what ``units`` says of its body, and one more for each statement beyond the
    first that it sent to a store.
    """

    summary: str
    answers: Mapping[int, Answer]
    scope: Scope | None = None
    browser: bool = False
    query: Sequence[Parameter] = ()
    body: Body | None = None
    problems: Sequence[Kind] = ()
    units: Callable[[Any], int] = _one

    @property
    def all_problems(self) -> list[Kind]:
        """Every problem of the route, those included that follow from its declaration."""
        found = [problems.INVALID_PARAMETER, *self.problems, problems.FAILED]
        if self.scope is not None:
            found += [problems.UNAUTHENTICATED, problems.FORBIDDEN, problems.TOO_MANY_REQUESTS]
        if self.body is not None:
            found += [problems.INVALID_BODY, problems.TOO_LARGE, problems.NOT_JSON]
        return found


def operation_of(view: Callable[..., Any]) -> Operation | None:
    """Return what a view was declared with."""
    return getattr(view, _ATTRIBUTE, None)


def route(
    blueprint: Blueprint, method: str, rule: str, operation: Operation
) -> Callable[[View], View]:
    """Register the view below at ``rule``; its docstring is the route's description.

    The view gets the ids of the path, and ``body`` where the operation has one.
    """

    def register(view: View) -> View:
        query, scope, body = operation.query, operation.scope, operation.body
        # An id at the end takes all that follows; a slash in it must be escaped, so that a wrong
        # path (DELETE /v1/users/u1/events) is not taken for an id.
        last = rule.rpartition(":")[2].rstrip(">") if rule.endswith(">") else None

        def arguments(path: dict[str, Any]) -> dict[str, Any]:
            """What the view gets, checked."""
            for name, value in path.items():
                parameters.identifier("id" if name.endswith("_id") else name, value)
            if last is not None and "/" in path[last] and not _is_one_segment(rule):
                raise ProblemError(problems.NOT_FOUND, "there is no such path")
            parameters.only(query)
            if body is None:
                return path
            return {**path, "body": body.read(beacon=operation.browser)}

        def admitted(scope: Scope, path: dict[str, Any]) -> Caller:
            """Who asks: with a key, or with a token of one user."""
            presented = browser.presented_token() if operation.browser else None
            access = services().access
            if presented is None:
                return access.admit(scope)
            return access.admit_user(presented, path.get("user_id"), now_ms())

        @functools.wraps(view)
        def checked(**path: str) -> Response:
            if scope is None:
                return view(**arguments(path))
            parts = services()
            limiter = parts.limiter
            g.caller = caller = admitted(scope, path)
            request_budget.begin(parts.config.request_limit)
            try:
                if body is None:
                    _pay(scope, limiter.take(caller.key, scope))
                    return view(**arguments(path))
                # What it costs stands in its body: above the limit that need not be read.
                _pay(scope, limiter.exhausted(caller.key, scope))
                try:
                    given = arguments(path)
                except ProblemError:
                    limiter.owe(caller.key, scope, 1)
                    raise
                _pay(scope, limiter.take(caller.key, scope, operation.units(given["body"])))
                return view(**given)
            finally:
                reads = request_budget.end()
                # What was read is paid for afterwards, since nobody knows before.
                if reads > 1:
                    limiter.owe(caller.key, scope, reads - 1)

        setattr(checked, _ATTRIBUTE, operation)
        blueprint.add_url_rule(rule, view.__name__, checked, methods=[method])
        return checked

    return register


def _is_one_segment(rule: str) -> bool:
    return parameters.raw_path(request.environ).count("/") == rule.count("/")


def _pay(scope: Scope, wait: float) -> None:
    """Refuse a request that must wait for its units."""
    if wait:
        detail = f"above the rate limit of the scope {scope}"
        raise ProblemError(
            problems.TOO_MANY_REQUESTS, detail, retry=max(1, math.ceil(min(wait, 3600.0)))
        )


def now_ms() -> int:
    """The wall clock, epoch milliseconds."""
    return time.time_ns() // 1_000_000
