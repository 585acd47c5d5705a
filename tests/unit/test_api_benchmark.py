"""What the service's benchmark computes, without servers."""

from __future__ import annotations

import pytest

from benchmarks.api import Load, parse_result
from benchmarks.runner import BenchmarkError


def test_result_of_wrk_is_read_in_its_units() -> None:
    output = "Running 2s test\n  more\nRESULT 5000 2000000 1500 24000 0\n"
    assert parse_result(output) == Load(2500.0, 1.5, 24.0)


@pytest.mark.parametrize("output", ["", "RESULT 0 2000000 0 0 0", "RESULT 10 2000000 1 1 1"])
def test_run_that_failed_is_no_result(output: str) -> None:
    with pytest.raises(BenchmarkError):
        parse_result(output)
