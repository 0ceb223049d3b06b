"""Draws a spread of a run's rows on their pictures."""

import logging
from typing import Any

import numpy as np

from posepipe import fetching, images, overlays, storage
from posepipe.predictions import list_predictions
from posepipe.skeleton import NUM_JOINTS

logger = logging.getLogger(__name__)


def draw_overlays(predictions_uri: str, overlays_uri: str, count: int) -> None:
    """Draws evenly spread rows.

    Args:
        predictions_uri: a complete run.
        overlays_uri: the JPEG to write.
        count: rows to draw.
    """
    files = _spread(list_predictions(predictions_uri), count)
    rows = [row for file in files for row in storage.read_table(file).to_pylist() if row["status"] == "ok"]
    chosen = _spread(rows, count)
    pictures = fetching.read_ahead([row["uri"] for row in chosen], images.MAX_BYTES)
    drawn = [_overlay(data, row) for row, (_, data) in zip(chosen, pictures, strict=True) if isinstance(data, bytes)]
    if drawn:
        storage.write_bytes(overlays_uri, overlays.draw_grid(drawn))
    else:
        logger.warning("none of the pictures of %s can be read, so there is nothing to draw on", predictions_uri)


def _spread(items: list[Any], count: int) -> list[Any]:
    return [items[index] for index in sorted({round(place) for place in np.linspace(0, len(items) - 1, min(count, len(items)))})]


def _overlay(picture: bytes, row: dict[str, Any]) -> overlays.Overlay:
    joints = np.reshape(row["joints"], (NUM_JOINTS, 2)) if row["joints"] else None
    errors = np.array(row["joint_error"], dtype=float) if row["joint_error"] else None
    box = np.array(row["head_box"]) if row["head_box"] else None
    said = [row["sample_id"].rpartition("/")[2]]
    said += [f"{name} {100 * row[column]:.0f}" for name, column in (("PCKh", "pckh"), ("IoU", "head_iou")) if row[column] is not None]
    # The joints with some room around them, or six heads around the head.
    shown = joints if joints is not None else np.asarray(box).reshape(2, 2)
    low, high = shown.min(axis=0), shown.max(axis=0)
    room = (0.25 if joints is not None else 3.0) * (high - low).max()
    return overlays.Overlay(picture, "  ".join(said), joints, errors, box, np.concatenate([low - room, high + room]))
