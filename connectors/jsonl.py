"""Files of the wire formats, one JSON object a line, plain or gzip, with what is wrong counted."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, TypeVar, cast

from udfs.schemas import (
    Event,
    ProductLine,
    RejectedError,
    decode_event_line,
    decode_product_line,
)

# Messages of bad lines that are kept to be shown.
_SHOWN: Final = 5

_Line = TypeVar("_Line")


class LineError(ValueError):
    """A file cannot be used; the message names the file and, where there is one, the line."""


@dataclass
class BadLines:
    """What of a file is no line of its format: an error, or counted where ``skip`` is set."""

    skip: bool = False
    count: int = 0
    shown: list[str] = field(default_factory=list)
    """The first messages."""

    def add(self, path: Path, number: int, problem: object) -> None:
        """Take note of a bad line.

        Raises:
            LineError: Bad lines are not skipped.
        """
        message = f"{path}, line {number}: {problem}"
        if not self.skip:
            raise LineError(message)
        self.count += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(message)


def read_catalogue(path: Path, bad: BadLines) -> Iterator[tuple[int, ProductLine]]:
    """Read a catalogue file: line numbers and products, one at a time.

    Raises:
        LineError: The file cannot be read, or a line is bad and not skipped.
    """
    return _read(path, decode_product_line, bad)


def read_events(path: Path, bad: BadLines) -> Iterator[tuple[int, Event]]:
    """Read an event log: line numbers and events, one at a time.

    Raises:
        LineError: The file cannot be read, or a line is bad and not skipped.
    """
    return _read(path, decode_event_line, bad)


def _read(
    path: Path, decode: Callable[[bytes], _Line], bad: BadLines
) -> Iterator[tuple[int, _Line]]:
    try:
        with _open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    decoded = decode(line.rstrip(b"\r\n"))
                except RejectedError as error:
                    bad.add(path, number, error.detail)
                    continue
                yield number, decoded
    except (OSError, EOFError, zlib.error) as error:
        msg = f"{path} cannot be read: {error}"
        raise LineError(msg) from error


def read_lines(path: Path) -> Iterator[bytes]:
    """Read the lines of a file that :func:`write_lines` wrote, without their ends."""
    with _open(path, "rb") as lines:
        for line in lines:
            yield line.rstrip(b"\n")


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write a file at once: until all lines are there, it has another name."""
    part = path.with_name(f".part-{path.name}")
    with _open(part, "wb") as file:
        for line in lines:
            file.write(line + b"\n")
    part.replace(path)


def _open(path: Path, mode: str) -> IO[bytes]:
    if path.suffix != ".gz":
        return cast("IO[bytes]", path.open(mode))
    # No name and time in the header: the same lines give the same file.
    if mode == "wb":
        return cast("IO[bytes]", gzip.GzipFile(path, mode, compresslevel=4, mtime=0))
    return cast("IO[bytes]", gzip.open(path, mode))
