"""metrics.py: published and recomputed figures to the last digit, and cases worked by hand."""

import json
from functools import reduce
from operator import add

import numpy as np
import pytest

from posepipe.metrics import (
    CURVE_THRESHOLDS,
    box_counts,
    head_bone,
    head_size,
    iou,
    joint_errors,
    pckh,
    pckh_counts,
    pckh_curve_counts,
    squared_error_counts,
)
from posepipe.skeleton import JOINT, PCKH_GROUPS

PREDICTIONS = ("bearpaw_s1", "bearpaw_s2", "bearpaw_s8", "newell", "valid_ours", "valid_example", "tompson")
FLOORS = ("all_zero", "objpos_for_every_joint", "objpos_plus_15_scale_down_for_every_joint", "mean_pose")


def people(num, **labelled):
    """Labels of `num` people: NaN and not annotated, except the joints named, all at the point given."""
    truth, is_annotated = np.full((num, 16, 2), np.nan), np.zeros((num, 16), dtype=bool)
    for name, point in labelled.items():
        truth[:, JOINT[name]], is_annotated[:, JOINT[name]] = point, True
    return truth, is_annotated


def errors_of(**joints):
    """Errors of as many people as each joint has values; NaN for the joints not named."""
    errors = np.full((len(next(iter(joints.values()))), 16), np.nan)
    for name, values in joints.items():
        errors[:, JOINT[name]] = values
    return errors


def random_errors(num_people=60):
    random = np.random.default_rng(7)
    errors = random.uniform(0, 1, (num_people, 16))
    errors[random.uniform(size=errors.shape) < 0.2] = np.nan
    errors[random.uniform(size=errors.shape) < 0.1] = np.inf
    return errors


def random_parts(num, seed):
    """A random cut of range(num) into up to eight parts, some of them perhaps empty, in random order."""
    random = np.random.default_rng(seed)
    return np.split(random.permutation(num), np.sort(random.integers(0, num + 1, random.integers(1, 8))))


# Published figures on the standard validation people


@pytest.fixture(scope="module")
def vectors(shared_data):
    """The labels with NaN wherever nothing is annotated, the predictions by name, and the expected figures."""
    folder = shared_data / "pckh-vectors"
    if not folder.is_dir():
        pytest.skip(f"real data is absent: no folder {folder}")
    people = dict(np.load(folder / "ground_truth.npz"))
    people["joints"][~people["annotated"]] = np.nan
    return people, dict(np.load(folder / "predictions.npz")), json.loads((folder / "expected.json").read_text())


def figures(predicted, people):
    """Every figure of expected.json, in percent to six decimals."""
    truth, annotated = people["joints"], people["annotated"]
    errors = joint_errors(predicted, truth, annotated, head_size(people["headboxes"].reshape(-1, 4)))
    official = pckh_counts(errors)
    fractions = official.groups | {
        "pooled14": official.total,
        "unweighted14": official.joint_mean,
        "pooled16": official.pooled_16,
        "pooled14_at_0.10": pckh_counts(errors, 0.10).total,
        "pooled14_at_0.11": pckh_counts(errors, 0.11).total,
        "auc14": pckh_curve_counts(errors).auc,
        "toolkit_head": official.toolkit_head,
        "toolkit_ubody": official.toolkit_upper_body,
        "bone_normalised14": pckh(predicted, truth, annotated, head_bone(truth, annotated)).total,
    }
    return {name: round(100 * fraction, 6) for name, fraction in fractions.items()}


def floor(name, people):
    """The prediction without a model. The mean pose is taken of these same people, in the frame of objpos and scale."""
    objpos, scale = people["objpos"][:, None], people["scale"][:, None, None]
    return {
        "all_zero": np.zeros((1, 1, 2)),
        "objpos_for_every_joint": objpos,
        "objpos_plus_15_scale_down_for_every_joint": objpos + scale * np.array([0, 15]),
        "mean_pose": objpos + scale * np.nanmean((people["joints"] - objpos) / scale, axis=0),
    }[name] + np.zeros((len(scale), 16, 1))


