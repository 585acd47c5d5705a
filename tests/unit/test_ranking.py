"""The ranking against a plain recomputation of its formula, one user and one product at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.unit.builders import (
    DAY_MS,
    NOW_MS,
    Vectors,
    event,
    naive_query_vector,
    naive_sums,
    naive_weight,
    pending,
    record,
    related_row,
    stored,
    unit_vectors,
)
from udfs import inverted
from udfs import ranking as ranking_module
from udfs.catalogue import Catalogue
from udfs.lexical_index import LexicalIndex
from udfs.product_record import ProductRecord, RelatedRow
from udfs.profile import ProfileConfig
from udfs.ranking import BY_PROFILE, NEW, RankingConfig
from udfs.recommend import RecommendConfig, Touched, recommend
from udfs.schemas import EVENT_TYPES, Event, SavedList

# The sums are float32, and where much cancels out their rounding is enlarged.
TOLERANCE = 2e-4
N = 14
DIMENSIONS = 6
MATRIX = stored(unit_vectors(N, DIMENSIONS, seed=4))
PRODUCTS = {f"p{n}": vector for n, vector in enumerate(MATRIX)}
QUERIES = {"q0": unit_vectors(1, DIMENSIONS, seed=5)[0]}
PROFILE = ProfileConfig()
RELATED = {
    "p0": {"p1": 1.0, "p2": 0.5, "unknown": 3.0},
    "p1": {"p0": 0.7, "p1": 0.4, "p5": 0.2},
    "p3": {"p4": 2.0, "p3": 1.5},
    "p4": {"p4": 0.3},
    "p6": {"p7": -0.5, "p8": 0.9, "p0": 0.1},
}
# As the catalogue holds them.
RELATED = {
    name: {other: float(np.float16(weight)) for other, weight in others.items()}
    for name, others in RELATED.items()
}
TITLES = {"p2": "q0", "p5": "big q0", "p11": "blue lamp q0 with a shade"}
OUT = ("p2", "p9")
REBUYS = {"p0": (2.0, 0.5), "p3": (0.0, 0.875), "p6": (30.0, 0.25)}


def product(name: str, **fields: Any) -> ProductRecord:
    return record(name, PRODUCTS[name], title=TITLES.get(name, "thing"), **fields)


def learned(name: str) -> RelatedRow:
    days, share = REBUYS.get(name, (None, 0.0))
    return related_row(name, related=RELATED.get(name, {}), rebuy_days=days, rebuy_share=share)


def filled(records: Iterable[ProductRecord], **options: Any) -> Catalogue:
    made = Catalogue(**options)
    for one in records:
        made.put(one)
        made.put_related(learned(one.product_id))
    return made


def catalogue(out: Sequence[str] = ()) -> Catalogue:
    records = (product(name, in_stock=name not in out) for name in PRODUCTS)
    return filled(records, encoder=QUERIES.get, encoder_space="s")


def lists(
    users: Sequence[Sequence[Event]], products: Catalogue, config: RecommendConfig
) -> list[SavedList]:
    touched = [
        Touched(f"u{at}", None, [pending(one) for one in events]) for at, events in enumerate(users)
    ]
    (batch,) = recommend(touched, products, config, NOW_MS * 1000)
    return batch.lists


class Contribution(NamedTuple):
    label: str
    """Empty where it can be no reason."""
    amounts: dict[str, float]


def naive_contributions(events: Sequence[Event], config: RankingConfig) -> list[Contribution]:
    """What each newest interaction, each rebuy and the older rest add to each product's score."""
    arrived = sorted(enumerate(events), key=lambda pair: (pair[1].ts, pair[0]), reverse=True)
    newest_ms = arrived[0][1].ts
    arrived = arrived[: 3 * config.recent]
    sums, reference_ms = naive_sums(events, Vectors(PRODUCTS, QUERIES), PROFILE)
    query = naive_query_vector(sums, PROFILE)
    half_lives = (PROFILE.fast_half_life_s * 1000, PROFILE.slow_half_life_s * 1000)
    blend = (PROFILE.fast_share, 1 - PROFILE.fast_share)

    def decay(age_ms: float) -> float:
        return float(sum(b * 2.0 ** (-age_ms / h) for b, h in zip(blend, half_lives, strict=True)))

    found: dict[tuple[bool, str], dict[str, Any]] = {}
    position = 0.0
    for _, one in arrived:
        weight = naive_weight(one, PROFILE)
        item = (one.query if one.type == "search" else one.product_id) or ""
        key = (one.type == "search", item)
        verb = {"search": "searched", "purchase": "bought"}.get(one.type, "viewed")
        if key not in found:
            if position >= config.recent:
                break
            found[key] = {"weight": weight, "position": position, "age": newest_ms - one.ts,
                          "label": f"{verb}:{item}", "bought": one.type == "purchase",
                          "events": []}  # fmt: skip
            position += min(1.0, abs(weight))
        row = found[key]
        if weight * row["weight"] > 0 and abs(weight) > abs(row["weight"]):
            row |= {"weight": weight, "label": f"{verb}:{item}",
                    "bought": row["bought"] or one.type == "purchase"}  # fmt: skip
        row["events"].append((reference_ms - one.ts, weight))
    for row in found.values():
        fade = (1 + row["position"]) ** -config.position_exponent
        row["own"] = row["weight"] * decay(row["age"]) * fade
    largest = max(abs(row["own"]) for row in found.values())

    vector_of = {(False, name): v for name, v in PRODUCTS.items()}
    vector_of |= {(True, name): v for name, v in QUERIES.items()}
    has_vector = {key: row for key, row in found.items() if key in vector_of}
    total = sum(abs(row["own"]) for row in has_vector.values())
    without = sum(
        abs(row["own"]) for key, row in has_vector.items()
        if key[0] or not set(RELATED.get(key[1], {})) - {key[1]}
    )  # fmt: skip
    share = without / total if total else 1.0
    vector_share = config.vector_share + (1 - config.vector_share) * share

    norms = [np.linalg.norm(row) for row in sums]
    scales = [b / n if n > 1e-30 else 0.0 for b, n in zip(blend, norms, strict=True)]
    blended = sum(s * row for s, row in zip(scales, sums, strict=True))
    length = float(np.linalg.norm(blended))
    lexical = LexicalIndex()
    searched = sorted(PRODUCTS.keys() - set(OUT))
    lexical.extend((slot, TITLES.get(name, "thing"), "") for slot, name in enumerate(searched))
    contributions = []
    rest = {name: vector_share * float(query @ v) for name, v in PRODUCTS.items()}
    for (search, item), row in found.items():
        amounts = dict.fromkeys(PRODUCTS, 0.0)
        if not search:
            for other, weight in RELATED.get(item, {}).items():
                if other == item and not row["bought"]:
                    fade = (1 + row["position"]) ** -config.repeat_exponent
                    clipped = min(1.0, max(0.0, row["weight"]))
                    amounts[item] += clipped * decay(row["age"]) * fade * weight
                elif other != item and other in amounts:
                    amounts[other] += row["own"] / largest * weight
        else:
            slots, scores = lexical.matches(item, config.search_matches)
            for slot, score in zip(slots.tolist(), scores.tolist(), strict=True):
                amounts[searched[slot]] += row["own"] / largest * config.lexical_weight * score
        vector = vector_of.get((search, item))
        if vector is not None and length > 1e-30:
            factor = sum(
                weight * s * 2.0 ** (-age / h) / length
                for age, weight in row["events"]
                for s, h in zip(scales, half_lives, strict=True)
            )
            for name, other_vector in PRODUCTS.items():
                amount = vector_share * factor * float(vector @ other_vector)
                amounts[name] += amount
                rest[name] -= amount
        label = row["label"] if row["weight"] > 0 else ""
        contributions.append(Contribution(label, amounts))
    for item, amount in naive_rebuys(events, config).items():
        contributions.append(Contribution(f"bought:{item}", {item: amount}))
    return [*contributions, Contribution("", rest)]


