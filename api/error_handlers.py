"""Errors: every one leaves the service as problem+json (RFC 9457) with the request's id."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from api.problems import (
    NOT_FOUND,
    PROBLEM_JSON,
    STORE_TIMEOUT,
    STORE_UNAVAILABLE,
    TOO_LARGE,
    Problem,
    ProblemError,
)
from api.request_id import request_id
from api.responses import json_response
from api.services import services
from connectors.recommendation_store import StoreError, StoreTimeout

logger = logging.getLogger(__name__)


def problem(status: int, detail: str, *, type_: str = "about:blank", **members: Any) -> Response:
    """Return a problem+json response.

    Args:
        status: HTTP status; the title is its standard phrase.
        detail: This occurrence, for a person; nothing that a client may not see.
        type_: What kind of problem, for a program.
        members: Further members of `Problem`.
    """
    title = HTTPStatus(status).phrase
    body = Problem(type_, title, status, detail, request_id(), **members)
    return json_response(body, status, mimetype=PROBLEM_JSON)


def register(app: Flask) -> None:
    """Answer every error of ``app`` as a problem."""
    app.register_error_handler(ProblemError, _answer)
    app.register_error_handler(StoreError, _store_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected)


def _answer(error: ProblemError) -> Response:
    kind = error.kind
    response = problem(kind.status, error.detail, type_=kind.type, **error.members)
    response.headers.update(error.headers)
    if error.retry:
        seconds = services().config.retry_after_seconds if error.retry is True else error.retry
        response.headers["Retry-After"] = str(seconds)
    return response


def _store_error(error: StoreError) -> Response:
    # With its cause, because the answer leaves out the addresses that the driver's error names.
    logger.warning(
        "request %s: %s; cause: %r", request_id(), error, error.__cause__ or "none given"
    )
    kind = STORE_TIMEOUT if isinstance(error, StoreTimeout) else STORE_UNAVAILABLE
    return _answer(ProblemError(kind, str(error), retry=True, store=error.store))


def _http_error(error: HTTPException) -> Response | HTTPException:
    if error.code is None or error.code < 400:
        # A redirect of the router is no error.
        return error
    detail = error.description or HTTPStatus(error.code).phrase
    kinds = {kind.status: kind.type for kind in (NOT_FOUND, TOO_LARGE)}
    response = problem(error.code, detail, type_=kinds.get(error.code, "about:blank"))
    # What the status asks for (Allow of 405, Retry-After, …) stands in the exception's headers.
    for name, value in error.get_headers(request.environ):
        if name.lower() not in ("content-type", "content-length"):
            response.headers[name] = value
    return response


def _unexpected(error: Exception) -> Response:
    logger.error("request %s failed", request_id(), exc_info=error)
    return problem(500, "the request failed here; the log has the reason under the request's id")
