"""The store in memory keeps the contract; tests/integration has the same for the real one."""

from __future__ import annotations

import pytest

from connectors.product_rows import ProductRow
from connectors.recommendation_store import RecommendationList, StoredEvent, TrendingList
from tests.contract.memory_store import InMemoryRecommendationStore
from tests.contract.store_contract import StoreContract
from udfs.schemas import SavedProductList


class MemorySubject:
    def __init__(self) -> None:
        self.store = InMemoryRecommendationStore()

    def save_list(self, found: RecommendationList) -> None:
        self.store.save_list(found)

    def save_event(self, user_id: str, event: StoredEvent) -> None:
        self.store.save_event(user_id, event)

    def save_old_event(self, user_id: str, event: StoredEvent) -> None:
        self.store.save_old_event(user_id, event)

    def save_product(self, old: ProductRow | None, new: ProductRow | None) -> None:
        self.store.save_product(old, new)

    def save_trending(self, scope: str, found: TrendingList) -> None:
        self.store.save_trending(scope, found)

    def save_lists_of_product(self, saved: SavedProductList) -> None:
        self.store.save_lists_of_product(saved)

    def finish_erasure(self, user_id: str, done_for: int, done_at: int) -> None:
        self.store.finish_erasure(user_id, done_for, done_at)


class TestInMemoryStore(StoreContract):
    @pytest.fixture
    def subject(self) -> MemorySubject:
        return MemorySubject()
