"""Online Retail (UCI, Chen 2015): a gift shop's invoices as purchases.

Published as ``Online Retail.xlsx``; save it as CSV (UTF-8) first. Columns: InvoiceNo, StockCode,
Description, Quantity, InvoiceDate, UnitPrice, CustomerID, Country.

Real: what stands on an invoice, in the order of its lines, and the minute of the invoice (local
time, taken as UTC). Made up: the lines of one invoice are 1 ms apart, so that their order is kept;
a line without a customer gets one user an invoice; every line is a ``purchase``, clicks there are
none. The session is the invoice.

Left out, and counted: cancellations (InvoiceNo C…), which take back or correct an earlier line and
are nobody's next step; bookkeeping (other letters, amounts of zero or less, lines without a price:
damages, samples, write-offs); and stock codes that are no product (postage, fees, discounts).
"""

from __future__ import annotations

from collections import Counter, defaultdict
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

COLUMNS: Final = (
    "InvoiceNo",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "UnitPrice",
    "CustomerID",
)
NO_PRODUCTS: Final = frozenset(
    {"POST", "D", "M", "DOT", "C2", "BANK CHARGES", "CRUK", "AMAZONFEE", "S", "B"}
)


def convert(inputs: Sequence[Path]) -> Conversion:
    """Convert the table; see the module for what becomes what.

    Raises:
        DataError: The file is not of the published format.
    """
    path = only_file(inputs)
    made = Conversion()
    lines_of: Counter[str] = Counter()
    titles: dict[str, Counter[str]] = defaultdict(Counter)
    prices: dict[str, float] = {}
    for number, row in enumerate(read_table(path), 2):
        if number == 2:
            require_columns(path, row, COLUMNS)
        try:
            invoice, code = row["InvoiceNo"].strip(), row["StockCode"].strip()
            quantity, price = round(float(row["Quantity"])), float(row["UnitPrice"])
            ts = parse_time_ms(row["InvoiceDate"], "%Y-%m-%d %H:%M:%S", "%m/%d/%Y %H:%M")
            customer = row["CustomerID"].strip()
        except ValueError as error:
            msg = f"{path}, row {number}: {error}"
            raise DataError(msg) from error
        if invoice.startswith("C"):
            made.left_out["cancellation"] += 1
            continue
        if not invoice.isdigit() or quantity <= 0 or price <= 0:
            made.left_out["bookkeeping"] += 1
            continue
        if code.upper() in NO_PRODUCTS:
            made.left_out["no product"] += 1
            continue
        line = lines_of[invoice]
        lines_of[invoice] += 1
        made.events.append(
            Event(
                event_id=f"{invoice}-{line}",
                user_id=str(int(float(customer))) if customer else f"invoice-{invoice}",
                type="purchase",
                ts=ts + line,
                product_id=code,
                session_id=invoice,
                quantity=quantity,
            )
        )
        titles[code][row["Description"].strip()] += 1
        prices[code] = price
    for code, found in titles.items():
        made.products[code] = FileProduct(
            product_id=code, title=found.most_common(1)[0][0], price=prices[code]
        )
    return made
