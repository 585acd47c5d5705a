"""What is said of products that users touch and the catalogue does not hold."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from udfs.unresolved import CAPACITY, EVERY_S, SHOWN, UnresolvedItems


@given(st.lists(st.integers(0, 30), max_size=200))
def test_the_most_frequent_are_shown_first(numbers: list[int]) -> None:
    items = UnresolvedItems(0.0)
    items.add(f"p{number}" for number in numbers)
    assert items.report(EVERY_S - 0.1) is None
    found = items.report(EVERY_S)
    counts = sorted(Counter(numbers).values(), reverse=True)[:SHOWN]
    assert [count for _, count in found or []] == counts
    assert len({one for one, _ in found or []}) == len(counts)
    assert items.report(EVERY_S + 1) is None


def test_what_is_counted_is_bounded_and_frequent_ones_stay() -> None:
    items = UnresolvedItems(0.0)
    for number in range(20 * CAPACITY):
        items.add(("often", f"p{number}"))
        assert len(items._counts) <= CAPACITY
    found = items.report(EVERY_S)
    assert found is not None
    assert found[0] == ("often", 20.0 * CAPACITY)
    for turn in range(2, 100):
        items.report(turn * EVERY_S)
    assert items._counts == {}
