"""What kind of error it is: left for right, a box off its place, how far off; as counts that add up."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from operator import add

import numpy as np
from numpy.typing import ArrayLike

from posepipe.metrics import FloatArray, IntArray, head_size, joint_errors
from posepipe.skeleton import LEFT_RIGHT_PAIRS, NUM_JOINTS

HISTOGRAM_STEP = 0.05  # head sizes
HISTOGRAM_BINS = 21  # the last one holds all that is off by a head size or more


def inversions(predicted: ArrayLike, truth: ArrayLike, is_annotated: ArrayLike, norm: ArrayLike, threshold: float = 0.5) -> FloatArray:
    """Which joints lie where the other side's joint should be.

    "Inversion" as Ronchi and Perona define it ("Benchmarking and Error Diagnosis in Multi-Instance Pose Estimation", ICCV 2017, section
    3.1), with PCKh's distance in place of their similarity: farther than the threshold from its own label, within the threshold of the
    label of the same joint of the other side.

    Args:
        predicted: (N, 16, 2) image px; not finite is no inversion, it is nowhere.
        truth: (N, 16, 2) image px; anything where not annotated.
        is_annotated: (N, 16).
        norm: (N,) image px, `metrics.head_size`.
        threshold: in units of the norm.

    Returns:
        (N, 6, 2) pairs as in `LEFT_RIGHT_PAIRS`, left and right: 1 inverted, 0 not, NaN where one of the pair is not annotated or the norm
        not positive.
    """
    labels, annotated = np.asarray(truth, np.float64), np.asarray(is_annotated, bool)
    order = np.arange(NUM_JOINTS)
    for left, right in LEFT_RIGHT_PAIRS:
        order[[left, right]] = right, left
    own = joint_errors(predicted, labels, annotated, norm)
    other = joint_errors(predicted, labels[:, order], annotated[:, order], norm)
    inverted = np.where(np.isnan(own) | np.isnan(other), np.nan, (own > threshold) & (other <= threshold))
    return inverted[:, np.array(LEFT_RIGHT_PAIRS)]


@dataclass(frozen=True)
class InversionCounts:
    """Joints that lie where the other side's should be, and pairs where both do."""

    inverted: int
    num_joints: int
    swapped_pairs: int
    num_pairs: int

    def __add__(self, other: InversionCounts) -> InversionCounts:
        return InversionCounts(*map(add, astuple(self), astuple(other)))

    @property
    def joint_rate(self) -> float:
        """NaN where no pair has both labels."""
        return self.inverted / self.num_joints if self.num_joints else np.nan

    @property
    def pair_rate(self) -> float:
        """NaN where no pair has both labels."""
        return self.swapped_pairs / self.num_pairs if self.num_pairs else np.nan


def inversion_counts(inverted: FloatArray) -> InversionCounts:
    """Count what `inversions` returned."""
    is_known = ~np.isnan(inverted[:, :, 0])
    return InversionCounts(int(np.nansum(inverted)), 2 * int(is_known.sum()), int((inverted == 1).all(axis=2).sum()), int(is_known.sum()))


def box_errors(predicted: ArrayLike, truth: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """How far head boxes are off their place and their size, in head sizes (0.6 x the labelled diagonal).

    Args:
        predicted: (N, 4) x1, y1, x2, y2 image px.
        truth: (N, 4) image px; NaN where a person has no head box.

    Returns:
        (N,) distance of the centres, (N,) |0.6 x predicted diagonal - head size|, both / head size; inf where the prediction is not finite,
        NaN where there is no label, or one without extent.
    """
    boxes, labels = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    sizes = head_size(labels)
    is_labelled = np.isfinite(sizes) & (sizes > 0)
    is_missing = ~np.all(np.isfinite(boxes), axis=1)
    boxes = np.where(is_missing[:, None], 0, boxes)
    offset = (boxes[:, :2] + boxes[:, 2:] - labels[:, :2] - labels[:, 2:]) / 2
    distances = np.hypot(offset[:, 0], offset[:, 1]), np.abs(head_size(boxes) - sizes)
    norm = np.where(is_labelled, sizes, np.nan)
    centre, size = (np.where(is_missing & is_labelled, np.inf, distance / norm) for distance in distances)
    return centre, size


@dataclass(frozen=True)
class BoxErrorCounts:
    """Errors of `box_errors`, over the labelled boxes that were predicted; those that were not are `num_missing`."""

    num_boxes: int
    num_missing: int
    centre_sum: float
    size_sum: float

    def __add__(self, other: BoxErrorCounts) -> BoxErrorCounts:
        return BoxErrorCounts(*map(add, astuple(self), astuple(other)))

    @property
    def mean_centre_error(self) -> float:
        """In head sizes; NaN where no box was predicted."""
        return self.centre_sum / self.num_boxes if self.num_boxes else np.nan

    @property
    def mean_size_error(self) -> float:
        """In head sizes; NaN where no box was predicted."""
        return self.size_sum / self.num_boxes if self.num_boxes else np.nan


def box_error_counts(centre: FloatArray, size: FloatArray) -> BoxErrorCounts:
    """Count what `box_errors` returned."""
    is_finite = np.isfinite(centre)
    return BoxErrorCounts(int(is_finite.sum()), int(np.isinf(centre).sum()), float(centre[is_finite].sum()), float(size[is_finite].sum()))


def error_histogram(errors: ArrayLike) -> IntArray:
    """(16, 21) joints by how far off they are, in steps of 0.05 head sizes; the last column holds 1 and more, and missing predictions.

    Args:
        errors: (N, 16) in head sizes; NaN is not counted.
    """
    values = np.asarray(errors, np.float64)
    bins = np.floor(np.minimum(np.nan_to_num(values, nan=0, posinf=1), 1) / HISTOGRAM_STEP + 1e-9).astype(int)
    places = bins + HISTOGRAM_BINS * np.arange(NUM_JOINTS)
    counts = np.bincount(places[~np.isnan(values)], minlength=NUM_JOINTS * HISTOGRAM_BINS)
    return counts.reshape(NUM_JOINTS, HISTOGRAM_BINS)
