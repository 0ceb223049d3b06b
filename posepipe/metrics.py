"""PCKh, head-box IoU, MSE as counts that add up.

The counts of the parts of a data set add up to the counts of the whole, however it was cut; a score divides once, at the end. Scores are
fractions in [0, 1]. A pooled score of nothing is a ValueError, never 0; one joint that nobody has labelled is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from operator import add
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posepipe.skeleton import HEAD_TOP, NUM_JOINTS, PCKH_GROUPS, PCKH_JOINTS, UPPER_NECK

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# SC_BIAS of https://github.com/leoxiaobin/deep-high-resolution-net.pytorch/blob/2ad80f22b5b37fb296152bf5f6341885e8d9087c/lib/dataset/mpii.py
HEAD_SIZE_PER_DIAGONAL = 0.6
# 0:0.01:0.5 of https://github.com/anibali/eval-mpii-pose/blob/27678c5274f8652ef3c21fb200146a2f764b6ae0/eval/evaluatePCKh.m
CURVE_THRESHOLDS = tuple(hundredth / 100 for hundredth in range(51))
UPPER_BODY = PCKH_GROUPS["wrist"] + PCKH_GROUPS["elbow"] + PCKH_GROUPS["shoulder"]


def head_size(head_box: ArrayLike) -> FloatArray:
    """The official normaliser of PCKh (Andriluka et al., CVPR 2014): (N,) 0.6 x the diagonal of the labelled head box.

    Args:
        head_box: (N, 4) x1, y1, x2, y2 image px; NaN, and so is the size, where a person has none.
    """
    box = _checked("head_box", head_box, (None, 4))
    return HEAD_SIZE_PER_DIAGONAL * np.hypot(box[:, 2] - box[:, 0], box[:, 3] - box[:, 1])


def head_bone(joints: ArrayLike, is_annotated: ArrayLike) -> FloatArray:
    """The paper's normaliser of PCKh: (N,) head top to upper neck, in MPII 0.8 x the diagonal and so 4/3 of `head_size`.

    Args:
        joints: (N, 16, 2) labels, image px; anything where not annotated.
        is_annotated: (N, 16); the bone is NaN where either end is not.
    """
    points = _checked("joints", joints, (None, NUM_JOINTS, 2))
    annotated = _checked("is_annotated", is_annotated, points.shape[:2], bool)
    bone = points[:, HEAD_TOP] - points[:, UPPER_NECK]
    return np.where(annotated[:, HEAD_TOP] & annotated[:, UPPER_NECK], np.hypot(bone[:, 0], bone[:, 1]), np.nan)


def joint_errors(predicted: ArrayLike, truth: ArrayLike, is_annotated: ArrayLike, norm: ArrayLike) -> FloatArray:
    """Distance / norm of every scored joint: all of PCKh but the threshold.

    A prediction that is not finite is a miss at every threshold, never dropped ("only gt is allowed to have NaN":
    https://github.com/anibali/eval-mpii-pose/blob/27678c5274f8652ef3c21fb200146a2f764b6ae0/eval/evaluatePCKh.m).

    Args:
        predicted: (N, 16, 2) image px.
        truth: (N, 16, 2) image px; anything where not annotated.
        is_annotated: (N, 16), a coordinate exists; occluded joints count.
        norm: (N,) image px, `head_size` (official) or `head_bone` (the paper's).

    Returns:
        (N, 16) in units of norm; inf where the prediction is missing; NaN where the joint is not annotated or the norm not positive.
    """
    points = _checked("predicted", predicted, (None, NUM_JOINTS, 2))
    annotated = _checked("is_annotated", is_annotated, points.shape[:2], bool)
    norms = np.broadcast_to(_checked("norm", norm, points.shape[:1])[:, None], annotated.shape)
    offset = _difference(points, truth, annotated)
    distance = np.full(annotated.shape, np.nan)
    distance[annotated] = np.hypot(offset[:, 0], offset[:, 1])
    has_norm = np.isfinite(norms) & (norms > 0)
    return np.divide(distance, norms, out=np.full(annotated.shape, np.nan), where=has_norm)


@dataclass(frozen=True, eq=False)
class PckCounts:
    """How many joints lie within one threshold.

    The "Mean" of published tables is `total` (toolkit, HRNet) or `joint_mean` (pytorch-pose); their "Head" is the group head_top or
    `toolkit_head`.
    """

    correct: IntArray
    """(16,) scored joints with error <= threshold."""
    labelled: IntArray
    """(16,) scored joints: annotated, of a person with a norm."""
    threshold: float
    """In units of the norm."""

    def __add__(self, other: PckCounts) -> PckCounts:
        if self.threshold != other.threshold:
            raise ValueError(f"threshold: expected {self.threshold} in both counts, got {other.threshold}")
        return PckCounts(self.correct + other.correct, self.labelled + other.labelled, self.threshold)

    @property
    def num_joints(self) -> int:
        """The joints that `total` divides by."""
        return int(self.labelled.take(PCKH_JOINTS).sum())

    @property
    def per_joint(self) -> FloatArray:
        """(16,) NaN where nobody has the joint labelled."""
        return np.divide(self.correct, self.labelled, out=np.full(NUM_JOINTS, np.nan), where=self.labelled > 0)

    @property
    def groups(self) -> dict[str, float]:
        """By `PCKH_GROUPS`: the mean of left and right, NaN where one of them has no label."""
        return {name: float(self.per_joint.take(joints).mean()) for name, joints in PCKH_GROUPS.items()}

    @property
    def total(self) -> float:
        """Official PCKh: the 14 joints other than pelvis and thorax, pooled over all people."""
        return self._pooled(PCKH_JOINTS)

    @property
    def joint_mean(self) -> float:
        """The unweighted mean of the 14 joints; NaN where one of them has no label."""
        _nonzero(self.num_joints, "joint")
        return float(self.per_joint.take(PCKH_JOINTS).mean())

    @property
    def pooled_16(self) -> float:
        """All 16 joints, pooled: what the paper counts."""
        return self._pooled(range(NUM_JOINTS))

    @property
    def toolkit_head(self) -> float:
        """The toolkit's "Head": the mean of upper neck and head top; NaN where one of them has no label."""
        return float(self.per_joint.take((UPPER_NECK, HEAD_TOP)).mean())

    @property
    def toolkit_upper_body(self) -> float:
        """The toolkit's "UBody": wrists, elbows and shoulders, pooled."""
        return self._pooled(UPPER_BODY)

    def _pooled(self, joints: Sequence[int]) -> float:
        return int(self.correct.take(joints).sum()) / _nonzero(int(self.labelled.take(joints).sum()), "joint")


@dataclass(frozen=True, eq=False)
class PckCurveCounts:
    """`PckCounts` at each of `CURVE_THRESHOLDS`."""

    points: tuple[PckCounts, ...]

    def __add__(self, other: PckCurveCounts) -> PckCurveCounts:
        return PckCurveCounts(tuple(map(add, self.points, other.points)))

    @property
    def total(self) -> FloatArray:
        """(51,) official PCKh at each threshold."""
        return np.array([counts.total for counts in self.points])

    @property
    def auc(self) -> float:
        """The area under `total` by trapezoids, thresholds scaled to [0, 1], as the toolkit's `area_under_curve(scale01(range), ...)`."""
        return float((self.total[:-1] + self.total[1:]).mean() / 2)


def pckh_counts(errors: ArrayLike, threshold: float = 0.5) -> PckCounts:
    """Count the joints with error <= threshold, both as float32: stored errors (float32) then give the score of fresh ones.

    Args:
        errors: (N, 16) in units of the norm, from `joint_errors`; NaN is not scored.
        threshold: in units of the norm, by value: 0.1 is 0.1.
    """
    stored = _checked("errors", errors, (None, NUM_JOINTS), np.float32)
    return PckCounts(np.sum(stored <= np.float32(threshold), axis=0), np.sum(~np.isnan(stored), axis=0), float(threshold))


def share_within(errors: ArrayLike, threshold: float = 0.5) -> FloatArray:
    """(N,) the share of each person's scored errors (N, K) that `pckh_counts` calls correct; NaN where none is scored."""
    stored = np.asarray(errors, dtype=np.float32)
    num_scored = np.sum(~np.isnan(stored), axis=1)
    return np.sum(stored <= np.float32(threshold), axis=1) / np.where(num_scored > 0, num_scored, np.nan)


def pckh(predicted: ArrayLike, truth: ArrayLike, is_annotated: ArrayLike, norm: ArrayLike, threshold: float = 0.5) -> PckCounts:
    """PCKh in one call; the arguments are those of `joint_errors` and `pckh_counts`."""
    return pckh_counts(joint_errors(predicted, truth, is_annotated, norm), threshold)


def pckh_curve_counts(errors: ArrayLike) -> PckCurveCounts:
    """`pckh_counts` at each of `CURVE_THRESHOLDS`; errors: (N, 16) in units of the norm, NaN is not scored."""
    return PckCurveCounts(tuple(pckh_counts(errors, threshold) for threshold in CURVE_THRESHOLDS))


def iou(predicted: ArrayLike, truth: ArrayLike) -> FloatArray:
    """(N,) intersection over union of boxes x1, y1, x2, y2 in one frame; a box with x2 < x1 or y2 < y1 has area 0.

    Args:
        predicted: (N, 4); a box that is not finite scores 0.
        truth: (N, 4); NaN, and so is the IoU, where a person has no head box.
    """
    boxes = _checked("predicted", predicted, (None, 4))
    labels = _checked("truth", truth, boxes.shape)
    is_labelled = np.isfinite(labels).all(axis=1)
    boxes, labels = (np.where(np.isfinite(each).all(axis=1)[:, None], each, 0) for each in (boxes, labels))
    shared = _area(np.hstack([np.maximum(boxes[:, :2], labels[:, :2]), np.minimum(boxes[:, 2:], labels[:, 2:])]))
    union = _area(boxes) + _area(labels) - shared
    return np.where(is_labelled, np.divide(shared, union, out=np.zeros_like(union), where=union > 0), np.nan)


@dataclass(frozen=True)
class BoxCounts:
    """IoU of head boxes, over the people who have a labelled one; `num_iou_50` have IoU >= 0.5, `num_iou_75` IoU >= 0.75."""

    num_boxes: int
    iou_sum: float
    num_iou_50: int
    num_iou_75: int

    def __add__(self, other: BoxCounts) -> BoxCounts:
        return BoxCounts(*map(add, astuple(self), astuple(other)))

    @property
    def mean_iou(self) -> float:
        return self.iou_sum / _nonzero(self.num_boxes, "head box")

    @property
    def iou_at_50(self) -> float:
        return self.num_iou_50 / _nonzero(self.num_boxes, "head box")

    @property
    def iou_at_75(self) -> float:
        return self.num_iou_75 / _nonzero(self.num_boxes, "head box")


def box_counts(predicted: ArrayLike, truth: ArrayLike) -> BoxCounts:
    """Count the boxes of `iou`, whose arguments these are."""
    overlap = iou(predicted, truth)
    scored = overlap[~np.isnan(overlap)]
    return BoxCounts(scored.size, float(scored.sum()), int(np.sum(scored >= 0.5)), int(np.sum(scored >= 0.75)))


@dataclass(frozen=True)
class SquaredErrorCounts:
    """Squared error of the numbers that are labelled."""

    squared_sum: float
    num_values: int

    def __add__(self, other: SquaredErrorCounts) -> SquaredErrorCounts:
        return SquaredErrorCounts(*map(add, astuple(self), astuple(other)))

    @property
    def mse(self) -> float:
        """Per number (a joint is two), in the squared unit of the values."""
        return self.squared_sum / _nonzero(self.num_values, "value")


def squared_error_counts(predicted: ArrayLike, truth: ArrayLike, is_labelled: ArrayLike) -> SquaredErrorCounts:
    """Sum the squared errors; a prediction that is not finite makes the sum infinite, it is never dropped.

    Args:
        predicted: (N, ...) in any one frame.
        truth: like predicted; anything where not labelled.
        is_labelled: over the leading axes of predicted: (N, 16) for joints (N, 16, 2), (N,) for boxes (N, 4).
    """
    values = np.asarray(predicted, dtype=np.float64)
    difference = _difference(values, truth, _checked("is_labelled", is_labelled, values.shape[: np.ndim(is_labelled)], bool))
    return SquaredErrorCounts(float(np.sum(difference**2)), difference.size)


def _difference(predicted: FloatArray, truth: ArrayLike, is_labelled: NDArray[np.bool_]) -> FloatArray:
    """Predicted - truth where labelled, one row for each True; inf where the prediction is not finite."""
    labels = _checked("truth", truth, predicted.shape)[is_labelled]
    if not np.isfinite(labels).all():
        raise ValueError(f"truth: expected finite numbers where labelled, got {np.sum(~np.isfinite(labels))} that are not")
    values = predicted[is_labelled]
    return np.where(np.isfinite(values), values, np.inf) - labels


def _nonzero(num_labelled: int, what: str) -> int:
    if num_labelled == 0:
        raise ValueError(f"nothing was labelled: expected at least one labelled {what} to score, got 0")
    return num_labelled


def _area(boxes: FloatArray) -> FloatArray:
    return np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)


def _checked(name: str, values: ArrayLike, shape: tuple[int | None, ...], dtype: type = np.float64) -> NDArray[Any]:
    """The values as an array of this shape; None stands for any length."""
    array: NDArray[Any] = np.asarray(values, dtype=dtype)
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        raise ValueError(f"{name}: expected shape {str(shape).replace('None', 'N')}, got {array.shape}")
    return array
