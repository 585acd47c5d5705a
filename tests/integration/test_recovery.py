"""Every server is killed while events flow: the short form of `make chaos`."""

from __future__ import annotations

import pytest

from local.stack import Stack
from tests.chaos import LIST_LENGTH, Chaos
from tests.integration.helpers import Pipeline
from tests.verification import VECTOR_TOLERANCE


@pytest.mark.timeout(480)
def test_nothing_is_lost_doubled_or_wrong_after_a_kill_of_each_server(stack: Stack) -> None:
    with Pipeline.create(stack, "recovery", list_length=LIST_LENGTH) as pipeline:
        chaos = Chaos(pipeline, rate=100, users=200, products=400)
        chaos.start(parallelism=2)

        chaos.kill_task_manager(0)
        chaos.kill_kafka(away_s=1)
        chaos.change_catalogue()
        chaos.poison()
        chaos.kill_cassandra(away_s=5)
        chaos.kill_job_manager()
        chaos.rescale(1)

        verdict = chaos.account()
        assert verdict.problems() == ""
        assert verdict.events > 1000
        assert verdict.vectors_compared == verdict.users == 200
        assert verdict.max_vector_error < VECTOR_TOLERANCE
