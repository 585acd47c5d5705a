"""The reader of whole topics, on a real Kafka."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from connectors.compacted_topic import CompactedTopics
from local.kafka_broker import KafkaBroker
from tests.integration.helpers import eventually

pytestmark = pytest.mark.timeout(120)
COMPACT = {"cleanup.policy": "compact"}


@pytest.fixture
def reader(kafka: KafkaBroker) -> Iterator[CompactedTopics]:
    made = CompactedTopics({"bootstrap.servers": kafka.bootstrap}, ["products", "related"])
    yield made
    made.close()


def read_whole(reader: CompactedTopics) -> dict[bytes | None, bytes | None]:
    found: dict[bytes | None, bytes | None] = {}
    deadline = time.monotonic() + 30
    while not reader.caught_up:
        assert time.monotonic() < deadline, reader.positions()
        found.update((one.key, one.value) for one in reader.read())
    return found


def test_topics_are_read_whole_and_followed(kafka: KafkaBroker, reader: CompactedTopics) -> None:
    # It waits for topics that are not there yet.
    assert reader.read(timeout_s=0.1) == []
    assert not reader.caught_up
    kafka.create_topic("products", 3, COMPACT)
    kafka.create_topic("related", 1, COMPACT)
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    expected = {b"p%d" % number: b"v%d" % number for number in range(5000)}
    for turn in (b"old", b""):
        for key, value in expected.items():
            producer.produce("products", turn or value, key)
    # What ends with the marker of a transaction has no record at its last offset.
    marking = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": "t"})
    marking.init_transactions()
    marking.begin_transaction()
    marking.produce("related", b"learned", b"p1")
    marking.commit_transaction()
    assert producer.flush(30) == 0

    found = read_whole(reader)
    assert found.pop(b"p1") in (b"v1", b"learned")
    expected.pop(b"p1")
    assert found == expected
    positions = reader.positions()
    assert sum(at for (topic, _), at in positions.items() if topic == "products") == 10_000
    assert positions["related", 0] in (1, 2)  # before or behind the marker
    assert len(positions) == 4

    producer.produce("products", None, b"p7", partition=1)
    producer.flush(30)
    followed = []

    def complaint() -> str:
        followed.extend(reader.read())
        return "" if followed else "nothing came"

    eventually(complaint, 10)
    assert [(one.key, one.value, one.partition) for one in followed] == [(b"p7", None, 1)]
    assert followed[0].offset == positions["products", 1]
    assert followed[0].timestamp_ms > 1_700_000_000_000


def test_it_waits_while_kafka_is_away_and_goes_on(
    kafka: KafkaBroker, caplog: pytest.LogCaptureFixture
) -> None:
    port = kafka.bootstrap
    away = CompactedTopics({"bootstrap.servers": "127.0.0.1:1"}, ["products"])
    assert away.read(timeout_s=0.1) == []
    assert not away.caught_up
    away.close()
    assert "topic products cannot be read" in caplog.text
    again = CompactedTopics({"bootstrap.servers": port}, ["products"])
    assert len(read_whole(again)) == 5000
    again.close()
