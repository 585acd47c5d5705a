"""What a worker does once a second beside its requests."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Final

logger = logging.getLogger(__name__)

EVERY_SECONDS: Final = 1.0


class Ticker:
    """Calls tasks one after the other, again and again; one that fails is logged and called again.

    Args:
        tasks: Called in the ticker's thread.
        every_seconds: Pause between two rounds.
    """

    def __init__(
        self, tasks: Sequence[Callable[[], None]], *, every_seconds: float = EVERY_SECONDS
    ) -> None:
        self._tasks = tuple(tasks)
        self._every = every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ticker", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End after a last round of the first task; it is the one that accounts."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)
        self._tasks[0]()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            for task in self._tasks:
                try:
                    task()
                except Exception:
                    logger.exception("a background task failed")
