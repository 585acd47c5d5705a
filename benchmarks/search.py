"""How well one search moves a list: categories of the top 20, against TF-IDF and vectors alone.

The catalogue is the public purchase log's in ``../shared/data``; without it nothing is measured.
What is real and what stands in for something:

- ``named``: three queries with hand-picked categories.
- ``categories``: the catalogue's category names as queries, relevant is that very category. The
  label is the query, so that an index of the labels finds it easily: see the rows "titles only".
- ``misspelled``: the same with one letter less, more or other, or two swapped: made up.
- ``wands``: queries that people typed in a shop (WANDS, Wayfair), of which the data has a class.
  What is relevant is a proxy: the categories of this catalogue that ``wands_categories.json``
  gives for the class, chosen by hand before any result was seen. Queries of a class with no
  counterpart are left out and counted.
- ``items``: three words of a product's title, made up; found is that product among the top 20.

The row ``job`` is the list that the job makes for a user of this one search.

All but ``items`` is precision at 20 (of as many as there are, where there are fewer). Half of the
queries, by a hash of their text, is for choosing constants (``--choose``); the other half is
reported.
"""

from __future__ import annotations

import os

# Before NumPy loads its thread pool.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import csv
import gc
import gzip
import json
import math
import random
import re
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray

from udfs.catalogue import Catalogue as JobCatalogue
from udfs.lexical_index import BLEND_MATCHES, BLEND_WEIGHT, LexicalIndex
from udfs.product_record import VERSION, ProductRecord
from udfs.query_encoder import SPACE, encode_products, encode_query, encode_texts
from udfs.ranking import RankingConfig
from udfs.recommend import RecommendConfig, Touched, recommend
from udfs.schemas import Event, PendingEvent, encode_vector

FloatMatrix = NDArray[np.float32]
DATA: Final = Path(__file__).resolve().parents[2] / "shared" / "data"
CATALOGUE: Final = DATA / "purchases_dev.csv.gz"
WANDS: Final = DATA / "wands_queries.csv"
K: Final = 20
BATCH: Final = 64
METHODS: Final = ("vectors", "tf_idf", "lexical", "job")
NAMED: Final = {
    "monitor": {"MONITOR"},
    "travel bag": {
        "BACKPACK", "BAG", "CARRIER_BAG_CASE", "CARRYING_CASE_OR_BAG", "COSMETIC_CASE",
        "DUFFEL_BAG", "HANDBAG", "LUGGAGE", "STORAGE_BAG", "SUITCASE", "TOTE_BAG",
        "TRAVEL_GARMENT_BAG", "WAIST_PACK",
    },
    "camera": {
        "CAMCORDER", "CAMERA", "CAMERA_DIGITAL", "ONBOARD_CAMERA", "SECURITY_CAMERA",
        "VEHICLE_SAFETY_CAMERA",
    },
}  # fmt: skip


class Query(NamedTuple):
    """A query and the rows that answer it."""

    text: str
    relevant: frozenset[int]


@dataclass(frozen=True)
class Catalogue:
    """Products: ids, titles and categories, row by row."""

    ids: list[str]
    titles: list[str]
    categories: list[str]


def read_catalogue() -> Catalogue:
    """Read the products of the purchase log, each with the texts it had last."""
    products: dict[str, tuple[str, str]] = {}
    with gzip.open(CATALOGUE, "rt", newline="") as file:
        for row in csv.DictReader(file):
            products[row["asin"]] = (row["title"], row["category"])
    titles, categories = zip(*products.values(), strict=True)
    return Catalogue(list(products), list(titles), list(categories))


def readable(category: str) -> str:
    """Write a category's name as a person would type it."""
    return category.replace("_", " ").lower()


