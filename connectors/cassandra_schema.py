"""The Cassandra schema: all CQL statements in one map, and what creates the tables."""

from __future__ import annotations

import datetime as dt
import logging
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from cassandra import InvalidRequest

logger = logging.getLogger(__name__)

DEFAULT_EVENT_TTL_DAYS: Final = 90
SECONDS_A_DAY: Final = 86_400
# Cassandra refuses a default_time_to_live above 20 years.
MAX_EVENT_TTL_DAYS: Final = 20 * 365

# An unquoted CQL identifier; 48 characters is the server's own limit, because the name becomes
# part of a path. It is also what keeps the format() below free of injection.
_KEYSPACE_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,47}")

_CREATE_KEYSPACE: Final = """
CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {replication} AND durable_writes = true
"""

# One row a partition, overwritten at every lookup, read by its whole key.
#  - frozen: the list is one cell, so an overwrite is no tombstone (an unfrozen list would write
#    one a generation) and a read takes one timestamp, not one an element.
#  - SizeTieredCompactionStrategy: every column is written at once, so the read path goes through
#    the SSTables newest first and stops at the first that has the row; the leveled strategy would
#    rewrite the table many times over to save reads that do not happen.
#  - 4 KiB chunks: a row is 1-2 KiB and is read at random; the default of 16 KiB would decompress
#    eight times what is asked for.
#  - gc_grace_seconds stays at ten days: the only tombstones come from the erasure of a user, and
#    those must reach a node that was away, or the user comes back to life.
#  - speculative_retry 99p: one slow replica must not be the service's p99.
_CREATE_RECOMMENDATIONS: Final = """
CREATE TABLE IF NOT EXISTS {keyspace}.recommendations_by_user (
    user_id text PRIMARY KEY,
    items frozen<list<frozen<tuple<text, float, text>>>>,
    space text,
    event_ts timestamp,
    generated_at timestamp
) WITH comment = 'The newest list of a user; items: (product_id, score, reason), best first'
  AND compaction = {{'class': 'SizeTieredCompactionStrategy'}}
  AND compression = {{'class': 'LZ4Compressor', 'chunk_length_in_kb': '4'}}
  AND gc_grace_seconds = 864000
  AND speculative_retry = '99p'
"""

# A history: appended, read newest first, gone by age.
#  - the day in the partition key bounds a partition, and a read of one day asks the SSTables of
#    about one window (the bloom filters exclude the others).
#  - TimeWindowCompactionStrategy with the TTL: an SSTable whose events have all expired is deleted
#    as a file. It needs write times in order, hence no USING TIMESTAMP in `insert_event`.
#  - read_repair NONE: a blocking read repair writes old rows into the newest window and keeps its
#    SSTable alive for another TTL. Nothing reads its own history back to decide something, so
#    monotonic reads are not needed.
#  - gc_grace_seconds stays at ten days: with a TTL alone one day would do and save a tenth of the
#    disk, but an erased user must stay erased when a node returns after a week.
_CREATE_EVENTS: Final = """
CREATE TABLE IF NOT EXISTS {keyspace}.events_by_user_day (
    user_id text,
    day date,
    ts timestamp,
    event_id text,
    type text,
    product_id text,
    query text,
    session_id text,
    dwell_ms int,
    quantity int,
    PRIMARY KEY ((user_id, day), ts, event_id)
) WITH CLUSTERING ORDER BY (ts DESC, event_id ASC)
  AND comment = 'What a user did on a UTC day, newest first; expires'
  AND compaction = {{'class': 'TimeWindowCompactionStrategy',
                    'compaction_window_unit': 'DAYS', 'compaction_window_size': '1'}}
  AND compression = {{'class': 'LZ4Compressor', 'chunk_length_in_kb': '16'}}
  AND default_time_to_live = {event_ttl_seconds}
  AND gc_grace_seconds = 864000
  AND read_repair = 'NONE'
  AND speculative_retry = '99p'
"""

_EVENT_COLUMNS: Final = "ts, event_id, type, product_id, query, session_id, dwell_ms, quantity"

# Name -> statement. `{keyspace}` is filled in by `statement`; everything else is a bind marker.
CQL: Final[Mapping[str, str]] = MappingProxyType(
    {
        "create_keyspace": _CREATE_KEYSPACE,
        "create_recommendations_by_user": _CREATE_RECOMMENDATIONS,
        "create_events_by_user_day": _CREATE_EVENTS,
        # The timestamp (epoch microseconds) is the generation, so that the newest list wins
        # whatever the order of arrival.
        "insert_recommendations": (
            "INSERT INTO {keyspace}.recommendations_by_user"
            " (user_id, items, space, event_ts, generated_at)"
            " VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?"
        ),
        # Bind UNSET_VALUE, never None, for what an event does not have: None writes a tombstone.
        "insert_event": (
            "INSERT INTO {keyspace}.events_by_user_day"
            f" (user_id, day, {_EVENT_COLUMNS})"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        ),
        "select_recommendations": (
            "SELECT items, space, event_ts, generated_at"
            " FROM {keyspace}.recommendations_by_user WHERE user_id = ?"
        ),
        # Times are [from, to).
        "select_events": (
            f"SELECT {_EVENT_COLUMNS} FROM {{keyspace}}.events_by_user_day"
            " WHERE user_id = ? AND day = ? AND ts >= ? AND ts < ? LIMIT ?"
        ),
        # The rest of one millisecond: where a page ended between two events of the same time.
        # A tuple comparison cannot say it, since the two columns are sorted in opposite ways.
        "select_events_of_ts": (
            f"SELECT {_EVENT_COLUMNS} FROM {{keyspace}}.events_by_user_day"
            " WHERE user_id = ? AND day = ? AND ts = ? AND event_id > ? LIMIT ?"
        ),
    }
)

