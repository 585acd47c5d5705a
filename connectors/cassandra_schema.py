"""The Cassandra schema: all CQL statements in one map, and what creates the tables."""

from __future__ import annotations

import datetime as dt
import logging
import re
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from cassandra import InvalidRequest

logger = logging.getLogger(__name__)

DEFAULT_EVENT_TTL_DAYS: Final = 90
SECONDS_A_DAY: Final = 86_400
# Cassandra refuses a default_time_to_live above 20 years.
MAX_EVENT_TTL_DAYS: Final = 20 * 365
# Cassandra 4, and 5.0 with the storage_compatibility_mode that it is shipped with, refuses a row
# that would end after January 2038. A limit that followed the clock would shrink as it comes near.
MAX_LIST_TTL_DAYS: Final = 5 * 365
# How long the record of an erasure is kept: it names a user, so it may not stay for ever either.
ERASURE_TTL_DAYS: Final = 30
# Between the id of an event and its product, see `stored_event_id`.
_ID_SEPARATOR: Final = "\x1f"
# Partitions over which the whole catalogue is spread: 62,500 rows each at a million products.
CATALOGUE_BUCKETS: Final = 16

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
#  - event_id is `stored_event_id`: lines of one order may share an id, and each is an event.
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

# Products the user bought or disliked, newest first. The list already lacks them; what a read fills
# up with must lack them too, and this way it costs that read nothing. Added to tables of earlier
# versions; a row without it reads as null.
_ADD_EXCLUDED: Final = """
ALTER TABLE {keyspace}.recommendations_by_user
    ADD IF NOT EXISTS excluded frozen<list<text>>
"""

# The setting that made a list or answered an event, where several are compared; added to tables of
# earlier versions.
_ADD_LIST_VARIANT: Final = """
ALTER TABLE {keyspace}.recommendations_by_user ADD IF NOT EXISTS variant text
"""
_ADD_EVENT_VARIANT: Final = """
ALTER TABLE {keyspace}.events_by_user_day ADD IF NOT EXISTS variant text
"""

# What an answer shows of a product, by its id. A product that was deleted has no row.
#  - small, rarely written, read at random: 4 KiB chunks as above.
_CREATE_PRODUCTS: Final = """
CREATE TABLE IF NOT EXISTS {keyspace}.products (
    product_id text PRIMARY KEY,
    title text,
    category text,
    price double,
    in_stock boolean,
    updated_at timestamp
) WITH comment = 'The catalogue as it is shown; a deleted product is absent'
  AND compaction = {{'class': 'SizeTieredCompactionStrategy'}}
  AND compression = {{'class': 'LZ4Compressor', 'chunk_length_in_kb': '4'}}
  AND speculative_retry = '99p'
"""

# The whole of a product as `udfs.product_record` encodes it: the job merges what the shop says next
# into it. Added to tables of earlier versions, whose rows have none until the product comes again.
_ADD_PRODUCT_RECORD: Final = """
ALTER TABLE {keyspace}.products ADD IF NOT EXISTS record blob
"""

# The products in stock of a category (`category_scope`) or of a part of the catalogue
# (`catalogue_scope`), in the order of their price: what a filtered list is filled from, one slice
# of one partition. A product stands in one category and one part.
#  - price is part of the key, so a change of price is a delete and an insert (`product_rows`
#    makes both); NaN stands for no price and sorts behind infinity, outside of every range.
#  - LeveledCompactionStrategy: the deletes leave tombstones that a slice would walk over.
_CREATE_PRODUCTS_BY_SCOPE: Final = """
CREATE TABLE IF NOT EXISTS {keyspace}.products_by_scope (
    scope text,
    price double,
    product_id text,
    PRIMARY KEY ((scope), price, product_id)
) WITH comment = 'Products in stock of a category or a part of the catalogue, by price'
  AND compaction = {{'class': 'LeveledCompactionStrategy'}}
  AND compression = {{'class': 'LZ4Compressor', 'chunk_length_in_kb': '16'}}
  AND speculative_retry = '99p'
"""

