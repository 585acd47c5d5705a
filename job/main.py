"""Entry point: ``flink run -d -py job/main.py [options]``; ``--help`` lists the options."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

# `flink run -py` puts only the script's own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pyflink.datastream import DataStream, StreamExecutionEnvironment
from pyflink.table import StreamTableEnvironment

from connectors.cassandra_writer import CassandraWriter
from connectors.compacted_topic import CompactedTopics
from connectors.kafka import catalogue_stream, event_stream, products_stream, record_sink
from connectors.product_base import ProductBases
from connectors.saver import Saver
from connectors.task_thread import open_writer, task_interrupted
from connectors.topic_check import TopicError, Topics, ask, problems
from job import uids
from job.options import JobOptions, parse
from job.topology import Endpoints, build_catalogue, build_topology
from job.trending import build_trending, trending_lists
from udfs.catalogue_function import DEAD_LETTERS, PRODUCTS, RELATED

JOB_NAME = "recommender"
# What was written so long before the submission is read whole by each TaskManager when it starts;
# clocks of brokers differ less.
_CHANGES_BEFORE_MS = 3_600_000


def build(environment: StreamExecutionEnvironment, options: JobOptions) -> None:
    """Build the whole job on real Kafka and Cassandra."""
    with _without_collector():
        _build(environment, options)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep Python's cycle collector out of the calls to Java.

    A collection tells Java of each Java object that it frees, from whichever thread it runs in,
    and takes the connection of this one. The next call then comes to another thread of Java's,
    where Flink's planner does not find what it keeps by thread ("metadataHandlerProvider").
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _build(environment: StreamExecutionEnvironment, options: JobOptions) -> None:
    # No operator of this job keeps or changes what it was handed, so rows need not be copied.
    environment.get_config().enable_object_reuse()
    tables = StreamTableEnvironment.create(environment)
    kafka = options.kafka
    writer = partial(
        CassandraWriter, options.cassandra, options.writer, interrupted=task_interrupted
    )
    products = (options.products_topic, options.related_topic)
    since_ms = time.time_ns() // 1_000_000 - _CHANGES_BEFORE_MS

    def letters(rows: DataStream) -> None:
        record_sink(tables, kafka, options.dead_letters_topic, uids.DEAD_LETTERS_SINK, rows)

    def records(rows: DataStream) -> None:
        for kind, topic, name in (
            (PRODUCTS, options.products_topic, uids.PRODUCTS_SINK),
            (RELATED, options.related_topic, uids.RELATED_SINK),
            (DEAD_LETTERS, options.dead_letters_topic, uids.CATALOGUE_LETTERS_SINK),
        ):
            record_sink(tables, kafka, topic, name, rows, kind)

    bases = partial(ProductBases, options.cassandra, interrupted=task_interrupted)
    endpoints = Endpoints(
        events=event_stream(tables, kafka, options.events_topic),
        catalogue=catalogue_stream(tables, kafka, options.catalogue_topic),
        products=products_stream(tables, kafka, *products, since_ms),
        saver=partial(Saver, writer, options.events_topic),
        bases=partial(open_writer, bases),
        reader=partial(CompactedTopics, options.librdkafka(), interrupted=task_interrupted),
        letters=letters,
        records=records,
    )
    build_catalogue(endpoints, options.catalogue)
    build_topology(endpoints, options.recommender)
    if options.trending.enabled:
        lists = trending_lists(
            tables,
            kafka,
            options.events_topic,
            options.products_topic,
            options.trending,
            options.recommender.recommend.profile,
            options.recommender.max_future_ms,
            options.recommender.placeholder_ids,
        )
        build_trending(lists, writer, options.trending)


def check_topics(options: JobOptions) -> None:
    """Look at the topics as ``--topic-check`` says.

    Raises:
        TopicError: A topic is not as the job needs it, or Kafka cannot be asked.
    """
    if options.topic_check == "off":
        return
    strict = options.topic_check == "fail"
    topics = Topics(
        options.events_topic,
        options.catalogue_topic,
        options.dead_letters_topic,
        options.products_topic,
        options.related_topic,
    )
    try:
        found = ask(topics, options.kafka)
    except TopicError as error:
        if strict:
            raise
        _warn(str(error))
        return
    wrong = problems(topics, found, options.kafka.bootstrap)
    if wrong and strict:
        raise TopicError("\n".join(wrong))
    for problem in wrong:
        _warn(problem)
    for topic, why in found.not_told.items():
        _warn(f"topic {topic} was not checked: {why}")


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def main(arguments: list[str]) -> None:
    """Submit the job."""
    options = parse(arguments)
    options.check_librdkafka()
    check_topics(options)
    environment = StreamExecutionEnvironment.get_execution_environment()
    build(environment, options)
    # Not execute(): with `flink run -d` its result cannot be asked for anything.
    environment.execute_async(JOB_NAME)


if __name__ == "__main__":
    main(sys.argv[1:])
