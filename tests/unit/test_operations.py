"""The files for operators: dashboard, alert rules, manifests and runbook say what is true."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import msgspec
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from api.access import KEY_PREFIX, ApiKey, hash_key
from api.config import ApiConfig
from connectors.recommendation_store import StoreUnavailable
from job.options import parse
from local import cli, flink_config
from local.processes import PROJECT
from tests import exported_metrics
from tests.exported_metrics import Sample, Selector, selectors
from tests.unit.api_doubles import Shop

QUERIES = exported_metrics.queries()
RUNBOOK = (PROJECT / "flink-conf" / "RUNBOOK.md").read_text(encoding="utf-8")
KUBERNETES = PROJECT / "flink-conf" / "kubernetes"
# The newest whose schemas the validator has and that clusters run.
KUBERNETES_VERSION = "1.34"


def manifests() -> list[dict[str, Any]]:
    return [
        manifest
        for file in sorted(KUBERNETES.glob("*.yaml"))
        for manifest in yaml.safe_load_all(file.read_text(encoding="utf-8"))
    ]


MANIFESTS = {f"{one['kind']} {one['metadata']['name']}": one for one in manifests()}
DEPLOYMENT: dict[str, Any] = MANIFESTS["FlinkDeployment recommender"]["spec"]


# --- metrics ------------------------------------------------------------------------------------


def test_selectors_are_found_wherever_they_stand() -> None:
    query = 'sum by (a) (rate(x{l="v"}[5m])) / on() group_left max(y{m!~"b.*"} offset 1m) > bool 1'

    assert selectors(query) == {
        Selector("x", (("l", "=", "v"),)),
        Selector("y", (("m", "!~", "b.*"),)),
    }
    with pytest.raises(ValueError, match="unclosed"):
        selectors("sum(")


def test_a_selector_matches_by_its_labels() -> None:
    sample = Sample("x", {"l": "value"})

    assert Selector("x", (("l", "=~", "val.*"), ("none", "=", ""))).matches(sample)
    assert not Selector("x", (("l", "=~", "val"),)).matches(sample)
    assert not Selector("x", (("l", "!=", "value"),)).matches(sample)
    assert not Selector("y").matches(sample)


@pytest.mark.parametrize("where", QUERIES)
def test_every_metric_that_is_asked_for_is_exported(where: str) -> None:
    known = {*exported_metrics.golden_names(), "up"}
    known |= {rule["record"] for rule in exported_metrics.rules() if "record" in rule}
    known |= exported_metrics.service_names()

    asked = {one.name for one in selectors(QUERIES[where])}

    assert asked
    assert asked <= known


def test_of_the_kafka_clients_one_metric_is_kept() -> None:
    names = exported_metrics.golden_names()

    assert len(names) > 150
    assert [name for name in names if "_KafkaConsumer_" in name or "_KafkaProducer_" in name] == [
        "flink_taskmanager_job_task_operator_KafkaSourceReader_KafkaConsumer_records_lag_max"
    ]
    assert exported_metrics.dropped("flink_x_KafkaProducer_record_send_rate")
    assert not exported_metrics.dropped("flink_taskmanager_job_task_operator_pendingRecords")


def test_both_scrape_configurations_keep_the_same() -> None:
    kept = []
    for name in ("prometheus.yml", "prometheus-kubernetes.yml"):
        config = yaml.safe_load((exported_metrics.PROMETHEUS / name).read_text(encoding="utf-8"))
        jobs = {job["job_name"]: job for job in config["scrape_configs"]}
        assert set(jobs) == {"flink", "recommender-api"}
        kept.append(jobs["flink"]["metric_relabel_configs"])

    assert kept[0] == kept[1]


# --- dashboard ----------------------------------------------------------------------------------


def test_grafanas_own_model_knows_every_field_of_the_dashboard() -> None:
    register_default_plugins()
    dashboard = json.loads(exported_metrics.DASHBOARD.read_text(encoding="utf-8"))

    again = json.loads(json.dumps(Dashboard.from_json(dashboard).to_json(), cls=JSONEncoder))

    # What the model does not know is lost on the way; defaults come in addition.
    assert list(lost(dashboard, again)) == []
    misspelt = {**dashboard, "panles": []}
    assert list(lost(misspelt, again)) == ["/panles"]


def lost(before: Any, after: Any, at: str = "") -> Iterator[str]:
    """Where ``after`` lacks or changes something of ``before``."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            if key in after:
                yield from lost(value, after[key], f"{at}/{key}")
            else:
                yield f"{at}/{key}"
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, pair in enumerate(zip(before, after, strict=True)):
            yield from lost(*pair, f"{at}/{number}")
    elif before != after:
        yield at


