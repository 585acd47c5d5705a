"""Waits for Cassandra between attempts: ever longer, connecting anew, until the task shall end."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Final

from cassandra import OperationTimedOut, RequestExecutionException
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionException
from cassandra.protocol import (
    IsBootstrappingErrorMessage,
    OverloadedErrorMessage,
    ServerError,
)

from connectors.cassandra_session import RECONNECT_AFTER_SECONDS, UNANSWERED, Silence

logger = logging.getLogger(__name__)

# Failures after which the same request may succeed.
TRANSIENT: Final = (
    NoHostAvailable,
    OperationTimedOut,
    RequestExecutionException,  # timeouts, unavailable, write failure
    ConnectionException,
    # What the driver hands on as the server sent it.
    IsBootstrappingErrorMessage,
    OverloadedErrorMessage,
    ServerError,
)
# Longest time asleep between two looks at whether the wait shall end. Flink's watchdog ends a
# TaskManager whose task has not ended 180 s after its cancellation (task.cancellation.timeout).
_LONGEST_SLEEP_S: Final = 5.0


class WaitInterruptedError(RuntimeError):
    """The wait for Cassandra has ended because the task shall end."""


class Patience:
    """Waits between the attempts of one task; there is no last one.

    Args:
        reconnect: Resolves the contact points again and goes on there, if somebody answers.
        first_s: Wait before the first retry, seconds; doubled a retry, with jitter.
        longest_s: Longest wait, seconds.
        reconnect_after_s: Silence of all servers after which ``reconnect`` is called, seconds.
        sleep: Waits.
        interrupted: Whether a wait shall end.
    """

    def __init__(
        self,
        reconnect: Callable[[], None],
        *,
        first_s: float = 0.1,
        longest_s: float = 5.0,
        reconnect_after_s: float = RECONNECT_AFTER_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._reconnect = reconnect
        self._first_s = first_s
        self._longest_s = longest_s
        self._sleep = sleep
        self._interrupted = interrupted
        self._silence = Silence(reconnect_after_s)

    def answered(self) -> None:
        """Note that a server has answered."""
        self._silence.end()

    def wait(self, attempt: int, error: Exception) -> None:
        """Wait before the next attempt; connect anew where nobody has answered for long.

        Raises:
            WaitInterruptedError: The wait shall end.
        """
        limit = min(self._longest_s, self._first_s * 2 ** min(attempt - 1, 20))
        logger.warning("attempt %d at Cassandra failed, waiting: %s", attempt, error)
        pause = limit * random.uniform(0.5, 1.0)
        while pause > 0:
            self._end_if_interrupted(error)
            self._sleep(min(pause, _LONGEST_SLEEP_S))
            pause -= _LONGEST_SLEEP_S
        self._end_if_interrupted(error)
        if not isinstance(error, UNANSWERED):
            self._silence.end()
        elif self._silence.lasts():
            self._reconnect()

    def _end_if_interrupted(self, error: Exception) -> None:
        if self._interrupted():
            msg = "the task shall end while it waits for Cassandra"
            raise WaitInterruptedError(msg) from error
