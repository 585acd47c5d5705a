"""Any records of `products` and `related`: each is taken or refused, and no lookup fails."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.builders import NOW_MS, FloatMatrix, pending, record_vectors, unit, wire_key
from udfs.catalogue import Catalogue
from udfs.product_record import (
    ProductRecord,
    RelatedRow,
    SpaceSwitch,
    decode_record,
    decode_related,
    decode_switch,
)
from udfs.profile import ProfileConfig
from udfs.ranking import RankingConfig
from udfs.recommend import RecommendConfig, Touched, recommend
from udfs.schemas import MAX_RELATED, Event, RejectedError

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


def wire_vector(*numbers: float) -> str:
    return base64.b64encode(np.array(numbers, dtype="<f4").tobytes()).decode()


related = st.one_of(
    st.dictionaries(st.sampled_from(IDS), st.floats(-1000, 1000), max_size=len(IDS)),
    st.just({f"{'😀' * 100}{at}": 1000.0 for at in range(MAX_RELATED)}),
    st.just({str(at): 1e-300 for at in range(MAX_RELATED + 1)}),
    st.just({"p0": 1001}),
)
vectors = st.one_of(
    st.integers(1, 5).map(lambda n: wire_vector(*unit([1.0 + n, *range(1, n)]))),
    st.sampled_from(("", "?", "AAAA", wire_vector(0, 0), wire_vector(np.nan), wire_vector(1e9))),
)
products = st.fixed_dictionaries(
    {
        "version": st.sampled_from((1, 1, 1, 2)),
        "product_id": st.sampled_from(IDS),
        "title": st.sampled_from(("", "Mug", "red mugs", "漢字", "x" * 3000)),
        "category": st.sampled_from(("", "MUG", "é", "c" * 900)),
        "price": st.none() | st.floats(0, 1e9),
        "in_stock": st.booleans(),
        "vectors": st.dictionaries(st.sampled_from(SPACES), vectors, max_size=3),
        "is_text": st.booleans(),
        "first_seen_ms": st.sampled_from((0, 1, NOW_MS, 2**62, -(2**62))),
        "updated_us": st.just(0),
    }
)
rows = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "product_id": st.sampled_from(IDS),
        "related": related,
        "rebuy_days": st.sampled_from((None, 0, 1e-320, 30, 1e308)),
        "rebuy_share": st.sampled_from((0, 1)),
    }
)
switches = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "space": st.sampled_from(SPACES),
        "started_ms": st.integers(0, 2),
        "force": st.booleans(),
    }
)
operations = st.one_of(
    products,
    products,
    rows,
    switches,
    st.tuples(st.sampled_from(("products", "related")), st.sampled_from(IDS)),  # a tombstone
    st.just("restore"),
    st.tuples(
        st.sampled_from(USERS),
        st.sampled_from(("click", "purchase", "dislike", "search")),
        st.sampled_from(IDS),
        st.sampled_from(QUERIES),
    ),
)


class Shop:
    """A catalogue with the topics that it can be read from, and users who look things up in it."""

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.catalogue = self.made()
        self.products: dict[str, ProductRecord] = {}
        self.related: dict[str, RelatedRow] = {}
        self.switch: SpaceSwitch | None = None
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

    def loaded(self) -> Catalogue:
        again = self.made()
        again.load(self.products.values(), self.related.values(), self.switch)
        return again

    def take(self, operation: Any) -> None:
        if operation == "restore":
            self.catalogue = self.loaded()
        elif isinstance(operation, dict):
            try:
                self.read(operation, json.dumps(operation).encode())
            except RejectedError:
                return
        elif operation[0] == "products":
            self.catalogue.remove(operation[1])
            self.products.pop(operation[1], None)
        elif operation[0] == "related":
            self.catalogue.remove_related(operation[1])
            self.related.pop(operation[1], None)
        else:
            self.touch(*operation)

    def read(self, operation: dict[str, Any], payload: bytes) -> None:
        if "space" in operation:
            switch = decode_switch(payload)
            self.catalogue.switch(switch)
            if self.switch is None or switch.started_ms >= self.switch.started_ms:
                self.switch = switch
        elif "related" in operation:
            row = decode_related(wire_key(operation["product_id"]), payload)
            self.catalogue.put_related(row)
            self.related[row.product_id] = row
        else:
            record = decode_record(wire_key(operation["product_id"]), payload)
            self.catalogue.put(record)
            self.products.pop(record.product_id, None)
            self.products[record.product_id] = record

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
                    assert all(self.products[name].in_stock for name in one.product_ids)
        self.packed = {
            user.user_id: user.profile.pack() for user in users if user.profile is not None
        }


SEARCH = ("u0", "search", "p0", "mug")


@settings(max_examples=200, deadline=None)
@given(st.lists(operations, max_size=40), st.sampled_from((0, 0, 0, TEXT_DIMENSIONS)))
@example([{"version": 1, "space": "t", "started_ms": 0, "force": True}, SEARCH], 0)
def test_no_sequence_of_records_makes_a_lookup_fail(sequence: list[Any], dimensions: int) -> None:
    shop = Shop(dimensions)
    for operation in sequence:
        shop.take(operation)
        shop.look_up({})
    restored = shop.loaded()
    assert len(restored) == len(shop.catalogue) == len(shop.products)
    for catalogue in (restored, shop.catalogue):
        fitting = sum(
            len(record_vectors(one).get(catalogue.space or "", ())) == catalogue.dimensions > 0
            for one in shop.products.values()
            if one.in_stock
        )
        # One by one, a vector can have come when its space had another length.
        assert catalogue.searchable <= fitting
        assert catalogue is not restored or catalogue.searchable == fitting
