"""benchmarks/score.py: its clock."""

import numpy as np
import pytest

from benchmarks.score import commit_rate


@pytest.mark.parametrize("cores", [1, 2, 4])
@pytest.mark.parametrize("start", range(4))
@pytest.mark.parametrize("count", [8, 11, 22, 37])
def test_cores_that_work_in_step_are_as_fast_as_others(cores, start, count):
    numbers = np.arange(start, start + count)
    in_bursts = (numbers // cores) * cores / 3.0
    assert commit_rate(in_bursts, cores) == pytest.approx(3.0)
    assert commit_rate(numbers / 3.0, cores) == pytest.approx(3.0)


def test_less_than_two_bursts_have_no_rate():
    with pytest.raises(ValueError, match="7 commits are no two bursts of 4"):
        commit_rate(np.arange(7.0), 4)
