"""Looks at the job's topics before it starts: what they must be, what they are, and the remedy.

Kafka is asked by the Java client of Flink's connector, with the properties that the job itself has,
so no further client needs to be configured where the job is submitted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from py4j.protocol import Py4JJavaError
from pyflink.java_gateway import get_gateway

from connectors.dead_letters import MAX_RECORD_BYTES
from connectors.kafka import SHADED, KafkaOptions, with_shaded_classes
from udfs.schemas import MS_A_DAY

# Kafka does not tell this client, or is too old to.
_NOT_TOLD: Final = ("AuthorizationException", "UnsupportedVersionException")
# How long compaction leaves each record of `catalogue`: so long the job may be away.
UNREAD_MS: Final = 7 * MS_A_DAY
_NO_TOPIC: Final = "UnknownTopicOrPartitionException"


class TopicError(RuntimeError):
    """A topic is not as the job needs it, or Kafka cannot be asked; the message has the remedy."""


class Topics(NamedTuple):
    """The names of the job's topics."""

    events: str
    catalogue: str
    dead_letters: str
    products: str
    related: str

    @property
    def compacted(self) -> tuple[str, ...]:
        """Those of products, of which the newest record counts."""
        return self.catalogue, self.products, self.related


@dataclass(frozen=True)
class Found:
    """What Kafka says of the topics."""

    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Settings of each topic that could be read."""
    missing: frozenset[str] = frozenset()
    """Topics that do not exist."""
    not_told: Mapping[str, str] = field(default_factory=dict)
    """Why nothing is known of a topic."""


def problems(topics: Topics, found: Found, bootstrap: str) -> list[str]:
    """Return what is wrong with the topics, each with the command that mends it."""
    result = []
    for topic in topics:
        settings = found.settings.get(topic)
        if topic in found.missing:
            config = "".join(
                f" --config {name}={value}" for name, value in _created_with(topics, topic).items()
            )
            result.append(
                f"topic {topic} does not exist; create it: kafka-topics.sh --bootstrap-server"
                f" {bootstrap} --create --topic {topic} --partitions 8{config}"
            )
        elif settings is not None:
            result += [
                f"topic {topic}: {name} is {settings.get(name)}, but {why}; change it:"
                f" kafka-configs.sh --bootstrap-server {bootstrap} --alter --entity-type topics"
                f" --entity-name {topic} --add-config {name}={remedy}"
                for name, why, remedy in _wrong(topics, topic, settings)
            ]
    return result


def _created_with(topics: Topics, topic: str) -> Mapping[str, object]:
    if topic in topics.compacted:
        lag = {"min.compaction.lag.ms": UNREAD_MS} if topic == topics.catalogue else {}
        return {"cleanup.policy": "compact", **lag}
    return {"retention.ms": 30 * MS_A_DAY} if topic == topics.dead_letters else {}


def _wrong(
    topics: Topics, topic: str, settings: Mapping[str, str]
) -> Iterator[tuple[str, str, object]]:
    """Name each setting that is wrong, why, and a value that is right; no one that is not told."""
    policy = settings.get("cleanup.policy")
    policies = None if policy is None else {part.strip() for part in policy.split(",")}
    if topic in topics.compacted:
        if policies not in (None, {"compact"}):
            why = "the newest record of each product must stay: compact"
            yield "cleanup.policy", why, "compact"
        tombstones_ms = _number(settings, "delete.retention.ms")
        if tombstones_ms is not None and 0 <= tombstones_ms < MS_A_DAY:
            why = f"who was away for a day must hear of deletions: at least {MS_A_DAY}"
            yield "delete.retention.ms", why, MS_A_DAY
        lag_ms = _number(settings, "min.compaction.lag.ms")
        if topic == topics.catalogue and lag_ms is not None and lag_ms < MS_A_DAY:
            why = f"what a partial update leaves out must wait for the job: at least {MS_A_DAY}"
            yield "min.compaction.lag.ms", why, UNREAD_MS
        return
    if policies not in (None, {"delete"}):
        # Their keys are user ids, of which there are many records.
        why = "compaction would leave one record a user: delete"
        yield "cleanup.policy", why, "delete"
    if topic == topics.dead_letters:
        max_bytes = _number(settings, "max.message.bytes")
        if max_bytes is not None and max_bytes < MAX_RECORD_BYTES:
            why = f"a dead letter can be larger: at least {MAX_RECORD_BYTES}"
            yield "max.message.bytes", why, MAX_RECORD_BYTES
        retention_ms = _number(settings, "retention.ms")
        if retention_ms is not None and retention_ms < 0:
            why = "rejected records hold personal data, which must not stay for ever"
            yield "retention.ms", why, 30 * MS_A_DAY


def _number(settings: Mapping[str, str], name: str) -> int | None:
    """Read a number; None where it is not told."""
    text = settings.get(name)
    return None if text is None else int(text)


# --- asking Kafka ---------------------------------------------------------------------------------


def ask(topics: Topics, options: KafkaOptions) -> Found:
    """Ask Kafka for the topics' settings.

    Raises:
        TopicError: It does not answer, or does not let the job in.
    """
    settings: dict[str, dict[str, str]] = {}
    missing: set[str] = set()
    not_told: dict[str, str] = {}
    with _admin(options) as admin:
        there: list[str] = []
        described = admin.describeTopics(_java_list(topics)).topicNameValues()
        for topic in topics:
            try:
                described.get(topic).get()
                there.append(topic)
            except Py4JJavaError as error:
                if _kind(error) == _NO_TOPIC:
                    missing.add(topic)
                else:
                    not_told[topic] = _why_not_told(error, options)
        for topic in there:
            try:
                settings[topic] = _settings(admin, topic)
            except Py4JJavaError as error:
                not_told[topic] = _why_not_told(error, options)
    return Found(settings, frozenset(missing), not_told)


def _why_not_told(error: Py4JJavaError, options: KafkaOptions) -> str:
    """Say why Kafka does not tell; anything else is an error of its own."""
    kind = _kind(error)
    if not kind.endswith(_NOT_TOLD):
        raise TopicError(_not_asked(error, options)) from error
    return f"{kind}: {_cause(error).getMessage()}"


def _not_asked(error: Py4JJavaError, options: KafkaOptions) -> str:
    return (
        f"Kafka at {options.bootstrap} cannot be asked for the topics: {_kind(error)}:"
        f" {_cause(error).getMessage()}. Check --kafka-bootstrap and --kafka-property, or start the"
        " job with --topic-check warn"
    )


def _cause(error: Py4JJavaError) -> Any:
    """The exception of Kafka's in what a future throws."""
    exception = error.java_exception
    cause = exception.getCause()
    while cause is not None:
        exception, cause = cause, cause.getCause()
    return exception


