"""Lookups/s and recall of the exact index beside faiss, hnswlib and usearch, on real title vectors.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.workload import Workload
from udfs.index import ExactIndex
from udfs.query_encoder import encode_texts

FloatMatrix = NDArray[np.float32]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "purchases_dev.csv.gz"
K = 50
BATCH = 256


def real_vectors(limit: int) -> FloatMatrix | None:
    """Embed the distinct titles of the purchase log: (n, 64); None where the data is absent."""
    if not DATA.is_file():
        return None
    with gzip.open(DATA, "rt", newline="") as file:
        titles = {row["asin"]: row["title"] for row in csv.DictReader(file) if row["title"]}
    chosen = list(titles.values())[:limit]
    vectors = np.concatenate(
        [encode_texts(chosen[at : at + 5000]) for at in range(0, len(chosen), 5000)]
    )
    known: FloatMatrix = vectors[vectors.any(axis=1)]
    return known


def queries(vectors: FloatMatrix, count: int) -> FloatMatrix:
    """Make users: the mean of four products, one of them three times as heavy."""
    rng = np.random.default_rng(3)
    drawn = vectors[rng.integers(0, len(vectors), (count, 4))]
    mixed = (drawn * np.array([3, 1, 1, 1])[None, :, None]).sum(axis=1)
    unit: FloatMatrix = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return unit.astype(np.float32)


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
    ours = ExactIndex(dimensions)
    for row, vector in enumerate(vectors):
        ours.upsert(str(row), vector)
    flat = faiss.IndexFlatIP(dimensions)
    flat.add(vectors)
    graph = hnswlib.Index(space="ip", dim=dimensions)
    graph.init_index(max_elements=len(vectors), M=16, ef_construction=100)
    graph.set_num_threads(1)
    graph.add_items(vectors)
    graph.set_ef(max(100, k))
    small = Index(ndim=dimensions, metric="ip", dtype="f32")
    small.add(np.arange(len(vectors)), vectors, threads=1)
    return {
        "ours (exact)": lambda q: [ids for ids, _ in ours.search(q, k)],
        "faiss flat (exact)": lambda q: flat.search(q, k)[1],
        "hnswlib (ef 100)": lambda q: graph.knn_query(q, k)[0],
        "usearch (default)": lambda q: small.search(q, k, threads=1).keys,
    }


def measure(vectors: FloatMatrix, count: int, repeats: int, k: int = K) -> dict[str, Any]:
    """Compare all at one size; the contestants take turns within each repeat."""
    asked = queries(vectors, count)
    batches = [asked[at : at + BATCH] for at in range(0, count, BATCH)]
    transposed = vectors.T
    searches = contestants(vectors, k)
    runs = {"matrix product alone": lambda batch: batch @ transposed, **searches}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            for batch in batches:
                run(batch)
            times[name].append(time.perf_counter() - started)
    scores = asked @ transposed
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
    vectors = real_vectors(max(sizes))
    source = "title vectors of the purchase log"
    if vectors is None:
        print(f"{DATA.name} is absent: clustered random vectors instead of real ones")
        vectors, source = Workload(products=max(sizes)).vectors(), "clustered random vectors"
    results = {}
    for size in sizes:
        part = vectors[:size]
        results[size] = found = measure(part, given.queries, given.repeats)
        print(f"\n{len(part):,} products x 64, top {K}, one thread, {source}")
        print(f"{'':<24}{'lookups/s':>11}{'recall':>9}")
        for name, row in found.items():
            shown = f"{row['recall']:.3f}" if "recall" in row else ""
            print(f"{name:<24}{row['lookups_per_second']:>11,.0f}{shown:>9}", flush=True)
    chosen = results[100_000 if 100_000 in results else sizes[-1]]
    speed = {name: row["lookups_per_second"] for name, row in chosen.items()}
    print(
        json.dumps(
            {
                "exact_vs_faiss_flat": round(
                    speed["ours (exact)"] / speed["faiss flat (exact)"], 2
                ),
                "share_of_matmul": round(speed["ours (exact)"] / speed["matrix product alone"], 2),
                "recall": round(chosen["ours (exact)"]["recall"], 4),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
