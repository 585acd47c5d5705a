"""Sends batches that nobody waits for: of a few series at once, each series batch by batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any, Final

# Series under way at once. The others wait as iterators, which have not made their batches yet.
AT_ONCE: Final = 8


class BackgroundSender:
    """Sends the next batch of a series when the one before is acknowledged.

    A series whose batch fails ends there. Batches are made as they are sent, partly in the driver's
    threads, so that memory holds one batch for each series under way, however many wait.
    """

    def __init__(self, send: Callable[[Any], Any], failed: Callable[[BaseException], None]) -> None:
        """Keep how to send a batch, which gives the driver's future, and who is told of failures.

        Args:
            send: Sends a batch without waiting.
            failed: Takes the error that ended a series.
        """
        self._send = send
        self._failed = failed
        self._waiting: deque[Iterator[Any]] = deque()
        self._active = 0
        # Those of the active series whose last batch has been answered.
        self._turns: deque[Iterator[Any]] = deque()
        self._sending = Lock()

    def add(self, batches: Iterator[Any]) -> None:
        """Take a series; it begins when there is room."""
        self._waiting.append(batches)
        self._go_on()

    def close(self) -> None:
        """Forget what has not begun."""
        with self._sending:
            self._waiting.clear()

    def _has_turn(self) -> bool:
        return bool(self._turns) or (bool(self._waiting) and self._active < AT_ONCE)

    def _go_on(self) -> None:
        # One thread at a time sends, and looks again when it is through; whoever comes meanwhile
        # leaves it the turn, also a callback from within `send`, which would nest without end.
        while self._has_turn() and self._sending.acquire(blocking=False):
            try:
                if self._has_turn():
                    self._send_next()
            finally:
                self._sending.release()

    def _send_next(self) -> None:
        if self._turns:
            batches = self._turns.popleft()
        else:
            batches = self._waiting.popleft()
            self._active += 1
        try:
            batch = next(batches, None)
            future = None if batch is None else self._send(batch)
        except Exception as error:
            self._failed(error)
            future = None
        if future is None:
            self._active -= 1
            return

        def acknowledged(_answer: object) -> None:
            self._turns.append(batches)
            self._go_on()

        def failed(error: BaseException) -> None:
            self._failed(error)
            self._turns.append(iter(()))
            self._go_on()

        future.add_callbacks(acknowledged, failed)