def _kind(error: Py4JJavaError) -> str:
    return str(_cause(error).getClass().getSimpleName())


@contextlib.contextmanager
def _admin(options: KafkaOptions) -> Iterator[Any]:
    jvm = get_gateway().jvm
    properties = jvm.java.util.Properties()
    for name, value in {**options.properties, "bootstrap.servers": options.bootstrap}.items():
        properties.setProperty(name, with_shaded_classes(value))
    try:
        admin = _java("clients.admin.Admin").create(properties)
    except Py4JJavaError as error:
        raise TopicError(_not_asked(error, options)) from error
    except TypeError as error:
        # A class that is not there looks like a package.
        msg = (
            "the topics cannot be checked: the jar of connectors/pom.xml is not in Flink's lib/ of"
            " this client; put it there, or start the job with --topic-check off"
        )
        raise TopicError(msg) from error
    try:
        yield admin
    finally:
        admin.close(jvm.java.time.Duration.ZERO)


def _java(name: str) -> Any:
    """A class of Kafka's in Flink's connector."""
    found: Any = get_gateway().jvm
    for part in (SHADED + name).split("."):
        found = getattr(found, part)
    return found


def _java_list(values: Any) -> Any:
    made = get_gateway().jvm.java.util.ArrayList()
    for value in values:
        made.add(value)
    return made


def _settings(admin: Any, topic: str) -> dict[str, str]:
    kind = _java("common.config.ConfigResource$Type").TOPIC
    resource = _java("common.config.ConfigResource")(kind, topic)
    config = admin.describeConfigs(_java_list([resource])).values().get(resource).get()
    # Not every collection of Java's can be iterated from here; a list can.
    return _told(get_gateway().jvm.java.util.ArrayList(config.entries()))


def _told(entries: Iterable[Any]) -> dict[str, str]:
    """Return the settings that have a value: not every broker of the protocol has all."""
    return {str(entry.name()): str(entry.value()) for entry in entries if entry.value()}