@pytest.mark.parametrize("name", PREDICTIONS)
def test_every_figure_of_a_published_prediction_set_to_the_last_digit(vectors, name):
    people, predictions, expected = vectors
    wanted = {figure: value for figure, value in expected["predictions"][name].items() if value is not None}
    got = figures(predictions[name], people)
    assert {figure: got[figure] for figure in wanted} == wanted
    # tompson predicts neither pelvis nor thorax, so its pooled16 has no expected value.
    assert set(got) - set(wanted) == ({"pooled16"} if name == "tompson" else set())


@pytest.mark.parametrize("name", FLOORS)
def test_every_figure_of_a_floor_to_the_last_digit(vectors, name):
    people, _, expected = vectors
    got = figures(floor(name, people), people)
    assert {figure: got[figure] for figure in expected["floors"][name]} == expected["floors"][name]


def test_no_published_set_is_left_out(vectors):
    _, predictions, expected = vectors
    assert set(PREDICTIONS) == set(predictions) == set(expected["predictions"])
    assert set(FLOORS) == set(expected["floors"])


@pytest.mark.parametrize("name", ["bearpaw_s2", "bearpaw_s8"])
def test_published_table_rows_to_the_printed_digit(vectors, name):
    people, predictions, expected = vectors
    got = figures(predictions[name], people)
    columns = ("head_top", "shoulder", "elbow", "wrist", "hip", "knee", "ankle", "unweighted14")
    assert [round(got[column], 2) for column in columns] == expected["published"][name]["row"]


def test_labelled_joints_of_the_validation_people_are_counted(vectors):
    people, predictions, expected = vectors
    counts = pckh(predictions["newell"], people["joints"], people["annotated"], head_size(people["headboxes"].reshape(-1, 4)))
    assert counts.labelled.tolist() == expected["labelled_per_joint"]
    assert counts.labelled.sum() == expected["labelled_total"]
    assert counts.num_joints == expected["labelled_total"] - 2878 - 2932


# Normalisers


def test_head_size_is_six_tenths_of_the_diagonal():
    assert head_size([[10, 20, 40, 60], [0, 0, -6, -8]]).tolist() == [30, 6]


def test_head_size_of_nobody_is_nan():
    np.testing.assert_array_equal(head_size([[0, 0, 3, 4], [np.nan] * 4]), [3, np.nan])


def test_head_bone_is_the_distance_from_head_top_to_upper_neck():
    truth, is_annotated = people(1, head_top=(10, 10), upper_neck=(13, 14))
    assert head_bone(truth, is_annotated).tolist() == [5]


def test_head_bone_is_nan_where_one_end_is_not_annotated():
    truth, is_annotated = people(3, head_top=(10, 10), upper_neck=(13, 14))
    is_annotated[0, JOINT["head_top"]] = is_annotated[1, JOINT["upper_neck"]] = False
    np.testing.assert_array_equal(head_bone(truth, is_annotated), [np.nan, np.nan, 5])


# Errors


def test_error_is_distance_in_units_of_the_norm():
    truth, is_annotated = people(2, left_knee=(100, 50))
    predicted = np.zeros((2, 16, 2))
    predicted[:, JOINT["left_knee"]] = [(103, 54), (100, 50)]
    errors = joint_errors(predicted, truth, is_annotated, [10, 10])
    assert errors.shape == (2, 16)
    assert errors.dtype == np.float64
    np.testing.assert_array_equal(errors, errors_of(left_knee=[0.5, 0]))


def test_labels_without_annotation_do_not_reach_the_errors():
    truth, is_annotated = people(1, left_knee=(100, 50))
    truth[0, JOINT["right_knee"]] = (7, 7)
    truth[0, JOINT["right_hip"]] = np.inf
    errors = joint_errors(np.full((1, 16, 2), 7.0), truth, is_annotated, [1])
    assert np.flatnonzero(~np.isnan(errors[0])).tolist() == [JOINT["left_knee"]]


