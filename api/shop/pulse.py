"""What the pipeline does, asked of Flink's JobManager once a second while somebody looks."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec
import requests

from connectors.flink_metrics import ALL, LAG, job_metrics, live_job, totals

logger = logging.getLogger(__name__)

# Where the figures come from: nobody has named a JobManager; it does not answer; it has no job.
State = Literal["not_configured", "not_reachable", "no_job", "connected"]

EVERY_SECONDS: Final = 1.0
# Seconds after the last question during which Flink goes on being asked.
_LOOKED_AT_SECONDS: Final = 15.0
KEPT_SAMPLES: Final = 180
# The JobManager renews what it knows when it is asked, and answers with what it knew before: over
# one second a rate would jump between nothing and twice as much.
RATE_SECONDS: Final = 6.0
_TIMEOUT_SECONDS: Final = 2.0
_RATES: Final = ("events", "updates", "lookups")


class Sample(msgspec.Struct, frozen=True, gc=False):
    """The job at one moment, ``at`` in epoch milliseconds.

    Rates are a second's, over the last seconds; null at the first of a job. ``updates`` are profile
    updates. ``freshness`` is from an event's time to its saved list, over the last minute.
    """

    at: int
    events: int
    events_per_second: float | None
    updates_per_second: float | None
    lookups_per_second: float | None
    lag: int | None
    freshness_p50_ms: float
    freshness_p99_ms: float
    write_p99_ms: float
    dead_letters: int
    catalogue_products: int


class Pulse:
    """Keeps the newest samples; the requests that show them never wait for Flink.

    Args:
        url: The JobManager's REST interface; None: there is none to ask.
        get: Answers GET of a path with its JSON, instead of the JobManager, for tests.
        clock: Seconds.
    """

    def __init__(
        self,
        url: str | None,
        *,
        get: Callable[..., Any] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = url
        self._http = requests.Session()
        self._get = get if get is not None else self._ask
        self._clock = clock
        self._samples: deque[Sample] = deque(maxlen=KEPT_SAMPLES)
        # (time, totals) of the last seconds of one job.
        self._history: deque[tuple[float, dict[str, float]]] = deque()
        self._job: str | None = None
        self._primed = False
        self._looked_at = float("-inf")
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self.state: State = "not_configured" if url is None else "not_reachable"

    def start(self) -> None:
        """Begin; does nothing where there is nobody to ask."""
        if self._url is not None:
            self._thread.start()

    def close(self) -> None:
        """End; a question under way is not waited for longer than it may take."""
        self._closing.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join(_TIMEOUT_SECONDS + EVERY_SECONDS)

    def samples(self, since: int) -> list[Sample]:
        """Return the samples after ``since`` (epoch ms), oldest first, and go on asking."""
        self._looked_at = self._clock()
        self._wanted.set()
        return [one for one in tuple(self._samples) if one.at > since]

    def look(self) -> None:
        """Ask once."""
        try:
            job = live_job(self._get)
            values = None if job is None else totals(job_metrics(self._get, job, ALL))
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            self._become("not_reachable", error)
            return
        if job is None or values is None:
            self._become("no_job")
            return
        self._become("connected")
        if not self._primed:
            # After a pause it answers with what was then.
            self._primed = True
            return
        now = self._clock()
        if job != self._job or (
            self._history and values["events"] < self._history[-1][1]["events"]
        ):
            # Another job, or the same begun anew: it counts from the start.
            self._job = job
            self._history.clear()
        rates = self._rates(now, values)
        self._history.append((now, values))
        while now - self._history[0][0] > RATE_SECONDS:
            self._history.popleft()
        lag = values.get(LAG)
        self._samples.append(
            Sample(
                round(now * 1000),
                round(values["events"]),
                *rates,
                None if lag is None else round(lag),
                values["freshness_p50_ms"],
                values["freshness_p99_ms"],
                values["write_latency_p99_ms"],
                round(values["dead_letters"]),
                round(values["catalogue_size"]),
            )
        )

    def _rates(
        self, now: float, values: dict[str, float]
    ) -> tuple[float | None, float | None, float | None]:
        def rate(name: str) -> float | None:
            if not self._history or now <= self._history[0][0]:
                return None
            then, old = self._history[0]
            return round(max(0.0, values[name] - old[name]) / (now - then), 1)

        events, updates, lookups = (rate(name) for name in _RATES)
        return events, updates, lookups

    def _become(self, state: State, error: Exception | None = None) -> None:
        if state != self.state and state != "connected":
            logger.warning("live figures of Flink: %s; %r", state, error)
        self.state = state

    def _ask(self, path: str, **parameters: str) -> Any:
        answer = self._http.get(f"{self._url}{path}", params=parameters, timeout=_TIMEOUT_SECONDS)
        answer.raise_for_status()
        return answer.json()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wanted.wait()
            if self._closing.is_set():
                return
            if self._clock() - self._looked_at > _LOOKED_AT_SECONDS:
                self._wanted.clear()
                # A pause is no interval to take a rate over.
                self._history.clear()
                self._primed = False
                continue
            begun = time.monotonic()
            try:
                self.look()
            except Exception:
                logger.exception("the live figures cannot be read")
            self._closing.wait(max(0.1, EVERY_SECONDS - (time.monotonic() - begun)))
