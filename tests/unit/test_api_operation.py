"""What those who run the service see: metrics, logs, documentation, breaker, background."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api import metrics
from api.background import Ticker
from api.breaker import LEAST_CALLS, TOO_MANY, WINDOW, BreakerStore
from api.logs import JsonFormatter
from api.metrics import Watch
from connectors.event_client import Counts
from connectors.kafka_client import (
    AcknowledgedProducer,
    KafkaClientOptions,
    NotAcknowledgedError,
)
from connectors.recommendation_store import StoreTimeout, StoreUnavailable
from tests import exported_metrics
from tests.contract.memory_store import InMemoryRecommendationStore
from tests.exported_metrics import Sample
from tests.unit.api_doubles import Shop


def sample(text: str, start: str) -> float:
    values = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(start)]
    return sum(values)


class TestMetrics:
    def test_requests_are_counted_by_rule_and_never_by_path(self) -> None:
        shop = Shop()
        start = 'recommender_api_requests_total{method="GET",route="/v1/users/<id:user_id>/events"'
        before = sample(shop.client.get("/metrics").text, start)
        for _ in range(3):
            shop.client.get("/v1/users/secret-user/events")
        shop.client.get("/v1/users/secret-user/events?limit=0")
        shop.client.get("/nowhere/secret-user")
        text = shop.client.get("/metrics").text
        assert sample(text, start) - before == 4
        assert sample(text, start + ',status="400"') >= 1
        assert "secret" not in text
        assert 'recommender_api_requests_total{method="any",route="none",status="404"}' in text
        assert "recommender_api_request_seconds_bucket" in text

    def test_counts_of_the_event_client_are_taken_over_once(self) -> None:
        class Client:
            counts = Counts(sent=5, delivered=3, failed=1)

        client = Client()
        watch = Watch(client, None)
        shop = Shop()

        def delivered() -> float:
            text = shop.client.get("/metrics").text
            return sample(text, 'recommender_api_events_total{outcome="delivered"}')

        before = delivered()
        watch()
        watch()
        assert delivered() - before == 3
        client.counts = Counts(sent=5, delivered=4, failed=1)
        watch()
        assert delivered() - before == 4

    def test_what_died_in_the_buffer_is_exported(self) -> None:
        class Client:
            counts = Counts(sent=9, delivered=2, lost=7)

        shop = Shop()

        def lost() -> float:
            text = shop.client.get("/metrics").text
            return sample(text, 'recommender_api_events_total{outcome="lost"}')

        before = lost()
        Watch(Client(), None)()
        assert lost() - before == 7

    def test_what_dashboard_and_alerts_ask_for_is_exported(self) -> None:
        class Client:
            counts = Counts(sent=4, delivered=1, failed=1, dropped=1)

        shop = Shop()
        Watch(Client(), None)()
        shop.client.get("/v1/users/u/events")
        shop.store.failure = StoreUnavailable("cassandra", "no node answers")
        assert shop.client.get("/v1/products/a/similar").status_code == 503
        shop.store.failure = None
        assert shop.client.post("/v1/events", json={"nothing": 1}).status_code == 400
        metrics._requests("/v1/events", "POST", 429)
        samples = [
            Sample(one.name, dict(one.labels))
            for family in text_string_to_metric_families(shop.client.get("/metrics").text)
            for one in family.samples
        ]

        wanted = exported_metrics.wanted_of_service()

        assert len(wanted) >= 5
        assert [one for one in wanted if not any(map(one.matches, samples))] == []


class TestLogs:
    def format(self, *args: Any, **given: Any) -> dict[str, Any]:
        record = logging.getLogger("x").makeRecord("x", logging.ERROR, "f", 1, *args, **given)
        found: dict[str, Any] = json.loads(JsonFormatter().format(record))
        return found

    def test_line_is_json(self) -> None:
        line = self.format('a %s\n"b"', ("c",), None)
        assert line["message"] == 'a c\n"b"'
        assert (line["level"], line["logger"]) == ("error", "x")

    def test_exception_is_placed_but_its_text_stays_out(self) -> None:
        try:
            raise KeyError("user-42")  # noqa: EM101
        except KeyError as error:
            line = self.format("failed", (), (KeyError, error, error.__traceback__))
        assert line["exception"] == "builtins.KeyError"
        assert any("test_exception_is_placed" in frame for frame in line["stack"])
        assert "user-42" not in json.dumps(line)

    def test_no_request_leaves_personal_data_in_the_log(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        caplog.set_level(logging.DEBUG)
        shop = Shop()
        click = {"user_id": "secret-user", "type": "search", "query": "secret-query"}
        for path in ("recommendations", "events", "profile", "erasure", "nothing"):
            shop.client.get(f"/v1/users/secret-user/{path}")
        shop.client.post("/v1/events", json=[click, {**click, "query": 7}])
        shop.store.failure = StoreUnavailable("cassandra", "gone")
        shop.records.away = True
        shop.client.get("/v1/users/secret-user/recommendations")
        shop.client.delete("/v1/users/secret-user")

        def broken(*_: object) -> None:
            msg = "secret-user"
            raise RuntimeError(msg)

        monkeypatch.setattr(InMemoryRecommendationStore, "erasure", broken)
        shop.client.get("/v1/users/secret-user/erasure")
        lines = [JsonFormatter().format(record) for record in caplog.records]
        assert len(lines) >= 3
        assert "secret" not in "\n".join(lines)


class TestBreaker:
    """Of a hanging server, and not of a slow query; the clock is the test's."""

    @pytest.fixture(autouse=True)
    def begin(self) -> None:
        self.now = 0.0
        self.store = InMemoryRecommendationStore()
        self.breaker = BreakerStore(
            "cassandra", self.store, pause_seconds=1.0, clock=lambda: self.now
        )

    def asked(self, times: int, call: Callable[[], object] | None = None) -> int:
        """How many of ``times`` calls reached the store."""
        before = self.store.reads
        for _ in range(times):
            with suppress(StoreTimeout):
                (call or self.breaker.ping)()
        return self.store.reads - before

    def late(self, *, is_late: bool = True) -> None:
        self.store.failure = StoreTimeout("cassandra", "late") if is_late else None

    def test_one_late_answer_closes_nobody_out(self) -> None:
        for _ in range(20):
            self.late()
            assert self.asked(1) == 1
            self.late(is_late=False)
            assert self.asked(2) == 2

    def test_the_first_calls_of_all_may_be_late(self) -> None:
        self.late()
        assert self.asked(LEAST_CALLS - 1) == LEAST_CALLS - 1
        self.late(is_late=False)
        assert self.asked(3) == 3

    def test_when_most_are_late_one_call_a_pause_tries_again(self) -> None:
        self.asked(100)
        self.late()
        # As many as it takes until they are half of the last ones.
        assert self.asked(50) == WINDOW * TOO_MANY
        for _ in range(3):
            self.now += 1.5
            assert self.asked(5) == 1
        self.late(is_late=False)
        self.now += 1.5
        assert self.asked(5) == 5
        # What was before does not count against it any more.
        self.late()
        assert self.asked(1) == 1
        self.late(is_late=False)
        assert self.asked(1) == 1

    def test_slow_histories_and_writes_leave_the_lists_alone(self) -> None:
        self.late()

        def history() -> object:
            return self.breaker.events("u", start=0, end=1, limit=1)

        assert self.asked(9, history) == LEAST_CALLS
        assert self.asked(9, lambda: self.breaker.request_erasure("u", 1)) == LEAST_CALLS
        self.late(is_late=False)
        for call in (
            lambda: self.breaker.recommendations("u"),
            lambda: self.breaker.trending("all"),
            lambda: self.breaker.products(["p"]),
            lambda: self.breaker.erasure("u"),
        ):
            assert self.asked(1, call) == 1
        assert self.asked(1, history) == 0

    def test_scans_that_hang_leave_all_else_alone(self) -> None:
        """A scan reads a whole partition; the others read a row each, or a month, or write."""
        self.late()

        def scan() -> object:
            return self.breaker.products_in("all:0", limit=1)

        assert self.asked(9, scan) == LEAST_CALLS
        self.late(is_late=False)
        for call in (
            lambda: self.breaker.recommendations("u"),
            lambda: self.breaker.events("u", start=0, end=1, limit=1),
            lambda: self.breaker.request_erasure("u", 1),
        ):
            assert self.asked(1, call) == 1
        assert self.asked(1, scan) == 0

    def test_a_wrong_argument_is_no_answer_of_the_store(self) -> None:
        def scan() -> object:
            return self.breaker.products_in("all:0", limit=1)

        self.late()
        self.asked(9, scan)
        self.late(is_late=False)
        self.now += 1.5
        with pytest.raises(ValueError, match="limit"):
            self.breaker.products_in("all:0", limit=0)
        assert self.asked(1, scan) == 0

    def test_other_failures_are_answers(self) -> None:
        store = InMemoryRecommendationStore()
        breaker = BreakerStore("cassandra", store)
        store.failure = StoreUnavailable("cassandra", "gone")
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                breaker.recommendations("u")
        store.failure = None
        assert breaker.recommendations("u") is None

    def test_every_call_goes_through(self) -> None:
        breaker = BreakerStore("cassandra", InMemoryRecommendationStore())
        assert breaker.events("u", start=0, end=1, limit=1).events == ()
        assert breaker.products(["p"]) == {}
        assert breaker.trending("all") is None
        assert breaker.products_in("all:0", limit=1) == []
        breaker.request_erasure("u", 5)
        found = breaker.erasure("u")
        assert found is not None
        assert found.requested_at == 5


