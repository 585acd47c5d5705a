"""Settings from the environment, and a start while the database is away."""

from __future__ import annotations

import threading

import pytest
from cassandra.cluster import NoHostAvailable

from api.config import ApiConfig
from api.factory import create_app
from api.services import services_of
from connectors.cassandra_session import CassandraOptions, Silence
from connectors.recommendation_store import (
    LazyRecommendationStore,
    RecommendationStore,
    StoreError,
    StoreTimeout,
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


class TestSilence:
    """Servers that do not answer where they were are looked for again."""

    @staticmethod
    def unanswered() -> StoreUnavailable:
        error = StoreUnavailable("s", "no node answers")
        error.__cause__ = NoHostAvailable("none", {})
        return error

    def test_another_store_is_opened_and_the_silent_one_closed(self) -> None:
        first, second = InMemoryRecommendationStore(), InMemoryRecommendationStore()
        closed = threading.Event()
        first.close = closed.set  # type: ignore[method-assign]
        made: list[RecommendationStore] = [first, second]
        store = LazyRecommendationStore("s", lambda: made.pop(0), silence=Silence(0))
        store.ping()
        first.failure = self.unanswered()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                store.ping()
        assert closed.wait(10)
        store.ping()
        assert second.reads == 1
        store.close()
        assert second.closed

    def test_the_first_store_goes_on_while_no_other_can_be_opened(self) -> None:
        first = InMemoryRecommendationStore()
        tried = threading.Event()
        opened: list[int] = []
        failure = StoreUnavailable("s", "away")

        def open_store() -> RecommendationStore:
            opened.append(1)
            if len(opened) == 1:
                return first
            tried.set()
            raise failure

        store = LazyRecommendationStore("s", open_store, silence=Silence(0))
        store.ping()
        first.failure = self.unanswered()
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="no node answers"):
                store.ping()
        assert tried.wait(10)
        first.failure = None
        store.ping()
        assert not first.closed
        store.close()
        assert first.closed

    @pytest.mark.parametrize(
        "failure", [StoreUnavailable("s", "too few replicas"), StoreTimeout("s", "by the server")]
    )
    def test_a_server_that_answers_is_not_left(self, failure: StoreError) -> None:
        first = InMemoryRecommendationStore()
        made: list[RecommendationStore] = [first]
        store = LazyRecommendationStore("s", lambda: made.pop(0), silence=Silence(0))
        store.ping()
        first.failure = failure
        for _ in range(5):
            with pytest.raises(StoreError):
                store.ping()
        # Nothing connects.
        assert store._thread is None

    def test_it_is_time_after_the_given_silence_and_again_after_as_much(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [100.0]
        monkeypatch.setattr("connectors.cassandra_session.time.monotonic", lambda: now[0])
        silence = Silence(5)
        found = []
        for _ in range(12):
            found.append(silence.lasts())
            now[0] += 1
        assert [at for at, due in enumerate(found) if due] == [5, 10]
        silence.end()
        assert not silence.lasts()
