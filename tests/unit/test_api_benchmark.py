"""What the service's benchmark computes, without servers."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.api import Turn, merged, parse_result
from benchmarks.runner import BenchmarkError


def test_result_of_wrk_is_read_in_its_units() -> None:
    output = "Running 2s test\n  more\nRESULT 5000 2000000 0\nTIMES 1500 24000\n"
    turn = parse_result(output)
    assert (turn.count, turn.seconds) == (5000, 2.0)
    assert turn.times_ms.tolist() == [1.5, 24.0]


@pytest.mark.parametrize(
    "output",
    [
        "",
        "RESULT 0 2000000 0\nTIMES 1",
        "RESULT 10 2000000 1\nTIMES 1",
        "RESULT 10 2000000 0\n",
    ],
)
def test_run_that_failed_is_no_result(output: str) -> None:
    with pytest.raises(BenchmarkError):
        parse_result(output)


def test_turns_are_put_together_by_the_number_of_their_answers() -> None:
    # 90 answers of 1 to 90 ms, and 10 of which two quantiles are known.
    many = Turn(90, 1.0, np.arange(1.0, 91.0), cpu=0.9, cassandra=0.2)
    few = Turn(10, 3.0, np.array([500.0, 1000.0]), cpu=0.1, cassandra=0.1)

    load = merged([few, many])

    assert load.per_second == 25.0
    assert load.p50_ms == 50.0
    assert load.p99_ms == 1000.0
    assert load.cpu_us == pytest.approx(10_000)
    assert load.cassandra_us == pytest.approx(3_000)
