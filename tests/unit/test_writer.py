"""The writer: what it serialises is what the driver would, and nothing is dropped in silence."""

from __future__ import annotations

import datetime as dt
import json
import re
import struct
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cassandra import (
    AuthenticationFailed,
    ConsistencyLevel,
    InvalidRequest,
    OperationTimedOut,
    Unauthorized,
    Unavailable,
    WriteTimeout,
)
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionShutdown
from cassandra.cqltypes import lookup_casstype
from cassandra.metadata import Murmur3Token
from cassandra.protocol import (
    IsBootstrappingErrorMessage,
    OverloadedErrorMessage,
    ServerError,
)
from cassandra.query import UNSET_VALUE
from cassandra.util import Date
from hypothesis import given
from hypothesis import strategies as st

from connectors import cassandra_writer
from connectors.background_sender import AT_ONCE
from connectors.cassandra_schema import stored_event_id
from connectors.cassandra_session import CassandraOptions
from connectors.cassandra_writer import (
    CassandraWriter,
    WriterConfig,
    encode_event,
    encode_list,
    encode_product_lists,
    item_prefix,
)
from connectors.patience import WaitInterruptedError
from tests.unit.builders import NOW_MS, event, pending, saved_list
from udfs.schemas import (
    EVENT_TYPES,
    MAX_TIMESTAMP_MS,
    Erasure,
    Event,
    Objection,
    ProductChange,
    ProductDetails,
    SaveBatch,
    SavedProductList,
)

PROTOCOL = 5
ITEMS = lookup_casstype("ListType(FrozenType(TupleType(UTF8Type, FloatType, UTF8Type)))")
PAIRS = lookup_casstype("ListType(FrozenType(TupleType(UTF8Type, FloatType)))")
TEXTS = lookup_casstype("ListType(UTF8Type)")
TEXT, BIGINT, TIMESTAMP, INT, DATE = map(
    lookup_casstype, ("UTF8Type", "LongType", "TimestampType", "Int32Type", "SimpleDateType")
)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


def utc(milliseconds: int) -> dt.datetime:
    return dt.datetime(1970, 1, 1) + dt.timedelta(milliseconds=milliseconds)


