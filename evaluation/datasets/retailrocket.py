"""RetailRocket (Kaggle, 2016): views, carts and transactions of an online shop.

Files: ``events.csv`` (timestamp, visitorid, event, itemid, transactionid; epoch milliseconds) and,
where given, ``item_properties_part1.csv`` and ``…_part2.csv`` (timestamp, itemid, property, value).

Real: everything in the events; a view becomes a ``click``. There is no session column: the events
have no ``session_id``, and the evaluation cuts sessions at pauses of 30 minutes. The catalogue has
the newest ``categoryid`` of an item; titles do not exist (all other properties are hashed).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from evaluation.datasets.common import (
    Conversion,
    find_file,
    need_file,
    read_table,
    require_columns,
)
from evaluation.files import DataError, FileProduct
from udfs.schemas import Event, EventType

TYPE_OF: Final[dict[str, EventType]] = {
    "view": "click",
    "addtocart": "add_to_cart",
    "transaction": "purchase",
}


def convert(inputs: Sequence[Path]) -> Conversion:
    """Convert the tables; see the module for what becomes what.

    Raises:
        DataError: A file is missing or not of the published format.
    """
    path = need_file(inputs, "events.csv")
    made = Conversion()
    for number, row in enumerate(read_table(path), 2):
        if number == 2:
            require_columns(path, row, ("timestamp", "visitorid", "event", "itemid"))
        try:
            kind, ts = TYPE_OF[row["event"]], int(row["timestamp"])
        except (KeyError, ValueError) as error:
            msg = f"{path}, row {number}: {error}"
            raise DataError(msg) from error
        item = row["itemid"]
        made.events.append(
            Event(
                event_id=str(number - 1),
                user_id=row["visitorid"],
                type=kind,
                ts=ts,
                product_id=item,
            )
        )
        if item not in made.products:
            made.products[item] = FileProduct(product_id=item)
    newest: dict[str, int] = {}
    for name in ("item_properties_part1.csv", "item_properties_part2.csv"):
        properties = find_file(inputs, name)
        if properties is None:
            continue
        for number, row in enumerate(read_table(properties), 2):
            if number == 2:
                require_columns(properties, row, ("timestamp", "itemid", "property", "value"))
            item = row["itemid"]
            if row["property"] != "categoryid" or item not in made.products:
                continue
            ts = int(row["timestamp"])
            if ts >= newest.get(item, ts):
                newest[item] = ts
                made.products[item] = FileProduct(product_id=item, category=row["value"])
    return made
