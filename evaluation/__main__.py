"""Evaluate on a log: ``python -m evaluation --events log.jsonl.gz --split 2022-03-01``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.baselines import all_baselines
from evaluation.files import DataError, read_catalogue, read_events
from evaluation.metrics import difference
from evaluation.ours import Ours
from evaluation.protocol import Recommender, Unit, make_task, parse_split
from evaluation.report import json_results, plot, summary, table
from evaluation.run import evaluate


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("--events", type=Path, required=True, help="event log, .jsonl[.gz]")
    parser.add_argument("--catalogue", type=Path, help="catalogue file, .jsonl[.gz]")
    parser.add_argument(
        "--split", required=True, help="ISO time, UTC unless it says otherwise: learn before it"
    )
    parser.add_argument("--k", type=int, default=20, help="length of the lists (default 20)")
    parser.add_argument(
        "--unit", choices=[*Unit], default=Unit.SESSION, help="what is walked through"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    parser.add_argument(
        "--plot", type=Path, default=Path("build/evaluation.png"), help="PNG to write"
    )
    parser.add_argument(
        "--only", help="names of recommenders to run, separated by commas (default: all)"
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.k <= 1000:
        parser.error("--k must be within 1 and 1000")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate, and print table, plot path and JSON."""
    options = parse(arguments)
    try:
        return run(options)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """Evaluate as the options say.

    Raises:
        DataError: With what is wrong with the input.
    """
    unit = Unit(options.unit)
    split_ms = parse_split(options.split)
    log = read_events(options.events)
    products = read_catalogue(options.catalogue) if options.catalogue is not None else {}
    task = make_task(log, split_ms, unit)
    recommenders: list[Recommender] = [Ours(log, products), *all_baselines()]
    if options.only:
        names = set(options.only.split(","))
        unknown = names - {recommender.name for recommender in recommenders}
        if unknown:
            msg = f"no recommender is called {', '.join(sorted(unknown))}"
            raise DataError(msg)
        recommenders = [one for one in recommenders if one.name in names]
    results, with_history = evaluate(task, recommenders, options.k, options.seed)

    title = f"{options.events.name}, {unit}, split {options.split}"
    print(f"\n{title}\n{summary(task.counts, unit)}")
    if log.duplicates:
        print(f"left out: {log.duplicates:,} events whose user had sent the id before")
    print(f"\n{table(results, options.k)}")
    if with_history:
        print(
            "\nthe same, with what the user did before the session"
            f"\n{table(with_history, options.k)}"
        )
    plot(results, options.k, title, options.plot)
    print(f"\nplot: {options.plot}")
    said = {
        "predictions": task.counts.predictions,
        "k": options.k,
        "results": json_results(results),
        "unit": str(unit),
        "split": options.split,
        "seed": options.seed,
        "units": task.counts.units,
        "training_items": task.counts.training_items,
        "skipped": {
            "unknown_items": task.counts.unknown_items,
            "without_history": task.counts.without_history,
            "straddling": task.counts.straddling,
            "duplicates": log.duplicates,
        },
    }
    if with_history:
        said["with_history"] = json_results(with_history)
    if "ours" in results and len(results) > 1:
        said["ours_minus_best"] = difference(results)
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
