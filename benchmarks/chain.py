"""Contestant (b): a chain of Python microservices, one process a step, Kafka topics between them.

State in memory, msgspec for JSON, batches of records from Kafka, ``execute_async`` with a bounded
number in flight, offsets committed after the work: what a good engineer would write without Flink.
Nothing of it survives a crash: the vectors are gone with the process.
"""

from __future__ import annotations

import argparse
import base64
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from cassandra import ConsistencyLevel
from cassandra.cluster import Cluster
from confluent_kafka import Consumer, Producer

LIST_LENGTH = 20
DECAY = 0.8
BATCH = 500
IN_FLIGHT = 256
STEPS = ("embed", "recommend", "save")


def consume(given: argparse.Namespace, topic: str, handle: Callable[[list[Any]], None]) -> None:
    """Call ``handle`` with batches of a topic's values, then commit, for ever."""
    consumer = Consumer(
        {
            "bootstrap.servers": given.bootstrap,
            "group.id": f"{given.prefix}-{topic}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([topic])
    while True:
        messages = [m for m in consumer.consume(BATCH, timeout=0.2) if m.error() is None]
        if messages:
            handle([message.value() for message in messages])
            consumer.commit(asynchronous=True)


def read_catalogue(given: argparse.Namespace) -> tuple[list[str], Any]:
    """Read the catalogue topic to its end: ids and matrix (n, d)."""
    consumer = Consumer(
        {
            "bootstrap.servers": given.bootstrap,
            "group.id": f"{given.prefix}-catalogue-{time.time_ns()}",
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([given.catalogue])
    found: dict[str, Any] = {}
    quiet = 0
    while quiet < 5 or not found:
        messages = consumer.consume(BATCH, timeout=1.0)
        quiet = 0 if messages else quiet + 1
        for message in messages:
            product = msgspec.json.decode(message.value())
            raw = base64.b64decode(product["embedding"])
            found[product["product_id"]] = np.frombuffer(raw, dtype="<f4")
    consumer.close()
    return list(found), np.array(list(found.values()))


def produce(producer: Any, topic: str, key: str, value: bytes) -> None:
    """Produce, waiting where the producer's buffer is full."""
    while True:
        try:
            producer.produce(topic, value, key)
        except BufferError:
            producer.poll(0.1)
        else:
            return


def embed(given: argparse.Namespace) -> None:
    """Step 1: move the user's embedding."""
    ids, matrix = read_catalogue(given)
    row_of = {product_id: row for row, product_id in enumerate(ids)}
    users: dict[str, Any] = {}
    producer = Producer({"bootstrap.servers": given.bootstrap, "linger.ms": 20})

    def handle(values: list[bytes]) -> None:
        for value in values:
            event = msgspec.json.decode(value)
            user, row = event["user_id"], row_of.get(event["product_id"])
            old = users.get(user)
            if row is not None:
                vector = matrix[row]
                old = vector if old is None else DECAY * old + (1 - DECAY) * vector
                users[user] = old
            if old is not None:
                event["embedding"] = base64.b64encode(old.astype("<f4").tobytes()).decode()
            produce(producer, f"{given.prefix}-embedded", user, msgspec.json.encode(event))
        producer.flush()

    consume(given, given.events, handle)


def recommend(given: argparse.Namespace) -> None:
    """Step 2: find the nearest products."""
    ids, matrix = read_catalogue(given)
    producer = Producer({"bootstrap.servers": given.bootstrap, "linger.ms": 20})

    def handle(values: list[bytes]) -> None:
        for value in values:
            event = msgspec.json.decode(value)
            raw = event.pop("embedding", None)
            if raw is not None:
                scores = matrix @ np.frombuffer(base64.b64decode(raw), dtype="<f4")
                length = min(LIST_LENGTH, len(scores))
                best = np.argpartition(-scores, length - 1)[:length]
                best = best[np.argsort(-scores[best])]
                event["items"] = [(ids[at], float(scores[at]), "profile") for at in best]
            produce(
                producer,
                f"{given.prefix}-recommended",
                event["user_id"],
                msgspec.json.encode(event),
            )
        producer.flush()

    consume(given, f"{given.prefix}-embedded", handle)


def save(given: argparse.Namespace) -> None:
    """Step 3: save the list and the event."""
    session = Cluster([given.host], port=given.port).connect(given.keyspace)
    insert_list = session.prepare(
        "INSERT INTO recommendations_by_user (user_id, items, space, event_ts, generated_at)"
        " VALUES (?, ?, ?, ?, ?)"
    )
    insert_event = session.prepare(
        "INSERT INTO events_by_user_day (user_id, day, ts, event_id, type, product_id, session_id)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)"
    )
    for statement in (insert_list, insert_event):
        statement.consistency_level = ConsistencyLevel.LOCAL_QUORUM

    def handle(values: list[bytes]) -> None:
        flights: deque[Any] = deque()

        def send(statement: Any, row: tuple[Any, ...]) -> None:
            if len(flights) >= IN_FLIGHT:
                flights.popleft().result()
            flights.append(session.execute_async(statement, row))

        for value in values:
            event = msgspec.json.decode(value)
            user, ts = event["user_id"], event["ts"]
            if "items" in event:
                items = [tuple(item) for item in event["items"]]
                send(insert_list, (user, items, "bench", ts, int(time.time() * 1000)))
            day = ts // 86_400_000 + 2**31
            product, session_id = event["product_id"], event["session_id"]
            row = (user, day, ts, event["event_id"], event["type"], product, session_id)
            send(insert_event, row)
        for flight in flights:
            flight.result()

    consume(given, f"{given.prefix}-recommended", handle)


def main(arguments: list[str]) -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("step", choices=STEPS)
    for name in ("bootstrap", "events", "catalogue", "prefix", "host", "keyspace"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args(arguments)
    {"embed": embed, "recommend": recommend, "save": save}[given.step](given)


if __name__ == "__main__":
    main(sys.argv[1:])
