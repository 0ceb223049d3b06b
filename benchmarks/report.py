"""Seconds, memory and bytes of a report on drawn predictions.

The rows lie in files of jobs.score's size, with labels of stick figures, predictions that are off by some part of a head, and pictures that
exist. What is timed is `report.build`, from the URI to the page.
"""

import dataclasses
import io
import json
import os
import resource
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import tyro
from PIL import Image

from benchmarks import machine
from posepipe import metrics, report, storage
from posepipe.columns import list_column
from posepipe.config import ReportConfig
from posepipe.predictions import PREDICTION
from posepipe.skeleton import NUM_JOINTS, PCKH_JOINTS

WIDTH, HEIGHT = 1280, 720
NUM_PICTURES = 12
# A standing person, 1 px high, from the right ankle on as `skeleton.JOINT_NAMES` goes.
FIGURE = np.array(
    [
        (-0.10, 0.95), (-0.09, 0.72), (-0.07, 0.50), (0.07, 0.50), (0.09, 0.72), (0.10, 0.95), (0.00, 0.50), (0.00, 0.20),
        (0.00, 0.16), (0.00, 0.02), (-0.20, 0.52), (-0.17, 0.37), (-0.12, 0.21), (0.12, 0.21), (0.17, 0.37), (0.20, 0.52),
    ]
)  # fmt: skip
ACTIVITIES = ("sports", "dancing", "occupation", None)


@dataclass(frozen=True, kw_only=True)
class ReportBenchmark:
    """Seconds, memory and bytes of a report on drawn predictions."""

    num_rows: int = 100_000
    """People in each run."""
    num_runs: int = 2
    """Runs, which are compared."""
    shard_size: int = 256
    """Rows per file."""

    def __post_init__(self) -> None:
        if min(self.num_rows, self.num_runs, self.shard_size) < 1:
            raise ValueError("--num-rows, --num-runs and --shard-size must be at least 1")


def draw_pictures(folder: str, number: int = NUM_PICTURES) -> list[str]:
    """Pictures of soft colours; their URIs."""
    x, y = np.meshgrid(np.linspace(0, 1, WIDTH), np.linspace(0, 1, HEIGHT))
    uris = []
    for index in range(number):
        waves = [np.sin((3 + index) * x + channel) + np.cos((5 - channel) * y + index) for channel in range(3)]
        sink = io.BytesIO()
        Image.fromarray((127 + 50 * np.stack(waves, axis=-1)).astype(np.uint8)).save(sink, "JPEG", quality=85)
        uris.append(storage.join_uri(folder, f"{index}.jpg"))
        storage.write_bytes(uris[-1], sink.getvalue())
    return uris


