"""What the tasks of a scoring run do: read a shard, predict, write its file of predictions."""

import dataclasses
import json
import pickle
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from posepipe import geometry, images, metrics, samples, storage
from posepipe.models import load_model
from posepipe.predictions import PREDICTION
from posepipe.skeleton import NUM_JOINTS, PCKH_JOINTS
from posepipe.tasks import TASKS, Score, head_box_image, joints_image, pose_errors


@dataclasses.dataclass(frozen=True)
class ShardReader:
    """A shard's inputs -> crops. Columns in: shard, spec. Columns out: shard, rows (pickled), pixels (the crops of the good rows)."""

    size: int

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        spec = json.loads(row["spec"])
        rows, crops = self._read_samples(spec) if "uris" not in spec else self._read_images(spec["uris"])
        pixels = np.stack(crops) if crops else np.empty((0, self.size, self.size, 3), np.uint8)
        return {"shard": row["shard"], "rows": pickle.dumps(rows), "pixels": pixels.tobytes()}

    def _read_images(self, uris: Sequence[str]) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
        known: list[dict[str, Any]] = []
        crops, affines = [], []
        for uri, data in storage.read_ahead(uris):
            row: dict[str, Any] = {"sample_id": uri, "uri": uri, "framing": "image", "status": "ok", "detail": ""}
            try:
                if isinstance(data, Exception):
                    raise images.storage_error(data)
                header = images.read_header(data)
                row |= {"width": header.width, "height": header.height}
                crop_to_image = geometry.frame_image(header.width, header.height, self.size, header.orientation)
                crops.append(images.crop(data, header, crop_to_image, self.size))
                affines.append(crop_to_image)
            except images.ImageError as error:
                row |= {"status": error.status, "detail": error.detail}
            known.append(row)
        return {"known": known, "crop_to_image": np.reshape(affines, (-1, 2, 3)), "labels": None}, crops

    def _read_samples(self, spec: dict[str, Any]) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
        if "failed" in spec:
            names = ("split", "status", "detail")
            known = [
                {
                    **{name: row[name] for name in names},
                    "sample_id": f"{row['image']}#{row['person_index']}",
                    "uri": storage.join_uri(spec["images"], row["image"]),
                }
                for row in spec["failed"]
            ]
            return {"known": known, "crop_to_image": np.empty((0, 2, 3)), "labels": None}, []
        table = storage.read_table(spec["samples"])
        labels: dict[str, Any] = {**samples.label_arrays(table), "is_visible": table["is_visible"].to_pylist()}
        known = [
            {**row, "uri": storage.join_uri(spec["images"], row.pop("image")), "status": "ok", "detail": ""}
            for row in table.select(["sample_id", "image", "split", "framing", "width", "height", "activity"]).to_pylist()
        ]
        for row in known:
            row["person_from"] = "label" if row["framing"] == "person" else None
        crops = [images.decode_jpeg(crop) for crop in table["crop"].to_pylist()]
        return {"known": known, "crop_to_image": labels["crop_to_image"], "labels": labels}, crops


