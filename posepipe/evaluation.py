"""All counts of one run of predictions, chunk by chunk: PCKh, boxes, kinds of errors, slices, resamples.

Counts of the parts add up to the counts of the whole, whatever their number; no more than one chunk of people is held at a time. Thresholds
are 0.5 unless a name says another.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from posepipe import bootstrap, diagnosis, metrics
from posepipe.metrics import FloatArray, IntArray
from posepipe.people import People
from posepipe.skeleton import NUM_JOINTS, PCKH_JOINTS
from posepipe.slices import Slice, Slicing

# The paper's pictures are squeezed to this side; its errors are in px of that frame, whatever the model saw.
PAPER_SIZE = 220
CONFIDENCE_BINS = 20

Counts = TypeVar("Counts", bound="_Addable")


class _Addable:
    """A dataclass whose fields add, one by one; in a dict, those of the same name."""

    def __add__(self: Counts, other: Counts) -> Counts:
        return type(self)(*(_add(getattr(self, item.name), getattr(other, item.name)) for item in fields(self)))  # type: ignore[arg-type]


def _add(one: Any, other: Any) -> Any:
    if isinstance(one, dict):
        return {name: _add(value, other[name]) for name, value in one.items()}
    return one + other


@dataclass(frozen=True, eq=False)
class PoseSlice(_Addable):
    """One group of `slices.Slicing`: people with a scored joint in it, and their joints."""

    num_people: int
    official: metrics.PckCounts


@dataclass(frozen=True, eq=False)
class PoseCounts(_Addable):
    """Of joints, over people with a labelled joint and a head size."""

    num_people: int
    official: metrics.PckCounts
    curve: metrics.PckCurveCounts
    bone: metrics.PckCounts
    inversions: diagnosis.InversionCounts
    squared_220: metrics.SquaredErrorCounts
    """In the 220 frame, of the people whose picture's size is known."""
    num_missing: int
    """Scored joints without a prediction: misses at every threshold."""
    histogram: IntArray
    """(16, 21), see `diagnosis.error_histogram`."""
    slices: dict[Slice, PoseSlice]
    resamples: dict[str, FloatArray]
    """name -> (1000, K) sums: correct, labelled (16 each), at_0.1 (correct of the 14), area (under the curve, of the 14), bone (correct,
    labelled of the 16; of the 14), inversions (joints, of; pairs, of), squared_220 (sum, of), and of each slice (correct, labelled of the
    14)."""


@dataclass(frozen=True, eq=False)
class BoxSlice(_Addable):
    """One group of `slices.Slicing`."""

    boxes: metrics.BoxCounts


@dataclass(frozen=True, eq=False)
class HeadCounts(_Addable):
    """Of head boxes, over people with a labelled one."""

    boxes: metrics.BoxCounts
    errors: diagnosis.BoxErrorCounts
    squared_220: metrics.SquaredErrorCounts
    histogram: IntArray
    """(20,) boxes by IoU, in steps of 0.05."""
    slices: dict[Slice, BoxSlice]
    resamples: dict[str, FloatArray]
    """name -> (1000, K) sums: boxes (IoU, IoU >= 0.5, IoU >= 0.75, labelled), errors (centre, size, predicted), and of each slice
    (IoU >= 0.5, labelled), squared_220 (sum, of)."""


@dataclass(frozen=True, eq=False)
class RunCounts(_Addable):
    """Everything that is counted of a run."""

    pose: PoseCounts
    head: HeadCounts
    joint_confidence: IntArray
    """(16, 20) predicted joints by confidence, in steps of 0.05."""
    head_confidence: IntArray
    """(20,) predicted head boxes by confidence."""


def count(people: People, slicing: Slicing) -> RunCounts:
    """The counts of one chunk."""
    keys = bootstrap.person_keys(people.sample_id)
    groups = slicing.groups(people)
    joint_confidence = np.stack([_confidence_histogram(column) for column in people.joint_confidence.T])
    return RunCounts(
        _count_pose(people, keys, groups),
        _count_head(people, keys, groups),
        joint_confidence,
        _confidence_histogram(people.head_confidence),
    )


