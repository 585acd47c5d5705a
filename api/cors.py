"""CORS: which answers a page of another origin may read; none where no origins are configured.

Only operations that are declared with ``browser`` have it. Cookies are not used, so that
credentials are not allowed.
"""

from __future__ import annotations

from typing import Final

from flask import Flask, Response, current_app, request

from api.browser import allowed_origin
from api.operations import operation_of
from api.services import services

# How long a browser need not ask again, seconds.
_MAX_AGE: Final = "600"
_REQUEST_HEADERS: Final = "Authorization, Content-Type, If-None-Match, X-Request-ID"
_ANSWER_HEADERS: Final = "ETag, Retry-After, X-Request-ID"


def register(app: Flask) -> None:
    """Put the headers on the answers of ``app``."""
    app.after_request(_allow)


def _allow(response: Response) -> Response:
    if not services().config.origins or not _for_browsers():
        return response
    headers = response.headers
    headers.add("Vary", "Origin")
    origin = allowed_origin()
    if origin is None:
        return response
    headers["Access-Control-Allow-Origin"] = origin
    if request.method == "OPTIONS":
        # Of this route alone. Flask's own Allow has those of every route that fits the path, such
        # as DELETE of a user.
        methods = request.url_rule.methods if request.url_rule is not None else None
        headers["Access-Control-Allow-Methods"] = ", ".join(sorted(methods or ()))
        headers["Access-Control-Allow-Headers"] = _REQUEST_HEADERS
        headers["Access-Control-Max-Age"] = _MAX_AGE
    else:
        headers["Access-Control-Expose-Headers"] = _ANSWER_HEADERS
    return response


def _for_browsers() -> bool:
    rule = request.url_rule
    if rule is None:
        return False
    operation = operation_of(current_app.view_functions[rule.endpoint])
    return operation is not None and operation.browser
