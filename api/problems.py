"""Errors: every one leaves the service as problem+json (RFC 9457) with the request's id."""

from __future__ import annotations

import logging
from http import HTTPStatus

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from api.request_id import request_id
from api.responses import json_response
from api.services import services
from connectors.recommendation_store import StoreError, StoreTimeout

logger = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"
# `about:blank` says: nothing more than the status itself. The others are names, not addresses.
INVALID_PARAMETER = "urn:recommender:problem:invalid-parameter"
STORE_UNAVAILABLE = "urn:recommender:problem:store-unavailable"
STORE_TIMEOUT = "urn:recommender:problem:store-timeout"
NOT_READY = "urn:recommender:problem:not-ready"


class InvalidParameterError(Exception):
    """A parameter of the request is wrong; answered with 400.

    Args:
        parameter: Its name in the interface.
        detail: What it must be. The value itself is not repeated.
    """

    def __init__(self, parameter: str, detail: str) -> None:
        super().__init__(f"{parameter}: {detail}")
        self.parameter = parameter
        self.detail = detail


def problem(status: int, detail: str, *, type_: str = "about:blank", **members: object) -> Response:
    """Return a problem+json response.

    Args:
        status: HTTP status; the title is its standard phrase.
        detail: This occurrence, for a person; nothing that a client may not see.
        type_: What kind of problem, for a program.
        members: Further members, such as ``parameter`` or ``stores``.
    """
    body = {
        "type": type_,
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "request_id": request_id(),
        **members,
    }
    return json_response(body, status, mimetype=PROBLEM_JSON)


def with_retry_after(response: Response) -> Response:
    """Add the configured Retry-After to ``response``."""
    response.headers["Retry-After"] = str(services().config.retry_after_seconds)
    return response


def register(app: Flask) -> None:
    """Answer every error of ``app`` as a problem."""
    app.register_error_handler(InvalidParameterError, _invalid_parameter)
    app.register_error_handler(StoreError, _store_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected)


def _invalid_parameter(error: InvalidParameterError) -> Response:
    return problem(
        400,
        f"{error.parameter}: {error.detail}",
        type_=INVALID_PARAMETER,
        parameter=error.parameter,
    )


def _store_error(error: StoreError) -> Response:
    # With its cause, because the answer leaves out the addresses that the driver's error names.
    logger.warning(
        "request %s: %s; cause: %r", request_id(), error, error.__cause__ or "none given"
    )
    kind = STORE_TIMEOUT if isinstance(error, StoreTimeout) else STORE_UNAVAILABLE
    return with_retry_after(problem(503, str(error), type_=kind, store=error.store))


def _http_error(error: HTTPException) -> Response | HTTPException:
    if error.code is None or error.code < 400:
        # A redirect of the router is no error.
        return error
    response = problem(error.code, error.description or HTTPStatus(error.code).phrase)
    # What the status asks for (Allow of 405, Retry-After, …) stands in the exception's headers.
    for name, value in error.get_headers(request.environ):
        if name.lower() not in ("content-type", "content-length"):
            response.headers[name] = value
    return response


def _unexpected(error: Exception) -> Response:
    logger.error("request %s failed", request_id(), exc_info=error)
    return problem(500, "the request failed here; the log has the reason under the request's id")
