"""Well-known recommenders to compare with."""

from __future__ import annotations

from evaluation.baselines.items import AssociationRules, ItemItem, LastItem, NearItems
from evaluation.baselines.popularity import PersonalPopularity, Popularity, RecentPopularity
from evaluation.baselines.sessions import STAN, SKnn, VSKnn
from evaluation.protocol import Recommender

__all__ = [
    "STAN",
    "AssociationRules",
    "ItemItem",
    "LastItem",
    "NearItems",
    "PersonalPopularity",
    "Popularity",
    "RecentPopularity",
    "SKnn",
    "VSKnn",
    "all_baselines",
]


def all_baselines() -> list[Recommender]:
    """Every baseline with its default parameters.

    The last two are in no list of session-based baselines, but are stronger than those there are
    where people buy the same again, or where the order of a session means something.
    """
    return [
        Popularity(),
        RecentPopularity(),
        LastItem(),
        ItemItem(),
        AssociationRules(),
        SKnn(),
        VSKnn(),
        STAN(),
        PersonalPopularity(),
        NearItems(),
    ]
