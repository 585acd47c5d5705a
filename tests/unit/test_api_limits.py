"""What a request may take and what it costs: one time for all its reads, units of a rate."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from prometheus_client import values

from api.breaker import BreakerStore
from api.config import ApiConfig
from api.factory import create_app
from api.rate_limit import Rate
from api.services import services_of
from api.shared import EVENTS_METRIC, FOLDER_VARIABLE, OUTCOMES, forget_worker
from connectors import request_budget
from connectors.recommendation_store import (
    CassandraRecommendationStore,
    LazyRecommendationStore,
    RecommendationList,
    StoredEvent,
    StoreTimeout,
    StoreUnavailable,
    TrendingList,
)
from tests.contract.memory_store import InMemoryRecommendationStore
from tests.unit.api_doubles import Events, Records, Shop, product
from tests.unit.test_api_routes import DAY, NOW, assert_problem
from udfs.schemas import Reason

LIMIT = 2.0


class Clock:
    """A clock that calls move on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("connectors.request_budget.monotonic", lambda: self.now)


class SlowStore(InMemoryRecommendationStore):
    """Takes ``seconds`` a call on ``clock``, or as long as a call may, and then times out."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock = clock
        self.seconds = seconds

    def ping(self) -> None:
        allowed = request_budget.time_limit(LIMIT)
        self.clock.now += min(self.seconds, allowed)
        super().ping()
        if self.seconds > allowed:
            name = "cassandra"
            raise StoreTimeout(name, "late")


def client_of(store: InMemoryRecommendationStore, config: ApiConfig | None = None) -> FlaskClient:
    """The service over a store behind the breaker, as it is served."""
    return create_app(
        config or ApiConfig(),
        store=BreakerStore("cassandra", store),
        event_sink=Events(),
        record_sink=Records(),
    ).test_client()


class TestTime:
    @pytest.mark.parametrize(
        "path",
        [
            "/v1/users/u/recommendations",
            "/v1/users/u/recommendations?category=TEA&min_price=5",
            "/v1/users/u/profile",
            "/v1/users/u/events",
            "/v1/trending?category=TEA",
            "/v1/products/p",
            "/v1/users/u/erasure",
        ],
    )
    @pytest.mark.parametrize("seconds", [0.3, 0.7, 5.0])
    def test_all_reads_of_a_request_together_take_no_longer_than_one(
        self, monkeypatch: pytest.MonkeyPatch, path: str, seconds: float
    ) -> None:
        clock = Clock(monkeypatch)
        store = SlowStore(clock, seconds)
        client = client_of(store)
        begun = clock.now

        response = client.get(path)

        assert response.status_code in (200, 404, 503)
        assert clock.now - begun <= LIMIT + 1e-9
        # None is even begun when the time is over.
        assert 1 <= store.reads <= LIMIT / seconds + 1

    def test_every_request_has_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = Clock(monkeypatch)
        store = SlowStore(clock, 1.5)
        store.save_list(RecommendationList("u", (("p", 1.0, "r"),), "s", NOW, NOW))
        store.save_product(None, product("p"))
        client = client_of(store)
        for _ in range(3):
            assert client.get("/v1/users/u/erasure").status_code == 404
        # And what is no request has none.
        assert request_budget.time_limit(7.0) == 7.0
        assert not request_budget.is_over()

    def test_the_limit_is_a_setting_and_by_default_that_of_one_read(self) -> None:
        assert ApiConfig().request_limit == 2.0
        assert (
            ApiConfig.from_env({"RECOMMENDER_CASSANDRA_READ_TIMEOUT_SECONDS": "3.5"}).request_limit
            == 3.5
        )
        config = ApiConfig.from_env({"RECOMMENDER_API_REQUEST_SECONDS": "0.5"})
        assert config.request_limit == 0.5
        with pytest.raises(ValueError, match="request_seconds"):
            ApiConfig.from_env({"RECOMMENDER_API_REQUEST_SECONDS": "0"})
        with pytest.raises(ValueError, match="client_seconds"):
            ApiConfig.from_env({"RECOMMENDER_API_CLIENT_SECONDS": "6"})

    def test_a_client_has_the_time_of_all_that_a_request_may_wait_for(self) -> None:
        ApiConfig(request_seconds=2.0, write_timeout_seconds=5, client_seconds=7.0)
        with pytest.raises(ValueError, match="client_seconds"):
            ApiConfig(request_seconds=2.0, write_timeout_seconds=5, client_seconds=6.9)

    def test_a_late_answer_for_want_of_time_does_not_count_against_the_store(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock(monkeypatch)
        store = SlowStore(clock, 0.0)
        breaker = BreakerStore("cassandra", store)
        request_budget.begin(1.0)
        clock.now += 1.0
        for _ in range(20):
            with pytest.raises(StoreTimeout, match="over"):
                breaker.ping()
        request_budget.end()
        breaker.ping()
        assert store.reads == 1

    def test_waiting_for_a_first_connection_is_limited_too(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waited: list[float] = []
        store = LazyRecommendationStore("s", lambda: pytest.fail("opened"), wait_seconds=2.0)
        monkeypatch.setattr(store, "start", lambda: None)
        monkeypatch.setattr(store._tried, "wait", waited.append)
        request_budget.begin(0.0)
        with pytest.raises(StoreUnavailable):
            store.ping()
        request_budget.end()
        assert waited == [0.0]


class Future:
    """An answer of the driver's that has come."""

    has_more_pages = False

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def add_callbacks(self, succeeded: Callable[[Any], None], _failed: object) -> None:
        succeeded(self.rows)

    def result(self) -> list[Any]:
        return self.rows


