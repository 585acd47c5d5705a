"""Trending and newest products: Flink SQL over the same topics, in Java, saved by a small sink.

Nothing here touches the recommender's chain: the queries read the topics on their own, and only
finished lists, one a scope and mini-batch, reach Python.

    events ── first of each ── decayed sum a product and epoch ─┐
    products ─── category, stock, first seen ───────────────────┴─ join ── top of each category
                                                                           ── top of all ── list
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from pyflink.datastream import DataStream
from pyflink.table import ChangelogMode, Schema, StreamTableEnvironment

from connectors.cassandra_schema import ALL_SCOPE, NEWEST_SCOPE, category_scope, newest_scope
from connectors.kafka import AT_COLUMN, AT_MS, KafkaOptions, keyed_by_first, table_source, typed
from connectors.trending_sink import (
    NO_EPOCH,
    ListChanges,
    ScopeWriter,
    TrendingSink,
    change_type,
    row_type,
)
from job import uids
from udfs.lenient import DATE_TIME, NUMBER, ZONE
from udfs.profile import ProfileConfig
from udfs.schemas import (
    MAX_FUTURE_MS,
    MAX_ID,
    MAX_TIMESTAMP_MS,
    MIN_TIMESTAMP_MS,
    PLACEHOLDER_IDS,
)
from udfs.trending import (
    CARRY_HALF_LIVES,
    EPOCH_HALF_LIVES,
    STATE_HALF_LIVES,
    TrendingConfig,
    event_weights,
)

# How old a list is at most; the changes of so long are put together before they are sorted.
_LATENCY: Final = "5 s"
_BATCH_ROWS: Final = "20000"
_SETTINGS: Final[Mapping[str, str]] = {
    "table.exec.mini-batch.enabled": "true",
    "table.exec.mini-batch.allow-latency": _LATENCY,
    "table.exec.mini-batch.size": _BATCH_ROWS,
    "table.optimizer.agg-phase-strategy": "AUTO",
}
# A join that is put together in batches, and whose task is cancelled before it has opened, ends the
# whole TaskManager (Flink 2.3: close() of MiniBatchStreamingJoinOperator meets a null). Its inputs
# are batched before it, so it has little of it.
_UNBATCHED: Final = {"table.exec.mini-batch.enabled": "false"}
_TTL: Final = "table.exec.state.ttl"

# All as text, which is how the JSON format hands over a number too: what it means is for _EVENTS.
_EVENT_COLUMNS: Final = (
    "`user_id` STRING, `event_id` STRING, `type` STRING, `ts` STRING, `product_id` STRING,"
    f" `dwell_ms` STRING, {AT_COLUMN}, `arrived` AS PROCTIME()"
)
_PRODUCT_COLUMNS: Final = "`product_id` STRING, `value` STRING"

_PRODUCTS_COLUMNS: Final[Mapping[str, str]] = {
    "product_id": "STRING NOT NULL",
    "category": "STRING",
    "in_stock": "BOOLEAN",
    "first_seen": "DOUBLE",
}
_SUMS_COLUMNS: Final[Mapping[str, str]] = {
    "product_id": "STRING NOT NULL",
    "epoch": "BIGINT NOT NULL",
    "score": "DOUBLE",
}
_TOP_COLUMNS: Final[Mapping[str, str]] = {
    "epoch": "BIGINT",
    "category": "STRING",
    "product_id": "STRING",
    "score": "DOUBLE",
}

_IDS: Final = ("user_id", "event_id", "product_id")
# What begins with NUL is a key of the pipeline's own.
_FIRST_FREE: Final = r"U&'\0001'"

_WEIGHED_COLUMNS: Final[Mapping[str, str]] = {
    "product_id": "STRING",
    "ts": "BIGINT",
    "weight": "DOUBLE",
}

# What is known of each product that ever was in the topic. A deleted one is out of stock: its row
# stays, so that it does not become new again. What begins with NUL is no product. Flink 2.3 fails
# the job at RETURNING DOUBLE of a number without a point.
_PRODUCTS: Final = """
SELECT
    product_id,
    LAST_VALUE(COALESCE(JSON_VALUE(`value`, '$.category'), '')) AS category,
    LAST_VALUE(
        `value` IS NOT NULL AND COALESCE(JSON_VALUE(`value`, '$.in_stock' RETURNING BOOLEAN), TRUE)
    ) AS in_stock,
    MIN(FLOOR(TRY_CAST(JSON_VALUE(`value`, '$.first_seen_ms') AS DOUBLE) / 1000)) AS first_seen