def test_ticker_goes_on_after_a_failure_and_accounts_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[str] = []
    enough = threading.Event()

    def count() -> None:
        calls.append("count")

    def broken() -> None:
        if calls.count("count") >= 3:
            enough.set()
        msg = "bug"
        raise RuntimeError(msg)

    ticker = Ticker((count, broken), every_seconds=0.01)
    ticker.start()
    assert enough.wait(10)
    ticker.close()
    total = len(calls)
    assert total >= 4
    assert "a background task failed" in caplog.text


class Producer:
    """A producer whose broker answers as told."""

    def __init__(self, outcomes: Sequence[str | None]) -> None:
        self.outcomes = list(outcomes)
        self.waiting: list[Any] = []
        self.records: list[tuple[Any, ...]] = []

    def produce(self, topic: str, value: Any, key: bytes, on_delivery: Any) -> None:
        self.records.append((topic, key, value))
        self.waiting.append(on_delivery)

    def poll(self, _timeout: float) -> None:
        class Refusal:
            def name(self) -> str:
                return "TOPIC_AUTHORIZATION_FAILED"

        while self.waiting and self.outcomes:
            report = self.waiting.pop(0)
            report(None if self.outcomes.pop(0) is None else Refusal(), None)
        threading.Event().wait(0.001)

    def flush(self, _timeout: float) -> int:
        return 0