class Session:
    """Answers everything with nothing, and keeps the time limits it is given."""

    def __init__(self) -> None:
        self.limits: list[float | None] = []

    def prepare(self, _statement: str) -> Any:
        class Prepared:
            result_metadata: tuple[Any, ...] = ()

        return Prepared()

    def execute_async(self, *_: object, timeout: float | None, **__: object) -> Future:
        self.limits.append(timeout)
        return Future([])


class TestCassandra:
    def test_its_time_is_what_the_request_has_left_and_each_statement_is_counted(self) -> None:
        session = Session()
        store = CassandraRecommendationStore(session, "k", timeout_seconds=2.0)
        request_budget.begin(0.5)
        store.recommendations("u")
        store.products(["a", "b", "c"])
        store.trending("all")
        store.products_in("all:0", limit=1)
        assert request_budget.end() == 4
        request_budget.begin(0.5)
        store.events("u", start=0, end=40 * DAY, limit=10)
        assert request_budget.end() == 31
        days = [limit for limit in session.limits if limit is not None]
        assert len(days) == 31
        assert max(days) <= 0.5

    def test_without_time_no_days_are_read(self) -> None:
        session = Session()
        store = CassandraRecommendationStore(session, "k", timeout_seconds=2.0)
        request_budget.begin(-1.0)
        with pytest.raises(StoreTimeout):
            store.events("u", start=0, end=1, limit=1)
        assert (session.limits, request_budget.end()) == ([], 0)