FROM `{source}`
WHERE product_id >= {first_free}
GROUP BY product_id
"""

# Of each event that the recommender would accept, what counts.
_WEIGHED: Final = """
WITH known AS (
    SELECT
        user_id, event_id, product_id, `type`, arrived,
        {ts} AS ts, {kafka_ms} AS kafka_ms, TRY_CAST(dwell_ms AS DOUBLE) AS dwell_ms
    FROM `{source}`
    WHERE {ids}
), weighed AS (
    SELECT user_id, event_id, product_id, ts, arrived, {weight} AS weight
    FROM known
    WHERE {in_range}
)
"""
_EACH: Final = "SELECT product_id, ts, weight FROM weighed WHERE weight > 0"
# An event that comes again (a retry, also with a new time) is known by user, id and product.
_FIRST: Final = """
SELECT product_id, ts, weight FROM (
    SELECT product_id, ts, weight, ROW_NUMBER() OVER (
        PARTITION BY user_id, event_id, product_id ORDER BY arrived) AS place
    FROM weighed WHERE weight > 0
) WHERE place = 1
"""

# An event counts in its epoch, and a late one of an epoch in the next too: see udfs.trending.
_SUMS: Final = """
WITH weighed AS (
    SELECT product_id, ts, ts / {epoch_ms} AS epoch, weight FROM `{source}`
), counted AS (
    SELECT product_id, epoch, weight, ts - epoch * {epoch_ms} AS age
    FROM weighed
    UNION ALL
    SELECT product_id, epoch + 1, weight, ts - (epoch + 1) * {epoch_ms}
    FROM weighed
    WHERE ts - (epoch + 1) * {epoch_ms} >= -{carry_ms}
)
SELECT
    product_id,
    epoch,
    SUM(weight * POWER(CAST(2 AS DOUBLE), CAST(age AS DOUBLE) / {half_life_ms})) AS score
FROM counted
GROUP BY product_id, epoch
"""

# The hint keeps the catalogue for ever while the sums of old epochs leave.
_TRENDING: Final = """
SELECT /*+ STATE_TTL('p' = '36500 d', 's' = '{ttl}') */
    s.epoch, p.category, s.product_id, s.score
FROM `{sums}` AS s JOIN `{products}` AS p ON s.product_id = p.product_id
WHERE p.in_stock
"""
_NEWEST: Final = """
SELECT CAST({no_epoch} AS BIGINT) AS epoch, category, product_id, first_seen AS score
FROM `{products}`
WHERE in_stock
"""

_TOP: Final = """
SELECT epoch, category, product_id, score FROM (
    SELECT epoch, category, product_id, score, ROW_NUMBER() OVER (
        PARTITION BY epoch, category ORDER BY score DESC, product_id) AS place
    FROM `{scored}`
) WHERE place <= {length}
"""

# The best of all are among the best of their categories, so the second sort has little to do.
# LISTAGG has no order of its own: the sink sorts.
_LISTS: Final = """
WITH of_all AS (
    SELECT epoch, product_id, score FROM (
        SELECT epoch, product_id, score, ROW_NUMBER() OVER (
            PARTITION BY epoch ORDER BY score DESC, product_id) AS place
        FROM `{top}`
    ) WHERE place <= {length}
), scoped AS (
    SELECT {category_prefix} || category AS `scope`, epoch, product_id, score
    FROM `{top}` WHERE category <> ''
    UNION ALL
    SELECT {all_scope} AS `scope`, epoch, product_id, score FROM of_all
)
SELECT
    `scope`, epoch, LISTAGG(CAST(score AS STRING) || ' ' || TO_BASE64(product_id)) AS items
FROM scoped
GROUP BY `scope`, epoch
"""


def _decayed(config: TrendingConfig) -> str:
    """Name what depends on the half-life: sums of another one are refused, not misread.

    The consumer group has the name too, so that another half-life reads the topic anew.
    """
    return f"trending-{config.half_life_ms}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def weight_sql(profile: ProfileConfig) -> str:
    """Return SQL for an event's weight, from the columns `type` and `dwell_ms`; 0: no interest."""
    weights = event_weights(profile)
    cases = []
    if "scroll" in weights:
        # What a bounce weighs in the profile it weighs here, if that is anything.
        bounce = max(0.0, profile.bounce_weight)
        cases.append(
            f"WHEN `type` = 'scroll' AND `dwell_ms` < {profile.bounce_ms} THEN {_double(bounce)}"
        )
    cases += [f"WHEN `type` = {_quoted(k)} THEN {_double(w)}" for k, w in weights.items()]
    if not cases:
        return _double(0.0)
    return f"CASE {' '.join(cases)} ELSE {_double(0.0)} END"


