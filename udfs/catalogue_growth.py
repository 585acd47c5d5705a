"""Tells whether the catalogue is only just being filled: a list of a part is made again later."""

from __future__ import annotations

from collections import deque
from typing import Final

# Longer than a pause of who fills it.
WINDOW_S: Final = 60.0
SHARE: Final = 0.01


class CatalogueGrowth:
    """Counts products as they are added; times are seconds of any steady clock."""

    def __init__(self) -> None:
        """Start with nothing added."""
        # Seconds and products added in each, the oldest first.
        self._added: deque[tuple[int, int]] = deque()
        self._sum = 0

    def add(self, now_s: float) -> None:
        """Count a product that was not there."""
        second = int(now_s)
        if self._added and self._added[-1][0] == second:
            self._added[-1] = (second, self._added[-1][1] + 1)
        else:
            self._added.append((second, 1))
        self._sum += 1

    def is_growing(self, products: int, now_s: float) -> bool:
        """Tell whether more than ``SHARE`` of the products came within the last ``WINDOW_S``.

        Where there is none yet, all of them are to come.
        """
        while self._added and now_s - self._added[0][0] >= WINDOW_S + 1:
            self._sum -= self._added.popleft()[1]
        return not products or self._sum > SHARE * products
