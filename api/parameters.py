"""Parameters of a request, checked: each function returns a value in bounds or names the parameter.

Unknown and repeated parameters are refused too: a mistyped ``limt=5`` would otherwise be answered
with the default, and nobody would know.
"""

from __future__ import annotations

import datetime as dt
import re
from urllib.parse import unquote_to_bytes

from flask import request
from werkzeug.routing import PathConverter

from api.problems import InvalidParameterError

MAX_ID_LENGTH = 128
_WHOLE_NUMBER = re.compile(r"[0-9]{1,19}")
# 9999-12-31T23:59:59.999Z, the last time that the store can show; exclusive ends may lie behind.
MAX_TS = 253_402_300_800_000
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class IdConverter(PathConverter):
    """An id in a path: any text, also with slashes, also empty.

    The bounds are checked by `identifier`, so that a wrong one is a 400 with a name and not a 404.
    """

    regex = ".*?"
    # Werkzeug would otherwise match it within one segment, since it sees no slash in the regex.
    part_isolating = False


def identifier(name: str, value: str) -> str:
    """Return ``value`` if it is an id: 1-128 characters.

    Raises:
        InvalidParameterError: It is not, or it is not UTF-8.
    """
    if not 1 <= len(value) <= MAX_ID_LENGTH:
        raise InvalidParameterError(name, f"must have 1 to {MAX_ID_LENGTH} characters")
    if "\ufffd" in value and not _raw_path_is_utf8():
        # The router has put U+FFFD for bytes that are no text: that would be another user.
        raise InvalidParameterError(name, "must be UTF-8")
    return value


def only(*names: str) -> None:
    """Check that the query has no parameter but ``names``, and none twice.

    Raises:
        InvalidParameterError: It has.
    """
    for name, values in request.args.lists():
        if name not in names:
            known = ", ".join(names) if names else "none"
            # Cut, because it is the client's text that goes into an answer.
            raise InvalidParameterError(
                name[:64], f"no parameter of this route, which has: {known}"
            )
        if len(values) > 1:
            raise InvalidParameterError(name, "given more than once")


def whole_number(name: str, *, default: int, least: int, most: int) -> int:
    """Return the query parameter ``name`` as a number in [least, most]; ``default`` if absent.

    Raises:
        InvalidParameterError: It is no number or out of bounds.
    """
    raw = request.args.get(name)
    if raw is None:
        return default
    if not _WHOLE_NUMBER.fullmatch(raw) or not least <= int(raw) <= most:
        raise InvalidParameterError(name, f"must be a whole number from {least} to {most}")
    return int(raw)


def instant(name: str, *, default: int) -> int:
    """Return the query parameter ``name`` as epoch milliseconds; ``default`` if absent.

    Accepted are epoch milliseconds and RFC 3339 with an offset (2026-01-31T12:00:00Z).

    Raises:
        InvalidParameterError: It is neither, or before 1970.
    """
    raw = request.args.get(name)
    if raw is None:
        return default
    ts = int(raw) if _WHOLE_NUMBER.fullmatch(raw) else _rfc3339(name, raw)
    if not 0 <= ts <= MAX_TS:
        raise InvalidParameterError(name, "must lie between the years 1970 and 9999")
    return ts


def _rfc3339(name: str, raw: str) -> int:
    wanted = "must be epoch milliseconds or a time such as 2026-01-31T12:00:00Z"
    try:
        # A query turns an unescaped "+" of an offset into a space; no RFC 3339 time has one there.
        time = dt.datetime.fromisoformat(raw.replace(" ", "+"))
    except ValueError as error:
        raise InvalidParameterError(name, wanted) from error
    if time.tzinfo is None:
        raise InvalidParameterError(name, wanted + ", with its offset from UTC")
    return (time - _EPOCH) // dt.timedelta(milliseconds=1)


def _raw_path_is_utf8() -> bool:
    raw: str = request.environ.get("RAW_URI") or request.environ.get("REQUEST_URI") or ""
    try:
        unquote_to_bytes(raw.partition("?")[0]).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
