"""Reads compacted topics whole, from their beginning, and follows them: no group, no commits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)

from connectors.kafka_client import log_errors
from connectors.sparing_log import SparingLog
from udfs.ports import Record

logger = logging.getLogger(__name__)

# How often new partitions are looked for, and topics that could not be read.
_PARTITIONS_S: Final = 60.0
_RETRY_S: Final = 2.0
_ASK_S: Final = 5.0


class ReadInterruptedError(RuntimeError):
    """The task shall end while it reads."""


class CompactedTopics:
    """A consumer that is assigned all partitions of some topics; for one thread.

    It is patient and loud: while Kafka or a topic is away, :meth:`read` returns nothing, and an
    error is logged once a minute.

    Args:
        settings: librdkafka's, ``bootstrap.servers`` among them.
        topics: Their names.
        make_consumer: Makes the consumer from its settings; for tests.
        interrupted: Whether reading shall end.
        clock: Seconds of a steady clock; for tests.

    Raises:
        KafkaException: A setting is unknown or not valid.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        topics: Sequence[str],
        *,
        make_consumer: Callable[[dict[str, Any]], Any] = Consumer,
        interrupted: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._topics = topics
        self._interrupted = interrupted
        self._clock = clock
        self._log = SparingLog(logger)
        self._consumer = make_consumer(
            {
                "client.id": "recommender-products",
                "group.id": "recommender-products",
                "reconnect.backoff.max.ms": 2000,
                # What is fetched ahead of its reader; the default is 64 MiB.
                "queued.max.messages.kbytes": 32_768,
                # Errors come to `error_cb`; librdkafka would also print each one.
                "log_level": 2,
                "error_cb": log_errors(logger),
                **settings,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                # As Flink's source, which goes on where this has read to.
                "isolation.level": "read_uncommitted",
                # Tells that a partition is read to its end, also where compaction has removed the
                # last records.
                "enable.partition.eof": True,
            }
        )
        self._positions: dict[tuple[str, int], int] = {}
        # Topics whose partitions are not known yet; partitions that are not read to the end that
        # they had, by that end.
        self._unknown = set(topics)
        self._behind: dict[tuple[str, int], int] = {}
        self._look_s = self._clock()

    @property
    def caught_up(self) -> bool:
        """Whether all that stood there when reading began has been read; it stays true."""
        return not self._unknown and not self._behind

    def positions(self) -> dict[tuple[str, int], int]:
        """Return the offset that is read next, by topic and partition."""
        return dict(self._positions)

    def read(self, most: int = 2000, timeout_s: float = 0.5) -> list[Record]:
        """Return the next records of all partitions, in the order of each.

        Args:
            most: How many at most.
            timeout_s: How long to wait for so many, seconds; looking for partitions may take
                longer.

        Raises:
            ReadInterruptedError: Reading shall end.
        """
        if self._interrupted():
            msg = f"the task shall end while it reads {', '.join(self._topics)}"
            raise ReadInterruptedError(msg)
        now_s = self._clock()
        if now_s >= self._look_s:
            self._look_for_partitions()
            self._look_s = now_s + (_RETRY_S if self._unknown else _PARTITIONS_S)
        if not self._positions:
            # Nothing is assigned: it gives what the client has to say, such as a wrong password.
            self._consumer.poll(timeout_s)
            return []
        return list(self._records(self._consumer.consume(most, timeout_s)))

    def close(self) -> None:
        """Let go of the connections."""
        self._consumer.close()

    def _records(self, messages: Sequence[Any]) -> Iterator[Record]:
        for message in messages:
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                self._log(f"kafka {error.name()}", f"{message.topic()}: {error}")
                continue
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            position = offset if error is not None else offset + 1
            self._positions[topic, partition] = position
            end = self._behind.get((topic, partition))
            if end is not None and (error is not None or position >= end):
                del self._behind[topic, partition]
            if error is None:
                at_ms = message.timestamp()[1]
                yield Record(topic, message.key(), message.value(), partition, offset, at_ms)

    def _look_for_partitions(self) -> None:
        """Assign partitions that are new; those of a topic that is new must be caught up with."""
        for topic in self._topics:
            try:
                found = self._consumer.list_topics(topic, timeout=_ASK_S).topics[topic]
                if found.error is not None:
                    raise KafkaException(found.error)
                new = [
                    one for one in sorted(found.partitions) if (topic, one) not in self._positions
                ]
                ends = {
                    one: self._consumer.get_watermark_offsets(
                        TopicPartition(topic, one), timeout=_ASK_S
                    )
                    for one in new
                    if topic in self._unknown
                }
            except KafkaException as error:
                self._log(topic, f"topic {topic} cannot be read: {error}")
                continue
            for one, (low, high) in ends.items():
                if low < high:
                    self._behind[topic, one] = high
            self._unknown.discard(topic)
            self._positions.update(dict.fromkeys(((topic, one) for one in new), 0))
            if new:
                self._consumer.incremental_assign(
                    [TopicPartition(topic, one, OFFSET_BEGINNING) for one in new]
                )
