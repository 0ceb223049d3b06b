"""People with their predictions and labels as arrays, from rows of the prediction record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from posepipe import metrics
from posepipe.columns import float_array, list_array, text_array
from posepipe.metrics import FloatArray
from posepipe.skeleton import NUM_JOINTS, PCKH_JOINTS

COLUMNS = [
    "sample_id",
    "task",
    "status",
    "width",
    "height",
    "head_box",
    "head_confidence",
    "joints",
    "joint_confidence",
    "joint_error",
    "true_head_box",
    "true_joints",
    "is_visible",
    "head_size",
    "head_bone",
    "activity",
]
"""What `from_table` reads of PREDICTION."""


@dataclass(frozen=True, eq=False)
class People:
    """N rows. Labels are NaN where there are none, and where the run did not predict what they are of: they are not scored."""

    sample_id: NDArray[Any]
    """(N,) of str."""
    status: NDArray[Any]
    """(N,) of str."""
    activity: NDArray[Any]
    """(N,) of str, None where unknown."""
    joints: FloatArray
    """(N, 16, 2) predicted, image px."""
    joint_confidence: FloatArray
    """(N, 16) in [0, 1]."""
    joint_error: FloatArray
    """(N, 16) in head sizes; NaN is not scored, inf is a missing prediction."""
    bone_error: FloatArray
    """(N, 16) in head bones, likewise."""
    true_joints: FloatArray
    """(N, 16, 2) image px."""
    is_visible: FloatArray
    """(N, 16) 1, 0, or NaN where unknown."""
    head_box: FloatArray
    """(N, 4) predicted, image px."""
    head_confidence: FloatArray
    """(N,) in [0, 1]."""
    true_head_box: FloatArray
    """(N, 4) image px."""
    head_size: FloatArray
    """(N,) image px."""
    picture_size: FloatArray
    """(N, 2) width, height in image px."""

    @property
    def is_annotated(self) -> NDArray[np.bool_]:
        """(N, 16)"""
        return np.all(np.isfinite(self.true_joints), axis=2)

    @property
    def person_error(self) -> FloatArray:
        """(N,) what people are ranked by, 0 (best) to 1; NaN where nothing is labelled.

        The mean error of the person's scored joints in head sizes, of each at most 1; for a run of head boxes 1 - IoU.
        """
        errors = np.minimum(self.joint_error[:, PCKH_JOINTS], 1)
        labelled = (~np.isnan(errors)).sum(axis=1)
        mean = np.nansum(errors, axis=1) / np.where(labelled > 0, labelled, np.nan)
        return np.where(np.isnan(mean), 1 - metrics.iou(self.head_box, self.true_head_box), mean)


def from_table(table: pa.Table) -> People:
    """The people of a table with `COLUMNS` of PREDICTION."""
    task = text_array(table["task"])
    has_pose, has_head = (np.array([name is not None and part in name.split("+") for name in task], bool) for part in ("pose", "head"))
    joints = list_array(table["joints"], NUM_JOINTS, 2)
    true_joints = list_array(table["true_joints"], NUM_JOINTS, 2)
    true_joints[~has_pose] = np.nan
    true_head_box = list_array(table["true_head_box"], 4)
    true_head_box[~has_head] = np.nan
    is_annotated = np.isfinite(true_joints).all(axis=2)
    return People(
        sample_id=text_array(table["sample_id"]),
        status=text_array(table["status"]),
        activity=text_array(table["activity"]),
        joints=joints,
        joint_confidence=list_array(table["joint_confidence"], NUM_JOINTS),
        joint_error=list_array(table["joint_error"], NUM_JOINTS),
        bone_error=metrics.joint_errors(joints, true_joints, is_annotated, float_array(table["head_bone"])),
        true_joints=true_joints,
        is_visible=list_array(table["is_visible"], NUM_JOINTS),
        head_box=list_array(table["head_box"], 4),
        head_confidence=float_array(table["head_confidence"]),
        true_head_box=true_head_box,
        head_size=float_array(table["head_size"]),
        picture_size=np.stack([float_array(table["width"]), float_array(table["height"])], axis=1),
    )
