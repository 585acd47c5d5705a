"""The facts of products as arrays: gathered by slot, whatever came when."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from udfs.facts import NOWHERE, ProductFacts
from udfs.index import SlotTable
from udfs.schemas import Product

names = st.integers(0, 9).map(lambda at: f"p{at}")
products = st.builds(
    Product,
    product_id=names,
    space=st.just(""),
    embedding=st.just(""),
    category=st.sampled_from(["", "a", "b"]),
    related=st.dictionaries(names, st.sampled_from([0.25, 1.0, -2.0]), max_size=10),
    rebuy_days=st.none() | st.sampled_from([0.0, 30.0]),
    rebuy_share=st.sampled_from([0.0, 0.5]),
)


@given(st.lists(st.tuples(products, st.booleans()), max_size=25))
def test_what_is_gathered_is_what_was_put_last(changes: list[tuple[Product, bool]]) -> None:
    slots = SlotTable()
    facts = ProductFacts(slots)
    held: dict[str, Product] = {}
    for product, stays in changes:
        facts.put(product)
        held[product.product_id] = product
        if not stays:
            facts.remove(product.product_id)
            del held[product.product_id]
    everyone = [f"p{at}" for at in range(10)]
    at = np.array([*slots.find(everyone), NOWHERE, 10_000], dtype=np.intp)
    related, weights = facts.related(at)
    days, shares = facts.rebuys(at)
    repeats, has_related = facts.repeats(at), facts.has_related(at)
    categories = facts.categories(at)
    for row, name in enumerate([*everyone, "none", "none"]):
        one: Any = held.get(name, Product(name, "", ""))
        others = dict(one.related or {})
        assert repeats[row] == others.pop(name, 0.0)
        gathered = {
            slots.product_id(slot): weight
            for slot, weight in zip(related[row].tolist(), weights[row].tolist(), strict=True)
            if slot != NOWHERE
        }
        assert gathered == others
        assert has_related[row] == bool(others)
        assert days[row] == (np.inf if one.rebuy_days is None else one.rebuy_days)
        assert shares[row] == one.rebuy_share
        assert (categories[row] == NOWHERE) == (one.category == "")
    for a, one in held.items():
        for b, other in held.items():
            same = categories[everyone.index(a)] == categories[everyone.index(b)]
            assert same == (one.category == other.category)


def test_empty_facts_know_nothing() -> None:
    facts = ProductFacts(SlotTable())
    at = np.array([NOWHERE, 0, 5])
    assert facts.related(at)[0].shape == (3, 0)
    assert facts.rebuys(at)[0].tolist() == [np.inf] * 3
    assert facts.repeats(at).tolist() == [0.0] * 3
    assert not facts.has_related(at).any()
    assert facts.product("p0") == Product("p0", "", "")
