"""What the converters share: reading published tables, and what a conversion returns."""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO, cast

from evaluation.files import DataError, FileProduct
from udfs.schemas import Event


@dataclass
class Conversion:
    """What a converter made of the published files."""

    events: list[Event] = field(default_factory=list)
    products: dict[str, FileProduct] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    """Lines that became no event, by reason."""


def read_table(
    path: Path,
    *,
    delimiter: str = ",",
    names: Sequence[str] | None = None,
    encoding: str = "utf-8",
) -> Iterator[dict[str, str]]:
    """Read a delimited text file, plain or gzip, as one dictionary a line.

    Args:
        path: The file.
        delimiter: What separates the columns; may be longer than one character.
        names: The columns of a file without a header; None: its first line names them.
        encoding: Of the text.

    Raises:
        DataError: The file cannot be read or decoded, or a line has too few columns.
    """
    try:
        with _open_text(path, encoding) as lines:
            # The csv module knows only single characters; "::" files quote nothing.
            rows: Iterator[list[str]] = (
                csv.reader(lines, delimiter=delimiter)
                if len(delimiter) == 1
                else (line.rstrip("\r\n").split(delimiter) for line in lines)
            )
            header = list(names) if names is not None else next(rows, [])
            if header and header[0].startswith("\ufeff"):
                header[0] = header[0].removeprefix("\ufeff")
            for number, row in enumerate(rows, 1 if names is not None else 2):
                if not row:
                    continue
                if len(row) < len(header):
                    msg = f"{path}, line {number}: {len(row)} columns, expected {len(header)}"
                    raise DataError(msg)
                yield dict(zip(header, row, strict=False))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        msg = f"{path} cannot be read: {error}"
        raise DataError(msg) from error


def require_columns(path: Path, row: dict[str, str], columns: Sequence[str]) -> None:
    """Check that a table has the columns of its published format.

    Raises:
        DataError: Naming what is missing.
    """
    missing = [column for column in columns if column not in row]
    if missing:
        msg = f"{path} has no column {', '.join(missing)}; it has {', '.join(row)}"
        raise DataError(msg)


def find_file(inputs: Sequence[Path], *names: str) -> Path | None:
    """Find the file of one of the published names, perhaps with ``.gz``, among the inputs."""
    wanted = {*names, *(f"{name}.gz" for name in names)}
    for path in inputs:
        if path.name in wanted:
            return path
    return None


def need_file(inputs: Sequence[Path], *names: str) -> Path:
    """Find a file as :func:`find_file` does.

    Raises:
        DataError: It is not among the inputs.
    """
    path = find_file(inputs, *names)
    if path is None:
        msg = f"--input must name {' or '.join(names)}"
        raise DataError(msg)
    return path


def only_file(inputs: Sequence[Path]) -> Path:
    """Take the one input of a data set that is one file.

    Raises:
        DataError: There are several.
    """
    if len(inputs) != 1:
        msg = f"this data set is one file, --input names {len(inputs)}"
        raise DataError(msg)
    return inputs[0]


def parse_time_ms(text: str, *formats: str) -> int:
    """Read a date or time, taken as UTC, as epoch milliseconds.

    Raises:
        ValueError: In none of the formats.
    """
    for form in formats:
        try:
            moment = datetime.strptime(text, form).replace(tzinfo=UTC)
        except ValueError:
            continue
        return round(moment.timestamp() * 1000)
    msg = f"{text!r} is not of the form {' or '.join(formats)}"
    raise ValueError(msg)


def _open_text(path: Path, encoding: str) -> TextIO:
    if path.suffix == ".gz":
        return cast("TextIO", gzip.open(path, "rt", encoding=encoding, newline=""))
    return path.open(encoding=encoding, newline="")
