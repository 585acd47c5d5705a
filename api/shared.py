"""What the workers of a machine share: a folder of metrics and a file of rate limits.

Apart from both, because the parent of the workers sets the variables and imports nothing else of
the service: prometheus_client chooses between one process and several when it is imported, and a
parent without the service's modules can load new ones at a restart of its workers (SIGHUP).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
RATE_FILE_VARIABLE: Final = "RECOMMENDER_API_RATE_FILE"


def make_folder(parent: Path) -> str:
    """Make an empty folder and return its path."""
    folder = parent / "metrics"
    folder.mkdir()
    return str(folder)


def forget_worker(pid: int) -> None:
    """Drop the gauges of a worker that has ended; its counters stay in the sums."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid)  # type: ignore[no-untyped-call]