@pytest.mark.parametrize("norm", [np.nan, 0, -1, np.inf])
def test_people_without_a_head_size_are_not_scored(norm):
    truth, is_annotated = people(2, left_knee=(0, 0))
    counts = pckh(np.zeros((2, 16, 2)), truth, is_annotated, [norm, 1])
    assert counts.labelled[JOINT["left_knee"]] == counts.num_joints == 1
    assert counts.total == 1


@pytest.mark.parametrize("missing", [(np.nan, np.nan), (0, np.nan), (np.inf, 0), (-np.inf, np.nan)])
def test_a_missing_prediction_is_a_miss_and_is_not_dropped(missing):
    truth, is_annotated = people(4, left_knee=(0, 0))
    predicted = np.zeros((4, 16, 2))
    predicted[0, JOINT["left_knee"]] = missing
    errors = joint_errors(predicted, truth, is_annotated, np.ones(4))
    assert errors[:, JOINT["left_knee"]].tolist() == [np.inf, 0, 0, 0]
    assert pckh_counts(errors).total == 0.75
    assert pckh_counts(errors, threshold=1e30).total == 0.75


def test_a_missing_prediction_of_an_unlabelled_joint_is_not_a_miss():
    truth, is_annotated = people(1, left_knee=(0, 0))
    predicted = np.full((1, 16, 2), np.nan)
    predicted[0, JOINT["left_knee"]] = 0
    counts = pckh(predicted, truth, is_annotated, [1])
    assert (counts.num_joints, counts.total) == (1, 1)


def test_annotated_without_a_coordinate_is_an_error():
    truth, is_annotated = people(1, left_knee=(np.nan, 0))
    with pytest.raises(ValueError, match="truth: expected finite numbers where labelled, got 1 that are not"):
        joint_errors(np.zeros((1, 16, 2)), truth, is_annotated, [1])


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("predicted", (3, 14, 2), r"predicted: expected shape \(N, 16, 2\), got \(3, 14, 2\)"),
        ("predicted", (3, 32), r"predicted: expected shape \(N, 16, 2\), got \(3, 32\)"),
        ("truth", (1, 16, 2), r"truth: expected shape \(3, 16, 2\), got \(1, 16, 2\)"),
        ("is_annotated", (3, 16, 1), r"is_annotated: expected shape \(3, 16\), got \(3, 16, 1\)"),
        ("norm", (1,), r"norm: expected shape \(3,\), got \(1,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(name, shape, message):
    arguments = {"predicted": np.zeros((3, 16, 2)), "truth": np.zeros((3, 16, 2)), "is_annotated": np.ones((3, 16)), "norm": np.ones(3)}
    with pytest.raises(ValueError, match=message):
        joint_errors(**arguments | {name: np.ones(shape)})


def test_errors_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"errors: expected shape \(N, 16\), got \(16,\)"):
        pckh_counts(np.zeros(16))


# PCKh


def test_an_error_at_the_threshold_is_correct():
    assert pckh_counts(errors_of(left_knee=[0.5, 0.500001])).total == 0.5


def test_threshold_is_a_value_and_not_an_index():
    errors = errors_of(left_knee=[0.09, 0.1, 0.105, 0.12])
    assert pckh_counts(errors, 0.10).total == 0.5
    assert pckh_counts(errors, 0.11).total == 0.75


def test_pckh_in_one_call_counts_the_joint_errors_at_the_threshold():
    truth, is_annotated = people(2, left_knee=(0, 0))
    predicted = np.zeros((2, 16, 2))
    predicted[:, JOINT["left_knee"]] = [(3, 4), (0, 1)]
    totals = [pckh(predicted, truth, is_annotated, [10, 10], threshold).total for threshold in (0.05, 0.1, 0.49, 0.5)]
    assert totals == [0, 0.5, 0.5, 1]
    assert pckh(predicted, truth, is_annotated, [9, 10]).threshold == 0.5


