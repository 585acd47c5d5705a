"""Clients that are made at their first use, in the process that uses them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from api.services import EventSink, RecordSink
from connectors.event_client import Counts
from udfs.schemas import Event


class _Closable(Protocol):
    def close(self) -> None: ...


_C = TypeVar("_C", bound=_Closable)


class _Lazy(Generic[_C]):
    """Makes one client, however many threads ask for it; none after `close`."""

    def __init__(self, make: Callable[[], _C]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self.made: _C | None = None

    def get(self) -> _C:
        """Return the client.

        Raises:
            KafkaException: A setting is not valid.
        """
        made = self.made
        if made is not None:
            return made
        with self._lock:
            if self.made is None:
                self.made = self._make()
            return self.made

    def close(self) -> None:
        """Close the client if there is one; it stays, closed."""
        with self._lock:
            made = self.made
        if made is not None:
            made.close()


class LazyEventSink:
    """An `EventSink` made at the first event."""

    def __init__(self, make: Callable[[], EventSink]) -> None:
        self._client = _Lazy(make)

    @property
    def counts(self) -> Counts:
        """See `EventSink.counts`."""
        made = self._client.made
        return Counts() if made is None else made.counts

    def offer(self, event: Event) -> bool:
        """See `EventSink.offer`."""
        return self._client.get().offer(event)

    def close(self) -> None:
        """See `EventSink.close`."""
        self._client.close()


class LazyRecordSink:
    """A `RecordSink` made at the first record."""

    def __init__(self, make: Callable[[], RecordSink]) -> None:
        self._client = _Lazy(make)

    def send(self, topic: str, records: Sequence[tuple[str, bytes | None]]) -> None:
        """See `RecordSink.send`."""
        self._client.get().send(topic, records)

    def close(self) -> None:
        """See `RecordSink.close`."""
        self._client.close()
