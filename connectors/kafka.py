"""Kafka sources and sinks, through Flink's Table connector for Kafka.

The Table connector is the one that gives Python key, value, partition and offset without any
Python running for it: the rows come out of Java as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from pyflink.common import Types
from pyflink.common.typeinfo import TypeInformation
from pyflink.datastream import DataStream, KeyedStream
from pyflink.java_gateway import get_gateway
from pyflink.table import Schema, StreamTableEnvironment
from pyflink.table.expressions import col

from connectors.dead_letters import MAX_RECORD_BYTES

# A record's Kafka time in epoch milliseconds, of the column `at`. Flink casts a time to no number,
# and counts seconds between times as INT, which from 1970 on ends in 2038. A record without a time
# has -1 in Kafka, of which this makes 999: what lies before the year 2000 is not known.
AT_COLUMN: Final = "`at` TIMESTAMP_LTZ(3) NOT NULL METADATA FROM 'timestamp' VIRTUAL"
AT_MS: Final = (
    "((CAST(TIMESTAMPDIFF(SECOND, TO_TIMESTAMP_LTZ(946684800000, 3), `at`) AS BIGINT) + 946684800)"
    " * 1000 + EXTRACT(MILLISECOND FROM `at`))"
)
# New partitions are found while the job runs.
DISCOVERY_INTERVAL: Final = "60 s"
SHADED: Final = "org.apache.flink.kafka.shaded.org.apache.kafka."
_KAFKA_CLASS: Final = re.compile(r"(?<![\w.])org\.apache\.kafka\.")


@dataclass(frozen=True)
class KafkaOptions:
    """Where Kafka is and how it is spoken to."""

    bootstrap: str = "127.0.0.1:9092"
    """Bootstrap servers, host:port separated by commas."""
    group_id: str = "recommender"
    """Consumer group under which the offsets of completed checkpoints are committed."""
    properties: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Further client properties, such as security.protocol and sasl.jaas.config."""


