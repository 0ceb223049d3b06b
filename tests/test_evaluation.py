"""evaluation.py, people.py and slices.py: counts by hand, counts of parts, memory that does not grow with the people."""

import functools
import operator
import tracemalloc

import numpy as np
import pytest

from benchmarks.report import draw_rows
from posepipe import evaluation, metrics, people, slices
from posepipe.skeleton import JOINT, PCKH_JOINTS

PICTURES = ["a.jpg"]


def drawn(start, stop, error=0.4):
    return people.from_table(draw_rows(np.arange(start, stop), error, PICTURES))


def person(**changes):
    """One person with a head box of 30 x 40 px at the origin (head size 30), one knee labelled and hit, in a 440 x 220 picture."""
    nothing = np.full((1, 16, 2), np.nan)
    joints, truth = nothing.copy(), nothing.copy()
    joints[0, JOINT["left_knee"]] = truth[0, JOINT["left_knee"]] = 100, 100
    values = {
        "sample_id": np.array(["a.jpg#0"], object),
        "status": np.array(["ok"], object),
        "activity": np.array([None], object),
        "joints": joints,
        "joint_confidence": np.full((1, 16), np.nan),
        "true_joints": truth,
        "is_visible": np.full((1, 16), np.nan),
        "head_box": np.array([[0.0, 0, 30, 40]]),
        "head_confidence": np.array([np.nan]),
        "true_head_box": np.array([[0.0, 0, 30, 40]]),
        "head_size": np.array([30.0]),
        "picture_size": np.array([[440.0, 220]]),
        **changes,
    }
    annotated = np.isfinite(values["true_joints"]).all(axis=2)
    errors = metrics.joint_errors(values["joints"], values["true_joints"], annotated, values["head_size"])
    return people.People(**{"joint_error": errors, "bone_error": errors, **values})


def points(**named):
    joints = np.full((1, 16, 2), np.nan)
    for name, point in named.items():
        joints[0, JOINT[name]] = point
    return joints


def count(part):
    return evaluation.count(part, slices.choose_slicing(part.head_size, part.activity))


def assert_equal(one, other, path=""):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name], f"{path}.{name}")
    elif hasattr(one, "__dataclass_fields__"):
        for name in one.__dataclass_fields__:
            assert_equal(getattr(one, name), getattr(other, name), f"{path}.{name}")
    elif isinstance(one, tuple):
        for place, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_equal(left, right, f"{path}[{place}]")
    else:
        np.testing.assert_allclose(one, other, rtol=1e-6, err_msg=path)


# Counts by hand


def test_a_3_4_5_triangle_in_the_220_frame():
    # 30 px to the right and 40 px down, in a picture that is squeezed to a half in x: 15 and 40 px, so (15² + 40²) / 2 per number.
    part = person(joints=points(left_knee=(130, 140)), true_joints=points(left_knee=(100, 100)), head_box=np.array([[30.0, 40, 60, 80]]))
    counts = count(part)
    assert counts.pose.squared_220.mse == pytest.approx((15**2 + 40**2) / 2)
    assert counts.head.squared_220.mse == pytest.approx((15**2 + 40**2) / 2)
    assert counts.pose.official.total == 0
    assert part.joint_error[0, JOINT["left_knee"]] == pytest.approx(50 / 30)
    assert part.person_error.tolist() == [1], "one joint counts at most 1"


def test_a_picture_of_unknown_size_has_no_220_frame():
    counts = count(person(picture_size=np.array([[np.nan, np.nan]])))
    assert counts.pose.squared_220.num_values == counts.head.squared_220.num_values == 0
    assert counts.pose.official.total == 1


def test_nan_under_the_mask_reaches_no_count():
    truth = points(left_knee=(100, 100))
    joints = np.full((1, 16, 2), np.nan)
    joints[0, JOINT["left_knee"]] = 100, 100
    counts = count(person(joints=joints, true_joints=truth))
    assert (counts.pose.official.total, counts.pose.official.num_joints, counts.pose.num_missing) == (1, 1, 0)
    assert np.isfinite(counts.pose.resamples["squared_220"]).all()


def test_a_missing_prediction_is_a_miss_in_every_count():
    counts = count(person(joints=np.full((1, 16, 2), np.nan), head_box=np.full((1, 4), np.nan)))
    assert (counts.pose.official.total, counts.pose.num_missing) == (0, 1)
    assert counts.pose.curve.auc == 0
    assert counts.pose.histogram[JOINT["left_knee"], -1] == 1
    assert np.isinf(counts.pose.squared_220.mse)
    assert np.isnan(counts.pose.resamples["squared_220"][:, 0]).all()
    assert (counts.head.boxes.mean_iou, counts.head.errors.num_missing) == (0, 1)


def test_people_without_a_head_box_are_in_no_score():
    part = person(true_head_box=np.full((1, 4), np.nan), head_size=np.array([np.nan]))
    counts = count(part)
    assert counts.pose.num_people == counts.pose.official.num_joints == counts.head.boxes.num_boxes == counts.head.errors.num_boxes == 0
    assert np.isnan(part.person_error).all()


