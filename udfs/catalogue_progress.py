"""Tells whether the catalogue topic has been read up to where it ended when the job was submitted.

Until then a lookup sees a part of the products, and its lists are made again later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

# A partition that is silent for so long has been read, whatever its end says: the last offsets can
# be markers of a few transactions, or records that compaction has removed.
SILENCE_S: Final = 30.0
NEAR_END: Final = 64
# Further from the end it is more likely that the records are on their way: another subtask that
# waits for Cassandra holds up the catalogue of all.
FAR_SILENCE_S: Final = 600.0
# Looks are closer together than this, unless the operator itself was held up.
_LOOK_S: Final = 1.0

_VERSION: Final = 1


class ProgressVersionError(ValueError):
    """The stored progress was written in a format that this code cannot read."""


class _Stored(msgspec.Struct, array_like=True):
    """What the broadcast state holds, format v1: msgpack."""

    version: int
    read: dict[int, int]
    """Newest offset that was read, by partition."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Stored)


class CatalogueProgress:
    """How far each partition of the topic has been read; times are seconds of any steady clock."""

    def __init__(self, ends: Mapping[int, int], now_s: float) -> None:
        """Start where nothing was read.

        Args:
            ends: End offset of each partition, the one behind its last record; a partition that
                is not there counts as read.
            now_s: The clock.
        """
        self._ends = ends
        self._read: dict[int, int] = {}
        # Partitions that are not read up to their end, and when they were last heard of.
        self._open = {partition: now_s for partition, end in ends.items() if end > 0}
        self._looked_s = now_s
        self._stored = True

    @property
    def complete(self) -> bool:
        """Whether every partition has been read up to its end."""
        return not self._open

    def load(self, value: bytes, now_s: float) -> None:
        """Go on from where a restored job had read to.

        Raises:
            ProgressVersionError: A format that this code cannot read.
        """
        try:
            stored = _decoder.decode(value)
        except msgspec.MsgspecError as error:
            msg = f"progress of the catalogue: {error}"
            raise ProgressVersionError(msg) from error
        if stored.version != _VERSION:
            msg = f"progress of version {stored.version}, this reads {_VERSION}"
            raise ProgressVersionError(msg)
        for partition, offset in stored.read.items():
            self.read(partition, offset, now_s)
        self._stored = True

    def read(self, partition: int, offset: int, now_s: float) -> None:
        """Take note of a record."""
        self._read[partition] = offset
        self._stored = False
        if partition in self._open:
            if offset >= self._ends[partition] - 1:
                del self._open[partition]
            else:
                self._open[partition] = now_s

    def look(self, now_s: float) -> None:
        """Take partitions that have been silent for long as read.

        Time in which nobody looked does not count: nothing could be heard in it.
        """
        late_s = max(0.0, now_s - self._looked_s - _LOOK_S)
        self._looked_s = now_s
        for partition, heard_s in list(self._open.items()):
            heard_s = min(now_s, heard_s + late_s)
            if now_s - heard_s < self._silence_s(partition):
                self._open[partition] = heard_s
            else:
                del self._open[partition]

    def _silence_s(self, partition: int) -> float:
        """Return how long a partition must be silent to count as read."""
        missing = self._ends[partition] - 1 - self._read.get(partition, -1)
        return SILENCE_S if missing <= NEAR_END else FAR_SILENCE_S

    def unstored(self) -> bytes | None:
        """Return what the state must hold from now on; None where it does already."""
        if self._stored:
            return None
        self._stored = True
        return _encoder.encode(_Stored(_VERSION, self._read))