def test_errors_stored_as_float32_give_the_same_score():
    errors = errors_of(left_knee=CURVE_THRESHOLDS)
    for threshold in CURVE_THRESHOLDS:
        fresh, stored = pckh_counts(errors, threshold), pckh_counts(errors.astype(np.float32), threshold)
        assert fresh.correct[JOINT["left_knee"]] == stored.correct[JOINT["left_knee"]] == round(100 * threshold) + 1


def test_pelvis_and_thorax_do_not_count_in_total():
    counts = pckh_counts(errors_of(pelvis=[9, 9], thorax=[9, 9], left_knee=[0, 0], right_wrist=[0, 9]))
    assert counts.num_joints == 4
    assert counts.total == 0.75
    assert counts.pooled_16 == 3 / 8
    assert set(counts.groups) == set(PCKH_GROUPS)


def test_joint_mean_weighs_joints_and_total_weighs_labels():
    errors = np.zeros((4, 16))
    errors[:, JOINT["left_ankle"]] = [9, np.nan, np.nan, np.nan]
    errors[:, JOINT["pelvis"]] = 9
    counts = pckh_counts(errors)
    assert counts.joint_mean == pytest.approx(13 / 14, abs=1e-12)
    assert counts.total == pytest.approx(52 / 53, abs=1e-12)


def test_a_limb_is_the_mean_of_left_and_right():
    counts = pckh_counts(errors_of(left_ankle=[0, 9, 9, 9], right_ankle=[0, np.nan, np.nan, np.nan]))
    assert counts.groups["ankle"] == 0.625
    assert counts.total == 0.4


def test_toolkit_head_is_the_mean_of_neck_and_head_top():
    counts = pckh_counts(errors_of(upper_neck=[0, 9, 9, 9], head_top=[0, np.nan, np.nan, np.nan]))
    assert counts.toolkit_head == 0.625
    assert (counts.groups["neck"], counts.groups["head_top"]) == (0.25, 1)


def test_toolkit_upper_body_pools_wrists_elbows_and_shoulders():
    arms = {f"{side}_{part}": [0] for side in ("left", "right") for part in ("wrist", "elbow", "shoulder")}
    errors = errors_of(**arms | {"left_wrist": [9]}, left_hip=[9], upper_neck=[9])
    assert pckh_counts(errors).toolkit_upper_body == pytest.approx(5 / 6, abs=1e-12)


def test_a_joint_that_nobody_has_labelled_is_nan_and_not_zero():
    counts = pckh_counts(errors_of(left_knee=[0], left_hip=[9]))
    assert np.flatnonzero(~np.isnan(counts.per_joint)).tolist() == [JOINT["left_hip"], JOINT["left_knee"]]
    assert (counts.per_joint[JOINT["left_knee"]], counts.per_joint[JOINT["left_hip"]]) == (1, 0)
    assert np.isnan([counts.joint_mean, counts.toolkit_head, counts.groups["knee"]]).all()


@pytest.mark.parametrize("figure", ["total", "joint_mean", "pooled_16", "toolkit_upper_body"])
@pytest.mark.parametrize("num_people", [0, 3])
def test_a_score_of_nothing_is_an_error(figure, num_people):
    counts = pckh_counts(np.full((num_people, 16), np.nan))
    assert counts.num_joints == 0
    with pytest.raises(ValueError, match="nothing was labelled: expected at least one labelled joint to score, got 0"):
        getattr(counts, figure)


def test_pelvis_and_thorax_alone_are_nothing_to_score():
    with pytest.raises(ValueError, match="nothing was labelled"):
        _ = pckh_counts(errors_of(pelvis=[0], thorax=[0])).total


@pytest.mark.parametrize("seed", range(5))
def test_counts_of_the_parts_are_the_counts_of_the_whole(seed):
    errors = random_errors()
    parts = random_parts(len(errors), seed)
    whole, added = pckh_counts(errors, 0.3), reduce(add, [pckh_counts(errors[part], 0.3) for part in parts])
    np.testing.assert_array_equal(added.correct, whole.correct)
    np.testing.assert_array_equal(added.labelled, whole.labelled)
    assert (added.total, added.threshold) == (whole.total, 0.3)
    curve = reduce(add, [pckh_curve_counts(errors[part]) for part in parts])
    np.testing.assert_array_equal(curve.total, pckh_curve_counts(errors).total)
    assert curve.auc == pckh_curve_counts(errors).auc


