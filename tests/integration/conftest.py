"""The servers of the integration tests: started once a session, on free ports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from local.kafka_broker import KafkaBroker
from local.processes import Guardian, free_ports
from local.stack import Stack, StackConfig


def small_config(root: Path) -> StackConfig:
    return StackConfig(
        root=root,
        task_managers=2,
        task_manager_memory="1100m",
        job_manager_memory="900m",
        cassandra_heap="1024m",
        # The tests kill the server: with `periodic` it may forget what it acknowledged last.
        cassandra_commit_log="group",
        prometheus_ports="9360-9460",
    )


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(small_config(tmp_path_factory.mktemp("stack"))) as running:
        yield running


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A broker alone, for tests that need nothing else and may stop it."""
    root = tmp_path_factory.mktemp("kafka")
    port, controller_port = free_ports(2)
    broker = KafkaBroker(root, port, controller_port, heap="256m")
    guardian = Guardian(broker.process.run_dir)
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()
        guardian.release()
