"""The vectors command on the real broker, and the job that switches to what it published."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from local.kafka_broker import KafkaBroker
from local.processes import PROJECT
from local.stack import Stack
from tests.integration.helpers import Pipeline, click, eventually, now_ms
from tests.integration.test_pipeline import QUICK, products
from udfs.query_encoder import SPACE
from udfs.schemas import SPACE_KEY, decode_product, encode_event

pytestmark = pytest.mark.timeout(240)
THINGS = ("mouse", "lamp", "mug", "chair", "shirt")


def read(kafka: KafkaBroker, topic: str) -> Iterator[tuple[int, str, bytes]]:
    """Every record from the first to the last: partition, key, value."""
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "test", "log_level": 0})
    try:
        for partition, end in kafka.end_offsets(topic).items():
            consumer.assign([TopicPartition(topic, partition, 0)])
            at = 0
            while at < end:
                message = consumer.poll(20)
                assert message is not None, f"{topic}[{partition}] ends at {at}, not at {end}"
                assert message.error() is None, message.error()
                at = message.offset() + 1
                yield partition, message.key().decode("latin-1"), message.value()
    finally:
        consumer.close()


def content(kafka: KafkaBroker, topic: str, space: str) -> dict[str, Any]:
    """The newest value of each product of a space; a product stands in one partition."""
    newest: dict[str, tuple[int, bytes]] = {}
    for partition, key, value in read(kafka, topic):
        if key == SPACE_KEY:
            continue
        product, _ = decode_product(key, value)
        if product.space == space:
            assert newest.get(key, (partition,))[0] == partition
            newest[key] = partition, value
    return {key: json.loads(value) for key, (_, value) in newest.items()}


def notices(kafka: KafkaBroker, topic: str) -> list[tuple[int, bool]]:
    return [
        (partition, json.loads(value)["complete"])
        for partition, key, value in read(kafka, topic)
        if key == SPACE_KEY
    ]


class Command:
    """The command with files and topic of its own."""

    def __init__(self, folder: Path, stack: Stack, topic: str, count: int) -> None:
        self.folder = folder
        self.stack = stack
        self.topic = topic
        self.catalogue = folder / "catalogue.jsonl"
        with self.catalogue.open("w") as file:
            for number in range(count):
                thing = f"{THINGS[number % len(THINGS)]} {number}"
                file.write(json.dumps({"product_id": f"p{number}", "title": thing}) + "\n")
        self.events = folder / "events.jsonl"
        with self.events.open("wb") as lines:
            for number in range(400):
                event = click(f"u{number // 8}", f"p{(number // 8 + number % 8) % 60}", ts=now_ms())
                lines.write(encode_event(event) + b"\n")

    def start(self, *more: str, **environment: str) -> subprocess.Popen[str]:
        """Start it; what it prints goes to a pipe."""
        command = [
            *(sys.executable, "-m", "job.vectors", "--catalogue", str(self.catalogue)),
            *("--events", str(self.events), "--work", str(self.folder / "work")),
            *("--bootstrap", self.stack.kafka.bootstrap, "--topic", self.topic, *more),
        ]
        return subprocess.Popen(
            command,
            cwd=PROJECT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, *more: str) -> dict[str, Any]:
        """Run it to its end; return the summary."""
        with self.start(*more) as process:
            out, _ = process.communicate(timeout=100)
        assert process.returncode == 0
        summary: dict[str, Any] = json.loads(out.splitlines()[-1])
        return summary

    def expected(self) -> dict[str, Any]:
        """What the topic must hold."""
        file = self.folder / "expected.jsonl"
        self.run("--output", str(file))
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        return {line["product_id"]: line for line in lines}


def test_the_job_switches_when_all_is_published_and_searches_still_work(
    stack: Stack, tmp_path: Path
) -> None:
    with Pipeline.create(stack, "vectors", *QUICK, partitions=3) as pipeline:
        topic = pipeline.topics["catalogue"]
        command = Command(tmp_path, stack, topic, 100)
        pipeline.publish(products(100), space="old")
        pipeline.submit(parallelism=2)
        pipeline.send([click("u0", f"p{number}") for number in range(3)])
        pipeline.wait_saved()
        eventually(lambda: in_space(pipeline, "u0", "old"), 60)
        # All products in the new space, and the old one is still searched.
        summary = command.run("--hold")
        space = summary["space"]
        assert space.startswith(f"{SPACE}+behaviour")
        assert content(stack.kafka, topic, space) == command.expected()
        assert sorted(notices(stack.kafka, topic)) == [(0, False), (1, False), (2, False)]
        pipeline.send([click("u0", "p3")])
        pipeline.wait_saved()
        eventually(lambda: in_space(pipeline, "u0", "old"), 60)
        # One command more: the notices, and nothing else.
        before = len(list(read(stack.kafka, topic)))
        assert command.run() == summary
        assert len(list(read(stack.kafka, topic))) == before + 3
        searched = click("searcher", None, "search", query="desk lamp")

        def switched() -> str:
            pipeline.send([click("u0", "p4")])
            return in_space(pipeline, "u0", space)

        eventually(switched, 60)
        pipeline.send([searched])
        eventually(lambda: in_space(pipeline, "searcher", space), 60)
        shown = pipeline.lists()["searcher"].product_ids
        assert sum(int(name[1:]) % len(THINGS) == 1 for name in shown[:10]) >= 8


def in_space(pipeline: Pipeline, user: str, space: str) -> str:
    found = pipeline.lists().get(user)
    if found is None:
        return f"{user} has no list"
    return "" if found.space == space else f"{user} has a list of {found.space}"


def test_a_killed_publication_is_finished_by_the_next(stack: Stack, tmp_path: Path) -> None:
    topic = "catalogue-killed"
    stack.kafka.create_topic(topic, 3, {"cleanup.policy": "compact"})
    command = Command(tmp_path, stack, topic, 20_000)
    expected = command.expected()
    # A short queue: the records go out slowly enough to stop the command between them.
    slowly = {"RECOMMENDER_KAFKA_PROPERTY_QUEUE_BUFFERING_MAX_MESSAGES": "60"}
    with command.start(**slowly) as process:
        while sum(stack.kafka.end_offsets(topic).values()) < 3000:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.02)
        process.kill()
    there = sum(stack.kafka.end_offsets(topic).values())
    assert there < 20_000
    assert not any(complete for _, complete in notices(stack.kafka, topic))
    summary = command.run()
    assert content(stack.kafka, topic, summary["space"]) == expected
    total = sum(stack.kafka.end_offsets(topic).values())
    assert total < there + 20_000  # it did not begin anew
    assert sorted(notices(stack.kafka, topic)).count((2, True)) == 1
