"""Trending and newest products: Flink SQL over the same topics, in Java, saved by a small sink.

Nothing here touches the recommender's chain: the queries read the topics on their own, and only
finished lists, one a scope and mini-batch, reach Python.

    events ── decayed sum a product and epoch ─┐
    catalogue ── category, stock, first seen ──┴─ join ── top of each category ── top of all ── list
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from pyflink.datastream import DataStream
from pyflink.table import Schema, StreamTableEnvironment

from connectors.cassandra_schema import ALL_SCOPE, NEWEST_SCOPE, category_scope, newest_scope
from connectors.kafka import KafkaOptions, keyed_by_first, table_source, typed
from connectors.trending_sink import (
    NO_EPOCH,
    ListChanges,
    ScopeWriter,
    TrendingSink,
    change_type,
    row_type,
)
from job import uids
from udfs.profile import ProfileConfig
from udfs.schemas import MAX_FUTURE_MS
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

_EVENT_COLUMNS: Final = "`type` STRING, `ts` BIGINT, `product_id` STRING, `dwell_ms` INT"
_PRODUCT_COLUMNS: Final = (
    "`product_id` STRING, `value` STRING, `at` TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL"
)

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

# What is known of each product that ever was in the topic. A deleted one is out of stock: its row
# stays, so that it does not become new again. What is no product with the id of its key is not
# taken: a dead letter of the recommender, or a notice of a new space.
_PRODUCTS: Final = """
SELECT
    product_id,
    LAST_VALUE(COALESCE(JSON_VALUE(`value`, '$.category'), '')) AS category,
    LAST_VALUE(
        `value` IS NOT NULL AND COALESCE(JSON_VALUE(`value`, '$.in_stock' RETURNING BOOLEAN), TRUE)
    ) AS in_stock,
    CAST(MIN(TIMESTAMPDIFF(SECOND, TO_TIMESTAMP_LTZ(0, 3), `at`)) AS DOUBLE) AS first_seen
FROM `{source}`
WHERE product_id IS NOT NULL
  AND (`value` IS NULL OR JSON_VALUE(`value`, '$.product_id') = product_id)
GROUP BY product_id
"""

# An event counts in its epoch, and a late one of an epoch in the next too: see udfs.trending.
_SUMS: Final = """
WITH weighed AS (
    SELECT
        product_id,
        ts,
        ts / {epoch_ms} AS epoch,
        {weight} AS weight
    FROM `{source}`
    WHERE product_id IS NOT NULL
      AND ts >= 0 AND ts <= UNIX_TIMESTAMP() * 1000 + {max_future_ms}
), counted AS (
    SELECT product_id, epoch, weight, ts - epoch * {epoch_ms} AS age
    FROM weighed
    WHERE weight > 0
    UNION ALL
    SELECT product_id, epoch + 1, weight, ts - (epoch + 1) * {epoch_ms}
    FROM weighed
    WHERE weight > 0 AND ts - (epoch + 1) * {epoch_ms} >= -{carry_ms}
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
    catalogue_topic: str,
    config: TrendingConfig,
    profile: ProfileConfig,
) -> DataStream:
    """Make the lists of all scopes, a changelog: rows of ``connectors.trending_sink.row_type``."""
    decayed = _decayed(config)
    ttl = f"{STATE_HALF_LIVES * config.half_life_ms} ms"
    # The products are translated on their own, with a state that does not expire.
    with _set(tables, {**_SETTINGS, _TTL: "0 ms"}):
        table_source(
            tables,
            kafka,
            catalogue_topic,
            "trending-catalogue",
            _PRODUCT_COLUMNS,
            {
                "key.format": "raw",
                "key.fields": "product_id",
                "value.format": "raw",
                "value.fields-include": "EXCEPT_KEY",
                "scan.startup.mode": "earliest-offset",
            },
        )
        products = "trending-products"
        _view_of_stream(
            tables,
            products,
            _PRODUCTS.format(source="trending-catalogue"),
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
        _view_of_stream(
            tables,
            f"{decayed}-sums",
            _SUMS.format(
                source=events,
                weight=weight_sql(profile),
                half_life_ms=config.half_life_ms,
                epoch_ms=EPOCH_HALF_LIVES * config.half_life_ms,
                carry_ms=CARRY_HALF_LIVES * config.half_life_ms,
                max_future_ms=MAX_FUTURE_MS,
            ),
            _SUMS_COLUMNS,
            key=("product_id", "epoch"),
        )
        scored = tables.sql_query(
            _TRENDING.format(sums=f"{decayed}-sums", products=products, ttl=ttl)
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
) -> None:
    """Translate a query now, with the present settings, and name what comes out.

    Where two queries read it, the planner would otherwise make some of it twice.
    """
    stream = typed(tables.to_changelog_stream(tables.sql_query(query)), name)
    schema = Schema.new_builder()
    for column, kind in columns.items():
        schema.column(column, kind)
    if key:
        schema.primary_key(*key)
    view = tables.from_changelog_stream(stream, schema.build())
    tables.create_temporary_view(f"`{name}`", view)


def _lists(
    tables: StreamTableEnvironment, name: str, length: int, all_scope: str, category_prefix: str
) -> DataStream:
    """Make the lists of the view ``name``: epoch, category, product_id, score.

    The view itself, with its join, is translated with the first sort.
    """
    top = f"{name}-top"
    with _set(tables, _UNBATCHED):
        _view_of_stream(tables, top, _TOP.format(scored=name, length=length), _TOP_COLUMNS)
    query = _LISTS.format(
        top=top,
        length=length,
        all_scope=_quoted(all_scope),
        category_prefix=_quoted(category_prefix),
    )
    stream = tables.to_changelog_stream(tables.sql_query(query))
    return typed(stream, f"{name}-lists", row_type())


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