def _count_pose(people: People, keys: Any, groups: dict[Slice, Any]) -> PoseCounts:
    errors, annotated = people.joint_error, people.is_annotated
    correct = errors.astype(np.float32) <= np.float32(0.5)
    scored = ~np.isnan(errors)
    bone_correct, bone_scored = people.bone_error.astype(np.float32) <= np.float32(0.5), ~np.isnan(people.bone_error)
    has_size = np.isfinite(people.picture_size).all(axis=1)
    scale = PAPER_SIZE / people.picture_size[has_size][:, None]
    inverted = diagnosis.inversions(people.joints, people.true_joints, annotated, people.head_size)
    slices = {}
    resampled: dict[str, FloatArray] = {
        "correct": correct.astype(float),
        "labelled": scored.astype(float),
        "at_0.1": _pooled(errors[:, PCKH_JOINTS].astype(np.float32) <= np.float32(0.1)),
        "area": _curve_area(errors[:, PCKH_JOINTS])[:, None],
        "bone": _pooled(*(array[:, joints] for joints in (range(NUM_JOINTS), PCKH_JOINTS) for array in (bone_correct, bone_scored))),
        "squared_220": _squared_sums(people.joints, people.true_joints, people.picture_size),
        "inversions": np.column_stack(
            [
                np.nansum(inverted, axis=(1, 2)),
                (~np.isnan(inverted)).sum(axis=(1, 2)),
                (inverted == 1).all(axis=2).sum(axis=1),
                (~np.isnan(inverted[:, :, 0])).sum(axis=1),
            ]
        ),
    }
    for group, mask in groups.items():
        part = np.where(mask, errors, np.nan)
        slices[group] = PoseSlice(int((~np.isnan(part)).any(axis=1).sum()), metrics.pckh_counts(part))
        official = part[:, PCKH_JOINTS].astype(np.float32)
        resampled["/".join(group)] = _pooled(official <= np.float32(0.5), ~np.isnan(official))
    return PoseCounts(
        num_people=int(scored.any(axis=1).sum()),
        official=metrics.pckh_counts(errors),
        curve=metrics.pckh_curve_counts(errors),
        bone=metrics.pckh_counts(people.bone_error),
        inversions=diagnosis.inversion_counts(inverted),
        squared_220=metrics.squared_error_counts(
            people.joints[has_size] * scale, people.true_joints[has_size] * scale, annotated[has_size]
        ),
        num_missing=int(np.isinf(errors).sum()),
        histogram=diagnosis.error_histogram(errors),
        slices=slices,
        resamples=_resample(keys, resampled),
    )


def _count_head(people: People, keys: Any, groups: dict[Slice, Any]) -> HeadCounts:
    overlap = metrics.iou(people.head_box, people.true_head_box)
    is_labelled = ~np.isnan(overlap)
    has_size = np.isfinite(people.picture_size).all(axis=1)
    scale = np.tile(PAPER_SIZE / people.picture_size[has_size], 2)
    centre, size = diagnosis.box_errors(people.head_box, people.true_head_box)
    is_predicted = np.isfinite(centre)
    slices = {}
    resampled: dict[str, FloatArray] = {
        "boxes": np.column_stack([np.nan_to_num(overlap), overlap >= 0.5, overlap >= 0.75, is_labelled]).astype(float),
        "squared_220": _squared_sums(people.head_box.reshape(-1, 2, 2), people.true_head_box.reshape(-1, 2, 2), people.picture_size),
        "errors": np.column_stack([np.where(is_predicted, centre, 0), np.where(is_predicted, size, 0), is_predicted]),
    }
    for group, mask in groups.items():
        if mask.shape[1] == 1:
            part = mask[:, 0]
            slices[group] = BoxSlice(metrics.box_counts(people.head_box[part], people.true_head_box[part]))
            resampled["/".join(group)] = np.column_stack([part & (overlap >= 0.5), part & is_labelled]).astype(float)
    return HeadCounts(
        boxes=metrics.box_counts(people.head_box, people.true_head_box),
        errors=diagnosis.box_error_counts(centre, size),
        squared_220=metrics.squared_error_counts(
            people.head_box[has_size] * scale, people.true_head_box[has_size] * scale, is_labelled[has_size]
        ),
        histogram=_confidence_histogram(overlap),
        slices=slices,
        resamples=_resample(keys, resampled),
    )


def _pooled(*flags: NDArray[np.bool_]) -> FloatArray:
    """(N, K) how many joints of each person have each of the K flags (N, joints)."""
    return np.column_stack([flag.sum(axis=1) for flag in flags]).astype(float)


def _curve_area(errors: FloatArray) -> FloatArray:
    """(N,) what each person's scored errors (N, K) add to the numerator of `PckCurveCounts.auc`."""
    thresholds = np.array(metrics.CURVE_THRESHOLDS, np.float32)
    first = np.searchsorted(thresholds, np.where(np.isnan(errors), np.inf, errors).astype(np.float32))
    last = len(thresholds) - 1
    # Trapezoids: the curve is 1 from the first threshold on that the error is within, its two ends count half.
    area = np.where(first <= last, (last - first + 0.5) - 0.5 * (first == 0), 0.0) / last
    return area.sum(axis=1)


def _squared_sums(predicted: FloatArray, truth: FloatArray, picture_size: FloatArray) -> FloatArray:
    """(N, 2) sum of the squared errors of labelled points (N, K, 2) in the 220 frame, and how many numbers that are; NaN where infinite."""
    is_labelled = np.all(np.isfinite(truth), axis=2) & np.all(np.isfinite(picture_size), axis=1)[:, None]
    difference = (predicted - truth) * (PAPER_SIZE / picture_size)[:, None]
    squared = np.where(is_labelled[..., None], difference**2, 0).sum(axis=(1, 2))
    return np.column_stack([squared, 2 * is_labelled.sum(axis=1)])


def _resample(keys: Any, values: dict[str, FloatArray]) -> dict[str, FloatArray]:
    ends = np.cumsum([value.shape[1] for value in values.values()])
    sums = bootstrap.resample(keys, np.hstack(list(values.values())))
    return dict(zip(values, np.split(sums, ends[:-1], axis=1), strict=True))


def _confidence_histogram(values: FloatArray) -> IntArray:
    """(20,) counts of values in [0, 1], by steps of 0.05; NaN is not counted."""
    known = np.clip(values[~np.isnan(values)], 0, 1)
    return np.bincount(np.minimum((known * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1), minlength=CONFIDENCE_BINS)
