"""What an evaluation says: a table for the terminal, a plot, one JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.metrics import RANKED, Average, Result
from evaluation.protocol import Counts, Unit

Results = Mapping[str, Result]


def table(results: Results, k: int) -> str:
    """A line a recommender, the best HR first; ± is half of the 95 % bootstrap interval."""
    header = (
        f"{'':20}{f'HR@{k}':>16}{f'MRR@{k}':>16}{f'NDCG@{k}':>16}"
        f"{'new: HR':>10}{'new: MRR':>10}{'coverage':>10}{'top 1 %':>9}{'µs p50':>9}{'µs p99':>9}"
    )
    lines = [header]
    for name, result in sorted(results.items(), key=lambda pair: -pair[1].all["hr"].mean):
        ranked = "".join(f"{_with_margin(result.all[metric]):>16}" for metric in RANKED)
        new = "".join(
            f"{f'{result.new[metric].mean:.4f}' if result.new else '–':>10}"
            for metric in ("hr", "mrr")
        )
        lines.append(
            f"{name:20}{ranked}{new}{result.coverage:>10.3f}{result.popular_share:>9.3f}"
            f"{result.us_p50:>9.0f}{result.us_p99:>9.0f}"
        )
    return "\n".join(lines)


def summary(counts: Counts, unit: Unit) -> str:
    """What was predicted and what was not, in words."""
    said = [
        f"{counts.events:,} events, {counts.training_events:,} of them learned from",
        f"{counts.training_items:,} items to rank",
        f"{counts.predictions:,} predictions in {counts.units:,} {unit}s",
        f"skipped: {counts.unknown_items:,} of items that the training part does not have",
    ]
    if counts.without_history:
        said.append(f"skipped: {counts.without_history:,} with nothing before them")
    if counts.straddling:
        said.append(
            f"not tested: {counts.straddling:,} events after the split of sessions begun before it"
        )
    return "\n".join(said)


def json_results(results: Results) -> dict[str, dict[str, Any]]:
    """The results by name, plain numbers rounded to six places."""
    return {name: _json(result) for name, result in results.items()}


def plot(results: Results, k: int, title: str, path: Path) -> None:
    """Write a bar chart of HR and MRR, all and new, with their intervals, as PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = sorted(results, key=lambda name: results[name].all["hr"].mean)
    places = np.arange(len(names))
    figure, axes = plt.subplots(1, 2, figsize=(11, 1.2 + 0.42 * len(names)), sharey=True)
    for axis, metric in zip(axes, ("hr", "mrr"), strict=True):
        for shift, kind, colour in ((0.2, "all", "#2b6cb0"), (-0.2, "new", "#cbd5e0")):
            averages = [getattr(results[name], kind).get(metric) for name in names]
            means = np.array([0.0 if a is None else a.mean for a in averages])
            margins = np.array(
                [(0.0, 0.0) if a is None else (a.mean - a.low, a.high - a.mean) for a in averages]
            )
            axis.barh(
                places + shift,
                means,
                0.38,
                color=colour,
                xerr=np.maximum(margins.T, 0),
                error_kw={"lw": 0.8},
                label="all items" if kind == "all" else "new items only",
            )
        axis.set_title(f"{metric.upper()}@{k}")
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(places, names)
    for label in axes[0].get_yticklabels():
        if label.get_text() == "ours":
            label.set_fontweight("bold")
    axes[1].legend(loc="lower right", frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _with_margin(average: Average) -> str:
    return f"{average.mean:.4f} ±{(average.high - average.low) / 2:.4f}"


def _json(result: Result) -> dict[str, Any]:
    said: dict[str, Any] = {metric: round(result.all[metric].mean, 6) for metric in RANKED}
    said["coverage"] = round(result.coverage, 6)
    said["popular_share"] = round(result.popular_share, 6)
    for metric in RANKED:
        average = result.all[metric]
        said[f"{metric}_interval"] = [round(average.low, 6), round(average.high, 6)]
    said["new_predictions"] = result.new_predictions
    said.update({f"new_{metric}": round(result.new[metric].mean, 6) for metric in result.new})
    said["us_p50"] = round(result.us_p50, 1)
    said["us_p99"] = round(result.us_p99, 1)
    return said
