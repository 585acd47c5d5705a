"""Which metrics the running job exports, and which the dashboard and the alert rules ask for.

``python -m tests.exported_metrics`` starts the servers and the job, scrapes every Flink process
and writes ``tests/golden/metrics.txt`` anew: the names that the scrape configuration keeps.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import promql_parser
import psutil
import requests
import yaml
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

import api.metrics  # noqa: F401 (registers the service's metrics)
from local.processes import LOOPBACK, PROJECT
from local.stack import Stack

GOLDEN = PROJECT / "tests" / "golden" / "metrics.txt"
PROMETHEUS = PROJECT / "flink-conf" / "prometheus"
DASHBOARD = PROJECT / "flink-conf" / "grafana" / "recommender.json"
_SERVICE_PREFIX = "recommender_api_"


@dataclass(frozen=True)
class Sample:
    """One line that a process exports."""

    name: str
    labels: dict[str, str] = field(hash=False)


@dataclass(frozen=True)
class Selector:
    """A metric as a query asks for it: its name and (label, operator, value)."""

    name: str
    matchers: tuple[tuple[str, str, str], ...] = ()

    def matches(self, sample: Sample) -> bool:
        """Whether a sample is one that the query asks for."""
        return self.name == sample.name and all(
            _MATCH[operator](sample.labels.get(label, ""), value)
            for label, operator, value in self.matchers
        )


_MATCH: dict[str, Callable[[str, str], bool]] = {
    "=": lambda found, value: found == value,
    "!=": lambda found, value: found != value,
    "=~": lambda found, value: re.fullmatch(value, found) is not None,
    "!~": lambda found, value: re.fullmatch(value, found) is None,
}


def selectors(query: str) -> frozenset[Selector]:
    """What a PromQL query asks for.

    Raises:
        ValueError: It is no PromQL.
    """
    found: set[Selector] = set()

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            matchers = tuple(
                (one.name, _operator(one), one.value)
                for one in node.matchers.matchers
                if one.name != "__name__"
            )
            found.add(Selector(node.name or "", matchers))
        return True

    # The variables that Grafana puts in before it asks.
    expression = promql_parser.parse(query.replace("$__rate_interval", "1m"))
    promql_parser.walk(expression, visit)
    return frozenset(found)


def _operator(matcher: Any) -> str:
    return {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}[
        str(matcher.op).split(".")[-1]
    ]


def rules() -> list[dict[str, Any]]:
    """All rules of alerts.yml."""
    text = (PROMETHEUS / "alerts.yml").read_text(encoding="utf-8")
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """All panels of the dashboard."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return found


def queries() -> dict[str, str]:
    """Every query of the rules and of the dashboard, by where it stands."""
    found = {f"rule {rule.get('alert') or rule['record']}": rule["expr"] for rule in rules()}
    for panel in panels():
        for target in panel.get("targets", ()):
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    for annotation in dashboard["annotations"]["list"]:
        if "expr" in annotation:
            found[f"annotation {annotation['name']}"] = annotation["expr"]
    return found


def wanted_of_flink() -> frozenset[Selector]:
    """What the Flink processes must export: all asked for but Prometheus' own and the service's."""
    own = {"up", "ALERTS", *(rule["record"] for rule in rules() if "record" in rule)}
    return frozenset(
        one for one in _asked() if one.name not in own and not one.name.startswith(_SERVICE_PREFIX)
    )


def wanted_of_service() -> frozenset[Selector]:
    """What the service must export."""
    return frozenset(one for one in _asked() if one.name.startswith(_SERVICE_PREFIX))


def _asked() -> set[Selector]:
    return {one for query in queries().values() for one in selectors(query)}


def dropped(name: str) -> bool:
    """Whether the scrape configuration drops a metric of the Kafka clients."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    job = next(one for one in config["scrape_configs"] if one["job_name"] == "flink")
    keep, drop, _ = job["metric_relabel_configs"]
    kept = keep["replacement"] if re.fullmatch(keep["regex"], name) else ""
    return re.fullmatch(drop["regex"], f"{name};{kept}") is not None


def scrape(stack: Stack) -> Iterator[Sample]:
    """Every line that the Flink processes of a stack export."""
    first, last = map(int, stack.config.prometheus_ports.split("-"))
    for process in (stack.flink.job_manager, *stack.flink.task_managers):
        connections = psutil.Process(process.pid).net_connections("tcp")
        ports = {
            one.laddr.port
            for one in connections
            if one.status == psutil.CONN_LISTEN and first <= one.laddr.port <= last
        }
        (port,) = ports
        answer = requests.get(f"http://{LOOPBACK}:{port}/metrics", timeout=30)
        answer.raise_for_status()
        families: Iterable[Any] = text_string_to_metric_families(answer.text)
        for family in families:
            for sample in family.samples:
                yield Sample(sample.name, dict(sample.labels))


def kept_names(samples: Iterable[Sample]) -> list[str]:
    """The names that Prometheus keeps, in order."""
    return sorted(name for name in {one.name for one in samples} if not dropped(name))


def service_names() -> set[str]:
    """Names under which the service can export its metrics, whether or not it has yet."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    return {
        found.name + suffix
        for found in REGISTRY.collect()
        if found.name.startswith(_SERVICE_PREFIX)
        for suffix in suffixes[found.type]
    }


def golden_names() -> list[str]:
    """The names of the last scrape that was committed."""
    return GOLDEN.read_text(encoding="utf-8").splitlines()


def main() -> None:
    """Write the names anew."""
    from tests.integration.conftest import small_config
    from tests.integration.test_operations import busy_job

    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(small_config(Path(folder))) as stack,
        busy_job(stack),
    ):
        names = kept_names(scrape(stack))
    GOLDEN.write_text("\n".join(names) + "\n", encoding="utf-8")
    print(f"{len(names)} names")


if __name__ == "__main__":
    main()
