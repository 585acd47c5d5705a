"""Any sequence of catalogue records: each is taken or refused, and no lookup behind it fails."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.builders import NOW_MS, FloatMatrix, pending, unit
from udfs.catalogue import Catalogue
from udfs.profile import ProfileConfig
from udfs.ranking import RankingConfig
from udfs.recommend import RecommendConfig, Touched, recommend
from udfs.schemas import (
    MAX_RELATED,
    Event,
    Product,
    RejectedError,
    SpaceNotice,
    decode_product,
    decode_space_notice,
    encode_space_notice,
)

TEXT_DIMENSIONS = 3
SPACES = ("t", "t+", "t+learned", "other", "t2")
IDS = ("p0", "p1", "p2", "é", "😀" * 128, " ", "\x00", "None", "-1")
QUERIES = ("mug", "red mug", "漢", "?", "x" * 600)
USERS = ("u0", "u1", "u2")
CONFIGS = (
    RankingConfig(),
    RankingConfig(new_share=0.5, new_days=36_500, category_limit=1, duplicate_cosine=0.5),
)


def encode(query: str) -> FloatMatrix | None:
    if query == "?":
        return None
    return unit([len(query), 1.0, query.count("e") + 1.0])


related = st.one_of(
    st.none(),
    st.dictionaries(st.sampled_from(IDS), st.floats(-1000, 1000), max_size=len(IDS)),
    st.just({f"{'😀' * 100}{at}": 1000.0 for at in range(MAX_RELATED)}),
    st.just({str(at): 1e-300 for at in range(MAX_RELATED + 1)}),
)
products = st.fixed_dictionaries(
    {
        "product_id": st.sampled_from(IDS),
        "space": st.sampled_from(SPACES),
        "embedding": st.integers(1, 5).map(lambda n: [1.0 + n, *range(1, n)]),
        "title": st.sampled_from(("", "Mug", "red mugs", "漢字", "x" * 3000)),
        "category": st.sampled_from(("", "MUG", "é", "c" * 900)),
        "in_stock": st.booleans(),
        "related": related,
        "rebuy_days": st.sampled_from((None, 0, 1e-320, 30, 1e308)),
        "rebuy_share": st.sampled_from((0, 1)),
    }
)
notices = st.builds(
    SpaceNotice,
    st.sampled_from(SPACES),
    st.integers(0, 2),
    st.sampled_from((1, 2, 2**62)),
    st.booleans(),
)
operations = st.one_of(
    products,
    st.tuples(notices, st.sampled_from((0, 1, -5, 2**40))),
    st.sampled_from(IDS),  # a tombstone
    st.just("restore"),
    st.tuples(
        st.sampled_from(USERS),
        st.sampled_from(("click", "purchase", "dislike", "search")),
        st.sampled_from(IDS),
        st.sampled_from(QUERIES),
    ),
)


class Shop:
    """A catalogue with its durable copy, and users who look things up in it."""

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.catalogue = self.made()
        self.state: dict[str, bytes] = {}
        self.packed: dict[str, bytes] = {}
        self.events = 0

    def made(self) -> Catalogue:
        return Catalogue(
            encoder=encode,
            encoder_space="t",
            encoder_dimensions=TEXT_DIMENSIONS,
            switch_share=0.5,
            dimensions=self.dimensions,
        )

    def take(self, operation: Any) -> None:
        if operation == "restore":
            self.catalogue = self.made()
            self.catalogue.load(self.state.items())
        elif isinstance(operation, str):
            self.store(self.catalogue.delete(operation, changed_us=NOW_MS))
        elif isinstance(operation, dict):
            key = operation["product_id"].encode().decode("latin-1")
            try:
                product, vector = decode_product(key, json.dumps(operation).encode())
                self.store(self.catalogue.upsert(product, vector, changed_us=NOW_MS * 1000))
            except RejectedError:
                return
        elif isinstance(operation[0], SpaceNotice):
            notice = decode_space_notice(encode_space_notice(operation[0]))
            self.store(self.catalogue.notice(notice, operation[1]))
        else:
            self.touch(*operation)

    def store(self, changes: list[tuple[str, bytes | None]]) -> None:
        for key, entry in changes:
            if entry is None:
                self.state.pop(key, None)
            else:
                self.state[key] = entry

    def touch(self, user: str, kind: Any, item: str, query: str) -> None:
        self.events += 1
        search = kind == "search"
        event = Event(
            f"e{self.events}",
            user,
            kind,
            NOW_MS + self.events,
            None if search else item,
            query if search else None,
        )
        self.look_up({user: event})

    def look_up(self, events: dict[str, Event]) -> None:
        """A tick of all users, some of whom touched nothing."""
        for ranking in CONFIGS:
            config = RecommendConfig(5, ProfileConfig(interactions=3), ranking)
            users = [
                Touched(
                    user, self.packed.get(user), [pending(events[user])] if user in events else []
                )
                for user in USERS
            ]
            for batch in recommend(users, self.catalogue, config, NOW_MS * 1000):
                for one in batch.lists:
                    assert len(set(one.product_ids)) == len(one.product_ids)
                    assert np.isfinite(one.scores).all()
                    found = [self.catalogue.detail(product_id) for product_id in one.product_ids]
                    assert all(detail is not None and detail.in_stock for detail in found)
        self.packed = {
            user.user_id: user.profile.pack() for user in users if user.profile is not None
        }


WIDE = {"product_id": "p0", "space": "t", "embedding": [1.0, 2.0, 3.0, 4.0, 5.0]}
SEARCH = ("u0", "search", "p0", "mug")


@settings(max_examples=200, deadline=None)
@given(st.lists(operations, max_size=40), st.sampled_from((0, 0, 0, TEXT_DIMENSIONS)))
@example([WIDE, SEARCH, {**WIDE, "embedding": [1.0, 2.0, 3.0]}, SEARCH], 0)
@example([{**WIDE, "space": "t+", "embedding": [1.0, 2.0]}, SEARCH], 0)
@example([{**WIDE, "space": "a"}, "p0", {**WIDE, "space": "a", "embedding": [1.0]}, SEARCH], 0)
def test_no_sequence_of_records_makes_a_lookup_fail(sequence: list[Any], dimensions: int) -> None:
    shop = Shop(dimensions)
    for operation in sequence:
        shop.take(operation)
        shop.look_up({})
    restored = shop.made()
    restored.load(shop.state.items())
    assert restored.space == shop.catalogue.space
    assert len(restored) == len(shop.catalogue)
    assert restored.searchable == shop.catalogue.searchable


def test_a_state_of_a_space_with_another_length_than_its_name_says_is_read() -> None:
    """It was accepted once, and made every search fail; now its products wait for vectors."""
    old = Catalogue(encoder=encode, encoder_space="t")
    state: dict[str, bytes] = {}
    for number in range(3):
        vector = unit([1.0 + number, 2.0, 3.0, 4.0, 5.0])
        for key, value in old.upsert(Product(f"p{number}", "t", []), vector):
            assert value is not None
            state[key] = value
    shop = Shop(0)
    shop.state = state
    shop.take("restore")
    shop.take(SEARCH)
    assert (len(shop.catalogue), shop.catalogue.space) == (3, None)
    shop.take({**WIDE, "embedding": [1.0, 2.0, 3.0]})
    shop.take("p1")
    shop.take(SEARCH)
    assert (len(shop.catalogue), shop.catalogue.searchable) == (2, 1)
    assert set(state) == {"a", "pp0", "pp2"}
