"""Publishes many records to a compacted topic, acknowledged, and can be cut off.

How far a publication came is kept in a file, one for each topic; a second start goes on behind what
Kafka has acknowledged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
from confluent_kafka import KafkaException, Producer, TopicCollection
from confluent_kafka.admin import AdminClient

from connectors.kafka_client import KafkaClientOptions, Refusal, RefusedError, reach
from udfs.schemas import SPACE_KEY, SpaceNotice, encode_space_notice

_SAVE_EVERY_S: Final = 1.0
_POLL_S: Final = 0.1
_NOT_ACKNOWLEDGED: Final = "Kafka did not acknowledge"


class PublishError(RuntimeError):
    """Not everything is in Kafka; what is, is written down, and a second start goes on from it."""


class Progress(msgspec.Struct):
    """How far the publication of a content to a topic came."""

    content: str
    """Names all records and their order."""
    acknowledged: int = 0
    """The first so many records are in Kafka."""


class TopicPublisher:
    """Publishes to one topic.

    Args:
        options: Where Kafka is.
        topic: The topic.
        timeout_s: How long a record may take to be acknowledged, seconds.
        make_producer: Makes the producer from its settings; for tests.
        make_admin: Makes the admin client from its settings; for tests.
    """

    def __init__(
        self,
        options: KafkaClientOptions,
        topic: str,
        *,
        timeout_s: float = 120.0,
        make_producer: Any = Producer,
        make_admin: Any = AdminClient,
    ) -> None:
        self._topic = topic
        self._timeout_s = timeout_s
        settings = {
            "bootstrap.servers": options.bootstrap,
            "client.id": "recommender-publisher",
            "log_level": 2,
            **options.properties,
        }
        self._refusal = Refusal()
        self._admin = make_admin({**settings, "error_cb": self._refusal})
        self._producer = make_producer(
            {
                **settings,
                "linger.ms": 20,
                # As the Java clients choose the partition: a product stays in its own.
                "partitioner": "murmur2_random",
                "enable.idempotence": True,
                "message.timeout.ms": round(timeout_s * 1000),
            }
        )

    def publish(
        self,
        content: str,
        records: Iterable[tuple[str, bytes | None]],
        folder: Path,
        told: Callable[[int], None] = lambda _done: None,
    ) -> None:
        """Publish records, each in the partition of its key.

        Args:
            content: Names all records and their order.
            records: Keys and values; None deletes.
            folder: Where the progress is kept; made where it is not there.
            told: Told how many of the records are acknowledged.

        Raises:
            PublishError: Not everything is acknowledged.
        """
        topic_id, _ = self._describe()
        file = folder / f"progress-{topic_id}.json"
        progress = _known(file, content)
        _save(file, progress)
        delivery = _Delivery(progress.acknowledged)
        try:
            self._send(records, delivery, progress, file, told)
            file.unlink(missing_ok=True)
        except (KafkaException, BufferError) as error:
            raise PublishError(str(error)) from error
        finally:
            self._stop()
            progress.acknowledged = delivery.done
            if file.exists():
                _save(file, progress)

    def announce(self, space: str, *, force: bool = False) -> int:
        """Say in every partition of the catalogue topic that a space is published whole.

        Args:
            space: Name of the space.
            force: Whether the job switches to it however few products it has.

        Returns:
            The number of partitions.

        Raises:
            PublishError: Not every partition has it.
        """
        _, partitions = self._describe()
        now_ms = time.time_ns() // 1_000_000
        notice = SpaceNotice(space, now_ms, partitions, complete=True, force=force)
        value = encode_space_notice(notice)
        delivery = _Delivery(0)
        try:
            for partition in range(partitions):
                self._produce(SPACE_KEY, value, delivery, partition, partition=partition)
            self._wait(delivery, partitions)
        except KafkaException as error:
            raise PublishError(str(error)) from error
        finally:
            self._stop()
        return partitions

    def _describe(self) -> tuple[str, int]:
        """Id of the topic and number of its partitions."""
        try:
            reach(self._admin, self._refusal, self._timeout_s)
            futures = self._admin.describe_topics(
                TopicCollection([self._topic]), request_timeout=self._timeout_s
            )
            found = futures[self._topic].result()
        except KafkaException as error:
            msg = f"topic {self._topic}: {error.args[0].str()}"
            raise PublishError(msg) from error
        except RefusedError as error:
            raise PublishError(str(error)) from error
        # Its text may hold a slash.
        return str(found.topic_id).replace("/", "_"), len(found.partitions)

    def _stop(self) -> None:
        # Nothing of a publication that was cut off shall arrive later, behind another one.
        self._producer.purge()
        self._producer.flush(1.0)

    def _send(
        self,
        records: Iterable[tuple[str, bytes | None]],
        delivery: _Delivery,
        progress: Progress,
        file: Path,
        told: Callable[[int], None],
    ) -> None:
        saved = time.monotonic()
        number = -1
        for number, (key, value) in enumerate(records):
            if number < progress.acknowledged:
                continue
            self._produce(key, value, delivery, number)
            delivery.check()
            if time.monotonic() - saved > _SAVE_EVERY_S:
                saved = time.monotonic()
                told(delivery.done)
                _save(file, msgspec.structs.replace(progress, acknowledged=delivery.done))
        self._wait(delivery, number + 1)
        told(delivery.done)

    def _produce(
        self, key: str, value: bytes | None, delivery: _Delivery, number: int, **where: int
    ) -> None:
        def delivered(error: Any, _message: Any) -> None:
            delivery.add(number, error)

        while True:
            try:
                self._producer.produce(
                    self._topic, value, key.encode(), on_delivery=delivered, **where
                )
                break
            except BufferError:  # the queue is full: wait until some are acknowledged
                self._producer.poll(_POLL_S)
                delivery.check()
        self._producer.poll(0)

    def _wait(self, delivery: _Delivery, count: int) -> None:
        # A little longer than the records' own limit, whose report says more.
        deadline = time.monotonic() + self._timeout_s + 5
        while delivery.done < count:
            self._producer.poll(_POLL_S)
            delivery.check()
            if time.monotonic() > deadline:
                msg = f"{_NOT_ACKNOWLEDGED} {count - delivery.done} records"
                raise PublishError(msg)


class _Delivery:
    """Which records are acknowledged: all before ``done``, and some behind it."""

    def __init__(self, done: int) -> None:
        self.done = done
        self._beyond: set[int] = set()
        self._error = ""

    def add(self, number: int, error: Any) -> None:
        if error is not None:
            self._error = self._error or str(error)
            return
        self._beyond.add(number)
        while self.done in self._beyond:
            self._beyond.remove(self.done)
            self.done += 1

    def check(self) -> None:
        if self._error:
            msg = f"{_NOT_ACKNOWLEDGED} a record: {self._error}"
            raise PublishError(msg)


def _known(file: Path, content: str) -> Progress:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        try:
            progress = msgspec.json.decode(file.read_bytes(), type=Progress)
        except msgspec.MsgspecError as error:
            msg = f"{file}: {error}; remove it to publish from the beginning"
            raise PublishError(msg) from error
        if progress.content == content:
            return progress
    # Another content was on its way: what of it is there is replaced.
    return Progress(content)


def _save(file: Path, progress: Progress) -> None:
    part = file.with_name(f".part-{file.name}")
    part.write_bytes(msgspec.json.encode(progress))
    part.replace(file)
