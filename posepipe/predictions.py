"""The prediction record; predictions of a complete run, read through their manifest.

A folder of predictions is complete when its `_SUCCESS` marker exists, which is written last. Its files are those that `_MANIFEST.json`
lists and no others: attempts that lost a race or died may have left more.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from posepipe import storage

SUMMARY_FILE = "summary.json"

PREDICTION = pa.schema(
    [
        pa.field("sample_id", pa.string(), metadata={"doc": "of the sample, or of the input: its URI, and #k where it has several rows"}),
        pa.field("uri", pa.string(), metadata={"doc": "of the picture"}),
        pa.field("split", pa.string(), metadata={"doc": "of the sample, or null"}),
        pa.field("task", pa.string(), metadata={"doc": "head, pose or head+pose"}),
        pa.field("framing", pa.string(), metadata={"doc": "what the model saw: image, or person"}),
        pa.field("person_from", pa.string(), metadata={"doc": "what framed the person: label, center, box or first_stage; or null"}),
        pa.field("status", pa.string(), metadata={"doc": "ok, or what was wrong: one of posepipe.images.STATUSES"}),
        pa.field("detail", pa.string(), metadata={"doc": "what was found, empty where ok"}),
        pa.field("width", pa.int32(), metadata={"doc": "image px as stored, or null"}),
        pa.field("height", pa.int32(), metadata={"doc": "image px as stored, or null"}),
        pa.field("crop_to_image", pa.list_(pa.float64()), metadata={"doc": "the frame: 2 x 3 affine, row by row, or null"}),
        pa.field("head_box", pa.list_(pa.float32()), metadata={"doc": "predicted, x1, y1, x2, y2 in image px, or null"}),
        pa.field("head_confidence", pa.float32(), metadata={"doc": "[0, 1], or null where unknown"}),
        pa.field("joints", pa.list_(pa.float32()), metadata={"doc": "predicted, x, y in image px, or null"}),
        pa.field("joint_confidence", pa.list_(pa.float32()), metadata={"doc": "[0, 1], or null where unknown"}),
        pa.field("is_inside", pa.list_(pa.bool_()), metadata={"doc": "the predicted joint lies inside the picture; or null"}),
        pa.field("joint_error", pa.list_(pa.float32()), metadata={"doc": "distance / head_size; null where not annotated"}),
        pa.field("pckh", pa.float32(), metadata={"doc": "official, share of the person's labelled joints of the 14 within 0.5; or null"}),
        pa.field("pckh_bone", pa.float32(), metadata={"doc": "the paper's, over the labelled joints of all 16; or null"}),
        pa.field("head_iou", pa.float32(), metadata={"doc": "with the labelled head box, or null"}),
        pa.field("true_head_box", pa.list_(pa.float32()), metadata={"doc": "labelled, x1, y1, x2, y2 in image px, or null"}),
        pa.field("true_joints", pa.list_(pa.float32()), metadata={"doc": "labelled, image px, null where not annotated"}),
        pa.field("is_visible", pa.list_(pa.bool_()), metadata={"doc": "the label's; null where unknown"}),
        pa.field("head_size", pa.float32(), metadata={"doc": "0.6 x diagonal of the labelled head box, image px, or null"}),
        pa.field("head_bone", pa.float32(), metadata={"doc": "labelled head top to upper neck, image px, or null"}),
        pa.field("activity", pa.string(), metadata={"doc": "of the sample: MPII's category, or null where unknown"}),
        pa.field("model_id", pa.string(), metadata={"doc": "sha256 of the checkpoint; of an ensemble joined by a comma, of tasks by +"}),
        pa.field("run_id", pa.string(), metadata={"doc": "name of the scoring run"}),
    ]
)


def read_manifest(predictions_uri: str) -> dict[str, Any]:
    """The manifest of a complete run; ValueError where it is not complete."""
    # A training run has the marker too, but no manifest.
    for name in (storage.SUCCESS, storage.MANIFEST):
        if not storage.exists(storage.join_uri(predictions_uri, name)):
            raise ValueError(f"no complete predictions at {predictions_uri}: expected {name}, as jobs.score leaves it")
    return storage.read_json(storage.join_uri(predictions_uri, storage.MANIFEST))


def list_predictions(predictions_uri: str) -> list[str]:
    """URIs of the files of a complete run, in the order of its shards; ValueError where it is not complete."""
    return [storage.join_uri(predictions_uri, item["file"]) for item in read_manifest(predictions_uri)["files"]]


def iter_predictions(predictions_uri: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The PREDICTION rows of a complete run file by file, in the order of its shards; ValueError where it is not complete."""
    for uri in list_predictions(predictions_uri):
        yield storage.read_table(uri, columns)


def read_predictions(predictions_uri: str, columns: list[str] | None = None) -> pa.Table:
    """All PREDICTION rows of a complete run, in the order of its shards; ValueError where it is not complete."""
    return pa.concat_tables(iter_predictions(predictions_uri, columns))


def list_averaged(summary: dict[str, Any]) -> list[str]:
    """What the predictions of a run are averages over, for people; nothing where of one model and one crop each."""
    averaged = [f"{1 + ids.count(',')} {task} models" for task, ids in summary.get("models", {}).items() if "," in ids]
    averaged += ["the mirrored crop"] if summary.get("flip_test") else []
    # Summaries of older versions say nothing of either.
    scales = summary.get("test_scales", [1.0])
    return averaged + ([f"crops scaled by {', '.join(f'{scale:g}' for scale in scales)}"] if scales != [1.0] else [])
