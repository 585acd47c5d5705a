"""The store in memory keeps the contract; tests/integration has the same for the real one."""

from __future__ import annotations

import pytest

from connectors.recommendation_store import RecommendationList, StoredEvent
from tests.contract.memory_store import InMemoryRecommendationStore
from tests.contract.store_contract import StoreContract


class MemorySubject:
    def __init__(self) -> None:
        self.store = InMemoryRecommendationStore()

    def save_list(self, found: RecommendationList) -> None:
        self.store.save_list(found)

    def save_event(self, user_id: str, event: StoredEvent) -> None:
        self.store.save_event(user_id, event)


class TestInMemoryStore(StoreContract):
    @pytest.fixture
    def subject(self) -> MemorySubject:
        return MemorySubject()
