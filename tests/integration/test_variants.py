"""Two settings side by side: users divided by hash, lists and events marked, and compared."""

from __future__ import annotations

import json

import pytest

from connectors import variant_tool
from local.stack import Stack
from tests.integration.helpers import Pipeline, click, clustered_vectors, eventually
from udfs.ranking import RankingConfig
from udfs.variants import Experiment, Variant

pytestmark = pytest.mark.timeout(180)
USERS = 60


def test_variants_stand_with_lists_and_events_and_are_compared(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = ("--variant", "plain=2", "--variant", "bold=1,vector-share=0.5")
    options = ("--tick-ms", "300", "--experiment", "share", *variants)
    ranking = RankingConfig()
    experiment = Experiment("share", (Variant("plain", 2, ranking), Variant("bold", 1, ranking)))
    users = [f"u{at}" for at in range(USERS)]
    expected = {user: ("plain", "bold")[experiment.variant_of(user)] for user in users}
    with Pipeline.create(stack, "variants", *options) as pipeline:
        vectors = clustered_vectors(40)
        pipeline.publish({f"p{at}": vector for at, vector in enumerate(vectors)})
        pipeline.submit()
        pipeline.wait_products()
        for at, user in enumerate(users):
            # The bold ones click twice, and buy.
            bold = expected[user] == "bold"
            kinds = ("click", "click", "purchase") if bold else ("click",)
            pipeline.send(click(user, f"p{(at + n) % 40}", kind) for n, kind in enumerate(kinds))
        pipeline.wait_saved()
        eventually(lambda: str(USERS - len(pipeline.lists()) or ""), 30)
        lists = pipeline.query("SELECT user_id, variant FROM {}.recommendations_by_user")
        assert {row.user_id: row.variant for row in lists} == expected

        monkeypatch.setenv("RECOMMENDER_CASSANDRA_HOSTS", stack.cassandra.host)
        monkeypatch.setenv("RECOMMENDER_CASSANDRA_PORT", str(stack.cassandra.port))
        monkeypatch.setenv("RECOMMENDER_CASSANDRA_KEYSPACE", pipeline.keyspace)
        shares = ["--share", "plain=2", "--share", "bold=1"]
        assert variant_tool.main(["--since", "1h", *shares]) == 0
        said = json.loads(capsys.readouterr().out.splitlines()[-1])
        counts = {name: list(expected.values()).count(name) for name in ("plain", "bold")}
        assert {name: found["users"] for name, found in said["variants"].items()} == counts
        assert said["variants"]["plain"]["click"] == 1
        assert said["variants"]["bold"]["click"] == 2
        assert said["variants"]["bold"]["purchase"] == 1
        assert said["split_p"] > 1e-4

        assert variant_tool.main(["--since", "2000-01-01", "--share", "plain=1"]) == 1
        assert "shares of plain" in capsys.readouterr().err
