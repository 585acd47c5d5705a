"""The service's settings, from variables with the prefix RECOMMENDER_."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

from api.access import READ, READ_SCOPES, SCOPES, ApiKey, Scope, load_keys
from api.rate_limit import Rate
from api.shared import RATE_FILE_VARIABLE
from api.tokens import load_secrets
from connectors.cassandra_schema import DEFAULT_EVENT_TTL_DAYS, MAX_EVENT_TTL_DAYS
from connectors.cassandra_session import CassandraOptions
from connectors.kafka_client import KafkaClientOptions
from udfs.schemas import MAX_ID, PLACEHOLDER_IDS, parse_placeholders

ENV_PREFIX = "RECOMMENDER_"
_BURST_SECONDS = 2.0
_T = TypeVar("_T")

# Field, its variable without the prefix, its kind, the least and the most that it may be.
NUMBERS: Final[tuple[tuple[str, str, Callable[[str], float], float, float], ...]] = (
    ("event_history_days", "EVENT_HISTORY_DAYS", int, 1, MAX_EVENT_TTL_DAYS),
    ("retry_after_seconds", "RETRY_AFTER_SECONDS", int, 1, 3600),
    ("catalogue_max_products", "API_CATALOGUE_MAX_PRODUCTS", int, 0, 100_000_000),
    ("event_buffer", "API_EVENT_BUFFER", int, 1, 10_000_000),
    ("request_seconds", "API_REQUEST_SECONDS", float, 0.05, 60),
    ("header_seconds", "API_HEADER_SECONDS", float, 1, 600),
    ("client_seconds", "API_CLIENT_SECONDS", float, 1, 3600),
    ("write_timeout_seconds", "API_WRITE_TIMEOUT_SECONDS", int, 1, 60),
    ("waiting_writes", "API_WAITING_WRITES", int, 1, 1000),
    ("flush_seconds", "API_FLUSH_SECONDS", int, 1, 600),
)
_WORDS: Final[dict[Callable[[str], float], str]] = {int: "a whole number", float: "a number"}


def _default_rates() -> dict[Scope, Rate]:
    return {
        "lists": _rate_of(5_000),
        "personal": _rate_of(5_000),
        "metrics": _rate_of(20),
        "ingest": _rate_of(20_000),
        "catalogue": _rate_of(2_000),
        "erase": _rate_of(10),
        "token": _rate_of(500),
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
        rates: Units a second of each key, by scope; a unit is an event (ingest), a product
            (catalogue), else a request, and each statement beyond its first that it sends to
            Cassandra. RECOMMENDER_API_RATE_LISTS and so on, where they are not set
            RECOMMENDER_API_RATE_READ for lists, personal and metrics; 0: no limit. Twice as many
            at once.
        rate_file: A file that the workers share for it; None: this process alone.
        catalogue_max_products: Products that a worker keeps in memory, for titles, prices and
            stock; what is beyond is read from Cassandra.
            RECOMMENDER_API_CATALOGUE_MAX_PRODUCTS; 0: the topic of products is not read.
        event_buffer: Events that a worker holds until Kafka has them.
            RECOMMENDER_API_EVENT_BUFFER.
        request_seconds: What all reads of a request together may take; None: as long as one,
            RECOMMENDER_CASSANDRA_READ_TIMEOUT_SECONDS. RECOMMENDER_API_REQUEST_SECONDS.
        header_seconds: What a client may take to send the head of a request.
            RECOMMENDER_API_HEADER_SECONDS.
        client_seconds: What it may take to send the body and to take the answer, what the
            service takes included. RECOMMENDER_API_CLIENT_SECONDS.
        write_timeout_seconds: How long a write waits for Kafka's acknowledgement.
            RECOMMENDER_API_WRITE_TIMEOUT_SECONDS.
        waiting_writes: Writes of a worker that may wait for an acknowledgement at once; fewer
            than its threads, so that reads always have some. RECOMMENDER_API_WAITING_WRITES.
        flush_seconds: How long a worker that ends waits until Kafka has its events.
            RECOMMENDER_API_FLUSH_SECONDS.
        shop_window: Whether ``/`` is a page to try it all; RECOMMENDER_SHOP_WINDOW (on or off).
            Where it is not set: on without API keys, where this machine alone is served, and off
            with them.
        shop_users: Users that the page offers, separated by commas; RECOMMENDER_SHOP_USERS.
        origins: Pages of these origins may read a user's list and send events, with a token of
            the user; RECOMMENDER_API_ORIGINS, exact origins separated by commas.
        token_secrets: What signs these tokens, of the file RECOMMENDER_API_TOKEN_SECRET_FILE, one
            a line: the last signs, all are accepted. None: no tokens are made.
        impossible_times: What becomes of an event whose ``ts`` the job would refuse
            (RECOMMENDER_API_IMPOSSIBLE_TIMES): "refuse" it, or give it the time of "now".
        placeholder_ids: Ids that stand for unknown users, whose events are refused; of the file
            RECOMMENDER_PLACEHOLDER_IDS_FILE, one a line, or "none". Give the job the same
            (``--placeholder-ids``).
        flink_url: The JobManager's REST interface, for the page's live figures;
            RECOMMENDER_FLINK_URL. None: they are shown as not connected.
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
    request_seconds: float | None = None
    header_seconds: float = 10.0
    client_seconds: float = 60.0
    write_timeout_seconds: int = 5
    waiting_writes: int = 2
    flush_seconds: int = 10
    shop_window: bool | None = None
    shop_users: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    token_secrets: tuple[str, ...] = field(default=(), repr=False)
    impossible_times: Literal["refuse", "now"] = "refuse"
    placeholder_ids: frozenset[str] = PLACEHOLDER_IDS
    flink_url: str | None = None

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            ValueError: A field is out of its bounds; the message names it.
        """
        for name, _, _, least, most in NUMBERS:
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                msg = f"{name} {value}: must be {least} to {most}"
                raise ValueError(msg)
        # The reads of a request, or its wait for Kafka, must fit.
        if self.client_seconds < self.request_limit + self.write_timeout_seconds:
            msg = (
                f"client_seconds {self.client_seconds}: must be at least"
                " request_seconds and write_timeout_seconds together"
            )
            raise ValueError(msg)
        if self.flink_url is not None and urlsplit(self.flink_url).scheme not in ("http", "https"):
            msg = "flink_url: must be an address such as http://jobmanager:8081"
            raise ValueError(msg)

    @property
    def request_limit(self) -> float:
        """What all reads of a request together may take, seconds."""
        if self.request_seconds is None:
            return self.cassandra.read_timeout_seconds
        return self.request_seconds

    @property
    def serves_shop_window(self) -> bool:
        """Whether there is a shop window."""
        return not self.keys if self.shop_window is None else self.shop_window

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
            name: read(variable, kind, getattr(defaults, name), _WORDS[kind])
            for name, variable, kind, _, _ in NUMBERS
        }
        rates = dict(defaults.rates)
        # None: not set, which keeps the default.
        for_reads = read(f"API_RATE_{READ.upper()}", _rate, None, "a number from 0")
        for scope in SCOPES:
            default = rates.pop(scope).per_second
            if for_reads is not None and scope in READ_SCOPES:
                default = for_reads
            per_second = read(f"API_RATE_{scope.upper()}", _rate, default, "a number from 0")
            if per_second:
                rates[scope] = _rate_of(per_second)
        keys_file = source.get(f"{ENV_PREFIX}API_KEYS_FILE")
        secret_file = source.get(f"{ENV_PREFIX}API_TOKEN_SECRET_FILE")
        return cls(
            cassandra=CassandraOptions.from_env(ENV_PREFIX, source),
            kafka=KafkaClientOptions.from_env(ENV_PREFIX, source),
            keys=() if keys_file is None else load_keys(Path(keys_file)),
            rates=rates,
            rate_file=source.get(RATE_FILE_VARIABLE),
            shop_window=read("SHOP_WINDOW", _switch, None, "on or off"),
            shop_users=read("SHOP_USERS", _ids, (), "user ids, separated by commas"),
            origins=read("API_ORIGINS", _origins, (), "origins such as https://shop.example"),
            token_secrets=() if secret_file is None else load_secrets(Path(secret_file)),
            impossible_times=read("API_IMPOSSIBLE_TIMES", _impossible, "refuse", "refuse or now"),
            placeholder_ids=read(
                "PLACEHOLDER_IDS_FILE", _placeholders, PLACEHOLDER_IDS, "a file of ids, or none"
            ),
            flink_url=source.get(f"{ENV_PREFIX}FLINK_URL"),
            **numbers,
        )


