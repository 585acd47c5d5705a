"""Assigns users to variants, named settings that are compared online, by a hash of their id."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from udfs.ranking import RankingConfig

MAX_NAME: Final = 64


@dataclass(frozen=True)
class Variant:
    """One setting and the users who get it."""

    name: str
    """Written with every list and event of its users."""
    share: float
    """Weight among the variants' shares, above 0."""
    ranking: RankingConfig
    """Its constants."""

    def __post_init__(self) -> None:
        """Refuse a name that cannot be written, and a share without users."""
        if not 1 <= len(self.name) <= MAX_NAME or not self.name.isprintable():
            msg = f"a variant's name has 1 to {MAX_NAME} printable characters, not {self.name!r}"
            raise ValueError(msg)
        if not 0 < self.share < float("inf"):
            msg = f"the share of variant {self.name} must be above 0, not {self.share}"
            raise ValueError(msg)


@dataclass(frozen=True)
class Experiment:
    """The variants that run side by side; with none, every user gets the job's own constants."""

    name: str = ""
    """Salt of the hash: another experiment divides the users anew, whoever was where before."""
    variants: tuple[Variant, ...] = ()

    def __post_init__(self) -> None:
        """Refuse variants that cannot be told apart."""
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            msg = f"variants of one name: {', '.join(names)}"
            raise ValueError(msg)

    def variant_of(self, user_id: str) -> int:
        """Return the place of a user's variant among the variants.

        It depends on the user's id, the experiment's name and the shares alone, so that whoever
        knows them, at any time and in any process, finds the same.

        Raises:
            ValueError: There are no variants.
        """
        if not self.variants:
            msg = "no variants"
            raise ValueError(msg)
        digest = blake2b(f"{self.name}\0{user_id}".encode(), digest_size=8).digest()
        left = int.from_bytes(digest, "big") / 2**64 * sum(one.share for one in self.variants)
        for place, variant in enumerate(self.variants):
            left -= variant.share
            if left < 0:
                return place
        return len(self.variants) - 1  # by rounding alone
