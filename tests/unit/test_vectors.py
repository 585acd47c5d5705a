"""What a log says of a catalogue, and of its products that the log does not know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from tests.unit.builders import NOW_MS
from udfs.behaviour import BehaviourConfig, Related
from udfs.product_record import decode_related, encode
from udfs.schemas import EVENT_TYPES, MAX_RELATED
from udfs.vectors import (
    Interactions,
    Learned,
    Sequences,
    VectorsConfig,
    learn,
    with_new_products,
)

IDS = ["mug", "cup", "lamp", "bulb", "unknown-mug", "unread"]
TITLES = ["blue coffee mug", "red tea cup", "desk lamp", "light bulb", "green coffee mug", ""]
CATEGORIES = ["KITCHEN", "KITCHEN", "LIGHT", "LIGHT", "KITCHEN", ""]
CONFIG = VectorsConfig(text_neighbours=1)
PURCHASE = EVENT_TYPES.index("purchase")


def log(*sessions: Sequence[int], kind: str = "purchase") -> Interactions:
    """Each session is of another user; a minute between its events, a day between sessions."""
    rows = [
        (user, item, NOW_MS + 86_400_000 * user + 60_000 * at, EVENT_TYPES.index(kind), -1)
        for user, items in enumerate(sessions)
        for at, item in enumerate(items)
    ]
    return Interactions(*(np.array(column, dtype=np.int64) for column in zip(*rows, strict=True)))


# Mugs go with lamps, cups with bulbs: other than what their texts say.
LOG = log([0, 2], [2, 0], [1, 3], [3, 1], [0, 2])


def made(config: VectorsConfig = CONFIG, interactions: Interactions = LOG) -> Learned:
    return learn(IDS, TITLES, CATEGORIES, interactions, config)


def related(learned: Learned, name: str) -> dict[str, float]:
    return learned.row(IDS.index(name)).related


def test_a_new_product_behaves_like_its_neighbour_by_text() -> None:
    learned = made()
    own, inherited = related(learned, "mug"), related(learned, "unknown-mug")
    assert inherited.keys() == own.keys() - {"mug"}
    assert inherited["lamp"] == own["lamp"]
    of_lamp = related(learned, "lamp")
    assert of_lamp["unknown-mug"] == of_lamp["mug"]
    assert related(learned, "unread") == {}


def test_new_products_stay_out_of_others_lists_where_that_is_asked_for() -> None:
    for config in (replace(CONFIG, new_weight=0.0), replace(CONFIG, new_related=0)):
        learned = made(config)
        assert "unknown-mug" not in related(learned, "lamp")
        assert "lamp" in related(learned, "unknown-mug")


def test_at_most_so_many_new_products_in_a_list_the_nearest_first() -> None:
    known = Related(
        starts=np.array([0, 1, 1, 1, 1]),
        items=np.array([1]),
        weights=np.array([2.0], dtype=np.float32),
        repeats=np.zeros(4, dtype=np.float32),
    )
    # 2 and 3 are new and like 1, which follows 0; 3 more so.
    similar = sparse.csr_matrix(
        (np.array([0.5, 1.0], dtype=np.float32), ([2, 3], [1, 1])), shape=(4, 4)
    )
    config = VectorsConfig(new_weight=0.5, new_related=1)
    items, weights = with_new_products(known, similar, config).of(0)
    assert items.tolist() == [1, 3]
    np.testing.assert_allclose(weights, [2.0, 1.0])
    config = VectorsConfig(new_weight=0.5, new_related=2)
    items, weights = with_new_products(known, similar, config).of(0)
    assert items.tolist() == [1, 3, 2]
    np.testing.assert_allclose(weights, [2.0, 1.0, 0.5])


def test_all_that_is_learned_fits_a_record() -> None:
    rng = np.random.default_rng(3)
    count = 300
    ids = [f"p{at}" for at in range(count)]
    titles = [f"thing {at % 7} {at}" for at in range(count)]
    interactions = log(*(rng.integers(0, 200, 30).tolist() for _ in range(60)))
    config = VectorsConfig(
        new_related=MAX_RELATED - 1 - 100, behaviour=BehaviourConfig(neighbours=100)
    )
    learned = learn(ids, titles, [""] * count, interactions, config)
    rows = [decode_related(name, encode(learned.row(at))) for at, name in enumerate(ids)]
    assert 100 < max(len(row.related) for row in rows) <= MAX_RELATED


def test_a_log_learned_in_parts_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made()
    monkeypatch.setattr("udfs.vectors._ROWS_AT_ONCE", 2)
    monkeypatch.setattr("udfs.vectors._TEXTS_AT_ONCE", 2)
    parts = made()
    for at in range(len(IDS)):
        assert parts.row(at) == whole.row(at)


def test_sessions_are_sequences_where_that_is_asked_for() -> None:
    users = log([0, 2, 1, 3])
    apart = users._replace(sessions=np.array([7, 7, -1, -1]))
    config = replace(CONFIG, sequences=Sequences.SESSION, new_related=0)
    assert related(made(config, apart), "lamp").keys() == {"mug"}
    by_user = made(replace(config, sequences=Sequences.USER), apart)
    assert related(by_user, "lamp").keys() == {"mug", "cup", "bulb"}
    # Unnamed sessions end at a pause.
    late = apart._replace(times_ms=apart.times_ms + np.array([0, 0, 0, 3_600_000]))
    assert "bulb" not in related(made(config, late), "cup")
    assert "bulb" in related(made(config, apart), "cup")


def test_dislikes_teach_nothing() -> None:
    learned = made(interactions=log([0, 2], [0, 2], kind="dislike"))
    assert related(learned, "mug") == {}
    assert learned.bought_again is None


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="2 titles"):
        learn(IDS, TITLES[:2], CATEGORIES, LOG, CONFIG)
    with pytest.raises(ValueError, match="items must be within"):
        made(interactions=LOG._replace(items=LOG.items + 5))
    for wrong in (
        {"text_neighbours": 0},
        {"session_gap_s": 0.0},
        {"new_weight": -1.0},
        {"new_related": MAX_RELATED},
        {"closeness_exponent": float("nan")},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            VectorsConfig(**wrong)
