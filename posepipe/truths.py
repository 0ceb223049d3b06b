"""The labels that predictions made elsewhere are scored against: of samples, or of arrays of labels.

A truth is a table with the label columns of PREDICTION in float64, one row per person. Predictions are put beside it in its order (arrays)
or joined by sample_id (folders).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from posepipe import arrays, geometry, metrics, samples, storage
from posepipe.columns import float_array, list_array, list_column
from posepipe.config import Split
from posepipe.metrics import FloatArray
from posepipe.predictions import PREDICTION
from posepipe.skeleton import NUM_JOINTS, PCKH_JOINTS


def _wide(field: pa.Field) -> pa.Field:
    """Coordinates of other systems keep their digits: a threshold is a matter of the last one."""
    if field.name in ("joints", "head_box", "true_joints", "true_head_box"):
        return field.with_type(pa.list_(pa.float64()))
    return field.with_type(pa.float64()) if field.name in ("head_size", "head_bone") else field


WIDE_PREDICTION = pa.schema([_wide(field) for field in PREDICTION])
_OF_PEOPLE = ("true_head_box", "true_joints", "is_visible", "head_size", "head_bone", "activity")
LABELS = ("sample_id", "uri", "split", "width", "height", *_OF_PEOPLE)
NOT_PREDICTED = "no_prediction"


@dataclass(frozen=True)
class Truth:
    """Labels of people.

    Attributes:
        uri: where they come from.
        labels: the columns `LABELS` of WIDE_PREDICTION.
        mean_pose: (N, 16, 2) image px, the mean pose of these same people in the frame of their objpos and scale; None where these are not
            known.
    """

    uri: str
    labels: pa.Table
    mean_pose: FloatArray | None = None

    @functools.cached_property
    def places(self) -> dict[str, int]:
        """The row of each sample_id; of several the first."""
        ids = self.labels["sample_id"].to_pylist()
        return dict(zip(reversed(ids), range(len(ids) - 1, -1, -1), strict=True))


def read_truth(uri: str, split: Split, first_pixel: int | None, images_uri: str) -> Truth:
    """Labels of a samples folder's split, in the order of its files, or of an array file; ValueError where it is neither."""
    if arrays.is_array_file(uri):
        return _from_arrays(uri, arrays.read_arrays(uri), arrays.require_first_pixel(uri, first_pixel), images_uri)
    return _from_samples(uri, split)


def _from_samples(uri: str, split: Split) -> Truth:
    manifest = samples.read_manifest(uri)
    tables = []
    names = [name for name in samples.SAMPLE.names if name != "crop"]
    for file in samples.list_split(uri, split):
        try:
            table = storage.read_table(file, names)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{file} was written by another version ({str(error).partition(' in ')[0]}); prepare again") from error
        labels = samples.label_arrays(table)
        joints = np.where(labels["is_annotated"][..., None], geometry.transform(labels["crop_to_image"], labels["joints"]), np.nan)
        boxes = geometry.points_to_box(geometry.transform(labels["crop_to_image"], labels["head_box"].reshape(-1, 2, 2)))
        tables.append(
            _labels_table(
                joints,
                boxes,
                labels["head_size"],
                labels["head_bone"],
                sample_id=table["sample_id"],
                uri=[storage.join_uri(manifest["images_uri"], image) for image in table["image"].to_pylist()],
                **{name: table[name] for name in ("split", "width", "height", "is_visible", "activity")},
            )
        )
    return Truth(uri, pa.concat_tables(tables).combine_chunks())


def _from_arrays(uri: str, found: dict[str, NDArray[Any]], first_pixel: int, images_uri: str) -> Truth:
    """The layouts of MPII's evaluation code (HRNet's gt_valid.mat) and of plain .npz files (joints, annotated, headboxes, …)."""
    if {"jnt_missing", "pos_gt_src", "headboxes_src"} <= set(found):
        # https://github.com/leoxiaobin/deep-high-resolution-net.pytorch/blob/2ad80f22b5b37fb296152bf5f6341885e8d9087c/lib/dataset/mpii.py
        joints = np.asarray(found["pos_gt_src"], np.float64).transpose(2, 0, 1)
        annotated = np.asarray(found["jnt_missing"]).T == 0
        boxes = np.asarray(found["headboxes_src"], np.float64).transpose(2, 0, 1)
    elif {"joints", "annotated", "headboxes"} <= set(found):
        joints, annotated = np.asarray(found["joints"], np.float64), np.asarray(found["annotated"]).astype(bool)
        boxes = np.asarray(found["headboxes"], np.float64)
    else:
        raise ValueError(
            f"{uri} holds no labels that are known: expected jnt_missing, pos_gt_src and headboxes_src, or joints, annotated and "
            f"headboxes; got {', '.join(sorted(found)) or 'nothing'}"
        )
    num_people = len(joints)
    parts = {"joints": (joints, (NUM_JOINTS, 2)), "annotated": (annotated, (NUM_JOINTS,)), "headboxes": (boxes, None)}
    for name, (value, shape) in parts.items():
        if len(value) != num_people or (shape and value.shape[1:] != shape):
            raise ValueError(f"{uri}: {name} has shape {value.shape}; expected ({num_people}, {', '.join(map(str, shape or (2, 2)))})")
    joints = np.where(annotated[..., None], joints, np.nan) - first_pixel
    boxes = boxes.reshape(num_people, 4) - first_pixel
    ids, uris = [f"row {index}" for index in range(num_people)], [""] * num_people
    if "image" in found:
        names = [str(name) for name in found["image"]]
        ids = [f"{name}#{int(rect) - 1}" for name, rect in zip(names, found["rect_id"], strict=True)] if "rect_id" in found else ids
        uris = [storage.join_uri(storage.resolve_uri(images_uri), name) if images_uri else name for name in names]
    visible = np.where(annotated, found["visible"], np.nan) if "visible" in found else np.full(annotated.shape, np.nan)
    labels = _labels_table(
        joints, boxes, metrics.head_size(boxes), metrics.head_bone(joints, annotated), sample_id=ids, uri=uris, is_visible=visible
    )
    mean_pose = None
    if {"objpos", "scale"} <= set(found):
        place, scale = found["objpos"][:, None] - first_pixel, found["scale"][:, None, None]
        mean_pose = place + scale * np.nanmean((joints - place) / scale, axis=0)
    return Truth(uri, labels, mean_pose)


