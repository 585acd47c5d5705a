"""Reads the forms of a value that other systems send: numbers as ids, floats and text as numbers.

Only values with one meaning are read. What is not changed here is judged by the strict schema.
The trending query reads the same forms in SQL (:mod:`job.trending`), with the same patterns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

# A number as JSON writes it, without a sign. Also what a text must look like to be read as one.
NUMBER: Final = r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?"
# ISO 8601, extended form: date, time of day, fraction of a second, zone.
DATE_TIME: Final = (
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}(?::[0-9]{2})?)([.,][0-9]{1,9})?"
)
ZONE: Final = r"([Zz]|[+-](?:[01][0-9]|2[0-3]):?[0-5][0-9])"
# Above, a float no longer holds every whole number.
_LARGEST_FLOAT: Final = float(2**53)

_number: Final = re.compile(NUMBER, re.ASCII)
_date_time: Final = re.compile(f"{DATE_TIME}{ZONE}?", re.ASCII)
_epoch: Final = datetime(1970, 1, 1, tzinfo=UTC)


def identifier(value: object) -> object:
    """Read a whole number as its decimal text.

    Raises:
        ValueError: A number with a fraction or an exponent, whose text is not known any more.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        msg = f"an id is text or a whole number, not {value!r}"
        raise ValueError(msg)
    return value


def whole_number(value: object) -> object:
    """Read a float or a text without a fraction as the whole number that it is."""
    if isinstance(value, str) and _number.fullmatch(value):
        if value.isdecimal():
            # Longer ones are out of every range, and slow to read.
            return int(value[:40])
        value = float(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= _LARGEST_FLOAT:
        return int(value)
    return value


def time_ms(value: object) -> object:
    """Read a time, epoch milliseconds or ISO 8601 text with a zone, as epoch milliseconds.

    Raises:
        ValueError: A text that names no time, or one without a zone.
    """
    if not isinstance(value, str) or _number.fullmatch(value):
        return whole_number(value)
    found = _date_time.fullmatch(value)
    if found is None:
        msg = f"{value[:40]!r} is no time: epoch milliseconds, or such as 2026-11-25T10:00:00.000Z"
        raise ValueError(msg)
    day, time, fraction, zone = found.groups()
    if zone is None:
        msg = f"{value!r} has no zone: add Z for UTC, or such as +01:00"
        raise ValueError(msg)
    at = datetime.fromisoformat(f"{day}T{time}+00:00") - _offset(zone)
    milliseconds = int((fraction or ".")[1:4].ljust(3, "0"))
    return (at - _epoch) // timedelta(milliseconds=1) + milliseconds


def _offset(zone: str) -> timedelta:
    if zone in "Zz":
        return timedelta()
    size = timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:]))
    return -size if zone[0] == "-" else size


_EVENT_FIELDS: Final[Mapping[str, Callable[[object], object]]] = {
    "event_id": identifier,
    "user_id": identifier,
    "product_id": identifier,
    "session_id": identifier,
    "ts": time_ms,
    "dwell_ms": whole_number,
    "quantity": whole_number,
}
_PRODUCT_FIELDS: Final[Mapping[str, Callable[[object], object]]] = {
    "product_id": identifier,
    "updated_at": time_ms,
}


def event_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an event in the forms of the strict schema, as far as they have one.

    Raises:
        ValueError: A field has no meaning; the message names it and says what would have one.
    """
    return _read(fields, _EVENT_FIELDS)


def product_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a product in the forms of the strict schema, as far as they have one.

    Raises:
        ValueError: A field has no meaning; the message names it.
    """
    return _read(fields, _PRODUCT_FIELDS)


def _read(
    fields: Mapping[str, Any], readers: Mapping[str, Callable[[object], object]]
) -> dict[str, Any]:
    read = dict(fields)
    for name, reader in readers.items():
        if name in read:
            try:
                read[name] = reader(read[name])
            except (ValueError, OverflowError) as error:
                msg = f"{name}: {error}"
                raise ValueError(msg) from error
    return read
