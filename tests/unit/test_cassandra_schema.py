"""The schema's statements, without a server."""

from __future__ import annotations

import datetime as dt
from types import SimpleNamespace
from typing import Any

import pytest
from cassandra import InvalidRequest
from hypothesis import given
from hypothesis import strategies as st

from connectors.cassandra_schema import (
    CQL,
    SchemaError,
    create_schema,
    day_of,
    schema_statements,
    start_of_day,
    statement,
)

RF1: dict[str, str | int] = {"class": "SimpleStrategy", "replication_factor": 1}


class FakeSession:
    def __init__(self, *, agreed: bool = True, broken: str = "") -> None:
        self.executed: list[str] = []
        self._agreed = agreed
        self._broken = broken

    def execute(self, cql: str) -> Any:
        self.executed.append(cql)
        return SimpleNamespace(response_future=SimpleNamespace(is_schema_agreed=self._agreed))

    def prepare(self, cql: str) -> None:
        if self._broken and self._broken in cql:
            msg = "Undefined column name"
            raise InvalidRequest(msg)


def test_every_creation_may_be_repeated() -> None:
    assert all(" IF NOT EXISTS " in cql for cql in schema_statements("k", RF1))


def test_statements_are_complete() -> None:
    for cql in schema_statements("shop", RF1, event_ttl_days=2):
        assert "{keyspace}" not in cql
        assert "shop" in cql
    assert "default_time_to_live = 172800" in schema_statements("shop", RF1, event_ttl_days=2)[2]


def test_replication_is_quoted() -> None:
    first = schema_statements("k", {"class": "NetworkTopologyStrategy", "dc'1": 3})[0]
    assert "{'class': 'NetworkTopologyStrategy', 'dc''1': '3'}" in first


@pytest.mark.parametrize("name", ["", "A", "1a", "a-b", "a b", "a;drop", "k" * 49, "k\n"])
def test_keyspace_that_is_no_identifier_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="keyspace"):
        statement("select_events", name)
    with pytest.raises(ValueError, match="keyspace"):
        schema_statements(name, RF1)


def test_replication_without_class_is_refused() -> None:
    with pytest.raises(ValueError, match="class"):
        schema_statements("k", {"replication_factor": 1})


@pytest.mark.parametrize("days", [0, -1, 7301])
def test_ttl_out_of_bounds_is_refused(days: int) -> None:
    with pytest.raises(ValueError, match="event_ttl_days"):
        schema_statements("k", RF1, event_ttl_days=days)


def test_nodes_that_do_not_agree_are_an_error() -> None:
    with pytest.raises(SchemaError, match="agree"):
        create_schema(FakeSession(agreed=False), "k", RF1)


def test_table_that_does_not_fit_a_statement_is_named() -> None:
    with pytest.raises(SchemaError, match="insert_event"):
        create_schema(FakeSession(broken="INSERT INTO k.events_by_user_day"), "k", RF1)


def test_no_statement_filters_or_uses_transactions() -> None:
    for name, cql in CQL.items():
        assert "ALLOW FILTERING" not in cql
        assert name.startswith("create_") or " IF " not in cql


@given(st.integers(0, 253_402_300_799_999))
def test_day_is_the_utc_date(ts: int) -> None:
    day = day_of(ts)
    assert day == (dt.datetime(1970, 1, 1) + dt.timedelta(milliseconds=ts)).date()
    assert start_of_day(day) <= ts < start_of_day(day) + 86_400_000