def draw_rows(numbers: np.ndarray[Any, Any], error: float, pictures: list[str], seed: int = 0) -> pa.Table:
    """PREDICTION rows of the people with these numbers, the same labels for every seed.

    Args:
        numbers: (N,)
        error: standard deviation of the predictions in head sizes.
        pictures: URIs.
        seed: of the errors.
    """
    labels, errors = np.random.default_rng([0, int(numbers[0])]), np.random.default_rng([1 + seed, int(numbers[0])])
    count = len(numbers)
    height = labels.uniform(150, 600, (count, 1, 1))
    corner = labels.uniform(0, 1, (count, 1, 2)) * (np.array([WIDTH, HEIGHT]) - height) + height * np.array([0.5, 0])
    truth = corner + height * FIGURE + height * labels.normal(0, 0.01, (count, NUM_JOINTS, 2))
    truth[labels.random((count, NUM_JOINTS)) < 0.1] = np.nan
    truth[:, PCKH_JOINTS[0]] = corner[:, 0]
    annotated = np.isfinite(truth).all(axis=2)
    top = (corner + height * FIGURE[9])[:, 0]
    boxes = np.hstack([top - height[:, 0] * [0.05, 0.0], top + height[:, 0] * [0.05, 0.12]])
    size = metrics.head_size(boxes)
    points = truth + size[:, None, None] * errors.normal(0, error, truth.shape)
    points = np.where(annotated[..., None], points, corner)
    errors_official = metrics.joint_errors(points, truth, annotated, size)
    bone = metrics.head_bone(truth, annotated)
    text = [f"{number:08d}.jpg#0" for number in numbers.tolist()]
    columns: dict[str, Any] = {
        "sample_id": text,
        "uri": [pictures[number % len(pictures)] for number in numbers.tolist()],
        "split": ["val"] * count,
        "task": ["head+pose"] * count,
        "framing": ["image"] * count,
        "status": ["ok"] * count,
        "detail": [""] * count,
        "width": np.full(count, WIDTH),
        "height": np.full(count, HEIGHT),
        "head_box": list_column(boxes + size[:, None] * errors.normal(0, error / 2, boxes.shape), pa.float32()),
        "head_confidence": errors.random(count),
        "joints": list_column(points.reshape(count, -1), pa.float32()),
        "joint_confidence": list_column(errors.random((count, NUM_JOINTS)), pa.float32()),
        "joint_error": list_column(errors_official, pa.float32()),
        "pckh": pa.array(metrics.share_within(errors_official[:, PCKH_JOINTS]), from_pandas=True),
        "true_head_box": list_column(boxes, pa.float32()),
        "true_joints": list_column(np.where(annotated[..., None], truth, np.nan).reshape(count, -1), pa.float32()),
        "is_visible": list_column(np.where(annotated, labels.random(annotated.shape) < 0.8, np.nan), pa.bool_()),
        "head_size": size,
        "head_bone": pa.array(bone, from_pandas=True),
        "activity": [ACTIVITIES[number % len(ACTIVITIES)] for number in numbers.tolist()],
    }
    made = [columns[field.name] if field.name in columns else pa.nulls(count, field.type) for field in PREDICTION]
    arrays = [value if isinstance(value, pa.Array) else pa.array(value) for value in made]
    return pa.table([array.cast(field.type) for array, field in zip(arrays, PREDICTION, strict=True)], PREDICTION)


def write_predictions(uri: str, tables: list[pa.Table] | Any, summary: dict[str, Any] | None = None) -> None:
    """A folder as jobs.score leaves it: parts, summary, manifest, marker."""
    files = []
    for index, table in enumerate(tables):
        name = f"part-{index:06d}.parquet"
        sha256 = storage.write_table(storage.join_uri(uri, name), table)
        files.append({"file": name, "rows": table.num_rows, "sha256": sha256})
    storage.write_json(storage.join_uri(uri, "summary.json"), {"models": {}, "tasks": {}, **(summary or {})})
    storage.write_json(storage.join_uri(uri, storage.MANIFEST), {"files": files})
    storage.write_bytes(storage.join_uri(uri, storage.SUCCESS), b"")


def main() -> None:
    config = tyro.cli(ReportBenchmark)
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="posepipe-report-") as folder:
        pictures = draw_pictures(f"{folder}/images")
        uris = [f"{folder}/predictions/run{run}" for run in range(config.num_runs)]
        numbers = np.split(np.arange(config.num_rows), np.arange(config.shard_size, config.num_rows, config.shard_size))
        for run, uri in enumerate(uris):
            write_predictions(uri, (draw_rows(part, 0.3 + 0.05 * run, pictures, run) for part in numbers))
        before = _peak_mib()
        started, cpu_started = time.perf_counter(), time.process_time()
        outcome = report.build(ReportConfig(report_uri=f"{folder}/report", predictions_uri=tuple(uris)))
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    print(
        json.dumps(
            machine.record(
                "report",
                {
                    **dataclasses.asdict(config),
                    "seconds": round(seconds, 1),
                    "cpu_seconds": round(cpu_seconds, 1),
                    "page_mib": round(outcome["page_bytes"] / 2**20, 2),
                    "peak_rss_mib": round(_peak_mib()),
                    "peak_rss_before_mib": round(before),
                },
                load_before,
            ),
            indent=1,
        )
    )


def _peak_mib() -> float:
    """Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
