"""Tells whether the catalogue topic has been read up to where it ended when the job was submitted.

Until then a lookup sees a part of the products, and its lists are made again later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

# A partition that is silent for so long has been read, whatever its end says: the last offset can
# be a transaction's marker, or a record that compaction has removed.
SILENCE_S: Final = 30.0

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
        """Take partitions that have been silent for long as read."""
        if self._open:
            self._open = {
                partition: heard_s
                for partition, heard_s in self._open.items()
                if now_s - heard_s < SILENCE_S
            }

    def unstored(self) -> bytes | None:
        """Return what the state must hold from now on; None where it does already."""
        if self._stored:
            return None
        self._stored = True
        return _encoder.encode(_Stored(_VERSION, self._read))
