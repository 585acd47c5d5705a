"""The job's metrics as the JobManager's REST interface tells them, and what they add up to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

# GET of a path below the JobManager's address, with query parameters: the answer's JSON.
Get = Callable[..., Any]

# States from which a job does not come back (org.apache.flink.api.common.JobStatus).
DONE: Final = frozenset({"FINISHED", "FAILED", "CANCELED", "SUSPENDED"})
# Counters of the subtasks, which add up, and gauges, of which the largest is shown.
SUMS: Final = (
    *("events", "updates", "lookups", "dead_letters", "duplicates", "write_retries"),
    *("refused_events", "refused_rows", "reconnects", "erasures_unconfirmed"),
    *("unresolved_events", "erased_events", "opted_out_events"),
    *("catalogue_updates", "late_updates"),
)
MAXIMA: Final = (
    *("freshness_p50_ms", "freshness_p99_ms", "write_latency_p50_ms", "write_latency_p99_ms"),
    *("catalogue_size", "lookup_batch_size"),
)
LAG: Final = "pendingRecords"
# Names of the tasks of the recommender, the catalogue and their sources.
RECOMMENDER_TASKS: Final = re.compile(
    r"^(recommender|catalogue)|^Source: .*(events|catalogue-records|products|related)-source"
)
# Metrics that one request asks for: their names stand in its address.
_AT_ONCE: Final = 50


def live_job(get: Get) -> str | None:
    """Return the id of the job that is not at its end; None where there is none."""
    live = [job["id"] for job in get("/jobs")["jobs"] if job["status"] not in DONE]
    return live[0] if live else None


def job_metrics(get: Get, job_id: str, names: Sequence[str]) -> dict[str, list[float]]:
    """Return values over all vertices and subtasks of the metrics that end with ``.<name>``.

    Of our own job those of the recommender and its sources alone: the tasks of the trending lists
    are many, each would be a request, and they read the same topics once more.
    """
    values: dict[str, list[float]] = {name: [] for name in names}
    vertices = get(f"/jobs/{job_id}")["vertices"]
    recommender = [one for one in vertices if RECOMMENDER_TASKS.search(one["name"])]
    for vertex in recommender or vertices:
        path = f"/jobs/{job_id}/vertices/{vertex['id']}/metrics"
        ids = {
            entry["id"]: name
            for entry in get(path)
            if (name := str(entry["id"]).rsplit(".", 1)[-1]) in values
        }
        wanted = list(ids)
        for start in range(0, len(wanted), _AT_ONCE):
            chunk = wanted[start : start + _AT_ONCE]
            for entry in get(path, get=",".join(chunk)):
                try:
                    values[ids[entry["id"]]].append(float(entry["value"]))
                except (KeyError, ValueError):
                    continue
    return values


def totals(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return what `job_metrics` of ``SUMS``, ``MAXIMA`` and ``LAG`` comes to, for the whole job.

    The lag is absent while no source tells one.
    """
    found = {name: sum(values[name]) for name in SUMS}
    found |= {name: max(values[name], default=0.0) for name in MAXIMA}
    if values[LAG]:
        found[LAG] = sum(values[LAG])
    return found


ALL: Final = (*SUMS, *MAXIMA, LAG)
