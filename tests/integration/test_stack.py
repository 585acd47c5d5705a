"""The one-machine stack: it starts, answers, survives kills with its data, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest
import requests
from confluent_kafka import Consumer, Producer

from local.kafka_broker import KafkaBroker
from local.processes import PROJECT, free_ports, wait_until
from local.stack import Stack, StackConfig, StackError


def produce(stack: Stack, topic: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": stack.kafka.bootstrap, "enable.idempotence": True})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(30) == 0


def consume(stack: Stack, topic: str, count: int) -> list[bytes]:
    consumer = Consumer(
        {
            "bootstrap.servers": stack.kafka.bootstrap,
            "group.id": f"test-{time.time_ns()}",
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([topic])
    found: list[bytes] = []
    deadline = time.monotonic() + 30
    while len(found) < count and time.monotonic() < deadline:
        message = consumer.poll(0.5)
        if message is not None and message.error() is None:
            found.append(message.value())
    consumer.close()
    return found


def test_all_servers_answer(stack: Stack) -> None:
    assert stack.kafka.answers()
    assert stack.cassandra.answers()
    assert stack.flink.registered() == 2
    assert requests.get(f"{stack.flink.rest_url}/overview", timeout=5).ok


def test_every_flink_process_serves_its_metrics_to_prometheus(stack: Stack) -> None:
    first, last = (int(port) for port in stack.config.prometheus_ports.split("-"))
    pids = {stack.flink.job_manager.pid, *(one.pid for one in stack.flink.task_managers)}
    serving: dict[int | None, int] = {}
    for connection in psutil.net_connections("tcp"):
        port = connection.laddr.port if connection.laddr else 0
        if connection.status == psutil.CONN_LISTEN and first <= port <= last:
            serving[connection.pid] = port

    assert pids <= serving.keys()
    answer = requests.get(f"http://127.0.0.1:{min(serving.values())}/metrics", timeout=5)
    assert "flink_" in answer.text


def test_a_topic_is_created_once_and_never_by_accident(stack: Stack) -> None:
    assert stack.kafka.create_topic("made", 3, {"cleanup.policy": "compact"})
    assert not stack.kafka.create_topic("made", 3)
    assert stack.kafka.topic_config("made")["cleanup.policy"] == "compact"
    assert stack.kafka.end_offsets("made") == {0: 0, 1: 0, 2: 0}
    assert stack.kafka.end_offsets("never-made") == {}


def test_kafka_comes_back_with_its_data_after_a_kill(stack: Stack) -> None:
    stack.kafka.create_topic("killed", 1)
    produce(stack, "killed", [b"1", b"2", b"3"])

    stack.kafka.kill()
    assert not stack.kafka.answers()
    stack.kafka.start()

    assert consume(stack, "killed", 3) == [b"1", b"2", b"3"]


def test_cassandra_comes_back_with_its_data_after_a_kill(stack: Stack) -> None:
    stack.cassandra.query(
        "CREATE KEYSPACE killed WITH replication = "
        "{'class': 'SimpleStrategy', 'replication_factor': 1}"
    )
    stack.cassandra.query("CREATE TABLE killed.t (k int PRIMARY KEY)")
    with stack.cassandra.cluster() as cluster:
        session = cluster.connect("killed")
        insert = session.prepare("INSERT INTO t (k) VALUES (?)")
        for key in range(50):
            session.execute(insert, (key,))

        stack.cassandra.kill()
    stack.cassandra.start()

    assert sorted(row.k for row in stack.cassandra.query("SELECT k FROM killed.t")) == list(
        range(50)
    )


def test_a_killed_task_manager_is_replaced(stack: Stack) -> None:
    stack.flink.kill_task_manager(0)
    assert stack.flink.registered() == 1

    stack.flink.start_task_manager(0)

    assert stack.flink.registered() == 2


def test_a_killed_job_manager_finds_its_task_managers_again(stack: Stack) -> None:
    stack.flink.job_manager.kill()
    stack.flink.job_manager.start()
    stack.flink.wait_task_managers()

    assert stack.flink.registered() == 2
    wait_until(lambda: stack.flink.free_slots() == 2, 30, what="two free slots")


def test_a_busy_port_is_named_with_its_remedy(stack: Stack, tmp_path: Path) -> None:
    second = Stack(StackConfig(root=tmp_path, kafka_port=stack.kafka.port))

    with pytest.raises(StackError, match=rf"kafka: port {stack.kafka.port} is in use") as caught:
        second.start()

    assert "KAFKA_PORT=" in caught.value.remedy
    assert second.living() == []


def test_too_little_memory_is_named_before_anything_starts(tmp_path: Path) -> None:
    huge = Stack(StackConfig(root=tmp_path, task_manager_memory="4000g"))

    with pytest.raises(StackError, match=r"memory: .* MiB are needed"):
        huge.start()

    assert huge.living() == []


_SCRIPT = """
import signal, sys, time
from pathlib import Path
from local.kafka_broker import KafkaBroker
from local.processes import Guardian
from local.stack import Stack, StackConfig

# A shell that runs the tests in the background has its children ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Kafka alone: what ends it does not depend on how many servers there are.
stack = Stack(StackConfig(root=Path(sys.argv[1])))
stack.cassandra.start = stack.flink.start = lambda: None
with stack:
    print(stack.kafka.process.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_server_outlives_its_starter(tmp_path: Path, how: signal.Signals) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    assert psutil.pid_exists(pid)

    starter.send_signal(how)
    starter.wait(60)

    def gone() -> bool:
        try:
            return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    wait_until(gone, 30, what="the end of the server")


def test_a_second_start_keeps_ports(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    first = StackConfig(root=tmp_path, kafka_port=port).with_ports()

    assert StackConfig(root=tmp_path).with_ports() == first


def test_kafka_starts_with_a_cluster_id_that_looks_like_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Base64 of a first byte of 0xf8 begins with a dash; one random id in 64 does.
    monkeypatch.setattr("uuid.uuid4", lambda: uuid.UUID(bytes=b"\xf8" + bytes(15)))
    port, controller_port = free_ports(2)
    broker = KafkaBroker(tmp_path, port, controller_port, heap="256m")
    try:
        broker.start()
        assert broker.answers()
    finally:
        broker.stop()