# Lists that belong to nobody: scope is 'all' or 'category:<name>' (decayed counts), 'newest' or
# 'newest:<category>' (the score is the time of first sight, epoch seconds), or 'unresolved:<n>'
# (examples of products that subtask n met in events and does not find in the catalogue).
_CREATE_TRENDING: Final = """
CREATE TABLE IF NOT EXISTS {keyspace}.trending (
    scope text PRIMARY KEY,
    items frozen<list<frozen<tuple<text, float>>>>,
    generated_at timestamp
) WITH comment = 'Trending and newest products by scope; items: (product_id, score), best first'
  AND compaction = {{'class': 'SizeTieredCompactionStrategy'}}
  AND compression = {{'class': 'LZ4Compressor', 'chunk_length_in_kb': '4'}}
  AND speculative_retry = '99p'
"""

# One row a user who asked to be erased.
#  - done_for is the time (ts) of the erase event that the job has carried out: done is
#    done_for >= requested_at. No two clocks are compared, and an old event cannot answer for a
#    newer request.
_CREATE_ERASURES: Final = """
CREATE TABLE IF NOT EXISTS {keyspace}.erasures (
    user_id text PRIMARY KEY,
    requested_at timestamp,
    done_for timestamp,
    done_at timestamp
) WITH comment = 'Erasures of users, asked for by the service and done by the job; expires'
  AND compaction = {{'class': 'SizeTieredCompactionStrategy'}}
  AND default_time_to_live = {erasure_ttl_seconds}
"""

_EVENT_COLUMNS: Final = (
    "ts, event_id, type, product_id, query, session_id, dwell_ms, quantity, variant"
)

