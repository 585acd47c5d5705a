"""When a tick ends: soon on an idle machine, later under load, latest while old events are read.

A tick's length is chosen when one has been saved, from the time ``s`` that this took:

- While the events read are older than the longest tick, that is the length: no list would be fresh
  anyway, and long ticks look up each user once for many events.
- Else ``2 s`` where that is above the usual length, so that saving takes at most half of the time.
- Else ``4 s``, but not below the least length, nor above the usual one: a short tick makes fresh
  lists, and a quarter of the time for saving them leaves room for a burst.

A pause of the input ends the load: the next tick has the least length. A tick ends at a multiple of
its length, so that an event waits for half of it in the mean, but not sooner than half of it after
the last one was saved: else a length that changes would make ticks shorter than was chosen.
"""

from __future__ import annotations

from typing import Final

# The input has dried up when no event came for so long; a backlog's next event comes at once.
IDLE_MS: Final = 100


class Tick:
    """The tick under way; times are epoch milliseconds.

    The timer of its end may fire late, and the clock may go back.

    Args:
        least_ms: The shortest length; above ``usual_ms`` it counts as that.
        usual_ms: The length up to which an idle machine, and from which a busy one, chooses.
        longest_ms: The longest length, and the age from which events are old.
    """

    def __init__(self, least_ms: int, usual_ms: int, longest_ms: int) -> None:
        """Start as after a pause."""
        self._least_ms = min(least_ms, usual_ms)
        self._usual_ms = usual_ms
        self._longest_ms = longest_ms
        self._end_ms = 0
        self._event_ms = 0
        self._event_ts = 0
        self._active_ms = 0
        self._saved_ms = 0
        self._spent_ms = 0
        self._catching_up = False
        self.length_ms = self._least_ms
        """How long the next tick is."""
        self.probe_ms = 0
        """When to look whether a long tick can end early; see :meth:`is_over`."""

    @property
    def is_idle(self) -> bool:
        """Whether half of the time is free for other work."""
        has_least = self.length_ms <= self._least_ms
        return has_least and 4 * self._spent_ms <= self.length_ms and not self._catching_up

    def take(self, event_ts: int, now_ms: int) -> None:
        """Note an event and its own time."""
        self._event_ts = event_ts
        self._event_ms = self._active_ms = now_ms

    def wake(self, now_ms: int) -> None:
        """Note that there is work: time in which it is done is no pause."""
        self._active_ms = now_ms

    def end(self, now_ms: int) -> int:
        """Return when the tick ends that a user touched now belongs to; perhaps a new one."""
        # Not ahead of the clock, or so far that the clock must have gone back.
        if not 0 < self._end_ms - now_ms <= 2 * self._longest_ms:
            if now_ms - self._active_ms >= IDLE_MS:
                self.length_ms, self._spent_ms = self._least_ms, 0
                self._catching_up = False
            self._end_ms = (now_ms // self.length_ms + 1) * self.length_ms
            if self._end_ms - self._saved_ms < self.length_ms / 2:
                self._end_ms += self.length_ms
            if self._end_ms - now_ms > self._usual_ms:
                self.probe_ms = now_ms + self._usual_ms
        return self._end_ms

    def is_over(self, now_ms: int) -> bool:
        """Tell at ``probe_ms`` whether the reason for the length is gone; else look again later."""
        caught_up = self._catching_up and now_ms - self._event_ts <= self._longest_ms
        if now_ms - self._event_ms < IDLE_MS and not caught_up:
            self.probe_ms = now_ms + self._usual_ms
            return False
        self._end_ms = 0  # what comes now belongs to a tick of its own
        return True

    def saved(self, now_ms: int, spent_ms: int, newest_ts: int | None) -> None:
        """Choose the next length.

        Args:
            now_ms: The clock.
            spent_ms: How long it took to look up and save.
            newest_ts: The newest time of the events that were saved; None where there was none.
        """
        self._catching_up = (
            newest_ts is not None and now_ms - spent_ms - newest_ts > self._longest_ms
        )
        self._active_ms = self._saved_ms = now_ms
        self._spent_ms = spent_ms
        if self._catching_up:
            self.length_ms = self._longest_ms
        else:
            short_ms = min(4 * spent_ms, self._usual_ms)
            self.length_ms = min(max(self._least_ms, short_ms, 2 * spent_ms), self._longest_ms)
