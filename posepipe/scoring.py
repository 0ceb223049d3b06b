"""Shards, predictor actors, commit.

A shard of inputs flows through a CPU task that reads and decodes it, and through an actor that predicts and writes one Parquet file of a
fixed name. `_MANIFEST.json` and then `_SUCCESS` come last; readers go by the manifest alone.
"""

import dataclasses
import json
import logging
import pickle
from collections import Counter
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from numpy.typing import NDArray

from posepipe import cluster, geometry, images, metrics, overlays, samples, storage
from posepipe.config import ScoreConfig
from posepipe.models import ModelConfig, load_model, read_model_config
from posepipe.progress import Progress
from posepipe.skeleton import NUM_JOINTS, PCKH_JOINTS
from posepipe.tasks import TASKS, Score, head_box_image, pose_errors

logger = logging.getLogger(__name__)

SUMMARY_FILE = "summary.json"
OVERLAYS_FILE = "overlays.jpg"

PREDICTION = pa.schema(
    [
        pa.field("sample_id", pa.string(), metadata={"doc": "of the sample, or the URI of the picture"}),
        pa.field("uri", pa.string(), metadata={"doc": "of the picture"}),
        pa.field("split", pa.string(), metadata={"doc": "of the sample, or null"}),
        pa.field("task", pa.string(), metadata={"doc": "head or pose"}),
        pa.field("framing", pa.string(), metadata={"doc": "what the model saw: image, or person (from the label)"}),
        pa.field("status", pa.string(), metadata={"doc": "ok, or what was wrong: one of posepipe.images.STATUSES"}),
        pa.field("detail", pa.string(), metadata={"doc": "what was found, empty where ok"}),
        pa.field("width", pa.int32(), metadata={"doc": "image px as stored, or null"}),
        pa.field("height", pa.int32(), metadata={"doc": "image px as stored, or null"}),
        pa.field("head_box", pa.list_(pa.float32(), 4), metadata={"doc": "x1, y1, x2, y2 in image px, or null"}),
        pa.field("joints", pa.list_(pa.float32(), 2 * NUM_JOINTS), metadata={"doc": "x, y in image px, or null"}),
        pa.field("confidence", pa.list_(pa.float32()), metadata={"doc": "[0, 1]: 16 of the pose, 1 of the head box; null where unknown"}),
        pa.field("joint_error", pa.list_(pa.float32(), NUM_JOINTS), metadata={"doc": "distance / head_size; null where not annotated"}),
        pa.field("pckh", pa.float32(), metadata={"doc": "official, share of the person's labelled joints of the 14 within 0.5; or null"}),
        pa.field("pckh_bone", pa.float32(), metadata={"doc": "the paper's, over the labelled joints of all 16; or null"}),
        pa.field("head_iou", pa.float32(), metadata={"doc": "with the labelled head box, or null"}),
        pa.field("model_id", pa.string(), metadata={"doc": "sha256 of the checkpoint"}),
        pa.field("run_id", pa.string(), metadata={"doc": "name of the scoring run"}),
    ]
)


