"""What the catalogue costs: memory by part, and the time to decode and to load the two topics.

The records of the topics `products` and `related` are made first and put into a file, so that
neither their making nor Kafka is in the figures. One thread; seconds are those of its CPU. The
memory of a part is what the process gives back when the part is dropped. The last line is JSON.
"""

from __future__ import annotations

import os

# Before NumPy loads its thread pool.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import base64
import ctypes
import gc
import json
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import IO, Any

import numpy as np
import psutil
from msgspec import structs

from benchmarks.workload import SPACE, Workload
from udfs.catalogue import Catalogue
from udfs.inverted import index_of
from udfs.lexical_index import LexicalIndex
from udfs.product_record import (
    VERSION,
    ProductRecord,
    RelatedRow,
    decode_record,
    decode_related,
    encode,
)

NOW_MS = 1_732_300_000_000
CHANGES = 2000
_LENGTH = struct.Struct("<I")


def records(workload: Workload) -> Iterator[ProductRecord]:
    """Make the records of the topic `products`."""
    for number, vector in enumerate(workload.vectors()):
        yield ProductRecord(
            VERSION,
            workload.product_id(number),
            f"Product {number}",
            f"CATEGORY_{number % 40}",
            1 + (number * 37 % 20_000) / 100,
            number % 20 != 0,
            {SPACE: base64.b64encode(vector.tobytes()).decode()},
            is_text=False,
            first_seen_ms=NOW_MS + number,
            updated_us=NOW_MS * 1000,
        )


def related_rows(workload: Workload) -> Iterator[RelatedRow]:
    """Make the records of the topic `related`."""
    rng = np.random.default_rng(workload.seed + 2)
    fading = [round(float(one), 4) for one in np.linspace(1, 0.1, workload.related)]
    for number in range(workload.products):
        others = rng.integers(0, workload.products, workload.related).tolist()
        related = dict(zip(map(workload.product_id, others), fading, strict=True))
        yield RelatedRow(VERSION, workload.product_id(number), related)


def write(file: IO[bytes], made: Iterable[ProductRecord | RelatedRow]) -> None:
    """Put records into a file as they stand in Kafka, each behind its key and its length."""
    for one in made:
        key, payload = one.product_id.encode(), encode(one)
        file.write(_LENGTH.pack(len(key)) + key + _LENGTH.pack(len(payload)) + payload)


def read(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Read keys, as the bulk reader has them, and values."""
    file.seek(0)
    while head := file.read(4):
        key = file.read(*_LENGTH.unpack(head)).decode("latin-1")
        yield key, file.read(*_LENGTH.unpack(file.read(4)))


def resident_mb() -> float:
    """Memory of the process once what is free was given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return float(psutil.Process().memory_info().rss) / 1e6


def seconds(work: Callable[[], object]) -> float:
    """CPU time of a piece of work; what it returns is dropped."""
    started = time.process_time()
    work()
    return round(time.process_time() - started, 2)


def consume(items: Iterable[object]) -> None:
    """Walk over items and hold none."""
    for _ in items:
        pass


def fill_lexical(workload: Workload) -> None:
    """Put the texts of all products in stock into a lexical index."""
    LexicalIndex().extend(
        (slot, one.title, one.category)
        for slot, one in enumerate(records(workload))
        if one.in_stock
    )


def measure_changes(catalogue: Catalogue, workload: Workload) -> dict[str, float]:
    """CPU of single changes, as they come by broadcast, microseconds each."""
    chosen = list(islice(records(replace(workload, products=CHANGES)), CHANGES))
    gone = [structs.replace(one, in_stock=False) for one in chosen]
    rows = list(islice(related_rows(workload), CHANGES))
    found = {}
    steps: tuple[tuple[str, Callable[[Any], object], list[Any]], ...] = (
        ("a price", catalogue.put, chosen),
        ("out of stock", catalogue.put, gone),
        ("in stock", catalogue.put, chosen),
        ("removed", catalogue.remove, [one.product_id for one in chosen]),
        ("new", catalogue.put, chosen),
        ("learned", catalogue.put_related, rows),
    )
    for name, change, changed in steps:
        found[name] = seconds(partial(consume, map(change, changed))) / len(changed) * 1e6
    return found


def measure(workload: Workload) -> dict[str, dict[str, float]]:
    """Measure one size."""
    with tempfile.TemporaryFile() as products, tempfile.TemporaryFile() as related:
        write(products, records(workload))
        write(related, related_rows(workload))
        spent = {
            "read and decode products": seconds(
                lambda: consume(decode_record(*one) for one in read(products))
            ),
            "read and decode related": seconds(
                lambda: consume(decode_related(*one) for one in read(related))
            ),
        }
        catalogue = Catalogue()
        before = resident_mb()
        spent["decode and load"] = seconds(
            lambda: catalogue.load(
                (decode_record(*one) for one in read(products)),
                (decode_related(*one) for one in read(related)),
                None,
            )
        )
        peak = float(psutil.Process().memory_info().rss) / 1e6 - before
        made = seconds(lambda: consume(records(workload)))
        spent["of it: lexical index"] = seconds(lambda: fill_lexical(workload)) - made
    memory = {"in all": resident_mb() - before}
    changes = measure_changes(catalogue, workload)
    spent["numbering anew"] = seconds(catalogue._renumber)
    spent["of it: index"] = seconds(
        lambda: index_of(catalogue.slots, *catalogue._vectors[SPACE].rows())
    )
    held = resident_mb()
    for name, attribute in (
        ("index", "_index"),
        ("float16 vectors", "_vectors"),
        ("facts and related", "facts"),
        ("lexical index", "_lexical"),
        ("slot table", "slots"),
    ):
        if attribute == "slots":
            catalogue.facts = None  # type: ignore[assignment]
        setattr(catalogue, attribute, None)
        now = resident_mb()
        memory[name], held = held - now, now
    memory["more while loading"] = peak - memory["in all"]
    return {"mb": memory, "cpu_s": spent, "us_a_change": changes}


def main(arguments: Sequence[str]) -> None:
    """Print memory and times of each size, and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--products", default="100000,1000000", help="sizes, separated by commas")
    parser.add_argument("--related", type=int, default=50)
    given = parser.parse_args(arguments)
    rows = []
    for products in map(int, given.products.split(",")):
        found = measure(Workload(products=products, related=given.related))
        rows.append({"products": products, **found})
        print(f"\n{products:,} products x 64, {given.related} related each")
        for name, mb in found["mb"].items():
            print(f"{name:<28}{mb:>10.1f} MB{mb * 1e6 / products:>8.0f} bytes a product")
        for name, us in found["us_a_change"].items():
            print(f"a change: {name:<18}{us:>10.1f} us")
        for name, cpu_s in found["cpu_s"].items():
            print(f"{name:<28}{cpu_s:>10.2f} s {cpu_s * 1e6 / products:>8.1f} us a product")
        sys.stdout.flush()
    print(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
