"""The demo catalogue and the demo shop."""

from __future__ import annotations

import base64
from collections import Counter
from itertools import islice, pairwise

import msgspec
import numpy as np

from local import demo_catalogue
from local.demo_shop import Shop
from udfs import schemas


def test_the_catalogue_is_the_same_at_every_call() -> None:
    assert demo_catalogue.products() == demo_catalogue.products()


def test_the_catalogue_has_2000_different_products_in_40_categories() -> None:
    made = demo_catalogue.products()

    assert len({product.product_id for product in made}) == 2_000
    assert len({product.title for product in made}) > 1_990
    assert len({product.category for product in made}) == 40
    assert all(product.price > 0 for product in made)
    assert any(not product.in_stock for product in made)


def test_a_published_product_has_a_unit_vector_of_64_dimensions() -> None:
    key, value = demo_catalogue.messages()[0]
    product = msgspec.json.decode(value, type=schemas.Product)

    assert product.product_id == key
    assert product.space == "text64-v1"
    assert isinstance(product.embedding, str)
    vector = np.frombuffer(base64.b64decode(product.embedding), "<f4")
    assert vector.shape == (64,)
    assert abs(float(np.linalg.norm(vector)) - 1) < 1e-4


def test_every_event_of_the_shop_is_valid_and_names_a_known_product() -> None:
    known = set(demo_catalogue.titles())
    now = 1_732_300_000_000
    shop = Shop(seed=3)

    kinds: Counter[str] = Counter()
    for _ in range(3_000):
        made = shop.event(now)
        event = schemas.decode_event(str(made["user_id"]), msgspec.json.encode(made), now)
        kinds[event.type] += 1
        assert event.product_id in known or (event.type == "search" and event.query)

    assert set(kinds) == set(schemas.EVENT_TYPES) - {"return"}
    assert kinds["click"] > kinds["search"] > kinds["purchase"] > kinds["dislike"] > 0


def test_users_stay_in_a_category_for_a_while() -> None:
    steps: dict[str, list[str]] = {}
    for event in islice(Shop(seed=5).events(), 5_000):
        if event["type"] == "click":
            category = str(event["product_id"]).rsplit("-", 1)[0]
            steps.setdefault(str(event["user_id"]), []).append(category)

    pairs = [pair for visited in steps.values() for pair in pairwise(visited)]
    stayed = sum(before == after for before, after in pairs) / len(pairs)

    assert 0.7 < stayed < 0.99