def score(config: ScoreConfig) -> dict[str, Any]:
    """Predicts for every input and writes PREDICTION rows, a summary, the manifest and the marker.

    Returns:
        The summary.

    Raises:
        ValueError: no checkpoint, no inputs, samples of another size or framing, predictions of another run in the same place.
    """
    predictions_uri = storage.resolve_uri(config.predictions_uri)
    checkpoint_uri = storage.resolve_uri(config.checkpoint_uri)
    model_config, model_id = read_model_config(checkpoint_uri)
    shards, inputs = _sample_shards(config, model_config) if config.samples_uri else _image_shards(config, model_config)
    identity = {"model_id": model_id, "inputs": inputs, "num_inputs": sum(shard["count"] for shard in shards), "run_id": config.run_id}
    _claim_folder(predictions_uri, identity, config.overwrite)
    cluster.require(
        f"scoring with {config.num_actors} actors and a task that reads",
        cpus=config.num_actors * config.cpus_per_actor + 1,
        gpus=config.num_actors * config.use_gpu,
        hint="change --num-actors, --cpus-per-actor or --use-gpu",
    )
    work = [{"shard": index, "spec": json.dumps(shard)} for index, shard in enumerate(shards)]
    dataset = (
        ray.data.from_items(work, override_num_blocks=len(work))
        # Ray fuses a task into the actor behind it where their resources agree; spread out, shards are read beside the actor.
        .map(_ShardReader(model_config.size), num_cpus=1, scheduling_strategy="SPREAD")
        .map(
            Predictor,
            fn_constructor_args=(
                checkpoint_uri,
                model_id,
                predictions_uri,
                config.run_id,
                config.batch_size,
                config.cpus_per_actor,
                config.use_gpu,
            ),
            compute=ray.data.ActorPoolStrategy(size=config.num_actors),
            num_cpus=config.cpus_per_actor,
            num_gpus=int(config.use_gpu),
        )
    )
    files: list[dict[str, Any]] = []
    statuses: Counter[str] = Counter()
    scores: list[tuple[Score, Score]] = []
    with Progress("score", identity["num_inputs"], "inputs") as progress:
        for row in dataset.iter_rows():
            files.append({"file": row["file"], "rows": row["rows"], "sha256": row["sha256"]})
            statuses.update(json.loads(row["statuses"]))
            if row["scores"]:
                scores.append(pickle.loads(row["scores"]))
            progress.update(row["rows"])
    summary = _summarise(config, model_config, identity, statuses, scores)
    storage.write_json(storage.join_uri(predictions_uri, SUMMARY_FILE), summary)
    manifest = {**identity, "files": sorted(files, key=lambda item: item["file"]), "statuses": dict(statuses)}
    storage.write_json(storage.join_uri(predictions_uri, storage.MANIFEST), manifest)
    storage.write_bytes(storage.join_uri(predictions_uri, storage.SUCCESS), b"")
    if config.num_overlays:
        draw_overlays([predictions_uri], storage.join_uri(predictions_uri, OVERLAYS_FILE), config.num_overlays)
    return summary


def _sample_shards(config: ScoreConfig, model: ModelConfig) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One shard per file of the split, and one for the people whose picture could not be used when the samples were made."""
    samples_uri = storage.resolve_uri(config.samples_uri)
    manifest = samples.read_manifest(samples_uri)
    for name in ("size", "framing"):
        if manifest[name] != getattr(model, name):
            raise ValueError(
                f"the checkpoint was trained on samples of {name} {getattr(model, name)}, {samples_uri} has {name} {manifest[name]}"
            )
    files = samples.list_split(samples_uri, config.split)
    rows = {storage.join_uri(samples_uri, item["file"]): item["rows"] for item in manifest["files"]}
    shards: list[dict[str, Any]] = [{"samples": uri, "images": manifest["images_uri"], "count": rows[uri]} for uri in files]
    errors = storage.read_table(storage.join_uri(samples_uri, samples.ERRORS_FILE)).to_pylist()
    failed = [row for row in errors if row["split"] == config.split]
    if failed:
        shards.append({"failed": failed, "images": manifest["images_uri"], "count": len(failed)})
    return shards, {"samples_fingerprint": storage.fingerprint(manifest), "split": config.split}


def _image_shards(config: ScoreConfig, model: ModelConfig) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Shards of shard_size URIs, in their order."""
    images_uri = storage.resolve_uri(config.images_uri)
    if model.framing != "image":
        raise ValueError(
            f"the checkpoint was trained on {model.framing} framing, which needs to know where the person is; "
            "score samples, or use a checkpoint that was trained on image framing"
        )
    uris = storage.list_files(images_uri)
    if not uris:
        raise ValueError(f"no files below {images_uri}")
    parts = [uris[start : start + config.shard_size] for start in range(0, len(uris), config.shard_size)]
    return [{"uris": part, "count": len(part)} for part in parts], {"images_fingerprint": storage.fingerprint(uris)}