class TestUnits:
    """Each at a rate of next to nothing, so that what is left of the burst shows the cost."""

    def left(self, shop: Shop, scope: Any, burst: int) -> int:
        """How many units are left of the burst; they are used up."""
        limiter = services_of(shop.app).limiter
        return sum(limiter.take(0, scope) == 0 for _ in range(burst + 1))

    def shop(self, scope: Any, burst: int, **given: Any) -> Shop:
        return Shop(ApiConfig(rates={scope: Rate(1e-6, burst)}), **given)

    def test_a_batch_costs_its_events_at_once(self) -> None:
        shop = self.shop("ingest", 10)
        click = {"user_id": "u", "type": "click", "product_id": "p"}
        assert shop.client.post("/v1/events", json=[click] * 7).status_code == 202
        assert shop.client.post("/v1/events", json=click).status_code == 202
        assert self.left(shop, "ingest", 10) == 2

    @pytest.mark.parametrize("bursts", [1, 1.5, 100])
    def test_a_batch_above_the_burst_passes_when_the_bucket_is_full(self, bursts: float) -> None:
        shop = Shop(ApiConfig(rates={"ingest": Rate(5, 10)}))
        limiter = services_of(shop.app).limiter
        now = [1000.0]
        limiter._clock = lambda: now[0]
        batch = [{"user_id": "u", "type": "click", "product_id": "p"}] * int(10 * bursts)
        assert shop.client.post("/v1/events", json=batch).status_code == 202
        for _ in range(3):
            response = shop.client.post("/v1/events", json=batch)
            assert_problem(response, 429)
            assert len(shop.events.taken) % len(batch) == 0
            # Who waits as told is served, also after having been refused.
            now[0] += int(response.headers["Retry-After"])
            assert shop.client.post("/v1/events", json=batch).status_code == 202

    def test_a_bulk_of_products_above_the_burst_passes_too(self) -> None:
        shop = self.shop("catalogue", 3)
        products = [{"product_id": f"p{n}", "deleted": True} for n in range(50)]
        assert shop.client.post("/v1/products:bulk", json={"products": products}).status_code == 202
        assert self.left(shop, "catalogue", 3) == 0

    def test_what_is_refused_for_its_rate_costs_nothing_and_is_not_read(self) -> None:
        shop = self.shop("ingest", 4)
        click = {"user_id": "u", "type": "click", "product_id": "p"}
        assert shop.client.post("/v1/events", json=[click] * 3).status_code == 202
        assert_problem(shop.client.post("/v1/events", json=[click] * 2), 429)
        assert shop.client.post("/v1/events", json=click).status_code == 202
        # Not JSON; nobody has looked.
        assert_problem(shop.client.post("/v1/events", data=b"x", content_type="x/y"), 429)

    def test_a_wrong_request_costs_one(self) -> None:
        shop = self.shop("ingest", 5)
        assert_problem(shop.client.post("/v1/events", json={"events": []}), 400)
        assert_problem(shop.client.post("/v1/events", data=b"x", content_type="x/y"), 415)
        assert self.left(shop, "ingest", 5) == 3

    def test_a_read_costs_the_statements_that_it_sent(self) -> None:
        shop = self.shop("personal", 100)
        for n in range(3):
            shop.store.save_event("u", StoredEvent(f"e{n}", "click", NOW - n, product_id="p"))
        shop.get(f"/v1/users/u/events?from={NOW - 3}&to={NOW - 2}")
        assert self.left(shop, "personal", 100) == 99
        shop = self.shop("personal", 100)
        # A month of an idle user, a day each.
        shop.get(f"/v1/users/idle/events?from={NOW - 60 * DAY}&to={NOW}")
        assert self.left(shop, "personal", 100) == 100 - 31

    def test_a_list_costs_one_and_more_where_it_must_be_filled_up(self) -> None:
        shop = self.shop("lists", 100)
        items = tuple((f"p{n}", 1.0, "r") for n in range(20))
        shop.store.save_list(RecommendationList("u", items, "s", NOW, NOW))
        shop.add(*(product(f"p{n}") for n in range(20)))
        shop.get("/v1/users/u/recommendations")
        # The list, and its products, which are not in memory here.
        limiter = services_of(shop.app).limiter
        before = limiter._rates
        limiter._rates = {}
        reads = shop.store.reads
        shop.get("/v1/users/stranger/recommendations?min_price=1")
        filled = shop.store.reads - reads
        assert filled > 5
        limiter._rates = before
        assert self.left(shop, "lists", 100) == 98
        shop = self.shop("lists", 100)
        shop.get("/v1/users/stranger/recommendations?min_price=1")
        assert self.left(shop, "lists", 100) == 100 - shop.store.reads

    def test_what_was_read_above_the_limit_is_paid_off_before_the_next(self) -> None:
        shop = Shop(ApiConfig(rates={"personal": Rate(10, 10)}))
        limiter = services_of(shop.app).limiter
        now = [1000.0]
        limiter._clock = lambda: now[0]
        path = f"/v1/users/idle/events?from={NOW - 60 * DAY}&to={NOW}"
        assert shop.client.get(path).status_code == 200
        response = shop.client.get(path)
        assert_problem(response, 429)
        # 31 of 10 a second, of which 10 were there.
        assert int(response.headers["Retry-After"]) == 3
        now[0] += 3
        assert shop.client.get(path).status_code == 200


