"""What the actors of a scoring run do: frame the people of a shard, predict, commit its rows."""

import json
import pickle
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from posepipe import geometry, journal, metrics
from posepipe.config import Precision
from posepipe.model_file import Checkpoint, join_ids
from posepipe.predictions import PREDICTION
from posepipe.skeleton import HEAD_TOP, NUM_JOINTS, PCKH_JOINTS, UPPER_NECK
from posepipe.tasks import head_box_image, joints_image, pose_errors

NUM_EXAMPLES = 3
# MPII's own: scale = head size / 25, head size = 0.6 x diagonal. https://github.com/anibali/eval-mpii-pose keeps both.
SCALE_PER_DIAGONAL = 0.024
# In MPII, joints 8 and 9 lie 0.8 diagonals of the head box apart.
BONE_PER_DIAGONAL = 0.8
# From the middle of the head box down to objpos, in diagonals: the median of the 2,958 people of MPII's standard validation list.
HEAD_TO_CENTER = 1.39


class FirstStage:
    """Frames the person of a whole picture. Columns in: ShardReader's. Columns out: shard, inputs (pickled, for another ShardReader), done.

    A person that the manifest gives stays as it is. There are no scaled views: what lies outside a whole picture is not known.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        batch_size: int,
        num_threads: int,
        use_gpu: bool,
        flip_test: bool = False,
        precision: Precision = "float32",
    ) -> None:
        from posepipe.ensemble import Ensemble

        self._models = Ensemble([checkpoint], [checkpoint.size], batch_size, num_threads, use_gpu, flip_test, (1.0,), precision)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["done"]:
            return {"shard": row["shard"], "inputs": b"", "done": row["done"]}
        read = pickle.loads(row["rows"])
        [(task, points, _)] = self._models.predict(row["pixels"], read["crop_to_image"])
        people = iter([find_person(each, task.is_box, affine[:, 1]) for each, affine in zip(points, read["crop_to_image"][0], strict=True)])
        framed = []
        for item, known in zip(read["inputs"], read["known"], strict=True):
            person = {} if known["status"] != "ok" else next(people)
            if item["scale"] is not None:
                person = {}
            framed.append({**item, **{name: known.get(name) for name in ("status", "detail", "width", "height")}, **person})
        return {"shard": row["shard"], "inputs": pickle.dumps(framed), "done": ""}


def find_person(points: NDArray[np.float64], is_box: bool, down: ArrayLike = (0.0, 1.0)) -> dict[str, Any]:
    """MPII's center and scale of the person whose joints (16, 2) or head box corners (2, 2) these are, in image px.

    Args:
        points: image px as stored.
        is_box: these are the corners of a head box.
        down: (2,) what is below in the upright picture, of any length, in image px as stored.

    Returns:
        Values of an INPUT row: center_x, center_y, scale and person_from; or status no_person where the head has no size.
    """
    if is_box:
        low, high = points.min(axis=0), points.max(axis=0)
        diagonal = float(np.hypot(*(high - low)))
        axis = np.asarray(down, dtype=np.float64)
        with np.errstate(invalid="ignore"):  # of a head without an end, which is nobody's
            center = (low + high) / 2 + HEAD_TO_CENTER * diagonal * axis / np.hypot(*axis)
    else:
        diagonal = float(np.hypot(*(points[HEAD_TOP] - points[UPPER_NECK]))) / BONE_PER_DIAGONAL
        center = (points.min(axis=0) + points.max(axis=0)) / 2
    if not (np.isfinite(center).all() and diagonal > 1):
        return {"status": "no_person", "detail": f"the first stage sees a head of {diagonal:.3g} px"}
    return {
        "center_x": float(center[0]),
        "center_y": float(center[1]),
        "scale": SCALE_PER_DIAGONAL * diagonal,
        "person_from": "first_stage",
    }


class Predictor:
    """Holds the models. Columns in: ShardReader's. Columns out: record (the shard's done record as JSON)."""

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        sizes: Sequence[tuple[int, int]],
        run_uri: str,
        done_uri: str,
        run_id: str,
        batch_size: int,
        num_threads: int,
        use_gpu: bool,
        flip_test: bool = False,
        test_scales: Sequence[float] = (1.0,),
        precision: Precision = "float32",
    ) -> None:
        from posepipe.ensemble import Ensemble

        self._models = Ensemble(checkpoints, sizes, batch_size, num_threads, use_gpu, flip_test, test_scales, precision)
        model_ids = join_ids(checkpoints)
        self._run_uri, self._done_uri = run_uri, done_uri
        self._constants = {
            "task": "+".join(model_ids),
            "model_id": "+".join(model_ids.values()),
            "run_id": run_id,
        }

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["done"]:
            return {"record": row["done"]}
        read = pickle.loads(row["rows"])
        labels = read["labels"]
        columns: dict[str, Any] = {} if labels is None else _label_columns(labels)
        columns["crop_to_image"] = np.reshape(read["crop_to_image"][0], (-1, 6))
        for task, points, confidence in self._models.predict(row["pixels"], read["crop_to_image"]):
            columns |= (_box_columns if task.is_box else _joint_columns)(points, confidence, labels)
        good = [known for known in read["known"] if known["status"] == "ok"]
        if "joints" in columns:
            sizes = np.array([(row["width"], row["height"]) for row in good], dtype=np.float64).reshape(-1, 1, 2)
            columns["is_inside"] = geometry.is_inside(columns["joints"].reshape(-1, NUM_JOINTS, 2), sizes)
        rows = [{**known, **self._constants} for known in read["known"]]
        for place, target in enumerate(target for target in rows if target["status"] == "ok"):
            target |= {name: values[place] for name, values in columns.items()}
        record = {"statuses": dict(sorted(Counter(known["status"] for known in rows).items())), "examples": _examples(rows)}
        table = pa.Table.from_pylist(rows, PREDICTION)
        return {"record": json.dumps(journal.commit_part(self._run_uri, self._done_uri, row["shard"], table, record))}


def _box_columns(points: NDArray[np.float64], confidence: NDArray[np.float64] | None, labels: dict[str, Any] | None) -> dict[str, Any]:
    """Values of PREDICTION's columns, one per predicted row."""
    columns: dict[str, Any] = {"head_box": geometry.points_to_box(points)}
    if confidence is not None:
        columns["head_confidence"] = confidence.mean(axis=1)
    if labels is not None:
        columns["head_iou"] = _nullable(metrics.iou(columns["head_box"], head_box_image(labels)))
    return columns


