"""Lookups/s and recall of our two indexes beside faiss, hnswlib and usearch, on title vectors.

One thread for everyone. The vectors are those of ``udfs.query_encoder`` for the titles of the
public purchase log in ``../shared/data``; where it is absent, clustered random ones, and it says
so.
"""

# ruff: noqa: E402

from __future__ import annotations

import os

# Before NumPy and the libraries load their thread pools.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import csv
import gzip
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.workload import Workload
from udfs.index import ExactIndex, SlotTable
from udfs.inverted import InvertedIndex
from udfs.query_encoder import encode_texts

FloatMatrix = NDArray[np.float32]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "purchases_dev.csv.gz"
K = 50
BATCH = 256
PRODUCT_BATCHES = (64, 128, 256)


def purchases() -> Iterator[tuple[str, str, str]]:
    """Read (user, product, title) of the purchase log, in its order."""
    with gzip.open(DATA, "rt", newline="") as file:
        for row in csv.DictReader(file):
            if row["title"]:
                yield row["user"], row["asin"], row["title"]


def real_vectors(limit: int) -> tuple[FloatMatrix, list[list[int]]] | None:
    """Embed the distinct titles of the purchase log; None where the data is absent.

    Returns:
        Vectors (n, 64), and each user's rows in the order of purchase.
    """
    if not DATA.is_file():
        return None
    titles: dict[str, str] = {}
    bought: dict[str, list[str]] = {}
    for user, product, title in purchases():
        if product in titles or len(titles) < limit:
            titles[product] = title
            bought.setdefault(user, []).append(product)
    texts = list(titles.values())
    vectors = np.concatenate(
        [encode_texts(texts[at : at + 5000]) for at in range(0, len(texts), 5000)]
    )
    known = vectors.any(axis=1)
    row_of = dict(zip(np.array(list(titles))[known].tolist(), range(int(known.sum())), strict=True))
    baskets = [
        list(dict.fromkeys(row_of[product] for product in products if product in row_of))
        for products in bought.values()
    ]
    chosen: FloatMatrix = vectors[known]
    return chosen, baskets


def queries(vectors: FloatMatrix, count: int, baskets: Sequence[Sequence[int]]) -> FloatMatrix:
    """Make users' vectors: three to five products of one user, the newest the heaviest.

    A little noise makes users different who bought the same.

    Args:
        vectors: Products, shape (n, d).
        count: How many.
        baskets: Rows of each user's products; users with fewer than three in ``vectors`` are left
            out, and where nobody is left products are drawn at random.
    """
    rng = np.random.default_rng(3)
    inside = [[row for row in basket if row < len(vectors)] for basket in baskets]
    users = [basket for basket in inside if len(basket) >= 3]
    made = np.empty((count, vectors.shape[1]))
    for at in range(count):
        basket = users[rng.integers(len(users))] if users else rng.integers(0, len(vectors), 5)
        rows = list(basket)[-int(rng.integers(3, 6)) :]
        mixed = 0.8 ** np.arange(len(rows))[::-1] @ vectors[rows]
        made[at] = mixed + 0.02 * np.linalg.norm(mixed) * rng.standard_normal(len(mixed))
    unit: FloatMatrix = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    return unit


def recall(found: list[set[int]], truth: list[set[int]]) -> float:
    """Share of the true neighbours that were found."""
    return sum(len(a & b) for a, b in zip(found, truth, strict=True)) / sum(map(len, truth))