class TestAcknowledgedProducer:
    def send(self, outcomes: Sequence[str | None], count: int) -> Producer:
        producer = Producer(outcomes)
        client = AcknowledgedProducer(
            KafkaClientOptions(), timeout_s=0.2, make_producer=lambda _settings: producer
        )
        try:
            client.send("t", [(f"ü{n}", b"v" if n else None) for n in range(count)])
        finally:
            client.close()
        return producer

    def test_returns_when_all_is_acknowledged_in_order(self) -> None:
        producer = self.send([None, None], 2)
        assert producer.records == [("t", "ü0".encode(), None), ("t", "ü1".encode(), b"v")]

    def test_refusal_is_an_error(self) -> None:
        with pytest.raises(NotAcknowledgedError, match=r"1 of 2.*AUTHORIZATION"):
            self.send([None, "no"], 2)

    def test_silence_is_an_error(self) -> None:
        with pytest.raises(NotAcknowledgedError, match="within"):
            self.send([None], 2)

    def test_settings_come_from_the_environment_and_stay_secret(self) -> None:
        options = KafkaClientOptions.from_env(
            "R_",
            {
                "R_KAFKA_BOOTSTRAP": "k:1",
                "R_KAFKA_PROPERTY_SASL_PASSWORD": "hunter2",
                "R_KAFKA_PROPERTY_SECURITY_PROTOCOL": "SASL_SSL",
            },
        )
        assert options.bootstrap == "k:1"
        assert options.properties == {
            "sasl.password": "hunter2",
            "security.protocol": "SASL_SSL",
        }
        assert "hunter2" not in repr(options)
        with pytest.raises(ValueError, match="R_KAFKA_BOOTSTRAP"):
            KafkaClientOptions.from_env("R_", {"R_KAFKA_BOOTSTRAP": " "})
