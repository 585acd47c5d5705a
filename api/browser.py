"""What a page of another origin sends: its origin, a beacon, a token of one user."""

from __future__ import annotations

from typing import Final

import msgspec
from flask import request
from werkzeug.exceptions import RequestEntityTooLarge

from api.problems import TOO_LARGE, ProblemError
from api.services import services
from api.tokens import TOKEN_PREFIX

# What browsers let `sendBeacon` send.
MAX_BEACON_BYTES: Final = 64 * 1024


class _WithToken(msgspec.Struct, frozen=True, gc=False):
    token: str | None = None


_decoder = msgspec.json.Decoder(_WithToken)


def allowed_origin() -> str | None:
    """Return the origin of the page that asks, where it is one of the configured."""
    origin = request.headers.get("Origin")
    return origin if origin is not None and origin in services().config.origins else None


def is_beacon() -> bool:
    """Tell whether this is what `navigator.sendBeacon` sends from a page that may.

    A browser sends text/plain without asking before, and names the page's origin. So a text/plain
    body is read where that origin is allowed, and nowhere else.
    """
    return request.mimetype == "text/plain" and allowed_origin() is not None


def presented_token() -> str | None:
    """Return the token of this request: of its Authorization, or of a beacon's body.

    A beacon has no headers of its own. Its token goes in the body and not in the query, which
    proxies and browsers keep.

    Raises:
        ProblemError: 413, a beacon is larger than browsers send.
    """
    kind, _, presented = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer" and presented.strip().startswith(TOKEN_PREFIX):
        return presented.strip()
    if not is_beacon():
        return None
    request.max_content_length = MAX_BEACON_BYTES
    try:
        raw = request.get_data()
    except RequestEntityTooLarge as error:
        raise ProblemError(TOO_LARGE, f"at most {MAX_BEACON_BYTES} bytes") from error
    try:
        return _decoder.decode(raw).token
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # What is wrong with it is said by those who read the body.
        return None
