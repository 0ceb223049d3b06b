"""HEAD (4 numbers) and POSE (32 numbers).

Every task regresses points: the head box is its two corners, the pose its 16 joints. Labels come as arrays named as in the SAMPLE record.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posepipe import metrics
from posepipe.geometry import points_to_box, transform
from posepipe.skeleton import JOINT_NAMES, LEFT_RIGHT_PAIRS, NUM_JOINTS

Labels = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class PoseScore:
    """Counts over people with a labelled joint and a head size; they add."""

    official: metrics.PckCounts
    bone: metrics.PckCounts
    num_people: int

    def __add__(self, other: "PoseScore") -> "PoseScore":
        return PoseScore(self.official + other.official, self.bone + other.bone, self.num_people + other.num_people)

    @property
    def num_scored(self) -> int:
        return self.official.num_joints

    @property
    def per_joint(self) -> dict[str, float | None]:
        """Official PCKh@0.5 of each of the 16 joints, 0..1."""
        return dict(zip(JOINT_NAMES, map(_or_none, self.official.per_joint.tolist()), strict=True))

    @property
    def objective(self) -> float:
        """Official PCKh@0.5, pooled over the 14 joints, 0..1."""
        return self.official.total

    def summary(self) -> dict[str, Any]:
        return {
            "num_people": self.num_people,
            "num_joints_scored": self.num_scored,
            "pckh": self.official.total,
            "pckh_joint_mean": _or_none(self.official.joint_mean),
            "pckh_bone": self.bone.pooled_16 if self.bone.labelled.any() else None,
            **{f"pckh_{name}": _or_none(value) for name, value in self.official.groups.items()},
        }


@dataclass(frozen=True)
class HeadScore:
    """Counts over people with a head box; they add."""

    boxes: metrics.BoxCounts

    @property
    def num_people(self) -> int:
        return self.boxes.num_boxes

    def __add__(self, other: "HeadScore") -> "HeadScore":
        return HeadScore(self.boxes + other.boxes)

    @property
    def num_scored(self) -> int:
        return self.num_people

    @property
    def objective(self) -> float:
        """Mean IoU, 0..1."""
        return self.boxes.mean_iou

    def summary(self) -> dict[str, Any]:
        return {
            "num_people": self.num_people,
            "head_iou": self.boxes.mean_iou,
            "head_iou_50": self.boxes.iou_at_50,
            "head_iou_75": self.boxes.iou_at_75,
        }


def _or_none(value: float) -> float | None:
    """JSON has no NaN, which a joint that nobody has labelled scores."""
    return value if np.isfinite(value) else None


Score = PoseScore | HeadScore


@dataclass(frozen=True)
class Task:
    """What is regressed.

    Attributes:
        column: of the SAMPLE record, the truth in crop px.
        num_points: points per person.
        flip_order: (num_points,) which point of the mirrored picture is which.
        is_box: the points are two corners of an axis-parallel box.
        evaluate: (predicted points (N, num_points, 2) image px, labels) -> Score.
        metric_names: keys of the score's summary worth a log line.
    """

    column: str
    num_points: int
    flip_order: tuple[int, ...]
    is_box: bool
    evaluate: Callable[[NDArray[np.float64], Labels], Score]
    metric_names: tuple[str, ...]

    def truth(self, labels: Labels) -> NDArray[np.float64]:
        """(N, num_points, 2) crop px, NaN where there is no label."""
        return labels[self.column].astype(np.float64).reshape(-1, self.num_points, 2)


def joints_image(labels: Labels) -> NDArray[np.float64]:
    """True joints (N, 16, 2) in image px, NaN where not annotated."""
    return transform(labels["crop_to_image"], labels["joints"].astype(np.float64).reshape(-1, NUM_JOINTS, 2))


def head_box_image(labels: Labels) -> NDArray[np.float64]:
    """True head boxes (N, 4) in image px, NaN where there is none."""
    return points_to_box(transform(labels["crop_to_image"], labels["head_box"].astype(np.float64).reshape(-1, 2, 2)))


def pose_errors(predicted: NDArray[np.float64], labels: Labels, norm: str) -> NDArray[np.float64]:
    """(N, 16) distances in units of `norm`: "head_size" (official) or "head_bone" (the paper's)."""
    return metrics.joint_errors(predicted, joints_image(labels), labels["is_annotated"], labels[norm].astype(np.float64))


def _evaluate_pose(predicted: NDArray[np.float64], labels: Labels) -> PoseScore:
    official, bone = (pose_errors(predicted, labels, norm) for norm in ("head_size", "head_bone"))
    num_people = int((~np.isnan(official)).any(axis=1).sum())
    return PoseScore(metrics.pckh_counts(official), metrics.pckh_counts(bone), num_people)


def _evaluate_head(predicted: NDArray[np.float64], labels: Labels) -> HeadScore:
    return HeadScore(metrics.box_counts(points_to_box(predicted), head_box_image(labels)))


def _flip_joints() -> tuple[int, ...]:
    order = list(range(NUM_JOINTS))
    for left, right in LEFT_RIGHT_PAIRS:
        order[left], order[right] = right, left
    return tuple(order)


TASKS: dict[str, Task] = {
    "head": Task("head_box", 2, (0, 1), True, _evaluate_head, ("head_iou", "head_iou_50")),
    "pose": Task("joints", NUM_JOINTS, _flip_joints(), False, _evaluate_pose, ("pckh", "pckh_bone")),
}