def _claim_folder(predictions_uri: str, identity: dict[str, Any], overwrite: bool) -> None:
    """Takes marker and manifest away, so that nobody reads while files change, and the files of an older run with them."""
    manifest_uri = storage.join_uri(predictions_uri, storage.MANIFEST)
    if storage.exists(manifest_uri):
        older = storage.read_json(manifest_uri)
        differing = [f"{name} was {older.get(name)!r}, now {value!r}" for name, value in identity.items() if older.get(name) != value]
        if differing and not overwrite:
            text = "; ".join(differing)
            raise ValueError(f"{predictions_uri} holds other predictions ({text}); choose another --predictions-uri or pass --overwrite")
    found = storage.list_files(predictions_uri)
    for ending in (storage.SUCCESS, storage.MANIFEST):
        storage.delete(uri for uri in found if uri.endswith(f"/{ending}"))
    storage.delete(uri for uri in found if "/part-" in uri)


@dataclasses.dataclass(frozen=True)
class _ShardReader:
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
        labels = samples.label_arrays(table)
        known = [
            {**row, "uri": storage.join_uri(spec["images"], row.pop("image")), "status": "ok", "detail": ""}
            for row in table.select(["sample_id", "image", "split", "framing", "width", "height"]).to_pylist()
        ]
        crops = [images.decode_jpeg(crop) for crop in table["crop"].to_pylist()]
        return {"known": known, "crop_to_image": labels["crop_to_image"], "labels": labels}, crops


class Predictor:
    """Holds one model. Columns in: _ShardReader's. Columns out: file, rows, sha256, statuses (JSON), scores (pickled pair, or empty)."""

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
        columns: dict[str, Any] = {}
        if confidence is not None:
            columns["confidence"] = confidence.mean(axis=1, keepdims=True) if self._task.is_box else confidence
        if self._task.is_box:
            boxes = geometry.points_to_box(points)
            columns["head_box"] = boxes
            if labels is not None:
                columns["head_iou"] = _nullable(metrics.iou(boxes, head_box_image(labels)))
            return columns
        columns["joints"] = points.reshape(len(points), -1)
        if labels is not None:
            errors, bone_errors = (pose_errors(points, labels, norm) for norm in ("head_size", "head_bone"))
            columns["joint_error"] = [_nullable(row) for row in errors]
            columns["pckh"] = _nullable(_share_within(errors[:, PCKH_JOINTS]))
            columns["pckh_bone"] = _nullable(_share_within(bone_errors))
        return columns

    def _scores(self, points: NDArray[np.float64], labels: dict[str, Any]) -> tuple[Score, Score]:
        """The score of the predictions, and that of the mean pose of the model's training samples."""
        mean = np.broadcast_to(np.asarray(self._config.mean_points) * self._config.size, points.shape)
        return self._task.evaluate(points, labels), self._task.evaluate(geometry.transform(labels["crop_to_image"], mean), labels)


def _share_within(errors: NDArray[np.float64], threshold: float = 0.5) -> NDArray[np.float64]:
    """(N,) share of the finite or missed errors that are within the threshold; NaN where nothing is labelled."""
    labelled = (~np.isnan(errors)).sum(axis=1)
    return np.where(labelled > 0, (errors <= threshold).sum(axis=1) / np.maximum(labelled, 1), np.nan)


