"""The job's topology: sources and sinks are passed in, so that a test can pass others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyflink.datastream import DataStream, KeyedStream

from connectors.cassandra_sink import CassandraSink, WriterFactory
from connectors.dead_letters import row_type
from job import uids
from udfs.recommender_function import RecommenderConfig, RecommenderFunction, catalogue_descriptor


@dataclass(frozen=True)
class Endpoints:
    """What the topology reads from and writes to."""

    events: KeyedStream
    """Framed records (``udfs.schemas.frame_record``), keyed by user id."""
    catalogue: DataStream
    """Row(key, value or null, partition, offset)."""
    writer: WriterFactory
    """Makes the Cassandra writer on the TaskManager."""
    dead_letters: Callable[[DataStream], None]
    """Takes the stream of dead letters: Row(key, value, headers)."""


def build_topology(endpoints: Endpoints, config: RecommenderConfig) -> DataStream:
    """Connect sources, recommender and sinks; returns the stream of dead letters."""
    recommended = (
        endpoints.events.connect(endpoints.catalogue.broadcast(catalogue_descriptor()))
        .process(RecommenderFunction(config))
        .uid(uids.RECOMMENDER)
        .name(uids.RECOMMENDER)
    )
    letters = (
        recommended.process(
            CassandraSink(endpoints.writer, config.events_topic), output_type=row_type()
        )
        .uid(uids.CASSANDRA_SINK)
        .name(uids.CASSANDRA_SINK)
    )
    endpoints.dead_letters(letters)
    return letters
