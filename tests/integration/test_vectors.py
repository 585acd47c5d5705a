"""The vectors command and an announced space on the real broker, and the job that reads both."""

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
from udfs.schemas import encode_event

pytestmark = pytest.mark.timeout(240)
THINGS = ("mouse", "lamp", "mug", "chair", "shirt")


def read(kafka: KafkaBroker, topic: str) -> Iterator[tuple[int, str, bytes | None]]:
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


def content(kafka: KafkaBroker, topic: str) -> dict[str, Any]:
    """The newest value of each product; it stands in one partition."""
    newest: dict[str, tuple[int, bytes | None]] = {}
    for partition, key, value in read(kafka, topic):
        assert newest.get(key, (partition,))[0] == partition
        newest[key] = partition, value
    return {key: json.loads(value) for key, (_, value) in newest.items() if value is not None}


class Command:
    """The command with files and topic of its own."""

    def __init__(self, folder: Path, stack: Stack, catalogue: str, topic: str, count: int) -> None:
        self.folder = folder
        self.stack = stack
        self.topics = {
            "RECOMMENDER_KAFKA_CATALOGUE_TOPIC": catalogue,
            "RECOMMENDER_KAFKA_RELATED_TOPIC": topic,
        }
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
            *("--bootstrap", self.stack.kafka.bootstrap, *more),
        ]
        return subprocess.Popen(
            command,
            cwd=PROJECT,
            env={**os.environ, **self.topics, **environment},
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


def test_the_job_ranks_by_what_was_learned_and_switches_when_a_space_is_announced(
    stack: Stack, tmp_path: Path
) -> None:
    with Pipeline.create(stack, "vectors", *QUICK, partitions=3) as pipeline:
        catalogue, related = pipeline.topics["catalogue"], pipeline.topics["related"]
        command = Command(tmp_path, stack, catalogue, related, 100)
        pipeline.submit(parallelism=2)
        summary = command.run("--publish-catalogue")
        assert summary["products"] == 100
        assert content(stack.kafka, catalogue).keys() == {f"p{number}" for number in range(100)}
        assert content(stack.kafka, related) == command.expected()
        pipeline.wait_metric("catalogue_size", 100)
        pipeline.send([click("u0", "p5"), click("searcher", None, "search", query="desk lamp")])
        pipeline.wait_saved()
        eventually(lambda: in_space(pipeline, "searcher", SPACE), 60)
        shown = pipeline.lists()["searcher"].product_ids
        assert sum(int(name[1:]) % len(THINGS) == 1 for name in shown[:10]) >= 8
        # What followed p5 in the log, not what is called like it.
        follow = sorted(command.expected()["p5"]["related"].items(), key=lambda one: -one[1])
        best = [name for name, _ in follow if name != "p5"][:5]
        assert len({*best} & {*pipeline.lists()["u0"].product_ids[:10]}) >= 4
        # A space of the shop's own changes nothing until it is announced.
        pipeline.publish(products(100), space="own")
        pipeline.send([click("u0", "p6")])
        pipeline.wait_saved()
        eventually(lambda: in_space(pipeline, "u0", SPACE), 60)
        subprocess.run(
            [sys.executable, "-m", "connectors.space_tool", "announce", "own"],
            cwd=PROJECT,
            env={
                **os.environ,
                **command.topics,
                "RECOMMENDER_KAFKA_BOOTSTRAP": stack.kafka.bootstrap,
            },
            check=True,
        )

        def switched() -> str:
            pipeline.send([click("u0", "p4")])
            return in_space(pipeline, "u0", "own")

        eventually(switched, 60)


def in_space(pipeline: Pipeline, user: str, space: str) -> str:
    found = pipeline.lists().get(user)
    if found is None:
        return f"{user} has no list"
    return "" if found.space == space else f"{user} has a list of {found.space}"


def test_a_killed_publication_is_finished_by_the_next(stack: Stack, tmp_path: Path) -> None:
    topic = "related-killed"
    stack.kafka.create_topic(topic, 3, {"cleanup.policy": "compact"})
    command = Command(tmp_path, stack, "none", topic, 20_000)
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
    command.run()
    assert content(stack.kafka, topic) == expected
    total = sum(stack.kafka.end_offsets(topic).values())
    assert total < there + 20_000  # it did not begin anew