def time_sql(column: str) -> str:
    """Return SQL for a time in epoch milliseconds, null for none, from the column's text.

    It reads what :func:`udfs.lenient.time_ms` reads: a whole number, also written as a float, and
    ISO 8601 with a zone.
    """
    pattern = _quoted(rf"^{DATE_TIME}{ZONE}\z")
    day, time, fraction, zone = (
        f"REGEXP_EXTRACT({column}, {pattern}, {group})" for group in range(1, 5)
    )
    text = f"{day} || ' ' || {time} || CASE WHEN CHAR_LENGTH({time}) = 5 THEN ':00' ELSE '' END"
    local = f"TRY_CAST({text} AS TIMESTAMP(3))"
    seconds = f"CAST(TIMESTAMPDIFF(SECOND, TIMESTAMP '2000-01-01 00:00:00', {local}) AS BIGINT)"
    milliseconds = f"CAST(RPAD(SUBSTRING(COALESCE({fraction}, '.') || '000', 2), 3, '0') AS INT)"
    minutes = (
        f"CASE WHEN UPPER({zone}) = 'Z' THEN 0"
        f" ELSE CAST(SUBSTRING({zone}, 1, 1) || '1' AS INT)"
        f" * (60 * CAST(SUBSTRING({zone}, 2, 2) AS INT) + CAST(RIGHT({zone}, 2) AS INT)) END"
    )
    number, written = f"TRY_CAST({column} AS DOUBLE)", _quoted(rf"^{NUMBER}\z")
    return f"""CASE
        WHEN REGEXP({column}, '^[0-9]+\\z') THEN TRY_CAST({column} AS BIGINT)
        WHEN REGEXP({column}, {written})
        THEN CASE WHEN FLOOR({number}) = {number} THEN CAST({number} AS BIGINT) END
        WHEN REGEXP({column}, {pattern})
        -- The cast makes other days of those that are none.
        THEN CASE WHEN DATE_FORMAT({local}, 'yyyy-MM-dd HH:mm:ss') = {text}
            THEN {MIN_TIMESTAMP_MS} + 1000 * ({seconds} - 60 * ({minutes})) + {milliseconds} END
    END"""


def ids_sql(placeholders: Iterable[str]) -> str:
    """Return SQL for whether user, event and product have ids that can be theirs."""
    found = [f"CHAR_LENGTH({name}) BETWEEN 1 AND {MAX_ID}" for name in _IDS]
    found += [f"{name} >= {_FIRST_FREE}" for name in ("user_id", "product_id")]
    nobody = ", ".join(map(_quoted, sorted(placeholders)))
    if nobody:
        found.append(f"LOWER(TRIM(user_id)) NOT IN ({nobody})")
    return " AND ".join(found)


def time_in_range_sql(max_future_ms: int) -> str:
    """Return SQL for whether `ts` can be an event's time; an unknown `kafka_ms` judges nothing."""
    return (
        f"ts BETWEEN {MIN_TIMESTAMP_MS} AND {MAX_TIMESTAMP_MS}"
        f" AND (kafka_ms < {MIN_TIMESTAMP_MS} OR ts <= kafka_ms + {max_future_ms})"
    )


def _double(number: float) -> str:
    return f"CAST({number!r} AS DOUBLE)"


