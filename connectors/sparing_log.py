"""A log that says each thing at most once a minute, for what may fail a thousand times a second."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from typing import Final

_EVERY_SECONDS: Final = 60.0


class SparingLog:
    """Logs errors, one line a kind and minute; what came between is counted.

    Args:
        logger: Where the lines go.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._lock = threading.RLock()
        self._last: dict[str, float] = {}
        self._since: Counter[str] = Counter()

    def __call__(self, kind: str, message: str, *, trace: bool = False) -> None:
        """Log ``message``, with the current exception's stack if ``trace``."""
        now = time.monotonic()
        with self._lock:
            self._since[kind] += 1
            if now - self._last.get(kind, float("-inf")) < _EVERY_SECONDS:
                return
            self._last[kind] = now
            times = self._since.pop(kind)
        self._logger.error(
            "%s (%d since the last line of this kind)", message, times, exc_info=trace
        )
