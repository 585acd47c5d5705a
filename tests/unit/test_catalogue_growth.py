"""Whether the catalogue is only just being filled."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from udfs.catalogue_growth import SHARE, WINDOW_S, CatalogueGrowth


def test_an_empty_catalogue_is_about_to_be_filled() -> None:
    assert CatalogueGrowth().is_growing(0, 1.0)
    assert not CatalogueGrowth().is_growing(1, 1.0)


def test_a_pause_does_not_end_the_growth() -> None:
    growth = CatalogueGrowth()
    growth.add(0.0)
    assert growth.is_growing(1, 45.0)


def test_a_catalogue_grows_while_much_of_it_is_new() -> None:
    growth = CatalogueGrowth()
    for at in range(100):
        growth.add(at / 10)
    assert growth.is_growing(100, 10.0)
    assert growth.is_growing(9_999, 10.0)
    assert not growth.is_growing(10_000, 10.0)
    assert not growth.is_growing(100, 10.0 + WINDOW_S + 1)


@given(st.lists(st.floats(0, 100), max_size=50), st.integers(1, 3000), st.floats(0, 200))
def test_only_the_last_seconds_count(times: list[float], products: int, later_s: float) -> None:
    growth = CatalogueGrowth()
    for at in sorted(times):
        growth.add(at)
    now = max(times, default=0.0) + later_s
    # Times are kept as whole seconds.
    least = sum(now - at < WINDOW_S for at in times)
    most = sum(now - at < WINDOW_S + 2 for at in times)
    assert least > SHARE * products or not growth.is_growing(products, now) or most > least
    if least > SHARE * products:
        assert growth.is_growing(products, now)
    if most <= SHARE * products:
        assert not growth.is_growing(products, now)