def _sql_string(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _table_options(options: KafkaOptions, topic: str, extra: Mapping[str, str]) -> str:
    raw = {
        "key.format": "raw",
        "key.fields": "key",
        "value.format": "raw",
        "value.fields-include": "EXCEPT_KEY",
    }
    return _settings(options, topic, {**raw, **extra})


def with_shaded_classes(value: str) -> str:
    """Name Kafka's own classes as they are called in Flink's connector, which has its own copy.

    ``org.apache.kafka.common.security.plain.PlainLoginModule`` of a ``sasl.jaas.config`` is not
    found there by the name that every other client knows it by.
    """
    return _KAFKA_CLASS.sub(SHADED, value)


def _settings(options: KafkaOptions, topic: str, extra: Mapping[str, str]) -> str:
    settings = {
        "connector": "kafka",
        "topic": topic,
        "properties.bootstrap.servers": options.bootstrap,
        **{
            f"properties.{name}": with_shaded_classes(value)
            for name, value in options.properties.items()
        },
        **extra,
    }
    return ", ".join(f"{_sql_string(k)} = {_sql_string(v)}" for k, v in settings.items())


def _source(
    tables: StreamTableEnvironment,
    options: KafkaOptions,
    topic: str,
    name: str,
    columns: str,
    start: Mapping[str, str],
    row: TypeInformation,
) -> DataStream:
    """Read a topic as rows of ``columns``, typed as ``row`` for the Python operators behind."""
    settings = _table_options(
        options,
        topic,
        {
            # One character a byte: a key that is not UTF-8 arrives whole, and can be told.
            "key.raw.charset": "ISO-8859-1",
            "properties.group.id": options.group_id,
            "properties.auto.offset.reset": "earliest",
            "scan.topic-partition-discovery.interval": DISCOVERY_INTERVAL,
            **start,
        },
    )
    tables.execute_sql(
        f"CREATE TEMPORARY TABLE `{name}` (`key` STRING, `value` BYTES,"
        " `partition` INT NOT NULL METADATA VIRTUAL, `offset` BIGINT NOT NULL METADATA VIRTUAL,"
        f" {AT_COLUMN})"
        f" WITH ({settings})"
    )
    # Flink cannot key by null, and a record without a key must reach the dead letters.
    table = tables.sql_query(f"SELECT COALESCE(`key`, '') AS `key`, {columns} FROM `{name}`")
    return typed(tables.to_data_stream(table), name, row)


def typed(
    stream: DataStream,
    name: str,
    row: TypeInformation | None = None,
    known: Mapping[int, str] | None = None,
) -> DataStream:
    """Give what the planner made uids for a savepoint to find it by, and type it as ``row``.

    The planner makes several transformations; each is found by its name and its place in the walk
    from the last to the first. What has a uid already is the end of a walk. ``known`` gives the
    uids of places whose state a savepoint has by another name; −1 is the source.
    """
    known = known or {}
    last = stream._j_data_stream.getTransformation()
    if row is not None:
        last.setOutputType(row.get_java_type_info())
    waiting, place = [last], 0
    while waiting:
        transformation = waiting.pop()
        if transformation.getUid() is None:
            inputs = transformation.getInputs()
            uid = known.get(-1 if inputs.isEmpty() else place, f"{name}-{place}")
            transformation.setUid(uid)
            place += 1
            waiting.extend(inputs.get(at) for at in reversed(range(inputs.size())))
    return stream


def table_source(
    tables: StreamTableEnvironment,
    options: KafkaOptions,
    topic: str,
    name: str,
    columns: str,
    extra: Mapping[str, str],
) -> None:
    """Name a topic as a table, read under a consumer group of its own: the group and the name."""
    settings = _settings(
        options,
        topic,
        {
            "properties.group.id": f"{options.group_id}-{name}",
            "properties.auto.offset.reset": "earliest",
            "scan.topic-partition-discovery.interval": DISCOVERY_INTERVAL,
            **extra,
        },
    )
    tables.execute_sql(f"CREATE TEMPORARY TABLE `{name}` ({columns}) WITH ({settings})")


def keyed_by_first(stream: DataStream, row: TypeInformation) -> KeyedStream:
    """Key rows, typed as ``row``, by their first field, a string, without Python for each."""
    selector = get_gateway().jvm.org.apache.flink.streaming.api.functions.python.KeyByKeySelector()
    # The selector returns the key as a Row of one field, whatever its name suggests.
    key = Types.ROW([Types.STRING()]).get_java_type_info()
    # What key_by() of PyFlink makes, without its Python selector for each element.
    return KeyedStream(stream._j_data_stream.keyBy(selector, key), row, stream)


def _framed(
    tables: StreamTableEnvironment, options: KafkaOptions, topic: str, name: str, start: str
) -> KeyedStream:
    """Read a topic as framed records, keyed in Java by the record key.

    The frame (:func:`udfs.schemas.frame_record`) is put around the value in SQL: PyFlink makes a
    Python Row of every nested row, which costs more than to decode the record.
    """
    row = Types.ROW([Types.STRING(), Types.PRIMITIVE_ARRAY(Types.BYTE())])
    stream = _source(
        tables,
        options,
        topic,
        name,
        "ENCODE(CONCAT(CAST(`partition` AS STRING), ' ', CAST(`offset` AS STRING), ' ',"
        f" CAST({AT_MS} AS STRING),"
        " CASE WHEN `value` IS NULL THEN ' n ' ELSE ' v ' END,"
        " COALESCE(DECODE(`value`, 'ISO-8859-1'), '')), 'ISO-8859-1') AS `record`",
        {"scan.startup.mode": start},
        row,
    )
    return keyed_by_first(stream, row)


def event_stream(tables: StreamTableEnvironment, options: KafkaOptions, topic: str) -> KeyedStream:
    """Read the events topic as framed records, by user id.

    From the committed offsets of the group, or the earliest where there are none; a restored job
    goes on from its checkpoint whatever the group says.
    """
    return _framed(tables, options, topic, "events-source", "group-offsets")


def catalogue_stream(
    tables: StreamTableEnvironment, options: KafkaOptions, topic: str
) -> KeyedStream:
    """Read the catalogue topic as framed records, by product id, from its beginning."""
    return _framed(tables, options, topic, "catalogue-records-source", "earliest-offset")


def products_stream(
    tables: StreamTableEnvironment,
    options: KafkaOptions,
    products_topic: str,
    related_topic: str,
    since_ms: int,
) -> DataStream:
    """Read what changes in the topics of products and of what is related to them.

    What is older than ``since_ms`` (epoch milliseconds) the operators read themselves.

    Rows are (key, value or null, partition, offset, Kafka time in epoch milliseconds, topic: 0 for
    products, 1 for what is related).
    """
    row = Types.ROW(
        [
            Types.STRING(),
            Types.PRIMITIVE_ARRAY(Types.BYTE()),
            Types.INT(),
            Types.LONG(),
            Types.LONG(),
            Types.INT(),
        ]
    )
    start = {"scan.startup.mode": "timestamp", "scan.startup.timestamp-millis": str(since_ms)}
    products, related = (
        _source(
            tables,
            options,
            topic,
            name,
            f"`value`, `partition`, `offset`, {AT_MS} AS `at`, {number} AS `topic`",
            start,
            row,
        )
        for number, (topic, name) in enumerate(
            ((products_topic, "products-source"), (related_topic, "related-source"))
        )
    )
    return products.union(related)


def record_sink(
    tables: StreamTableEnvironment,
    options: KafkaOptions,
    topic: str,
    name: str,
    rows: DataStream,
    kind: str | None = None,
) -> None:
    """Write records at least once; one without a value has a null value, a tombstone.

    Args:
        tables: The environment.
        options: Where Kafka is.
        topic: Where to.
        name: Of the sink; its operators get uids that begin so.
        rows: Typed as :func:`connectors.dead_letters.row_type`, or as
            :func:`udfs.catalogue_function.row_type`, which has a kind before that.
        kind: Which of the latter are meant; None: all there are.
    """
    settings = _table_options(
        options,
        topic,
        {
            "sink.delivery-guarantee": "at-least-once",
            # More than a letter takes: the size of :mod:`connectors.dead_letters` holds alone.
            "properties.max.request.size": str(2 * MAX_RECORD_BYTES),
        },
    )
    tables.execute_sql(
        f"CREATE TEMPORARY TABLE `{name}` (`key` BYTES, `value` BYTES,"
        f" `headers` MAP<STRING, BYTES> METADATA) WITH ({settings})"
    )
    schema = Schema.new_builder()
    if kind is not None:
        schema.column("kind", "STRING")
    schema.column("key", "BYTES").column("value", "BYTES").column("headers", "MAP<STRING, BYTES>")
    table = tables.from_data_stream(rows, schema.build())
    if kind is not None:
        table = table.where(col("kind") == kind).select(col("key"), col("value"), col("headers"))
    statements = tables.create_statement_set()
    statements.add_insert(f"`{name}`", table)
    environment = rows.get_execution_environment()._j_stream_execution_environment
    known = environment.getTransformations().size()
    statements.attach_as_datastream()
    transformations = environment.getTransformations()
    for position in range(known, transformations.size()):
        transformation = transformations.get(position)
        depth = 0
        while transformation.getUid() is None:
            transformation.setUid(f"{name}-{position - known}-{depth}")
            inputs = transformation.getInputs()
            if inputs.isEmpty():
                break
            transformation = inputs.get(0)
            depth += 1
