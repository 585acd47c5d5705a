"""What is wrong with the job's topics, by their settings alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from py4j.protocol import Py4JJavaError

from connectors.kafka import KafkaOptions
from connectors.topic_check import Found, TopicError, Topics, _told, _why_not_told, problems
from local.cli import TOPICS

NAMES = Topics("e", "c", "d", "p", "r")
COMPACTED = {"cleanup.policy": "compact", "delete.retention.ms": "86400000"}
GOOD: dict[str, dict[str, str]] = {
    "e": {"cleanup.policy": "delete"},
    **dict.fromkeys("pr", COMPACTED),
    "c": {**COMPACTED, "min.compaction.lag.ms": "86400000"},
    "d": {
        "cleanup.policy": "delete",
        "max.message.bytes": "1048588",
        "retention.ms": "604800000",
    },
}


def found(**changed: dict[str, str]) -> list[str]:
    settings = {name: {**GOOD[name], **changed.get(name, {})} for name in NAMES}
    return problems(NAMES, Found(settings), "kafka:9092")


def test_topics_with_a_brokers_defaults_are_right_but_for_the_compacted_one() -> None:
    assert found() == []


@pytest.mark.parametrize(
    ("topic", "name", "value", "remedy"),
    [
        ("c", "cleanup.policy", "delete", "compact"),
        ("p", "cleanup.policy", "delete", "compact"),
        ("r", "cleanup.policy", "delete", "compact"),
        ("c", "cleanup.policy", "compact,delete", "compact"),
        ("c", "delete.retention.ms", "3600000", "86400000"),
        ("c", "min.compaction.lag.ms", "0", "604800000"),
        ("d", "max.message.bytes", "1000000", "1048588"),
        ("d", "retention.ms", "-1", "2592000000"),
        ("d", "cleanup.policy", "compact", "delete"),
        ("e", "cleanup.policy", "compact", "delete"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(
    topic: str, name: str, value: str, remedy: str
) -> None:
    (problem,) = found(**{topic: {name: value}})
    assert f"topic {topic}: {name} is {value}" in problem
    assert (
        "kafka-configs.sh --bootstrap-server kafka:9092 --alter --entity-type topics"
        f" --entity-name {topic} --add-config {name}={remedy}"
    ) in problem


def test_a_missing_topic_is_named_with_the_command_that_makes_it_right() -> None:
    (problem,) = problems(NAMES, Found({}, frozenset({"c"})), "kafka:9092")
    assert "topic c does not exist" in problem
    assert "--create --topic c" in problem
    assert "--config cleanup.policy=compact --config min.compaction.lag.ms=604800000" in problem


def test_what_kafka_does_not_tell_is_no_problem() -> None:
    not_told = dict.fromkeys(NAMES, "TopicAuthorizationException: no")
    assert problems(NAMES, Found(not_told=not_told), "kafka:9092") == []


@pytest.mark.parametrize("value", [None, ""])
def test_a_setting_that_is_not_told_is_no_problem(value: str | None) -> None:
    """A broker that speaks Kafka's protocol does not have all of its settings."""
    names = {name for settings in GOOD.values() for name in settings}
    for hidden in names:
        settings = {
            topic: _told(
                SimpleNamespace(name=lambda n=name: n, value=lambda v=text: v)
                for name, text in {**told, hidden: value}.items()
            )
            for topic, told in GOOD.items()
        }
        assert problems(NAMES, Found(settings), "kafka:9092") == []
        without = {
            topic: {name: text for name, text in told.items() if name != hidden}
            for topic, told in GOOD.items()
        }
        assert problems(NAMES, Found(without), "kafka:9092") == []


def test_the_topics_of_the_local_stack_are_right() -> None:
    names = Topics(*TOPICS)
    defaults: dict[str, Any] = {
        "cleanup.policy": "delete",
        "max.message.bytes": "1048588",
        "delete.retention.ms": "86400000",
        "min.compaction.lag.ms": "0",
        "retention.ms": "604800000",
    }
    settings = {name: {**defaults, **config} for name, (_, config) in TOPICS.items()}
    assert problems(names, Found(settings), "") == []
    for name in ("catalogue", "products", "related"):
        assert settings[name]["delete.retention.ms"] == str(7 * 86_400_000)
    assert settings["dead-letters"]["retention.ms"] == str(30 * 86_400_000)


def java_error(kind: str) -> Py4JJavaError:
    """What py4j raises for a future of Kafka's that failed."""
    cause = SimpleNamespace(
        getCause=lambda: None,
        getMessage=lambda: "said so",
        getClass=lambda: SimpleNamespace(getSimpleName=lambda: kind),
    )
    return Py4JJavaError("", SimpleNamespace(_target_id="o1", getCause=lambda: cause))


@pytest.mark.parametrize("kind", ["TopicAuthorizationException", "UnsupportedVersionException"])
def test_what_this_client_may_not_ask_is_told_apart(kind: str) -> None:
    assert _why_not_told(java_error(kind), KafkaOptions()) == f"{kind}: said so"


@pytest.mark.parametrize("kind", ["TimeoutException", "SaslAuthenticationException"])
def test_a_kafka_that_does_not_answer_or_lets_nobody_in_is_an_error(kind: str) -> None:
    with pytest.raises(TopicError, match=rf"Kafka at k:1 cannot be asked .*: {kind}: said so"):
        _why_not_told(java_error(kind), KafkaOptions("k:1"))
