"""What a product becomes by the records of `catalogue` that came for it since the last time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from udfs.product_record import (
    FloatVector,
    ProductRecord,
    RelatedRow,
    TextEncoder,
    is_late,
    merge,
    related_of,
    same,
)
from udfs.schemas import (
    MAX_TIMESTAMP_MS,
    PartialProduct,
    Product,
    ProductChange,
    ProductDetails,
    RejectedError,
)


class Update(NamedTuple):
    """A record that was accepted, in the order of its partition."""

    said: Product | PartialProduct | None
    """None deletes the product."""
    vector: FloatVector | None
    """The unit vector (d,) of what is said, where it has one."""
    record: bytes
    """The record as it came, see :func:`udfs.schemas.frame_record`."""
    kafka_ms: int = MAX_TIMESTAMP_MS
    """Kafka's time of the record, epoch milliseconds; that far ahead where it is not known."""


@dataclass
class Outcome:
    """What is left to do for one product."""

    before: ProductRecord | None
    """What its row says."""
    after: ProductRecord | None = None
    at_us: int = 0
    """Write time of its row, epoch microseconds."""
    accepted: int = 0
    """Records that hold; where there is none, nothing is to be done."""
    late: int = 0
    """Records that are older than what the shop said before."""
    rejected: list[tuple[Update, RejectedError]] = field(default_factory=list)
    deletes_related: bool = False
    """Whether what was known to be related leaves."""
    related: RelatedRow | None = None
    """What comes in its place, where the shop sent something."""
    between: tuple[ProductDetails, ...] = ()
    """What it was for a moment: where a writer failed before its row, its scopes may say so."""
    deleted_us: int = 0
    """Write time of the newest deletion, epoch microseconds; 0: none is known."""

    def change(self, encoded: bytes) -> ProductChange | None:
        """Return what is to be written of the product; None where its row says it already.

        Args:
            encoded: ``after`` as it stands in the row; empty where there is none.
        """
        if not self.between and (not self.accepted or same(self.before, self.after)):
            return None
        before, after = _details(self.before), _details(self.after)
        return ProductChange(before, after, self.at_us, encoded, self.between)


def apply_updates(
    base: ProductRecord | None,
    updates: Sequence[Update],
    *,
    now_us: int,
    deleted_us: int,
    encode_text: TextEncoder,
) -> Outcome:
    """Merge what came for a product into what its row says.

    Args:
        base: What the row says; None where there is none.
        updates: In the order of their partition.
        now_us: The clock, epoch microseconds.
        deleted_us: Write time of the newest deletion that is known, epoch microseconds.
        encode_text: See :func:`udfs.product_record.merge`.
    """
    # Above what was written, however the clock is set.
    at_us = max(now_us, (base.updated_us if base is not None else 0) + 1, deleted_us + 1)
    outcome = Outcome(base, base, at_us, deleted_us=deleted_us)
    passed: list[ProductRecord | None] = []
    related_at = 0
    for update in updates:
        passed.append(outcome.after)
        said = update.said
        if said is None:
            outcome.after = None
            outcome.deleted_us = at_us
            outcome.deletes_related, outcome.related = True, None
            outcome.accepted += 1
            continue
        related = related_of(said) if isinstance(said, Product) else None
        if is_late(outcome.after, said):
            outcome.late += 1
            # After a failure it can be late because the row has what followed it. What is related
            # stands in no row, so it is taken where nothing newer came with it.
            if related is not None and (said.updated_at or 0) >= related_at:
                outcome.related, related_at = related, said.updated_at or 0
            continue
        try:
            outcome.after = merge(
                outcome.after,
                said,
                # A product is as old as its first record, also where that waited in Kafka.
                seen_ms=min(now_us // 1000, update.kafka_ms),
                at_us=at_us,
                encode_text=encode_text,
                vector=update.vector,
            )
        except RejectedError as error:
            outcome.rejected.append((update, error))
            continue
        outcome.accepted += 1
        if related is not None:
            outcome.related, related_at = related, outcome.after.updated_at
    known = (_details(base), _details(outcome.after))
    states = dict.fromkeys(map(_details, passed[1:]))
    outcome.between = tuple(one for one in states if one is not None and one not in known)
    if not outcome.between and same(base, outcome.after):
        # It is emitted as it was written.
        outcome.after = base
    return outcome


def _details(record: ProductRecord | None) -> ProductDetails | None:
    if record is None:
        return None
    return ProductDetails(
        record.product_id, record.title, record.category, record.price, record.in_stock
    )
