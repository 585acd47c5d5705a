"""Kafka sources and the dead-letter sink, through Flink's Table connector for Kafka.

The Table connector is the one that gives Python key, value, partition and offset without any
Python running for it: the rows come out of Java as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from pyflink.common import Types
from pyflink.common.typeinfo import TypeInformation
from pyflink.datastream import DataStream, KeyedStream
from pyflink.java_gateway import get_gateway
from pyflink.table import Schema, StreamTableEnvironment, Table

from udfs.schemas import HEARTBEAT_PARTITION

# A dead letter is a whole record and its headers, so it can be larger than what came in.
MAX_DEAD_LETTER_BYTES: Final = 2 * 2**20
# How soon the last of many changed products are saved.
HEARTBEATS_A_SECOND: Final = 4


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
    settings = {
        "connector": "kafka",
        "topic": topic,
        "properties.bootstrap.servers": options.bootstrap,
        **{f"properties.{name}": value for name, value in options.properties.items()},
        "key.format": "raw",
        "key.fields": "key",
        "value.format": "raw",
        "value.fields-include": "EXCEPT_KEY",
        **extra,
    }
    return ", ".join(f"{_sql_string(k)} = {_sql_string(v)}" for k, v in settings.items())


def _source(
    tables: StreamTableEnvironment,
    options: KafkaOptions,
    topic: str,
    name: str,
    columns: str,
    start: str,
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
            "scan.startup.mode": start,
            # New partitions are found while the job runs.
            "scan.topic-partition-discovery.interval": "60 s",
        },
    )
    tables.execute_sql(
        f"CREATE TEMPORARY TABLE `{name}` (`key` STRING, `value` BYTES,"
        " `partition` INT NOT NULL METADATA VIRTUAL, `offset` BIGINT NOT NULL METADATA VIRTUAL)"
        f" WITH ({settings})"
    )
    # Flink cannot key by null, and a record without a key must reach the dead letters.
    table = tables.sql_query(f"SELECT COALESCE(`key`, '') AS `key`, {columns} FROM `{name}`")
    return _typed(tables, table, name, row)


def _typed(
    tables: StreamTableEnvironment, table: Table, name: str, row: TypeInformation
) -> DataStream:
    """Make a stream of a table, typed as ``row``, with uids for a savepoint to find it by."""
    stream = tables.to_data_stream(table)
    transformation = stream._j_data_stream.getTransformation()
    transformation.setOutputType(row.get_java_type_info())
    # The planner makes several transformations; a savepoint finds each by its name and depth.
    depth = 0
    while True:
        transformation.setUid(f"{name}-{depth}")
        inputs = transformation.getInputs()
        if inputs.isEmpty():
            return stream
        transformation = inputs.get(0)
        depth += 1


def event_stream(tables: StreamTableEnvironment, options: KafkaOptions, topic: str) -> KeyedStream:
    """Read the events topic as framed records, keyed in Java by the record key.

    The frame (:func:`udfs.schemas.frame_record`) is put around the value in SQL: PyFlink makes a
    Python Row of every nested row, which costs more than to decode the event.

    From the committed offsets of the group, or the earliest where there are none; a restored job
    goes on from its checkpoint whatever the group says.
    """
    key = Types.STRING()
    row = Types.ROW([key, Types.PRIMITIVE_ARRAY(Types.BYTE())])
    stream = _source(
        tables,
        options,
        topic,
        "events-source",
        "ENCODE(CONCAT(CAST(`partition` AS STRING), ' ', CAST(`offset` AS STRING),"
        " CASE WHEN `value` IS NULL THEN ' n ' ELSE ' v ' END,"
        " COALESCE(DECODE(`value`, 'ISO-8859-1'), '')), 'ISO-8859-1') AS `record`",
        "group-offsets",
        row,
    )
    selector = get_gateway().jvm.org.apache.flink.streaming.api.functions.python.KeyByKeySelector()
    # The selector returns the key as a Row of one field, whatever its name suggests.
    keyed = stream._j_data_stream.keyBy(selector, Types.ROW([key]).get_java_type_info())
    # What key_by() of PyFlink makes, without its Python selector for each element.
    return KeyedStream(keyed, row, stream)


def catalogue_stream(
    tables: StreamTableEnvironment, options: KafkaOptions, topic: str
) -> DataStream:
    """Read the catalogue topic from its beginning: Row(key, value or null, partition, offset).

    Between the records come heartbeats, see :data:`udfs.schemas.HEARTBEAT_PARTITION`.
    """
    row = Types.ROW(
        [Types.STRING(), Types.PRIMITIVE_ARRAY(Types.BYTE()), Types.INT(), Types.LONG()]
    )
    columns = "`value`, `partition`, `offset`"
    stream = _source(tables, options, topic, "catalogue-source", columns, "earliest-offset", row)
    return stream.union(_heartbeats(tables, "heartbeat-source", row))


def _heartbeats(tables: StreamTableEnvironment, name: str, row: TypeInformation) -> DataStream:
    """Make rows as of the catalogue topic, without a value, ``HEARTBEATS_A_SECOND``."""
    tables.execute_sql(
        f"CREATE TEMPORARY TABLE `{name}` (`n` BIGINT) WITH ('connector' = 'datagen',"
        f" 'rows-per-second' = '{HEARTBEATS_A_SECOND}')"
    )
    table = tables.sql_query(
        "SELECT CAST('' AS STRING) AS `key`, CAST(NULL AS BYTES) AS `value`,"
        f" {HEARTBEAT_PARTITION} AS `partition`, CAST(0 AS BIGINT) AS `offset` FROM `{name}`"
    )
    return _typed(tables, table, name, row)


def dead_letter_sink(
    tables: StreamTableEnvironment, options: KafkaOptions, topic: str, letters: DataStream
) -> None:
    """Write dead letters (typed as :func:`connectors.dead_letters.row_type`) at least once."""
    settings = _table_options(
        options,
        topic,
        {
            "sink.delivery-guarantee": "at-least-once",
            "properties.max.request.size": str(MAX_DEAD_LETTER_BYTES),
        },
    )
    name = "dead-letters-sink"
    tables.execute_sql(
        f"CREATE TEMPORARY TABLE `{name}` (`key` BYTES, `value` BYTES,"
        f" `headers` MAP<STRING, BYTES> METADATA) WITH ({settings})"
    )
    schema = (
        Schema.new_builder()
        .column("key", "BYTES")
        .column("value", "BYTES")
        .column("headers", "MAP<STRING, BYTES>")
        .build()
    )
    statements = tables.create_statement_set()
    statements.add_insert(f"`{name}`", tables.from_data_stream(letters, schema))
    environment = letters.get_execution_environment()._j_stream_execution_environment
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
