"""Parameters of a request, declared once: the declaration checks them and describes them.

Unknown and repeated parameters are refused too: a mistyped ``limt=5`` would otherwise be answered
with the default, and nobody would know.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from flask import request
from werkzeug.routing import PathConverter

from api.problems import InvalidParameterError
from udfs.schemas import MAX_ID, RESERVED_PREFIX

_WHOLE_NUMBER = re.compile(r"[0-9]{1,19}")
# 9999-12-31T23:59:59.999Z, the last time that the store can show; exclusive ends may lie behind.
MAX_TS = 253_402_300_800_000
# The path of a request's target, which a proxy may write with its origin.
_PATH = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)?([^?#]*)")
# An escaped slash, and what escapes.
_KEPT = re.compile("%(2f|25)", re.IGNORECASE)
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class IdConverter(PathConverter):
    """An id in a path: any text, also with slashes, also empty.

    The bounds are checked by `identifier`, so that a wrong one is a 400 with a name and not a 404.
    """

    # A line break is a character of an id as any other.
    regex = "(?s:.*?)"
    # Werkzeug would otherwise match it within one segment, since it sees no slash in the regex.
    part_isolating = False

    def to_python(self, value: str) -> str:
        """Return the id of a part of a `routed_path`."""
        return unquote(value)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter: its name, and what it means to a person."""

    name: str
    meaning: str

    @property
    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class WholeNumber(Parameter):
    """A number in [least, most]; ``default`` if absent."""

    default: int
    least: int
    most: int

    @property
    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""
        return {
            "type": "integer",
            "minimum": self.least,
            "maximum": self.most,
            "default": self.default,
        }

    def read(self) -> int:
        """Return the value of this request.

        Raises:
            InvalidParameterError: It is no number or out of bounds.
        """
        raw = request.args.get(self.name)
        if raw is None:
            return self.default
        if not _WHOLE_NUMBER.fullmatch(raw) or not self.least <= int(raw) <= self.most:
            detail = f"must be a whole number from {self.least} to {self.most}"
            raise InvalidParameterError(self.name, detail)
        return int(raw)


@dataclass(frozen=True, slots=True)
class Price(Parameter):
    """A price, from 0; None if absent."""

    @property
    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""
        return {"type": "number", "minimum": 0, "maximum": 1e15}

    def read(self) -> float | None:
        """Return the value of this request.

        Raises:
            InvalidParameterError: It is no decimal number.
        """
        raw = request.args.get(self.name)
        if raw is None:
            return None
        try:
            # What a JSON number may look like, as `str` of a float gives it.
            value = float(raw) if raw.isascii() and not raw.strip("0123456789.eE+-") else math.nan
        except ValueError:
            value = math.nan
        if not 0 <= value <= 1e15:
            raise InvalidParameterError(self.name, "must be a number from 0, such as 19.90")
        return value


@dataclass(frozen=True, slots=True)
class Text(Parameter):
    """Any text of 1 to ``most`` characters; None if absent."""

    most: int

    @property
    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""
        return {"type": "string", "minLength": 1, "maxLength": self.most}

    def read(self) -> str | None:
        """Return the value of this request.

        Raises:
            InvalidParameterError: It is empty or too long.
        """
        raw = request.args.get(self.name)
        if raw is not None and not 1 <= len(raw) <= self.most:
            raise InvalidParameterError(self.name, f"must have 1 to {self.most} characters")
        return raw


@dataclass(frozen=True, slots=True)
class Choice(Parameter):
    """One of a few words; the first if absent."""

    words: tuple[str, ...]

    @property
    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""
        return {"type": "string", "enum": list(self.words), "default": self.words[0]}

    def read(self) -> str:
        """Return the value of this request.

        Raises:
            InvalidParameterError: It is none of them.
        """
        raw = request.args.get(self.name, self.words[0])
        if raw not in self.words:
            raise InvalidParameterError(self.name, f"must be one of: {', '.join(self.words)}")
        return raw


@dataclass(frozen=True, slots=True)
class Instant(Parameter):
    """A time: epoch milliseconds, or RFC 3339 with an offset (2026-01-31T12:00:00Z)."""

    @property
    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""
        return {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": MAX_TS},
                {"type": "string", "format": "date-time"},
            ]
        }

    def read(self, *, default: int) -> int:
        """Return the value of this request as epoch milliseconds; ``default`` if absent.

        Raises:
            InvalidParameterError: It is neither, or before 1970.
        """
        raw = request.args.get(self.name)
        if raw is None:
            return default
        ts = int(raw) if _WHOLE_NUMBER.fullmatch(raw) else _rfc3339(self.name, raw)
        if not 0 <= ts <= MAX_TS:
            raise InvalidParameterError(self.name, "must lie between the years 1970 and 9999")
        return ts


@dataclass(frozen=True, slots=True)
class Token(Parameter):
    """A text that an earlier answer gave, taken back as it is; None if absent."""

    @property
    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""
        return {"type": "string"}

    def read(self) -> str | None:
        """Return the value of this request."""
        return request.args.get(self.name)


def identifier(name: str, value: str) -> str:
    """Return ``value`` if it is an id: 1-128 characters, and no key of the pipeline's own.

    Raises:
        InvalidParameterError: It is not, or it is not UTF-8.
    """
    if not 1 <= len(value) <= MAX_ID:
        raise InvalidParameterError(name, f"must have 1 to {MAX_ID} characters")
    if value.startswith(RESERVED_PREFIX):
        raise InvalidParameterError(name, "must not begin with U+0000")
    if "\ufffd" in value and not _raw_path_is_utf8():
        # The router has put U+FFFD for bytes that are no text: that would be another user.
        raise InvalidParameterError(name, "must be UTF-8")
    return value


def only(known: Sequence[Parameter]) -> None:
    """Check that the query has no parameter but ``known``, and none twice.

    Raises:
        InvalidParameterError: It has.
    """
    allowed = [one.name for one in known]
    for name, values in request.args.lists():
        if name not in allowed:
            names = ", ".join(allowed) or "none"
            # Cut, because it is the client's text that goes into an answer.
            raise InvalidParameterError(
                name[:64], f"no parameter of this route, which has: {names}"
            )
        if len(values) > 1:
            raise InvalidParameterError(name, "given more than once")


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


def raw_path(environ: Mapping[str, Any]) -> str:
    """Return the path as the client sent it, with its escapes; empty where nobody has kept it."""
    found = _PATH.match(environ.get("RAW_URI") or environ.get("REQUEST_URI") or "")
    return "" if found is None else found[1].removeprefix(environ.get("SCRIPT_NAME", ""))


def routed_path(environ: Mapping[str, Any]) -> str:
    """Return the path for the router: unescaped but for the slashes, which belong to ids.

    The server's own PATH_INFO has ``DELETE /v1/users/u%2Fobjection`` as the route
    ``/v1/users/u/objection``, of another user. The signs of escapes are kept too, so that
    `IdConverter` can tell what was escaped.
    """
    raw, path = raw_path(environ), environ.get("PATH_INFO", "").encode("latin-1")
    if unquote_to_bytes(raw) == path:
        return unquote_to_bytes(_KEPT.sub(r"%25\1", raw)).decode("utf-8", "replace")
    return str(path.decode("utf-8", "replace").replace("%", "%25"))


def _raw_path_is_utf8() -> bool:
    try:
        unquote_to_bytes(raw_path(request.environ)).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
