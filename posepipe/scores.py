"""The counts of a run -> named scores with their intervals, as rows of tables.

Shares are in percent. A score that is not defined (nobody is labelled, the picture's size is unknown) has no row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from posepipe import bootstrap, diagnosis, metrics
from posepipe.evaluation import HeadCounts, PoseCounts, RunCounts
from posepipe.metrics import FloatArray
from posepipe.skeleton import HEAD_TOP, JOINT_NAMES, NUM_JOINTS, PCKH_GROUPS, PCKH_JOINTS, UPPER_NECK

Row = dict[str, Any]

HEADLINES = ("pckh", "pckh_bone", "head_iou_50", "head_iou")
LABELS = {
    "pckh": "PCKh@0.5, official",
    "pckh_joint_mean": "PCKh@0.5, unweighted mean of the 14 joints",
    "pckh_pooled_16": "PCKh@0.5, all 16 joints pooled",
    "pckh_at_0.1": "PCKh@0.1, official",
    "auc": "area under the official curve, 0 to 0.5",
    "pckh_bone": "PCKh@0.5, the paper's: head bone, all 16 joints",
    "pckh_bone_14": "PCKh@0.5 by head bone, 14 joints",
    **{f"pckh_{group}": f"PCKh@0.5, {group.replace('_', ' ')}" for group in PCKH_GROUPS},
    "pckh_toolkit_head": "PCKh@0.5, toolkit's Head: neck and head top",
    "pckh_toolkit_upper_body": "PCKh@0.5, toolkit's UBody: wrists, elbows, shoulders",
    "pckh_visible": "PCKh@0.5, visible joints only",
    "inverted_joints": "left/right inversions, of joints",
    "swapped_pairs": "left/right swaps, of pairs",
    "mse_220_joints": "mean squared error of joints in the 220 frame",
    "head_iou_50": "head boxes with IoU >= 0.5",
    "head_iou_75": "head boxes with IoU >= 0.75",
    "head_iou": "mean IoU of the head box",
    "head_centre_error": "mean distance of the head box's centre",
    "head_size_error": "mean error of the head box's size",
    "mse_220_head": "mean squared error of the head box in the 220 frame",
}


def score_rows(run: str, counts: RunCounts, floor: dict[str, Any]) -> list[Row]:
    """Every score of a run: run, measure, label, value, low, high, unit, count, of (what was counted), floor.

    Args:
        run: its name.
        counts: of all of it.
        floor: fractions by measure, as in the summary of jobs.score: the mean pose of the train labels.
    """
    rows = []
    if counts.pose.official.num_joints:
        rows += list(_pose_rows(counts.pose))
    if counts.head.boxes.num_boxes:
        rows += list(_head_rows(counts.head))
    for row in rows:
        value = floor.get(row["measure"])
        row["floor"] = np.nan if value is None else 100 * value
    return [{"run": run, "label": LABELS[row["measure"]], **row} for row in rows]


def _pose_rows(pose: PoseCounts) -> Iterator[Row]:
    official, drawn, people = pose.official, pose.resamples, pose.num_people
    correct, labelled = drawn["correct"], drawn["labelled"]
    per_joint = _ratio(correct, labelled)
    num_14, num_16 = official.num_joints, int(official.labelled.sum())

    def share(measure: str, value: float, resampled: FloatArray, count: int, of: str = "joints") -> Row:
        return _row(measure, 100 * value, 100 * resampled, "%", count, of, people)

    def pooled(joints: Sequence[int]) -> FloatArray:
        return _ratio(correct[:, joints].sum(axis=1), labelled[:, joints].sum(axis=1))

    yield share("pckh", official.total, pooled(PCKH_JOINTS), num_14)
    yield share("pckh_joint_mean", official.joint_mean, per_joint[:, PCKH_JOINTS].mean(axis=1), num_14)
    yield share("pckh_pooled_16", official.pooled_16, pooled(range(NUM_JOINTS)), num_16)
    tenth = metrics.CURVE_THRESHOLDS.index(0.1)
    num_labelled = labelled[:, PCKH_JOINTS].sum(axis=1)
    yield share("pckh_at_0.1", pose.curve.points[tenth].total, _ratio(drawn["at_0.1"][:, 0], num_labelled), num_14)
    yield share("auc", pose.curve.auc, _ratio(drawn["area"][:, 0], num_labelled), num_14)
    if pose.bone.labelled.any():
        bone = drawn["bone"].T
        yield share("pckh_bone", pose.bone.pooled_16, _ratio(bone[0], bone[1]), int(pose.bone.labelled.sum()))
    if pose.bone.num_joints:
        yield share("pckh_bone_14", pose.bone.total, _ratio(bone[2], bone[3]), pose.bone.num_joints)
    for group, joints in PCKH_GROUPS.items():
        value = official.groups[group]
        yield share(f"pckh_{group}", value, per_joint[:, joints].mean(axis=1), int(official.labelled.take(joints).sum()))
    ends = (UPPER_NECK, HEAD_TOP)
    yield share("pckh_toolkit_head", official.toolkit_head, per_joint[:, ends].mean(axis=1), int(official.labelled.take(ends).sum()))
    upper = metrics.UPPER_BODY
    if num_upper := int(official.labelled.take(upper).sum()):
        yield share("pckh_toolkit_upper_body", official.toolkit_upper_body, pooled(upper), num_upper)
    visible = pose.slices["joint", "visible"].official
    if visible.num_joints:
        yield share("pckh_visible", visible.total, _ratio(*drawn["joint/visible"].T), visible.num_joints)
    found = pose.inversions
    if found.num_pairs:
        inverted = drawn["inversions"].T
        yield share("inverted_joints", found.joint_rate, _ratio(inverted[0], inverted[1]), found.num_joints)
        yield share("swapped_pairs", found.pair_rate, _ratio(inverted[2], inverted[3]), found.num_pairs, "pairs")
    if pose.squared_220.num_values:
        number = pose.squared_220.num_values // 2
        yield _row("mse_220_joints", pose.squared_220.mse, _ratio(*drawn["squared_220"].T), "px²", number, "joints", people)


def _head_rows(head: HeadCounts) -> Iterator[Row]:
    boxes, errors = head.boxes, head.errors
    overlap, above_50, above_75, labelled = head.resamples["boxes"].T
    centre, size, predicted = head.resamples["errors"].T
    number = boxes.num_boxes
    for measure, value, resampled in (
        ("head_iou_50", boxes.iou_at_50, above_50),
        ("head_iou_75", boxes.iou_at_75, above_75),
        ("head_iou", boxes.mean_iou, overlap),
    ):
        yield _row(measure, 100 * value, 100 * _ratio(resampled, labelled), "%", number, "boxes", number)
    if errors.num_boxes:
        for measure, value, resampled in (
            ("head_centre_error", errors.mean_centre_error, centre),
            ("head_size_error", errors.mean_size_error, size),
        ):
            yield _row(measure, value, _ratio(resampled, predicted), "head sizes", errors.num_boxes, "boxes", number)
    if head.squared_220.num_values:
        number = head.squared_220.num_values // 4
        yield _row("mse_220_head", head.squared_220.mse, _ratio(*head.resamples["squared_220"].T), "px²", number, "boxes", number)


def joint_rows(run: str, pose: PoseCounts) -> list[Row]:
    """Official PCKh@0.5 of each of the 16 joints, and how many of them are labelled."""
    per_joint = 100 * _ratio(pose.resamples["correct"], pose.resamples["labelled"])
    rows = []
    for joint, name in enumerate(JOINT_NAMES):
        number = int(pose.official.labelled[joint])
        low, high = bootstrap.interval(per_joint[:, joint], number)
        value = 100 * float(pose.official.per_joint[joint])
        known = {"in_pckh": joint in PCKH_JOINTS, "correct": int(pose.official.correct[joint]), "labelled": number}
        rows.append({"run": run, "joint": name, **known, "pckh": value, "low": low, "high": high})
    return rows


def curve_rows(run: str, pose: PoseCounts) -> list[Row]:
    """Official PCKh at each threshold, pooled over the 14 joints."""
    return [{"run": run, "threshold": counts.threshold, "pckh": 100 * counts.total} for counts in pose.curve.points]


def histogram_rows(run: str, counts: RunCounts) -> list[Row]:
    """How many joints are how far off, and boxes by IoU: what, from, to (in head sizes, or of IoU), count."""
    rows = []
    step = diagnosis.HISTOGRAM_STEP
    for joint, name in enumerate(JOINT_NAMES):
        for place, count in enumerate(counts.pose.histogram[joint].tolist()):
            end = np.inf if place == diagnosis.HISTOGRAM_BINS - 1 else (place + 1) * step
            rows.append({"run": run, "what": f"error of {name}", "from": place * step, "to": end, "count": count})
    for place, count in enumerate(counts.head.histogram.tolist()):
        rows.append({"run": run, "what": "IoU of the head box", "from": place * step, "to": (place + 1) * step, "count": count})
    return rows


def slice_rows(run: str, counts: RunCounts) -> list[Row]:
    """PCKh@0.5 (official, 14 joints) or head boxes with IoU >= 0.5 of each group that has any."""
    rows: list[Row] = []

    def add(group: tuple[str, str], measure: str, value: float, resampled: FloatArray, people: int, count: int, of: str) -> None:
        low, high = bootstrap.interval(100 * resampled, people)
        known = {"run": run, "by": group[0], "group": group[1], "measure": measure, "value": 100 * value}
        rows.append({**known, "low": low, "high": high, "people": people, "count": count, "of": of})

    for group, part in counts.pose.slices.items():
        if part.official.num_joints:
            drawn = _ratio(*counts.pose.resamples["/".join(group)].T)
            add(group, "pckh", part.official.total, drawn, part.num_people, part.official.num_joints, "joints")
    for group, box in counts.head.slices.items():
        if number := box.boxes.num_boxes:
            add(group, "head_iou_50", box.boxes.iou_at_50, _ratio(*counts.head.resamples["/".join(group)].T), number, number, "boxes")
    return rows


def change(first: RunCounts, second: RunCounts, measure: str) -> tuple[float, float, float]:
    """The second run's score less the first's in percent points, with its interval; both on the same people, who are resampled alike."""
    values, drawn = [], []
    for counts in (first, second):
        if measure == "pckh":
            correct, labelled = (counts.pose.resamples[name][:, PCKH_JOINTS].sum(axis=1) for name in ("correct", "labelled"))
            values.append(counts.pose.official.total)
        else:
            _, correct, _, labelled = counts.head.resamples["boxes"].T
            values.append(counts.head.boxes.iou_at_50)
        drawn.append(_ratio(correct, labelled))
    num_people = max(first.pose.num_people, first.head.boxes.num_boxes)
    return 100 * (values[1] - values[0]), *bootstrap.interval(100 * (drawn[1] - drawn[0]), num_people)


def _row(measure: str, value: float, resampled: FloatArray, unit: str, count: int, of: str, num_people: int) -> Row:
    low, high = bootstrap.interval(resampled, num_people)
    return {"measure": measure, "value": value, "low": low, "high": high, "unit": unit, "count": count, "of": of}


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """NaN where nothing was drawn."""
    return np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0)