@given(
    texts,
    st.lists(st.tuples(texts, st.floats(-1, 1, width=32), texts), max_size=30),
    texts,
    st.integers(0, MAX_TIMESTAMP_MS),
    st.integers(0, MAX_TIMESTAMP_MS),
    st.just("") | texts,
    st.lists(texts, max_size=5),
)
def test_list_is_serialised_as_the_driver_does(
    user: str,
    items: list[tuple[str, float, str]],
    space: str,
    event_ms: int,
    generated_us: int,
    variant: str,
    excluded: list[str],
) -> None:
    saved = saved_list(
        user,
        [product_id for product_id, _, _ in items],
        scores=np.array([score for _, score, _ in items], dtype=np.float32),
        reasons=[reason for _, _, reason in items],
        space=space,
        event_ms=event_ms,
        generated_us=generated_us,
        variant=variant,
        excluded=excluded,
    )
    values, size = encode_list(saved, INT.serialize(7_776_000, PROTOCOL))
    rows = [(product_id, float(score), reason) for product_id, score, reason in items]
    assert values == [
        TEXT.serialize(user, PROTOCOL),
        ITEMS.serialize(rows, PROTOCOL),
        TEXT.serialize(space, PROTOCOL),
        TIMESTAMP.serialize(event_ms, PROTOCOL),
        TIMESTAMP.serialize(generated_us // 1000, PROTOCOL),
        TEXT.serialize(variant, PROTOCOL),
        # Written also where it is empty: what is left out keeps its older value.
        TEXTS.serialize(excluded, PROTOCOL),
        BIGINT.serialize(generated_us, PROTOCOL),
        INT.serialize(7_776_000, PROTOCOL),
    ]
    assert [tuple(row) for row in ITEMS.deserialize(values[1], PROTOCOL)] == rows
    # The driver reads times as float seconds.
    read = TIMESTAMP.deserialize(values[3], PROTOCOL)
    assert abs(read - utc(event_ms)) <= dt.timedelta(milliseconds=1)
    assert size >= sum(4 + len(value) for value in values)


@given(
    texts,
    st.lists(st.tuples(texts, st.floats(-1, 3, width=32)), max_size=20),
    st.lists(st.tuples(texts, st.floats(-1, 3, width=32)), max_size=20),
    st.integers(0, MAX_TIMESTAMP_MS),
)
def test_lists_of_a_product_are_serialised_as_the_driver_does(
    product_id: str,
    similar: list[tuple[str, float]],
    together: list[tuple[str, float]],
    generated_us: int,
) -> None:
    saved = SavedProductList(product_id, similar, together, generated_us)
    values, size = encode_product_lists(saved)
    assert values == [
        TEXT.serialize(product_id, PROTOCOL),
        PAIRS.serialize(similar, PROTOCOL),
        PAIRS.serialize(together, PROTOCOL),
        TIMESTAMP.serialize(generated_us // 1000, PROTOCOL),
        BIGINT.serialize(generated_us, PROTOCOL),
    ]
    assert size >= sum(4 + len(value) for value in values)


@given(
    st.builds(
        Event,
        event_id=texts,
        user_id=texts,
        type=st.sampled_from(EVENT_TYPES),
        ts=st.integers(0, MAX_TIMESTAMP_MS),
        product_id=st.none() | texts,
        query=st.none() | texts,
        session_id=st.none() | texts,
        dwell_ms=st.none() | st.integers(0, 2**31 - 1),
        quantity=st.none() | st.integers(0, 2**31 - 1),
    ),
    st.none() | texts,
)
def test_event_is_serialised_as_the_driver_does(made: Event, variant: str | None) -> None:
    values, size = encode_event(made, variant)

    def optional(kind: Any, value: Any) -> Any:
        # A null would be a tombstone.
        return UNSET_VALUE if value is None else kind.serialize(value, PROTOCOL)

    day = utc(made.ts).date()
    assert values == [
        TEXT.serialize(made.user_id, PROTOCOL),
        DATE.serialize(Date(day), PROTOCOL),
        TIMESTAMP.serialize(made.ts, PROTOCOL),
        # Lines of one order may share an id.
        TEXT.serialize(stored_event_id(made.event_id, made.product_id), PROTOCOL),
        TEXT.serialize(made.type, PROTOCOL),
        optional(TEXT, made.product_id),
        optional(TEXT, made.query),
        optional(TEXT, made.session_id),
        optional(INT, made.dwell_ms),
        optional(INT, made.quantity),
        optional(TEXT, variant),
    ]
    assert DATE.deserialize(values[1], PROTOCOL).date() == day
    assert size >= sum(4 + len(value) for value in values if value is not UNSET_VALUE)


class Prepared:
    """A prepared statement: of a bound one, the first value names the row."""

    def __init__(self, cql: str) -> None:
        verb, table = cql.split()[0].lower(), cql.partition(" k.")[2].split()[0]
        self.name = f"{verb} {table}"
        self.query_id = self.name.encode()
        columns = re.search(r"\(([^)]+)\) VALUES", cql)
        names = columns[1].split(", ") if columns else re.findall(r"(\w+) = \?", cql)
        using = re.findall(r"(TIMESTAMP|TTL) \?", cql)
        ordered = [*names, *using] if columns else [*using, *names]
        self.column_metadata = [SimpleNamespace(name=name) for name in ordered]

    def bind(self, values: tuple[Any, ...]) -> Any:
        assert len(values) == len(self.column_metadata), self.name
        text = json.dumps([self.name, *values], default=bytes.decode).encode()
        # As the driver, which cannot serialise everything either.
        for value in values:
            if isinstance(value, str):
                struct.pack(">H", len(value.encode()))
        return SimpleNamespace(values=[text], routing_key=b"key")


class Server:
    """A session of the driver: takes batches, and refuses or fails as it is told."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.bound: list[list[Any]] = []
        self.hosts: list[Any] = []
        """Where each batch was sent; None: as the policy has it."""
        self.levels: list[int | None] = []
        self.batches: list[list[str]] = []
        self.sizes: list[int] = []
        self.prepared: list[str] = []
        self.unanswered = 0
        self.most_unanswered = 0
        self.fail: Callable[[list[str]], Exception | None] = lambda _: None
        self.fail_all: Exception | None = None
        self.hold_all = False
        self.held: list[Callable[[], None]] = []
        """What answers the batches at consistency ALL, where they are held."""
        self.lost_tables = False
        self.prepare_fails: list[Exception] = []

    def prepare(self, cql: str) -> Any:
        if self.prepare_fails:
            raise self.prepare_fails.pop()
        if self.lost_tables:
            msg = "unconfigured table"
            raise InvalidRequest(msg)
        self.prepared.append(cql)
        return Prepared(cql)

    def execute_async(self, batch: Any, execution_profile: str, host: Any = None) -> Any:
        assert execution_profile == "write"
        self.hosts.append(host)
        assert batch.is_idempotent
        rows, bound = [], []
        for prepared, query_id, values in batch._statements_and_parameters:
            assert prepared
            if query_id in (
                b"insert recommendations_by_user",
                b"insert recommendations_by_product",
            ):
                rows.append(values[0].decode())
            elif query_id == b"insert events_by_user_day":
                rows.append(values[3].decode().partition("\x1f")[0])
            else:
                bound.append(json.loads(values[0]))
                rows.append(" ".join(map(str, bound[-1])))
        self.batches.append(rows)
        self.levels.append(batch.consistency_level)
        self.sizes.append(
            sum(
                len(value)
                for _, _, values in batch._statements_and_parameters
                for value in values
                if value is not UNSET_VALUE
            )
        )
        self.unanswered += 1
        self.most_unanswered = max(self.most_unanswered, self.unanswered)
        error = self.fail(rows)
        if error is None and batch.consistency_level == ConsistencyLevel.ALL:
            error = self.fail_all

        def result() -> None:
            self.unanswered -= 1
            if error is not None:
                raise error
            self.rows.extend(rows)
            self.bound.extend(bound)

        def add_callbacks(done: Callable[[Any], None], failed: Callable[[Any], None]) -> None:
            def answer() -> None:
                try:
                    result()
                except Exception as raised:
                    failed(raised)
                else:
                    done(None)

            if self.hold_all and batch.consistency_level == ConsistencyLevel.ALL:
                self.held.append(answer)
            else:
                answer()

        return SimpleNamespace(result=result, add_callbacks=add_callbacks)


class Cluster:
    """A cluster of the driver that has one session."""

    def __init__(self, event_ttl_seconds: int = 90 * 86_400) -> None:
        self.ended = False
        options = {"default_time_to_live": event_ttl_seconds}
        tables = {"events_by_user_day": SimpleNamespace(options=options)}
        self.metadata = SimpleNamespace(
            token_map=None,
            all_hosts=lambda: [1],
            keyspaces={"k": SimpleNamespace(tables=tables)},
        )

    def shutdown(self) -> None:
        self.ended = True


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> Server:
    made = Server()
    monkeypatch.setattr(cassandra_writer, "connect", lambda *_, **__: (cluster, made))
    return made


@pytest.fixture
def slept() -> list[float]:
    return []


def writer(
    server: Server,
    slept: list[float],
    options: CassandraOptions | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    **config: Any,
) -> CassandraWriter:
    return CassandraWriter(
        options or CassandraOptions(keyspace="k"),
        WriterConfig(**config),
        sleep=slept.append,
        interrupted=interrupted,
    )


def batch_of(n: int, *, query: str = "q") -> SaveBatch:
    return SaveBatch(events=[pending(event(f"e{at}", query=query), offset=at) for at in range(n)])


def names(n: int) -> list[str]:
    return [f"e{at}" for at in range(n)]


def test_drain_saves_all_that_was_taken(server: Server, slept: list[float]) -> None:
    made = writer(server, slept, batch_rows=7)
    made.save(SaveBatch(lists=[saved_list("u1"), saved_list("u2")], last=False))
    made.save(batch_of(30))
    report = made.drain()
    assert sorted(server.rows) == sorted(["u1", "u2", *names(30)])
    assert server.unanswered == 0
    assert (report.rows, report.retries, report.refused) == (32, 0, [])
    assert len(report.latencies_ms) == len(server.batches) == 5
    assert slept == []


def test_report_starts_anew_after_each_drain(server: Server, slept: list[float]) -> None:
    made = writer(server, slept)
    made.save(batch_of(3))
    assert made.drain().rows == 3
    again = made.drain()
    assert (again.rows, again.latencies_ms) == (0, [])


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_batches_keep_within_rows(server: Server, slept: list[float], rows: int) -> None:
    made = writer(server, slept, batch_rows=rows, batch_bytes=10**9)
    made.save(batch_of(10))
    made.drain()
    assert max(map(len, server.batches)) == min(rows, 10)
    assert len(server.batches) == -(-10 // rows)


def test_batches_keep_within_bytes_and_a_larger_row_goes_alone(
    server: Server, slept: list[float]
) -> None:
    made = writer(server, slept, batch_bytes=1000)
    made.save(batch_of(10, query="x" * 150))
    made.save(SaveBatch(events=[pending(event("big", query="x" * 60_000))]))
    made.save(batch_of(2))
    made.drain()
    assert ["big"] in server.batches
    sizes = zip(server.batches, server.sizes, strict=True)
    assert all(size <= 1000 for rows, size in sizes if rows != ["big"])
    assert any(len(rows) > 1 for rows in server.batches)


@pytest.mark.parametrize("bound", [1, 4])
def test_no_more_than_in_flight_are_unacknowledged(
    server: Server, slept: list[float], bound: int
) -> None:
    made = writer(server, slept, in_flight=bound, batch_rows=1)
    made.save(batch_of(20))
    made.drain()
    assert server.most_unanswered == bound
    assert sorted(server.rows) == sorted(names(20))


TRANSIENT = [
    NoHostAvailable("all hosts", {}),
    OperationTimedOut(),
    WriteTimeout("x", write_type=0),
    Unavailable("x", consistency=ConsistencyLevel.QUORUM),
    ConnectionShutdown("closed"),
    # The driver raises these as they are on the wire; they are not of cassandra's own exceptions.
    OverloadedErrorMessage(0x1001, "overloaded", None),
    IsBootstrappingErrorMessage(0x1002, "bootstrapping", None),
    ServerError(0x0000, "internal", None),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: type(error).__name__)
def test_transient_failure_is_retried_with_back_off_until_it_stands(
    server: Server, slept: list[float], error: Exception
) -> None:
    left = [error] * 12

    def fail(rows: list[str]) -> Exception | None:
        return left.pop() if "e0" in rows and left else None

    server.fail = fail
    made = writer(server, slept, batch_rows=5, backoff_first_s=0.1, backoff_max_s=2.0)
    made.save(batch_of(10))
    report = made.drain()
    assert sorted(server.rows) == sorted(names(10))
    assert (report.retries, report.rows, report.refused) == (12, 10, [])
    assert len(slept) == 12
    assert all(0.05 <= pause <= 2.0 for pause in slept)
    assert all(pause >= 1.0 for pause in slept[6:])
    assert slept[0] <= 0.2 < 1.0 <= max(slept)


@pytest.mark.parametrize("bad", [{"e0"}, {"e9"}, {"e3", "e4"}, {"e1", "e7", "e8"}, set(names(10))])
def test_exactly_the_refused_rows_are_reported_and_the_others_saved(
    server: Server, slept: list[float], bad: set[str]
) -> None:
    server.fail = lambda rows: InvalidRequest("key too long") if bad & set(rows) else None
    made = writer(server, slept)
    made.save(batch_of(10))
    report = made.drain()
    assert sorted(server.rows) == sorted(set(names(10)) - bad)
    assert {refused.pending.event.event_id for refused in report.refused} == bad
    assert all("key too long" in refused.detail for refused in report.refused)
    assert report.rows == 10 - len(bad)
    assert slept == []


def test_failure_while_isolating_is_retried(server: Server, slept: list[float]) -> None:
    trouble: list[Exception] = [OperationTimedOut(), OperationTimedOut()]
    refusal: Exception = InvalidRequest("bad")

    def fail(rows: list[str]) -> Exception | None:
        if "e2" in rows:
            return refusal
        return trouble.pop() if trouble else None

    server.fail = fail
    made = writer(server, slept)
    made.save(batch_of(5))
    report = made.drain()
    assert sorted(server.rows) == ["e0", "e1", "e3", "e4"]
    assert [refused.pending.event.event_id for refused in report.refused] == ["e2"]
    assert report.retries == 2


def product(product_id: str, category: str = "c", **fields: Any) -> ProductDetails:
    values: dict[str, Any] = {"title": "t", "price": None, "in_stock": True, **fields}
    return ProductDetails(product_id, category=category, **values)


EVERY_KIND = {
    "event": SaveBatch(events=[pending(event())]),
    "list": SaveBatch(lists=[saved_list()]),
    "product": SaveBatch(products=[ProductChange(None, product("p"), 5)]),
    "lists of a product": SaveBatch(product_lists=[SavedProductList("p", [("q", 0.5)], [], 5)]),
    "product without lists": SaveBatch(product_lists=[SavedProductList("p", [], [], 5)]),
    "erasure": SaveBatch(erasures=[Erasure("u", 1, 1, 2)]),
    "objection": SaveBatch(objections=[Objection("u", 2)]),
    "unresolved": SaveBatch(unresolved=[("p", 1.0)], unresolved_scope="unresolved:0"),
}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_lost_table_fails_the_job_and_refuses_no_row(
    server: Server, slept: list[float], kind: str
) -> None:
    made = writer(server, slept)
    made.save(EVERY_KIND[kind])
    made.drain()
    server.fail = lambda _: InvalidRequest("unconfigured table")
    server.lost_tables = True

    def save() -> None:
        made.save(EVERY_KIND[kind])
        made.drain()

    with pytest.raises(InvalidRequest, match="unconfigured table"):
        save()


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_refused_row_of_any_kind_is_reported_and_never_fails_the_job(
    server: Server, slept: list[float], kind: str
) -> None:
    server.fail = lambda _: InvalidRequest("Key length of 70000 is longer than maximum of 65535")
    made = writer(server, slept)
    made.save(EVERY_KIND[kind])
    report = made.drain()
    assert len(report.refused) == (kind == "event")
    assert bool(report.refused_rows) == (kind != "event")
    assert report.rows == 0
    for row in report.refused_rows:
        assert row.key in {"u", "p", "unresolved:0"}
        assert json.loads(row.row)
        assert "Key length" in row.detail
    assert slept == []
    # And a good row of the same key later is saved.
    server.fail = lambda _: None
    made.save(EVERY_KIND[kind])
    assert made.drain().rows > 0


def test_refused_list_is_reported_whole_and_the_others_are_saved(
    server: Server, slept: list[float]
) -> None:
    server.fail = lambda rows: InvalidRequest("bad list") if "u1" in rows else None
    made = writer(server, slept)
    made.save(SaveBatch(lists=[saved_list("u1", ["p1", "p2"]), saved_list("u2")]))
    report = made.drain()
    assert server.rows == ["u2"]
    (row,) = report.refused_rows
    assert (row.table, row.key) == ("recommendations_by_user", "u1")
    assert json.loads(row.row)["product_ids"] == ["p1", "p2"]
    assert json.loads(row.row)["scores"] == [1.0, 0.0]


def test_refused_row_of_a_product_names_its_table_and_the_others_are_saved(
    server: Server, slept: list[float]
) -> None:
    server.fail = lambda rows: InvalidRequest("long") if "category:" in "".join(rows) else None
    made = writer(server, slept)
    made.save(SaveBatch(products=[ProductChange(None, product("p1", "shifted"), 5)]))
    report = made.drain()
    assert [values[0] for values in server.bound] == [
        "insert products_by_scope", "insert products",
    ]  # fmt: skip
    (row,) = report.refused_rows
    assert (row.table, row.key) == ("products_by_scope", "p1")
    # NaN, for no price, is no JSON.
    assert json.loads(row.row, parse_constant=pytest.fail) == {
        "scope": "category:shifted", "price": None, "product_id": "p1", "TIMESTAMP": 5,
    }  # fmt: skip


def test_scopes_that_a_failed_writer_may_have_left_are_deleted(
    server: Server, slept: list[float]
) -> None:
    made = writer(server, slept)
    left = (product("p", "left"),)
    made.save(SaveBatch(products=[ProductChange(None, product("p"), 5, between=left)]))
    made.drain()
    assert server.bound[0][0] == "delete products_by_scope"
    assert server.bound[-1][0] == "insert products"
    # Where nothing is there in the end, a row that came late goes too.
    server.bound.clear()
    made.save(SaveBatch(products=[ProductChange(None, None, 6, between=left)]))
    made.drain()
    assert [values[0] for values in server.bound] == [
        "delete products_by_scope", "delete products_by_scope", "delete products",
    ]  # fmt: skip


def test_what_cannot_be_serialised_is_refused_and_the_others_are_saved(
    server: Server, slept: list[float]
) -> None:
    made = writer(server, slept)
    no_utf8 = "u\ud800"
    made.save(
        SaveBatch(
            lists=[saved_list(no_utf8), saved_list("u2")],
            events=[pending(event("e1", session_id=no_utf8)), pending(event("e2"))],
            products=[ProductChange(None, product("p1", "c" * 70_000), 5)],
            product_lists=[
                SavedProductList("p1", [(no_utf8, 0.5)], [], 5),
                SavedProductList("p2", [("p1", 0.5)], [], 5),
            ],
            objections=[Objection("u" * 70_000, 9)],
        )
    )
    report = made.drain()
    assert {"u2", "e2", "p2"} <= set(server.rows)
    assert [refused.pending.event.event_id for refused in report.refused] == ["e1"]
    refused_tables = [row.table for row in report.refused_rows]
    assert refused_tables == [
        "recommendations_by_user", "products_by_scope", "products", "recommendations_by_product",
        "recommendations_by_user",
    ]  # fmt: skip
    assert slept == []


def test_key_part_that_is_too_long_is_refused_on_a_ring(server: Server, slept: list[float]) -> None:
    made = writer(server, slept)
    made._ring._metadata = ring([Host("n1"), Host("n2")])
    long_user = event("e1", user_id="u" * 70_000)
    made.save(SaveBatch(events=[pending(long_user), pending(event("e2"))]))
    report = made.drain()
    assert server.rows == ["e2"]
    assert [refused.pending.event.event_id for refused in report.refused] == ["e1"]


def test_server_that_is_away_while_a_refused_row_is_looked_at_is_waited_for(
    server: Server, slept: list[float]
) -> None:
    made = writer(server, slept)
    server.fail = lambda rows: InvalidRequest("bad") if "e1" in rows else None
    server.prepare_fails = [OperationTimedOut(), NoHostAvailable("none", {})]
    made.save(batch_of(3))
    report = made.drain()
    assert [refused.pending.event.event_id for refused in report.refused] == ["e1"]
    assert len(slept) == 2


DAY = 86_400_000
NOW_DAY = NOW_MS // DAY


class TestErasure:
    """What is deleted of a user, at which level, and when it is done."""

    @pytest.fixture(autouse=True)
    def _clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(time, "time_ns", lambda: NOW_MS * 1_000_000)

    @staticmethod
    def erasure(oldest_ms: int = NOW_MS, **fields: Any) -> SaveBatch:
        erased_us = NOW_MS * 1000 - 50
        return SaveBatch(erasures=[Erasure("u", NOW_MS - 9, oldest_ms, erased_us, **fields)])

    @staticmethod
    def days(server: Server) -> list[int]:
        found = {values[3] for values in server.bound if values[0] == "delete events_by_user_day"}
        return sorted(day - 2**31 for day in found)

    @staticmethod
    def of(server: Server, name: str) -> list[Any]:
        return [values[1:] for values in server.bound if values[0] == name]

    @pytest.mark.parametrize(
        ("oldest_ms", "ttl_days", "first"),
        [
            (NOW_MS, 90, NOW_DAY - 90),
            (NOW_MS - 200 * DAY, 90, NOW_DAY - 200),
            # A row dated far back.
            (978_307_200_000, 90, 978_307_200_000 // DAY),
            (0, 90, 0),
            # The rows of an earlier profile, which has ended before they do.
            (NOW_MS, 365, 10_957),
        ],
    )
    def test_every_day_is_deleted_that_can_have_rows(
        self,
        server: Server,
        cluster: Cluster,
        slept: list[float],
        oldest_ms: int,
        ttl_days: int,
        first: int,
    ) -> None:
        table = cluster.metadata.keyspaces["k"].tables["events_by_user_day"]
        table.options["default_time_to_live"] = ttl_days * 86_400
        made = writer(server, slept)
        made.save(self.erasure(oldest_ms))
        made.drain()
        found = self.days(server)
        assert first - 1 <= found[0] <= first
        assert found == list(range(found[0], NOW_DAY + 2))

    @pytest.mark.parametrize(
        ("oldest_ms", "ttl_days", "first"),
        [
            (NOW_MS, 90, NOW_DAY - 90),
            (NOW_MS, 365, NOW_DAY - 365),
            (NOW_MS - 500 * DAY, 365, NOW_DAY - 500),
            (NOW_MS, 0, 10_957),
        ],
    )
    def test_repetition_does_not_look_through_all_days_again(
        self,
        server: Server,
        cluster: Cluster,
        slept: list[float],
        oldest_ms: int,
        ttl_days: int,
        first: int,
    ) -> None:
        table = cluster.metadata.keyspaces["k"].tables["events_by_user_day"]
        table.options["default_time_to_live"] = ttl_days * 86_400
        made = writer(server, slept)
        made.save(self.erasure(oldest_ms, repeated=True))
        made.drain()
        assert first - 1 <= self.days(server)[0] <= first

    def test_erasures_that_wait_for_all_replicas_are_few_at_once(
        self, server: Server, slept: list[float]
    ) -> None:
        server.hold_all = True
        made = writer(server, slept, batch_rows=20)
        made.save(SaveBatch(erasures=self.erasure().erasures * 50))
        made.drain()
        assert server.unanswered == len(server.held) == AT_ONCE
        while server.held:
            server.held.pop(0)()
            assert len(server.held) <= AT_ONCE
        made.drain()
        assert len(self.of(server, "insert erasures")) == 50

    def test_events_table_without_a_time_limit_is_searched_from_the_first_day(
        self, server: Server, cluster: Cluster, slept: list[float]
    ) -> None:
        table = cluster.metadata.keyspaces["k"].tables["events_by_user_day"]
        table.options["default_time_to_live"] = 0
        made = writer(server, slept)
        made.save(self.erasure())
        assert self.days(server)[0] == 10_957

    def test_repeated_deletion_takes_nothing_newer_than_the_erasure(
        self, server: Server, slept: list[float]
    ) -> None:
        made = writer(server, slept)
        made.save(self.erasure())
        first = {values[0] for values in self.of(server, "delete events_by_user_day")}
        server.bound.clear()
        made.save(self.erasure(repeated=True))
        again = {values[0] for values in self.of(server, "delete events_by_user_day")}
        # The first time all that was saved before goes, also what was sent again a moment ago.
        assert first == {NOW_MS * 1000}
        assert again == {NOW_MS * 1000 - 50}
        assert {values[0] for values in self.of(server, "delete recommendations_by_user")} == again

    @pytest.mark.parametrize(
        ("read", "write", "everywhere"),
        [
            ("LOCAL_ONE", "LOCAL_QUORUM", True),
            ("ONE", "QUORUM", True),
            ("LOCAL_QUORUM", "LOCAL_ONE", True),
            ("LOCAL_QUORUM", "LOCAL_QUORUM", False),
            ("QUORUM", "QUORUM", False),
            ("LOCAL_ONE", "ALL", False),
            ("ALL", "ONE", False),
            ("TWO", "TWO", True),
        ],
    )
    def test_done_needs_a_level_that_reads_cannot_miss(
        self, server: Server, slept: list[float], read: str, write: str, everywhere: bool
    ) -> None:
        options = CassandraOptions(keyspace="k", read_consistency=read, write_consistency=write)
        made = writer(server, slept, options, batch_rows=40)
        server.fail_all = Unavailable("x", consistency=ConsistencyLevel.ALL)
        made.save(self.erasure())
        report = made.drain()
        assert self.days(server)
        assert report.erasures_unconfirmed == (1 if everywhere else 0)
        assert bool(self.of(server, "insert erasures")) != everywhere
        # Later, when all are back.
        server.fail_all = None
        made.save(self.erasure(repeated=True))
        made.drain()
        assert self.of(server, "insert erasures")[-1] == ["u", NOW_MS - 9, NOW_MS]
        if everywhere:
            at_all = [
                row
                for rows, level in zip(server.batches, server.levels, strict=True)
                if level == ConsistencyLevel.ALL
                for row in rows
            ]
            assert len({row for row in at_all if "delete events" in row}) >= 92
            assert any("delete recommendations" in row for row in at_all)

    @pytest.mark.parametrize("read", ["LOCAL_QUORUM", "LOCAL_ONE"])
    @pytest.mark.parametrize("table", ["events_by_user_day", "recommendations_by_user"])
    def test_it_is_not_done_where_a_deletion_is_refused(
        self, server: Server, slept: list[float], read: str, table: str
    ) -> None:
        refused = f"delete {table}"
        server.fail = lambda rows: (
            InvalidRequest("guardrail") if any(row.startswith(refused) for row in rows) else None
        )
        made = writer(server, slept, CassandraOptions(keyspace="k", read_consistency=read))
        made.save(self.erasure())
        assert {row.table for row in made.drain().refused_rows} == {table}
        assert self.of(server, "insert erasures") == []
        # Mended; and another row that is refused is not this erasure's.
        server.fail = lambda rows: InvalidRequest("too large") if "other" in rows else None
        made.save(SaveBatch(lists=[saved_list("other")], last=False))
        made.save(self.erasure(repeated=True))
        assert [row.key for row in made.drain().refused_rows] == ["other"]
        assert self.of(server, "insert erasures") == [["u", NOW_MS - 9, NOW_MS]]

    def test_objection_deletes_the_list_alone(self, server: Server, slept: list[float]) -> None:
        made = writer(server, slept)
        made.save(SaveBatch(objections=[Objection("u", 77)]))
        made.drain()
        assert server.bound == [["delete recommendations_by_user", 77, "u"]]

    def test_unresolved_products_are_saved_as_a_scope(
        self, server: Server, slept: list[float]
    ) -> None:
        made = writer(server, slept)
        made.save(SaveBatch(unresolved=[("wc_1", 3.0)], unresolved_scope="unresolved:2"))
        made.save(SaveBatch())
        made.drain()
        assert server.bound == [["insert trending", "unresolved:2", [["wc_1", 3.0]], NOW_MS]]


class TestReconnect:
    """A server that is silent where it was is looked for again."""

    @pytest.fixture
    def elsewhere(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """What the next connections find; the first is the server of the fixture."""
        found: list[Any] = []

        def connect(*_: Any, **__: Any) -> Any:
            answer = found.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        self.first = Cluster()
        found.append((self.first, server))
        monkeypatch.setattr(cassandra_writer, "connect", connect)
        return found

    def test_rows_go_to_where_the_names_lead_now(
        self, server: Server, slept: list[float], elsewhere: list[Any]
    ) -> None:
        made = writer(server, slept, reconnect_after_s=0)
        new = Server()
        elsewhere += [NoHostAvailable("none", {}), (Cluster(), new)]
        server.fail = lambda _: NoHostAvailable("none", {})
        made.save(batch_of(5))
        made.save(EVERY_KIND["objection"])
        report = made.drain()
        assert len(new.rows) == 6
        assert report.reconnects == 1
        assert self.first.ended
        # Every statement that was in use, in the new session.
        assert len(new.prepared) == 3
        assert elsewhere == []

    def test_another_ring_amid_a_batch(
        self, server: Server, slept: list[float], elsewhere: list[Any]
    ) -> None:
        made = writer(server, slept, reconnect_after_s=0, batch_rows=1, in_flight=1)
        made._ring._metadata = ring([Host("n1"), Host("n2")])
        new = Server()
        elsewhere.append((Cluster(), new))
        server.fail = lambda _: NoHostAvailable("none", {})
        batch = batch_of(6)
        batch.lists += [saved_list(f"u{number}") for number in range(6)]
        made.save(batch)
        made.drain()
        assert sorted(new.rows) == sorted([*names(6), *(f"u{number}" for number in range(6))])

    def test_half_made_connection_is_given_up(
        self, server: Server, slept: list[float], elsewhere: list[Any]
    ) -> None:
        made = writer(server, slept, reconnect_after_s=0)
        half, without_tables = Cluster(), Server()
        without_tables.lost_tables = True
        elsewhere += [(half, without_tables), (Cluster(), Server())]
        server.fail = lambda _: OperationTimedOut()
        made.save(batch_of(1))
        assert made.drain().reconnects == 1
        assert half.ended

    @pytest.mark.usefixtures("elsewhere")
    @pytest.mark.parametrize(
        "answer", [Unavailable("x", consistency=1), WriteTimeout("x", write_type=0)]
    )
    def test_server_that_answers_is_not_left(
        self, server: Server, slept: list[float], answer: Exception
    ) -> None:
        made = writer(server, slept, reconnect_after_s=0)
        left = [answer] * 5
        server.fail = lambda _: left.pop() if left else None
        made.save(batch_of(1))
        assert made.drain().reconnects == 0
        assert not self.first.ended

    @pytest.mark.usefixtures("elsewhere")
    def test_short_silence_is_waited_for(self, server: Server, slept: list[float]) -> None:
        made = writer(server, slept, reconnect_after_s=3600)
        left: list[Exception] = [NoHostAvailable("none", {})] * 5
        server.fail = lambda _: left.pop() if left else None
        made.save(batch_of(1))
        assert made.drain().reconnects == 0


@pytest.mark.parametrize("attempts", [0, 1, 4])
def test_wait_ends_when_the_task_shall_end(
    server: Server, slept: list[float], attempts: int
) -> None:
    server.fail = lambda _: NoHostAvailable("none", {})
    asleep: list[float] = slept
    made = writer(
        server, asleep, interrupted=lambda: len(asleep) >= attempts, reconnect_after_s=3600
    )
    made.save(batch_of(3))
    with pytest.raises(WaitInterruptedError):
        made.drain()
    assert len(slept) == attempts


def test_long_wait_is_slept_in_parts(server: Server, slept: list[float]) -> None:
    left = [OperationTimedOut()]
    server.fail = lambda _: left.pop() if left else None
    made = writer(server, slept, backoff_first_s=100.0, backoff_max_s=100.0)
    made.save(batch_of(1))
    made.drain()
    assert 50 <= sum(slept) <= 105
    assert max(slept) <= 5


@pytest.mark.parametrize("error", [Unauthorized("no"), AuthenticationFailed("no")])
def test_missing_rights_fail_the_job(server: Server, slept: list[float], error: Exception) -> None:
    server.fail = lambda _: error
    made = writer(server, slept)
    made.save(batch_of(3))
    with pytest.raises(type(error)):
        made.drain()
    assert slept == []


class Host:
    """A host as the driver sees it."""

    def __init__(self, name: str, datacenter: str = "dc1", *, is_up: bool = True) -> None:
        self.name, self.datacenter, self.is_up = name, datacenter, is_up

    def __repr__(self) -> str:
        return self.name


def ring(nodes: list[Host], others: list[Host] | None = None) -> Any:
    """The driver's view of a cluster whose nodes own the ring in turns, behind ``others``."""
    tokens = [Murmur3Token(value) for value in range(-(2**63), 2**63, 2**60)]
    owner = {token.value: nodes[at % len(nodes)] for at, token in enumerate(tokens)}
    token_map = SimpleNamespace(
        token_class=Murmur3Token,
        ring=tokens,
        get_replicas=lambda _, token: [*(others or []), owner[token.value]],
    )
    return SimpleNamespace(token_map=token_map, all_hosts=lambda: nodes)


def owner_of(user: str, metadata: Any) -> Host:
    token = Murmur3Token.from_key(user.encode()).value
    tokens = metadata.token_map.ring
    found = next((one for one in tokens if one.value >= token), tokens[0])
    host: Host = metadata.token_map.get_replicas("k", found)[-1]
    return host


USERS = [f"user{at}" for at in range(60)]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_each_row_goes_to_its_first_replica_in_the_own_data_centre(
    server: Server, slept: list[float], *, elsewhere: bool
) -> None:
    nodes = [Host(f"node{at}") for at in range(3)]
    made = writer(server, slept)
    if elsewhere:
        made._ring._local_dc = "dc1"
    made._ring._metadata = ring(nodes, [Host("far", "dc2")] if elsewhere else None)
    made.save(SaveBatch(lists=[saved_list(user) for user in USERS]))
    made.drain()

    assert sorted(server.rows) == sorted(USERS)
    assert set(server.hosts) == set(nodes)
    for rows, host in zip(server.batches, server.hosts, strict=True):
        assert {owner_of(user, made._ring._metadata) for user in rows} == {host}


def test_rows_of_a_host_that_is_down_go_where_the_driver_sends_them(
    server: Server, slept: list[float]
) -> None:
    nodes = [Host("node0"), Host("node1", is_up=False), Host("node2")]
    made = writer(server, slept)
    made._ring._metadata = ring(nodes)
    made.save(SaveBatch(lists=[saved_list(user) for user in USERS]))
    report = made.drain()

    assert sorted(server.rows) == sorted(USERS)
    assert set(server.hosts) == {nodes[0], None, nodes[2]}
    assert report.retries == 0


@pytest.mark.parametrize(
    "error", [NoHostAvailable("down", {}), OperationTimedOut(), ConnectionShutdown("reset")]
)
def test_a_host_that_fails_is_not_asked_again_for_the_same_batch(
    server: Server, slept: list[float], error: Exception
) -> None:
    nodes = [Host("node0"), Host("node1"), Host("node2")]
    made = writer(server, slept)
    made._ring._metadata = ring(nodes)
    server.fail = lambda _: error if server.hosts[-1] is nodes[1] else None
    made.save(SaveBatch(lists=[saved_list(user) for user in USERS]))
    report = made.drain()

    assert sorted(server.rows) == sorted(USERS)
    assert server.hosts.count(nodes[1]) == server.hosts.count(None) == report.retries == 1


def test_item_prefix_is_cached_and_bounded(
    server: Server, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cassandra_writer, "_PREFIX_CACHE", 3)
    made = writer(server, slept)
    for at in range(10):
        assert made._prefix(f"p{at}") == item_prefix(f"p{at}")
        assert len(made._prefixes) <= 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_bytes": 0},
        {"batch_rows": 0},
        {"in_flight": 0},
        {"backoff_first_s": 0.0},
        {"backoff_max_s": 0.01},
        {"backoff_max_s": float("nan")},
        # The driver counts them in two bytes.
        {"batch_rows": 65_536},
        {"list_ttl_seconds": 0},
        {"list_ttl_seconds": 157_680_001},
        {"reconnect_after_s": -1.0},
    ],
)
def test_limits_that_let_nothing_through_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        WriterConfig(**wrong)


def test_day_of_an_event_is_the_utc_day_of_its_time() -> None:
    values, _ = encode_event(event(ts=NOW_MS))
    assert DATE.deserialize(values[1], PROTOCOL).date() == dt.date(2024, 11, 22)
