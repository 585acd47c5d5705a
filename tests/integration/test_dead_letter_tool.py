"""The dead-letter command on a real broker."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from connectors.dead_letter_tool import Kafka, Place, main, mark_key
from connectors.dead_letters import to_row
from local.kafka_broker import KafkaBroker
from tests.integration.helpers import now_ms
from udfs.schemas import DeadLetter, Origin, Reason

Run = Callable[..., tuple[int, str]]
_numbers = itertools.count()


class Topics:
    """An events, a catalogue and a dead-letters topic of the test's own."""

    def __init__(self, kafka: KafkaBroker) -> None:
        number = next(_numbers)
        self.kafka = kafka
        self.events = f"events-{number}"
        self.catalogue = f"catalogue-{number}"
        self.letters = f"letters-{number}"
        kafka.create_topic(self.events, 2)
        kafka.create_topic(self.catalogue, 1, {"cleanup.policy": "compact"})
        kafka.create_topic(self.letters, 2)
        self._producer = Producer(
            {"bootstrap.servers": kafka.bootstrap, "acks": "all", "message.max.bytes": 4_000_000}
        )

    def send(self, topic: str, key: str, value: bytes | None, partition: int = 0) -> None:
        self._producer.produce(topic, value, key.encode("latin-1"), partition)
        assert self._producer.flush(30) == 0

    def refuse(
        self,
        topic: str,
        key: str,
        value: bytes | None,
        origin: Origin,
        reason: Reason = Reason.NOT_JSON,
        partition: int = 0,
    ) -> None:
        """Write a dead letter as the job does."""
        letter_key, letter_value, headers = to_row(
            DeadLetter(topic, key, value, reason, "why", origin)
        )
        self._producer.produce(
            self.letters, letter_value, letter_key, partition, headers=list(headers.items())
        )
        assert self._producer.flush(30) == 0

    def times(self, topic: str) -> dict[bytes | None, int]:
        """Kafka time of the newest record of each key, epoch milliseconds."""
        found = {}
        consumer = Consumer(
            {
                "bootstrap.servers": self.kafka.bootstrap,
                "group.id": "t",
                "enable.partition.eof": True,
            }
        )
        try:
            for partition in self.kafka.end_offsets(topic):
                consumer.assign([TopicPartition(topic, partition, 0)])
                while (message := consumer.poll(20)) is not None and message.error() is None:
                    found[message.key()] = message.timestamp()[1]
        finally:
            consumer.close()
        return found

    def read(self, topic: str) -> list[tuple[int, bytes | None, bytes | None]]:
        """(partition, key, value) of every record."""
        found = []
        consumer = Consumer(
            {
                "bootstrap.servers": self.kafka.bootstrap,
                "group.id": "test",
                "enable.partition.eof": True,
            }
        )
        try:
            for partition in self.kafka.end_offsets(topic):
                consumer.assign([TopicPartition(topic, partition, 0)])
                while (message := consumer.poll(20)) is not None and message.error() is None:
                    found.append((partition, message.key(), message.value()))
        finally:
            consumer.close()
        return found


@pytest.fixture
def topics(kafka: KafkaBroker) -> Topics:
    return Topics(kafka)


@pytest.fixture
def run(topics: Topics, capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: str) -> tuple[int, str]:
        where = ["--bootstrap", topics.kafka.bootstrap, "--dead-letters-topic", topics.letters]
        status = main([*where, *arguments])
        output = capsys.readouterr()
        return status, output.out + output.err

    return command


def test_letters_are_listed_with_filters_and_shown_whole(topics: Topics, run: Run) -> None:
    for number in range(3):
        topics.refuse(topics.events, f"u{number}", b"{broken", Origin(0, number))
    topics.refuse(topics.events, "u9", b"\xff\x00", Origin(1, 7), Reason.TOO_LARGE, partition=1)
    topics.refuse(topics.catalogue, "p", None, Origin(0, 5), Reason.MISSING_KEY, partition=1)

    status, output = run("list")
    assert status == 0
    assert len(output.splitlines()) == 6
    assert "5 dead letters: not_json 3, too_large 1, missing_key 1" in output

    _, newest = run("list", "--limit", "1", "--reason", "not_json")
    assert "'u2'" in newest
    assert "3 dead letters: not_json 3" in newest
    assert "1 dead letters: missing_key 1" in run("list", "--topic", topics.catalogue)[1]
    assert "5 dead letters" in run("list", "--since", "1h")[1]
    assert "0 dead letters" in run("list", "--since", "2100-01-01")[1]

    status, shown = run("show", "1/0")
    assert status == 0
    assert f"too_large      {topics.events} 1/7" in shown
    assert "value   base64 /wA=" in shown
    assert "value   none" in run("show", "1/1")[1]
    status, output = run("show", "1/2")
    assert status == 1
    assert f"{topics.letters} has no record at 1/2" in output