def test_the_curve_area_of_people_is_the_area_of_the_curve():
    part = drawn(0, 400)
    area = evaluation._curve_area(part.joint_error[:, PCKH_JOINTS]).sum()
    counts = metrics.pckh_curve_counts(part.joint_error)
    assert area / counts.points[0].num_joints == pytest.approx(counts.auc, abs=1e-12)
    edges = np.array([[0.0, 0.25, 0.5, 0.500001, np.inf, np.nan]])
    hand = [metrics.pckh_curve_counts(np.where(np.arange(16) == 0, error, np.nan)[None]).auc for error in edges[0, :5]]
    assert evaluation._curve_area(edges.T[:5]).tolist() == pytest.approx(hand)


# Slices


def test_every_scored_joint_lies_in_one_group_of_each_kind():
    part = drawn(0, 500)
    counts = count(part).pose
    for by in ("joint", "head size", "labelled joints", "activity"):
        groups = [found for (kind, _), found in counts.slices.items() if kind == by]
        assert sum(group.official.num_joints for group in groups) == counts.official.num_joints, by
        assert sum(int(group.official.correct.sum()) for group in groups) == counts.official.correct.sum(), by
        assert sum(group.official.num_joints > 0 for group in groups) >= 2, by


def test_visible_and_occluded_joints_by_hand():
    truth = points(left_knee=(100, 100), right_knee=(200, 100), left_hip=(0, 0))
    is_visible = np.full((1, 16), np.nan)
    is_visible[0, JOINT["left_knee"]], is_visible[0, JOINT["right_knee"]] = 1, 0
    joints = points(left_knee=(100, 100), right_knee=(0, 0), left_hip=(0, 0))
    found = count(person(joints=joints, true_joints=truth, is_visible=is_visible)).pose.slices
    totals = {name: group.official.total for (by, name), group in found.items() if by == "joint"}
    assert totals == {"visible": 1, "occluded": 0, "visibility unknown": 1}


def test_head_sizes_are_cut_at_their_terciles():
    slicing = slices.choose_slicing(np.array([10.0, 20, 30, np.nan, 0]), [])
    assert slicing.head_size_edges == pytest.approx((16.667, 23.333), abs=1e-3)
    assert slices.choose_slicing(np.array([np.nan]), []).head_size_edges is None


def test_rare_activities_are_one_group():
    names = [f"activity {index:02d}" for index in range(30)]
    slicing = slices.choose_slicing(np.ones(1), [*names, *names[5:], None, ""])
    assert len(slicing.activities) == slices.MAX_ACTIVITIES
    assert set(slicing.activities) <= set(names[5:])
    groups = slicing.groups(person(activity=np.array(["activity 00"], object)))
    assert [name for (by, name), mask in groups.items() if by == "activity" and mask.any()] == ["other activities"]
    groups = slicing.groups(person())
    assert [name for (by, name), mask in groups.items() if by == "activity" and mask.any()] == ["activity unknown"]


# Rows of PREDICTION


def test_what_a_run_did_not_predict_is_not_scored():
    table = draw_rows(np.arange(20), 0.1, PICTURES)
    row = table.slice(0, 1).to_pylist()[0]
    for task, has_pose, has_head in (("pose", True, False), ("head", False, True), ("head+pose", True, True)):
        changed = {**row, "task": task, "joint_error": row["joint_error"] if has_pose else None}
        part = people.from_table(type(table).from_pylist([changed], table.schema))
        counts = count(part)
        assert (counts.pose.official.num_joints > 0) == has_pose
        assert (counts.head.boxes.num_boxes > 0) == has_head
        assert (counts.pose.inversions.num_pairs > 0) == (counts.pose.squared_220.num_values > 0) == has_pose


def test_rows_without_labels_have_no_person_error():
    table = draw_rows(np.arange(3), 0.1, PICTURES)
    rows = [
        {**row, **dict.fromkeys(("true_joints", "true_head_box", "joint_error", "head_size", "head_bone"))} for row in table.to_pylist()
    ]
    part = people.from_table(type(table).from_pylist(rows, table.schema))
    assert np.isnan(part.person_error).all()
    assert not count(part).pose.official.labelled.any()


# Parts and wholes


def count_all(chunks, slicing):
    return functools.reduce(operator.add, (evaluation.count(chunk, slicing) for chunk in chunks))


@pytest.mark.parametrize("seed", range(3))
def test_counts_of_the_parts_are_the_counts_of_the_whole(seed):
    table = draw_rows(np.arange(300), 0.5, PICTURES)
    slicing = slices.choose_slicing(people.from_table(table).head_size, table["activity"].to_pylist())
    random = np.random.default_rng(seed)
    parts = np.split(random.permutation(300), np.sort(random.integers(0, 300, 5)))
    added = count_all((people.from_table(table.take(part)) for part in parts), slicing)
    assert_equal(added, evaluation.count(people.from_table(table), slicing))
    np.testing.assert_array_equal(
        added.pose.resamples["correct"], evaluation.count(people.from_table(table), slicing).pose.resamples["correct"]
    )
    assert added.pose.num_people == 300
    assert 0 < added.pose.official.total < 1


def test_many_people_take_no_more_memory_than_few():
    slicing = slices.choose_slicing(drawn(0, 500).head_size, ())
    peaks = []
    for num_chunks in (4, 4, 24):  # the first one fills caches
        tracemalloc.start()
        counts = count_all((drawn(500 * chunk, 500 * chunk + 500) for chunk in range(num_chunks)), slicing)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert counts.pose.num_people == 500 * num_chunks
    assert peaks[2] < 1.2 * peaks[1]
