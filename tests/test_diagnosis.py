"""diagnosis.py: inversions, boxes that are off, and histograms, by hand."""

from functools import reduce
from operator import add

import numpy as np
import pytest

from posepipe.diagnosis import box_error_counts, box_errors, error_histogram, inversion_counts, inversions
from posepipe.skeleton import JOINT, LEFT_RIGHT_PAIRS

ANKLE = LEFT_RIGHT_PAIRS.index((JOINT["left_ankle"], JOINT["right_ankle"]))
NORM = 10.0  # px; half of it is the threshold


def pose(**named):
    """One person: NaN but for the joints named."""
    joints = np.full((1, 16, 2), np.nan)
    for name, point in named.items():
        joints[0, JOINT[name]] = point
    return joints


def inverted(predicted, truth):
    return inversions(predicted, truth, np.isfinite(truth).all(axis=2), [NORM])


TRUTH = pose(left_ankle=(0, 0), right_ankle=(100, 0))


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ((0, 0), (100, 0), (0, 0)),
        ((100, 0), (0, 0), (1, 1)),
        ((103, 4), (100, 0), (1, 0)),  # 5 px from the other side: at the threshold
        ((103, 4.1), (100, 0), (0, 0)),
        ((50, 0), (50, 0), (0, 0)),  # a miss, but of nothing else
        ((np.nan, 0), (0, 0), (0, 1)),
    ],
)
def test_a_joint_is_inverted_where_it_misses_its_label_and_hits_the_other_sides(left, right, expected):
    found = inverted(pose(left_ankle=left, right_ankle=right), TRUTH)
    assert found.shape == (1, 6, 2)
    assert tuple(found[0, ANKLE]) == expected
    assert np.isnan(np.delete(found[0], ANKLE, axis=0)).all(), "pairs without labels are not counted"


def test_a_joint_that_hits_both_labels_is_not_inverted():
    truth = pose(left_ankle=(0, 0), right_ankle=(4, 0))
    assert inverted(pose(left_ankle=(4, 0), right_ankle=(0, 0)), truth)[0, ANKLE].tolist() == [0, 0]


def test_a_pair_needs_both_labels_and_a_norm():
    truth = pose(left_ankle=(0, 0))
    assert np.isnan(inverted(pose(left_ankle=(0, 0), right_ankle=(0, 0)), truth)).all()
    assert np.isnan(inversions(TRUTH, TRUTH, np.isfinite(TRUTH).all(axis=2), [np.nan])).all()


def test_inversions_are_counted_by_joint_and_by_pair():
    truth = pose(left_ankle=(0, 0), right_ankle=(100, 0), left_knee=(0, 50), right_knee=(100, 50))
    predicted = pose(left_ankle=(100, 0), right_ankle=(0, 0), left_knee=(100, 50), right_knee=(100, 50))
    counts = inversion_counts(inverted(predicted, truth))
    assert (counts.inverted, counts.num_joints, counts.swapped_pairs, counts.num_pairs) == (3, 4, 1, 2)
    assert (counts.joint_rate, counts.pair_rate) == (0.75, 0.5)


def test_rates_of_nothing_are_nan():
    counts = inversion_counts(np.full((3, 6, 2), np.nan))
    assert np.isnan([counts.joint_rate, counts.pair_rate]).all()


def test_a_box_that_is_off_by_a_3_4_5_triangle():
    # The label's diagonal is 50 px, its head size 30; the prediction has the diagonal 100.
    centre, size = box_errors([[3, 4, 63, 84], [0, 0, 30, 40]], [[0, 0, 30, 40]] * 2)
    assert centre.tolist() == pytest.approx([np.hypot(18, 24) / 30, 0])
    assert size.tolist() == pytest.approx([1, 0])


def test_boxes_without_label_are_nan_and_without_prediction_inf():
    centre, size = box_errors([[0, 0, 3, 4], [np.nan, 0, 3, 4], [0, 0, 3, 4]], [[np.nan] * 4, [0, 0, 3, 4], [5, 5, 5, 5]])
    np.testing.assert_array_equal(centre, [np.nan, np.inf, np.nan])
    np.testing.assert_array_equal(size, [np.nan, np.inf, np.nan])
    counts = box_error_counts(centre, size)
    assert (counts.num_boxes, counts.num_missing) == (0, 1)
    assert np.isnan([counts.mean_centre_error, counts.mean_size_error]).all()


def test_the_mean_error_is_over_the_boxes_that_were_predicted():
    counts = box_error_counts(np.array([0.5, np.inf, np.nan, 1.5]), np.array([0.25, np.inf, np.nan, 0.75]))
    assert (counts.mean_centre_error, counts.mean_size_error, counts.num_missing) == (1, 0.5, 1)


def test_errors_fall_into_bins_of_a_twentieth():
    errors = np.full((6, 16), np.nan)
    errors[:, 3] = [0, 0.049, 0.05, 0.999, 1, np.inf]
    counts = error_histogram(errors)
    assert counts.shape == (16, 21)
    assert {place: count for place, count in enumerate(counts[3].tolist()) if count} == {0: 2, 1: 1, 19: 1, 20: 2}
    assert counts.sum() == 6


def test_counts_of_the_parts_are_the_counts_of_the_whole():
    random = np.random.default_rng(3)
    truth = random.uniform(0, 30, (50, 16, 2))
    truth[random.random((50, 16)) < 0.2] = np.nan
    found = inversions(random.uniform(0, 30, (50, 16, 2)), truth, np.isfinite(truth).all(axis=2), np.full(50, NORM))
    centre, size = box_errors(random.uniform(0, 9, (50, 4)), [[0, 0, 3, 4]] * 50)
    parts = np.split(random.permutation(50), [0, 7, 7, 30])
    assert reduce(add, [inversion_counts(found[part]) for part in parts]) == inversion_counts(found)
    assert inversion_counts(found).inverted > 0
    added, whole = reduce(add, [box_error_counts(centre[part], size[part]) for part in parts]), box_error_counts(centre, size)
    assert added.num_boxes == whole.num_boxes == 50
    assert added.centre_sum == pytest.approx(whole.centre_sum)
