"""The request's id: taken from X-Request-ID or made, in every response and every log line."""

from __future__ import annotations

import random
import re
from typing import cast

from flask import Flask, Response, request

HEADER = "X-Request-ID"
_VARIABLE = "HTTP_X_REQUEST_ID"
_KEY = "recommender.request_id"
# What may be repeated into headers and logs without escaping.
_ACCEPTED = re.compile(r"[A-Za-z0-9._-]{1,64}")


def request_id() -> str:
    """Return the id of the request that is being handled; the same at every call."""
    environ = request.environ
    known = environ.get(_KEY)
    if known is None:
        # Unique, not secret: a system call for better bits would give the interpreter away.
        sent = environ.get(_VARIABLE, "")
        known = sent if _ACCEPTED.fullmatch(sent) else f"{random.getrandbits(128):032x}"
        environ[_KEY] = known
    return cast("str", known)


def register(app: Flask) -> None:
    """Put the id, and the defaults of the other headers, on every response of ``app``."""
    app.after_request(_finish)


def _finish(response: Response) -> Response:
    headers = response.headers
    headers.add(HEADER, request_id())
    headers.add("X-Content-Type-Options", "nosniff")
    # A list is one person's and changes within a second; a route that may be cached says so.
    if "Cache-Control" not in headers:
        headers.add("Cache-Control", "no-store")
    return response