def test_random_counts_agree_with_counting_one_by_one():
    errors = random_errors()
    counts = pckh_counts(errors, 0.3)
    for joint in range(16):
        labelled = [error for error in errors[:, joint].tolist() if error == error]
        assert counts.labelled[joint] == len(labelled) < len(errors)
        assert counts.correct[joint] == sum(error <= 0.3 for error in labelled) > 0


def test_counts_at_different_thresholds_do_not_add():
    errors = errors_of(left_knee=[0])
    with pytest.raises(ValueError, match=r"threshold: expected 0.5 in both counts, got 0.1"):
        pckh_counts(errors) + pckh_counts(errors, 0.1)


def test_curve_has_the_score_at_every_hundredth_up_to_a_half():
    errors = random_errors()
    curve = pckh_curve_counts(errors)
    assert [point.threshold for point in curve.points] == [float(f"0.{hundredth:02d}") for hundredth in range(51)]
    assert curve.total.tolist() == [pckh_counts(errors, threshold).total for threshold in CURVE_THRESHOLDS]


@pytest.mark.parametrize(
    ("errors", "auc"),
    [
        ([0, 0], 1),
        ([0.51, np.inf], 0),
        ([0.5], 0.01),  # one point of 51 at 1, the last: half of one step of 50
        ([0.01], 0.99),  # all but the first
        ([0.25], 0.51),  # 25 steps at 1 and half a step
        ([0.25, 9], 0.255),
    ],
)
def test_auc_is_the_trapezoid_with_thresholds_scaled_to_one(errors, auc):
    assert pckh_curve_counts(errors_of(left_knee=errors)).auc == pytest.approx(auc, abs=1e-12)


# Boxes


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3),  # 2 shared of 6
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7),  # 1 shared of 7
        ((0, 0, 4, 4), (1, 1, 3, 2), 1 / 8),  # 2 of 16, one within the other
        ((0, 0, 1, 1), (1, 0, 2, 1), 0),  # they touch
        ((0, 0, 1, 1), (5, 0, 6, 1), 0),  # apart on x, together on y
        ((0, 0, 1, 1), (5, 5, 6, 6), 0),
        ((2, 2, 0, 0), (0, 0, 2, 2), 0),  # inverted on both axes: a product of two negatives is no area
        ((2, 0, 0, 2), (0, 0, 2, 2), 0),
        ((1, 0, 1, 2), (0, 0, 2, 2), 0),
        ((1, 1, 1, 1), (1, 1, 1, 1), 0),
        ((-3, -3, -1, -1), (-2, -3, 0, -1), 1 / 3),
    ],
)
def test_iou_by_hand(predicted, truth, expected):
    assert iou([predicted], [truth])[0] == pytest.approx(expected, abs=1e-12)
    assert iou([truth], [predicted])[0] == pytest.approx(expected, abs=1e-12)


def test_iou_is_zero_for_a_missing_prediction_and_nan_for_a_missing_label():
    box, nan, inf = (0, 0, 2, 2), (np.nan,) * 4, (0, 0, np.inf, 2)
    predicted, truth = [nan, inf, box, box, nan, box], [box, box, nan, inf, nan, box]
    np.testing.assert_array_equal(iou(predicted, truth), [0, 0, np.nan, np.nan, np.nan, 1])


def test_iou_names_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"truth: expected shape \(2, 4\), got \(1, 4\)"):
        iou(np.zeros((2, 4)), np.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"predicted: expected shape \(N, 4\), got \(4,\)"):
        iou(np.zeros(4), np.zeros(4))


