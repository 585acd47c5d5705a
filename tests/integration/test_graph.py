"""The job's stream graph: uids, chains and shuffles, as `flink run` would submit it."""

from __future__ import annotations

from typing import Any

import pytest

from local.processes import PROJECT

UIDS = {
    *(f"events-source-{depth}" for depth in range(4)),
    *(f"catalogue-source-{depth}" for depth in range(4)),
    *(f"heartbeat-source-{depth}" for depth in range(4)),
    "recommender",
    "cassandra-sink",
    "dead-letters-sink-0-1",
    "dead-letters-sink-0-0",
    "Sink Committer: dead-letters-sink-0-0",
}


@pytest.fixture(scope="module")
def graph() -> Any:
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
    build(environment, parse([]))
    return environment._j_stream_execution_environment.getStreamGraph(False)


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


def test_every_operator_has_its_uid(graph: Any) -> None:
    without = [node.getOperatorName() for node in nodes(graph) if not node.getTransformationUID()]
    found = [node.getTransformationUID() for node in nodes(graph)]

    assert without == []
    assert set(found) == UIDS
    assert len(found) == len(UIDS)


def test_events_are_hashed_and_the_catalogue_is_broadcast(graph: Any) -> None:
    assert inputs(graph, "recommender") == {
        "events-source-0": "HASH",
        "catalogue-source-0": "BROADCAST",
        "heartbeat-source-0": "BROADCAST",
    }


def test_only_these_three_edges_leave_a_task(graph: Any) -> None:
    # All Python in one chain: no barrier between a lookup and its save, and one GIL's threads less.
    names = sorted(vertex.getName() for vertex in graph.getJobGraph().getVerticesAsArray())

    assert len(names) == 4
    assert all(name.startswith("Source: ") for name in names[:3])
    assert names[3].startswith("recommender -> cassandra-sink -> ")
    assert inputs(graph, "cassandra-sink") == {"recommender": "FORWARD"}


def test_the_sink_writes_all_dead_letters_behind_the_save(graph: Any) -> None:
    assert inputs(graph, "dead-letters-sink-0-1") == {"cassandra-sink": "FORWARD"}
    assert inputs(graph, "dead-letters-sink-0-0") == {"dead-letters-sink-0-1": "FORWARD"}
