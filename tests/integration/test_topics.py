"""The job's look at its topics: what is wrong is said before anything is submitted."""

from __future__ import annotations

import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

from local.cli import CATALOGUE, DEAD_LETTERS, EVENTS
from local.errors import StackError
from local.stack import Stack
from tests.integration.helpers import Pipeline, click, clustered_vectors

pytestmark = pytest.mark.timeout(240)


def configure(stack: Stack, topic: str, name: str, value: str) -> None:
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
    admin = stack.kafka.admin()
    admin.incremental_alter_configs([resource])[resource].result(30)


def test_wrong_topics_are_refused_with_the_remedy_and_right_ones_run(stack: Stack) -> None:
    with Pipeline.create(stack, "topics", "--trending-half-life-hours", "0") as pipeline:
        catalogue, letters = pipeline.topics[CATALOGUE], pipeline.topics[DEAD_LETTERS]
        configure(stack, catalogue, "cleanup.policy", "delete")
        configure(stack, letters, "retention.ms", "-1")
        stack.kafka.delete_topic(pipeline.topics[EVENTS])

        with pytest.raises(StackError) as refused:
            pipeline.submit()

        said = str(refused.value)
        assert f"topic {pipeline.topics[EVENTS]} does not exist" in said
        assert f"topic {catalogue}: cleanup.policy is delete" in said
        assert f"--entity-name {catalogue} --add-config cleanup.policy=compact" in said
        assert f"topic {letters}: retention.ms is -1" in said
        assert pipeline.job_id is None

        configure(stack, catalogue, "cleanup.policy", "compact")
        configure(stack, letters, "retention.ms", "3600000")
        stack.kafka.create_topic(pipeline.topics[EVENTS], 2)
        vectors = {f"p{at}": one for at, one in enumerate(clustered_vectors(20))}
        pipeline.publish(vectors)
        pipeline.submit()
        pipeline.send([click("u1", "p1")])
        pipeline.wait_saved()


def test_a_kafka_that_does_not_answer_is_named(stack: Stack) -> None:
    with Pipeline.create(stack, "away", "--kafka-bootstrap", "127.0.0.1:1") as pipeline:
        pipeline.options = (*pipeline.options, "--kafka-property", "default.api.timeout.ms=3000",
                            "--kafka-property", "request.timeout.ms=2000")  # fmt: skip
        with pytest.raises(StackError) as refused:
            pipeline.submit()
        assert "Kafka at 127.0.0.1:1 cannot be asked" in str(refused.value)
