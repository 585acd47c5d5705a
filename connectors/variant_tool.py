"""Compares the variants of an experiment by what their users did since a time.

Reads every saved event once, by pages, with the consistency and the limits of a read: a scan for a
person, not for a service. A user counts with all events since the time that carry a variant; one
whose events carry two (the experiment was changed meanwhile) is left out, and counted.

Where Cassandra is and how it is asked is in RECOMMENDER_CASSANDRA_*, as for the service.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import numpy as np
from cassandra import DriverException
from cassandra.cluster import NoHostAvailable
from scipy import stats

from connectors.cassandra_schema import statement
from connectors.cassandra_session import READ_PROFILE, CassandraOptions, connect
from connectors.command_line import since

_PAGE: Final = 5000
METRICS: Final = ("click", "add_to_cart", "purchase", "events")
_CONFIDENCE: Final = 0.95


class SavedEvent(NamedTuple):
    """What the comparison reads of an event."""

    user_id: str
    type: str
    ts: int
    """Epoch milliseconds."""
    variant: str | None


@dataclass
class Metric:
    """Events of a type a user, and how far the first variant's are away."""

    mean: float
    interval: tuple[float, float]
    difference: tuple[float, float] | None
    """95 % interval of this variant's mean less the first one's (Welch's t); None: the first."""
    p_value: float | None
    """That of a difference of zero (Welch's t); None: the first, or nothing varies."""


@dataclass
class Group:
    """The users of one variant."""

    users: int
    metrics: dict[str, Metric]


@dataclass
class Comparison:
    """All variants, in the order of their names."""

    groups: dict[str, Group]
    mixed: int
    """Users left out, since their events carry several variants."""
    split_p_value: float | None
    """That of users divided by the given shares (chi-square); small: something is broken."""


def compare(
    events: Iterable[SavedEvent], since_ms: int, shares: Mapping[str, float] | None = None
) -> Comparison:
    """Compare variants by their users' events.

    Args:
        events: In any order.
        since_ms: Older events do not count, epoch milliseconds.
        shares: The shares that the users were divided by; None: they are not checked.

    Raises:
        ValueError: A share is named for a variant without events, or the other way round.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    variants: dict[str, set[str]] = defaultdict(set)
    for event in events:
        if event.ts >= since_ms and event.variant:
            counts[event.user_id][event.type] += 1
            variants[event.user_id].add(event.variant)
    users: dict[str, list[str]] = defaultdict(list)
    mixed = 0
    for user_id, names in variants.items():
        if len(names) > 1:
            mixed += 1
        else:
            users[next(iter(names))].append(user_id)
    groups: dict[str, Group] = {}
    first: dict[str, np.ndarray[Any, Any]] = {}
    for name in sorted(users):
        metrics = {}
        for metric in METRICS:
            values = np.array(
                [
                    counts[user].total() if metric == "events" else counts[user][metric]
                    for user in users[name]
                ],
                dtype=np.float64,
            )
            metrics[metric] = _metric(values, first.get(metric))
            first.setdefault(metric, values)
        groups[name] = Group(len(users[name]), metrics)
    return Comparison(groups, mixed, _split(groups, shares))


def _metric(values: np.ndarray[Any, Any], first: np.ndarray[Any, Any] | None) -> Metric:
    mean = float(values.mean())
    low, high = _interval(mean, float(values.std(ddof=1)) if len(values) > 1 else 0.0, len(values))
    if first is None:
        return Metric(mean, (low, high), None, None)
    if len(values) < 2 or len(first) < 2 or not (values.std() or first.std()):
        return Metric(mean, (low, high), (float("nan"), float("nan")), None)
    found = stats.ttest_ind(values, first, equal_var=False)
    between = found.confidence_interval(_CONFIDENCE)
    return Metric(mean, (low, high), (float(between.low), float(between.high)), float(found.pvalue))


def _interval(mean: float, deviation: float, users: int) -> tuple[float, float]:
    if users < 2:
        return float("nan"), float("nan")
    width = float(stats.t.ppf((1 + _CONFIDENCE) / 2, users - 1)) * deviation / users**0.5
    return mean - width, mean + width


def _split(groups: Mapping[str, Group], shares: Mapping[str, float] | None) -> float | None:
    if shares is None:
        return None
    if shares.keys() != groups.keys():
        msg = f"shares of {', '.join(sorted(shares))}, events of {', '.join(groups) or 'none'}"
        raise ValueError(msg)
    seen = np.array([group.users for group in groups.values()], dtype=np.float64)
    expected = np.array([shares[name] for name in groups], dtype=np.float64)
    expected *= seen.sum() / expected.sum()
    return float(stats.chisquare(seen, expected).pvalue)


def table(comparison: Comparison) -> str:
    """Show a comparison for a person: events a user, and 95 % intervals of the differences."""
    lines = [f"{'variant':<20}{'users':>10}  " + "".join(f"{name:>30}" for name in METRICS)]
    for name, group in comparison.groups.items():
        cells = []
        for metric in METRICS:
            found = group.metrics[metric]
            cell = f"{found.mean:.4f}"
            if found.difference is not None:
                low, high = found.difference
                cell += f" ({low:+.4f} to {high:+.4f})"
            cells.append(f"{cell:>30}")
        lines.append(f"{name:<20}{group.users:>10,}  " + "".join(cells))
    if comparison.mixed:
        lines.append(f"left out: {comparison.mixed:,} users with events of several variants")
    if comparison.split_p_value is not None:
        lines.append(f"users divided as asked for: p = {comparison.split_p_value:.4g}")
    return "\n".join(lines)


def saved_events(session: Any, keyspace: str) -> Iterable[SavedEvent]:
    """Read every saved event, page by page."""
    scan = session.prepare(statement("scan_events", keyspace))
    scan.fetch_size = _PAGE
    for user_id, kind, ts, variant in session.execute(scan, execution_profile=READ_PROFILE):
        at = ts if ts.tzinfo else ts.replace(tzinfo=UTC)
        yield SavedEvent(user_id, kind, round(at.timestamp() * 1000), variant)


def _share(text: str) -> tuple[str, float]:
    name, _, share = text.partition("=")
    return name, float(share)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison and a JSON line; what cannot be read ends with a message, status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m connectors.variant_tool",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--since", default="7d", help="ISO time, or how long ago: 90m, 2d")
    parser.add_argument(
        "--share",
        type=_share,
        action="append",
        metavar="NAME=SHARE",
        help="share of a variant as the job was told (repeatable): checks how users were divided",
    )
    given = parser.parse_args(arguments)
    try:
        since_ms = since(given.since, datetime.now(UTC))
        options = CassandraOptions.from_env()
        cluster, session = connect(options, role="variants")
        try:
            found = compare(
                saved_events(session, options.keyspace),
                since_ms,
                dict(given.share) if given.share else None,
            )
        finally:
            cluster.shutdown()
    except (ValueError, DriverException, NoHostAvailable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not found.groups:
        print(f"error: no event since {given.since} carries a variant", file=sys.stderr)
        return 1
    print(table(found))
    said = {
        name: {
            "users": group.users,
            **{metric: group.metrics[metric].mean for metric in METRICS},
            **{f"{metric}_p": group.metrics[metric].p_value for metric in METRICS},
        }
        for name, group in found.groups.items()
    }
    print(json.dumps({"variants": said, "split_p": found.split_p_value}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
