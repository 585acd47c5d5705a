"""The service's settings, from variables with the prefix RECOMMENDER_."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from api.access import SCOPES, ApiKey, Scope, load_keys
from api.rate_limit import Rate
from api.shared import RATE_FILE_VARIABLE
from connectors.cassandra_schema import DEFAULT_EVENT_TTL_DAYS, MAX_EVENT_TTL_DAYS
from connectors.cassandra_session import CassandraOptions
from connectors.kafka_client import KafkaClientOptions

ENV_PREFIX = "RECOMMENDER_"
_BURST_SECONDS = 2.0
_T = TypeVar("_T")


def _default_rates() -> dict[Scope, Rate]:
    return {
        "read": _rate_of(5_000),
        "ingest": _rate_of(20_000),
        "catalogue": _rate_of(2_000),
        "erase": _rate_of(10),
    }


def _rate_of(per_second: float) -> Rate:
    return Rate(per_second, max(1.0, _BURST_SECONDS * per_second))


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """What `create_app` needs to know; every field has a default that works on one machine.

    Attributes:
        cassandra: Where the lists and events are; RECOMMENDER_CASSANDRA_*.
        event_history_days: How far back, from now, events are shown when a request has no
            ``from``; the event table's time to live. RECOMMENDER_EVENT_HISTORY_DAYS.
        retry_after_seconds: What a 503 tells its client to wait. RECOMMENDER_RETRY_AFTER_SECONDS.
        kafka: Where events and catalogue changes go; RECOMMENDER_KAFKA_*.
        keys: API keys, of the file RECOMMENDER_API_KEYS_FILE; none: this machine alone is served.
        rates: Units a second of each key: requests (read, erase), events (ingest), products
            (catalogue). RECOMMENDER_API_RATE_READ and so on; 0: no limit. Twice as many at once.
        rate_file: A file that the workers share for it; None: this process alone.
        catalogue_max_products: Products that a worker keeps in memory, for titles, stock and
            similar ones; what is beyond is read from Cassandra, and has no similar ones.
            RECOMMENDER_API_CATALOGUE_MAX_PRODUCTS; 0: the catalogue topic is not read.
        event_buffer: Events that a worker holds until Kafka has them.
            RECOMMENDER_API_EVENT_BUFFER.
        write_timeout_seconds: How long a write waits for Kafka's acknowledgement.
            RECOMMENDER_API_WRITE_TIMEOUT_SECONDS.
        waiting_writes: Writes of a worker that may wait for an acknowledgement at once; fewer
            than its threads, so that reads always have some. RECOMMENDER_API_WAITING_WRITES.
        flush_seconds: How long a worker that ends waits until Kafka has its events.
            RECOMMENDER_API_FLUSH_SECONDS.
    """

    cassandra: CassandraOptions = field(default_factory=CassandraOptions)
    event_history_days: int = DEFAULT_EVENT_TTL_DAYS
    retry_after_seconds: int = 2
    kafka: KafkaClientOptions = field(default_factory=KafkaClientOptions)
    keys: tuple[ApiKey, ...] = ()
    rates: Mapping[Scope, Rate] = field(default_factory=_default_rates)
    rate_file: str | None = None
    catalogue_max_products: int = 500_000
    event_buffer: int = 100_000
    write_timeout_seconds: int = 5
    waiting_writes: int = 2
    flush_seconds: int = 10

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            ValueError: A field is out of its bounds; the message names it.
        """
        for name, least, most in (
            ("event_history_days", 1, MAX_EVENT_TTL_DAYS),
            ("retry_after_seconds", 1, 3600),
            ("catalogue_max_products", 0, 100_000_000),
            ("event_buffer", 1, 10_000_000),
            ("write_timeout_seconds", 1, 60),
            ("waiting_writes", 1, 1000),
            ("flush_seconds", 1, 600),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                msg = f"{name} {value}: must be {least} to {most}"
                raise ValueError(msg)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> ApiConfig:
        """Read the settings; what is not set keeps its default.

        Raises:
            ValueError: A value is not valid; the message names it.
        """
        source = os.environ if environ is None else environ

        def read(name: str, parse: Callable[[str], _T], default: _T, meaning: str) -> _T:
            raw = source.get(ENV_PREFIX + name)
            if raw is None:
                return default
            try:
                return parse(raw)
            except ValueError as error:
                msg = f"{ENV_PREFIX}{name}: must be {meaning}"
                raise ValueError(msg) from error

        defaults = cls()
        numbers: dict[str, Any] = {
            field_name: read(variable, int, getattr(defaults, field_name), "a whole number")
            for field_name, variable in (
                ("event_history_days", "EVENT_HISTORY_DAYS"),
                ("retry_after_seconds", "RETRY_AFTER_SECONDS"),
                ("catalogue_max_products", "API_CATALOGUE_MAX_PRODUCTS"),
                ("event_buffer", "API_EVENT_BUFFER"),
                ("write_timeout_seconds", "API_WRITE_TIMEOUT_SECONDS"),
                ("waiting_writes", "API_WAITING_WRITES"),
                ("flush_seconds", "API_FLUSH_SECONDS"),
            )
        }
        rates = dict(defaults.rates)
        for scope in SCOPES:
            variable = f"API_RATE_{scope.upper()}"
            per_second = read(variable, _rate, rates[scope].per_second, "a number from 0")
            rates.pop(scope)
            if per_second:
                rates[scope] = _rate_of(per_second)
        keys_file = source.get(f"{ENV_PREFIX}API_KEYS_FILE")
        return cls(
            cassandra=CassandraOptions.from_env(ENV_PREFIX, source),
            kafka=KafkaClientOptions.from_env(ENV_PREFIX, source),
            keys=() if keys_file is None else load_keys(Path(keys_file)),
            rates=rates,
            rate_file=source.get(RATE_FILE_VARIABLE),
            **numbers,
        )


def _rate(raw: str) -> float:
    value = float(raw)
    if not 0 <= value < float("inf"):
        msg = f"{raw!r} is no rate"
        raise ValueError(msg)
    return value
