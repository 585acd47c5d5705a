"""One evaluation: every recommender through the same task, judged the same way."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Never

from tqdm import tqdm

from evaluation.metrics import Result, Scores, resample
from evaluation.protocol import Recommender, Task, Walk


def evaluate(
    task: Task, recommenders: Sequence[Recommender], k: int, seed: int
) -> tuple[dict[str, Result], dict[str, Result]]:
    """Run every recommender on a task.

    Returns:
        The results by name; and those with the user's history before the session, empty where
        there is none. What does not use the history has the same result in both.
    """
    weights = resample(1 + max(walk.unit for walk in task.walks), seed)
    results: dict[str, Result] = {}
    with_history: dict[str, Result] = {}
    runs = len(recommenders)
    if task.with_history:
        runs += sum(recommender.uses_history for recommender in recommenders)
    total = runs * task.counts.predictions
    with tqdm(total=total, unit=" predictions", file=sys.stderr, mininterval=0.5) as progress:
        for recommender in recommenders:
            progress.set_description(f"{recommender.name}: learning")
            recommender.fit(task.training)
            results[recommender.name] = _run(recommender, task, task.walks, k, progress).result(
                weights
            )
            if not task.with_history:
                continue
            if recommender.uses_history:
                scores = _run(recommender, task, task.with_history, k, progress)
                with_history[recommender.name] = scores.result(weights)
    if task.with_history:
        for recommender in recommenders:
            if not recommender.uses_history:
                # Its lists are the same; what counts as new is not.
                with_history[recommender.name] = replace(results[recommender.name], new={})
    return results, with_history


def _run(
    recommender: Recommender,
    task: Task,
    walks: Sequence[Walk],
    k: int,
    progress: tqdm[Never],
) -> Scores:
    progress.set_description(recommender.name)
    scores = Scores(task.training, k)
    for prediction in recommender.predict(walks, k):
        scores.add(walks[prediction.walk], prediction)
        progress.update()
    if len(scores.ranks) != sum(len(walk.targets) for walk in walks):
        msg = f"{recommender.name} answered {len(scores.ranks)} of the targets, not all"
        raise RuntimeError(msg)
    return scores
