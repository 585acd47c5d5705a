"""The facts of products as arrays: gathered by slot, whatever came when."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.unit.builders import related_row
from udfs import facts as facts_module
from udfs.facts import NOWHERE, ProductFacts
from udfs.index import SlotSnapshot, SlotTable
from udfs.product_record import RelatedRow

NAMES = [f"p{at}" for at in range(10)]
names = st.sampled_from(NAMES)
rows = st.builds(
    related_row,
    product_id=names,
    related=st.dictionaries(names, st.sampled_from([0.25, 1.0, -2.0]), max_size=10),
    rebuy_days=st.none() | st.sampled_from([0.0, 30.0, 1e308]),
    rebuy_share=st.sampled_from([0.0, 0.5]),
)
# Kind, product, category, second of the first sight.
changes = st.lists(
    st.one_of(
        st.tuples(names, st.sampled_from(["", "a", "b", "c"]), st.integers(1, 9)),
        st.lists(rows, max_size=4),
        names,
        names.map(lambda name: ("related", name)),
        st.just("renumber"),
    ),
    max_size=30,
)


def everything(_: NDArray[np.intp]) -> NDArray[np.bool_]:
    return np.ones(len(_), dtype=bool)


def newest(facts: ProductFacts, since_s: int, limit: int = 99, most: int = 100) -> list[int]:
    return list(facts.newest(1000 * since_s, limit, most, everything))


def renumber(slots: SlotTable, facts: ProductFacts, held: set[str]) -> None:
    kept = np.zeros(len(slots), dtype=bool)
    kept[slots.find(name for name in held)] = True
    facts.mark_named(kept)
    facts.renumber(slots.keep(kept))


@settings(max_examples=200)
@given(changes)
def test_what_is_gathered_is_what_was_put_last(
    steps: list[str | tuple[str, ...] | list[RelatedRow]],
) -> None:
    slots = SlotTable()
    facts = ProductFacts(slots)
    held: dict[str, tuple[str, int]] = {}
    learned: dict[str, RelatedRow] = {}
    for step in steps:
        if step == "renumber":
            renumber(slots, facts, set(held))
        elif isinstance(step, str):
            facts.remove(slots.get(step))
            held.pop(step, None)
        elif isinstance(step, list):
            distinct = {row.product_id: row for row in step}
            facts.put_related(list(distinct.values()), SlotSnapshot(slots) if step else None)
            learned |= distinct
        elif step[0] == "related":
            facts.remove_related(slots.get(step[1]))
            learned.pop(step[1], None)
        else:
            name, category, second = step
            facts.put(slots.extend([name]), [category], [1000 * int(second) + 7])
            held[name] = category, int(second)
    at = np.array([*slots.find(NAMES), NOWHERE, 10_000], dtype=np.intp)
    related, weights = facts.related(at)
    days, shares = facts.rebuys(at)
    repeats, has_related = facts.repeats(at), facts.has_related(at)
    categories = facts.categories(at)
    for row, name in enumerate([*NAMES, "none", "none"]):
        one = learned.get(name, related_row(name))
        others = dict(one.related)
        assert repeats[row] == others.pop(name, 0.0)
        gathered = {
            slots.product_id(slot): weight
            for slot, weight in zip(related[row].tolist(), weights[row].tolist(), strict=True)
            if slot != NOWHERE
        }
        assert gathered == others
        assert has_related[row] == bool(others)
        assert days[row] == (np.inf if one.rebuy_days in (None, 1e308) else one.rebuy_days)
        assert shares[row] == one.rebuy_share
        assert (categories[row] == NOWHERE) == (held.get(name, ("", 0))[0] == "")
    for a, (category, _) in held.items():
        for b, (other, _) in held.items():
            same = categories[NAMES.index(a)] == categories[NAMES.index(b)]
            assert same == (category == other)
    for since in range(10):
        found = {slots.product_id(slot): None for slot in newest(facts, since)}
        seconds = [held[name][1] for name in found]
        assert seconds == sorted(seconds, reverse=True)
        assert found.keys() == {name for name, (_, second) in held.items() if second > since}


def test_the_newest_are_found_in_parts_and_not_where_all_are_new() -> None:
    slots = SlotTable()
    facts = ProductFacts(slots)
    facts.put(slots.extend([f"p{at}" for at in range(100)]), [""] * 100, range(1000, 101_000, 1000))
    even = facts.newest(50_000, 5, 50, lambda found: found % 16 == 0)
    assert even.tolist() == [96, 80, 64]
    assert newest(facts, 50, limit=3) == [99, 98, 97]
    assert newest(facts, 50, most=49) == []
    assert newest(facts, -5, limit=1) == newest(facts, 0, limit=1) == [99]
    assert newest(facts, 2**60) == []


def test_a_store_that_is_renumbered_in_parts_keeps_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_module, "_ROWS_AT_ONCE", 3)
    slots = SlotTable()
    facts = ProductFacts(slots)
    facts.put_related([related_row(f"p{at}", related={f"q{at}": 1.0}) for at in range(20)])
    wide = related_row("p3", related={f"q{at}": 1.0 for at in range(9)})
    facts.put_related([wide])
    for at in range(0, 20, 3):
        facts.remove_related(slots.get(f"p{at}"))
    renumber(slots, facts, set())
    assert facts.width == 1
    assert sorted(slots.ids()) == sorted(
        f"{letter}{at}" for at in range(20) if at % 3 for letter in "pq"
    )
    related, _ = facts.related(np.array(slots.find(["p1", "p19"])))
    assert slots.names(related) == [["q1"], ["q19"]]


def test_empty_facts_know_nothing() -> None:
    facts = ProductFacts(SlotTable())
    at = np.array([NOWHERE, 0, 5])
    assert facts.related(at)[0].shape == (3, 0)
    assert facts.rebuys(at)[0].tolist() == [np.inf] * 3
    assert facts.repeats(at).tolist() == [0.0] * 3
    assert not facts.has_related(at).any()
    assert newest(facts, 0) == []
    facts.put_related([])
    facts.put(np.zeros(0, dtype=np.int32), [], [])
    assert facts.category_count == 0
