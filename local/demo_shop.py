"""The demo shop: made-up users who browse, search, buy and dislike, at a given rate.

python -m local.demo_shop --bootstrap localhost:9092 --rate 50
"""

from __future__ import annotations

import argparse
import random
import signal
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from types import FrameType

from connectors.event_client import EventClient, make_event
from local.demo_catalogue import DemoProduct, products

USERS = 500
_EVENT_TYPES = ("click", "scroll", "search", "add_to_cart", "purchase", "dislike")
_EVENT_WEIGHTS = tuple(accumulate((52, 24, 12, 7, 3, 2)))
_SWITCH = 0.06  # chance, at each event, to turn to another category
_NEW_SESSION = 0.02


def user_id(number: int) -> str:
    """Return the id of a demo user, counted from 0."""
    return f"user-{number:04d}"


@dataclass
class Visitor:
    """One user: what they look at now, and what is in their cart."""

    user_id: str
    favourites: tuple[str, ...]
    category: str
    session: int = 1
    cart: list[str] = field(default_factory=list)


class Shop:
    """A source of events; the same seed gives the same behaviour (ids and times are new)."""

    def __init__(self, seed: int = 11, users: int = USERS) -> None:
        self._rng = random.Random(seed)
        self._shelves: dict[str, list[DemoProduct]] = defaultdict(list)
        for product in products():
            self._shelves[product.category].append(product)
        categories = sorted(self._shelves)
        self.visitors = []
        for number in range(users):
            favourites = tuple(self._rng.sample(categories, 3))
            self.visitors.append(Visitor(user_id(number), favourites, favourites[0]))
        # Some come often, most seldom.
        self._activity = list(accumulate(1 / (rank + 10) ** 0.8 for rank in range(users)))

    def event(self, now_ms: int) -> dict[str, object]:
        """What one of the users does now."""
        rng = self._rng
        visitor = rng.choices(self.visitors, cum_weights=self._activity)[0]
        if rng.random() < _NEW_SESSION:
            visitor.session += 1
        if rng.random() < _SWITCH:
            elsewhere = rng.random() < 0.2
            visitor.category = rng.choice(
                sorted(self._shelves) if elsewhere else visitor.favourites
            )
        kind = rng.choices(_EVENT_TYPES, cum_weights=_EVENT_WEIGHTS)[0]
        shelf = self._shelves[visitor.category]
        # The first products of a shelf are the popular ones.
        product = shelf[min(int(rng.expovariate(1 / 12)), len(shelf) - 1)]
        event: dict[str, object] = {
            "event_id": str(uuid.uuid4()),
            "user_id": visitor.user_id,
            "type": kind,
            "ts": now_ms,
            "session_id": f"{visitor.user_id}-{visitor.session}",
        }
        if kind == "search":
            # Without brand and model: what people type.
            event["query"] = " ".join(product.title.split()[1:-1]).lower()
            return event
        event["product_id"] = product.product_id
        if kind == "scroll":
            event["dwell_ms"] = int(rng.lognormvariate(8, 0.8))
        elif kind == "add_to_cart":
            visitor.cart.append(product.product_id)
        elif kind == "purchase":
            if visitor.cart:
                event["product_id"] = visitor.cart.pop()
            event["quantity"] = 1 if rng.random() < 0.9 else 2
        return event

    def events(self) -> Iterator[dict[str, object]]:
        """Events for ever, each at the time it is asked for."""
        while True:
            yield self.event(time.time_ns() // 1_000_000)


def run(bootstrap: str, rate: float, topic: str = "events", limit: int | None = None) -> int:
    """Send events at a steady rate until SIGTERM (or `limit`); returns how many were sent."""
    running = True

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    sent = 0
    begin = time.monotonic()
    with EventClient(bootstrap, topic, flush_timeout_s=20) as client:
        for event in Shop(seed=time.time_ns()).events():
            if not running or (limit is not None and sent >= limit):
                break
            if not client.offer(make_event(event, time.time_ns() // 1_000_000)):
                # The broker is away, and the buffer holds what was not yet sent.
                time.sleep(0.5)
                continue
            sent += 1
            ahead = begin + sent / rate - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
            elif ahead < -5:  # after an outage: no burst to catch up
                begin = time.monotonic() - sent / rate
    return sent


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(prog="python -m local.demo_shop", description=__doc__)
    parser.add_argument("--bootstrap", default="127.0.0.1:9092")
    parser.add_argument("--rate", type=float, default=50.0, help="events a second")
    parser.add_argument("--topic", default="events")
    parser.add_argument("--limit", type=int, default=None, help="stop after so many events")
    given = parser.parse_args()
    print(run(given.bootstrap, given.rate, given.topic, given.limit), "events sent")


if __name__ == "__main__":
    main()