class Predictor:
    """Holds one model. Columns in: ShardReader's. Columns out: file, rows, sha256, statuses (JSON), scores (pickled pair, or empty)."""

    def __init__(
        self, checkpoint_uri: str, model_id: str, predictions_uri: str, run_id: str, batch_size: int, num_threads: int, use_gpu: bool
    ) -> None:
        torch.set_num_threads(num_threads)
        self._model, found = load_model(checkpoint_uri)
        if found != model_id:
            raise RuntimeError(f"{checkpoint_uri} changed while it was scored with: model {model_id} became {found}")
        self._device = torch.device("cuda" if use_gpu else "cpu")
        self._model.to(self._device)
        self._config, self._task = self._model.config, TASKS[self._model.config.task]
        self._predictions_uri, self._batch_size = predictions_uri, batch_size
        self._constants = {"task": self._config.task, "model_id": model_id, "run_id": run_id}

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        read = pickle.loads(row["rows"])
        size = self._config.size
        pixels = np.frombuffer(row["pixels"], dtype=np.uint8).reshape(-1, size, size, 3)
        points_crop, confidence = self._predict(pixels)
        points = geometry.transform(read["crop_to_image"], points_crop)
        columns = self._columns(points, confidence, read["labels"])
        columns["crop_to_image"] = np.reshape(read["crop_to_image"], (-1, 6))
        good = [index for index, known in enumerate(read["known"]) if known["status"] == "ok"]
        rows = [{**known, **self._constants} for known in read["known"]]
        for place, index in enumerate(good):
            rows[index] |= {name: values[place] for name, values in columns.items()}
        name = f"part-{row['shard']:06d}.parquet"
        sha256 = storage.write_table(storage.join_uri(self._predictions_uri, name), pa.Table.from_pylist(rows, PREDICTION))
        statuses = Counter(known["status"] for known in read["known"])
        scores = b"" if read["labels"] is None else pickle.dumps(self._scores(points, read["labels"]))
        return {"file": name, "rows": len(rows), "sha256": sha256, "statuses": json.dumps(statuses), "scores": scores}

    @torch.inference_mode()
    def _predict(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        points, confidences = [np.empty((0, self._task.num_points, 2))], []
        for start in range(0, len(pixels), self._batch_size):
            batch = torch.tensor(pixels[start : start + self._batch_size]).permute(0, 3, 1, 2).to(self._device)
            decoded, confidence = self._model.predict(batch)
            points.append(decoded.double().cpu().numpy())
            if confidence is not None:
                confidences.append(confidence.double().cpu().numpy())
        return np.concatenate(points), np.concatenate(confidences) if confidences else None

    def _columns(
        self, points: NDArray[np.float64], confidence: NDArray[np.float64] | None, labels: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Values of PREDICTION's columns, one per predicted row."""
        columns: dict[str, Any] = {} if labels is None else _label_columns(labels)
        if self._task.is_box:
            boxes = geometry.points_to_box(points)
            columns["head_box"] = boxes
            if confidence is not None:
                columns["head_confidence"] = confidence.mean(axis=1)
            if labels is not None:
                columns["head_iou"] = _nullable(metrics.iou(boxes, head_box_image(labels)))
            return columns
        columns["joints"] = points.reshape(len(points), 2 * self._task.num_points)
        if confidence is not None:
            columns["joint_confidence"] = confidence
        if labels is not None:
            errors, bone_errors = (pose_errors(points, labels, norm) for norm in ("head_size", "head_bone"))
            columns["joint_error"] = [_nullable(row) for row in errors]
            columns["pckh"] = _nullable(metrics.share_within(errors[:, PCKH_JOINTS]))
            columns["pckh_bone"] = _nullable(metrics.share_within(bone_errors))
        return columns

    def _scores(self, points: NDArray[np.float64], labels: dict[str, Any]) -> tuple[Score, Score]:
        """The score of the predictions, and that of the mean pose of the model's training samples."""
        mean = np.broadcast_to(np.asarray(self._config.mean_points) * self._config.size, points.shape)
        return self._task.evaluate(points, labels), self._task.evaluate(geometry.transform(labels["crop_to_image"], mean), labels)


def _label_columns(labels: dict[str, Any]) -> dict[str, Any]:
    """The labels of PREDICTION, in image px."""
    joints = np.where(labels["is_annotated"][..., None], joints_image(labels), np.nan)
    return {
        "true_head_box": [None if np.isnan(box).any() else box for box in head_box_image(labels)],
        "true_joints": [_nullable(row) for row in joints.reshape(len(joints), 2 * NUM_JOINTS)],
        "is_visible": labels["is_visible"],
        **{name: _nullable(labels[name]) for name in ("head_size", "head_bone")},
    }


def _nullable(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
