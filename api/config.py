"""The service's settings, from variables with the prefix RECOMMENDER_."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from connectors.cassandra_schema import DEFAULT_EVENT_TTL_DAYS, MAX_EVENT_TTL_DAYS
from connectors.cassandra_session import CassandraOptions

ENV_PREFIX = "RECOMMENDER_"


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """What `create_app` needs to know; every field has a default that works on one machine.

    Attributes:
        cassandra: Where the lists and events are; RECOMMENDER_CASSANDRA_*.
        event_history_days: How far back, from now, events are shown when a request has no
            ``from``; the event table's time to live. RECOMMENDER_EVENT_HISTORY_DAYS.
        retry_after_seconds: What a 503 tells its client to wait. RECOMMENDER_RETRY_AFTER_SECONDS.
    """

    cassandra: CassandraOptions = field(default_factory=CassandraOptions)
    event_history_days: int = DEFAULT_EVENT_TTL_DAYS
    retry_after_seconds: int = 2

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            ValueError: A field is out of its bounds; the message names it.
        """
        for name, value, most in (
            ("event_history_days", self.event_history_days, MAX_EVENT_TTL_DAYS),
            ("retry_after_seconds", self.retry_after_seconds, 3600),
        ):
            if not 1 <= value <= most:
                msg = f"{name} {value}: must be 1 to {most}"
                raise ValueError(msg)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> ApiConfig:
        """Read the settings; what is not set keeps its default.

        Raises:
            ValueError: A value is not valid; the message names it.
        """
        source = os.environ if environ is None else environ
        defaults = cls()
        return cls(
            cassandra=CassandraOptions.from_env(ENV_PREFIX, source),
            event_history_days=_whole_number(
                source, "EVENT_HISTORY_DAYS", defaults.event_history_days
            ),
            retry_after_seconds=_whole_number(
                source, "RETRY_AFTER_SECONDS", defaults.retry_after_seconds
            ),
        )


def _whole_number(source: Mapping[str, str], name: str, default: int) -> int:
    raw = source.get(ENV_PREFIX + name)
    if raw is None:
        return default
    try:
        return int(raw)
    except ValueError as error:
        msg = f"{ENV_PREFIX}{name}: must be a whole number"
        raise ValueError(msg) from error
