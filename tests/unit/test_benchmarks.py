"""What the benchmarks compute, without servers: clocks, shares, workloads, capacity."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from benchmarks import catalogue_memory, vectors
from benchmarks.pipeline import ratio
from benchmarks.runner import BenchmarkError, Run, Saved, Spent
from benchmarks.scale import RATES, capacity
from benchmarks.soak import Churn, Sample, growth_a_day
from benchmarks.workload import SPACE, Workload
from tests.unit.builders import NOW_MS, event, record, related_row
from udfs.catalogue import Catalogue
from udfs.recommend import RecommendConfig
from udfs.schemas import Event, Product

SMALL = Workload(events=500, users=50, products=30)


def saved(written: list[float]) -> Saved:
    return Saved(
        [f"u{at}" for at in range(len(written))], np.zeros(len(written)), np.array(written)
    )


def run(rate: float) -> Run:
    return Run(1, 1, rate, rate, {}, 0.0)


def test_workload_is_the_same_for_every_contestant() -> None:
    assert list(SMALL.stream(start_ms=5)) == list(SMALL.stream(start_ms=5))
    assert list(SMALL.catalogue()) == list(SMALL.catalogue())


def test_workload_is_what_it_says() -> None:
    events = [msgspec.json.decode(value, type=Event) for _, value in SMALL.stream(start_ms=5)]
    assert len({event.event_id for event in events}) == SMALL.events
    assert [event.ts for event in events] == list(range(5, 5 + SMALL.events))
    assert all(key == event.user_id for (key, _), event in zip(SMALL.stream(), events, strict=True))
    products = [msgspec.json.decode(value, type=Product) for _, value in SMALL.catalogue()]
    assert {event.product_id for event in events} <= {one.product_id for one in products}
    assert {one.space for one in products} == {SPACE}
    assert np.allclose(np.linalg.norm(SMALL.vectors(), axis=1), 1, atol=1e-5)


def test_workload_users_are_skewed() -> None:
    users = [key for key, _ in Workload(events=20_000, users=1000, products=10).stream()]
    assert users.count("user-0000000") > 10 * users.count("user-0000099")


def test_rate_counts_the_rows_within_the_window_only() -> None:
    rows = saved([0.0, 1.0, 1.5, 2.0, 2.9, 3.0, 50.0])
    assert rows.rate(1.0, 3.0) == pytest.approx(2.0)


def test_steady_rate_leaves_the_slow_start_out() -> None:
    start = [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0]
    rows = saved([*start, *(100 + at / 10 for at in range(90))])
    assert rows.steady_rate(0.1) == pytest.approx(10.0)
    assert rows.steady_rate(0.0) < 1


def test_steady_rate_refuses_rows_of_one_moment() -> None:
    with pytest.raises(BenchmarkError):
        saved([1.0, 1.0, 1.0]).steady_rate()


def test_cpu_time_of_a_role_that_appeared_later_counts_from_zero() -> None:
    before = Spent(0.0, {"Kafka": 1.0}, 2.0)
    after = Spent(10.0, {"Kafka": 3.0, "Python workers": 4.0}, 12.0)
    assert after.per_event(before, 1000) == {"Kafka": 2000.0, "Python workers": 4000.0}


def test_foreign_share_is_what_ours_did_not_use() -> None:
    before, after = Spent(0.0, {"Kafka": 1.0}, 2.0), Spent(10.0, {"Kafka": 7.0}, 12.0)
    assert after.foreign_share(before, cores=2) == pytest.approx(4 / 20)
    assert before.foreign_share(Spent(-1.0, {"Kafka": 0.0}, 2.0), cores=2) == 0.0


def test_ratio_is_none_where_a_baseline_was_skipped() -> None:
    assert ratio(run(100.0), run(8.0)) == 12.5
    assert ratio(run(100.0), None) is None


def reference() -> dict[str, object]:
    return {
        "users": 100_000,
        "products": 10_000,
        "checkpoint_mib": 50.0,
        "bytes_a_user": 500.0,
        "cpu_us_per_event": {"TaskManagers": 60.0, "Cassandra": 30.0, "Kafka": 6.0},
    }


def test_capacity_is_rate_times_cost_over_use() -> None:
    plans = capacity(reference())
    assert [plan["events_per_second"] for plan in plans] == list(RATES)
    first = plans[0]
    assert first["task_managers"] == 10  # 100,000 × 60 µs / 0.6
    assert first["cassandra_cores"] == 5
    assert first["kafka_cores"] == 1
    assert first["cassandra_nodes_rf3_16_cores"] == 3


def test_capacity_states_memory_of_state_and_catalogue() -> None:
    for plan in capacity(reference()):
        assert plan["partitions"] >= plan["task_managers"]
        assert plan["state_gib_10m_users"] == pytest.approx(4.7, abs=0.05)
        assert plan["catalogue_mib_a_task_manager_100k_products"] == pytest.approx(57.2, abs=0.1)


def test_growth_is_the_slope_behind_the_warm_up() -> None:
    filling = [Sample(at, 0, 100.0 + at) for at in (0.0, 100.0, 200.0, 300.0)]
    level = [Sample(at, 0, 600.0 + at / 864) for at in range(400, 1001, 100)]
    assert growth_a_day([*filling, *level]) == pytest.approx(100.0)
    assert growth_a_day(level[:2]) is None
    assert growth_a_day([]) is None


def test_churn_deletes_only_what_comes_back() -> None:
    class Kept:
        def __init__(self) -> None:
            self.records: list[tuple[str, bytes | None]] = []

        def produce(self, _topic: str, value: bytes | None, key: str) -> None:
            self.records.append((key, value))

    client = Kept()
    churn = Churn(SMALL, client, "catalogue")
    for _ in range(100):
        churn.change()
    newest = dict(client.records)
    deleted = [at for at, (_, value) in enumerate(client.records) if value is None]
    assert len(deleted) == 20
    assert all(client.records[at + 1][0] == client.records[at][0] for at in deleted)
    products = [msgspec.json.decode(value, type=Product) for value in newest.values() if value]
    assert len(products) == len(newest)
    assert all(one.in_stock for one in products)


def test_the_catalogue_is_measured_by_its_parts() -> None:
    found = catalogue_memory.measure(Workload(products=300, related=5))
    assert found["mb"].keys() >= {"in all", "index", "float16 vectors", "lexical index"}
    assert found["us_a_change"].keys() >= {"a price", "removed", "new", "learned"}
    assert found["cpu_s"]["decode and load"] > 0


def test_vectors_are_judged_by_the_place_of_what_came_next() -> None:
    assert vectors.scores([1, 0, 4, 0]) == {"hr": 0.5, "mrr": 0.3125}
    catalogue = Catalogue()
    for number, vector in enumerate(np.eye(3, dtype=np.float32)):
        follows = {f"p{(number + 1) % 3}": 1.0}
        catalogue.put(record(f"p{number}", vector))
        catalogue.put_related(related_row(f"p{number}", related=follows))
    clicks = [event(f"e{at}", product_id=f"p{p}", ts=NOW_MS + at) for at, p in enumerate((0, 1, 0))]
    found = list(vectors.ranks([clicks, clicks[1:]], catalogue, RecommendConfig(list_length=2)))
    # After p0 comes p1; p0 is behind the other two after p1 alone, and after both.
    assert found == [("p1", 1), ("p0", 0), ("p0", 0)]