# Name -> statement. `{keyspace}` is filled in by `statement`; everything else is a bind marker.
CQL: Final[Mapping[str, str]] = MappingProxyType(
    {
        "create_keyspace": _CREATE_KEYSPACE,
        "create_recommendations_by_user": _CREATE_RECOMMENDATIONS,
        "create_events_by_user_day": _CREATE_EVENTS,
        "create_excluded": _ADD_EXCLUDED,
        "create_list_variant": _ADD_LIST_VARIANT,
        "create_event_variant": _ADD_EVENT_VARIANT,
        "create_products": _CREATE_PRODUCTS,
        "create_product_record": _ADD_PRODUCT_RECORD,
        "create_products_by_scope": _CREATE_PRODUCTS_BY_SCOPE,
        "create_trending": _CREATE_TRENDING,
        "create_erasures": _CREATE_ERASURES,
        # The timestamp (epoch microseconds) is the generation, so that the newest list wins
        # whatever the order of arrival. The TTL (seconds) is the profile's: a list names products
        # and searches of its user, and must not outlive what it was made from. Every column is
        # written each time, also an empty one: what is left out would keep its older value.
        "insert_recommendations": (
            "INSERT INTO {keyspace}.recommendations_by_user"
            " (user_id, items, space, event_ts, generated_at, variant, excluded)"
            " VALUES (?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ? AND TTL ?"
        ),
        # Bind UNSET_VALUE, never None, for what an event does not have: None writes a tombstone.
        "insert_event": (
            "INSERT INTO {keyspace}.events_by_user_day"
            f" (user_id, day, {_EVENT_COLUMNS})"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        ),
        "select_recommendations": (
            "SELECT items, space, event_ts, generated_at, excluded, variant"
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
        # Every event there is: for a command that a person waits for, by pages.
        "scan_events": "SELECT user_id, type, ts, variant FROM {keyspace}.events_by_user_day",
        # Products carry the time of their change (epoch microseconds), so that the newest change
        # wins also where an older one had to be sent again.
        "insert_product": (
            "INSERT INTO {keyspace}.products"
            " (product_id, title, category, price, in_stock, updated_at, record)"
            " VALUES (?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?"
        ),
        "delete_product": (
            "DELETE FROM {keyspace}.products USING TIMESTAMP ? WHERE product_id = ?"
        ),
        # A few dozen partitions at once, by one coordinator; the caller bounds the number.
        "select_products": (
            "SELECT product_id, title, category, price, in_stock, updated_at"
            " FROM {keyspace}.products WHERE product_id IN ?"
        ),
        "select_product_bases": (
            "SELECT product_id, title, category, price, in_stock, updated_at, record"
            " FROM {keyspace}.products WHERE product_id IN ?"
        ),
        "insert_product_in_scope": (
            "INSERT INTO {keyspace}.products_by_scope (scope, price, product_id)"
            " VALUES (?, ?, ?) USING TIMESTAMP ?"
        ),
        "delete_product_in_scope": (
            "DELETE FROM {keyspace}.products_by_scope USING TIMESTAMP ?"
            " WHERE scope = ? AND price = ? AND product_id = ?"
        ),
        "select_products_in_scope": (
            "SELECT product_id FROM {keyspace}.products_by_scope WHERE scope = ? LIMIT ?"
        ),
        "select_products_in_price_range": (
            "SELECT product_id FROM {keyspace}.products_by_scope"
            " WHERE scope = ? AND price >= ? AND price <= ? LIMIT ?"
        ),
        "insert_trending": (
            "INSERT INTO {keyspace}.trending (scope, items, generated_at) VALUES (?, ?, ?)"
        ),
        "select_trending": "SELECT items, generated_at FROM {keyspace}.trending WHERE scope = ?",
        "insert_erasure": "INSERT INTO {keyspace}.erasures (user_id, requested_at) VALUES (?, ?)",
        "insert_erasure_done": (
            "INSERT INTO {keyspace}.erasures (user_id, done_for, done_at) VALUES (?, ?, ?)"
        ),
        "select_erasure": (
            "SELECT requested_at, done_for, done_at FROM {keyspace}.erasures WHERE user_id = ?"
        ),
        # The timestamp (epoch microseconds) must not be below the generation of the last list.
        "delete_recommendations": (
            "DELETE FROM {keyspace}.recommendations_by_user USING TIMESTAMP ? WHERE user_id = ?"
        ),
        # With a timestamp, so that a deletion that is repeated later takes nothing newer.
        "delete_events": (
            "DELETE FROM {keyspace}.events_by_user_day USING TIMESTAMP ?"
            " WHERE user_id = ? AND day = ?"
        ),
        # All erasures of the last `ERASURE_TTL_DAYS`: for a person who looks what waits.
        "scan_erasures": "SELECT user_id, requested_at, done_for FROM {keyspace}.erasures",
    }
)

_CREATE_TABLES: Final = tuple(
    name for name in CQL if name.startswith("create_") and name != "create_keyspace"
)

ALL_SCOPE: Final = "all"
NEWEST_SCOPE: Final = "newest"
# Before the number of a subtask: products that users touch and the catalogue does not have.
UNRESOLVED_SCOPE: Final = "unresolved"


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


def table_of(name: str) -> str:
    """Return the table of the data statement ``name`` of `CQL`.

    Raises:
        KeyError: There is no such statement.
    """
    return CQL[name].partition("{keyspace}.")[2].split()[0]


def stored_event_id(event_id: str, product_id: str | None) -> str:
    """Return the clustering value of an event: its id, and the product that it is of.

    `event_id_of` undoes it. Rows of earlier versions have the id alone.
    """
    return event_id if product_id is None else f"{event_id}{_ID_SEPARATOR}{product_id}"


def event_id_of(stored: str, product_id: str | None) -> str:
    """Return the id of the event whose row has the clustering value ``stored``."""
    return stored if product_id is None else stored.removesuffix(f"{_ID_SEPARATOR}{product_id}")


def category_scope(category: str) -> str:
    """Return the scope of a category, in `trending` and in `products_by_scope`."""
    return f"category:{category}"


def newest_scope(category: str) -> str:
    """Return the scope of a category's newest products in `trending`."""
    return f"{NEWEST_SCOPE}:{category}"


def catalogue_scope(bucket: int) -> str:
    """Return the scope of part ``bucket`` (0 to `CATALOGUE_BUCKETS` - 1) of the catalogue."""
    return f"all:{bucket}"


def bucket_of(product_id: str) -> int:
    """Return the part of the catalogue in which a product stands."""
    return zlib.crc32(product_id.encode("utf-8", "surrogatepass")) % CATALOGUE_BUCKETS


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
            .format(
                keyspace=keyspace,
                event_ttl_seconds=event_ttl_days * SECONDS_A_DAY,
                erasure_ttl_seconds=ERASURE_TTL_DAYS * SECONDS_A_DAY,
            )
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
