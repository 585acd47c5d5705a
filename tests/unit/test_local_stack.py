"""Parts of the local stack that need no server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from local import flink_home, preflight
from local.cli import main
from local.errors import StackError
from local.flink_cluster import FlinkCluster
from local.live import Status, Tables, lines, service_counts
from local.processes import ServerProcess, free_ports, is_free, tail
from local.stack import StackConfig, mib


@pytest.mark.parametrize(
    ("text", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_402"', 8),
        ('openjdk version "21" 2023-09-19', 21),
        ("command not found", None),
    ],
)
def test_the_java_version_is_read(text: str, major: int | None) -> None:
    assert preflight.java_major(text) == major


def test_an_old_java_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    preflight.find_java.cache_clear()

    with pytest.raises(StackError, match="is version 11, 17 is needed") as caught:
        preflight.find_java()

    assert "install a JDK 17" in str(caught.value)
    preflight.find_java.cache_clear()


def test_too_little_memory_says_how_much() -> None:
    with pytest.raises(StackError, match="6000 MiB are needed, 1000 MiB are available"):
        preflight.check_memory(6000, 1000)


def test_missing_jars_name_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preflight, "JARS", tmp_path)

    with pytest.raises(StackError, match="make jars"):
        preflight.check_jars("kafka")


@pytest.mark.parametrize(("text", "size"), [("1536m", 1536), ("2g", 2048)])
def test_memory_sizes(text: str, size: int) -> None:
    assert mib(text) == size


def test_a_memory_size_without_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="is no memory size"):
        mib("1536")


def test_chosen_ports_are_free_different_and_remembered(tmp_path: Path) -> None:
    first = StackConfig(root=tmp_path).with_ports()

    ports = {first.kafka_port, first.cassandra_port, first.flink_port, first.flink_rpc_port}
    assert len(ports) == 4
    assert all(is_free(port) for port in ports)
    assert StackConfig(root=tmp_path).with_ports() == first


def test_free_ports_avoid_those_given() -> None:
    (port,) = free_ports(1)

    assert port not in free_ports(3, avoid=[port])


def test_a_process_is_found_again_by_its_pid_file_and_stopped(tmp_path: Path) -> None:
    server = ServerProcess("sleeper", tmp_path, tmp_path / "sleeper.log")
    server.spawn([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"])
    again = ServerProcess("sleeper", tmp_path, tmp_path / "sleeper.log")

    assert again.pid == server.pid
    again.stop()
    assert not server.alive
    assert not server.pid_file.exists()


def test_a_stale_pid_file_never_names_a_stranger(tmp_path: Path) -> None:
    server = ServerProcess("stale", tmp_path, tmp_path / "stale.log")
    server.pid_file.write_text(json.dumps({"pid": os.getpid(), "started": 1.0}))

    assert server.pid is None


def test_a_server_that_ends_while_starting_shows_its_log(tmp_path: Path) -> None:
    server = ServerProcess("broken", tmp_path, tmp_path / "broken.log")
    server.spawn([sys.executable, "-c", "raise SystemExit('no disk')"])

    with pytest.raises(StackError, match="broken: ended while starting") as caught:
        server.wait_ready(lambda: False, 20, remedy="buy one")

    assert "no disk" in str(caught.value)
    assert "remedy: buy one" in str(caught.value)


def test_the_tail_of_a_missing_log_is_empty(tmp_path: Path) -> None:
    assert tail(tmp_path / "none.log") == ""


def test_the_guardian_kills_what_its_parent_leaves(tmp_path: Path) -> None:
    script = (
        "import sys, os; from pathlib import Path; from local.processes import *\n"
        "run = Path(sys.argv[1]); Guardian(run)\n"
        "one = ServerProcess('left', run, run / 'left.log'); one.spawn(['sleep', '60'])\n"
        "print(one.pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    server = ServerProcess("left", tmp_path, tmp_path / "left.log")

    assert done.returncode == -9
    for _ in range(200):
        if not server.pid_file.exists():
            break
        subprocess.run(["sleep", "0.05"], check=True)
    assert not server.alive
    assert not server.pid_file.exists()


def test_the_newest_snapshot_on_disk_is_found_and_an_unfinished_one_is_not(tmp_path: Path) -> None:
    cluster = FlinkCluster(tmp_path, rest_port=1, rpc_port=2, prometheus_ports="3", task_managers=1)
    for age, path in enumerate(
        ["checkpoints/a/chk-9", "checkpoints/b/chk-2", "savepoints/savepoint-x"]
    ):
        folder = tmp_path / "data" / "flink" / path
        folder.mkdir(parents=True)
        (folder / "_metadata").touch()
        os.utime(folder / "_metadata", (1000 + age, 1000 + age))
    (tmp_path / "data" / "flink" / "checkpoints" / "b" / "chk-3").mkdir()

    assert str(cluster.latest_checkpoint_path()).endswith("b/chk-2")
    assert str(cluster.latest_restore_path()).endswith("savepoint-x")


def test_the_flink_home_has_the_python_jar_in_lib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jars = tmp_path / "jars"
    (jars / "flink").mkdir(parents=True)
    (jars / "flink" / "connector.jar").touch()
    monkeypatch.setattr(preflight, "JARS", jars)

    home = flink_home.prepare(tmp_path / "home")
    names = {jar.name.rsplit("-", 1)[0] for jar in (home / "lib").glob("*.jar")}

    assert {"flink-python", "flink-dist", "connector.jar"} <= names
    assert os.access(home / "bin" / "flink", os.X_OK)
    assert (home / "plugins" / "metrics-prometheus").is_dir()


def test_status_before_anything_is_known_can_be_shown() -> None:
    text = "\n".join(lines(Status(at=0.0, user="u", dead=("kafka",))))

    assert "DEAD: kafka" in text
    assert "nothing yet" in text


def test_status_shows_what_came_to_nothing() -> None:
    values = {"unresolved_events": 1234.0, "erased_events": 5, "opted_out_events": 6}
    values |= {"refused_events": 2, "refused_rows": 3}
    service = {"lost": 7.0, "refused": 8.0, "above_rate": 9.0}
    tables = Tables(("wc_post_id_4638", "x" * 128), 4)
    status = Status(at=0.0, user="u", values=values, tables=tables, service=service)

    text = "\n".join(lines(status))

    assert "unresolved   1,234 events, of wc_post_id_4638, " + "x" * 40 in text
    assert "x" * 41 not in text
    assert "erasures     waiting 4   events of erased users 5" in text
    assert "objections   events 6" in text
    assert "refused      by Cassandra 5 rows" in text
    assert "service      events lost 7   refused 8   requests above their rate 9" in text


def test_counters_of_the_service_are_added_up() -> None:
    metrics = """
recommender_api_events_total{outcome="sent"} 100.0
recommender_api_events_total{outcome="failed"} 1.0
recommender_api_events_total{outcome="lost"} 2.0
recommender_api_events_total{outcome="dropped"} 3.0
recommender_api_events_refused_total{reason="not_json"} 4.0
recommender_api_events_refused_total{reason="missing_key"} 5.0
recommender_api_requests_total{route="/v1/events",method="POST",status="429"} 6.0
recommender_api_requests_total{route="/v1/events",method="POST",status="202"} 7.0
"""
    assert service_counts(metrics) == {"lost": 6.0, "refused": 9.0, "above_rate": 6.0}


def test_reset_deletes_no_folder_that_is_not_a_stack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious").touch()

    assert main(["--root", str(tmp_path), "reset", "--yes"]) == 1
    assert (tmp_path / "precious").exists()
    assert "is no stack folder" in capsys.readouterr().err


def test_reset_deletes_a_stack_folder(tmp_path: Path) -> None:
    root = tmp_path / "stack"
    StackConfig(root=root).with_ports()

    assert main(["--root", str(root), "reset", "--yes"]) == 0
    assert not root.exists()
