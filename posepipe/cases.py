"""Which people to look at: best, median, worst, those who changed most; their rows, and their pictures with what was predicted."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from posepipe import fetching, geometry, images, overlays
from posepipe.results import Result, extremes
from posepipe.retrying import StorageUnavailableError
from posepipe.skeleton import NUM_JOINTS

PICTURE_WIDTH, PICTURE_HEIGHT = 420, 420
FILM_SIDE = 200
PATIENCE = 5.0  # seconds for a picture: a report can do without


@dataclass(frozen=True)
class Case:
    """One row of a run, and its picture.

    Attributes:
        kind: best, median, worst, better, worse or sample.
        row: number of the row in the run.
        file: of the run, that holds it.
        place: of the row in the file.
        values: the row, as PREDICTION names its values.
        person_error: see `People.person_error`; NaN where nothing is labelled.
        picture: JPEG, or None.
        problem: why there is none, or why it is drawn on grey.
        num_hidden: joints that are not drawn: outside the picture, of low confidence or missing.
    """

    kind: str
    row: int
    file: str
    place: int
    values: dict[str, Any]
    person_error: float
    picture: bytes | None
    problem: str
    num_hidden: int


def choose_cases(result: Result, number: int, min_confidence: float) -> list[Case]:
    """Best, median and worst people of a labelled run, of each `number`; of one without labels, evenly spread rows that were predicted."""
    if result.is_labelled:
        chosen = extremes(result.person_errors, number)
    else:
        predicted = np.flatnonzero(result.is_predicted)
        places = np.linspace(0, len(predicted) - 1, min(2 * number, len(predicted))).round().astype(int)
        chosen = {"sample": predicted[np.unique(places)]}
    return [case for kind, rows in chosen.items() for case in draw_rows(result, kind, rows.tolist(), min_confidence)]


def draw_rows(result: Result, kind: str, rows: Sequence[int], min_confidence: float) -> list[Case]:
    """The cases of the rows with these numbers, in this order."""
    cases = []
    for row, values in zip(rows, result.source.read_rows(rows), strict=True):
        picture, problem, num_hidden = _draw(values, min_confidence)
        file, place = result.source.locate(row)
        cases.append(Case(kind, row, file, place, values, float(result.person_errors[row]), picture, problem, num_hidden))
    return cases


def _draw(values: dict[str, Any], min_confidence: float) -> tuple[bytes | None, str, int]:
    """The picture, or why there is none, and how many joints are not drawn on it."""
    if values["joints"] is None and values["head_box"] is None:
        return None, f"not predicted: {values['status']}", 0
    try:
        if values["uri"]:
            data = fetching.fetch(values["uri"], images.MAX_BYTES, PATIENCE, PATIENCE)
        else:
            data = FileNotFoundError("no picture is named")
        if isinstance(data, OSError):
            overlay = overlays.without_picture(overlays.overlay_rows(b"", [values], min_confidence))
            problem = f"the picture cannot be read ({type(data).__name__})"
        else:
            overlay, problem = overlays.overlay_rows(data, [values], min_confidence), ""
        picture = overlays.draw_picture(overlay, PICTURE_WIDTH, PICTURE_HEIGHT)
        size = Image.open(io.BytesIO(overlay.image)).size
    except (images.ImageError, OSError, ValueError, StorageUnavailableError, Image.DecompressionBombError) as error:
        return None, f"the picture cannot be drawn ({overlays.describe(error)})", 0
    num_hidden = 0 if overlay.joints is None else NUM_JOINTS - int(geometry.is_inside(overlay.joints, size).sum())
    return picture, problem, num_hidden


@dataclass(frozen=True)
class Film:
    """One person at several epochs.

    Attributes:
        sample_id: of the sample.
        epochs: 1-based.
        frames: a JPEG for each.
    """

    sample_id: str
    epochs: tuple[int, ...]
    frames: tuple[bytes, ...]


def draw_films(table: pa.Table) -> list[Film]:
    """The people of a SNAPSHOT table, with what was predicted for them at each epoch that was kept."""
    return [
        Film(row["sample_id"], tuple(row["epochs"]), tuple(_draw_frame(row, np.array(points, np.float64)) for points in row["points"]))
        for row in table.to_pylist()
    ]


def _draw_frame(row: dict[str, Any], flat: NDArray[np.float64]) -> bytes:
    points, truth = flat.reshape(-1, 2), np.array(row["truth"], np.float64).reshape(-1, 2)
    # A small crop is enlarged first, so that lines stay thin.
    crop = Image.open(io.BytesIO(row["crop"]))
    width, height = (round(side * FILM_SIDE / max(crop.size)) for side in crop.size)
    sink = io.BytesIO()
    crop.resize((width, height), Image.Resampling.BILINEAR).save(sink, "JPEG", quality=90)
    points, truth = ((part + 0.5) * (width / crop.width, height / crop.height) - 0.5 for part in (points, truth))
    if len(points) == NUM_JOINTS:
        overlay = overlays.Overlay(sink.getvalue(), "", joints=points, true_joints=truth)
    else:
        boxes = [np.concatenate([part.min(axis=0), part.max(axis=0)]) for part in (points, truth)]
        overlay = overlays.Overlay(sink.getvalue(), "", head_box=boxes[0], true_head_box=boxes[1] if np.isfinite(boxes[1]).all() else None)
    return overlays.draw_picture(overlay, FILM_SIDE, FILM_SIDE)