def test_panels_lie_beside_each_other_and_have_a_source() -> None:
    panels = exported_metrics.panels()
    taken: set[tuple[int, int]] = set()

    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        at = panel["gridPos"]
        cells = set(
            itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))
        )
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert {one["datasource"]["uid"] for one in panel["targets"]} == {"${datasource}"}
    assert len(taken) == 24 * max(row + 1 for _, row in taken), "a hole in the grid"


# --- alerts and runbook -------------------------------------------------------------------------


def test_every_alert_says_what_to_do() -> None:
    alerts = [rule for rule in exported_metrics.rules() if "alert" in rule]
    sections = re.findall(r"^### ([A-Z]\w+)$", RUNBOOK, re.MULTILINE)

    assert sorted(alert["alert"] for alert in alerts) == sorted(sections)
    for alert in alerts:
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["description"]


def test_every_command_of_the_runbook_exists() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    used = set(re.findall(r"\bmake ([a-z-]+)", RUNBOOK))
    modules = set(re.findall(r"python -m ([\w.]+)", RUNBOOK))

    assert used >= {"up", "down", "scale", "resume", "dead-letters", "replay"}
    assert used <= targets
    assert modules
    assert all(importlib.util.find_spec(module) is not None for module in modules)


def test_every_file_that_the_runbook_names_exists() -> None:
    named = set(re.findall(r"`((?:flink-conf|job|local|connectors|tests)/[\w./-]+)`", RUNBOOK))

    assert named
    assert [name for name in sorted(named) if not (PROJECT / name).exists()] == []


def test_topics_of_the_runbook_are_those_of_the_stack() -> None:
    assert set(cli.TOPICS) == {"events", "catalogue", "dead-letters", "products", "related"}
    for topic in cli.TOPICS:
        assert f"`{topic}`" in RUNBOOK


# --- Kubernetes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in MANIFESTS if "FlinkDeployment" not in name])
def test_manifests_follow_their_schemas(name: str) -> None:
    kubernetes_validate.validate(MANIFESTS[name], KUBERNETES_VERSION, strict=True)


def test_the_pod_template_of_the_job_is_a_pod() -> None:
    template = DEPLOYMENT["podTemplate"]

    kubernetes_validate.validate(template, KUBERNETES_VERSION, strict=True)
    # The container that the operator fills in goes by this name.
    assert [one["name"] for one in template["spec"]["containers"]] == ["flink-main-container"]


def test_a_manifest_that_is_wrong_is_found() -> None:
    wrong = {**MANIFESTS["Service recommender-api"], "spec": {"port": 80}}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES_VERSION, strict=True)


# What a cluster of pods has otherwise than one machine: addresses, ports and sizes.
OTHERWISE = {
    *("rest.bind-address", "rest.address", "jobmanager.bind-host", "jobmanager.rpc.address"),
    *("taskmanager.bind-host", "taskmanager.host", "metrics.reporter.prom.port"),
    *("taskmanager.memory.process.size", "jobmanager.memory.process.size"),
    # A pod is not found again by a TaskManager that waits; the live status asks by REST.
    *("taskmanager.registration.timeout", "metrics.fetcher.update-interval"),
}


