"""MovieLens (GroupLens): film ratings as clicks.

Files: ``ratings.csv`` (userId, movieId, rating, timestamp) with ``movies.csv`` (movieId, title,
genres) of the newer sets, or ``ratings.dat`` (UserID::MovieID::Rating::Timestamp) with
``movies.dat`` (MovieID::Title::Genres, Latin-1) of 1M and 10M. Times are epoch seconds.

Real: who rated which film when. Made up: a rating is taken as one ``click``, whatever its stars,
as is usual for implicit feedback; it is no visit to a shop, and people rate many films in one
sitting. Ratings of one user in the same second keep the order of the file. The session is the
user's day (UTC).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from evaluation.datasets.common import Conversion, find_file, need_file, read_table, require_columns
from evaluation.files import DataError, FileProduct
from udfs.schemas import Event

_RATINGS: Final = ("userId", "movieId", "rating", "timestamp")
_MOVIES: Final = ("movieId", "title", "genres")


def convert(inputs: Sequence[Path]) -> Conversion:
    """Convert the tables; see the module for what becomes what.

    Raises:
        DataError: A file is missing or not of the published format.
    """
    made = Conversion()
    path = need_file(inputs, "ratings.csv", "ratings.dat")
    for number, row in enumerate(_table(path, _RATINGS), 1):
        user, movie = row["userId"], row["movieId"]
        try:
            seconds = int(row["timestamp"])
            day = datetime.fromtimestamp(seconds, UTC).date().isoformat()
        except (ValueError, OverflowError, OSError) as error:
            msg = f"{path}, rating {number}: {error}"
            raise DataError(msg) from error
        made.events.append(
            Event(
                event_id=f"{user}-{movie}-{seconds}",
                user_id=user,
                type="click",
                ts=1000 * seconds,
                product_id=movie,
                session_id=f"{user}-{day}",
            )
        )
        made.products.setdefault(movie, FileProduct(product_id=movie))
    movies = find_file(inputs, "movies.csv", "movies.dat")
    if movies is not None:
        for row in _table(movies, _MOVIES):
            movie = row["movieId"]
            made.products[movie] = FileProduct(
                product_id=movie, title=row["title"], category=row["genres"].replace("|", " ")
            )
    return made


def _table(path: Path, names: Sequence[str]) -> list[dict[str, str]]:
    if ".dat" in path.suffixes:
        return list(read_table(path, delimiter="::", names=names, encoding="latin-1"))
    rows = list(read_table(path))
    if rows:
        require_columns(path, rows[0], names)
    return rows
