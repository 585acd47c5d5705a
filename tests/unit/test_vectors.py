"""Vectors and facts of a catalogue: from text, from behaviour, from both, and of new products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from tests.unit.builders import NOW_MS
from udfs.behaviour import BehaviourConfig, Related
from udfs.query_encoder import SPACE, encode_products, encode_query
from udfs.schemas import (
    EVENT_TYPES,
    MAX_RELATED,
    Product,
    decode_product,
    encode_product,
    encode_vector,
)
from udfs.vectors import (
    Interactions,
    Learned,
    Sequences,
    Source,
    VectorsConfig,
    learn,
    with_new_products,
)

IDS = ["mug", "cup", "lamp", "bulb", "unknown-mug", "unread"]
TITLES = ["blue coffee mug", "red tea cup", "desk lamp", "light bulb", "green coffee mug", ""]
CATEGORIES = ["KITCHEN", "KITCHEN", "LIGHT", "LIGHT", "KITCHEN", ""]
CONFIG = VectorsConfig(dimensions=3, text_neighbours=1)
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


def made(config: VectorsConfig = CONFIG, interactions: Interactions | None = LOG) -> Learned:
    return learn(IDS, TITLES, CATEGORIES, interactions, config)


def cosine(learned: Learned, one: str, other: str) -> float:
    a, b = IDS.index(one), IDS.index(other)
    return float(learned.vectors[a] @ learned.vectors[b])


def test_text_alone_is_the_space_of_searches() -> None:
    learned = made(VectorsConfig(source=Source.TEXT), None)
    assert learned.space == SPACE
    np.testing.assert_array_equal(learned.vectors, encode_products(TITLES, CATEGORIES))
    assert learned.facts(0) == {}
    assert not learned.vectors[IDS.index("unread")].any()


def test_behaviour_places_products_by_what_goes_together() -> None:
    learned = made(replace(CONFIG, source=Source.BEHAVIOUR))
    assert learned.space.startswith("behaviour3-")
    assert learned.vectors.shape == (6, 3)
    assert cosine(learned, "mug", "lamp") > 0.9
    assert cosine(learned, "mug", "cup") < 0.1


def test_both_parts_count_the_same() -> None:
    learned = made()
    assert learned.space.startswith(f"{SPACE}+behaviour3-")
    text = made(replace(CONFIG, source=Source.TEXT)).vectors
    behaviour = made(replace(CONFIG, source=Source.BEHAVIOUR)).vectors
    known = [0, 1, 2, 3]
    np.testing.assert_allclose(
        learned.vectors[known] @ learned.vectors[known].T,
        (text[known] @ text[known].T + behaviour[known] @ behaviour[known].T) / 2,
        atol=1e-6,
    )


def test_a_search_ranks_by_text_in_the_space_of_both() -> None:
    query = encode_query("coffee mug")
    assert query is not None
    learned = made()
    padded = np.zeros(learned.vectors.shape[1], dtype=np.float32)
    padded[: len(query)] = query
    text = made(VectorsConfig(source=Source.TEXT), None).vectors
    np.testing.assert_allclose(learned.vectors @ padded, text @ query / np.sqrt(2), atol=1e-6)


def test_a_new_product_behaves_like_its_neighbour_by_text() -> None:
    learned = made(replace(CONFIG, source=Source.BEHAVIOUR))
    assert cosine(learned, "unknown-mug", "mug") == pytest.approx(1, abs=1e-6)
    assert not learned.vectors[IDS.index("unread")].any()
    own = learned.facts(IDS.index("mug"))["related"]
    inherited = learned.facts(IDS.index("unknown-mug"))["related"]
    assert inherited.keys() == own.keys() - {"mug"}
    assert inherited["lamp"] == own["lamp"]
    of_lamp = learned.facts(IDS.index("lamp"))["related"]
    assert of_lamp["unknown-mug"] == of_lamp["mug"]


def test_new_products_stay_out_of_others_lists_where_that_is_asked_for() -> None:
    for config in (replace(CONFIG, new_weight=0.0), replace(CONFIG, new_related=0)):
        learned = made(config)
        assert "unknown-mug" not in learned.facts(IDS.index("lamp"))["related"]
        assert "lamp" in learned.facts(IDS.index("unknown-mug"))["related"]


def test_at_most_so_many_new_products_in_a_list_the_nearest_first() -> None:
    related = Related(
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
    items, weights = with_new_products(related, similar, config).of(0)
    assert items.tolist() == [1, 3]
    np.testing.assert_allclose(weights, [2.0, 1.0])
    config = VectorsConfig(new_weight=0.5, new_related=2)
    items, weights = with_new_products(related, similar, config).of(0)
    assert items.tolist() == [1, 3, 2]
    np.testing.assert_allclose(weights, [2.0, 1.0, 0.5])


def test_all_that_is_learned_fits_a_product_on_the_wire() -> None:
    rng = np.random.default_rng(3)
    count = 300
    ids = [f"p{at}" for at in range(count)]
    titles = [f"thing {at % 7} {at}" for at in range(count)]
    interactions = log(*(rng.integers(0, 200, 30).tolist() for _ in range(60)))
    config = VectorsConfig(
        new_related=MAX_RELATED - 1 - 100, behaviour=BehaviourConfig(neighbours=100)
    )
    learned = learn(ids, titles, [""] * count, interactions, config)
    most = 0
    for at, name in enumerate(ids):
        text = encode_vector(learned.vectors[at])
        product = Product(name, learned.space, text, titles[at], **learned.facts(at))
        decoded, vector = decode_product(name, encode_product(product))
        np.testing.assert_allclose(vector, learned.vectors[at], atol=1e-6)
        most = max(most, len(decoded.related or {}))
    assert 100 < most <= MAX_RELATED


def test_a_log_learned_in_parts_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made()
    monkeypatch.setattr("udfs.vectors._ROWS_AT_ONCE", 2)
    monkeypatch.setattr("udfs.vectors._TEXTS_AT_ONCE", 2)
    parts = made()
    np.testing.assert_array_equal(parts.vectors, whole.vectors)
    for at in range(len(IDS)):
        assert parts.facts(at) == whole.facts(at)


def test_the_same_input_gives_the_same_and_another_log_another_space() -> None:
    one, two = made(), made()
    assert one.space == two.space
    np.testing.assert_array_equal(one.vectors, two.vectors)
    assert made(interactions=log([0, 2], [1, 3])).space != one.space
    assert made(replace(CONFIG, seed=1)).space != one.space


def test_a_new_product_leaves_the_space_and_the_others_in_place() -> None:
    before = made()
    after = learn(
        ["fresh", *IDS],
        ["a lamp for desks", *TITLES],
        ["LIGHT", *CATEGORIES],
        LOG._replace(items=LOG.items + 1),
        CONFIG,
    )
    assert after.space == before.space
    known = [0, 1, 2, 3]
    np.testing.assert_allclose(
        after.vectors[1:][known] @ after.vectors[1:][known].T,
        before.vectors[known] @ before.vectors[known].T,
        atol=1e-5,
    )


def test_sessions_are_sequences_where_that_is_asked_for() -> None:
    users = log([0, 2, 1, 3])
    apart = users._replace(sessions=np.array([7, 7, -1, -1]))
    config = replace(CONFIG, sequences=Sequences.SESSION, new_related=0)
    related = made(config, apart).facts(IDS.index("lamp"))["related"]
    assert related.keys() == {"mug"}
    assert made(replace(config, sequences=Sequences.USER), apart).facts(2)["related"].keys() == {
        "mug",
        "cup",
        "bulb",
    }
    # Unnamed sessions end at a pause.
    late = apart._replace(times_ms=apart.times_ms + np.array([0, 0, 0, 3_600_000]))
    assert "bulb" not in made(config, late).facts(IDS.index("cup"))["related"]
    assert "bulb" in made(config, apart).facts(IDS.index("cup"))["related"]


def test_dislikes_teach_nothing() -> None:
    learned = made(interactions=log([0, 2], [0, 2], kind="dislike"))
    assert not learned.vectors[:, -3:].any()
    assert learned.facts(0) == {"related": None}
    assert learned.bought_again is None


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="need an event log"):
        made(VectorsConfig(), None)
    with pytest.raises(ValueError, match="2 titles"):
        learn(IDS, TITLES[:2], CATEGORIES, LOG, CONFIG)
    with pytest.raises(ValueError, match="items must be within"):
        made(interactions=LOG._replace(items=LOG.items + 5))
    for wrong in (
        {"dimensions": 0},
        {"text_neighbours": 0},
        {"session_gap_s": 0.0},
        {"new_weight": -1.0},
        {"new_related": MAX_RELATED},
        {"closeness_exponent": float("nan")},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            VectorsConfig(**wrong)
