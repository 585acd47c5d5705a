"""What stands behind the shop window: the plane of its map, its shelves, Flink's figures."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from api.catalogue_memory import CatalogueMemory
from api.shop.projection import MAX_POINTS, Mapper, plane
from api.shop.pulse import KEPT_SAMPLES, Pulse
from api.shop.shelves import Shelves
from connectors.flink_metrics import ALL, job_metrics, live_job, totals
from connectors.product_rows import ProductRow
from tests.unit.api_doubles import product, record


def clusters(seed: int, *, dimensions: int = 16, noise: float = 0.5) -> tuple[Any, list[str]]:
    """Four categories that two of the dimensions tell apart; the others vary more."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((400, dimensions)) * 5 * noise
    labels = [str(number % 4) for number in range(400)]
    for number, label in enumerate(labels):
        centre = [(0, 0), (6, 0), (0, 6), (6, 6)][int(label)]
        vectors[number, :2] = np.array(centre) + noise * rng.standard_normal(2)
    return vectors, labels


class TestPlane:
    def test_it_finds_the_directions_that_tell_categories_apart(self) -> None:
        vectors, labels = clusters(1)
        axes, offset = plane(vectors, labels)
        places = vectors @ axes.T - offset
        # Of the nearest centre on the plane, where principal components see only noise.
        of = np.array([int(label) for label in labels])
        centres = np.array([places[of == one].mean(axis=0) for one in range(4)])
        nearest = ((places[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
        assert (nearest == of).mean() > 0.98

    def test_axes_equal_scipys_generalised_eigenvectors(self) -> None:
        from scipy.linalg import eigh

        vectors, labels = clusters(2)
        axes, _ = plane(vectors, labels)
        of = np.array([int(label) for label in labels])
        centred = vectors - vectors.mean(axis=0)
        centres = np.array([centred[of == one].mean(axis=0) for one in range(4)])
        inner = centred - centres[of]
        within = inner.T @ inner / len(vectors)
        within += 0.01 * np.trace(within) / 16 * np.eye(16)
        between = np.cov(centres.T, bias=True)
        _, expected = eigh(between, within)
        for axis, other in zip(axes, expected[:, ::-1].T, strict=False):
            cosine = axis @ other / np.linalg.norm(axis) / np.linalg.norm(other)
            assert abs(cosine) == pytest.approx(1, abs=1e-6)

    def test_without_categories_the_principal_components_stand_in(self) -> None:
        rng = np.random.default_rng(3)
        vectors = rng.standard_normal((300, 8)) * np.array([9, 5, 1, 1, 1, 1, 1, 1])
        axes, _ = plane(vectors, [""] * 300)
        unit = np.abs(axes / np.linalg.norm(axes, axis=1, keepdims=True))
        assert unit[0, 0] > 0.98
        assert unit[1, 1] > 0.98

    @settings(deadline=None)
    @given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
    def test_every_catalogue_has_a_plane(self, n: int, d: int, kinds: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        vectors = rng.standard_normal((n, d))
        labels = [str(number % kinds) for number in range(n)]
        axes, offset = plane(vectors, labels)
        assert axes.shape == (2, d)
        assert np.isfinite(vectors @ axes.T - offset).all()
        # Nearly all lie within 1, and the same products give the same plane.
        assert np.quantile(np.abs(vectors @ axes.T - offset), 0.5) <= 1 + 1e-9
        again, _ = plane(vectors, labels)
        np.testing.assert_array_equal(axes, again)


def filled(count: int, vectors: Any, labels: list[str]) -> CatalogueMemory:
    memory = CatalogueMemory(10_000)
    for number in range(count):
        name = f"p{number}"
        memory.apply(name.encode(), record(name, vectors[number], category=labels[number]))
    memory.caught_up = True
    return memory


class TestMapper:
    def test_axes_stay_while_few_products_change(self) -> None:
        vectors, labels = clusters(4)
        memory = filled(300, vectors, labels)
        mapper = Mapper(memory)
        first = mapper.map()
        assert first is not None
        memory.apply(b"new", record("new", vectors[350], category="0"))
        memory.apply(b"p0", None)
        second = mapper.map()
        assert second is not None
        assert second.axes == first.axes
        ids = {point.product_id for point in second.points}
        assert "new" in ids
        assert "p0" not in ids
        for number in range(1, 200):
            memory.apply(f"p{number}".encode(), None)
        third = mapper.map()
        assert third is not None
        assert third.axes != first.axes

    def test_workers_make_the_same_map_whatever_the_order(self) -> None:
        vectors, labels = clusters(5)
        one, other = filled(200, vectors, labels), CatalogueMemory(10_000)
        for number in reversed(range(200)):
            name = f"p{number}"
            other.apply(name.encode(), record(name, vectors[number], category=labels[number]))
        other.caught_up = True
        assert Mapper(one).map() == Mapper(other).map()

    def test_a_large_catalogue_is_shown_in_part(self) -> None:
        rng = np.random.default_rng(6)
        count = MAX_POINTS + 500
        memory = filled(count, rng.standard_normal((count, 4)), ["a", "b", "c"] * count)
        found = Mapper(memory).map()
        assert found is not None
        assert (len(found.points), found.products) == (MAX_POINTS, count)

    def test_no_products_no_map(self) -> None:
        assert Mapper(CatalogueMemory(5)).map() is None


ROWS = st.tuples(
    st.sampled_from(["a", "b", "c", "d", "e"]),
    st.one_of(st.none(), st.tuples(st.sampled_from(["X", "Y", "Z"]), st.booleans())),
)


class TestShelves:
    @settings(deadline=None)
    @given(st.lists(ROWS, max_size=30), st.booleans())
    def test_they_hold_what_the_changes_leave(
        self, changes: list[tuple[str, tuple[str, bool] | None]], in_stock: bool
    ) -> None:
        shelves = Shelves()
        left: dict[str, ProductRow] = {}
        for product_id, change in changes:
            left.pop(product_id, None)
            row = None if change is None else product(product_id, change[0], in_stock=change[1])
            if row is not None:
                left[product_id] = row
            shelves.change(product_id, row)
            # Reading between changes must not leave anything old behind.
            shelves.browse(None, 100, in_stock=in_stock)
        wanted = [row for row in left.values() if row.in_stock or not in_stock]
        found = shelves.browse(None, 100, in_stock=in_stock)
        assert sorted(found, key=str) == sorted(wanted, key=str)
        assert shelves.newest(100, in_stock=in_stock) == wanted[::-1]
        for category, products, stocked in shelves.categories():
            of = [row for row in left.values() if row.category == category]
            assert products == len(of) > 0
            assert stocked == sum(row.in_stock for row in of)
            shown = shelves.browse(category, 100, in_stock=False)
            assert sorted(shown, key=str) == sorted(of, key=str)

    def test_order_does_not_depend_on_the_order_of_arrival(self) -> None:
        rows = [product(f"p{number}", "ABC"[number % 3]) for number in range(30)]
        one, other = Shelves(), Shelves()
        for row in rows:
            one.change(row.product_id, row)
        for row in reversed(rows):
            other.change(row.product_id, row)
        assert one.browse(None, 30, in_stock=True) == other.browse(None, 30, in_stock=True)


class Flink:
    """Answers as a JobManager does, of one vertex with two subtasks and a source."""

    def __init__(self) -> None:
        self.jobs = {"j1": "RUNNING", "old": "CANCELED"}
        self.events = 100
        self.away = False
        self.asked = 0

    def __call__(self, path: str, **parameters: str) -> Any:
        self.asked += 1
        if self.away:
            raise requests.ConnectionError
        if path == "/jobs":
            return {"jobs": [{"id": key, "status": state} for key, state in self.jobs.items()]}
        if path.endswith("/metrics"):
            return self._metrics(path.split("/")[4], parameters.get("get"))
        vertices = {
            "source": "Source: KafkaSource-default_catalog.default_database.events-source",
            "recommender": "recommender -> DataStreamToTable",
            # It reads the same topic once more, and must not be counted.
            "trending": "Source: KafkaSource-default_catalog.default_database.trending-1-events",
        }
        return {"vertices": [{"id": key, "name": name} for key, name in vertices.items()]}

    def _metrics(self, vertex: str, wanted: str | None) -> Any:
        known: dict[str, str] = {"0.Source.pendingRecords": "7", "0.other": "1"}
        if vertex == "recommender":
            known = {
                **{f"{n}.op.recommender.events": str(self.events) for n in range(2)},
                "0.op.recommender.freshness_p50_ms": "600",
                "1.op.recommender.freshness_p50_ms": "800",
                "0.op.recommender.catalogue_size": "2000",
                # A gauge without a value yet.
                "1.op.recommender.lookups": "NaN?",
            }
        if wanted is None:
            return [{"id": name} for name in known]
        return [{"id": name, "value": known[name]} for name in wanted.split(",")]


def pulse_of(flink: Flink, times: list[float]) -> Pulse:
    return Pulse("http://unused", get=flink, clock=lambda: times[-1])


class TestPulse:
    def test_totals_of_a_job(self) -> None:
        flink = Flink()
        assert live_job(flink) == "j1"
        found = totals(job_metrics(flink, "j1", ALL))
        assert (found["events"], found["freshness_p50_ms"], found["pendingRecords"]) == (
            200,
            800,
            7,
        )
        assert found["lookups"] == 0
        flink.jobs = {"old": "FINISHED"}
        assert live_job(flink) is None

    def test_rates_are_per_second_since_the_sample_before(self) -> None:
        flink, times = Flink(), [1000.0]
        pulse = pulse_of(flink, times)
        # The first answer is what the JobManager knew long ago.
        pulse.look()
        assert (pulse.state, pulse.samples(0)) == ("connected", [])
        pulse.look()
        for _ in range(10):
            times.append(times[-1] + 2)
            # What is renewed only every other time makes no waves.
            flink.events += 100 * (len(times) % 2)
            pulse.look()
        first, second, *_, last = pulse.samples(0)
        assert (first.events_per_second, second.events_per_second) == (None, 0.0)
        assert (second.at, second.events, second.lag) == (1_002_000, 200, 7)
        assert (second.freshness_p50_ms, second.catalogue_products) == (800, 2000)
        # Two subtasks with 100 each every 4 s.
        assert {one.events_per_second for one in pulse.samples(1_006_000)} == {50.0}
        assert pulse.samples(1_018_000) == [last]

    def test_a_restarted_or_other_job_has_no_rate(self) -> None:
        flink, times = Flink(), [1.0]
        pulse = pulse_of(flink, times)
        pulse.look()
        pulse.look()
        flink.events, times[:] = 10, [2.0]
        pulse.look()
        flink.jobs, times[:] = {"j2": "RUNNING"}, [3.0]
        flink.events = 500
        pulse.look()
        assert [one.events_per_second for one in pulse.samples(0)] == [None, None, None]

    def test_it_says_why_there_is_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        flink = Flink()
        pulse = pulse_of(flink, [1.0])
        flink.jobs = {}
        pulse.look()
        states = [pulse.state]
        caplog.clear()
        flink.away = True
        with caplog.at_level(logging.WARNING):
            pulse.look()
            pulse.look()
        states.append(pulse.state)
        assert states == ["no_job", "not_reachable"]
        # Once, and not each second.
        assert len(caplog.records) == 1
        assert pulse.samples(0) == []
        assert Pulse(None).state == "not_configured"

    def test_samples_are_bounded(self) -> None:
        times = [1.0]
        pulse = pulse_of(Flink(), times)
        for second in range(KEPT_SAMPLES + 21):
            times[:] = [float(second)]
            pulse.look()
        assert len(pulse.samples(-1)) == KEPT_SAMPLES

    def test_flink_is_asked_only_while_somebody_looks(self) -> None:
        flink = Flink()
        pulse = Pulse("http://unused", get=flink)
        pulse.start()
        try:
            assert flink.asked == 0
            pulse.samples(0)
            assert eventually(lambda: bool(pulse.samples(0)))
        finally:
            pulse.close()
        assert not pulse._thread.is_alive()

    def test_without_an_address_nothing_is_started(self) -> None:
        pulse = Pulse(None)
        pulse.start()
        assert not pulse._thread.is_alive()
        pulse.close()


def eventually(check: Callable[[], bool]) -> bool:
    return any(check() or threading.Event().wait(0.05) for _ in range(200))