def misspell(text: str, rng: random.Random) -> str | None:
    """Change one letter of a word of five or more; None where there is none, or nothing changed."""
    words = text.split()
    long = [at for at, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not long:
        return None
    at = rng.choice(long)
    word, letter = words[at], rng.choice("abcdefghijklmnopqrstuvwxyz")
    i = rng.randrange(1, len(word) - 1)
    words[at] = rng.choice(
        (
            word[:i] + word[i + 1 :],
            word[:i] + letter + word[i:],
            word[:i] + letter + word[i + 1 :],
            word[:i] + word[i + 1] + word[i] + word[i + 2 :],
        )
    )
    return None if words[at] == word else " ".join(words)


def query_groups(catalogue: Catalogue, *, chosen: bool) -> tuple[dict[str, list[Query]], int]:
    """Make the queries of one half, and count the WANDS queries of both that are left out."""
    rows_of: dict[str, list[int]] = {}
    for row, category in enumerate(catalogue.categories):
        rows_of.setdefault(category, []).append(row)

    def rows(categories: Sequence[str] | set[str]) -> frozenset[int]:
        return frozenset(row for name in categories for row in rows_of.get(name, ()))

    names = [Query(readable(name), rows([name])) for name in sorted(rows_of)]
    rng = random.Random(7)
    wrong = [(misspell(query.text, rng), query.relevant) for query in names]
    items = []
    for row in rng.sample(range(len(catalogue.ids)), min(1000, len(catalogue.ids))):
        words = sorted(set(re.findall("[a-z]{3,}", catalogue.titles[row].lower())))
        if len(words) >= 3:
            items.append(Query(" ".join(rng.sample(words, 3)), frozenset([row])))
    wands, left_out = [], 0
    if WANDS.is_file():
        mapped = json.loads(
            Path(__file__).with_name("wands_categories.json").read_text(encoding="utf-8")
        )
        with WANDS.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file, delimiter="\t"):
                relevant = rows(mapped.get(line["query_class"], ()))
                if relevant:
                    wands.append(Query(line["query"], relevant))
                else:
                    left_out += 1
    groups = {
        "categories": names,
        "misspelled": [Query(text, relevant) for text, relevant in wrong if text],
        "wands": wands,
        "items": items,
    }
    half = {
        group: [query for query in queries if (zlib.crc32(query.text.encode()) % 2 == 0) == chosen]
        for group, queries in groups.items()
    }
    named = [Query(text, rows(categories)) for text, categories in NAMED.items()]
    return {"named": named, **half}, left_out