def cancels_out(events: Sequence[Event]) -> bool:
    """Whether a sum, or the blend of the two, is all but zero while its terms are not."""
    sums, _ = naive_sums(events, Vectors(PRODUCTS, QUERIES), PROFILE)
    norms = np.linalg.norm(sums, axis=1)
    if not norms.any():
        return False
    units = sums / np.maximum(norms, 1e-300)[:, None]
    return bool(norms.min() < 0.05 or np.linalg.norm(units.sum(axis=0)) < 0.1)


def naive_rebuys(events: Sequence[Event], config: RankingConfig) -> dict[str, float]:
    """Products that may be shown again, and what their purchases add."""
    newest_ms = max(one.ts for one in events)
    found: dict[str, float] = {}
    for name in {one.product_id or "" for one in events if one.type == "purchase"}:
        of_item = [one for one in events if one.product_id == name]
        if any(one.type in ("dislike", "return") for one in of_item) or not config.rebuy_weight:
            continue
        ages = [(newest_ms - one.ts) / DAY_MS for one in of_item if one.type == "purchase"]
        days, share = REBUYS.get(name, (np.inf, 0.0))
        if min(ages) >= days:
            recency = sum(2.0 ** (-age / config.rebuy_half_life_days) for age in ages)
            found[name] = config.rebuy_weight * share * recency
    return found


