"""Settings from the environment, and a start while the database is away."""

from __future__ import annotations

import threading

import pytest

from api.config import ApiConfig
from api.factory import create_app
from api.services import services_of
from connectors.cassandra_session import CassandraOptions
from connectors.recommendation_store import (
    LazyRecommendationStore,
    RecommendationStore,
    StoreUnavailable,
)
from tests.contract.memory_store import InMemoryRecommendationStore


def test_settings_come_from_prefixed_variables() -> None:
    config = ApiConfig.from_env(
        {
            "RECOMMENDER_CASSANDRA_HOSTS": "a, b",
            "RECOMMENDER_EVENT_HISTORY_DAYS": "7",
            "RECOMMENDER_RETRY_AFTER_SECONDS": "9",
        }
    )
    assert config == ApiConfig(CassandraOptions(hosts=("a", "b")), 7, 9)


@pytest.mark.parametrize("value", ["x", "", "0", "99999"])
def test_wrong_setting_is_named(value: str) -> None:
    with pytest.raises(ValueError, match=r"(?i)event_history_days"):
        ApiConfig.from_env({"RECOMMENDER_EVENT_HISTORY_DAYS": value})


def test_service_lives_but_is_not_ready_without_its_database() -> None:
    # Port 1 answers nobody.
    app = create_app(ApiConfig(CassandraOptions(port=1, connect_timeout_seconds=1)))
    client = app.test_client()
    try:
        assert client.get("/health/live").status_code == 200
        ready = client.get("/health/ready")
        assert ready.status_code == 503
        assert b"cassandra" in ready.data
        assert client.get("/v1/users/u1/recommendations").status_code == 503
    finally:
        services_of(app).stop()


def test_nothing_connects_before_the_first_call() -> None:
    opened: list[int] = []

    def open_store() -> RecommendationStore:
        opened.append(threading.get_ident())
        return InMemoryRecommendationStore()

    store = LazyRecommendationStore("s", open_store)
    assert not opened
    store.ping()
    assert len(opened) == 1
    assert opened != [threading.get_ident()]


@pytest.mark.parametrize("failure", [StoreUnavailable("s", "away"), RuntimeError("bug")])
def test_connecting_goes_on_until_it_succeeds(failure: Exception) -> None:
    failures = [failure, failure]
    connected = threading.Event()

    def open_store() -> RecommendationStore:
        if failures:
            raise failures.pop()
        connected.set()
        return InMemoryRecommendationStore()

    store = LazyRecommendationStore("s", open_store, first_pause_seconds=0.1)
    with pytest.raises(StoreUnavailable, match=r"away|RuntimeError"):
        store.ping()
    assert connected.wait(10)
    # The store is published just after it is made.
    for _ in range(100):
        if store._store is not None:
            break
        threading.Event().wait(0.01)
    store.ping()


def test_store_that_connects_after_close_is_closed() -> None:
    made = InMemoryRecommendationStore()
    go, done = threading.Event(), threading.Event()

    class Closing(InMemoryRecommendationStore):
        def close(self) -> None:
            done.set()

    def open_store() -> RecommendationStore:
        go.wait(10)
        return Closing()

    store = LazyRecommendationStore("s", open_store, wait_seconds=0.01)
    store.start()
    store.close()
    go.set()
    assert done.wait(10)
    with pytest.raises(StoreUnavailable):
        store.ping()
    assert not made.closed


def test_close_closes_the_connected_store() -> None:
    made = InMemoryRecommendationStore()
    store = LazyRecommendationStore("s", lambda: made)
    store.ping()
    store.close()
    store.close()
    assert made.closed
