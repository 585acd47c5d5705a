"""The job's stream graph: uids, chains and shuffles, as `flink run` would submit it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from connectors.flink_metrics import RECOMMENDER_TASKS
from local.processes import PROJECT

UIDS = {
    *(f"events-source-{depth}" for depth in range(4)),
    *(
        f"{name}-source-{depth}"
        for name in ("catalogue-records", "products", "related")
        for depth in range(4)
    ),
    "recommender",
    "catalogue",
    "dead-letters-sink-0-1",
    "dead-letters-sink-0-0",
    "Sink Committer: dead-letters-sink-0-0",
    *(
        f"{name}-sink-0-{depth}"
        for name in ("products", "related", "catalogue-letters")
        for depth in range(3)
    ),
    *(f"Sink Committer: {name}-sink-0-0" for name in ("products", "related", "catalogue-letters")),
}


def graph_of(*options: str) -> Any:
    # Here, so that the other tests need no JVM of their own.
    from pyflink.common import Configuration
    from pyflink.datastream import StreamExecutionEnvironment

    from job.main import build
    from job.options import parse

    jars = sorted((PROJECT / "build" / "jars" / "flink").glob("*.jar"))
    assert jars, "the jars are missing: make jars"
    configuration = Configuration()
    configuration.set_string("pipeline.jars", ";".join(jar.as_uri() for jar in jars))
    environment = StreamExecutionEnvironment.get_execution_environment(configuration)
    build(environment, parse(list(options)))
    return environment._j_stream_execution_environment.getStreamGraph(False)


@pytest.fixture(scope="module")
def graph() -> Any:
    return graph_of("--trending-half-life-hours=0")


@pytest.fixture(scope="module")
def with_trending() -> Any:
    return graph_of()


def nodes(graph: Any) -> list[Any]:
    return list(graph.getStreamNodes().toArray())


def inputs(graph: Any, uid: str) -> dict[str, str]:
    """Uid of each node before the one with ``uid``, and how its records are distributed."""
    uid_of = {node.getId(): node.getTransformationUID() for node in nodes(graph)}
    node = next(node for node in nodes(graph) if node.getTransformationUID() == uid)
    return {
        uid_of[edge.getSourceId()]: edge.getPartitioner().toString()
        for edge in node.getInEdges().toArray()
    }


def tasks(graph: Any) -> set[str]:
    """Names of the tasks, without the numbers that the planner gives in the order of making."""
    vertices = graph.getJobGraph().getVerticesAsArray()
    return {re.sub(r"\[\d+\]", "", vertex.getName()) for vertex in vertices}


def test_every_operator_has_its_uid(graph: Any) -> None:
    without = [node.getOperatorName() for node in nodes(graph) if not node.getTransformationUID()]
    found = [node.getTransformationUID() for node in nodes(graph)]

    assert without == []
    assert set(found) == UIDS
    assert len(found) == len(UIDS)


def test_records_are_hashed_and_products_are_broadcast(graph: Any) -> None:
    assert inputs(graph, "catalogue") == {"catalogue-records-source-0": "HASH"}
    assert inputs(graph, "recommender") == {
        "events-source-0": "HASH",
        "products-source-0": "BROADCAST",
        "related-source-0": "BROADCAST",
    }


def test_only_these_four_edges_leave_a_task(graph: Any) -> None:
    names = sorted(vertex.getName() for vertex in graph.getJobGraph().getVerticesAsArray())

    assert len(names) == 6
    assert all(name.startswith("Source: ") for name in names[:4])
    assert names[4].startswith("catalogue -> ")
    assert names[5].startswith("recommender -> ")


def test_what_an_operator_emits_is_written_in_its_own_task(graph: Any) -> None:
    for name in ("products", "related", "catalogue-letters"):
        assert inputs(graph, f"{name}-sink-0-2") == {"catalogue": "FORWARD"}
        assert inputs(graph, f"{name}-sink-0-0") == {f"{name}-sink-0-1": "FORWARD"}
    assert inputs(graph, "dead-letters-sink-0-1") == {"recommender": "FORWARD"}
    assert inputs(graph, "dead-letters-sink-0-0") == {"dead-letters-sink-0-1": "FORWARD"}


def test_trending_products_leave_the_recommender_as_it_is(graph: Any, with_trending: Any) -> None:
    uids = {node.getTransformationUID() for node in nodes(with_trending)}
    added = uids - UIDS

    assert uids > UIDS
    assert all(uid and uid.startswith("trending-") for uid in added)
    assert len(nodes(with_trending)) == len(uids)
    assert tasks(with_trending) > tasks(graph)
    # What the live status and the benchmarks ask for their figures.
    assert {name for name in tasks(with_trending) if RECOMMENDER_TASKS.search(name)} == tasks(graph)


def test_python_gets_finished_trending_lists_keyed_by_scope(
    with_trending: Any,
) -> None:
    assert inputs(with_trending, "trending-changes") == {
        "trending-21600000-scopes-0": "FORWARD",
        "trending-newest-scopes-0": "FORWARD",
    }
    assert inputs(with_trending, "trending-scopes-sink-21600000") == {"trending-changes": "HASH"}
    assert "trending-scopes-sink" in tasks(with_trending)


def test_offsets_and_sums_of_trending_are_found_in_older_savepoints(with_trending: Any) -> None:
    names = {node.getTransformationUID(): node.getOperatorName() for node in nodes(with_trending)}
    assert "Source" in names["trending-21600000-sums-7"]
    assert "GlobalGroupAggregate" in names["trending-21600000-sums-1"]
    # A repeat is known for minutes, the sums for weeks: each has a query, and a TTL, of its own.
    assert "Deduplicate" in names["trending-21600000-counted-3"]


def test_products_of_an_older_savepoint_do_not_stay_in_the_lists(with_trending: Any) -> None:
    # What had a state of them when they were read from the topic `catalogue`. Their source is
    # another one since: what it does not know of it does not take back.
    older = {
        "trending-products-3",
        "trending-products-7",
        *(f"trending-{name}-top-3" for name in ("21600000", "newest")),
        "trending-21600000-top-6",
        *(f"trending-{name}-lists-{at}" for name in ("21600000", "newest") for at in (1, 9)),
        "trending-sink-21600000",
    }
    assert older.isdisjoint(node.getTransformationUID() for node in nodes(with_trending))


def test_repeats_can_be_counted() -> None:
    found = nodes(graph_of("--trending-duplicate-s=0"))
    assert not [one for one in found if "Deduplicate" in one.getOperatorName()]


def test_no_join_ends_its_task_manager(with_trending: Any) -> None:
    from pyflink.java_gateway import get_gateway

    # That of batches does, where its task is cancelled before it has opened (job/trending.py).
    loader = get_gateway().jvm.Thread.currentThread().getContextClassLoader()
    names = [
        node.getOperatorFactory().getStreamOperatorClass(loader).getSimpleName()
        for node in nodes(with_trending)
        if node.getOperatorFactory() is not None
    ]
    joins = [name for name in names if "Join" in name]
    assert joins == ["StreamingJoinOperator"]
