"""Draws a spread of a run's rows on their pictures."""

import logging
from typing import Any

import numpy as np

from posepipe import fetching, images, overlays, storage
from posepipe.predictions import list_predictions

logger = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds for a web server: a look at some of the rows can do without


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
    pictures = fetching.read_ahead([row["uri"] for row in chosen], images.MAX_BYTES, unreachable_after=PATIENCE)
    drawn = [overlays.overlay_rows(data, [row]) for row, (_, data) in zip(chosen, pictures, strict=True) if isinstance(data, bytes)]
    if drawn:
        storage.write_bytes(overlays_uri, overlays.draw_grid(drawn))
    else:
        logger.warning("none of the pictures of %s can be read, so there is nothing to draw on", predictions_uri)


def _spread(items: list[Any], count: int) -> list[Any]:
    return [items[index] for index in sorted({round(place) for place in np.linspace(0, len(items) - 1, min(count, len(items)))})]