def test_a_replay_sends_the_same_bytes_to_the_same_partition_once(topics: Topics, run: Run) -> None:
    topics.refuse(topics.events, "u1", b"\xff{", Origin(1, 3))
    topics.refuse(topics.events, "", None, Origin(0, 4), Reason.MISSING_KEY)
    topics.refuse(topics.events, "u2", b"{}", Origin(0, 5), Reason.TOO_LARGE, partition=1)

    assert (
        "would send 2 of 2"
        in run(
            "replay",
            "--topic",
            topics.events,
            "--limit",
            "2",
            "--reason",
            "not_json",
            "--reason",
            "missing_key",
            "--dry-run",
        )[1]
    )
    assert topics.read(topics.events) == []

    assert "sent 1 of 1" in run("replay", "--reason", "not_json")[1]
    assert topics.read(topics.events) == [(1, b"u1", b"\xff{")]

    status, output = run("replay", "--all")
    assert status == 0
    assert "left 1: replayed before" in output
    assert "sent 2 of 3" in output
    expected = {(1, b"u1", b"\xff{"), (0, b"", None), (0, b"u2", b"{}")}
    assert set(topics.read(topics.events)) == expected

    assert "sent 0 of 3" in run("replay", "--all")[1]
    assert len(topics.read(topics.events)) == 3
    assert run("list")[1].count("  replayed\n") == 3

    assert "sent 1 of 1" in run("replay", "--at", "1/0", "--again")[1]
    assert len(topics.read(topics.events)) == 4


def test_a_record_comes_back_with_the_time_that_it_had(topics: Topics, run: Run) -> None:
    sent_ms = now_ms() - 3_600_000
    topics.refuse(topics.events, "u1", b"x", Origin(0, 1, sent_ms))

    assert "sent 1 of 1" in run("replay", "--all")[1]

    assert topics.times(topics.events) == {b"u1": sent_ms}
    assert "time    " in run("show", "0/0")[1]


def test_a_letter_of_the_largest_record_is_taken_by_a_default_topic_and_not_sent_back(
    topics: Topics, run: Run
) -> None:
    topics.refuse(topics.events, "u1", b"x" * 1_048_398, Origin(0, 1), Reason.TOO_LARGE)
    topics.refuse("cassandra:products", "p", b"{}", Origin(-1, -1), Reason.REFUSED)
    topics.refuse(topics.events, "u2", b"x" * 1_040_000, Origin(0, 2), Reason.TOO_LARGE)

    assert "cut from 1,048,400 with the key" in run("list")[1]
    output = run("replay", "--all")[1]

    assert "left 1: cut: the record is not whole in the letter" in output
    assert "left 1: not from Kafka (cassandra:products)" in output
    assert "sent 1 of 3" in output
    assert topics.read(topics.events) == [(0, b"u2", b"x" * 1_040_000)]


def test_a_letter_that_the_restarted_job_wrote_twice_is_one(topics: Topics, run: Run) -> None:
    for partition in (0, 1):
        topics.refuse(topics.events, "u", b"x", Origin(0, 1), partition=partition)

    output = run("replay", "--all")[1]

    assert "left 1: copies of one record" in output
    assert len(topics.read(topics.events)) == 1


def test_a_product_that_was_published_again_since_stays_as_it_is(topics: Topics, run: Run) -> None:
    topics.send(topics.catalogue, "p1", b"refused")
    topics.send(topics.catalogue, "p2", b"refused")
    topics.refuse(topics.catalogue, "p1", b"refused", Origin(0, 0))
    topics.refuse(topics.catalogue, "p2", b"refused", Origin(0, 1))
    topics.send(topics.catalogue, "p1", b"mended")

    output = run("replay", "--all")[1]

    assert "left 1: superseded" in output
    assert "sent 1 of 2" in output
    newest = {key: value for _, key, value in topics.read(topics.catalogue)}
    assert newest == {b"p1": b"mended", b"p2": b"refused"}


def test_a_replay_that_was_killed_half_way_has_sent_nothing(topics: Topics, run: Run) -> None:
    topics.refuse(topics.events, "u", b"x", Origin(0, 1))
    first = Kafka({"bootstrap.servers": topics.kafka.bootstrap}, topics.letters)
    first.create_log()
    producer = first.transactions()
    # What `Kafka.send` does, up to where the process dies.
    producer.begin_transaction()
    mark = (first.topic_ids([topics.events])[topics.events], 0, 1)
    producer.produce(first.log_topic, b"{}", mark_key(mark))
    assert producer.flush(30) == 0

    assert "sent 1 of 1" in run("replay", "--all")[1]

    # The other one, had it only been slow, is fenced off.
    with pytest.raises(KafkaException):
        producer.commit_transaction(30)
    assert "left 1: replayed before" in run("replay", "--all")[1]
    assert len(topics.read(topics.events)) == 1


def test_more_letters_than_one_transaction_holds(topics: Topics, run: Run) -> None:
    for number in range(1100):
        letter_key, value, headers = to_row(
            DeadLetter(topics.events, f"u{number}", b"x", Reason.NOT_JSON, "", Origin(0, number))
        )
        topics._producer.produce(topics.letters, value, letter_key, headers=list(headers.items()))
    assert topics._producer.flush(30) == 0

    assert "sent 1100 of 1100" in run("replay", "--all")[1]

    assert [key for _, key, _ in topics.read(topics.events)] == [
        f"u{number}".encode() for number in range(1100)
    ]


def test_what_is_no_letter_and_topics_that_are_gone_are_left(topics: Topics, run: Run) -> None:
    topics.send(topics.letters, "stranger", b"x")
    topics.refuse("gone", "u", b"x", Origin(0, 1))

    output = run("replay", "--all")[1]

    assert "left out: the record at 0/0 has no header" in output
    assert "left 1: topic gone is not there" in output
    assert (
        Kafka({"bootstrap.servers": topics.kafka.bootstrap}, topics.letters)
        .letter(Place(0, 1))
        .topic
        == "gone"
    )


def test_a_topic_that_is_not_there_is_named(kafka: KafkaBroker, run: Run) -> None:
    status = main(["--bootstrap", kafka.bootstrap, "--dead-letters-topic", "nowhere", "list"])

    assert status == 1
