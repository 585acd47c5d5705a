"""The catalogue benchmark's own logic: its records, recall, checkpoint shares, ratios and table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.catalogue import operator_bytes, peak_mib, ratios, recall, table
from benchmarks.runner import BenchmarkError
from benchmarks.workload import SPACE, Workload
from tests.unit.builders import record_vectors
from udfs.product_record import decode_record, decode_related

SMALL = Workload(products=300, related=10)


def row(products: int, cpu: float, **more: Any) -> dict[str, Any]:
    keys = ("events_per_second", "task_manager_mib", "checkpoint_mib", "start_to_first_list_s")
    measured = dict.fromkeys((*keys, "restore_s", "recall"), 1.0)
    rate = {"products_per_second": None}
    return {"products": products, "tm_cpu_us_per_event": cpu, **measured, **rate, **more}


def test_records_are_what_the_catalogue_operator_writes() -> None:
    records = [decode_record(key, value) for key, value in SMALL.records()]
    assert [one.product_id for one in records] == [SMALL.product_id(at) for at in range(300)]
    vectors = [record_vectors(one)[SPACE] for one in records]
    assert np.array_equal(np.array(vectors), SMALL.vectors())
    assert {len(one.title.split()) for one in records} == {8}
    assert len({one.title for one in records}) == 300


def test_related_rows_name_other_products_half_of_them_near() -> None:
    rows = [decode_related(key, value) for key, value in SMALL.related_rows()]
    assert [one.product_id for one in rows] == [SMALL.product_id(at) for at in range(300)]
    known = {one.product_id: at for at, one in enumerate(rows)}
    vectors = SMALL.vectors()
    cosines = []
    for one in rows:
        assert 5 <= len(one.related) <= 10
        assert one.product_id not in one.related
        at = known[one.product_id]
        cosines += [float(vectors[at] @ vectors[known[other]]) for other in one.related]
    assert 0.25 < np.mean(np.array(cosines) > 0.4) < 0.75


def test_recall_is_the_share_that_was_found() -> None:
    vectors = SMALL.vectors()

    def exact(queries: np.ndarray[Any, np.dtype[np.float32]]) -> list[list[str]]:
        order = np.argsort(-(queries @ vectors.T), axis=1)[:, :20].tolist()
        return [[SMALL.product_id(at) for at in found] for found in order]

    assert recall(exact, vectors, SMALL.product_id, k=20, queries=70) == 1.0
    half = recall(
        lambda queries: [found[:10] for found in exact(queries)], vectors, SMALL.product_id, k=20
    )
    assert half == pytest.approx(0.5)


def test_peak_is_read_from_the_kernel() -> None:
    assert peak_mib("Name:\tjava\nVmHWM:\t 2048 kB\nVmRSS:\t 1024 kB\n") == 2.0
    with pytest.raises(BenchmarkError, match="VmHWM"):
        peak_mib("Name:\tjava\n")


def test_bytes_of_an_operator_are_those_of_its_tasks() -> None:
    vertices = [{"id": "a", "name": "Source"}, {"id": "b", "name": "recommender -> letters"}]
    sizes = {"a": {"state_size": 5}, "b": {"state_size": 7}}
    assert operator_bytes({"vertices": vertices}, {"tasks": sizes}, "recommender") == 7
    with pytest.raises(BenchmarkError, match="trending"):
        operator_bytes({"vertices": vertices}, {"tasks": sizes}, "trending")


def test_ratios_are_to_the_smallest_size() -> None:
    rows = [row(10_000, 100.0), row(100_000, 110.0), row(1_000_000, 140.0)]
    assert ratios(rows) == {"cpu_ratio_100k": 1.1, "cpu_ratio_1m": 1.4}
    assert ratios(rows[:1]) == {"cpu_ratio_100k": None, "cpu_ratio_1m": None}
    assert ratios(rows[1:]) == {"cpu_ratio_100k": None, "cpu_ratio_1m": None}


def test_table_has_a_line_a_size() -> None:
    lines = table([row(10_000, 100.5), row(1_000_000, 1.0, products_per_second=2500)]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split()[:3] == ["10,000", "1.0", "100.5"]
    assert [line.split()[-1] for line in lines[1:]] == ["–", "2,500"]