@contextmanager
def _set(tables: StreamTableEnvironment, settings: Mapping[str, str]) -> Iterator[None]:
    """Change the planner's settings for what is translated meanwhile."""
    config = tables.get_config()
    before = {name: config.get(name, "") for name in settings}
    for name, value in settings.items():
        config.set(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            config.set(name, value)


def trending_lists(
    tables: StreamTableEnvironment,
    kafka: KafkaOptions,
    events_topic: str,
    products_topic: str,
    config: TrendingConfig,
    profile: ProfileConfig,
    max_future_ms: int = MAX_FUTURE_MS,
    placeholders: Iterable[str] = PLACEHOLDER_IDS,
) -> DataStream:
    """Make the lists of all scopes, a changelog: rows of ``connectors.trending_sink.row_type``."""
    decayed = _decayed(config)
    ttl = f"{STATE_HALF_LIVES * config.half_life_ms} ms"
    # The products are translated on their own, with a state that does not expire.
    with _set(tables, {**_SETTINGS, _TTL: "0 ms"}):
        table_source(
            tables,
            kafka,
            products_topic,
            "trending-records",
            _PRODUCT_COLUMNS,
            {
                "key.format": "raw",
                "key.fields": "product_id",
                "value.format": "raw",
                "value.fields-include": "EXCEPT_KEY",
                "scan.startup.mode": "earliest-offset",
            },
        )
        # Not by its former name, under which savepoints have offsets of another topic. What is made
        # of it has other names too, see _lists.
        products = "trending-known"
        _view_of_stream(
            tables,
            products,
            _PRODUCTS.format(source="trending-records", first_free=_FIRST_FREE),
            _PRODUCTS_COLUMNS,
            key=("product_id",),
        )
        newest = tables.sql_query(_NEWEST.format(products=products, no_epoch=NO_EPOCH))
        tables.create_temporary_view("`trending-newest`", newest)
        newest_lists = _lists(
            tables, "trending-newest", config.length, NEWEST_SCOPE, newest_scope("")
        )
    with _set(tables, {**_SETTINGS, _TTL: ttl}):
        events = f"{decayed}-events"
        table_source(
            tables,
            kafka,
            events_topic,
            events,
            _EVENT_COLUMNS,
            {
                "format": "json",
                # What is no event is a dead letter of the recommender.
                "json.ignore-parse-errors": "true",
                "scan.startup.mode": "group-offsets",
            },
        )
        weighed = _WEIGHED.format(
            source=events,
            ts=time_sql("ts"),
            kafka_ms=AT_MS,
            ids=ids_sql(placeholders),
            weight=weight_sql(profile),
            in_range=time_in_range_sql(max_future_ms),
        )
        counted = f"{decayed}-counted"
        # What is remembered of each event leaves long before the sums. Offsets and sums are found
        # in savepoints by the uids that they had when one query did both.
        with _set(tables, {_TTL: f"{round(config.duplicate_s * 1000)} ms"}):
            _view_of_stream(
                tables,
                counted,
                weighed + (_FIRST if config.duplicate_s else _EACH),
                _WEIGHED_COLUMNS,
                appends=True,
                known={-1: f"{decayed}-sums-7"},
            )
        _view_of_stream(
            tables,
            f"{decayed}-summed",
            _SUMS.format(
                source=counted,
                half_life_ms=config.half_life_ms,
                epoch_ms=EPOCH_HALF_LIVES * config.half_life_ms,
                carry_ms=CARRY_HALF_LIVES * config.half_life_ms,
            ),
            _SUMS_COLUMNS,
            key=("product_id", "epoch"),
            known={1: f"{decayed}-sums-1"},
        )
        scored = tables.sql_query(
            _TRENDING.format(sums=f"{decayed}-summed", products=products, ttl=ttl)
        )
        tables.create_temporary_view(f"`{decayed}`", scored)
        lists = _lists(tables, decayed, config.length, ALL_SCOPE, category_scope(""))
    return lists.union(newest_lists)


def _view_of_stream(
    tables: StreamTableEnvironment,
    name: str,
    query: str,
    columns: Mapping[str, str],
    key: Sequence[str] = (),
    *,
    appends: bool = False,
    known: Mapping[int, str] | None = None,
) -> None:
    """Translate a query now, with the present settings, and name what comes out.

    Where two queries read it, the planner would otherwise make some of it twice. ``appends``: no
    row of it is ever changed. ``known``: uids that differ, see :func:`connectors.kafka.typed`.
    """
    stream = typed(tables.to_changelog_stream(tables.sql_query(query)), name, known=known)
    schema = Schema.new_builder()
    for column, kind in columns.items():
        schema.column(column, kind)
    if key:
        schema.primary_key(*key)
    mode = ChangelogMode.insert_only() if appends else ChangelogMode.all()
    view = tables.from_changelog_stream(stream, schema.build(), mode)
    tables.create_temporary_view(f"`{name}`", view)


def _lists(
    tables: StreamTableEnvironment, name: str, length: int, all_scope: str, category_prefix: str
) -> DataStream:
    """Make the lists of the view ``name``: epoch, category, product_id, score.

    The view itself, with its join, is translated with the first sort. Savepoints have products of
    the topic ``catalogue`` under the names -top and -lists, and nothing would take them back.
    """
    top = f"{name}-ranked"
    with _set(tables, _UNBATCHED):
        _view_of_stream(tables, top, _TOP.format(scored=name, length=length), _TOP_COLUMNS)
    query = _LISTS.format(
        top=top,
        length=length,
        all_scope=_quoted(all_scope),
        category_prefix=_quoted(category_prefix),
    )
    stream = tables.to_changelog_stream(tables.sql_query(query))
    return typed(stream, f"{name}-scopes", row_type())


def build_trending(
    lists: DataStream, writer: Callable[[], ScopeWriter], config: TrendingConfig
) -> DataStream:
    """Save the lists."""
    changes = (
        lists.process(ListChanges(), output_type=change_type())
        .uid(uids.TRENDING_CHANGES)
        .name(uids.TRENDING_CHANGES)
    )
    return (
        keyed_by_first(changes, change_type())
        .process(TrendingSink(writer, config), output_type=change_type())
        .uid(f"{uids.TRENDING_SINK}-{config.half_life_ms}")
        .name(uids.TRENDING_SINK)
    )
