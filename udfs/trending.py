"""Trending products: counts of events that decay with age, kept by forward decay.

Forward decay (Cormode, Shkapenyuk, Srivastava and Xu, "Forward Decay", ICDE 2009) measures an
event's age from a landmark L before it: with the half-life h the sum over a product's events

    S = sum_i w_i · 2 ** ((t_i - L) / h)

never changes as time goes by, so the order of the products changes only where events arrive, an
event that comes late is counted right, and no window has to be closed. Read at time T the decayed
count is S · 2 ** (-(T - L) / h). The landmark is the start of an epoch of ``EPOCH_HALF_LIVES``;
so that a new epoch does not begin empty, what happens in the last ``CARRY_HALF_LIVES`` of an epoch
is counted in the next one too, relative to its landmark. What is older weighs less than
2 ** -``CARRY_HALF_LIVES`` there, and is left out.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from udfs.profile import ProfileConfig

# Sums reach 2 ** 64 times the events: far inside a double.
EPOCH_HALF_LIVES: Final = 64
CARRY_HALF_LIVES: Final = 10
# An epoch's rows are dropped when nothing changed them for so long: it is over by then.
STATE_HALF_LIVES: Final = EPOCH_HALF_LIVES + 2 * CARRY_HALF_LIVES
MS_AN_HOUR: Final = 3_600_000
# A year; longer than a Kafka topic is kept.
MAX_HALF_LIFE_HOURS: Final = 24 * 365
MAX_LENGTH: Final = 500
# A day: what is remembered of each event is in every checkpoint.
MAX_DUPLICATE_S: Final = 86_400

Items = list[tuple[str, float]]


@dataclass(frozen=True)
class TrendingConfig:
    """Constants of the trending lists; every one is an option of the job."""

    half_life_hours: float = 6.0
    """Half-life of an event's weight, hours of event time; 0: no such lists are made."""
    length: int = 50
    """Products a list."""
    duplicate_s: float = 30.0
    """For how long an event that comes again is known and not counted, seconds; 0: it counts."""

    def __post_init__(self) -> None:
        """Refuse constants without a meaning."""
        shortest = 1 / MS_AN_HOUR
        hours = self.half_life_hours
        if hours != 0 and not shortest <= hours <= MAX_HALF_LIFE_HOURS:
            msg = (
                f"trending_half_life_hours must be 0 or at most {MAX_HALF_LIFE_HOURS}, not {hours}"
            )
            raise ValueError(msg)
        if not 1 <= self.length <= MAX_LENGTH:
            msg = f"trending_length must be within 1 and {MAX_LENGTH}, not {self.length}"
            raise ValueError(msg)
        if not 0 <= self.duplicate_s <= MAX_DUPLICATE_S:
            msg = f"trending_duplicate_s must be within 0 and {MAX_DUPLICATE_S}"
            raise ValueError(msg)

    @property
    def enabled(self) -> bool:
        """Whether the lists are made."""
        return self.half_life_hours > 0

    @property
    def half_life_ms(self) -> int:
        """Half-life, whole milliseconds."""
        return round(self.half_life_hours * MS_AN_HOUR)

    @property
    def epoch_ms(self) -> int:
        """Length of an epoch, milliseconds."""
        return EPOCH_HALF_LIVES * self.half_life_ms

    def epoch_of(self, ts_ms: int) -> int:
        """Return the epoch in which a time lies."""
        return ts_ms // self.epoch_ms

    def decay(self, epoch: int, now_ms: int) -> float:
        """Return what an epoch's sums are multiplied with to be decayed counts at ``now_ms``."""
        return math.exp2((epoch * self.epoch_ms - now_ms) / self.half_life_ms)


def event_weights(profile: ProfileConfig) -> dict[str, float]:
    """Return the weight of each event type that speaks for a product: the profile's, if positive.

    A search names no product, and what pushes away is no interest to be counted.
    """
    return {name: w for name, w in profile.weights.items() if name != "search" and w > 0}


def parse_items(text: str) -> Items:
    """Read a list as the job's SQL writes it: ``score base64(product_id)``, joined by commas.

    Returns:
        (product_id, score), best first; equal scores by product id.
    """
    found = []
    for item in text.split(","):
        score, _, name = item.partition(" ")
        found.append((base64.b64decode(name).decode(), float(score)))
    return sorted(found, key=lambda item: (-item[1], item[0]))


def scaled(items: Iterable[tuple[str, float]], factor: float) -> Items:
    """Multiply the scores."""
    return [(product_id, score * factor) for product_id, score in items]


def current(lists: Mapping[int, str], epoch: int) -> int | None:
    """Return which epoch's list is shown in ``epoch``: the newest that has begun; None: none.

    A scope that saw nothing since before the carry keeps the list of an older epoch: its order is
    still right.
    """
    return max((one for one in lists if one <= epoch), default=None)