def _labels_table(joints: FloatArray, boxes: FloatArray, head_size: FloatArray, head_bone: FloatArray, **others: Any) -> pa.Table:
    columns: dict[str, Any] = {
        "true_joints": list_column(joints.reshape(-1, 2 * NUM_JOINTS), pa.float64()),
        "true_head_box": list_column(boxes, pa.float64()),
        "head_size": pa.array(head_size, from_pandas=True),
        "head_bone": pa.array(head_bone, from_pandas=True),
        **others,
    }
    if isinstance(columns.get("is_visible"), np.ndarray):
        columns["is_visible"] = list_column(columns["is_visible"], pa.bool_())
    return _fill(columns, len(joints)).select(LABELS)


def _fill(columns: dict[str, Any], num_rows: int) -> pa.Table:
    """A table of WIDE_PREDICTION; null where there is no such column."""
    made = []
    for field in WIDE_PREDICTION:
        value = columns.get(field.name)
        if isinstance(value, pa.Array | pa.ChunkedArray):
            made.append(value.cast(field.type))
        else:
            made.append(pa.nulls(num_rows, field.type) if value is None else pa.array(value, field.type))
    return pa.table(made, WIDE_PREDICTION)


def predict(labels: pa.Table, joints: FloatArray) -> pa.Table:
    """WIDE_PREDICTION rows of a pose prediction beside its labels.

    Args:
        labels: `LABELS` of N people.
        joints: (N, 16, 2) predicted, image px; not finite is a miss.
    """
    columns: dict[str, Any] = {name: labels[name] for name in LABELS}
    finite = np.where(np.isfinite(joints).all(axis=2, keepdims=True), joints, np.nan)
    truth = list_array(labels["true_joints"], NUM_JOINTS, 2)
    annotated = np.isfinite(truth).all(axis=2)
    errors, bone_errors = (metrics.joint_errors(finite, truth, annotated, float_array(labels[name])) for name in ("head_size", "head_bone"))
    columns |= {
        "task": ["pose"] * len(joints),
        "status": ["ok"] * len(joints),
        "detail": [""] * len(joints),
        "joints": list_column(finite.reshape(-1, 2 * NUM_JOINTS), pa.float64()),
        "joint_error": list_column(errors, pa.float32()),
        "pckh": pa.array(metrics.share_within(errors[:, PCKH_JOINTS]), from_pandas=True),
        "pckh_bone": pa.array(metrics.share_within(bone_errors), from_pandas=True),
    }
    return _fill(columns, len(joints))


def miss(truth: Truth, places: NDArray[np.int64], task: str) -> pa.Table:
    """WIDE_PREDICTION rows of the people at these places (N,) of a truth, for whom `task` predicted nothing."""
    count = len(places)
    columns = {"sample_id": truth.labels["sample_id"].take(pa.array(places)), "task": [task] * count}
    return relabel(_fill({**columns, "status": [NOT_PREDICTED] * count, "detail": [""] * count}, count), truth, places)


def relabel(rows: pa.Table, truth: Truth, places: NDArray[np.int64]) -> pa.Table:
    """Predicted rows with the labels of a truth: `places` (N,) is the row of each in it, -1 where it has none and nothing is scored."""
    labels = truth.labels.take(pa.array(places, mask=places < 0))
    boxes = list_array(rows["head_box"], 4)
    overlap = metrics.iou(boxes, list_array(labels["true_head_box"], 4))
    has_head = pc.match_substring(rows["task"], "head")
    joints = list_array(rows["joints"], NUM_JOINTS, 2)
    scored = predict(labels, joints)
    kept = {name: rows[name] for name in WIDE_PREDICTION.names}
    has_pose = pc.match_substring(rows["task"], "pose")
    for name in ("joint_error", "pckh", "pckh_bone"):
        kept[name] = pc.if_else(has_pose, scored[name], None)
    kept |= {name: pc.coalesce(labels[name], rows[name].cast(labels[name].type)) for name in ("split", "width", "height")}
    # A truth that names no place has bare names.
    is_place = pc.match_substring_regex(labels["uri"], "^/|://")
    kept["uri"] = pc.coalesce(pc.if_else(is_place, labels["uri"], None), rows["uri"].cast(labels["uri"].type), labels["uri"])
    kept |= {name: labels[name] for name in _OF_PEOPLE}
    kept["head_iou"] = pc.if_else(has_head, pa.array(overlap, from_pandas=True), None)
    return _fill(kept, rows.num_rows)


def find_places(sample_ids: pa.ChunkedArray, truth: Truth) -> NDArray[np.int64]:
    """(N,) the row of each id in the truth, -1 where it has none."""
    return np.fromiter((truth.places.get(sample_id, -1) for sample_id in sample_ids.to_pylist()), np.int64, len(sample_ids))
