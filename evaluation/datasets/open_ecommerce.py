"""Open e-commerce 1.0 (Berke et al., Scientific Data 11:491, 2024): purchases on a large store.

Either the published ``amazon-purchases.csv`` (columns Order Date, Purchase Price Per Unit,
Quantity, Title, ASIN/ISBN (Product Code), Category, Survey ResponseID) or a table of the columns
date, user, asin, title, category, price, qty.

Real: who bought what on which day, with titles and categories. Made up: the time of day. Dates are
days, so a user's purchases of one day are put at midnight UTC, 1 ms apart in the order of the
file, which need not be the order in which they were bought. The session is the user's day. Lines
without a product code or a user are left out and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from evaluation.datasets.common import (
    Conversion,
    only_file,
    parse_time_ms,
    read_table,
    require_columns,
)
from evaluation.files import DataError, FileProduct
from udfs.schemas import Event

PUBLISHED: Final = {
    "date": "Order Date",
    "user": "Survey ResponseID",
    "asin": "ASIN/ISBN (Product Code)",
    "title": "Title",
    "category": "Category",
    "price": "Purchase Price Per Unit",
    "qty": "Quantity",
}


def convert(inputs: Sequence[Path]) -> Conversion:
    """Convert the table; see the module for what becomes what.

    Raises:
        DataError: The file is of neither format.
    """
    path = only_file(inputs)
    made = Conversion()
    names: dict[str, str] = {}
    of_day: Counter[tuple[str, str]] = Counter()
    for number, row in enumerate(read_table(path), 2):
        if not names:
            names = PUBLISHED if PUBLISHED["date"] in row else {name: name for name in PUBLISHED}
            require_columns(path, row, list(names.values()))
        user, asin, day = (row[names[name]].strip() for name in ("user", "asin", "date"))
        if not asin or not user:
            made.left_out["no product code or user"] += 1
            continue
        try:
            ts = parse_time_ms(day, "%Y-%m-%d")
            price = float(row[names["price"]]) if row[names["price"]].strip() else None
            quantity = round(float(row[names["qty"]])) if row[names["qty"]].strip() else None
        except ValueError as error:
            msg = f"{path}, row {number}: {error}"
            raise DataError(msg) from error
        line = of_day[user, day]
        of_day[user, day] += 1
        made.events.append(
            Event(
                event_id=f"{user}-{day}-{line}",
                user_id=user,
                type="purchase",
                ts=ts + line,
                product_id=asin,
                session_id=f"{user}-{day}",
                quantity=quantity,
            )
        )
        made.products[asin] = FileProduct(
            product_id=asin,
            title=row[names["title"]].strip(),
            category=row[names["category"]].strip(),
            price=price,
        )
    return made
