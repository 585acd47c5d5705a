"""The writer: what it serialises is what the driver would, and nothing is dropped in silence."""

from __future__ import annotations

import datetime as dt
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
from connectors.cassandra_session import CassandraOptions
from connectors.cassandra_writer import (
    CassandraWriter,
    WriterConfig,
    encode_event,
    encode_list,
    item_prefix,
)
from tests.unit.builders import NOW_MS, event, pending, saved_list
from udfs.schemas import EVENT_TYPES, MAX_TIMESTAMP_MS, Event, SaveBatch

PROTOCOL = 5
ITEMS = lookup_casstype("ListType(FrozenType(TupleType(UTF8Type, FloatType, UTF8Type)))")
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
)
def test_list_is_serialised_as_the_driver_does(
    user: str,
    items: list[tuple[str, float, str]],
    space: str,
    event_ms: int,
    generated_us: int,
    variant: str,
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
    )
    values, size = encode_list(saved)
    rows = [(product_id, float(score), reason) for product_id, score, reason in items]
    assert values == [
        TEXT.serialize(user, PROTOCOL),
        ITEMS.serialize(rows, PROTOCOL),
        TEXT.serialize(space, PROTOCOL),
        TIMESTAMP.serialize(event_ms, PROTOCOL),
        TIMESTAMP.serialize(generated_us // 1000, PROTOCOL),
        TEXT.serialize(variant, PROTOCOL),
        BIGINT.serialize(generated_us, PROTOCOL),
    ]
    assert [tuple(row) for row in ITEMS.deserialize(values[1], PROTOCOL)] == rows
    # The driver reads times as float seconds.
    read = TIMESTAMP.deserialize(values[3], PROTOCOL)
    assert abs(read - utc(event_ms)) <= dt.timedelta(milliseconds=1)
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
        TEXT.serialize(made.event_id, PROTOCOL),
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


class Server:
    """A session of the driver: takes batches, and refuses or fails as it is told."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.batches: list[list[str]] = []
        self.sizes: list[int] = []
        self.prepared: list[str] = []
        self.unanswered = 0
        self.most_unanswered = 0
        self.fail: Callable[[list[str]], Exception | None] = lambda _: None
        self.lost_tables = False

    def prepare(self, cql: str) -> Any:
        if self.lost_tables and self.prepared.count(cql) == 0 and "SELECT" in cql:
            msg = "unconfigured table"
            raise InvalidRequest(msg)
        self.prepared.append(cql)
        return SimpleNamespace(query_id=b"list" if "recommendations" in cql else b"event")

    def execute_async(self, batch: Any, execution_profile: str) -> Any:
        assert execution_profile == "write"
        assert batch.is_idempotent
        rows = [
            (values[0] if query_id == b"list" else values[3]).decode()
            for prepared, query_id, values in batch._statements_and_parameters
        ]
        self.batches.append(rows)
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

        def result() -> None:
            self.unanswered -= 1
            if error is not None:
                raise error
            self.rows.extend(rows)

        return SimpleNamespace(result=result)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    cluster = SimpleNamespace(
        metadata=SimpleNamespace(token_map=None, all_hosts=lambda: [1]), shutdown=lambda: None
    )
    monkeypatch.setattr(cassandra_writer, "connect", lambda *_, **__: (cluster, made))
    return made


@pytest.fixture
def slept() -> list[float]:
    return []


def writer(server: Server, slept: list[float], **config: Any) -> CassandraWriter:
    return CassandraWriter(CassandraOptions(), WriterConfig(**config), sleep=slept.append)


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


def test_lost_table_fails_the_job_and_refuses_no_event(server: Server, slept: list[float]) -> None:
    server.fail = lambda _: InvalidRequest("unconfigured table")
    made = writer(server, slept)
    server.lost_tables = True
    made.save(batch_of(3))
    with pytest.raises(InvalidRequest, match="unconfigured table"):
        made.drain()


def test_refused_list_fails_the_job(server: Server, slept: list[float]) -> None:
    server.fail = lambda rows: InvalidRequest("bad list") if "u1" in rows else None
    made = writer(server, slept)
    made.save(SaveBatch(lists=[saved_list("u1"), saved_list("u2")]))
    with pytest.raises(RuntimeError, match="bad list"):
        made.drain()


@pytest.mark.parametrize("error", [Unauthorized("no"), AuthenticationFailed("no")])
def test_missing_rights_fail_the_job(server: Server, slept: list[float], error: Exception) -> None:
    server.fail = lambda _: error
    made = writer(server, slept)
    made.save(batch_of(3))
    with pytest.raises(type(error)):
        made.drain()
    assert slept == []


def test_rows_are_grouped_by_first_replica_on_a_ring(
    server: Server, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cassandra.metadata import Murmur3Token

    tokens = [Murmur3Token(value) for value in range(-(2**63), 2**63, 2**60)]
    owner = {token.value: f"node{at % 3}" for at, token in enumerate(tokens)}
    token_map = SimpleNamespace(
        token_class=Murmur3Token, ring=tokens, get_replicas=lambda _, token: [owner[token.value]]
    )
    made = writer(server, slept)
    made._ring._metadata = SimpleNamespace(token_map=token_map, all_hosts=lambda: [1, 2, 3])
    users = [f"user{at}" for at in range(60)]
    made.save(SaveBatch(lists=[saved_list(user) for user in users]))
    made.drain()

    def expected(user: str) -> str:
        token = Murmur3Token.from_key(user.encode()).value
        after = [one.value for one in tokens if one.value >= token]
        return owner[after[0] if after else tokens[0].value]

    assert sorted(server.rows) == sorted(users)
    assert len({expected(user) for user in users}) == 3
    for rows in server.batches:
        assert len({expected(user) for user in rows}) == 1


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
    ],
)
def test_limits_that_let_nothing_through_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        WriterConfig(**wrong)


def test_day_of_an_event_is_the_utc_day_of_its_time() -> None:
    values, _ = encode_event(event(ts=NOW_MS))
    assert DATE.deserialize(values[1], PROTOCOL).date() == dt.date(2024, 11, 22)
