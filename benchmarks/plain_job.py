"""Contestant (a): the PyFlink job that one would write first, and honestly so.

Process mode (Flink's default), a Python key selector, JSON in Python, a lookup at each event with
NumPy, one synchronous prepared write a row. Submitted with ``flink run -py`` like ours.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from cassandra import ConsistencyLevel
from cassandra.cluster import Cluster
from pyflink.common import Types, WatermarkStrategy
from pyflink.common.serialization import SimpleStringSchema
from pyflink.datastream import RuntimeContext, StreamExecutionEnvironment
from pyflink.datastream.connectors.kafka import KafkaOffsetsInitializer, KafkaSource
from pyflink.datastream.functions import KeyedBroadcastProcessFunction
from pyflink.datastream.state import MapStateDescriptor, ValueStateDescriptor

LIST_LENGTH = 20
DECAY = 0.8


class PlainRecommender(KeyedBroadcastProcessFunction):
    """Decayed average of what the user touched, nearest products, two writes: at each event."""

    def __init__(self, host: str, port: int, keyspace: str) -> None:
        """Keep where Cassandra is."""
        self._where = (host, port, keyspace)

    def open(self, runtime_context: RuntimeContext) -> None:
        """Open the state and connect."""
        self._embedding = runtime_context.get_state(
            ValueStateDescriptor("embedding", Types.PICKLED_BYTE_ARRAY())
        )
        host, port, keyspace = self._where
        self._session = Cluster([host], port=port).connect(keyspace)
        self._insert_list = self._session.prepare(
            "INSERT INTO recommendations_by_user (user_id, items, space, event_ts, generated_at)"
            " VALUES (?, ?, ?, ?, ?)"
        )
        self._insert_event = self._session.prepare(
            "INSERT INTO events_by_user_day"
            " (user_id, day, ts, event_id, type, product_id, session_id)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)"
        )
        for statement in (self._insert_list, self._insert_event):
            statement.consistency_level = ConsistencyLevel.LOCAL_QUORUM
        self._row_of: dict[str, int] = {}
        self._ids: list[str] = []
        self._matrix = np.zeros((0, 0), dtype=np.float32)
        self._vectors: list[Any] = []
        self._changed = False
        self._products = runtime_context.get_metrics_group().counter("products")

    def process_broadcast_element(
        self, value: str, ctx: KeyedBroadcastProcessFunction.Context
    ) -> Iterator[Any]:
        """Keep a product."""
        product = json.loads(value)
        vector = np.frombuffer(base64.b64decode(product["embedding"]), dtype="<f4")
        ctx.get_broadcast_state(catalogue_descriptor()).put(product["product_id"], vector.tobytes())
        self._changed = True
        row = self._row_of.setdefault(product["product_id"], len(self._ids))
        if row == len(self._ids):
            self._products.inc()
            self._ids.append(product["product_id"])
            self._vectors.append(vector)
        else:
            self._vectors[row] = vector
        yield from ()

    def process_element(
        self, value: dict[str, Any], _ctx: KeyedBroadcastProcessFunction.ReadOnlyContext
    ) -> Iterator[Any]:
        """Update, look up, save."""
        if self._changed:
            self._matrix, self._changed = np.array(self._vectors), False
        embedding = self._embedding.value()
        row = self._row_of.get(value["product_id"])
        if row is not None:
            vector = self._matrix[row]
            embedding = vector if embedding is None else DECAY * embedding + (1 - DECAY) * vector
            self._embedding.update(embedding)
        user, now = value["user_id"], time.time()
        if embedding is not None:
            scores = self._matrix @ embedding
            length = min(LIST_LENGTH, len(scores))
            best = np.argpartition(-scores, length - 1)[:length]
            best = best[np.argsort(-scores[best])]
            items = [(self._ids[at], float(scores[at]), "profile") for at in best]
            self._session.execute(
                self._insert_list, (user, items, "bench", value["ts"], int(now * 1000))
            )
        self._session.execute(
            self._insert_event,
            (
                user,
                value["ts"] // 86_400_000 + 2**31,
                value["ts"],
                value["event_id"],
                value["type"],
                value["product_id"],
                value["session_id"],
            ),
        )
        yield from ()


def catalogue_descriptor() -> MapStateDescriptor:
    """Describe the broadcast state."""
    return MapStateDescriptor("catalogue", Types.STRING(), Types.PICKLED_BYTE_ARRAY())


def main(arguments: list[str]) -> None:
    """Submit the job."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("bootstrap", "events", "catalogue", "group", "host", "keyspace"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args(arguments)
    environment = StreamExecutionEnvironment.get_execution_environment()

    def source(topic: str) -> Any:
        kafka = (
            KafkaSource.builder()
            .set_bootstrap_servers(given.bootstrap)
            .set_topics(topic)
            .set_group_id(given.group)
            .set_starting_offsets(KafkaOffsetsInitializer.earliest())
            .set_value_only_deserializer(SimpleStringSchema())
            .build()
        )
        return environment.from_source(kafka, WatermarkStrategy.no_watermarks(), topic)

    events = source(given.events).map(json.loads).key_by(lambda event: event["user_id"])
    catalogue = source(given.catalogue).broadcast(catalogue_descriptor())
    events.connect(catalogue).process(
        PlainRecommender(given.host, given.port, given.keyspace), output_type=Types.STRING()
    ).print()
    environment.execute_async("plain-job")


if __name__ == "__main__":
    main(sys.argv[1:])
