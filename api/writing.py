"""Writes that wait for Kafka's acknowledgement: bounded in time and in number."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from api import problems
from api.problems import ProblemError
from api.request_id import request_id
from api.services import services
from connectors.kafka_client import NotAcknowledgedError

logger = logging.getLogger(__name__)

WRITE_PROBLEMS: Final = (problems.STORE_UNAVAILABLE, problems.BUSY)


def send(topic: str, records: Sequence[tuple[str, bytes | None]]) -> None:
    """Send records and return when Kafka has them.

    No more requests wait at once than leave threads for the reads.

    Raises:
        ProblemError: 503, as many as may are waiting already, or Kafka has not acknowledged.
    """
    parts = services()
    if not parts.waiting_writes.acquire(blocking=False):
        raise ProblemError(problems.BUSY, "too many writes are waiting for Kafka", retry=True)
    try:
        parts.records.send(topic, records)
    except NotAcknowledgedError as error:
        logger.warning("request %s: kafka: %s", request_id(), error)
        detail = "kafka has not acknowledged it; it may have been written, send it again"
        raise ProblemError(problems.STORE_UNAVAILABLE, detail, retry=True, store="kafka") from error
    finally:
        parts.waiting_writes.release()