class TestEndedWorker:
    def counts(self, pid: int, counts: dict[str, float]) -> None:
        """Write the counter as a worker of several does."""
        value = values.MultiProcessValue(lambda: pid)  # type: ignore[no-untyped-call]
        for outcome, count in counts.items():
            value(
                *("counter", EVENTS_METRIC, f"{EVENTS_METRIC}_total", ("outcome",), (outcome,)),
                "Help.",
            ).inc(count)

    def total(self) -> dict[str, float]:
        from prometheus_client import CollectorRegistry
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return {
            sample.labels["outcome"]: sample.value
            for family in registry.collect()
            for sample in family.samples
        }

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
        return tmp_path

    @pytest.mark.usefixtures("folder")
    def test_its_counts_stay_and_what_nobody_told_of_is_lost(self) -> None:
        counts = dict.fromkeys(OUTCOMES, 0.0) | {"sent": 10.0, "delivered": 6.0, "failed": 1.0}
        self.counts(11, counts)
        self.counts(12, counts)
        assert forget_worker(11) == 3
        assert self.total() == {
            "sent": 20.0,
            "delivered": 12.0,
            "failed": 2.0,
            "lost": 3.0,
            "dropped": 0.0,
        }
        # Another process with the same number has its own events only.
        assert forget_worker(11) == 0
        self.counts(11, {"sent": 5.0, "delivered": 5.0})
        assert forget_worker(11) == 0
        assert self.total()["lost"] == 3.0

    def test_one_that_counted_nothing_is_nothing(self, folder: Path) -> None:
        assert forget_worker(13) == 0
        (folder / "counter_14.db").write_bytes(struct.pack("<i", 8) + b"\0" * 60)
        assert forget_worker(14) == 0


def test_a_part_that_cannot_be_closed_does_not_keep_the_others_open(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    def fails(_self: object) -> None:
        msg = "bug"
        raise RuntimeError(msg)

    monkeypatch.setattr(LazyRecommendationStore, "close", fails)
    monkeypatch.setattr("api.lazy.LazyEventSink.close", lambda _: closed.append("events"))
    monkeypatch.setattr("api.background.Ticker.close", lambda _: closed.append("counts"))
    services_of(create_app(ApiConfig(catalogue_max_products=0))).stop()
    assert closed == ["events", "counts"]
    assert "could not be closed" in caplog.text


def test_refused_events_are_a_counter_by_reason_from_the_start() -> None:
    # In a process that has refused none.
    shown = subprocess.run(
        [sys.executable, "-c", "import api.metrics as m; print(m.generate_latest().decode())"],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    ).stdout
    for reason in (*Reason, "wrong_user"):
        assert f'recommender_api_events_refused_total{{reason="{reason}"}} 0.0' in shown


def test_trending_list_is_answered_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    store = SlowStore(clock, 0.0)
    store.save_trending("all", TrendingList((("p", 1.0),), NOW))
    store.save_product(None, product("p"))
    client = client_of(store)
    body = json.loads(client.get("/v1/trending").data)
    assert [one["product_id"] for one in body["items"]] == ["p"]
