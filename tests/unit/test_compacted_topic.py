"""The reader of compacted topics, on a Kafka that stands in this process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from connectors.compacted_topic import CompactedTopics, ReadInterruptedError
from udfs.ports import Record

Partitions = dict[tuple[str, int], list[int]]


class Kafka:
    """Offsets by topic and partition; ``ends`` may lie above, where compaction removed records."""

    def __init__(self, partitions: Partitions) -> None:
        self.partitions = partitions
        self.ends = {where: (offsets or [-1])[-1] + 1 for where, offsets in partitions.items()}
        self.away = False
        self.now_s = 0.0
        self.closed = False
        self.settings: dict[str, Any] = {}
        self._waiting: list[Any] = []
        self._eof: set[tuple[str, int]] = set()

    def __call__(self, settings: dict[str, Any]) -> Kafka:
        self.settings = settings
        return self

    def list_topics(self, topic: str, timeout: float) -> Any:  # noqa: ARG002
        if self.away:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        there = [partition for name, partition in self.partitions if name == topic]
        error = None if there else KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
        found = SimpleNamespace(error=error, partitions=dict.fromkeys(there))
        return SimpleNamespace(topics={topic: found})

    def get_watermark_offsets(self, one: Any, timeout: float) -> tuple[int, int]:  # noqa: ARG002
        return 0, self.ends[one.topic, one.partition]

    def incremental_assign(self, partitions: list[Any]) -> None:
        for one in partitions:
            for offset in self.partitions[one.topic, one.partition]:
                self.add(one.topic, one.partition, offset)
            self._eof.add((one.topic, one.partition))

    def add(self, topic: str, partition: int, offset: int, error: Any = None) -> None:
        self._waiting.append(
            SimpleNamespace(
                error=lambda: error,
                topic=lambda: topic,
                partition=lambda: partition,
                offset=lambda: offset,
                key=lambda: b"k",
                value=lambda: b"v",
                timestamp=lambda: (1, 1000 + offset),
            )
        )

    def poll(self, timeout: float) -> None:
        pass

    def consume(self, most: int, timeout: float) -> list[Any]:  # noqa: ARG002
        if not self._waiting:
            for where in sorted(self._eof):
                self.add(*where, self.ends[where], KafkaError(KafkaError._PARTITION_EOF))
            self._eof.clear()
        found, self._waiting = self._waiting[:most], self._waiting[most:]
        return found

    def close(self) -> None:
        self.closed = True


def topics(kafka: Kafka, *names: str, **more: Any) -> CompactedTopics:
    return CompactedTopics({"a": 1}, names, make_consumer=kafka, clock=lambda: kafka.now_s, **more)


def caught_up(reader: CompactedTopics) -> bool:
    return reader.caught_up


def test_all_partitions_are_read_from_their_beginning() -> None:
    kafka = Kafka({("p", 0): [0, 2], ("p", 1): [1], ("r", 0): [], ("other", 0): [0]})
    reader = topics(kafka, "p", "r")
    assert not caught_up(reader)
    assert reader.read(2) == [
        Record("p", b"k", b"v", 0, 0, 1000),
        Record("p", b"k", b"v", 0, 2, 1002),
    ]
    assert not caught_up(reader)
    assert [one.partition for one in reader.read()] == [1]
    assert caught_up(reader)
    assert reader.read() == []
    assert reader.positions() == {("p", 0): 3, ("p", 1): 2, ("r", 0): 0}
    assert kafka.settings["a"] == 1
    reader.close()
    assert kafka.closed


def test_it_has_caught_up_where_compaction_removed_the_last_records() -> None:
    kafka = Kafka({("p", 0): [0]})
    kafka.ends["p", 0] = 5
    reader = topics(kafka, "p")
    assert len(reader.read()) == 1
    assert not caught_up(reader)
    assert reader.read() == []
    assert caught_up(reader)
    assert reader.positions() == {("p", 0): 5}


def test_it_waits_for_kafka_and_for_a_topic_loudly(caplog: pytest.LogCaptureFixture) -> None:
    kafka = Kafka({("p", 0): [0]})
    kafka.away = True
    reader = topics(kafka, "p", "r")
    assert reader.read() == []
    kafka.away = False
    assert reader.read() == []  # not asked again yet
    kafka.now_s = 2
    assert len(reader.read()) == 1
    assert not caught_up(reader)
    assert "topic p cannot be read" in caplog.text
    assert "topic r cannot be read" in caplog.text
    kafka.partitions["r", 0] = []
    kafka.ends["r", 0] = 0
    kafka.now_s = 4
    reader.read()
    assert caught_up(reader)


def test_a_new_partition_is_found_and_read() -> None:
    kafka = Kafka({("p", 0): [0]})
    reader = topics(kafka, "p")
    reader.read()
    kafka.partitions["p", 1] = [0, 1]
    kafka.ends["p", 1] = 2
    assert reader.read() == []
    kafka.now_s = 60
    assert [one.partition for one in reader.read()] == [1, 1]
    assert caught_up(reader)
    assert reader.positions()["p", 1] == 2


def test_an_error_is_logged_and_reading_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    kafka = Kafka({("p", 0): [0]})
    reader = topics(kafka, "p")
    reader.read()
    kafka.add("p", 0, -1001, KafkaError(KafkaError._TRANSPORT))
    kafka.add("p", 0, 1)
    assert [one.offset for one in reader.read()] == [1]
    assert "_TRANSPORT" in caplog.text


def test_it_ends_when_it_is_interrupted() -> None:
    reader = topics(Kafka({}), "p", interrupted=lambda: True)
    with pytest.raises(ReadInterruptedError):
        reader.read()