def naive_excluded(events: Sequence[Event], config: RankingConfig) -> set[str]:
    kept_out = {
        one.product_id or "" for one in events if one.type in ("purchase", "dislike", "return")
    }
    return kept_out - naive_rebuys(events, config).keys()


drawn = st.tuples(
    st.sampled_from(EVENT_TYPES),
    st.integers(0, N),  # one more than there are products
    st.one_of(st.integers(0, 3_600_000), st.integers(0, 90 * DAY_MS)),
    st.integers(0, 3000),
)


def make(rows: Sequence[tuple[Any, int, int, int]]) -> list[Event]:
    made = []
    for at, (kind, item, age, dwell) in enumerate(rows):
        search = kind == "search"
        made.append(
            event(f"e{at}", kind, None if search else f"p{item}", NOW_MS - age,
                  query="q0" if search else None, dwell_ms=dwell if kind == "scroll" else None)
        )  # fmt: skip
    return made


histories = st.lists(drawn, min_size=1, max_size=14).map(make)
configs = st.builds(
    RankingConfig,
    recent=st.integers(1, 12),
    position_exponent=st.sampled_from([0.0, 1.25]),
    repeat_exponent=st.sampled_from([0.0, 0.8]),
    vector_share=st.sampled_from([0.05, 1.0]),
    rebuy_weight=st.sampled_from([0.0, 1.0]),
    lexical_weight=st.sampled_from([0.0, 1.5]),
    search_matches=st.integers(1, 4),
)


@settings(max_examples=150, phases=[Phase.explicit, Phase.generate])
@given(st.lists(histories, min_size=1, max_size=4), configs, st.integers(1, N))
def test_lists_and_reasons_equal_a_plain_recomputation(
    users: list[list[Event]], config: RankingConfig, k: int
) -> None:
    assert_recomputed(users, catalogue(OUT), config, k)


