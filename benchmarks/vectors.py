"""What related products find, for all products and for new ones, beside the texts' vectors alone.

A log is split at a time. What is before it is learned from, but for the events of some products
drawn at random, which are then new: they have a text, and nobody has touched them. The sessions
that begin later are replayed through the job's own functions, and each next product is looked for
in the list made before it: full ranking, no sampled negatives. Two ways to rank: as the job does,
and by the vectors alone.
"""

from __future__ import annotations

import os

# Before NumPy loads its thread pool.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from connectors.jsonl import BadLines, read_catalogue, read_events
from udfs.catalogue import Catalogue
from udfs.product_record import VERSION, ProductRecord
from udfs.query_encoder import SPACE, encode_products
from udfs.ranking import RankingConfig
from udfs.recommend import USERS_PER_BATCH, RecommendConfig, Touched, recommend
from udfs.schemas import EVENT_TYPES, Event, PendingEvent, encode_vector
from udfs.vectors import Interactions, VectorsConfig, learn

K = 20
VARIANTS = {
    "new ones among no others": VectorsConfig(new_weight=0),
    "new ones related": VectorsConfig(),
    "new ones related half": VectorsConfig(new_weight=0.5),
}
RANKINGS = {
    "job": RankingConfig(),
    "vectors alone": RankingConfig(related_weight=0),
}


@dataclass(frozen=True)
class Data:
    """A catalogue, what is learned from, and the sessions to replay."""

    product_ids: list[str]
    titles: list[str]
    categories: list[str]
    interactions: Interactions
    sessions: list[list[Event]]


def read(catalogue: Path, log: Path, split_ms: int, every: int) -> Data:
    """Read the files; of the sessions after the split, take one in ``every``."""
    lines = [line for _, line in read_catalogue(catalogue, BadLines())]
    number_of = {line.product_id: at for at, line in enumerate(lines)}
    users: dict[str, int] = {}
    names: dict[str, int] = {}
    rows: list[tuple[int, ...]] = []
    sessions: dict[str, list[Event]] = {}
    for _, event in sorted(read_events(log, BadLines()), key=lambda row: row[1].ts):
        item = number_of.get(event.product_id or "")
        if item is None:
            continue
        session = event.session_id or f"{event.user_id} {event.ts // 86_400_000}"
        if event.ts >= split_ms:
            if session not in names:
                sessions.setdefault(session, []).append(event)
            continue
        user = users.setdefault(event.user_id, len(users))
        number = names.setdefault(session, len(names))
        rows.append((user, item, event.ts, EVENT_TYPES.index(event.type), number))
    return Data(
        [line.product_id for line in lines],
        [line.title for line in lines],
        [line.category for line in lines],
        Interactions(*np.array(rows, dtype=np.int64).reshape(-1, 5).T),
        [made for made in list(sessions.values())[::every] if len(made) > 1],
    )


def without(interactions: Interactions, items: NDArray[np.bool_]) -> Interactions:
    """Leave out what touched some products, (products,) bool."""
    kept = ~items[interactions.items]
    return Interactions(*(column[kept] for column in interactions))


def fill(data: Data, config: VectorsConfig, new: NDArray[np.bool_]) -> Catalogue:
    """Make the job's catalogue, as it is once the related products are published."""
    known = without(data.interactions, new)
    learned = learn(data.product_ids, data.titles, data.categories, known, config)
    vectors = encode_products(data.titles, data.categories)
    items = np.flatnonzero(vectors.any(axis=1)).tolist()
    products = (
        ProductRecord(
            version=VERSION,
            product_id=data.product_ids[at],
            title="",
            category=data.categories[at],
            price=None,
            in_stock=True,
            vectors={SPACE: encode_vector(vectors[at])},
            is_text=True,
            first_seen_ms=0,
            updated_us=0,
        )
        for at in items
    )
    catalogue = Catalogue()
    catalogue.load(products, map(learned.row, items), None)
    return catalogue


def ranks(
    sessions: Sequence[Sequence[Event]], catalogue: Catalogue, config: RecommendConfig
) -> Iterator[tuple[str, int]]:
    """Replay sessions; give each product that came next with its place in the list, 0: none."""
    for start in range(0, len(sessions), USERS_PER_BATCH):
        part = sessions[start : start + USERS_PER_BATCH]
        packed: list[bytes | None] = [None] * len(part)
        for turn in range(1, max(map(len, part))):
            asked = [at for at, events in enumerate(part) if turn < len(events)]
            touched = [
                Touched(str(at), packed[at], [PendingEvent(part[at][turn - 1], b"")])
                for at in asked
            ]
            shown = {
                one.user_id: one.product_ids
                for batch in recommend(touched, catalogue, config, turn)
                for one in batch.lists
            }
            for at, user in zip(asked, touched, strict=True):
                packed[at] = user.profile.pack() if user.profile is not None else None
                product = part[at][turn].product_id or ""
                listed = shown.get(str(at), [])
                yield product, listed.index(product) + 1 if product in listed else 0


def scores(found: Sequence[int]) -> dict[str, float]:
    """Hit rate and mean reciprocal rank of places in lists, 0 where it was in none."""
    places = np.array(found, dtype=np.float64)
    hits = places > 0
    reciprocal = np.divide(1, places, out=np.zeros_like(places), where=hits)
    return {
        "hr": round(float(hits.mean()), 4) if len(places) else 0.0,
        "mrr": round(float(reciprocal.mean()), 4) if len(places) else 0.0,
    }


def main() -> int:
    """Print a table, and as last line one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--catalogue", type=Path, required=True)
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--split", required=True, help="ISO time, UTC")
    parser.add_argument("--new-share", type=float, default=0.1, help="products that are new")
    parser.add_argument("--every", type=int, default=1, help="one session in so many")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    split = datetime.fromisoformat(given.split).replace(tzinfo=UTC)
    data = read(given.catalogue, given.events, round(split.timestamp() * 1000), given.every)
    new = np.random.default_rng(given.seed).random(len(data.product_ids)) < given.new_share
    names = {name for name, is_new in zip(data.product_ids, new.tolist(), strict=True) if is_new}
    results: dict[str, dict[str, Any]] = {}
    print(f"{'':32}{'ranking':16}{'all':>16}{'new':>16}{'known':>16}    learned in")
    for variant, config in VARIANTS.items():
        began = time.perf_counter()
        catalogue = fill(data, config, new)
        seconds = time.perf_counter() - began
        for ranking, constants in RANKINGS.items():
            found = list(
                ranks(data.sessions, catalogue, RecommendConfig(list_length=K, ranking=constants))
            )
            parts = {
                "all": scores([place for _, place in found]),
                "new": scores([place for name, place in found if name in names]),
                "known": scores([place for name, place in found if name not in names]),
            }
            results[f"{variant}; {ranking}"] = {**parts, "predictions": len(found)}
            cells = "".join(f"{one['hr']:>9.4f}{one['mrr']:>7.4f}" for one in parts.values())
            print(f"{variant:32}{ranking:16}{cells}    {seconds:.1f} s", flush=True)
    print(json.dumps({"k": K, "new_share": given.new_share, "results": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
