"""YooChoose (RecSys Challenge 2015): click sessions, some with purchases.

Files: ``yoochoose-clicks.dat`` (session, timestamp, item, category) and, where given,
``yoochoose-buys.dat`` (session, timestamp, item, price, quantity); commas, no header, times as
``2014-04-07T10:51:09.277Z``.

Real: everything in the events. Made up: the user. Nobody is known beyond a session, so each
session is its own user. An item's category is the first of its clicks that names one of 1 to 12
(0 is missing, S a special offer, longer numbers a brand); titles do not exist.
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
)
from evaluation.files import DataError, FileProduct
from udfs.schemas import Event

CATEGORIES: Final = frozenset(str(number) for number in range(1, 13))
_CLICKS: Final = ("session", "time", "item", "category")
_BUYS: Final = ("session", "time", "item", "price", "quantity")
_TIME: Final = "%Y-%m-%dT%H:%M:%S.%fZ"


def convert(inputs: Sequence[Path]) -> Conversion:
    """Convert the tables; see the module for what becomes what.

    Raises:
        DataError: A file is missing or not of the published format.
    """
    made = Conversion()
    clicks = need_file(inputs, "yoochoose-clicks.dat")
    for number, row in enumerate(read_table(clicks, names=_CLICKS), 1):
        item, category = row["item"], row["category"]
        made.events.append(
            Event(
                event_id=f"c{number}",
                user_id=row["session"],
                type="click",
                ts=_time_ms(clicks, number, row["time"]),
                product_id=item,
                session_id=row["session"],
            )
        )
        known = made.products.get(item)
        if known is None or (not known.category and category in CATEGORIES):
            made.products[item] = FileProduct(
                product_id=item, category=category if category in CATEGORIES else ""
            )
    buys = find_file(inputs, "yoochoose-buys.dat")
    if buys is None:
        return made
    for number, row in enumerate(read_table(buys, names=_BUYS), 1):
        item = row["item"]
        try:
            price, quantity = float(row["price"]), int(row["quantity"])
        except ValueError as error:
            msg = f"{buys}, line {number}: {error}"
            raise DataError(msg) from error
        made.events.append(
            Event(
                event_id=f"b{number}",
                user_id=row["session"],
                type="purchase",
                ts=_time_ms(buys, number, row["time"]),
                product_id=item,
                session_id=row["session"],
                # Some buys are published with price and quantity 0: not recorded.
                quantity=quantity or None,
            )
        )
        known = made.products.get(item)
        if known is None or (known.price is None and price > 0):
            made.products[item] = FileProduct(
                product_id=item,
                category=known.category if known is not None else "",
                price=price if price > 0 else None,
            )
    return made


def _time_ms(path: Path, number: int, text: str) -> int:
    try:
        return parse_time_ms(text, _TIME)
    except ValueError as error:
        msg = f"{path}, line {number}: {error}"
        raise DataError(msg) from error