@settings(max_examples=150, phases=[Phase.explicit, Phase.generate])
@given(st.lists(histories, min_size=1, max_size=4), configs, st.integers(1, N))
def test_lists_from_candidates_equal_the_same_recomputation(
    users: list[list[Event]], config: RankingConfig, k: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(inverted, "EXACT_UP_TO", 0)
        patched.setattr(inverted, "LIST_ROWS", 4)
        patched.setattr(inverted, "_FIRST_LISTS", 1)
        products = catalogue(OUT)
        assert isinstance(products._index, inverted.InvertedIndex)
        products._index._margin = np.inf
        assert_recomputed(users, products, config, k)


def assert_recomputed(
    users: list[list[Event]], products: Catalogue, config: RankingConfig, k: int
) -> None:
    found = lists(users, products, RecommendConfig(k, PROFILE, config))
    by_user = {int(one.user_id[1:]): one for one in found}
    for at, events in enumerate(users):
        contributions = naive_contributions(events, config)
        if cancels_out(events):
            continue  # what is left of the sums is rounding, and so is its direction
        scores = {
            name: sum(one.amounts.get(name, 0.0) for one in contributions) for name in PRODUCTS
        }
        if at not in by_user:
            assert max(map(abs, scores.values())) < 1e-6
            continue
        one = by_user[at]
        shown = PRODUCTS.keys() - set(OUT) - naive_excluded(events, config)
        assert set(one.product_ids) <= shown
        assert len(one.product_ids) == len(set(one.product_ids)) == min(k, len(shown))
        expected = sorted((scores[name] for name in shown), reverse=True)[:k]
        np.testing.assert_allclose(one.scores, expected, atol=TOLERANCE)
        np.testing.assert_allclose(
            one.scores, [scores[name] for name in one.product_ids], atol=TOLERANCE
        )
        assert len(one.reasons) == len(one.product_ids)
        for name, reason in zip(one.product_ids, one.reasons, strict=True):
            amounts = [(c.amounts.get(name, 0.0), c.label) for c in contributions if c.label]
            largest = max((amount for amount, _ in amounts), default=0.0)
            if reason != BY_PROFILE:
                named = max(amount for amount, label in amounts if label == reason)
                assert named == pytest.approx(largest, abs=TOLERANCE)
            else:
                assert largest < TOLERANCE


def test_products_that_only_look_like_a_listed_one_give_no_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    users = [[event("e", product_id=f"p{at % 4}")] for at in range(9)]
    config = RecommendConfig(5)
    expected = [one.reasons for one in lists(users, catalogue(), config)]
    monkeypatch.setattr(ranking_module, "_FILTER_BITS", 1)
    assert [one.reasons for one in lists(users, catalogue(), config)] == expected
    assert expected[3] != expected[2]


def test_what_was_just_touched_leads_where_the_product_says_it_is_touched_again() -> None:
    (one,) = lists([[event(product_id="p3")]], catalogue(), RecommendConfig(3))
    assert one.product_ids[:2] == ["p4", "p3"]
    assert one.reasons[:2] == ["viewed:p3", "viewed:p3"]


@pytest.mark.parametrize("kind", ["dislike", "return"])
def test_what_follows_a_rejected_product_is_pushed_away(kind: Any) -> None:
    config = RecommendConfig(N)
    before = [event("a", product_id="p10", ts=NOW_MS - 1)]
    (one,) = lists([[*before, event("b", kind, "p0")]], catalogue(), config)
    (other,) = lists([[*before, event("b", kind, "p11")]], catalogue(), config)
    assert (
        one.scores[one.product_ids.index("p1")] < other.scores[other.product_ids.index("p1")] - 0.3
    )
    assert "viewed:p0" not in one.reasons


@pytest.mark.parametrize(
    ("name", "age_days", "shown"),
    [("p0", 1.9, False), ("p0", 2.0, True), ("p5", 5000, False), ("p3", 0, True)],
)
def test_a_bought_product_comes_back_only_when_it_says_so(
    name: str, age_days: float, shown: bool
) -> None:
    events = [
        event("a", "purchase", name, NOW_MS - round(age_days * DAY_MS)),
        event("b", "click", "p10"),
    ]
    (one,) = lists([events], catalogue(), RecommendConfig(N))
    assert (name in one.product_ids) == shown
    never = RecommendConfig(N, PROFILE, RankingConfig(rebuy_weight=0))
    (one,) = lists([events], catalogue(), never)
    assert name not in one.product_ids


@settings(max_examples=100)
@given(
    st.lists(histories, min_size=1, max_size=3),
    st.integers(1, N),
    st.integers(0, 3),
    st.sampled_from([0.2, 0.8, 1.0]),
    st.integers(1, 4),
)
def test_a_diverse_list_is_the_best_of_the_candidates_that_are_not_too_many_or_too_alike(
    users: list[list[Event]], k: int, limit: int, cosine: float, candidates: int
) -> None:
    made = catalogue()
    categories = {name: f"c{int(name[1:]) % 3}" for name in PRODUCTS} | {"p13": ""}
    for name in PRODUCTS:
        made.put(product(name, category=categories[name]))
    plain = lists(users, made, RecommendConfig(k * candidates))
    config = RankingConfig(category_limit=limit, duplicate_cosine=cosine, candidates=candidates)
    diverse = lists(users, made, RecommendConfig(k, PROFILE, config))
    for before, after in zip(plain, diverse, strict=True):
        assert len(after.product_ids) == min(k, len(before.product_ids))
        assert (np.diff(after.scores) <= 0).all()
        kept: list[str] = []
        for at, name in enumerate(before.product_ids):
            alike = any(
                float(PRODUCTS[name] @ PRODUCTS[other]) > cosine
                for other in before.product_ids[:at]
            )
            same = sum(categories[other] == categories[name] for other in kept)
            full = bool(limit and categories[name] and same >= limit)
            if not (cosine < 1 and alike) and not full:
                kept.append(name)
        rest = [name for name in before.product_ids if name not in kept]
        assert set(after.product_ids) == set([*kept, *rest][:k])
        by_name = dict(zip(before.product_ids, before.reasons, strict=True))
        assert after.reasons == [by_name[name] for name in after.product_ids]


def with_newcomers(age_days: float, *names: str, at_ms: int = NOW_MS) -> Catalogue:
    """Where some products came later than the others."""
    new_ms = at_ms - round(age_days * DAY_MS)
    records = (product(name, first_seen_ms=new_ms if name in names else 1) for name in PRODUCTS)
    return filled(records, encoder=QUERIES.get, encoder_space="s")


@settings(max_examples=60)
@given(st.lists(histories, min_size=1, max_size=3), st.integers(2, 8), st.integers(1, 3))
def test_new_products_have_their_share_of_every_list(
    users: list[list[Event]], k: int, newcomers: int
) -> None:
    names = [f"p{at}" for at in range(8, 8 + newcomers)]
    made = with_newcomers(1, *names)
    plain = lists(users, made, RecommendConfig(k))
    config = RankingConfig(new_share=0.5)
    found = {one.user_id: one for one in lists(users, made, RecommendConfig(k, PROFILE, config))}
    assert found.keys() == {one.user_id for one in plain}
    for before in plain:
        after = found[before.user_id]
        assert len(after.product_ids) == len(set(after.product_ids)) == len(before.product_ids)
        assert not set(after.excluded) & set(after.product_ids)
        introduced = [
            name for name, reason in zip(after.product_ids, after.reasons, strict=True)
            if reason == NEW
        ]  # fmt: skip
        assert set(introduced) <= set(names) - set(before.product_ids)
        own = set(names) & set(before.product_ids)
        free = set(names) - own - set(after.excluded)
        wanted = max(0, max(1, round(k / 2)) - len(own))
        full = len(before.product_ids) == k
        assert len(introduced) == (min(wanted, len(free)) if full else 0)
        # The others keep their order, and the last ones of them went.
        kept = [name for name in after.product_ids if name not in introduced]
        assert kept == before.product_ids[: len(kept)]


def test_a_product_is_new_for_a_while_and_not_where_all_are() -> None:
    users = [[event(product_id="p0")]]
    config = RecommendConfig(4, PROFILE, RankingConfig(new_share=0.25, new_days=7, vector_share=1))
    (one,) = lists(users, with_newcomers(6.9, "p9"), config)
    assert one.product_ids[2] == "p9"
    assert one.reasons[2] == NEW
    for made in (with_newcomers(7.1, "p9"), with_newcomers(1, *PRODUCTS)):
        (one,) = lists(users, made, config)
        assert NEW not in one.reasons
    gone = with_newcomers(1, "p9", "p10")
    gone.put(product("p9", in_stock=False, first_seen_ms=NOW_MS - DAY_MS))
    (one,) = lists(users, gone, config)
    assert "p9" not in one.product_ids
    assert "p10" in one.product_ids


def test_a_search_finds_what_holds_its_words_also_where_nothing_embeds_it() -> None:
    made = filled(map(product, PRODUCTS))
    search = event(kind="search", product_id=None, query="Q0 " + "é" * 5000)
    long_ago = event("a", product_id="p0", ts=NOW_MS - 5000 * DAY_MS)
    for before in ([], [long_ago]):
        (one,) = lists([[*before, search]], made, RecommendConfig(5))
        assert np.isfinite(one.scores).all()
    (one,) = lists([[search]], made, RecommendConfig(4))
    assert set(one.product_ids[:3]) == TITLES.keys()
    assert one.reasons[:3] == ["searched:Q0 " + "é" * 61] * 3
    assert one.reasons[3] == BY_PROFILE


def test_a_product_out_of_stock_is_found_by_no_search() -> None:
    made = catalogue(OUT)

    def found() -> set[str]:
        return {made.slots.product_id(slot) for slot in made.matches("q0", 10)[0].tolist()}

    assert found() == {"p5", "p11"}
    made.put(product("p2"))
    made.remove("p5")
    assert found() == {"p2", "p11"}


def test_a_click_is_not_pushed_out_of_sight_by_scrolling_past() -> None:
    scrolls = [event(f"s{n}", "scroll", f"p{n % 3 + 10}", NOW_MS + n) for n in range(6)]
    config = RecommendConfig(3, PROFILE, RankingConfig(recent=3))
    (one,) = lists([[event("c", "click", "p0"), *scrolls]], catalogue(), config)
    assert one.product_ids[0] == "p1"
    assert one.reasons[0] == "viewed:p0"


@pytest.mark.parametrize(
    "wrong",
    [
        {"recent": 0},
        {"recent": 101},
        {"vector_share": 0.0},
        {"vector_share": 1.1},
        {"vector_share": float("nan")},
        {"position_exponent": -1.0},
        {"repeat_exponent": float("nan")},
        {"rebuy_weight": -1.0},
        {"related_weight": float("inf")},
        {"rebuy_half_life_days": 0.0},
        {"lexical_weight": -1.0},
        {"search_matches": 0},
        {"new_share": 0.6},
        {"new_share": float("nan")},
        {"new_days": 0.0},
        {"category_limit": -1},
        {"duplicate_cosine": 0.0},
        {"candidates": 0},
    ],
)
def test_constants_without_a_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RankingConfig(**wrong)