class TfIdf:
    """Cosine of TF-IDF vectors, as scikit-learn's TfidfVectorizer has it by default.

    tf(t, d) · (ln((1 + n) / (1 + df(t))) + 1), rows scaled to length 1, words of two or more.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """Index the texts."""
        counts = [Counter(self._words(text)) for text in texts]
        frequency = Counter(word for count in counts for word in count)
        self._size = len(texts)
        self._idf = {
            word: math.log((1 + len(texts)) / (1 + df)) + 1 for word, df in frequency.items()
        }
        postings: dict[str, tuple[list[int], list[float]]] = {word: ([], []) for word in frequency}
        for row, count in enumerate(counts):
            weights = {word: tf * self._idf[word] for word, tf in count.items()}
            length = math.hypot(*weights.values()) or 1.0
            for word, weight in weights.items():
                rows, values = postings[word]
                rows.append(row)
                values.append(weight / length)
        self._postings = {
            word: (np.array(rows), np.array(values, dtype=np.float32))
            for word, (rows, values) in postings.items()
        }

    @staticmethod
    def _words(text: str) -> list[str]:
        return re.findall(r"\b\w\w+\b", text.lower())

    def scores(self, query: str) -> FloatMatrix:
        """Score every text, shape (n,)."""
        scores = np.zeros(self._size, dtype=np.float32)
        weights = {
            word: tf * self._idf[word]
            for word, tf in Counter(self._words(query)).items()
            if word in self._idf
        }
        length = math.hypot(*weights.values()) or 1.0
        for word, weight in weights.items():
            rows, values = self._postings[word]
            scores[rows] += np.float32(weight / length) * values
        return scores


def best_rows(scores: FloatMatrix) -> list[int]:
    """Rows of the K highest scores above 0."""
    best = np.argpartition(-scores, K)[:K]
    return [row for row in best.tolist() if scores[row] > 0]


def precision(found: Sequence[int], relevant: frozenset[int]) -> float:
    """Share of the top K that is relevant; of as many as there are, where there are fewer."""
    return sum(row in relevant for row in found[:K]) / min(K, len(relevant))


def interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Bootstrap interval of a mean over queries, 95 %."""
    draws = np.random.default_rng(5).integers(0, len(differences), (2000, len(differences)))
    low, high = np.percentile(differences[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class View:
    """One way to see the catalogue: vectors, TF-IDF and lexical index over the same texts."""

    vectors: FloatMatrix
    tf_idf: TfIdf
    lexical: LexicalIndex
    job: JobCatalogue
    row_of: dict[str, int]

    @classmethod
    def of(cls, catalogue: Catalogue, *, titles_only: bool) -> View:
        """Build all three; with ``titles_only`` none of them knows the categories."""
        titles, categories = catalogue.titles, catalogue.categories
        texts = [f"{t} {readable(c)}" for t, c in zip(titles, categories, strict=True)]
        if titles_only:
            texts, categories = titles, [""] * len(titles)
        parts = []
        for at in range(0, len(titles), 5000):
            part = slice(at, at + 5000)
            parts.append(
                encode_texts(titles[part])
                if titles_only
                else encode_products(titles[part], categories[part])
            )
        vectors = np.concatenate(parts)
        lexical = LexicalIndex()
        lexical.extend(zip(range(len(titles)), titles, categories, strict=True))
        records = (
            ProductRecord(
                VERSION,
                catalogue.ids[row],
                titles[row],
                categories[row],
                None,
                True,
                {SPACE: encode_vector(vectors[row])},
                is_text=True,
                first_seen_ms=0,
                updated_us=0,
            )
            for row in np.flatnonzero(vectors.any(axis=1)).tolist()
        )
        job = JobCatalogue(encoder=encode_query, encoder_space=SPACE)
        job.load(records, [], None)
        row_of = {product_id: row for row, product_id in enumerate(catalogue.ids)}
        return cls(vectors, TfIdf(texts), lexical, job, row_of)

    def dense(self, queries: Sequence[Query]) -> Iterator[tuple[Query, FloatMatrix]]:
        """Score every product by its cosine to each query's vector."""
        for at in range(0, len(queries), BATCH):
            part = queries[at : at + BATCH]
            scores = encode_texts([query.text for query in part]) @ self.vectors.T
            yield from zip(part, scores, strict=True)

    def matches(self, query: Query, limit: int) -> tuple[list[int], FloatMatrix]:
        """Rows and scores of the lexical matches, best first."""
        rows, scores = self.lexical.matches(query.text, limit)
        return rows.tolist(), scores

    def listed(self, queries: Sequence[Query], weight: float, limit: int) -> list[list[int]]:
        """Rows of the lists that the job makes for users of one search each."""
        touched = [
            Touched(
                str(at), None, [PendingEvent(Event("e", str(at), "search", 1, None, text), b"")]
            )
            for at, (text, _) in enumerate(queries)
        ]
        config = RecommendConfig(
            K, ranking=RankingConfig(lexical_weight=weight, search_matches=limit)
        )
        found: list[list[int]] = [[] for _ in queries]
        for batch in recommend(touched, self.job, config, 1):
            for one in batch.lists:
                found[int(one.user_id)] = [self.row_of[name] for name in one.product_ids]
        return found

    def compare(
        self, queries: Sequence[Query], weight: float, limit: int
    ) -> dict[str, NDArray[np.float64]]:
        """Precision of each method at each query."""
        found: dict[str, list[float]] = {name: [] for name in METHODS}
        lists = self.listed(queries, weight, limit)
        for (query, scores), listed in zip(self.dense(queries), lists, strict=True):
            rows, _ = self.matches(query, limit)
            found["vectors"].append(precision(best_rows(scores), query.relevant))
            by_words = best_rows(self.tf_idf.scores(query.text))
            found["tf_idf"].append(precision(by_words, query.relevant))
            found["lexical"].append(precision(rows, query.relevant))
            found["job"].append(precision(listed, query.relevant))
        return {name: np.array(values) for name, values in found.items()}


def microseconds(
    run: Callable[[str], object], texts: Sequence[str], skipped: int = 0
) -> dict[str, float]:
    """Time one call a text, but for the first ones: median and 99th percentile, microseconds."""
    times = []
    for text in texts:
        started = time.perf_counter()
        run(text)
        times.append(1e6 * (time.perf_counter() - started))
    times = times[skipped:]
    return {
        "p50": round(float(np.percentile(times, 50)), 1),
        "p99": round(float(np.percentile(times, 99)), 1),
    }


def measure_index(
    catalogue: Catalogue, texts: Sequence[str], misspelled: Sequence[str]
) -> dict[str, Any]:
    """Measure the index alone: loading, memory, changes, queries for the first time and again."""
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    index = LexicalIndex()
    products = list(
        zip(range(len(catalogue.ids)), catalogue.titles, catalogue.categories, strict=True)
    )
    started = time.perf_counter()
    index.extend(products)
    load_s = time.perf_counter() - started
    memory = process.memory_info().rss - before
    encode_texts(["any"])
    again = texts[:500]  # fewer than the index remembers
    result = {
        "load_s": round(load_s, 2),
        "load_us": round(1e6 * load_s / len(products), 1),
        "index_mb": round(memory / 1e6, 1),
        "index_bytes_a_product": round(memory / len(products)),
        "encode_us": microseconds(lambda text: encode_texts([text]), texts),
        "lexical_us": microseconds(lambda text: index.matches(text, BLEND_MATCHES), texts),
        "misspelled_us": microseconds(lambda text: index.matches(text, BLEND_MATCHES), misspelled),
        "repeated_us": microseconds(
            lambda text: index.matches(text, BLEND_MATCHES), [*again, *again], len(again)
        ),
        "long_query_us": microseconds(
            lambda text: index.matches(text, BLEND_MATCHES),
            [(" ".join(catalogue.titles[at : at + 60]))[:4000] for at in range(0, 6000, 60)],
        ),
    }
    slowest = 0.0
    started = time.perf_counter()
    for slot, title, category in products:  # new texts, and dead rows to be cleared out
        begun = time.perf_counter()
        index.upsert(slot, f"{title} {slot % 7}", category)
        slowest = max(slowest, time.perf_counter() - begun)
    spent = time.perf_counter() - started
    result["upsert_us"] = round(1e6 * spent / len(products), 1)
    result["slowest_change_ms"] = round(1e3 * slowest)
    return result


def choose(catalogue: Catalogue) -> None:
    """Print the combined figures of the choosing half over weights and limits."""
    groups, _ = query_groups(catalogue, chosen=True)
    del groups["named"]
    view = View.of(catalogue, titles_only=False)
    sums: dict[tuple[int, float, str], float] = {}
    grid = [(BLEND_MATCHES, weight) for weight in (0.25, 0.5, 1.0, 1.5, 2.0, 4.0)]
    grid += [(limit, BLEND_WEIGHT) for limit in (20, 50, 200, 1000)]
    for group, queries in groups.items():
        for query, dense in view.dense(queries):
            for limit, weight in grid:
                rows, lexical = view.matches(query, limit)
                scores = dense.copy()
                scores[rows] += np.float32(weight) * lexical
                key = limit, weight, group
                sums[key] = sums.get(key, 0.0) + precision(best_rows(scores), query.relevant)
    print(f"{'matches':>8}{'weight':>8}" + "".join(f"{group:>12}" for group in groups))
    for limit, weight in grid:
        means = (sums[limit, weight, group] / len(groups[group]) for group in groups)
        print(f"{limit:>8}{weight:>8}" + "".join(f"{mean:>12.3f}" for mean in means))


def report(catalogue: Catalogue) -> dict[str, Any]:
    """Print the table of the reporting half and return what the last line says."""
    groups, left_out = query_groups(catalogue, chosen=False)
    texts = [query.text for group in ("categories", "wands") for query in groups[group]]
    misspelled = [query.text for query in groups["misspelled"]]
    result: dict[str, Any] = {
        "products": len(catalogue.ids),
        "queries": {group: len(queries) for group, queries in groups.items()},
        "wands_left_out": left_out,
        "weight": BLEND_WEIGHT,
        "matches": BLEND_MATCHES,
        **measure_index(catalogue, texts, misspelled),
    }
    columns = [*NAMED, "categories", "misspelled", "wands", "items"]
    print(f"{'':<28}" + "".join(f"{column:>12}" for column in columns))
    for titles_only, label in ((False, ""), (True, ", titles only")):
        view = View.of(catalogue, titles_only=titles_only)
        parts = {query.text: [query] for query in groups["named"]}
        parts |= {group: groups[group] for group in columns[3:] if groups[group]}
        figures = {
            column: view.compare(queries, BLEND_WEIGHT, BLEND_MATCHES)
            for column, queries in parts.items()
        }
        for method in METHODS:
            row = {c: round(float(values[method].mean()), 3) for c, values in figures.items()}
            result[method + ("_titles_only" if titles_only else "")] = row
            shown = (f"{row[c]:>12.3f}" if c in row else f"{'–':>12}" for c in columns)
            print(f"{method + label:<28}" + "".join(shown), flush=True)
        if "wands" in figures:
            for other in METHODS[:-1]:
                name = f"job - {other}{label}"
                low, high = interval(figures["wands"]["job"] - figures["wands"][other])
                result.setdefault("wands_differences", {})[name] = [round(low, 3), round(high, 3)]
        del view
    for name, (low, high) in result.get("wands_differences", {}).items():
        print(f"wands, {name:<36} {low:+.3f} to {high:+.3f} (95 %, bootstrap over queries)")
    return result


def main(arguments: list[str]) -> None:
    """Print a table and, as the last line, its JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--choose", action="store_true", help="the choosing half over weights and limits instead"
    )
    given = parser.parse_args(arguments)
    if not CATALOGUE.is_file():
        print(
            f"skipped: {CATALOGUE.name} is absent (it belongs into {DATA.parent.name}/{DATA.name})"
        )
        print(json.dumps({"skipped": f"{CATALOGUE.name} is absent"}))
        return
    if not WANDS.is_file():
        print(f"{WANDS.name} is absent: no WANDS figures")
    catalogue = read_catalogue()
    if given.choose:
        choose(catalogue)
        return
    print(json.dumps(report(catalogue)))


if __name__ == "__main__":
    main(sys.argv[1:])
