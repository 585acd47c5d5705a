"""What the workers of a machine share: a folder of metrics and a file of rate limits.

Apart from both, because the parent of the workers sets the variables and imports nothing else of
the service: prometheus_client chooses between one process and several when it is imported, and a
parent without the service's modules can load new ones at a restart of its workers (SIGHUP).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
RATE_FILE_VARIABLE: Final = "RECOMMENDER_API_RATE_FILE"
# The counter of events, by what became of them.
EVENTS_METRIC: Final = "recommender_api_events"
OUTCOMES: Final = ("sent", "delivered", "failed", "lost", "dropped")


def make_folder(parent: Path) -> str:
    """Make an empty folder and return its path."""
    folder = parent / "metrics"
    folder.mkdir()
    return str(folder)


def forget_worker(pid: int) -> int:
    """Drop the gauges of a worker that has ended; its counters stay in the sums.

    Returns:
        Events that it had put into its buffer and that nobody has told more of: a worker that was
        killed. They are counted as lost from now on, but those of its last second, which it had
        not counted yet.
    """
    from prometheus_client.mmap_dict import MmapedDict
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid)  # type: ignore[no-untyped-call]
    file = Path(os.environ[FOLDER_VARIABLE]) / f"counter_{pid}.db"
    if not file.exists():
        return 0
    # Into the file of the ended worker: another process with its number goes on from there.
    values = MmapedDict(str(file))  # type: ignore[no-untyped-call]
    try:
        of_events = {}
        for key, value, _ in values.read_all_values():  # type: ignore[no-untyped-call]
            metric, _, labels, _ = json.loads(key)
            if metric == EVENTS_METRIC:
                of_events[labels["outcome"]] = (key, value)
        if not of_events.keys() >= set(OUTCOMES):
            return 0
        counts = {outcome: value for outcome, (_, value) in of_events.items()}
        left = counts["sent"] - counts["delivered"] - counts["failed"] - counts["lost"]
        if left <= 0:
            return 0
        values.write_value(of_events["lost"][0], counts["lost"] + left, 0.0)  # type: ignore[no-untyped-call]
        return int(left)
    finally:
        values.close()  # type: ignore[no-untyped-call]
