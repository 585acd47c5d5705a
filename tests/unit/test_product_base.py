"""The reader of bases against a session written by hand: chunks, waits, earlier rows."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from cassandra import ConsistencyLevel, InvalidRequest, OperationTimedOut

from connectors import product_base
from connectors.cassandra_session import CassandraOptions
from connectors.patience import WaitInterruptedError
from connectors.product_base import ProductBases, base_consistency
from udfs.product_record import NO_RECORD, ProductRecord, encode

UPDATED = dt.datetime(2024, 11, 22, 18, 26, 40, 123_000)
UPDATED_MS = 1_732_300_000_123
RECORD = ProductRecord(1, "p é", "t", "c", None, True, {}, True, 1, 2)
Row = tuple[Any, ...]


class Server:
    """Cassandra: rows by id, and what it says instead."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.failures: list[Exception] = []
        self.asked: list[tuple[list[str], int]] = []
        self.connections = 0
        self.open = 0

    def connect(self, _options: CassandraOptions, role: str) -> tuple[Any, Any]:
        assert role == "job"
        self.connections += 1
        self.open += 1

        def shutdown() -> None:
            self.open -= 1

        return SimpleNamespace(shutdown=shutdown), self

    def prepare(self, cql: str) -> Any:
        assert "WHERE product_id IN ?" in cql
        return SimpleNamespace(bind=lambda values: SimpleNamespace(names=values[0]))

    def execute_async(self, bound: Any, execution_profile: str) -> Any:
        assert execution_profile == "read"
        self.asked.append((list(bound.names), bound.consistency_level))

        def result() -> list[Row]:
            if self.failures:
                raise self.failures.pop(0)
            return [self.rows[name] for name in bound.names if name in self.rows]

        return SimpleNamespace(result=result)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(product_base, "connect", made.connect)
    return made


def bases(interrupted: Callable[[], bool] = lambda: False) -> ProductBases:
    return ProductBases(CassandraOptions(), sleep=lambda _: None, interrupted=interrupted)


def row(name: str, record: bytes | None, price: float | None = 1.5) -> Row:
    return name, "t", "c", price, True, UPDATED, record


def test_products_are_read_in_chunks_at_a_level_that_meets_every_write(server: Server) -> None:
    server.rows = {"p é": row("p é", encode(RECORD))}
    names = [f"p{number}" for number in range(130)] + ["p é"]
    assert bases().read(names) == {"p é": RECORD}
    assert [len(asked) for asked, _ in server.asked] == [64, 64, 3]
    assert {level for _, level in server.asked} == {ConsistencyLevel.LOCAL_QUORUM}
    assert bases().read([]) == {}


@pytest.mark.parametrize("record", [None, b"", b"{", encode(RECORD).replace(b":1,", b":9,", 1)])
def test_a_row_without_a_record_gives_its_columns_and_no_vectors(
    server: Server, record: bytes | None
) -> None:
    server.rows = {"p é": row("p é", record, math.nan)}
    base = bases().read(["p é"])["p é"]
    assert base.version == NO_RECORD
    assert (base.title, base.category, base.price, base.in_stock) == ("t", "c", None, True)
    assert (base.vectors, base.first_seen_ms) == ({}, UPDATED_MS)
    assert base.updated_us >= UPDATED_MS * 1000 + 999


def test_an_outage_is_waited_for_with_a_new_connection(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr("connectors.cassandra_session.time.monotonic", lambda: next(clock))
    server.rows = {"p é": row("p é", encode(RECORD))}
    server.failures = [OperationTimedOut()] * 4
    made = bases()
    assert made.read(["p é"]) == {"p é": RECORD}
    assert (server.connections, server.open) == (2, 1)
    made.close()
    assert server.open == 0


def test_a_task_that_shall_end_waits_no_longer(server: Server) -> None:
    server.failures = [OperationTimedOut()]
    with pytest.raises(WaitInterruptedError):
        bases(lambda: True).read(["p"])


def test_a_lost_table_fails_the_job(server: Server) -> None:
    server.failures = [InvalidRequest("unconfigured table")]
    with pytest.raises(InvalidRequest):
        bases().read(["p"])


@pytest.mark.parametrize(
    ("write", "read", "level"),
    [
        ("LOCAL_QUORUM", "LOCAL_ONE", "LOCAL_QUORUM"),
        ("QUORUM", "QUORUM", "QUORUM"),
        ("ALL", "LOCAL_ONE", "LOCAL_ONE"),
        ("LOCAL_ONE", "LOCAL_QUORUM", "ALL"),
        ("QUORUM", "LOCAL_QUORUM", "QUORUM"),
    ],
)
def test_bases_are_read_where_every_write_is_met(write: str, read: str, level: str) -> None:
    assert base_consistency(write, read) == level
