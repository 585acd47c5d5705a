"""The driver's errors become the store's: a client learns whether it was time or place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from cassandra import (
    ConsistencyLevel,
    InvalidRequest,
    OperationTimedOut,
    ReadFailure,
    ReadTimeout,
    Unavailable,
)
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionBusy, ConnectionShutdown

from connectors.recommendation_store import (
    CassandraRecommendationStore,
    StoreTimeout,
    StoreUnavailable,
)


class FailingSession:
    def __init__(self, error: Exception) -> None:
        self._error = error

    def prepare(self, cql: str) -> Any:
        return SimpleNamespace(cql=cql, result_metadata=[])

    def execute(self, *_: Any, **__: Any) -> Any:
        raise self._error

    execute_async = execute


CASES = [
    (OperationTimedOut(), StoreTimeout),
    (ReadTimeout("x", consistency=ConsistencyLevel.ONE), StoreTimeout),
    (NoHostAvailable("x 10.1.2.3", {"10.1.2.3": OSError()}), StoreUnavailable),
    (Unavailable("x", consistency=ConsistencyLevel.ONE), StoreUnavailable),
    (ReadFailure("x", consistency=ConsistencyLevel.ONE), StoreUnavailable),
    (ConnectionShutdown("10.1.2.3 closed"), StoreUnavailable),
    (ConnectionBusy("busy"), StoreUnavailable),
]


@pytest.mark.parametrize(("error", "mapped"), CASES)
@pytest.mark.parametrize("method", ["recommendations", "events", "ping"])
def test_driver_error_is_mapped_and_hides_addresses(
    error: Exception, mapped: type[Exception], method: str
) -> None:
    store = CassandraRecommendationStore(FailingSession(error), "k")
    with pytest.raises(mapped) as caught:
        _call(store, method)
    assert type(caught.value) is mapped
    assert caught.value.__cause__ is error
    assert "10.1.2.3" not in str(caught.value)


@pytest.mark.parametrize("method", ["recommendations", "events", "ping"])
def test_refused_statement_is_no_passing_state(method: str) -> None:
    store = CassandraRecommendationStore(FailingSession(InvalidRequest("unconfigured table")), "k")
    with pytest.raises(InvalidRequest):
        _call(store, method)


def test_read_of_many_days_has_one_time_limit() -> None:
    store = CassandraRecommendationStore(
        FailingSession(OperationTimedOut()), "k", timeout_seconds=0.0
    )
    with pytest.raises(StoreTimeout, match="days"):
        store.events("u", start=0, end=10, limit=1)


def test_at_least_one_day_a_call() -> None:
    with pytest.raises(ValueError, match="max_days"):
        CassandraRecommendationStore(FailingSession(OperationTimedOut()), "k", max_days=0)


def _call(store: CassandraRecommendationStore, method: str) -> None:
    if method == "events":
        store.events("u", start=0, end=10, limit=1)
    elif method == "recommendations":
        store.recommendations("u")
    else:
        store.ping()
