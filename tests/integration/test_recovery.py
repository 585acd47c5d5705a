"""Every server is killed while events flow: the short form of `make chaos`."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from local.stack import Stack
from tests.chaos import LIST_LENGTH, Chaos
from tests.integration.helpers import SPACE, Pipeline, click, clustered_vectors, now_ms
from tests.verification import (
    VECTOR_TOLERANCE,
    CatalogueItem,
    StoredList,
    StoredRow,
    Vector,
    expected_users,
    unit,
    verify,
)


@pytest.mark.timeout(480)
def test_nothing_is_lost_doubled_or_wrong_after_a_kill_of_each_server(stack: Stack) -> None:
    with Pipeline.create(stack, "recovery", list_length=LIST_LENGTH) as pipeline:
        chaos = Chaos(pipeline, rate=100, users=200, products=400, say=print)
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


def test_the_comparison_finds_each_fault() -> None:
    catalogue = {
        f"p{at}": CatalogueItem(unit(one)) for at, one in enumerate(clustered_vectors(200))
    }
    events = [click("u", f"p{at}", ts=now_ms() - 60_000 * at) for at in range(10)]
    events.append(click("u", "p50", "purchase"))
    rows = [StoredRow(event, event.ts // 86_400_000) for event in events]
    user = expected_users(events, catalogue)["u"]
    assert user.vector is not None

    def stored(vector: Vector, *excluded: str, k: int = 100) -> StoredList:
        scores = {
            one: float(item.vector @ vector)
            for one, item in catalogue.items()
            if one not in excluded
        }
        ids = tuple(sorted(scores, key=lambda one: -scores[one])[:k])
        return StoredList(ids, np.array([scores[one] for one in ids]), SPACE, 0, 0)

    right = stored(user.vector, "p50")

    def problems(saved: list[StoredRow], one: StoredList | None) -> str:
        lists = {} if one is None else {"u": one}
        return verify(events, saved, lists, catalogue, k=100, space=SPACE).problems()

    assert problems(rows, right) == ""
    assert "lost" in problems(rows[1:], right)
    assert "duplicated" in problems([*rows, rows[0]], right)
    stranger = replace(rows[0], event=click("u", "p0"))
    assert "unexpected" in problems([*rows, stranger], right)
    other = replace(rows[0], event=msgspec.structs.replace(rows[0].event, session_id="other"))
    assert "altered" in problems([other, *rows[1:]], right)
    another = replace(rows[0], event=msgspec.structs.replace(rows[0].event, product_id="p1"))
    assert "lost" in problems([another, *rows[1:]], right)
    assert "unexpected" in problems([another, *rows[1:]], right)
    assert "no list" in problems(rows, None)
    assert "must not be shown" in problems(rows, stored(user.vector))
    assert "99 products, not 100" in problems(rows, stored(user.vector, "p50", k=99))
    assert "space" in problems(rows, replace(right, space="other"))
    second = right.product_ids[1]
    assert "scores off" in problems(rows, stored(user.vector, "p50", second))
    # As if one event had been counted twice: only the vector differs, and only a little.
    twice = expected_users([*events, click("u", "p3", ts=events[3].ts)], catalogue)["u"].vector
    assert twice is not None
    assert "a vector is off" in problems(rows, stored(twice, "p50"))
