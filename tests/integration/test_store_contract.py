"""The Cassandra store keeps the same contract as the one in memory, on a real server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from cassandra.protocol import ResultMessage
from cassandra.query import UNSET_VALUE

from connectors.cassandra_schema import create_schema, day_of, statement, stored_event_id
from connectors.cassandra_session import READ_PROFILE, WRITE_PROFILE, CassandraOptions, connect
from connectors.fast_reads import ReadProtocolHandler
from connectors.product_rows import ProductRow, product_writes
from connectors.recommendation_store import (
    CassandraRecommendationStore,
    RecommendationList,
    StoredEvent,
    StoreUnavailable,
    TrendingList,
)
from tests.contract.store_contract import StoreContract
from udfs.schemas import SavedProductList

pytestmark = pytest.mark.integration

KEYSPACE = "store_contract"


class CassandraSubject:
    def __init__(self, session: Any) -> None:
        self.store = CassandraRecommendationStore(session, KEYSPACE, timeout_seconds=10)
        self._session = session
        self._insert_list = session.prepare(statement("insert_recommendations", KEYSPACE))
        self._insert_event = session.prepare(statement("insert_event", KEYSPACE))

    def save_list(self, found: RecommendationList) -> None:
        values = (
            found.user_id,
            list(found.items),
            found.space,
            found.event_ts,
            found.generated_at,
            found.variant,
            list(found.excluded),
            found.generated_at * 1000,
            3600,
        )
        self._session.execute(self._insert_list, values, execution_profile=WRITE_PROFILE)

    def save_product(self, old: ProductRow | None, new: ProductRow | None) -> None:
        for name, values in product_writes(old, new, time.time_ns() // 1000):
            self._write(name, values)

    def save_trending(self, scope: str, found: TrendingList) -> None:
        self._write("insert_trending", (scope, list(found.items), found.generated_at))

    def save_lists_of_product(self, saved: SavedProductList) -> None:
        product_id, similar, together, at_us = saved
        if similar or together:
            values = (product_id, similar, together, at_us // 1000, at_us)
            self._write("insert_product_lists", values)
        else:
            self._write("delete_product_lists", (at_us, product_id))

    def finish_erasure(self, user_id: str, done_for: int, done_at: int) -> None:
        self._write("insert_erasure_done", (user_id, done_for, done_at))

    def _write(self, name: str, values: tuple[Any, ...]) -> None:
        prepared = self._session.prepare(statement(name, KEYSPACE))
        self._session.execute(prepared, values, execution_profile=WRITE_PROFILE)

    def save_event(self, user_id: str, event: StoredEvent) -> None:
        self._save(user_id, event, stored_event_id(event.event_id, event.product_id))

    def save_old_event(self, user_id: str, event: StoredEvent) -> None:
        self._save(user_id, event, event.event_id)

    def _save(self, user_id: str, event: StoredEvent, stored_id: str) -> None:
        optional = (
            event.product_id,
            event.query,
            event.session_id,
            event.dwell_ms,
            event.quantity,
            event.variant,
        )
        values = (
            user_id,
            day_of(event.ts),
            event.ts,
            stored_id,
            event.type,
            *(UNSET_VALUE if value is None else value for value in optional),
        )
        self._session.execute(self._insert_event, values, execution_profile=WRITE_PROFILE)


@pytest.fixture(scope="module")
def options(stack: Any) -> CassandraOptions:
    return CassandraOptions(
        hosts=(stack.cassandra.host,), port=stack.cassandra.port, keyspace=KEYSPACE
    )


@pytest.fixture(scope="module")
def session(options: CassandraOptions) -> Iterator[Any]:
    cluster, session = connect(options, role="test")
    replication: dict[str, str | int] = {"class": "SimpleStrategy", "replication_factor": 1}
    # Twice: the second must find everything in place. The TTL keeps the suite's fixed past valid,
    # because it counts from the time of the write.
    create_schema(session, KEYSPACE, replication)
    create_schema(session, KEYSPACE, replication)
    yield session
    cluster.shutdown()


class TestCassandraStore(StoreContract):
    @pytest.fixture(scope="class")
    def subject(self, session: Any) -> CassandraSubject:
        return CassandraSubject(session)


def test_missing_tables_make_the_store_unavailable(session: Any) -> None:
    with pytest.raises(StoreUnavailable, match="does not have the tables"):
        CassandraRecommendationStore(session, "absent")


def test_open_connects_and_close_ends_it(session: Any, options: CassandraOptions) -> None:
    store = CassandraRecommendationStore.open(options, role="test")
    store.ping()
    store.close()
    store.close()
    with pytest.raises(StoreUnavailable):
        store.ping()


@pytest.fixture
def table(session: Any) -> Iterator[str]:
    name = f"{KEYSPACE}.changing"
    session.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, value blob)")
    yield name
    session.execute(f"DROP TABLE {name}")


def test_answers_come_without_metadata_and_follow_a_changed_table(
    session: Any, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    described: list[bool] = []

    class Watched(ReadProtocolHandler):
        @classmethod
        def decode_message(cls, *given: Any) -> Any:
            message = ReadProtocolHandler.decode_message(*given)
            if isinstance(message, ResultMessage):
                described.append(message.column_metadata is not None)
            return message

    session.execute(f"INSERT INTO {table} (id, value) VALUES (1, 0x02)")
    select = session.prepare(f"SELECT * FROM {table} WHERE id = ?")
    monkeypatch.setattr(session, "client_protocol_handler", Watched)

    assert list(session.execute(select, (1,), execution_profile=READ_PROFILE)) == [(1, b"\x02")]
    assert described == [False]

    # A column that an answer has and the statement's description has not.
    session.execute(f"ALTER TABLE {table} ADD added text")
    session.execute(f"UPDATE {table} SET added = 'x' WHERE id = 1")
    for _ in range(2):
        rows = list(session.execute(select, (1,), execution_profile=READ_PROFILE))
        assert rows == [(1, "x", b"\x02")]


def test_more_than_a_socket_takes_at_once_arrives_whole(session: Any, table: str) -> None:
    insert = session.prepare(f"INSERT INTO {table} (id, value) VALUES (?, ?)")
    for one in range(3):
        value = bytes([one]) * (8_000_000 + one)

        session.execute(insert, (one, value), execution_profile=WRITE_PROFILE)

        (row,) = session.execute(f"SELECT value FROM {table} WHERE id = {one}")
        assert row.value == value