def _switch(raw: str) -> bool | None:
    if raw not in ("on", "off"):
        msg = f"{raw!r} is neither"
        raise ValueError(msg)
    return raw == "on"


def _origins(raw: str) -> tuple[str, ...]:
    """Read origins as browsers write them: scheme://host[:port], in small letters."""
    origins = tuple(one.strip() for one in raw.split(",") if one.strip())
    for one in origins:
        parts = urlsplit(one)
        exact = f"{parts.scheme}://{parts.netloc}"
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or one != exact.lower()
            or "*" in one
            or "@" in one
            # Browsers leave the usual port out.
            or parts.port == {"http": 80, "https": 443}[parts.scheme]
        ):
            msg = f"{one!r} is no origin such as https://shop.example"
            raise ValueError(msg)
    return origins


def _placeholders(raw: str) -> frozenset[str]:
    if raw == "none":
        return frozenset()
    try:
        return parse_placeholders(Path(raw).read_text("utf-8"))
    except OSError as error:
        raise ValueError(str(error)) from error


def _impossible(raw: str) -> Literal["refuse", "now"]:
    if raw not in ("refuse", "now"):
        msg = f"{raw!r} is neither"
        raise ValueError(msg)
    return "now" if raw == "now" else "refuse"


def _ids(raw: str) -> tuple[str, ...]:
    found = tuple(one.strip() for one in raw.split(",") if one.strip())
    if any(len(one) > MAX_ID for one in found):
        msg = f"an id has at most {MAX_ID} characters"
        raise ValueError(msg)
    return found


def _rate(raw: str) -> float:
    value = float(raw)
    if not 0 <= value < float("inf"):
        msg = f"{raw!r} is no rate"
        raise ValueError(msg)
    return value