def test_the_job_has_the_same_settings_as_on_one_machine() -> None:
    text = (PROJECT / "flink-conf" / "config.yaml").read_text(encoding="utf-8")
    here = {key: _text(value) for key, value in yaml.safe_load(text).items()}
    there = {key: _text(value) for key, value in DEPLOYMENT["flinkConfiguration"].items()}

    assert list(here) == flink_config.keys(text)
    assert here.keys() >= OTHERWISE
    assert {key: there.get(key) for key in here.keys() - OTHERWISE} == {
        key: value for key, value in here.items() if key not in OTHERWISE
    }
    assert (
        DEPLOYMENT["taskManager"]["resource"]["memory"] == here["taskmanager.memory.process.size"]
    )
    assert DEPLOYMENT["jobManager"]["resource"]["memory"] == here["jobmanager.memory.process.size"]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_the_job_understands_its_arguments(tmp_path: Path) -> None:
    arguments = DEPLOYMENT["job"]["args"]
    script = arguments.index("-py") + 1
    assert (PROJECT / "job" / "main.py").exists()
    assert arguments[script].endswith("/job/main.py")
    container = _container()
    # Flink logs its environment.
    assert not any("valueFrom" in one for one in container.get("env", ()))
    (mounted,) = (one for one in container["volumeMounts"] if one["name"] == "secrets")
    volumes = DEPLOYMENT["podTemplate"]["spec"]["volumes"]
    (volume,) = (one for one in volumes if one["name"] == "secrets")
    jaas = 'org.example.ScramLoginModule required username="me" password="secret";'
    for item in volume["secret"]["items"]:
        text = jaas if item["key"] == "kafka-jaas" else f"the value of {item['key']}"
        (tmp_path / item["path"]).write_text(text)
    here = [one.replace(mounted["mountPath"], str(tmp_path)) for one in arguments[script + 1 :]]

    options = parse(here)

    assert options.cassandra.password == "the value of cassandra-password"
    assert options.kafka.properties["sasl.jaas.config"] == jaas
    assert options.librdkafka()["sasl.password"] == "secret"


