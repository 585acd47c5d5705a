"""Counts the notices of the topic `catalogue` that a space has been published whole."""

from __future__ import annotations

from typing import Final

import msgspec

from udfs.product_record import VERSION, SpaceSwitch
from udfs.schemas import SpaceNotice

_ANNOUNCED_VERSION: Final = 1


class AnnouncedVersionError(RuntimeError):
    """The state is of a version that this code cannot read."""


class _Announced(msgspec.Struct, array_like=True, frozen=True):
    """Keyed state of the newest announced space, format v1: msgpack."""

    version: int
    space: str
    started_ms: int
    partitions: int
    complete: list[int]
    """Partitions in which the notice stands that it is complete, ascending."""
    force: bool


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Announced)


def count_notice(
    known: bytes | None, notice: SpaceNotice, partition: int
) -> tuple[bytes, SpaceSwitch | None]:
    """Count one notice; of two publications the one that started later holds.

    Args:
        known: What this returned before; None at first.
        notice: What the topic says.
        partition: Where it says so.

    Returns:
        What is known now, and the switch where this was the last notice that was missing.

    Raises:
        AnnouncedVersionError: ``known`` is of another version.
    """
    before = None if known is None else _read(known)
    if known is not None and before is not None and notice.started_ms < before.started_ms:
        return known, None
    name = (notice.space, notice.started_ms)
    complete: set[int] = set()
    force = notice.force
    if before is not None and (before.space, before.started_ms) == name:
        complete.update(before.complete)
        force = force or before.force
    was_complete = len(complete) >= notice.partitions
    if notice.complete:
        complete.add(partition)
    packed = _encoder.encode(
        _Announced(_ANNOUNCED_VERSION, *name, notice.partitions, sorted(complete), force)
    )
    if was_complete or len(complete) < notice.partitions:
        return packed, None
    return packed, SpaceSwitch(VERSION, *name, force)


def _read(known: bytes) -> _Announced:
    try:
        announced = _decoder.decode(known)
    except msgspec.MsgspecError as error:
        msg = f"announced space: {error}"
        raise AnnouncedVersionError(msg) from error
    if announced.version != _ANNOUNCED_VERSION:
        msg = f"announced space of version {announced.version}, this reads {_ANNOUNCED_VERSION}"
        raise AnnouncedVersionError(msg)
    return announced