def _joint_columns(points: NDArray[np.float64], confidence: NDArray[np.float64] | None, labels: dict[str, Any] | None) -> dict[str, Any]:
    """As `_box_columns`."""
    columns: dict[str, Any] = {"joints": points.reshape(len(points), 2 * NUM_JOINTS)}
    if confidence is not None:
        columns["joint_confidence"] = confidence
    if labels is not None:
        errors, bone_errors = (pose_errors(points, labels, norm) for norm in ("head_size", "head_bone"))
        columns["joint_error"] = [_nullable(row) for row in errors]
        columns["pckh"] = _nullable(metrics.share_within(errors[:, PCKH_JOINTS]))
        columns["pckh_bone"] = _nullable(metrics.share_within(bone_errors))
    return columns


def _label_columns(labels: dict[str, Any]) -> dict[str, Any]:
    """The labels of PREDICTION, in image px."""
    joints = np.where(labels["is_annotated"][..., None], joints_image(labels), np.nan)
    return {
        "true_head_box": [None if np.isnan(box).any() else box for box in head_box_image(labels)],
        "true_joints": [_nullable(row) for row in joints.reshape(len(joints), 2 * NUM_JOINTS)],
        "is_visible": labels["is_visible"],
        **{name: _nullable(labels[name]) for name in ("head_size", "head_bone")},
    }


def _examples(rows: Sequence[dict[str, Any]]) -> dict[str, list[list[str]]]:
    """The first few (URI, detail) of each status but ok."""
    found: dict[str, list[list[str]]] = {}
    for row in rows:
        of_status = found.setdefault(row["status"], [])
        if row["status"] != "ok" and len(of_status) < NUM_EXAMPLES:
            of_status.append([row["uri"], row["detail"]])
    found.pop("ok", None)
    return found


def _nullable(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