def contestants(vectors: FloatMatrix, k: int) -> dict[str, Callable[[FloatMatrix], Any]]:
    """Build every index; each callable searches a batch and returns rows (q, k)."""
    import faiss
    import hnswlib
    from usearch.index import Index

    faiss.omp_set_num_threads(1)
    dimensions = vectors.shape[1]
    slots = SlotTable()
    numbers = slots.extend([str(row) for row in range(len(vectors))])
    ours, lists = ExactIndex(dimensions, slots), InvertedIndex(dimensions, slots)
    ours.extend(numbers, vectors)
    lists.extend(numbers, vectors)
    flat = faiss.IndexFlatIP(dimensions)
    flat.add(vectors)
    # As many lists as ours, and of them so many that the recall is about that of ours.
    quantizer = faiss.IndexFlatIP(dimensions)
    inverted = faiss.IndexIVFFlat(
        quantizer, dimensions, max(1, len(vectors) // 360), faiss.METRIC_INNER_PRODUCT
    )
    inverted.train(vectors)
    inverted.add(vectors)
    inverted.nprobe = max(1, inverted.nlist // 6)
    graph = hnswlib.Index(space="ip", dim=dimensions)
    graph.init_index(max_elements=len(vectors), M=16, ef_construction=100)
    graph.set_num_threads(1)
    graph.add_items(vectors)
    graph.set_ef(max(100, k))
    small = Index(ndim=dimensions, metric="ip", dtype="f32")
    small.add(np.arange(len(vectors)), vectors, threads=1)
    return {
        "ours (exact)": lambda q: ours.search_slots(q, k)[0],
        "ours (lists)": lambda q: lists.search_slots(q, k)[0],
        "faiss flat (exact)": lambda q: flat.search(q, k)[1],
        "faiss IVFFlat": lambda q: inverted.search(q, k)[1],
        "hnswlib (ef 100)": lambda q: graph.knn_query(q, k)[0],
        "usearch (default)": lambda q: small.search(q, k, threads=1).keys,
    }


def products_alone(vectors: FloatMatrix) -> dict[str, Callable[[FloatMatrix], Any]]:
    """The matrix product alone, at several batch sizes.

    Its result is allocated once: a new one of 100 MB a batch costs a third of the time in page
    faults, and would make a search look nearer to the product's speed than it is.
    """
    transposed = vectors.T

    def make(rows: int) -> Callable[[FloatMatrix], Any]:
        scores = np.zeros((rows, len(vectors)), dtype=np.float32)

        def run(batch: FloatMatrix) -> None:
            for at in range(0, len(batch), rows):
                part = batch[at : at + rows]
                np.matmul(part, transposed, out=scores[: len(part)])

        return run

    return {f"matrix product of {rows}": make(rows) for rows in PRODUCT_BATCHES}


def measure(
    vectors: FloatMatrix,
    count: int,
    repeats: int,
    k: int = K,
    baskets: Sequence[Sequence[int]] = (),
) -> dict[str, Any]:
    """Compare all at one size; the contestants take turns within each repeat."""
    asked = queries(vectors, count, baskets)
    batches = [asked[at : at + BATCH] for at in range(0, count, BATCH)]
    searches = contestants(vectors, k)
    runs = {**products_alone(vectors), **searches}
    for run in runs.values():  # first touch of buffers and caches
        run(batches[0])
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            for batch in batches:
                run(batch)
            times[name].append(time.perf_counter() - started)
    scores = asked @ vectors.T
    truth = [set(row.tolist()) for row in np.argpartition(scores, -k, axis=1)[:, -k:]]
    result: dict[str, Any] = {}
    for name, spent in times.items():
        result[name] = {"lookups_per_second": count / statistics.median(spent)}
        if name in searches:
            found = [
                {int(item) for item in row} for batch in batches for row in searches[name](batch)
            ]
            if name.endswith("(exact)"):
                # By score: where products share a title, either of a tie is right.
                worst = np.sort(scores, axis=1)[:, -k]
                hits = sum(
                    int((scores[at, list(row)] >= worst[at] - 1e-6).sum())
                    for at, row in enumerate(found)
                )
                result[name]["recall"] = hits / (count * k)
            else:
                result[name]["recall"] = recall(found, truth)
    return result


def main(arguments: list[str]) -> None:
    """Print a table a size and the JSON of 100,000 products."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="4000,20000,100000,147000")
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(arguments)
    sizes = [int(size) for size in given.sizes.split(",")]
    real = real_vectors(max(sizes))
    if real is not None:
        (vectors, baskets), source = real, "title vectors of the purchase log"
    else:
        print(f"{DATA.name} is absent: clustered random vectors instead of real ones")
        vectors, baskets = Workload(products=max(sizes)).vectors(), []
        source = "clustered random vectors"
    results = {}
    for size in sizes:
        part = vectors[:size]
        results[size] = found = measure(part, given.queries, given.repeats, baskets=baskets)
        print(f"\n{len(part):,} products x 64, top {K}, one thread, {source}")
        print(f"{'':<24}{'lookups/s':>11}{'recall':>9}")
        for name, row in found.items():
            shown = f"{row['recall']:.3f}" if "recall" in row else ""
            print(f"{name:<24}{row['lookups_per_second']:>11,.0f}{shown:>9}", flush=True)
    chosen = results[100_000 if 100_000 in results else sizes[-1]]
    speed = {name: row["lookups_per_second"] for name, row in chosen.items()}
    # Against the product's best batch size, whichever that is on this machine.
    product = max(speed[name] for name in speed if name.startswith("matrix product"))
    print(
        json.dumps(
            {
                "exact_vs_faiss_flat": round(
                    speed["ours (exact)"] / speed["faiss flat (exact)"], 2
                ),
                "share_of_matmul": round(speed["ours (exact)"] / product, 2),
                "recall": round(chosen["ours (exact)"]["recall"], 4),
                "vectors": source,
                "lookups_per_second": {name: round(value) for name, value in speed.items()},
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