def test_the_pages_say_that_topics_of_products_keep_their_partitions() -> None:
    anchor = "operations.md#partitions-of-the-topics-of-products"
    rescale = RUNBOOK.split("\n## Rescale\n")[1].split("\n## ")[0]
    formats = (PROJECT / "docs" / "formats.md").read_text(encoding="utf-8")
    assert anchor in rescale
    assert anchor in formats
    page = (PROJECT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = page.split("\n## Partitions of the topics of products\n")[1].split("\n## ")[0]
    for topic in (cli.CATALOGUE, cli.PRODUCTS, cli.RELATED):
        assert f"`{topic}`" in section
        assert f"--{topic}-topic" in section


def test_the_service_understands_its_variables(tmp_path: Path) -> None:
    variables = dict(MANIFESTS["ConfigMap recommender-api"]["data"])
    settings = (PROJECT / "api" / "gunicorn.conf.py").read_text(encoding="utf-8")
    gunicorns = {name for name in variables if f'"{name}"' in settings}

    keys = tmp_path / "api-keys"
    key = ApiKey("shop", hash_key(f"{KEY_PREFIX}{'x' * 43}"), ("read",))
    keys.write_bytes(msgspec.json.encode([key]))
    config = ApiConfig.from_env(
        {
            **variables,
            "RECOMMENDER_CASSANDRA_PASSWORD": "x",
            "RECOMMENDER_API_KEYS_FILE": str(keys),
        }
    )

    assert config.cassandra.hosts == ("cassandra",)
    assert config.cassandra.local_dc == "dc1"
    assert config.kafka.bootstrap == "kafka:9092"
    assert [one.name for one in config.keys] == ["shop"]
    read = ("RECOMMENDER_CASSANDRA_", "RECOMMENDER_KAFKA_", "RECOMMENDER_API_KEYS_FILE")
    known = {name for name in variables if name.startswith(read)}
    assert known | gunicorns == set(variables)
    pod = MANIFESTS["Deployment recommender-api"]["spec"]["template"]["spec"]
    (mounted,) = (one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "keys")
    (volume,) = (one for one in pod["volumes"] if one["name"] == "keys")
    paths = [f"{mounted['mountPath']}/{item['path']}" for item in volume["secret"]["items"]]
    assert paths == [variables["RECOMMENDER_API_KEYS_FILE"]]


def _container() -> dict[str, Any]:
    found: dict[str, Any] = DEPLOYMENT["podTemplate"]["spec"]["containers"][0]
    return found


def test_secrets_are_named_and_never_written() -> None:
    service = MANIFESTS["Deployment recommender-api"]["spec"]["template"]["spec"]["containers"][0]

    assert not [name for name in MANIFESTS if name.startswith("Secret")]
    for variable in service["env"]:
        assert variable["valueFrom"]["secretKeyRef"]["name"] == "recommender-secrets"
    (volume,) = (
        one for one in DEPLOYMENT["podTemplate"]["spec"]["volumes"] if one["name"] == "secrets"
    )
    assert volume["secret"]["secretName"] == "recommender-secrets"


def test_probes_of_the_service_need_neither_a_key_nor_a_store() -> None:
    container = MANIFESTS["Deployment recommender-api"]["spec"]["template"]["spec"]["containers"][0]
    shop = Shop(ApiConfig(keys=(ApiKey("one", hash_key(KEY_PREFIX), ("ingest",)),)))
    shop.store.failure = StoreUnavailable("cassandra", "gone")

    for probe in ("livenessProbe", "readinessProbe"):
        path = container[probe]["httpGet"]["path"]
        # As the kubelet asks: by the pod's address, and from elsewhere.
        response = shop.client.get(
            path, headers={"Host": "10.1.2.3:8080"}, environ_overrides={"REMOTE_ADDR": "10.1.2.1"}
        )
        assert response.status_code == 200


def test_pod_is_given_the_time_that_the_service_takes_to_end() -> None:
    pod = MANIFESTS["Deployment recommender-api"]["spec"]["template"]["spec"]
    pause = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    gunicorn = (PROJECT / "api" / "gunicorn.conf.py").read_text(encoding="utf-8")
    (base,) = re.findall(r"graceful_timeout = (\d+) \+", gunicorn)

    needed = pause + int(base) + ApiConfig().flush_seconds

    assert pod["terminationGracePeriodSeconds"] > needed


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus-kubernetes.yml"])
def test_the_key_for_the_metrics_is_sent_and_stands_in_no_file_of_the_repository(name: str) -> None:
    config = yaml.safe_load((exported_metrics.PROMETHEUS / name).read_text(encoding="utf-8"))
    for job in config["scrape_configs"]:
        assert ("authorization" in job) == (job["job_name"] == "recommender-api")
        file = job.get("authorization", {}).get("credentials_file", "metrics-key")
        ignored = (PROJECT / ".gitignore").read_text(encoding="utf-8").splitlines()
        assert file.startswith("/") or f"/flink-conf/prometheus/{file}" in ignored


def test_pods_are_scraped_where_their_metrics_are() -> None:
    template = DEPLOYMENT["podTemplate"]["metadata"]["annotations"]
    service = MANIFESTS["Deployment recommender-api"]["spec"]["template"]

    assert template["prometheus.io/port"] == "9250"
    assert DEPLOYMENT["flinkConfiguration"]["metrics.reporter.prom.port"] == "9250"
    (port,) = service["spec"]["containers"][0]["ports"]
    assert service["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])
    bind = MANIFESTS["ConfigMap recommender-api"]["data"]["RECOMMENDER_API_BIND"]
    assert bind.endswith(f":{port['containerPort']}")
