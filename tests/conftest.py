"""What all tests share: the mark of the integration tests follows from their folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says nothing of the code where the machine is busy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_INTEGRATION = Path(__file__).parent / "integration"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _INTEGRATION in item.path.parents:
            item.add_marker(pytest.mark.integration)
            if item.get_closest_marker("timeout") is None:
                # The first one starts three servers.
                item.add_marker(pytest.mark.timeout(300))
