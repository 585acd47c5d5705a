"""Writes that wait for Kafka's acknowledgement: bounded in time and in number."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from api import problems
from api.problems import ProblemError
from api.request_id import request_id
from api.services import services
from connectors.kafka_client import NotAcknowledgedError

logger = logging.getLogger(__name__)

WRITE_PROBLEMS: Final = (problems.STORE_UNAVAILABLE, problems.BUSY)


Records = Sequence[tuple[str, bytes | None]]


def send(topic: str, make_records: Callable[[], Records]) -> int:
    """Make records, send them, and return when Kafka has them; how many there are.

    No more requests wait at once, for what the records need or for Kafka, than leave threads for
    the reads.

    Raises:
        ProblemError: 503, as many as may are waiting already, or Kafka has not acknowledged.
    """
    parts = services()
    if not parts.waiting_writes.acquire(blocking=False):
        raise ProblemError(problems.BUSY, "too many writes are waiting for Kafka", retry=True)
    try:
        records = make_records()
        parts.records.send(topic, records)
    except NotAcknowledgedError as error:
        logger.warning("request %s: kafka: %s", request_id(), error)
        detail = "kafka has not acknowledged it; it may have been written, send it again"
        raise ProblemError(problems.STORE_UNAVAILABLE, detail, retry=True, store="kafka") from error
    else:
        return len(records)
    finally:
        parts.waiting_writes.release()
