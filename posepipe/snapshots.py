"""What a training run predicted for a few fixed validation people at some of its epochs."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SNAPSHOTS_FILE = "snapshots.parquet"

SNAPSHOT = pa.schema(
    [
        pa.field("sample_id", pa.string(), metadata={"doc": "of the sample"}),
        pa.field("crop", pa.binary(), metadata={"doc": "JPEG, what the model saw"}),
        pa.field("truth", pa.list_(pa.float32()), metadata={"doc": "x, y of the task's points in crop px, NaN where there is no label"}),
        pa.field("epochs", pa.list_(pa.int32()), metadata={"doc": "1-based"}),
        pa.field("points", pa.list_(pa.list_(pa.float32())), metadata={"doc": "predicted at each of the epochs, like truth"}),
    ]
)


def choose_epochs(num_epochs: int, number: int) -> list[int]:
    """Up to `number` epochs from the first to the last, closer together where more is learnt: at the beginning."""
    return sorted({round(epoch) for epoch in np.geomspace(1, num_epochs, number)}) if number > 1 else [num_epochs][:number]


def choose_people(truth: NDArray[np.float64], number: int) -> NDArray[np.int64]:
    """Rows of up to `number` people, evenly spread among those with any label; truth: (N, points, 2), NaN where there is none."""
    labelled = np.flatnonzero(np.isfinite(truth).any(axis=(1, 2)))
    return labelled[np.unique(np.linspace(0, len(labelled) - 1, min(number, len(labelled))).round().astype(int))]


def start(sample_ids: Sequence[str], crops: Sequence[bytes], truth: NDArray[np.float64]) -> pa.Table:
    """A SNAPSHOT table of people of whom nothing was predicted yet; truth: (N, points, 2) crop px."""
    flat = [points.ravel().tolist() for points in truth]
    rows = [
        {"sample_id": sample_id, "crop": crop, "truth": points, "epochs": [], "points": []}
        for sample_id, crop, points in zip(sample_ids, crops, flat, strict=True)
    ]
    return pa.Table.from_pylist(rows, SNAPSHOT)


def extend(table: pa.Table, epoch: int, points: NDArray[np.float64]) -> pa.Table:
    """The table with what was predicted after one more epoch; points: (N, points, 2) crop px."""
    rows = table.to_pylist()
    for row, predicted in zip(rows, points, strict=True):
        row["epochs"].append(epoch)
        row["points"].append(predicted.ravel().tolist())
    return pa.Table.from_pylist(rows, SNAPSHOT)
