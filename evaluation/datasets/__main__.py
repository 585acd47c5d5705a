"""Convert a public data set: ``python -m evaluation.datasets NAME --input … --events …``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from evaluation.datasets import (
    diginetica,
    movielens,
    online_retail,
    open_ecommerce,
    retailrocket,
    yoochoose,
)
from evaluation.datasets.common import Conversion
from evaluation.files import DataError, write_catalogue, write_events

CONVERTERS: Final[dict[str, Callable[[Sequence[Path]], Conversion]]] = {
    "online-retail": online_retail.convert,
    "open-ecommerce": open_ecommerce.convert,
    "retailrocket": retailrocket.convert,
    "yoochoose": yoochoose.convert,
    "diginetica": diginetica.convert,
    "movielens": movielens.convert,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert, and say what was written and what was left out."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.datasets", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("name", choices=sorted(CONVERTERS), help="the data set")
    parser.add_argument(
        "--input", type=Path, nargs="+", required=True, help="the published files, or .gz of them"
    )
    parser.add_argument(
        "--events", type=Path, required=True, help="event log to write, .jsonl[.gz]"
    )
    parser.add_argument(
        "--catalogue", type=Path, required=True, help="catalogue file to write, .jsonl[.gz]"
    )
    options = parser.parse_args(arguments)
    try:
        made = CONVERTERS[options.name](options.input)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    events = write_events(options.events, made.events)
    products = write_catalogue(options.catalogue, made.products.values())
    print(f"{options.events}: {events:,} events")
    print(f"{options.catalogue}: {products:,} products")
    for reason, lines in made.left_out.most_common():
        print(f"left out: {lines:,} lines ({reason})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
