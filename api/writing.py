"""Writes that wait for Kafka's acknowledgement: bounded in time and in number."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec

from api import problems
from api.problems import ProblemError
from api.request_id import request_id
from api.services import services
from connectors.event_client import new_event_id
from connectors.kafka_client import NotAcknowledgedError

logger = logging.getLogger(__name__)

WRITE_PROBLEMS: Final = (problems.STORE_UNAVAILABLE, problems.BUSY)
Records = Sequence[tuple[str, bytes | None]]


class ControlEvent(msgspec.Struct, frozen=True, gc=False):
    """What tells the job something of a user; on the events topic, under the user's id."""

    event_id: str
    user_id: str
    ts: int
    type: Literal["erase", "opt_out", "opt_in"]


_encoder = msgspec.json.Encoder()


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


def send_control(type_: Literal["erase", "opt_out", "opt_in"], user_id: str, now: int) -> None:
    """Tell the job something of a user, behind the user's earlier events, and wait for Kafka.

    Raises:
        ProblemError: See `send`.
    """
    event = ControlEvent(new_event_id(now), user_id, now, type_)
    topic = services().config.kafka.events_topic
    send(topic, lambda: [(user_id, _encoder.encode(event))])
