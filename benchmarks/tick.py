"""What a list costs: one tick of many users through the job's own functions, without servers.

Each user has a profile of earlier events and brings some new ones. The products are clustered
random vectors; the related products are random, which scatters the additions as widely as can be.
One thread.

At every size both indexes do the same work in turns: the exact one scores every product, the
inverted lists score the related ones, and the nearest where these could enter the list.
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
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from benchmarks.workload import SPACE, Workload
from udfs.catalogue import Catalogue
from udfs.index import ExactIndex, NearestNeighbours
from udfs.inverted import InvertedIndex
from udfs.product_record import VERSION, ProductRecord, RelatedRow
from udfs.profile import Profile, update_profiles
from udfs.recommend import RecommendConfig, Touched, recommend
from udfs.schemas import Event, EventType, PendingEvent, encode_vector

NOW_MS = 1_732_300_000_000
KINDS: tuple[EventType, ...] = ("click", "click", "click", "scroll", "add_to_cart", "purchase")


def catalogue(products: int, related: int) -> Catalogue:
    """Fill a catalogue; ``related`` is how many each product names."""
    rng = np.random.default_rng(5)
    records = (
        ProductRecord(
            VERSION,
            f"p{at}",
            "",
            f"c{at % 100}",
            None,
            True,
            {SPACE: encode_vector(vector)},
            is_text=False,
            first_seen_ms=NOW_MS,
            updated_us=1000 * NOW_MS,
        )
        for at, vector in enumerate(Workload(products=products).vectors())
    )
    weights = [1 / (1 + place) for place in range(related)]
    rows = (
        RelatedRow(
            VERSION,
            f"p{at}",
            dict(zip(map("p{}".format, rng.integers(0, products, related)), weights, strict=True)),
        )
        for at in range(products)
    )
    made = Catalogue()
    made.load(records, rows, None)
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


def indexes(made: Catalogue) -> dict[str, NearestNeighbours]:
    """Make both indexes of a catalogue's products, the lists at once and one by one."""
    slots = np.arange(len(made), dtype=np.int32)
    vectors = made.vectors(slots)
    found: dict[str, NearestNeighbours] = {}
    for kind, one_by_one in ((ExactIndex, False), (InvertedIndex, False), (InvertedIndex, True)):
        index = kind(made.dimensions, made.slots)
        started = time.process_time()
        slowest = 0.0
        for part in np.array_split(slots, len(slots) if one_by_one else 1):
            began = time.process_time()
            index.extend(part, vectors[part])
            slowest = max(slowest, time.process_time() - began)
        seconds = time.process_time() - started
        name = f"{kind.__name__}{' one by one' if one_by_one else ''}"
        print(f"{name}: {seconds:.1f} s of CPU, the slowest call {slowest * 1e3:.0f} ms")
        found[name] = index
    return found


def measure(
    made: Catalogue,
    contestants: dict[str, NearestNeighbours],
    config: RecommendConfig,
    users: int,
    history: int,
    new: int,
    repeats: int,
) -> dict[str, float]:
    """Median microseconds of CPU a user of a tick, with each index; they take turns."""
    profiles = [Profile() for _ in range(users)]
    old = [events(user, history, NOW_MS - 60_000 * history, len(made)) for user in range(users)]
    update_profiles(profiles, old, made, config.profile)
    packed = [profile.pack() for profile in profiles]
    fresh = [
        [PendingEvent(one, b"") for one in events(user, new, NOW_MS, len(made))]
        for user in range(users)
    ]
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, index in contestants.items():
            made._index = index
            touched = [
                Touched(str(user), state, list(pending))
                for user, (state, pending) in enumerate(zip(packed, fresh, strict=True))
            ]
            started = time.process_time()
            for _batch in recommend(touched, made, config, NOW_MS * 1000):
                pass
            times[name].append(time.process_time() - started)
    return {name: statistics.median(spent) / users * 1e6 for name, spent in times.items()}


def main(arguments: Sequence[str]) -> None:
    """Print microseconds a list at each size, without and with related products, and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--products", default="10000,100000", help="sizes, separated by commas")
    parser.add_argument("--related", type=int, default=50)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--history", type=int, default=20, help="earlier events a user")
    parser.add_argument("--new", type=int, default=5, help="new events a user")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(arguments)
    config = RecommendConfig()
    alone = replace(config, ranking=replace(config.ranking, related_weight=0.0))
    rows = []
    for products in map(int, given.products.split(",")):
        made = catalogue(products, given.related)
        contestants = indexes(made)
        for name, chosen in (("vector alone", alone), ("related", config)):
            found = measure(
                made, contestants, chosen, given.users, given.history, given.new, given.repeats
            )
            rounded = {one: round(us, 1) for one, us in found.items()}
            rows.append({"products": products, "ranking": name, "us_per_list": rounded})
            shown = "".join(f"{us:>9.1f} us {one}" for one, us in found.items())
            print(f"{products:>10,} products, {name:<14}{shown}", flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
