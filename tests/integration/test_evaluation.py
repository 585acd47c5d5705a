"""What the evaluation measures is what the job does: the same lists of the same log."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.files import FileProduct, Log, read_events, write_events
from evaluation.ours import Ours, Stock, learn_before_split
from evaluation.protocol import Prediction, Unit, Walk, make_task
from local.stack import Stack
from tests.integration.helpers import Pipeline, eventually, now_ms
from tests.unit.builders import record_vectors
from tests.verification import StoredList
from udfs.schemas import Event, EventType, Product

pytestmark = pytest.mark.timeout(240)
K = 20
USERS = 40
DAY_MS = 86_400_000
WORDS = ("lamp", "mug", "chair", "kettle", "rug", "clock")
# Where two scores are as near as rounding, either product may be first.
TOLERANCE = 2e-4


def shop() -> dict[str, FileProduct]:
    """120 products with words of their category in their titles."""
    return {
        f"p{at}": FileProduct(
            f"p{at}", title=f"model {at} {WORDS[at % 6]}", category=WORDS[at % 6].upper()
        )
        for at in range(120)
    }


def log_events(end_ms: int) -> list[Event]:
    """Ten days of visits; products follow each other in chains, and some are bought again."""
    rng = random.Random(5)
    kinds: list[EventType] = ["click", "scroll", "add_to_cart", "purchase", "dislike", "search"]
    found = []
    for number in range(1600):
        user, at_ms = rng.randrange(USERS), end_ms - (1600 - number) * 10 * DAY_MS // 1600
        kind = rng.choices(kinds, (50, 15, 10, 15, 3, 7))[0]
        product = (7 * user + rng.randrange(12)) % 120
        query = rng.choice(WORDS) if kind == "search" else None
        touched = None if query else f"p{product}"
        follows = f"p{(product + 1) % 120}"
        visit = f"s{number}"
        found += [
            Event(f"e{number}-0", f"u{user}", kind, at_ms, touched, query, visit),
            Event(f"e{number}-1", f"u{user}", "click", at_ms + 1000, follows, None, visit),
        ]
    return found


def same_list(shown: list[str], saved: StoredList) -> str:
    """Say where a saved list is another than the replayed one; empty where it is the same."""
    if len(shown) != len(saved.product_ids):
        return f"{len(saved.product_ids)} products instead of {len(shown)}"
    scores = dict(zip(saved.product_ids, saved.scores.tolist(), strict=True))
    for place, name in enumerate(shown):
        at = saved.scores[place]
        if abs(scores.get(name, saved.scores[-1]) - at) > TOLERANCE * max(1.0, abs(at)):
            return f"{saved.product_ids[place]} instead of {name} at {place}"
    return ""


def last_predictions(log: Log, ours: Ours, walks: list[Walk]) -> dict[str, Prediction]:
    """The last answer of each user's walk."""
    found: dict[str, Prediction] = {}
    for prediction in ours.predict(walks, K):
        walk = walks[prediction.walk]
        if prediction.target == len(walk.targets) - 1:
            found[log.event(int(walk.rows[0])).user_id] = prediction
    return found


def wire_products(stock: Stock) -> Iterator[tuple[Product, Any]]:
    """The products as a shop publishes them, with what was learned of them, and their vectors."""
    for one, row in zip(stock.products, stock.related, strict=True):
        ((space, vector),) = record_vectors(one).items()
        yield (
            Product(
                one.product_id,
                space,
                "",
                one.title,
                one.category,
                related=row.related,
                rebuy_days=row.rebuy_days,
                rebuy_share=row.rebuy_share,
            ),
            vector,
        )


def test_the_job_writes_the_lists_that_the_evaluation_replays(stack: Stack, tmp_path: Path) -> None:
    end_ms = now_ms() - DAY_MS
    path = tmp_path / "log.jsonl.gz"
    write_events(path, log_events(end_ms))
    log, products = read_events(path), shop()
    task = make_task(log, end_ms - 3 * DAY_MS, Unit.USER)
    ours = Ours(log, products)
    ours.fit(task.training)
    stock = learn_before_split(log, task.training, products)
    expected = {
        user: [task.training.product_ids[item] for item in prediction.shown]
        for user, prediction in last_predictions(log, ours, task.walks).items()
    }
    assert len(expected) > USERS / 2
    assert sum(bool(row.related) for row in stock.related) > 100
    assert any(row.rebuy_days is not None for row in stock.related)

    with Pipeline.create(stack, "replay", "--tick-ms", "300", list_length=K) as pipeline:
        pipeline.upsert(wire_products(stock))
        pipeline.submit(parallelism=2)
        pipeline.wait_metric("catalogue_size", len(stock.products))
        for walk in task.walks:
            # Everything before the last target, in one stream with the others.
            rows = walk.rows[: walk.targets[-1]].tolist()
            pipeline.send(log.event(row) for row in rows)
        pipeline.wait_saved()

        def complaint() -> str:
            saved = pipeline.lists()
            wrong = {
                user: same_list(shown, saved[user]) if user in saved else "no list"
                for user, shown in expected.items()
            }
            return str({user: why for user, why in wrong.items() if why})[:500].strip("{}")

        eventually(complaint, 30)
        reasons = {
            item[2].split(":")[0]
            for row in pipeline.query("SELECT items FROM {}.recommendations_by_user")
            for item in row.items
        }
        assert {"viewed", "searched"} <= reasons
        assert np.mean([len(shown) for shown in expected.values()]) == K
