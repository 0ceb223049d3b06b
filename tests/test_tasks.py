"""tasks.py: scores worked by hand, in image px whatever the crop's frame."""

import json

import numpy as np
import pytest

from posepipe.skeleton import JOINT, JOINT_NAMES, NUM_JOINTS
from posepipe.tasks import TASKS, head_box_image, joints_image, pose_errors

# 2 image px per crop px across, 4 down; the crop's pixel (0, 0) lies at (100, 50).
FRAME = np.array([[2.0, 0, 100], [0, 4, 50]])


def labels_of(*people, head_size=10.0, head_bone=40 / 3, head_box=(np.nan,) * 4):
    """Labels of people given as {joint: (x, y) crop px}; NaN where not annotated."""
    joints = np.full((len(people), NUM_JOINTS, 2), np.nan)
    for person, named in zip(joints, people, strict=True):
        for name, point in named.items():
            person[JOINT[name]] = point
    return {
        "crop_to_image": np.stack([FRAME] * len(people)),
        "joints": joints,
        "is_annotated": np.isfinite(joints).all(axis=2),
        "head_size": np.broadcast_to(head_size, len(people)).astype(float),
        "head_bone": np.broadcast_to(head_bone, len(people)).astype(float),
        "head_box": np.broadcast_to(head_box, (len(people), 4)).astype(float),
    }


def off_by(labels, **pixels):
    """Predictions that are right but for the joints named, which lie so many image px to the right."""
    predicted = np.nan_to_num(joints_image(labels))
    for name, distance in pixels.items():
        predicted[:, JOINT[name], 0] += distance
    return predicted


# Points


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_mirroring_twice_changes_nothing(task):
    order = np.array(task.flip_order)
    assert sorted(order) == list(range(task.num_points))
    assert order[order].tolist() == list(range(task.num_points))


def test_mirroring_a_pose_swaps_left_and_right_and_no_other_joint():
    swapped = [JOINT_NAMES[index] for index in TASKS["pose"].flip_order]
    exchange = {"left": "right", "right": "left"}
    assert swapped == ["_".join(exchange.get(word, word) for word in name.split("_")) for name in JOINT_NAMES]


def test_tasks_regress_4_and_32_numbers():
    assert {name: 2 * task.num_points for name, task in TASKS.items()} == {"head": 4, "pose": 32}


def test_truth_is_points_in_crop_px_with_nan_where_there_is_no_label():
    labels = labels_of({"left_knee": (3, 4)}, {}, head_box=(1, 2, 3, 4))
    labels["head_box"][1] = np.nan
    pose, head = (TASKS[name].truth(labels) for name in ("pose", "head"))
    assert (pose.shape, head.shape) == ((2, 16, 2), (2, 2, 2))
    assert pose[0, JOINT["left_knee"]].tolist() == [3, 4]
    assert np.isfinite(pose).sum() == 2
    np.testing.assert_array_equal(head, [[(1, 2), (3, 4)], [(np.nan, np.nan)] * 2])


def test_labels_map_to_image_px():
    labels = labels_of({"left_knee": (3, 4)}, head_box=(0, 0, 10, 5))
    np.testing.assert_array_equal(joints_image(labels)[0, JOINT["left_knee"]], [106, 66])
    assert np.isfinite(joints_image(labels)).sum() == 2
    assert head_box_image(labels).tolist() == [[100, 50, 120, 70]]


def test_a_mirrored_frame_gives_boxes_with_sorted_sides():
    labels = labels_of({}, head_box=(0, 0, 10, 5)) | {"crop_to_image": np.array([[[-2.0, 0, 100], [0, 4, 50]]])}
    assert head_box_image(labels).tolist() == [[80, 50, 100, 70]]


# Pose


def test_pose_is_scored_officially_and_as_the_paper_does():
    # Official (10 px): 4 px is right, 6 px is wrong, the pelvis does not count. The paper (13.3 px): 4 and 6 px are right, 20 px is wrong.
    labels = labels_of({"left_knee": (3, 4), "right_knee": (30, 4), "pelvis": (10, 10)})
    score = TASKS["pose"].evaluate(off_by(labels, left_knee=4, right_knee=6, pelvis=20), labels)
    summary = score.summary()
    assert (score.objective, summary["pckh"], summary["pckh_bone"]) == (0.5, 0.5, 2 / 3)
    assert (summary["num_people"], summary["num_joints_scored"], summary["pckh_knee"]) == (1, 2, 0.5)
    # A group with a joint that nobody has labelled has no score, and JSON holds no NaN.
    assert summary["pckh_wrist"] is summary["pckh_joint_mean"] is None
    json.dumps(summary, allow_nan=False)


def test_errors_are_in_units_of_the_norm():
    labels = labels_of({"left_knee": (3, 4), "pelvis": (10, 10)})
    predicted = off_by(labels, left_knee=4, pelvis=20)
    for norm, size in (("head_size", 10), ("head_bone", 40 / 3)):
        errors = pose_errors(predicted, labels, norm)
        assert errors[0, JOINT["left_knee"]] == pytest.approx(4 / size)
        assert errors[0, JOINT["pelvis"]] == pytest.approx(20 / size)
        assert np.isnan(errors).sum() == 14


def test_people_without_a_norm_are_not_scored():
    labels = labels_of({"left_knee": (3, 4)}, {"left_knee": (3, 4)}, head_size=[np.nan, 10], head_bone=[np.nan, np.nan])
    score = TASKS["pose"].evaluate(off_by(labels, left_knee=6), labels)
    assert (score.num_scored, score.num_people, score.official.total) == (1, 1, 0)
    assert score.summary()["pckh_bone"] is None


def test_scores_of_parts_add_up():
    labels = labels_of({"left_knee": (3, 4)}, {"left_knee": (9, 9), "right_wrist": (1, 1)}, {"head_top": (5, 5)})
    predicted = off_by(labels, left_knee=4, right_wrist=20)
    whole = TASKS["pose"].evaluate(predicted, labels)
    first, *others = (
        TASKS["pose"].evaluate(predicted[part], {name: values[part] for name, values in labels.items()}) for part in ([0], [2], [1])
    )
    assert sum(others, first).summary() == whole.summary()
    assert whole.summary()["pckh"] == 3 / 4


# Head


def test_head_boxes_are_scored_by_their_overlap():
    # Image px: the truth is 100..120 x 50..70; the first lies 10 px to the right: 200 / 600. The second is right, with its corners swapped.
    labels = labels_of({}, {}, {}, head_box=(0, 0, 10, 5))
    labels["head_box"][2] = np.nan
    predicted = np.array([[(110.0, 50), (130, 70)], [(120, 70), (100, 50)], [(0, 0), (9, 9)]])
    score = TASKS["head"].evaluate(predicted, labels)
    assert score.num_scored == 2
    assert score.objective == pytest.approx(2 / 3)
    assert score.summary() == {"num_people": 2, "head_iou": pytest.approx(2 / 3), "head_iou_50": 0.5, "head_iou_75": 0.5}
    assert (score + score).summary() == score.summary() | {"num_people": 4}


def test_metric_names_are_keys_of_the_summary():
    everything = {name: (index, index) for index, name in enumerate(JOINT_NAMES)}
    labels = labels_of(everything, head_box=(0, 0, 10, 5))
    for task in TASKS.values():
        truth = joints_image(labels) if task.num_points == NUM_JOINTS else head_box_image(labels).reshape(-1, 2, 2)
        summary = task.evaluate(truth, labels).summary()
        assert [summary[name] for name in task.metric_names] == [1] * len(task.metric_names)