def _nullable(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _summarise(
    config: ScoreConfig, model: ModelConfig, identity: dict[str, Any], statuses: Counter[str], scores: list[tuple[Score, Score]]
) -> dict[str, Any]:
    summary: dict[str, Any] = {
        **identity,
        "task": model.task,
        "framing": model.framing,
        "inputs": config.samples_uri or config.images_uri,
        "rows_read": sum(statuses.values()),
        "rows_predicted": statuses["ok"],
        "statuses": dict(statuses),
    }
    if scores:
        ours, floor = (reduce(add, parts) for parts in zip(*scores, strict=True))
        summary["rows_labelled"] = ours.num_people
        if ours.num_scored:
            summary |= {"score": ours.summary(), "floor": floor.summary()}
    return summary


def describe(summary: dict[str, Any], predictions_uri: str) -> str:
    """The summary, for people."""
    bad = {name: count for name, count in summary["statuses"].items() if name != "ok"}
    lines = [f"read {summary['rows_read']} rows, predicted {summary['rows_predicted']}, not predicted: {bad or 'none'}"]
    if "score" in summary:
        ours, floor = summary["score"], summary["floor"]
        framing = "person framing from the label" if summary["framing"] == "person" else "image framing"
        lines.append(f"{summary['task']} on {ours['num_people']} labelled people, {framing}, in percent")
        lines.append(f"  {'':22}{'model':>8}{'mean pose':>12}")
        for name, value in ours.items():
            if not name.startswith("num_") and value is not None:
                lines.append(f"  {name:22}{100 * value:8.2f}{100 * floor[name]:12.2f}")
    return "\n".join([*lines, f"predictions: {predictions_uri}"])


def list_predictions(predictions_uri: str) -> list[str]:
    """Names of the files of a complete run, in the order of its shards; ValueError where it is not complete."""
    if not storage.exists(storage.join_uri(predictions_uri, storage.SUCCESS)):
        raise ValueError(f"no complete predictions at {predictions_uri}: expected {storage.SUCCESS}, which jobs.score writes last")
    return [item["file"] for item in storage.read_json(storage.join_uri(predictions_uri, storage.MANIFEST))["files"]]


def read_predictions(predictions_uri: str, columns: list[str] | None = None) -> pa.Table:
    """All PREDICTION rows of a complete run, in the order of its shards; ValueError where it is not complete."""
    files = list_predictions(predictions_uri)
    return pa.concat_tables([storage.read_table(storage.join_uri(predictions_uri, file), columns) for file in files])


def draw_overlays(predictions_uris: Sequence[str], overlays_uri: str, count: int) -> None:
    """Draws evenly spread rows of the first run, with what the other runs (of the same inputs, another task) say of them.

    Args:
        predictions_uris: complete runs.
        overlays_uri: the JPEG to write.
        count: rows to draw.
    """
    files = _spread(list_predictions(predictions_uris[0]), count)
    runs = [
        {
            row["sample_id"]: row
            for file in files
            for row in storage.read_table(storage.join_uri(uri, file)).to_pylist()
            if row["status"] == "ok"
        }
        for uri in predictions_uris
    ]
    chosen = _spread(list(runs[0]), count)
    pictures = storage.read_many([runs[0][sample_id]["uri"] for sample_id in chosen])
    drawn = [
        _overlay(picture, [run[sample_id] for run in runs if sample_id in run])
        for sample_id, picture in zip(chosen, pictures, strict=True)
        if isinstance(picture, bytes)
    ]
    if not drawn:
        raise ValueError(f"none of the pictures of {predictions_uris[0]} can be read, so there is nothing to draw on")
    storage.write_bytes(overlays_uri, overlays.draw_grid(drawn))


def _spread(items: list[str], count: int) -> list[str]:
    return [items[index] for index in sorted({round(place) for place in np.linspace(0, len(items) - 1, min(count, len(items)))})]


def _overlay(picture: bytes, rows: list[dict[str, Any]]) -> overlays.Overlay:
    joints = next((np.reshape(row["joints"], (NUM_JOINTS, 2)) for row in rows if row["joints"]), None)
    errors = next((np.array(row["joint_error"], dtype=float) for row in rows if row["joint_error"]), None)
    box = next((np.array(row["head_box"]) for row in rows if row["head_box"]), None)
    said = [rows[0]["sample_id"].rpartition("/")[2]]
    said += [f"PCKh {100 * row['pckh']:.0f}" for row in rows if row["pckh"] is not None]
    said += [f"IoU {100 * row['head_iou']:.0f}" for row in rows if row["head_iou"] is not None]
    # The joints with some room around them, or six heads around the head.
    shown = joints if joints is not None else np.asarray(box).reshape(2, 2)
    low, high = shown.min(axis=0), shown.max(axis=0)
    room = (0.25 if joints is not None else 3.0) * (high - low).max()
    return overlays.Overlay(picture, "  ".join(said), joints, errors, box, np.concatenate([low - room, high + room]))