_CREATE_TABLES: Final = ("create_recommendations_by_user", "create_events_by_user_day")


class SchemaError(RuntimeError):
    """The schema could not be brought, or is not, in the state that the statements need."""


def validate_keyspace(keyspace: str) -> str:
    """Return ``keyspace`` if it is a lower-case CQL identifier of at most 48 characters.

    Raises:
        ValueError: It is not.
    """
    if not _KEYSPACE_NAME.fullmatch(keyspace):
        msg = (
            f"keyspace {keyspace!r}: must start with a-z, contain only a-z, 0-9 and _,"
            " and have at most 48 characters"
        )
        raise ValueError(msg)
    return keyspace


def statement(name: str, keyspace: str) -> str:
    """Return the data statement ``name`` of `CQL` for ``keyspace``, ready to be prepared.

    Raises:
        KeyError: There is no such statement.
        ValueError: The keyspace's name is not valid.
    """
    return CQL[name].format(keyspace=validate_keyspace(keyspace))


def day_of(ts: int) -> dt.date:
    """Return the UTC day of ``ts`` (epoch milliseconds): the second half of an event's partition.

    Raises:
        OverflowError: The time lies outside the years 1-9999.
    """
    return dt.date.fromordinal(_EPOCH_ORDINAL + ts // (SECONDS_A_DAY * 1000))


def start_of_day(day: dt.date) -> int:
    """Return the first millisecond (epoch, UTC) of ``day``."""
    return (day.toordinal() - _EPOCH_ORDINAL) * SECONDS_A_DAY * 1000


_EPOCH_ORDINAL: Final = dt.date(1970, 1, 1).toordinal()


def schema_statements(
    keyspace: str,
    replication: Mapping[str, str | int],
    *,
    event_ttl_days: int = DEFAULT_EVENT_TTL_DAYS,
) -> tuple[str, ...]:
    """Return the statements that create the keyspace and its tables, in their order.

    Args:
        keyspace: Lower-case CQL identifier.
        replication: For example ``{"class": "NetworkTopologyStrategy", "dc1": 3}``.
        event_ttl_days: Days that an event is kept, 1-7300.

    Raises:
        ValueError: An argument is not valid.
    """
    validate_keyspace(keyspace)
    if not 1 <= event_ttl_days <= MAX_EVENT_TTL_DAYS:
        msg = f"event_ttl_days {event_ttl_days}: must be 1 to {MAX_EVENT_TTL_DAYS}"
        raise ValueError(msg)
    return (
        CQL["create_keyspace"]
        .format(keyspace=keyspace, replication=_map_literal(replication))
        .strip(),
        *(
            CQL[name]
            .format(keyspace=keyspace, event_ttl_seconds=event_ttl_days * SECONDS_A_DAY)
            .strip()
            for name in _CREATE_TABLES
        ),
    )


def create_schema(
    session: Any,
    keyspace: str,
    replication: Mapping[str, str | int],
    *,
    event_ttl_days: int = DEFAULT_EVENT_TTL_DAYS,
) -> None:
    """Create the keyspace and its tables where they are missing; return when all nodes agree.

    May be called any number of times, by one process at a time (two that create the same table
    at once can give it two ids). What exists keeps its replication and options: those are changed
    by an operator with ALTER, because they need a repair or a rewrite. The data statements are
    then prepared, so that a table from another version is found here and not by the first write.

    Args:
        session: A driver session without default keyspace, see `cassandra_session.connect`.
        keyspace: Lower-case CQL identifier.
        replication: For example ``{"class": "NetworkTopologyStrategy", "dc1": 3}``.
        event_ttl_days: Days that an event is kept, 1-7300; only for a table that is created now.

    Raises:
        ValueError: An argument is not valid.
        SchemaError: The nodes do not agree in time, or a table lacks a column.
    """
    for cql in schema_statements(keyspace, replication, event_ttl_days=event_ttl_days):
        # The driver waits for the agreement after each change (max_schema_agreement_wait) but
        # only notes it when the wait was in vain.
        result = session.execute(cql)
        if not result.response_future.is_schema_agreed:
            msg = f"the nodes do not agree on the schema of {keyspace}; is one of them down?"
            raise SchemaError(msg)
    for name in CQL:
        if name.startswith("create_"):
            continue
        try:
            session.prepare(statement(name, keyspace))
        except InvalidRequest as error:
            msg = f"a table of {keyspace} does not fit the statement {name}: {error}"
            raise SchemaError(msg) from error
    logger.info("schema of keyspace %s is in place", keyspace)


def _map_literal(replication: Mapping[str, str | int]) -> str:
    """Return ``replication`` as a CQL map literal."""
    if "class" not in replication:
        msg = "replication: the key 'class' is missing, for example NetworkTopologyStrategy"
        raise ValueError(msg)
    return "{" + ", ".join(f"{_text(k)}: {_text(v)}" for k, v in replication.items()) + "}"


def _text(value: str | int) -> str:
    """Return ``value`` as a CQL string literal; CQL doubles a quote inside."""
    return "'" + str(value).replace("'", "''") + "'"
