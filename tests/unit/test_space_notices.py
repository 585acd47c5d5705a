"""Notices of a space: the switch comes once, when the last partition says that it is complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.builders import NOW_MS
from udfs.product_record import SpaceSwitch
from udfs.schemas import SpaceNotice, decode_space_notice, encode_space_notice
from udfs.space_notices import AnnouncedVersionError, count_notice

GOLDEN = Path(__file__).parents[1] / "golden"


def played(*notices: tuple[SpaceNotice, int]) -> list[SpaceSwitch | None]:
    known: bytes | None = None
    switches = []
    for notice, partition in notices:
        known, switch = count_notice(known, notice, partition)
        switches.append(switch)
    return switches


def notice(complete: bool = True, started_ms: int = 5, force: bool = False) -> SpaceNotice:
    return SpaceNotice("s", started_ms, 2, complete, force)


def test_a_space_is_complete_when_all_partitions_say_so() -> None:
    began, ended = notice(complete=False), notice()
    switch = SpaceSwitch(1, "s", 5)
    assert played((began, 0), (began, 1), (ended, 0), (ended, 0), (ended, 1), (ended, 1)) == [
        None, None, None, None, switch, None,
    ]  # fmt: skip


def test_the_publication_that_started_later_holds() -> None:
    old, new = notice(), notice(started_ms=6)
    assert played((old, 0), (new, 0), (old, 1), (new, 1)) == [
        None, None, None, SpaceSwitch(1, "s", 6),
    ]  # fmt: skip


def test_one_forced_notice_forces_the_switch() -> None:
    (_, switch) = played((notice(force=True), 0), (notice(), 1))
    assert switch == SpaceSwitch(1, "s", 5, force=True)


def test_golden_notices_are_read() -> None:
    # Of v1 the second line was a state, which is no more.
    first = (GOLDEN / "space_v1.bin").read_bytes().splitlines()[0]
    assert decode_space_notice(first) == SpaceNotice("text3-v1+é", NOW_MS, 3, complete=True)
    second = (GOLDEN / "space_v2.bin").read_bytes()
    made = decode_space_notice(second)
    assert made == SpaceNotice("text3-v1+é", NOW_MS, 3, complete=True, force=True)
    assert encode_space_notice(made) == second


def test_the_golden_state_is_read() -> None:
    known = (GOLDEN / "announced_v1.bin").read_bytes()
    packed, switch = count_notice(known, SpaceNotice("text3-v1+é", 7, 3, complete=True), 2)
    assert switch == SpaceSwitch(1, "text3-v1+é", 7, force=True)
    assert packed != known
    with pytest.raises(AnnouncedVersionError, match="version 9"):
        count_notice(known.replace(b"\x96\x01", b"\x96\x09", 1), notice(), 0)
    with pytest.raises(AnnouncedVersionError):
        count_notice(b"\xc1", notice(), 0)
