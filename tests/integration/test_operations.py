"""What operators rely on, with the real job: exported metrics, and a replay of its dead letters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from connectors.dead_letter_tool import main as dead_letter_tool
from connectors.dead_letters import to_row
from local.stack import Stack
from tests import exported_metrics
from tests.integration.helpers import (
    Pipeline,
    click,
    clustered_vectors,
    eventually,
    now_ms,
    poisoned_events,
)
from udfs.schemas import MAX_FUTURE_MS, DeadLetter, Origin, Reason, encode_event

pytestmark = pytest.mark.timeout(240)


@contextlib.contextmanager
def busy_job(stack: Stack) -> Iterator[Pipeline]:
    """The job after it has met a little of everything, two checkpoints included."""
    with Pipeline.create(stack, "operations", "--tick-ms", "200") as pipeline:
        vectors = clustered_vectors(100)
        pipeline.publish({f"p{number}": vector for number, vector in enumerate(vectors)})
        pipeline.submit(parallelism=2)
        pipeline.wait_products()
        pipeline.send(click(f"u{number % 20}", f"p{number % 100}") for number in range(200))
        pipeline.poison({"garbage": poisoned_events()["garbage"]})
        pipeline.wait_right()
        pipeline.wait_poison()

        def checkpointed() -> str:
            done = stack.flink.checkpoints(pipeline.job).completed
            return "" if done >= 2 else f"{done} checkpoints"

        eventually(checkpointed, 60)
        yield pipeline


def test_what_dashboard_and_alerts_ask_for_is_exported_and_a_replay_comes_through(
    stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    with busy_job(stack) as pipeline:
        samples = list(exported_metrics.scrape(stack))
        early = click("u1", "p1", ts=now_ms() + MAX_FUTURE_MS + 4000)
        topic = pipeline.topics["events"]
        pipeline.ledger.send(topic, b"u1", encode_event(early))
        pipeline.ledger.flush()
        letters_before = len(pipeline.poisoned)

        def wait_letters(number: int) -> None:
            def complaint() -> str:
                found = [one.headers["reason"] for one in pipeline.letters()]
                right = len(found) == letters_before + number
                return "" if right else f"dead letters: {found}"

            eventually(complaint, 30)

        def replay(reason: str) -> str:
            where = ["--bootstrap", stack.kafka.bootstrap]
            where += ["--dead-letters-topic", pipeline.topics["dead-letters"]]
            assert dead_letter_tool([*where, "replay", "--reason", reason]) == 0
            return capsys.readouterr().out

        wait_letters(1)
        # By then its time is no longer ahead of any clock, but its record is judged as before.
        eventually(lambda: "" if early.ts < now_ms() + MAX_FUTURE_MS else "still too early", 30)
        assert "sent 1 of 1" in replay("in_the_future")
        wait_letters(2)

        # What an earlier version refused, and this one takes.
        taken = click("u1", "p1", ts=now_ms() - 60_000)
        sent_ms = taken.ts + 7
        letter = DeadLetter(
            topic, "u1", encode_event(taken), Reason.MISSING_KEY, "", Origin(0, 10_000, sent_ms)
        )
        key, value, headers = to_row(letter)
        producer = Producer({"bootstrap.servers": stack.kafka.bootstrap})
        letters = pipeline.topics["dead-letters"]
        producer.produce(letters, value, key, headers=list(headers.items()))
        assert producer.flush(30) == 0
        assert "sent 1 of 1" in replay("missing_key")
        pipeline.ledger.acknowledged.append(taken)
        pipeline.wait_right()
        assert "sent 0 of 1" in replay("missing_key")

    missing = [
        one
        for one in exported_metrics.wanted_of_flink()
        if not any(one.matches(sample) for sample in samples)
    ]
    assert missing == []
    names = set(exported_metrics.kept_names(samples))
    gone = [name for name in exported_metrics.golden_names() if name not in names]
    assert gone == [], "renew the list: python -m tests.exported_metrics"


def test_a_replay_from_kafka_builds_state_and_lists_anew(stack: Stack) -> None:
    with Pipeline.create(stack, "replay", "--tick-ms", "200") as pipeline:
        vectors = clustered_vectors(60)
        pipeline.publish({f"p{number}": vector for number, vector in enumerate(vectors)})
        pipeline.submit()
        pipeline.send(click(f"u{number % 7}", f"p{number}") for number in range(50))
        before = pipeline.wait_right()
        stack.flink.stop_with_savepoint(pipeline.job)
        # What replaces it must come from the events, not from the rows that are there.
        pipeline.query("TRUNCATE {}.recommendations_by_user")
        assert pipeline.lists() == {}

        # As the runbook has it: without the savepoint, under a group that has no offsets.
        pipeline.options = (*pipeline.options, "--kafka-group", f"{pipeline.suffix}-again")
        pipeline.submit()
        after = pipeline.wait_right()

        assert after.events == before.events == 50
        assert pipeline.lists().keys() == {f"u{number}" for number in range(7)}
