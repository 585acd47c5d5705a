"""Diginetica (CIKM Cup 2016): sessions of item views and purchases of an online shop.

Files: ``train-item-views.csv`` (sessionId;userId;itemId;timeframe;eventdate) and, where given,
``train-purchases.csv`` (sessionId;userId;timeframe;eventdate;ordernumber;itemId), ``products.csv``
(itemId;pricelog2;product.name.tokens) and ``product-categories.csv`` (itemId;categoryId).

Real: sessions, the day, and ``timeframe``, the milliseconds since the session's first query. Made
up: the time of day; every session starts at midnight UTC of its day. Most views name no user (NA):
their session is its own user. Title words are published as numbers, so titles match titles but no
typed query. The price is published as a rounded logarithm only, and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from evaluation.datasets.common import (
    Conversion,
    find_file,
    need_file,
    parse_time_ms,
    read_table,
    require_columns,
)
from evaluation.files import DataError, FileProduct
from udfs.schemas import Event, EventType

_COLUMNS: Final = ("sessionId", "userId", "itemId", "timeframe", "eventdate")


def convert(inputs: Sequence[Path]) -> Conversion:
    """Convert the tables; see the module for what becomes what.

    Raises:
        DataError: A file is missing or not of the published format.
    """
    made = Conversion()
    _add(made, need_file(inputs, "train-item-views.csv"), "click")
    purchases = find_file(inputs, "train-purchases.csv")
    if purchases is not None:
        _add(made, purchases, "purchase")
    categories: dict[str, str] = {}
    path = find_file(inputs, "product-categories.csv")
    if path is not None:
        for row in read_table(path, delimiter=";"):
            require_columns(path, row, ("itemId", "categoryId"))
            categories[row["itemId"]] = row["categoryId"]
    path = find_file(inputs, "products.csv")
    if path is not None:
        for row in read_table(path, delimiter=";"):
            require_columns(path, row, ("itemId", "product.name.tokens"))
            item = row["itemId"]
            made.products[item] = FileProduct(
                product_id=item,
                title=row["product.name.tokens"].replace(",", " "),
                category=categories.get(item, ""),
            )
    for event in made.events:
        item = event.product_id or ""
        if item not in made.products:
            made.products[item] = FileProduct(product_id=item, category=categories.get(item, ""))
    return made


def _add(made: Conversion, path: Path, kind: EventType) -> None:
    for number, row in enumerate(read_table(path, delimiter=";"), 2):
        if number == 2:
            require_columns(path, row, _COLUMNS)
        session, user = row["sessionId"], row["userId"]
        try:
            ts = parse_time_ms(row["eventdate"], "%Y-%m-%d") + int(row["timeframe"])
        except ValueError as error:
            msg = f"{path}, row {number}: {error}"
            raise DataError(msg) from error
        made.events.append(
            Event(
                event_id=f"{kind}-{number - 1}",
                user_id=f"session-{session}" if user in {"NA", ""} else user,
                type=kind,
                ts=ts,
                product_id=row["itemId"],
                session_id=session,
            )
        )
