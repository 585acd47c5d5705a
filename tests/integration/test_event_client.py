"""The event client on a real broker: outages, exits, forks; and the example shop."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, TopicPartition

from connectors.event_client import Counts, EventClient, make_event
from connectors.examples.flask_shop import create_app
from local.kafka_broker import KafkaBroker
from local.processes import PROJECT
from tests.integration.helpers import now_ms
from udfs.schemas import Event, decode_event

PARTITIONS = 3
_numbers = itertools.count()


@pytest.fixture
def topic(kafka: KafkaBroker) -> str:
    name = f"client-{next(_numbers)}"
    kafka.create_topic(name, PARTITIONS)
    return name


def read(kafka: KafkaBroker, topic: str) -> Iterator[tuple[int, Event]]:
    """Every record from the first to the last, by the job's own decoder, with its partition."""
    ends = kafka.end_offsets(topic)
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "test", "log_level": 0})
    try:
        for partition, end in ends.items():
            consumer.assign([TopicPartition(topic, partition, 0)])
            at = 0
            while at < end:
                message = consumer.poll(20)
                assert message is not None, f"{topic}[{partition}] ends at {at}, not at {end}"
                assert message.error() is None, message.error()
                at = message.offset() + 1
                key = message.key().decode("latin-1")
                yield partition, decode_event(key, message.value(), now_ms())
    finally:
        consumer.close()


def test_events_arrive_valid_in_order_and_a_user_on_one_partition(
    kafka: KafkaBroker, topic: str
) -> None:
    begin = now_ms()
    with EventClient(kafka.bootstrap, topic) as client:
        for number in range(600):
            client.track(f"ü{number % 12}", "click", product_id=f"p{number}", session_id="s")
        client.track("ü0", "search", query="kabellose Maus")
    arrived = list(read(kafka, topic))

    assert client.counts == Counts(sent=601, delivered=601)
    assert len({event.event_id for _, event in arrived}) == 601
    assert all(begin <= event.ts <= now_ms() for _, event in arrived)
    for user in {event.user_id for _, event in arrived}:
        own = [(at, event) for at, event in arrived if event.user_id == user]
        assert len({at for at, _ in own}) == 1
        clicks = [int((event.product_id or "")[1:]) for _, event in own if event.type == "click"]
        assert clicks == sorted(clicks)
        assert len(clicks) == 50


def test_while_the_broker_is_away_events_wait_and_then_arrive_once(
    kafka: KafkaBroker, topic: str
) -> None:
    with EventClient(kafka.bootstrap, topic, max_events=700, flush_timeout_s=60) as client:
        client.track("u", "click", product_id="before")
        assert client.flush(30) == 0
        kafka.kill()
        try:
            # Nothing brings the broker back meanwhile: that these return is that they do not wait.
            for number in range(700):
                client.track("u", "click", product_id=f"p{number}")
            full = make_event({"user_id": "u", "type": "click", "product_id": "p"}, now_ms())
            assert not client.offer(full)
            client.track("u", "click", product_id="p")
            assert client.counts == Counts(sent=701, delivered=1, dropped=2)
        finally:
            kafka.start()
        assert client.flush(60) == 0
        client.track("u", "click", product_id="after")

    assert client.counts == Counts(sent=702, delivered=702, dropped=2)
    arrived = [event.product_id for _, event in read(kafka, topic)]
    assert arrived == ["before", *(f"p{number}" for number in range(700)), "after"]


def test_a_topic_that_is_not_there_fails_and_is_counted(kafka: KafkaBroker) -> None:
    properties: dict[str, str | int | bool] = {"topic.metadata.propagation.max.ms": 500}
    with EventClient(kafka.bootstrap, "mistyped", properties=properties) as client:
        client.track("u", "click", product_id="p")
        assert client.flush(30) == 0

        assert client.counts == Counts(sent=1, failed=1)


SENDER = """
import os, signal, sys, time
from connectors.event_client import EventClient

bootstrap, topic, how = sys.argv[1:]
client = EventClient(bootstrap, topic, properties={"linger.ms": 2000})
if how == "fork":
    # What gunicorn does with preload_app: the client is made before the workers are.
    client.track("parent", "click", product_id="before")
    if os.fork() == 0:
        for number in range(200):
            client.track("child", "click", product_id=str(number))
        sys.exit()
for number in range(200):
    client.track("parent", "click", product_id=str(number))
if how == "fork":
    os.wait()
elif how == "sigterm":
    # As gunicorn's workers and most servers do; without a handler Python runs no exit code.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    print("ready", flush=True)
    time.sleep(600)
elif how == "exception":
    raise RuntimeError("the program ends by an error")
"""


@pytest.mark.parametrize("how", ["exit", "exception", "sigterm", "fork"])
def test_what_is_in_the_buffer_when_the_process_ends_is_sent(
    kafka: KafkaBroker, topic: str, how: str
) -> None:
    command = [sys.executable, "-c", SENDER, kafka.bootstrap, topic, how]
    with subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        if how == "sigterm":
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == (1 if how == "exception" else 0)

    sent = Counter((event.user_id, event.product_id) for _, event in read(kafka, topic))
    expected = Counter({("parent", str(number)): 1 for number in range(200)})
    if how == "fork":
        expected[("parent", "before")] = 1
        expected.update({("child", str(number)): 1 for number in range(200)})
    assert sent == expected


def test_the_example_shop_sends_what_its_visitor_does(kafka: KafkaBroker, topic: str) -> None:
    with EventClient(kafka.bootstrap, topic) as events:
        shop = create_app(events).test_client()
        shop.get("/products/B1")
        shop.get("/search?q=wireless+mouse")
        shop.get("/search?q=+")
        shop.post("/cart/B1")
        assert shop.post("/checkout").get_json() == {"bought": ["B1"]}

    assert events.counts == Counts(sent=4, delivered=4)
    arrived = [event for _, event in read(kafka, topic)]
    assert [(one.type, one.product_id or one.query) for one in arrived] == [
        ("click", "B1"),
        ("search", "wireless mouse"),
        ("add_to_cart", "B1"),
        ("purchase", "B1"),
    ]
    assert len({one.user_id for one in arrived}) == 1
