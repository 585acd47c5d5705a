"""The job's topology: sources and sinks are passed in, so that a test can pass others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyflink.datastream import DataStream, KeyedStream, RuntimeContext

from connectors import dead_letters
from connectors.dead_letters import to_row
from job import uids
from udfs import catalogue_function
from udfs.catalogue_function import BaseReader, CatalogueConfig, CatalogueFunction
from udfs.ports import BatchSaver, TopicReader
from udfs.recommender_function import RecommenderConfig, RecommenderFunction, catalogue_descriptor


@dataclass(frozen=True)
class Endpoints:
    """What the topology reads from and writes to; what holds sockets is made where it runs."""

    events: KeyedStream
    """Framed records (``udfs.schemas.frame_record``) by user id."""
    catalogue: KeyedStream
    """Framed records by product id."""
    products: DataStream
    """Rows of ``connectors.kafka.products_stream``."""
    saver: Callable[[RuntimeContext], BatchSaver]
    """Makes what saves to Cassandra."""
    bases: Callable[[], BaseReader]
    """Makes what reads the rows of products."""
    reader: Callable[[Sequence[str]], TopicReader]
    """Makes what reads the topics of these names whole."""
    letters: Callable[[DataStream], None]
    """Takes the recommender's dead letters: Row(key, value, headers)."""
    records: Callable[[DataStream], None]
    """Takes what the catalogue operator emits: Row(kind, key, value, headers)."""


def build_catalogue(endpoints: Endpoints, config: CatalogueConfig) -> DataStream:
    """Connect the catalogue operator; returns what it emits."""
    function = CatalogueFunction(config, endpoints.saver, endpoints.bases, to_row)
    records = (
        endpoints.catalogue.process(function, output_type=catalogue_function.row_type())
        .uid(uids.CATALOGUE)
        .name(uids.CATALOGUE)
    )
    endpoints.records(records)
    return records


def build_topology(endpoints: Endpoints, config: RecommenderConfig) -> DataStream:
    """Connect the recommender; returns its dead letters."""
    function = RecommenderFunction(config, endpoints.saver, endpoints.reader, to_row)
    letters = (
        endpoints.events.connect(endpoints.products.broadcast(catalogue_descriptor()))
        .process(function, output_type=dead_letters.row_type())
        .uid(uids.RECOMMENDER)
        .name(uids.RECOMMENDER)
    )
    endpoints.letters(letters)
    return letters
