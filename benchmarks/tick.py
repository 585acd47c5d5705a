"""What a list costs: one tick of many users through the job's own functions, without servers.

Each user has a profile of earlier events and brings some new ones. The products are clustered
random vectors; the related products are random, which scatters the additions as widely as can be.
One thread.
"""

from __future__ import annotations

import os

# Before NumPy loads its thread pool.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace

import numpy as np

from benchmarks.workload import SPACE, Workload
from udfs.catalogue import Catalogue
from udfs.profile import Profile, update_profiles
from udfs.recommend import RecommendConfig, Touched, recommend
from udfs.schemas import Event, EventType, PendingEvent, Product

NOW_MS = 1_732_300_000_000
KINDS: tuple[EventType, ...] = ("click", "click", "click", "scroll", "add_to_cart", "purchase")


def catalogue(products: int, related: int) -> Catalogue:
    """Fill a catalogue; ``related`` is how many each product names."""
    rng = np.random.default_rng(5)
    made = Catalogue()
    for at, vector in enumerate(Workload(products=products).vectors()):
        others = rng.integers(0, products, related).tolist()
        weights = {f"p{other}": 1 / (1 + place) for place, other in enumerate(others)}
        product = Product(f"p{at}", SPACE, "", category=f"c{at % 100}", related=weights or None)
        made.upsert(product, vector)
    return made


def events(user: int, count: int, start_ms: int, products: int) -> list[Event]:
    """Make a user's events, one a minute."""
    rng = np.random.default_rng((user, start_ms))
    return [
        Event(
            f"{user}-{start_ms}-{at}",
            str(user),
            KINDS[int(rng.integers(len(KINDS)))],
            start_ms + 60_000 * at,
            f"p{int(rng.integers(products))}",
        )
        for at in range(count)
    ]


def measure(
    made: Catalogue, config: RecommendConfig, users: int, history: int, new: int, repeats: int
) -> float:
    """Median microseconds a user of a tick."""
    profiles = [Profile() for _ in range(users)]
    old = [events(user, history, NOW_MS - 60_000 * history, len(made)) for user in range(users)]
    update_profiles(profiles, old, made, config.profile)
    packed = [profile.pack() for profile in profiles]
    fresh = [
        [PendingEvent(one, b"") for one in events(user, new, NOW_MS, len(made))]
        for user in range(users)
    ]
    times = []
    for _ in range(repeats):
        touched = [
            Touched(str(user), state, list(pending))
            for user, (state, pending) in enumerate(zip(packed, fresh, strict=True))
        ]
        started = time.perf_counter()
        for _batch in recommend(touched, made, config, NOW_MS * 1000):
            pass
        times.append(time.perf_counter() - started)
    return statistics.median(times) / users * 1e6


def main(arguments: list[str]) -> None:
    """Print microseconds a list without and with related products, and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--products", type=int, default=10_000)
    parser.add_argument("--related", type=int, default=50)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--history", type=int, default=20, help="earlier events a user")
    parser.add_argument("--new", type=int, default=5, help="new events a user")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(arguments)
    config = RecommendConfig()
    found = {}
    for name, related, chosen in (
        ("vector alone", 0, config),
        (
            "related, not used",
            given.related,
            replace(config, ranking=replace(config.ranking, related_weight=0.0)),
        ),
        ("related", given.related, config),
    ):
        made = catalogue(given.products, related)
        micros = measure(made, chosen, given.users, given.history, given.new, given.repeats)
        found[name] = round(micros, 1)
        print(f"{name:<20}{micros:>8.1f} us a list", flush=True)
    print(json.dumps({"products": given.products, "us_per_list": found}))


if __name__ == "__main__":
    main(sys.argv[1:])
