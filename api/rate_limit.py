"""Rate limits that hold over all workers of a machine: a few shared bytes a key and scope.

The generic cell rate algorithm (ITU-T I.371): of each limit only the time is kept at which its
bucket is full again. The times stand in a memory-mapped file that the workers share; a lock of the
file guards a change and goes with the process that holds it, so that a killed worker leaves
nothing locked. The limiters to be had keep such counters in one process, or in a server (Redis,
memcached) that this stack does not have. Several machines behind a balancer have a limit each.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from api.access import SCOPES, Scope

_TIME: Final = struct.Struct("=d")
# Seconds: what a sum of float64 times may be off.
_ROUNDING: Final = 1e-6
# Share of a second's units that a worker takes ahead, and how long it may use them, seconds. The
# lock of the file is a system call at which a thread loses the interpreter to others: taken for
# each request it was a quarter of the work of a read, as py-spy showed.
LEASE_SHARE: Final = 0.01
LEASE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Rate:
    """Units a second in the long run, and how many at once."""

    per_second: float
    burst: float

    def __post_init__(self) -> None:
        """Refuse what lets nothing through.

        Raises:
            ValueError: A number is not positive.
        """
        if not self.per_second > 0 or not self.burst >= 1:
            msg = f"rate {self.per_second}/s, burst {self.burst}: must be positive"
            raise ValueError(msg)


class RateLimiter:
    """Limits a scope for each of a number of keys.

    Args:
        rates: The limit of each scope; one that is absent is not limited.
        keys: How many keys there are.
        path: A file that all workers open; None: limits of this process alone.
        clock: Seconds; must be the same for all workers, and not be set back.
    """

    def __init__(
        self,
        rates: Mapping[Scope, Rate],
        keys: int,
        path: str | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rates = dict(rates)
        self._clock = clock
        self._lock = threading.Lock()
        # Slot -> units taken ahead that are left, and until when they count.
        self._leases: dict[int, tuple[int, float]] = {}
        size = max(1, keys) * len(SCOPES) * _TIME.size
        self._file = open(path, "r+b") if path else tempfile.TemporaryFile()  # noqa: SIM115
        self._descriptor = self._file.fileno()
        if os.fstat(self._descriptor).st_size < size:
            os.ftruncate(self._descriptor, size)
        self._shared = mmap.mmap(self._descriptor, size)

    def take(self, key: int, scope: Scope, units: int = 1) -> float:
        """Take ``units`` of a key's limit; nothing is taken where they are too many.

        A request of more than the burst passes when the bucket is full, and is paid off then.

        Returns:
            0 where they were taken, else the seconds after which they could be.
        """
        rate = self._rates.get(scope)
        if rate is None or units < 1:
            return 0.0
        slot = key * len(SCOPES) + SCOPES.index(scope)
        with self._lock:
            now = self._clock()
            left, until = self._leases.get(slot, (0, 0.0))
            if left >= units and now < until:
                self._leases[slot] = (left - units, until)
                return 0.0
            ahead = int(rate.per_second * LEASE_SHARE)
            if ahead > units and self._take_shared(slot, rate, ahead, now) == 0:
                rest = left if now < until else 0
                self._leases[slot] = (rest + ahead - units, now + LEASE_SECONDS)
                return 0.0
            return self._take_shared(slot, rate, units, now)

    def exhausted(self, key: int, scope: Scope) -> float:
        """Tell whether not even one unit could be taken; none is.

        Returns:
            0 where one could, else the seconds after which as many as anybody asks for could be.
        """
        rate = self._rates.get(scope)
        if rate is None:
            return 0.0
        slot = key * len(SCOPES) + SCOPES.index(scope)
        with self._lock:
            now = self._clock()
            left, until = self._leases.get(slot, (0, 0.0))
            if (left >= 1 and now < until) or not self._wait_shared(slot, rate, 1, now):
                return 0.0
            return self._full_at(slot, now) - now

    def owe(self, key: int, scope: Scope, units: int) -> None:
        """Take ``units`` that are used already: what they are above the limit is paid off first."""
        rate = self._rates.get(scope)
        if rate is None:
            return
        slot = key * len(SCOPES) + SCOPES.index(scope)
        with self._lock:
            now = self._clock()
            left, until = self._leases.get(slot, (0, 0.0))
            leased = min(left, units) if now < until else 0
            if leased:
                self._leases[slot] = (left - leased, until)
            if units > leased:
                self._take_shared(slot, rate, units - leased, now, whatever=True)

    def _take_shared(
        self, slot: int, rate: Rate, units: int, now: float, *, whatever: bool = False
    ) -> float:
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            wait = 0.0 if whatever else self._wait_shared(slot, rate, units, now)
            if wait == 0:
                full_at = self._full_at(slot, now) + units / rate.per_second
                _TIME.pack_into(self._shared, slot * _TIME.size, full_at)
            return wait
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def _wait_shared(self, slot: int, rate: Rate, units: int, now: float) -> float:
        # How far ahead of now the bucket may be promised before this request is.
        room = max(0.0, (rate.burst - units) / rate.per_second)
        wait = self._full_at(slot, now) - now - room
        return wait if wait > _ROUNDING else 0.0

    def _full_at(self, slot: int, now: float) -> float:
        return max(now, float(_TIME.unpack_from(self._shared, slot * _TIME.size)[0]))

    def close(self) -> None:
        """Let go of the file; the limiter can no longer be used."""
        with self._lock:
            self._shared.close()
            self._file.close()
