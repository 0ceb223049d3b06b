"""Draws predictions on their pictures, and grids of them."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from posepipe.skeleton import JOINT_NAMES, LIMBS

# Okabe and Ito's palette, which colour-blind readers can tell apart.
LEFT_COLOUR, RIGHT_COLOUR, MIDDLE_COLOUR, BOX_COLOUR, MISS_COLOUR = "#56B4E9", "#E69F00", "#F0E442", "#009E73", "#D41159"
TILE = 400
LEGEND_HEIGHT = 30


@dataclass(frozen=True)
class Overlay:
    """One picture with what was predicted on it.

    Attributes:
        image: the encoded picture.
        caption: one line under it.
        joints: (16, 2) image px, or None.
        joint_errors: (16,) in head sizes, NaN where unknown, or None; joints over 0.5 are ringed.
        head_box: (4,) x1, y1, x2, y2 image px, or None.
        focus: (4,) image px, the part to show, or None for all of the picture.
    """

    image: bytes
    caption: str
    joints: NDArray[np.float64] | None = None
    joint_errors: NDArray[np.float64] | None = None
    head_box: NDArray[np.float64] | None = None
    focus: NDArray[np.float64] | None = None


def draw_grid(overlays: Sequence[Overlay], columns: int = 4) -> bytes:
    """A JPEG of all overlays side by side, with a legend."""
    columns = min(columns, len(overlays))
    rows = math.ceil(len(overlays) / columns)
    grid = Image.new("RGB", (columns * TILE, rows * TILE + LEGEND_HEIGHT), "white")
    for index, overlay in enumerate(overlays):
        grid.paste(_draw_tile(overlay), (index % columns * TILE, index // columns * TILE))
    entries = []
    if any(overlay.joints is not None for overlay in overlays):
        entries += [(LEFT_COLOUR, "person's left"), (RIGHT_COLOUR, "person's right")]
    if any(overlay.head_box is not None for overlay in overlays):
        entries.append((BOX_COLOUR, "head box"))
    if any(overlay.joint_errors is not None for overlay in overlays):
        entries.append((MISS_COLOUR, "ring: off by more than half a head"))
    _draw_legend(ImageDraw.Draw(grid), rows * TILE, entries)
    sink = io.BytesIO()
    grid.save(sink, "JPEG", quality=90)
    return sink.getvalue()


def _draw_tile(overlay: Overlay) -> Image.Image:
    picture = Image.open(io.BytesIO(overlay.image)).convert("RGB")
    x1, y1, x2, y2 = (0, 0, picture.width, picture.height) if overlay.focus is None else overlay.focus
    x1, y1, x2, y2 = max(0.0, x1), max(0.0, y1), min(float(picture.width), x2), min(float(picture.height), y2)
    caption_height = 24
    inner = (TILE - 8, TILE - 8 - caption_height)
    part = picture.crop((int(x1), int(y1), max(int(x1) + 1, math.ceil(x2)), max(int(y1) + 1, math.ceil(y2))))
    scale = min(inner[0] / part.width, inner[1] / part.height)
    part = ImageOps.contain(part, inner, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(part)

    def place(point: NDArray[np.float64]) -> tuple[float, float]:
        return (point[0] + 0.5 - int(x1)) * scale, (point[1] + 0.5 - int(y1)) * scale

    if overlay.head_box is not None:
        draw.rectangle([*place(overlay.head_box[:2]), *place(overlay.head_box[2:])], outline=BOX_COLOUR, width=3)
    if overlay.joints is not None:
        limits = np.array([picture.width, picture.height]) - 0.5
        is_inside = np.all((overlay.joints >= -0.5) & (overlay.joints < limits), axis=1)
        for start, end in LIMBS:
            if is_inside[start] and is_inside[end]:
                draw.line([place(overlay.joints[start]), place(overlay.joints[end])], fill=_colour(start, end), width=3)
        for joint in np.flatnonzero(is_inside).tolist():
            x, y = place(overlay.joints[joint])
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=_colour(joint), outline="black")
            if overlay.joint_errors is not None and overlay.joint_errors[joint] > 0.5:
                draw.ellipse([x - 8, y - 8, x + 8, y + 8], outline=MISS_COLOUR, width=3)
    tile = Image.new("RGB", (TILE, TILE), "white")
    tile.paste(part, (4 + (inner[0] - part.width) // 2, 4 + (inner[1] - part.height) // 2))
    ImageDraw.Draw(tile).text((8, TILE - caption_height), overlay.caption, fill="black", font=_font())
    return tile


def _colour(*joints: int) -> str:
    names = [JOINT_NAMES[joint] for joint in joints]
    return next(
        (colour for side, colour in (("left", LEFT_COLOUR), ("right", RIGHT_COLOUR)) if any(name.startswith(side) for name in names)),
        MIDDLE_COLOUR,
    )


def _draw_legend(draw: ImageDraw.ImageDraw, top: int, entries: Sequence[tuple[str, str]]) -> None:
    x = 8.0
    for colour, text in entries:
        draw.rectangle([x, top + 9, x + 14, top + 23], fill=colour)
        draw.text((x + 20, top + 8), text, fill="black", font=_font())
        x += 20 + draw.textlength(text, font=_font()) + 24


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=14)
