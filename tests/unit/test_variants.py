"""Variants: who gets which, for good, and lists that are made with their constants."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.builders import NOW_MS, event, pending, record, related_row, unit_vectors
from udfs.catalogue import Catalogue
from udfs.ranking import RankingConfig
from udfs.recommend import RecommendConfig, Touched, recommend
from udfs.variants import Experiment, Variant

PLAIN = RankingConfig()


def experiment(*shares: float, name: str = "x") -> Experiment:
    variants = tuple(Variant(f"v{at}", share, PLAIN) for at, share in enumerate(shares))
    return Experiment(name, variants)


def test_users_are_divided_by_the_shares() -> None:
    chosen = experiment(1, 3)
    counts = [0, 0]
    for user in range(20_000):
        counts[chosen.variant_of(f"user-{user}")] += 1
    # Ten standard deviations of a binomial count.
    assert abs(counts[0] - 5000) < 10 * (20_000 * 0.25 * 0.75) ** 0.5


def test_an_assignment_is_known_for_good() -> None:
    """Other code, or another version of this, must find the same: do not change these."""
    chosen = experiment(1, 2, name="list-length")
    users = [*(f"u{at}" for at in range(1, 13)), "é", ""]
    assert [chosen.variant_of(user) for user in users] == [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1]


@given(st.text(max_size=40), st.lists(st.floats(0.01, 100), min_size=1, max_size=5))
def test_every_user_has_one_whatever_the_unit_of_the_shares(user: str, shares: list[float]) -> None:
    place = experiment(*shares).variant_of(user)
    assert 0 <= place < len(shares)
    assert experiment(*(4 * share for share in shares)).variant_of(user) == place


def test_another_experiment_divides_the_users_anew() -> None:
    one, other = experiment(1, 1), experiment(1, 1, name="y")
    users = [f"u{at}" for at in range(2000)]
    same = sum(one.variant_of(user) == other.variant_of(user) for user in users)
    assert abs(same - 1000) < 250


def test_variants_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="of one name"):
        Experiment("x", (Variant("a", 1, PLAIN), Variant("a", 2, PLAIN)))
    for share in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="share"):
            Variant("a", share, PLAIN)
    for name in ("", "x" * 65, "a\nb"):
        with pytest.raises(ValueError, match="name"):
            Variant(name, 1, PLAIN)
    with pytest.raises(ValueError, match="no variants"):
        Experiment().variant_of("u")


def test_lists_are_made_with_the_constants_of_their_users_variant() -> None:
    catalogue = Catalogue()
    for at, vector in enumerate(unit_vectors(8, 4)):
        catalogue.put(record(f"p{at}", vector))
    catalogue.put_related(related_row("p0", related={"p7": 5.0}))
    without = RankingConfig(related_weight=0)
    compared = Experiment("x", (Variant("with", 1, PLAIN), Variant("without", 1, without)))

    def lists(config: RecommendConfig) -> dict[str, list[str]]:
        touched = [
            Touched(f"u{at}", None, [pending(event(f"e{at}", product_id="p0", user_id=f"u{at}"))])
            for at in range(40)
        ]
        (batch,) = recommend(touched, catalogue, config, NOW_MS * 1000)
        assert list(batch.variants) == ([f"u{at}" for at in range(40)] if config.experiment.variants
                                        else [])  # fmt: skip
        for one in batch.lists:
            assert one.variant == batch.variants.get(one.user_id, "")
        return {one.user_id: one.product_ids for one in batch.lists}

    mixed = lists(RecommendConfig(3, experiment=compared))
    of_each = [lists(RecommendConfig(3, ranking=ranking)) for ranking in (PLAIN, without)]
    assert of_each[0]["u0"] != of_each[1]["u0"]
    assert len(mixed) == 40
    seen = set()
    for user, product_ids in mixed.items():
        place = compared.variant_of(user)
        assert product_ids == of_each[place][user]
        seen.add(place)
    assert seen == {0, 1}
