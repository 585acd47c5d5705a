"""The split and the walks, on logs whose right answer is known; nothing after it may be learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from evaluation.baselines import all_baselines
from evaluation.files import DataError, FileProduct, Log, read_events, write_events
from evaluation.ours import Ours, fill_catalogue, learn_before_split
from evaluation.protocol import Task, Unit, make_task, parse_split
from evaluation.run import evaluate
from tests.unit.builders import MINUTE_MS
from udfs.recommend import RecommendConfig, Touched, recommend
from udfs.schemas import Event, EventType, PendingEvent

SPLIT_MS = 1_000 * MINUTE_MS
# user, session, minute, product (a search has none), type
Line = tuple[str, str | None, int, str | None, EventType]


def log_of(tmp_path: Path, lines: Sequence[Line]) -> Log:
    events = [
        Event(
            event_id=f"e{number}",
            user_id=user,
            type=kind,
            ts=minute * MINUTE_MS,
            product_id=product,
            query="blue cup" if product is None else None,
            session_id=session,
        )
        for number, (user, session, minute, product, kind) in enumerate(lines)
    ]
    path = tmp_path / "log.jsonl"
    write_events(path, events)
    return read_events(path)


LINES: list[Line] = [
    ("u", "s1", 10, "a", "click"),
    ("u", "s1", 11, "b", "click"),
    ("u", "s1", 12, "b", "purchase"),
    ("v", "s2", 20, "b", "click"),
    ("v", "s3", 999, "c", "click"),
    ("v", "s3", 1001, "a", "click"),  # the session began before the split
    ("u", "s4", 1002, "c", "click"),
    ("u", "s4", 1003, None, "search"),
    ("u", "s4", 1004, "new", "click"),
    ("u", "s4", 1005, "b", "click"),
    ("u", "s4", 1006, "c", "purchase"),
    ("u", "s4", 1007, "a", "dislike"),
    ("w", "s5", 1000, "b", "click"),
    ("w", "s5", 1001, "a", "click"),
    ("v", "s6", 1008, "c", "click"),
]


def asked(task: Task, log: Log, *, history: bool = False) -> list[tuple[list[str], str, bool]]:
    """For each target: the products before it (?: a search), its product, whether it is new."""
    found = []
    for walk in task.with_history if history else task.walks:
        names = [log.items[code] if code >= 0 else "?" for code in log.item_of[walk.rows]]
        for target, new in zip(walk.targets.tolist(), walk.new.tolist(), strict=True):
            assert task.training.product_ids[walk.items[target]] == names[target]
            found.append((names[:target], names[target], new))
    return found


def test_training_is_what_is_before_the_split(tmp_path: Path) -> None:
    training = make_task(log_of(tmp_path, LINES), SPLIT_MS, Unit.SESSION).training
    # b has three events; a and c have one each, and go by their id.
    assert training.product_ids == ["b", "a", "c"]
    assert training.counts.tolist() == [3, 1, 1]
    named = [
        [training.product_ids[item] for item in training.items[first:last]]
        for first, last in zip(training.starts, training.starts[1:], strict=False)
    ]
    assert named == [["a", "b", "b"], ["b"], ["c"]]
    assert training.ends_ms().tolist() == [12 * MINUTE_MS, 20 * MINUTE_MS, 999 * MINUTE_MS]
    assert (training.times_ms < SPLIT_MS).all()


def test_sessions_are_predicted_from_their_second_position(tmp_path: Path) -> None:
    log = log_of(tmp_path, LINES)
    task = make_task(log, SPLIT_MS, Unit.SESSION)
    assert asked(task, log) == [
        (["c", "?", "new"], "b", True),
        (["c", "?", "new", "b"], "c", False),
        (["b"], "a", True),
    ]
    assert task.counts.predictions == 3
    assert task.counts.units == 2
    assert task.counts.unknown_items == 1
    assert task.counts.straddling == 1


def test_the_second_figure_has_all_that_the_user_did_before_the_session(tmp_path: Path) -> None:
    log = log_of(tmp_path, [*LINES, ("v", "s6", 1009, "b", "click")])
    task = make_task(log, SPLIT_MS, Unit.SESSION)
    assert asked(task, log, history=True) == [
        (["a", "b", "b", "c", "?", "new"], "b", False),
        (["a", "b", "b", "c", "?", "new", "b"], "c", False),
        (["b"], "a", True),
        (["b", "c", "a", "c"], "b", False),
    ]
    assert [walk.session_start for walk in task.with_history] == [3, 0, 3]
    assert [walk.unit for walk in task.with_history] == [walk.unit for walk in task.walks]


def test_without_a_user_of_several_sessions_there_is_no_second_figure(tmp_path: Path) -> None:
    lines = [line for line in LINES if line[1] in {"s1", "s5"}]
    assert make_task(log_of(tmp_path, lines), SPLIT_MS, Unit.SESSION).with_history == []


def test_users_are_predicted_from_all_their_history(tmp_path: Path) -> None:
    log = log_of(tmp_path, LINES)
    task = make_task(log, SPLIT_MS, Unit.USER)
    assert asked(task, log) == [
        (["a", "b", "b"], "c", True),
        (["a", "b", "b", "c", "?", "new"], "b", False),
        (["a", "b", "b", "c", "?", "new", "b"], "c", False),
        (["b", "c"], "a", True),
        (["b", "c", "a"], "c", False),
        (["b"], "a", True),
    ]
    assert task.counts.unknown_items == 1
    assert task.counts.without_history == 1  # w's first event
    assert task.training.groups == 2  # u and v


def test_events_without_a_session_are_cut_at_pauses(tmp_path: Path) -> None:
    lines: list[Line] = [
        ("u", None, 0, "a", "click"),
        ("v", None, 1, "a", "click"),
        ("u", None, 30, "b", "click"),
        ("u", None, 61, "c", "click"),
        ("u", "named", 62, "c", "click"),
    ]
    sessions = log_of(tmp_path, lines).session_of.tolist()
    assert sessions[0] == sessions[2]
    assert len({sessions[0], sessions[1], sessions[3], sessions[4]}) == 4


def test_the_same_session_id_of_two_users_is_two_sessions(tmp_path: Path) -> None:
    lines: list[Line] = [("u", "1", 0, "a", "click"), ("v", "1", 1, "a", "click")]
    assert len(set(log_of(tmp_path, lines).session_of.tolist())) == 2


@pytest.mark.parametrize("split", [0, 10 * MINUTE_MS, 1_008 * MINUTE_MS + 1])
def test_a_split_outside_the_log_is_an_error(tmp_path: Path, split: int) -> None:
    with pytest.raises(DataError, match=r"outside the log, 1970-01-01T00:10\+00:00 to"):
        make_task(log_of(tmp_path, LINES), split, Unit.SESSION)


def test_no_test_session_is_an_error(tmp_path: Path) -> None:
    lines = [line for line in LINES if line[1] in {"s1", "s3"}]
    with pytest.raises(DataError, match="nothing to predict: 0 sessions at or after"):
        make_task(log_of(tmp_path, lines), SPLIT_MS, Unit.SESSION)


def test_nothing_to_learn_is_an_error(tmp_path: Path) -> None:
    lines: list[Line] = [("u", "s", 1, None, "search"), *LINES[6:]]
    with pytest.raises(DataError, match="nothing to learn from"):
        make_task(log_of(tmp_path, lines), SPLIT_MS, Unit.SESSION)


def test_splits_are_utc_unless_they_say_otherwise() -> None:
    assert parse_split("1970-01-02") == 86_400_000
    assert parse_split("1970-01-01T01:00+01:00") == 0
    with pytest.raises(DataError, match="ISO time"):
        parse_split("yesterday")


def random_lines(seed: int, sessions: int = 40) -> list[Line]:
    random = np.random.default_rng(seed)
    lines: list[Line] = []
    for session in range(sessions):
        user = f"u{random.integers(8)}"
        start = 50 * session
        products = [f"p{random.integers(12)}" for _ in range(random.integers(1, 7))]
        lines += [
            (user, f"s{session}", start + at, product, "click")
            for at, product in enumerate(products)
        ]
    return lines


@pytest.mark.parametrize("unit", list(Unit))
def test_a_change_after_the_split_changes_nothing_that_is_learned(
    tmp_path: Path, unit: Unit
) -> None:
    lines = random_lines(1)
    changed = [line if line[2] < 1_000 else (*line[:3], "p3", line[4]) for line in lines]
    assert changed != lines
    logs = [log_of(tmp_path, version) for version in (lines, changed)]
    one, other = (make_task(log, SPLIT_MS, unit).training for log in logs)
    assert one.product_ids == other.product_ids
    for field in ("counts", "items", "times_ms", "starts"):
        assert np.array_equal(getattr(one, field), getattr(other, field))
    products = products_of(lines)
    mine, theirs = (
        learn_before_split(log, part, products)
        for log, part in zip(logs, (one, other), strict=True)
    )
    assert mine == theirs
    assert any(row.related for row in mine.related)


@pytest.mark.parametrize("unit", list(Unit))
@pytest.mark.parametrize("name", ["ours", *(one.name for one in all_baselines())])
def test_a_change_at_or_after_a_position_does_not_change_its_prediction(
    tmp_path: Path, unit: Unit, name: str
) -> None:
    lines = random_lines(2)
    last = max(line[2] for line in lines if line[1] == "s39") - 1
    assert last > 50 * 39  # the last session has several positions
    changed = [line if line[2] < last else (*line[:3], "p3", line[4]) for line in lines]
    assert changed != lines
    answers = []
    for version in (lines, changed):
        log = log_of(tmp_path, version)
        (recommender,) = [
            one for one in (Ours(log, products_of(lines)), *all_baselines()) if one.name == name
        ]
        task = make_task(log, SPLIT_MS, unit)
        recommender.fit(task.training)
        found = {}
        for prediction in recommender.predict(task.walks, 5):
            walk = task.walks[prediction.walk]
            row = int(walk.rows[walk.targets[prediction.target]])
            if log.times_ms[row] <= last * MINUTE_MS:
                found[row] = (prediction.shown.tolist(), prediction.unseen.tolist())
        answers.append(found)
    assert answers[0] == answers[1]
    assert len(answers[0]) > 10


def products_of(lines: Sequence[Line]) -> dict[str, FileProduct]:
    words = ["red", "blue", "green", "lamp", "cup", "chair", "table", "clock", "vase", "mug"]
    words += ["plate", "rug"]  # as many as there are products: equal titles would tie
    names = sorted({line[3] for line in lines if line[3] is not None})
    return {
        name: FileProduct(product_id=name, title=f"{words[at]} {words[(at * 5 + 3) % 12]}")
        for at, name in enumerate(names)
    }


def test_ours_answers_as_one_replay_a_target_does(tmp_path: Path) -> None:
    """Tick by tick equals the whole prefix in one tick, up to the order of float32 sums."""
    lines = random_lines(3)
    log = log_of(tmp_path, lines)
    task = make_task(log, SPLIT_MS, Unit.USER)
    products = products_of(lines)
    ours = Ours(log, products)
    ours.fit(task.training)
    catalogue = fill_catalogue(learn_before_split(log, task.training, products))
    compared = 0
    for prediction in ours.predict(task.walks, 3):
        walk = task.walks[prediction.walk]
        rows = walk.rows[: walk.targets[prediction.target]].tolist()
        user = Touched("x", None, [PendingEvent(log.event(row), b"") for row in rows])
        ((saved,),) = [
            batch.lists for batch in recommend([user], catalogue, RecommendConfig(list_length=3), 1)
        ]
        shown = [task.training.product_ids[item] for item in prediction.shown]
        assert shown == saved.product_ids
        compared += 1
    assert compared == task.counts.predictions > 20


def test_ours_fills_the_unseen_list_from_a_longer_one(tmp_path: Path) -> None:
    lines = random_lines(4)
    log = log_of(tmp_path, lines)
    task = make_task(log, SPLIT_MS, Unit.USER)
    ours = Ours(log, products_of(lines))
    ours.fit(task.training)
    for prediction in ours.predict(task.walks, 4):
        walk = task.walks[prediction.walk]
        before = {int(item) for item in walk.items[: walk.targets[prediction.target]]} - {-1}
        unseen = prediction.unseen.tolist()
        assert not before & set(unseen)
        assert len(unseen) == min(4, len(task.training.product_ids) - len(before))
        kept = [item for item in prediction.shown.tolist() if item not in before]
        assert unseen[: len(kept)] == kept


def test_the_same_seed_gives_the_same_result(tmp_path: Path) -> None:
    lines = random_lines(5)
    log = log_of(tmp_path, lines)
    task = make_task(log, SPLIT_MS, Unit.SESSION)

    def run(seed: int) -> list[object]:
        both = evaluate(task, [Ours(log, products_of(lines)), *all_baselines()], 3, seed)
        return [
            (name, result.all, result.new, result.coverage, result.popular_share)
            for results in both
            for name, result in results.items()
        ]

    assert run(7) == run(7)
    assert run(7) != run(8)
    assert len(run(7)) == 2 * (1 + len(all_baselines()))
