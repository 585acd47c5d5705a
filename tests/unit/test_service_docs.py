"""docs/service.md names every setting, scope and metric of the service, as the code has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields

import pytest

from api import breaker, shelf
from api.access import SCOPES
from api.config import ENV_PREFIX, NUMBERS, ApiConfig
from api.shared import OUTCOMES, RATE_FILE_VARIABLE
from connectors.cassandra_session import CassandraOptions
from local.processes import PROJECT
from tests import exported_metrics

PAGE = (PROJECT / "docs" / "service.md").read_text(encoding="utf-8")
GUNICORN = (PROJECT / "api" / "gunicorn.conf.py").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables under a heading."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


DEFAULTS = {
    variable: cells[1]
    for cells in rows("Settings")
    for variable in re.findall(r"`([A-Z_]+)`", cells[0])
}


class Asked(dict[str, str]):
    """An empty environment that keeps what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def get(self, name: str, default: object = None) -> object:  # type: ignore[override]
        self.names.add(name)
        return default


def asked() -> set[str]:
    environ = Asked()
    as_given: Mapping[str, str] = environ
    ApiConfig.from_env(as_given)
    of_gunicorn = re.findall(rf'environ\.get\("({ENV_PREFIX}\w+)"', GUNICORN)
    # The parent tells it to its workers; nobody sets it.
    return (environ.names | set(of_gunicorn)) - {RATE_FILE_VARIABLE}


def test_page_has_every_setting_and_no_other() -> None:
    assert len(asked()) > 30
    assert set(DEFAULTS) == asked()
    assert f"{ENV_PREFIX}KAFKA_PROPERTY_…" in PAGE
    # What other sections name is a setting too.
    named = set(re.findall(rf"`({ENV_PREFIX}[A-Z_]+)`", PAGE))
    assert named == asked()


@pytest.mark.parametrize(("name", "variable"), [number[:2] for number in NUMBERS])
def test_defaults_of_numbers_are_those_of_the_code(name: str, variable: str) -> None:
    default = getattr(ApiConfig(), name)
    if default is not None:
        assert float(DEFAULTS[ENV_PREFIX + variable]) == default


def test_defaults_of_rates_and_cassandra_are_those_of_the_code() -> None:
    for scope, rate in ApiConfig().rates.items():
        assert float(DEFAULTS[f"{ENV_PREFIX}API_RATE_{scope.upper()}"]) == rate.per_second
    for option in fields(CassandraOptions):
        default = getattr(CassandraOptions(), option.name)
        text = "none" if default is None else str(default)
        if option.name in ("hosts", "ssl_check_hostname"):
            text = default[0] if option.name == "hosts" else text.lower()
        assert DEFAULTS[f"{ENV_PREFIX}CASSANDRA_{option.name.upper()}"] == text


def test_page_has_every_scope() -> None:
    assert [cells[0].strip("`") for cells in rows("Keys and scopes")] == list(SCOPES)


def test_page_has_every_metric_of_the_service() -> None:
    named = {re.sub(r"\{.*", "", cells[0].strip("`")) for cells in rows("Metrics")}
    exported = {
        re.sub("_(bucket|sum|count)$", "", name) for name in exported_metrics.service_names()
    }
    assert named == exported
    for outcome in OUTCOMES:
        assert f"`{outcome}` (" in PAGE or f"`{outcome}`," in PAGE


def test_page_has_the_breakers_numbers() -> None:
    assert breaker.TOO_MANY == 0.5
    assert f"half of the last {breaker.WINDOW} calls ({breaker.LEAST_CALLS} at least)" in PAGE
    assert breaker.PAUSE_SECONDS == 1
    assert f"the first {shelf._MAX_SCANNED:,} of them" in PAGE
