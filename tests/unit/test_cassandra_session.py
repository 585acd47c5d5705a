"""Connection options: bounds, environment, and what is never shown."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from connectors.cassandra_session import CassandraOptions, DataCenterError, check_data_center

P = "RECOMMENDER_CASSANDRA_"


def test_password_is_not_shown() -> None:
    options = CassandraOptions(username="u", password="hunter2")
    assert "hunter2" not in repr(options)
    assert "hunter2" not in str(options)


def test_every_option_comes_from_its_variable() -> None:
    options = CassandraOptions.from_env(
        environ={
            P + "HOSTS": "a, b",
            P + "PORT": "9999",
            P + "KEYSPACE": "shop",
            P + "LOCAL_DC": "dc1",
            P + "USERNAME": "u",
            P + "PASSWORD": " p ",
            P + "SSL_CA_FILE": "ca.pem",
            P + "SSL_CHECK_HOSTNAME": "false",
            P + "READ_CONSISTENCY": "local_quorum",
            P + "WRITE_CONSISTENCY": "ALL",
            P + "READ_TIMEOUT_SECONDS": "0.5",
            P + "WRITE_TIMEOUT_SECONDS": "3",
            P + "CONNECT_TIMEOUT_SECONDS": "4",
            P + "PROTOCOL_VERSION": "4",
        }
    )
    expected = CassandraOptions(
        ("a", "b"), 9999, "shop", "dc1", "u", " p ", "ca.pem", False, "LOCAL_QUORUM", "ALL",
        0.5, 3.0, 4.0, 4,
    )  # fmt: skip
    assert options == expected


def test_empty_environment_gives_the_defaults() -> None:
    assert CassandraOptions.from_env(environ={}) == CassandraOptions()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "x"),
        ("PORT", ""),
        ("SSL_CHECK_HOSTNAME", "maybe"),
        ("READ_TIMEOUT_SECONDS", "soon"),
        ("PROTOCOL_VERSION", "v5"),
    ],
)
def test_wrong_variable_is_named(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=P + name):
        CassandraOptions.from_env(environ={P + name: value})


def test_mistyped_variable_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        CassandraOptions.from_env(environ={P + "HOST": "a", "RECOMMENDER_OTHER": "b"})
    assert P + "HOST is no" in caplog.text
    assert "OTHER" not in caplog.text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hosts": ()}, "hosts"),
        ({"hosts": ("a", "")}, "hosts"),
        ({"port": 0}, "port"),
        ({"keyspace": "No"}, "keyspace"),
        ({"username": "u"}, "password"),
        ({"password": "p"}, "username"),
        ({"read_consistency": "SOME"}, "read_consistency"),
        ({"write_consistency": "ANY"}, "write_consistency"),
        ({"read_timeout_seconds": 0.0}, "read_timeout_seconds"),
        ({"connect_timeout_seconds": float("nan")}, "connect_timeout_seconds"),
        ({"protocol_version": 3}, "protocol_version"),
    ],
)
def test_option_out_of_bounds_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        CassandraOptions(**change)


@pytest.mark.parametrize(
    ("local_dc", "found"),
    [(None, frozenset({"a", "b"})), ("c", frozenset({"a", "b"}))],
)
def test_unclear_data_center_lists_those_there_are(
    local_dc: str | None, found: frozenset[str]
) -> None:
    with pytest.raises(DataCenterError, match="a, b"):
        check_data_center(local_dc, found)


@pytest.mark.parametrize(
    ("local_dc", "found"),
    [
        (None, frozenset({"a"})),
        ("a", frozenset({"a", "b"})),
        ("a", frozenset()),
        (None, frozenset()),
    ],
)
def test_clear_data_center_passes(local_dc: str | None, found: frozenset[str]) -> None:
    check_data_center(local_dc, found)
