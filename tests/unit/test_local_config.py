"""flink-conf/config.yaml: every key exists in Flink, since an unknown one is ignored silently."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pyflink
import pytest
import yaml

from local import flink_config

SOURCE = flink_config.SOURCE / "config.yaml"
_CLASS = re.compile(r"(Option|Options|Configuration|Config)(\$\w+)?\.class$")
# Written by local/flink_cluster.py into the run folder's copy.
_WRITTEN = [
    *("rest.port", "jobmanager.rpc.port", "execution.checkpointing.dir"),
    *("execution.checkpointing.savepoint-dir", "io.tmp.dirs"),
    *("python.executable", "python.client.executable", "taskmanager.resource-id"),
]
_REPORTER = re.compile(r"^metrics\.reporter\.\w+\.(.+)$")


def text() -> str:
    return SOURCE.read_text(encoding="utf-8")


def kubernetes_keys() -> list[str]:
    """The keys of the manifest that are Flink's own, and not the operator's."""
    manifest = (flink_config.SOURCE / "kubernetes" / "flink-deployment.yaml").read_text("utf-8")
    deployment = list(yaml.safe_load_all(manifest))[-1]
    keys = deployment["spec"]["flinkConfiguration"]
    return [key for key in keys if not key.startswith("kubernetes.operator.")]


@pytest.fixture(scope="module")
def option_classes() -> bytes:
    """The constants of all option classes, whose keys are string constants of their own."""
    package = Path(pyflink.__file__).parent
    jars = [
        *(package / "lib").glob("flink-dist-*.jar"),
        *(package / "opt").glob("flink-python-*.jar"),
    ]
    classes: list[bytes] = []
    for jar in jars:
        with zipfile.ZipFile(jar) as archive:
            names = [
                name
                for name in archive.namelist()
                if name.startswith("org/apache/flink/") and _CLASS.search(name)
            ]
            classes += [archive.read(name) for name in names]
    assert len(classes) > 50
    return b"".join(classes)


def exists(key: str, classes: bytes) -> bool:
    # A string constant in a class file: tag 1, two bytes of length, the text.
    encoded = key.encode()
    return b"\x01" + len(encoded).to_bytes(2, "big") + encoded in classes


def option_key(key: str) -> str:
    """The key as Flink declares it: a reporter's options are declared without its name."""
    reporter = _REPORTER.match(key)
    return reporter.group(1) if reporter else key


@pytest.mark.parametrize(
    "key", dict.fromkeys([*flink_config.keys(text()), *_WRITTEN, *kubernetes_keys()])
)
def test_every_key_exists_in_flink(key: str, option_classes: bytes) -> None:
    if key == "metrics.reporter.prom.port":
        plugin = Path(pyflink.__file__).parent / "plugins" / "metrics-prometheus"
        with zipfile.ZipFile(next(iter(plugin.glob("*.jar")))) as archive:
            reporter = archive.read(
                "org/apache/flink/metrics/prometheus/PrometheusReporterFactory.class"
            )
        assert exists("port", reporter)
        return
    # `metrics.reporter.<name>.` and the option are declared apart.
    found = option_key(key)
    assert exists(found, option_classes), f"{key} is no option of this Flink version"


@pytest.mark.parametrize(
    "key", ["execution.checkpointing.intervall", "state.backend.typo", "python.execution.mode"]
)
def test_a_mistyped_key_is_found(key: str, option_classes: bytes) -> None:
    assert not exists(key, option_classes)


def test_no_key_stands_twice() -> None:
    keys = flink_config.keys(text())

    assert len(keys) == len(set(keys))


def test_every_key_has_its_reason() -> None:
    previous = ""
    unexplained = []
    for line in text().splitlines():
        key = flink_config.keys(line)
        # A group of keys may share one comment.
        if key and not previous.strip():
            unexplained.append(key[0])
        previous = line

    assert unexplained == []


def test_checkpointing_is_on_and_exact() -> None:
    config = text()

    assert "\nexecution.checkpointing.interval: 10s\n" in config
    assert "\nexecution.checkpointing.mode: EXACTLY_ONCE\n" in config
    assert "\npython.execution-mode: thread\n" in config


def test_groups_of_keys_are_stated_and_divide_evenly() -> None:
    (groups,) = re.findall(r"^pipeline\.max-parallelism: (\d+)$", text(), re.MULTILINE)

    assert all(int(groups) % subtasks == 0 for subtasks in (*range(1, 7), 8, 9, 10, 12, 16, 24))


def test_merge_replaces_keys_with_their_continuation_and_appends_the_others() -> None:
    merged = flink_config.merge("# why\na.b: 1\nc.d: >-\n  x\n  y\ne: 2\n", {"c.d": "z", "f": 3})

    assert flink_config.keys(merged) == ["a.b", "e", "c.d", "f"]
    assert "  x" not in merged
    assert 'c.d: "z"\nf: 3\n' in merged
