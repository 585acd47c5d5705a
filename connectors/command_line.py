"""What the project's commands for people share: times as a person types them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_DURATION: Final = re.compile(r"^(\d+)([smhd])$")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def since(text: str, now: datetime) -> int:
    """Read a time, ISO 8601 (without a zone: UTC) or how long ago (``90m``, ``2d``); epoch ms.

    Raises:
        ValueError: It is neither.
    """
    if found := _DURATION.match(text):
        ago = timedelta(**{_UNITS[found.group(2)]: int(found.group(1))})
        return int((now - ago).timestamp() * 1000)
    at = datetime.fromisoformat(text)
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
