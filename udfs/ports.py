"""What the operators need of the outside: who saves their batches, and who reads a topic whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from udfs.schemas import DeadLetter, SaveBatch


class BatchSaver(Protocol):
    """Saves batches in the task's own thread."""

    def save(self, batch: SaveBatch) -> list[DeadLetter]:
        """Take a batch; after the last of a tick, return when all of them are acknowledged.

        Returns:
            What the database refused of them; none before the last batch.
        """

    def close(self) -> None:
        """Let go of connections."""


class Record(NamedTuple):
    """A record of Kafka."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int
    offset: int
    timestamp_ms: int


class TopicReader(Protocol):
    """Reads whole topics, each partition from its beginning."""

    def read(self, most: int = 2000, timeout_s: float = 0.5) -> Sequence[Record]:
        """Return up to ``most`` records, those that are there within ``timeout_s`` seconds."""

    @property
    def caught_up(self) -> bool:
        """Whether all that stood there when reading began has been read."""

    def positions(self) -> Mapping[tuple[str, int], int]:
        """Return the offset that is read next, by topic and partition."""

    def close(self) -> None:
        """Let go of connections."""