def test_box_counts_leave_out_people_without_a_head_box_and_keep_missing_predictions():
    truth = [(0, 0, 4, 1)] * 5 + [(np.nan,) * 4]
    predicted = [(0, 0, 4, 1), (0, 0, 3, 1), (0, 0, 2, 1), (0, 0, 1, 1), (np.nan,) * 4, (0, 0, 4, 1)]
    counts = box_counts(predicted, truth)
    assert (counts.num_boxes, counts.num_iou_50, counts.num_iou_75) == (5, 3, 2)
    assert counts.mean_iou == pytest.approx(0.5, abs=1e-12)
    assert (counts.iou_at_50, counts.iou_at_75) == (0.6, 0.4)


@pytest.mark.parametrize("seed", range(3))
def test_box_counts_of_the_parts_are_the_counts_of_the_whole(seed):
    random = np.random.default_rng(3)
    truth = np.hstack([random.uniform(0, 1, (40, 2)), random.uniform(2, 3, (40, 2))])
    predicted = truth + random.normal(0, 0.2, truth.shape)
    truth[::7] = predicted[::5] = np.nan
    whole = box_counts(predicted, truth)
    added = reduce(add, [box_counts(predicted[part], truth[part]) for part in random_parts(40, seed)])
    assert (added.num_boxes, added.num_iou_50, added.num_iou_75) == (whole.num_boxes, whole.num_iou_50, whole.num_iou_75)
    assert added.mean_iou == pytest.approx(whole.mean_iou, abs=1e-12)
    assert 0 < whole.num_iou_75 < whole.num_iou_50 < whole.num_boxes < 40


@pytest.mark.parametrize("figure", ["mean_iou", "iou_at_50", "iou_at_75"])
def test_iou_of_no_box_is_an_error(figure):
    with pytest.raises(ValueError, match="nothing was labelled: expected at least one labelled head box to score, got 0"):
        getattr(box_counts([(0, 0, 1, 1)], [(np.nan,) * 4]), figure)


# Squared errors


def test_mse_is_per_number_and_skips_what_is_not_labelled():
    truth, is_annotated = people(2, left_knee=(0, 0))
    predicted = np.full((2, 16, 2), np.nan)
    predicted[:, JOINT["left_knee"]] = [(1, 2), (3, 0)]
    counts = squared_error_counts(predicted, truth, is_annotated)
    assert (counts.squared_sum, counts.num_values) == (14, 4)
    assert counts.mse == 3.5


def test_mse_of_boxes_skips_people_without_one():
    counts = squared_error_counts([(1, 2, 3, 4), (9, 9, 9, 9)], [(1, 1, 1, 1), (np.nan,) * 4], [True, False])
    assert (counts.squared_sum, counts.num_values, counts.mse) == (14, 4, 3.5)


def test_a_missing_prediction_makes_the_mse_infinite():
    assert squared_error_counts([(1, np.nan), (1, 1)], [(1, 1), (1, 1)], [True, True]).mse == np.inf


@pytest.mark.parametrize("seed", range(3))
def test_squared_errors_of_the_parts_are_those_of_the_whole(seed):
    random = np.random.default_rng(5)
    predicted, truth, mask = random.normal(size=(30, 16, 2)), random.normal(size=(30, 16, 2)), random.uniform(size=(30, 16)) < 0.7
    truth[~mask] = np.nan
    added = reduce(add, [squared_error_counts(predicted[part], truth[part], mask[part]) for part in random_parts(30, seed)])
    assert added.num_values == 2 * mask.sum()
    assert added.mse == pytest.approx(np.nanmean((predicted - truth) ** 2), rel=1e-12)


def test_mse_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="nothing was labelled: expected at least one labelled value to score, got 0"):
        _ = squared_error_counts(np.zeros((2, 4)), np.full((2, 4), np.nan), [False, False]).mse


def test_a_mask_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"is_labelled: expected shape \(2, 16\), got \(2, 4\)"):
        squared_error_counts(np.zeros((2, 16, 2)), np.zeros((2, 16, 2)), np.ones((2, 4)))
