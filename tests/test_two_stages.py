"""benchmarks.two_stages: what its figures count."""

import numpy as np
import pytest

from benchmarks.two_stages import Truth, rate
from posepipe.skeleton import NUM_JOINTS, PCKH_JOINTS


@pytest.fixture
def truth():
    """Two people, of whom the second has one joint without a label; their heads are 60 px large."""
    joints = np.arange(2 * NUM_JOINTS * 2, dtype=np.float64).reshape(2, NUM_JOINTS, 2)
    is_annotated = np.ones((2, NUM_JOINTS), bool)
    is_annotated[1, PCKH_JOINTS[0]] = False
    return Truth(["a.jpg", "b.jpg"], [(0, 0, 1)] * 2, joints, is_annotated, np.array([[0, 0, 60, 80]] * 2, dtype=np.float64))


def test_labelled_joints_within_half_a_head_count(truth):
    found = truth.joints + np.array([29.9, 0])
    found[0, PCKH_JOINTS[:3]] += np.array([1, 0])
    row = rate(truth, found)
    num_joints = 2 * len(PCKH_JOINTS) - 1
    assert row["pckh"] == pytest.approx(100 * (num_joints - 3) / num_joints)
    assert (row["change"], row["change_95"], row["num_people"]) == (0, (0, 0), 2)


def test_a_person_without_a_prediction_is_missed_and_the_change_says_so(truth):
    found = truth.joints.copy()
    found[1] = np.nan
    row = rate(truth, found, truth.joints)
    missed = 100 * (len(PCKH_JOINTS) - 1) / (2 * len(PCKH_JOINTS) - 1)
    assert row["pckh"] == pytest.approx(100 - missed)
    assert row["change"] == pytest.approx(-missed)
    low, high = row["change_95"]
    assert low < -missed < high
