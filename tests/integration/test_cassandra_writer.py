"""The writer and the reader on a Cassandra of their own, which may be stopped and moved."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from connectors.cassandra_schema import DEFAULT_EVENT_TTL_DAYS, create_schema
from connectors.cassandra_session import CassandraOptions, Silence, connect
from connectors.cassandra_writer import CassandraWriter, WriterConfig
from connectors.erasure_tool import erased_users
from connectors.patience import WaitInterruptedError
from connectors.recommendation_store import (
    CassandraRecommendationStore,
    Erasure,
    LazyRecommendationStore,
)
from local.cassandra_server import CassandraServer
from local.live import Tables, read_tables
from local.processes import Guardian, free_ports
from tests.integration.helpers import eventually
from tests.unit.builders import event, pending, saved_list
from udfs import schemas
from udfs.schemas import Objection, ProductChange, ProductDetails, SaveBatch

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

KEYSPACE = "writer"
HERE, ELSEWHERE = "127.0.0.2", "127.0.0.3"
DAY = 86_400_000
# The answer of Cassandra 5.0.6 to a key of more than 65,535 bytes.
TOO_LONG = "Key length of"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CassandraServer]:
    root = tmp_path_factory.mktemp("cassandra")
    port, storage_port = free_ports(2)
    made = CassandraServer(root, port, storage_port, "700m", host=HERE)
    guardian = Guardian(made.process.run_dir)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        guardian.release()


@pytest.fixture
def options(server: CassandraServer) -> CassandraOptions:
    return CassandraOptions(hosts=(server.host,), port=server.port, keyspace=KEYSPACE)


@pytest.fixture
def session(options: CassandraOptions) -> Iterator[Any]:
    cluster, session = connect(options, role="test")
    replication: dict[str, str | int] = {"class": "SimpleStrategy", "replication_factor": 1}
    create_schema(session, KEYSPACE, replication)
    for table in ("recommendations_by_user", "events_by_user_day", "erasures", "products"):
        session.execute(f"TRUNCATE {KEYSPACE}.{table}")
    yield session
    cluster.shutdown()


@pytest.fixture
def writer(options: CassandraOptions, session: Any) -> Iterator[CassandraWriter]:
    assert session
    made = CassandraWriter(options, WriterConfig())
    yield made
    made.close()


@pytest.fixture
def store(options: CassandraOptions, session: Any) -> CassandraRecommendationStore:
    return CassandraRecommendationStore(session, options.keyspace, timeout_seconds=10)


def rows(session: Any, table: str, columns: str = "*") -> list[Any]:
    return list(session.execute(f"SELECT {columns} FROM {KEYSPACE}.{table}"))


def times_of(session: Any, user: str) -> list[int]:
    """The times of all events that are saved of a user."""
    found = rows(session, "events_by_user_day", "user_id, toUnixTimestamp(ts) AS ms")
    return sorted(row.ms for row in found if row.user_id == user)


def details(product_id: str, category: str) -> ProductDetails:
    return ProductDetails(product_id, "t", category, 2.0, True)


class TestRefused:
    """What the server never takes."""

    def test_product_with_a_category_as_long_as_a_shifted_column_is_no_restart_loop(
        self, writer: CassandraWriter, store: CassandraRecommendationStore
    ) -> None:
        long, good = details("p1", "x" * 70_000), details("p1", "MONITOR")
        changes = [
            ProductChange(None, long, 1_000_000),
            ProductChange(None, details("p2", "c"), 1_000_000),
        ]
        writer.save(SaveBatch(products=changes))
        report = writer.drain()
        (row,) = report.refused_rows
        assert (row.table, row.key) == ("products_by_scope", "p1")
        assert TOO_LONG in row.detail
        assert json.loads(row.row)["scope"] == "category:" + "x" * 70_000
        assert set(store.products(["p1", "p2"])) == {"p1", "p2"}

        # Mended: the category that is deleted was never there, and is refused as well.
        writer.save(SaveBatch(products=[ProductChange(long, good, 2_000_000)]))
        assert len(writer.drain().refused_rows) == 1
        assert store.products(["p1"])["p1"].category == "MONITOR"
        assert store.products_in("category:MONITOR", limit=5) == ["p1"]
        # And deleted.
        writer.save(SaveBatch(products=[ProductChange(good, None, 3_000_000)]))
        assert writer.drain().refused_rows == []
        assert store.products(["p1"]) == {}

    def test_each_kind_of_row_with_a_key_that_is_too_long(
        self, writer: CassandraWriter, store: CassandraRecommendationStore, session: Any
    ) -> None:
        long = "k" * 70_000
        writer.save(
            SaveBatch(
                lists=[saved_list(long), saved_list("u1")],
                events=[
                    pending(event("e1", user_id=long)),
                    pending(event("e2", product_id=long)),
                    pending(event("e3", user_id="u1")),
                ],
                products=[ProductChange(None, details(long, "c"), 5)],
                objections=[Objection(long, 5)],
                erasures=[schemas.Erasure(long, 5, now_ms(), now_ms() * 1000)],
                unresolved=[("p", 1.0)],
                unresolved_scope=long,
            )
        )
        report = writer.drain()
        assert sorted(one.pending.event.event_id for one in report.refused) == ["e1", "e2"]
        assert {row.table for row in report.refused_rows} == {
            "recommendations_by_user",
            "products",
            "products_by_scope",
            "trending",
            "events_by_user_day",
        }
        assert store.recommendations("u1") is not None
        assert [row.event_id for row in rows(session, "events_by_user_day")] == ["e3\x1fp0"]

    def test_list_larger_than_a_message_may_be(
        self, writer: CassandraWriter, store: CassandraRecommendationStore
    ) -> None:
        # 400 products that one search of 60,000 characters speaks for: 24 MB.
        products = [f"p{number}" for number in range(400)]
        large = saved_list("large", products, reasons=["searched:" + "q" * 60_000] * 400)
        writer.save(SaveBatch(lists=[large, saved_list("small")]))
        report = writer.drain()
        (row,) = report.refused_rows
        assert (row.table, row.key) == ("recommendations_by_user", "large")
        assert "exceeds allowed maximum" in row.detail
        assert store.recommendations("small") is not None

    def test_batch_above_the_servers_limit_is_saved_in_parts(
        self, options: CassandraOptions, session: Any
    ) -> None:
        made = CassandraWriter(options, WriterConfig(batch_bytes=10_000_000))
        many = [pending(event(f"e{n}", user_id="u", query="q" * 60_000)) for n in range(20)]
        made.save(SaveBatch(events=many))
        report = made.drain()
        made.close()
        assert (report.rows, report.refused) == (20, [])
        assert len(rows(session, "events_by_user_day", "event_id")) == 20


class TestLists:
    """Rows of lists."""

    def test_list_leaves_when_its_profile_does(
        self, options: CassandraOptions, session: Any
    ) -> None:
        made = CassandraWriter(options, WriterConfig(list_ttl_seconds=5000))
        made.save(SaveBatch(lists=[saved_list("u", excluded=["p9"], variant="v")]))
        made.drain()
        made.close()
        columns = ("items", "space", "event_ts", "generated_at", "excluded", "variant")
        (row,) = rows(
            session, "recommendations_by_user", ", ".join(f"ttl({one}) AS {one}" for one in columns)
        )
        assert all(4000 < ttl <= 5000 for ttl in row), row

    def test_what_may_be_bought_again_is_no_more_excluded(
        self, writer: CassandraWriter, store: CassandraRecommendationStore
    ) -> None:
        for generated_us, excluded in ((10_000, ["p1"]), (20_000, [])):
            one = saved_list("u", ["p1"], excluded=excluded, generated_us=generated_us)
            writer.save(SaveBatch(lists=[one]))
            writer.drain()
        found = store.recommendations("u")
        assert found is not None
        assert found.excluded == ()


class TestErasure:
    """Nothing of an erased user is found."""

    @staticmethod
    def save(writer: CassandraWriter, user: str, *times: int) -> None:
        batch = SaveBatch(
            lists=[saved_list(user, generated_us=now_ms() * 1000)],
            events=[pending(event(f"e{ts}", user_id=user, ts=ts)) for ts in times],
        )
        writer.save(batch)
        writer.drain()

    @staticmethod
    def erasure(user: str, oldest_ms: int, **fields: Any) -> schemas.Erasure:
        return schemas.Erasure(user, 77, oldest_ms, now_ms() * 1000, **fields)

    def test_rows_of_any_day_are_gone_and_it_is_done(
        self, writer: CassandraWriter, store: CassandraRecommendationStore, session: Any
    ) -> None:
        now = now_ms()
        # Of 2001, of before the table's time limit, of today, and a minute ahead.
        times = [978_307_200_000, now - 200 * DAY, now - 30 * DAY, now, now + 60_000]
        self.save(writer, "u", *times)
        self.save(writer, "other", now)
        assert times_of(session, "u") == times
        store.request_erasure("u", 77)
        assert store.erasure("u") == Erasure(77, None)

        writer.save(SaveBatch(erasures=[self.erasure("u", times[0])]))
        writer.drain()

        assert times_of(session, "u") == []
        assert times_of(session, "other") == [now]
        assert store.recommendations("u") is None
        # One replica is all there are; nobody has waited for its answer.
        eventually(lambda: "" if _is_done(store, "u") else "the erasure is not done", 20)

    def test_rows_are_found_in_a_table_that_keeps_them_longer(
        self, options: CassandraOptions, session: Any
    ) -> None:
        table = f"{KEYSPACE}.events_by_user_day"
        session.execute(f"ALTER TABLE {table} WITH default_time_to_live = {400 * 86_400}")
        try:
            made = CassandraWriter(options, WriterConfig(list_ttl_seconds=90 * 86_400))
            now = now_ms()
            self.save(made, "u", now - 300 * DAY, 978_307_200_000)
            # Of a profile that knows today alone: the one before has ended.
            made.save(SaveBatch(erasures=[self.erasure("u", now)]))
            made.drain()
            made.close()
            assert rows(session, "events_by_user_day") == []
        finally:
            seconds = DEFAULT_EVENT_TTL_DAYS * 86_400
            session.execute(f"ALTER TABLE {table} WITH default_time_to_live = {seconds}")

    def test_repeated_deletion_takes_what_came_back_and_nothing_newer(
        self, writer: CassandraWriter, store: CassandraRecommendationStore, session: Any
    ) -> None:
        now = now_ms()
        self.save(writer, "u", now - 1000)
        erasure = self.erasure("u", now)
        writer.save(SaveBatch(erasures=[erasure]))
        writer.drain()
        # What a replica still had, with its older timestamp, and what the user did afterwards.
        session.execute(
            f"INSERT INTO {KEYSPACE}.events_by_user_day (user_id, day, ts, event_id, type) VALUES"
            f" ('u', toDate(now()), {now - 1000}, 'late', 'click')"
            f" USING TIMESTAMP {erasure.erased_us - 1}"
        )
        self.save(writer, "u", now + 1000)

        writer.save(SaveBatch(erasures=[erasure._replace(repeated=True)]))
        writer.drain()

        assert times_of(session, "u") == [now + 1000]
        assert store.recommendations("u") is not None

    def test_objection_takes_the_list_and_leaves_the_history(
        self, writer: CassandraWriter, store: CassandraRecommendationStore, session: Any
    ) -> None:
        now = now_ms()
        self.save(writer, "u", now)
        writer.save(SaveBatch(objections=[Objection("u", now_ms() * 1000)]))
        writer.drain()
        assert store.recommendations("u") is None
        assert times_of(session, "u") == [now]


def test_status_reads_examples_of_unresolved_products_and_open_erasures(
    writer: CassandraWriter, store: CassandraRecommendationStore, session: Any
) -> None:
    writer.save(
        SaveBatch(unresolved=[("wc_1", 2.0), ("wc_2", 5.0)], unresolved_scope="unresolved:0")
    )
    writer.save(SaveBatch(unresolved=[("wc_1", 4.0)], unresolved_scope="unresolved:3"))
    writer.drain()
    store.request_erasure("open", 10)
    store.request_erasure("done", 10)
    session.execute(
        f"INSERT INTO {KEYSPACE}.erasures (user_id, done_for, done_at) VALUES ('done', 10, 11)"
    )
    assert read_tables(session, KEYSPACE, now_ms()) == Tables(("wc_1", "wc_2"), 1)
    assert read_tables(session, KEYSPACE, now_ms() + DAY) == Tables((), 1)
    assert erased_users(session, KEYSPACE) == ["done", "open"]


def _is_done(store: CassandraRecommendationStore, user: str) -> bool:
    found = store.erasure(user)
    return found is not None and found.done_at is not None


# The last of this module: the server moves.
class TestElsewhere:
    """Cassandra comes back under another address behind the same name."""

    NAME = "cassandra.example"

    @pytest.fixture
    def name(self, server: CassandraServer, monkeypatch: pytest.MonkeyPatch) -> str:
        """A name that leads to where the server is now, as a name server would say."""
        ask = socket.getaddrinfo

        def resolve(host: Any, *given: Any, **named: Any) -> Any:
            return ask(server.host if host == self.NAME else host, *given, **named)

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        return self.NAME

    def test_writer_and_reader_follow_it(
        self, server: CassandraServer, options: CassandraOptions, session: Any, name: str
    ) -> None:
        assert session
        named = CassandraOptions((name,), options.port, KEYSPACE)
        made = CassandraWriter(named, WriterConfig(reconnect_after_s=1.0))
        reader = LazyRecommendationStore(
            "cassandra",
            lambda: CassandraRecommendationStore.open(named, role="test"),
            wait_seconds=10,
            silence=Silence(1.0),
        )
        made.save(SaveBatch(lists=[saved_list("before")]))
        made.drain()
        assert reader.recommendations("before") is not None

        server.kill()
        reports: list[Any] = []

        def save() -> None:
            made.save(SaveBatch(lists=[saved_list("during")], objections=[Objection("x", 5)]))
            reports.append(made.drain())

        waiting = threading.Thread(target=save, daemon=True)
        waiting.start()
        server.host = ELSEWHERE
        server.start()

        waiting.join(60)
        assert reports, "the writer waits where nobody is any more"
        assert reports[0].reconnects == 1

        def read() -> str:
            try:
                found = reader.recommendations("during")
            except Exception as error:
                return repr(error)
            return "" if found is not None else "no list"

        eventually(read, 60)
        reader.close()
        made.close()

    def test_wait_ends_when_the_task_shall_end(
        self, server: CassandraServer, options: CassandraOptions, session: Any
    ) -> None:
        assert session
        ending = threading.Event()
        made = CassandraWriter(
            CassandraOptions((server.host,), options.port, KEYSPACE),
            WriterConfig(),
            interrupted=ending.is_set,
        )
        server.kill()
        made.save(SaveBatch(lists=[saved_list("u")]))
        ended: list[BaseException] = []

        def drain() -> None:
            try:
                made.drain()
            except WaitInterruptedError as error:
                ended.append(error)

        waiting = threading.Thread(target=drain, daemon=True)
        waiting.start()
        ending.set()
        waiting.join(60)
        assert ended
        made.close()
        server.start()
