"""Draws predictions on their pictures, and grids of them."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from posepipe import images
from posepipe.geometry import is_inside
from posepipe.skeleton import JOINT_NAMES, LIMBS, NUM_JOINTS

# Okabe and Ito's palette, which colour-blind readers can tell apart.
LEFT_COLOUR, RIGHT_COLOUR, MIDDLE_COLOUR, BOX_COLOUR, MISS_COLOUR = "#56B4E9", "#E69F00", "#F0E442", "#009E73", "#D41159"
TRUTH_COLOUR = "#FFFFFF"
CAPTION_HEIGHT = 24
TILE = 400
MAX_GREY = 8192  # px
LEGEND_HEIGHT = 30


@dataclass(frozen=True)
class Overlay:
    """One picture with what was predicted on it.

    Attributes:
        image: the encoded picture.
        caption: one line under it.
        joints: (16, 2) image px, or None; those that are not finite or lie outside the picture are not drawn.
        joint_errors: (16,) in head sizes, NaN where unknown, or None; joints over 0.5 are ringed.
        head_box: (4,) x1, y1, x2, y2 image px, or None.
        focus: (4,) image px, the part to show, or None for all of the picture.
        true_joints: (16, 2) image px, NaN where not annotated, or None.
        true_head_box: (4,) image px, or None.
    """

    image: bytes
    caption: str
    joints: NDArray[np.float64] | None = None
    joint_errors: NDArray[np.float64] | None = None
    head_box: NDArray[np.float64] | None = None
    focus: NDArray[np.float64] | None = None
    true_joints: NDArray[np.float64] | None = None
    true_head_box: NDArray[np.float64] | None = None


def overlay_rows(picture: bytes, rows: Sequence[dict[str, Any]], min_confidence: float = 0.0) -> Overlay:
    """What rows of PREDICTION say of one picture, each of another task; the caption names the input and its scores.

    Args:
        picture: the encoded picture.
        rows: as dicts; at least one of them predicted something.
        min_confidence: joints of less are not drawn.
    """
    joints, errors, true_joints = (_first(rows, name) for name in ("joints", "joint_error", "true_joints"))
    box, true_box, confidence = (_first(rows, name) for name in ("head_box", "true_head_box", "joint_confidence"))
    if joints is not None:
        joints = joints.reshape(NUM_JOINTS, 2)
        if confidence is not None:
            joints[confidence < min_confidence] = np.nan
        true_joints = None if true_joints is None else true_joints.reshape(NUM_JOINTS, 2)
    else:
        true_joints = None
    true_box = None if box is None else true_box
    said = [rows[0]["sample_id"].rpartition("/")[2]]
    said += [f"PCKh {100 * row['pckh']:.0f}" for row in rows if row["pckh"] is not None]
    said += [f"IoU {100 * row['head_iou']:.0f}" for row in rows if row["head_iou"] is not None]
    # The joints with some room around them, or six heads around the head; the label says best where the person is.
    points = [part.reshape(-1, 2) for part in ((joints, true_joints) if joints is not None else (box, true_box)) if part is not None]
    shown = np.concatenate(points)
    shown = shown[np.isfinite(shown).all(axis=1)]
    if not len(shown):
        return Overlay(picture, "  ".join(said), joints, errors, box, None, true_joints, true_box)
    low, high = shown.min(axis=0), shown.max(axis=0)
    reach = (0.75 if joints is not None else 3.5) * max(float((high - low).max()), 1.0)
    middle = (low + high) / 2
    return Overlay(picture, "  ".join(said), joints, errors, box, np.concatenate([middle - reach, middle + reach]), true_joints, true_box)


def without_picture(overlay: Overlay) -> Overlay:
    """The same on a grey square in place of a picture that nobody has; ValueError where it would be larger than any picture."""
    if overlay.focus is None:
        raise ValueError("there is nothing to draw")
    x1, y1, x2, _ = overlay.focus
    side = math.ceil(x2 - x1)
    if side > MAX_GREY:
        raise ValueError(f"expected at most {MAX_GREY} px to draw, got {side}")
    sink = io.BytesIO()
    Image.new("RGB", (side, side), "#555b61").save(sink, "PNG")
    corner = np.array([x1, y1])
    joints, true_joints = (None if part is None else part - corner for part in (overlay.joints, overlay.true_joints))
    box, true_box = (None if part is None else part - np.tile(corner, 2) for part in (overlay.head_box, overlay.true_head_box))
    return Overlay(sink.getvalue(), overlay.caption, joints, overlay.joint_errors, box, None, true_joints, true_box)


def _first(rows: Sequence[dict[str, Any]], name: str) -> NDArray[np.float64] | None:
    return next((np.array(row[name], dtype=np.float64) for row in rows if row[name]), None)


def draw_grid(overlays: Sequence[Overlay], columns: int = 4) -> bytes:
    """A JPEG of all overlays in rows that are as even as can be, of at most so many columns, with a legend."""
    rows = math.ceil(len(overlays) / columns)
    columns = math.ceil(len(overlays) / rows)
    entries = []
    if any(overlay.joints is not None for overlay in overlays):
        entries += [(LEFT_COLOUR, "person's left"), (RIGHT_COLOUR, "person's right"), (MIDDLE_COLOUR, "middle")]
    if any(overlay.head_box is not None for overlay in overlays):
        entries.append((BOX_COLOUR, "head box"))
    if any(overlay.joint_errors is not None for overlay in overlays):
        entries.append((MISS_COLOUR, "ring: off by more than half a head"))
    if any(overlay.true_joints is not None or overlay.true_head_box is not None for overlay in overlays):
        entries.append((TRUTH_COLOUR, "label"))
    lines = _break_legend(entries, columns * TILE)
    grid = Image.new("RGB", (columns * TILE, rows * TILE + len(lines) * LEGEND_HEIGHT), "white")
    for index, overlay in enumerate(overlays):
        grid.paste(_draw_tile(overlay), (index % columns * TILE, index // columns * TILE))
    for index, line in enumerate(lines):
        _draw_legend(ImageDraw.Draw(grid), rows * TILE + index * LEGEND_HEIGHT, line)
    sink = io.BytesIO()
    grid.save(sink, "JPEG", quality=90)
    return sink.getvalue()


def _draw_tile(overlay: Overlay) -> Image.Image:
    inner = (TILE - 8, TILE - 8 - CAPTION_HEIGHT)
    tile = Image.new("RGB", (TILE, TILE), "white")
    try:
        part = _draw_part(overlay, inner)
    except (images.ImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        part = Image.new("RGB", inner, "lightgrey")
        ImageDraw.Draw(part).text((8, 8), f"cannot be drawn: {describe(error)}", fill="black", font=_font())
    tile.paste(part, (4 + (inner[0] - part.width) // 2, 4 + (inner[1] - part.height) // 2))
    ImageDraw.Draw(tile).text((8, TILE - CAPTION_HEIGHT), overlay.caption, fill="black", font=_font())
    return tile


def describe(error: Exception) -> str:
    """Why a picture cannot be drawn, in a word."""
    return error.status if isinstance(error, images.ImageError) else type(error).__name__


def draw_picture(overlay: Overlay, width: int, height: int) -> bytes:
    """A JPEG of one overlay without its caption, as large as fits into width x height."""
    sink = io.BytesIO()
    _draw_part(overlay, (width, height)).save(sink, "JPEG", quality=82)
    return sink.getvalue()


def _draw_part(overlay: Overlay, inner: tuple[int, int]) -> Image.Image:
    picture = Image.fromarray(images.decode_whole(overlay.image))
    x1, y1, x2, y2 = (0, 0, picture.width, picture.height) if overlay.focus is None else overlay.focus
    x1, y1, x2, y2 = max(0.0, x1), max(0.0, y1), min(float(picture.width), x2), min(float(picture.height), y2)
    if x2 <= x1 or y2 <= y1:  # all of it lies beside the picture
        x1, y1, x2, y2 = 0.0, 0.0, float(picture.width), float(picture.height)
    part = picture.crop((int(x1), int(y1), max(int(x1) + 1, math.ceil(x2)), max(int(y1) + 1, math.ceil(y2))))
    scale = min(inner[0] / part.width, inner[1] / part.height)
    part = part.resize((max(1, round(scale * part.width)), max(1, round(scale * part.height))), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(part)

    def place(point: NDArray[np.float64]) -> tuple[float, float]:
        return (point[0] + 0.5 - int(x1)) * scale, (point[1] + 0.5 - int(y1)) * scale

    _draw_truth(draw, overlay, place)
    if overlay.head_box is not None:
        draw.rectangle([*place(overlay.head_box[:2]), *place(overlay.head_box[2:])], outline=BOX_COLOUR, width=3)
    if overlay.joints is not None:
        shown = is_inside(overlay.joints, picture.size)
        for start, end in LIMBS:
            if shown[start] and shown[end]:
                draw.line([place(overlay.joints[start]), place(overlay.joints[end])], fill=_colour(start, end), width=3)
        for joint in np.flatnonzero(shown).tolist():
            x, y = place(overlay.joints[joint])
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=_colour(joint), outline="black")
            if overlay.joint_errors is not None and overlay.joint_errors[joint] > 0.5:
                if overlay.true_joints is not None and np.isfinite(overlay.true_joints[joint]).all():
                    draw.line([x, y, *place(overlay.true_joints[joint])], fill=MISS_COLOUR, width=2)
                draw.ellipse([x - 8, y - 8, x + 8, y + 8], outline=MISS_COLOUR, width=3)
    return part


def _draw_truth(draw: ImageDraw.ImageDraw, overlay: Overlay, place: Callable[[NDArray[np.float64]], tuple[float, float]]) -> None:
    """Thin and white with a dark edge, so that the prediction stands out."""
    lines: list[list[float]] = []
    if overlay.true_joints is not None:
        known = np.all(np.isfinite(overlay.true_joints), axis=1)
        lines += [
            [*place(overlay.true_joints[start]), *place(overlay.true_joints[end])] for start, end in LIMBS if known[start] and known[end]
        ]
    if overlay.true_head_box is not None:
        (x1, y1), (x2, y2) = place(overlay.true_head_box[:2]), place(overlay.true_head_box[2:])
        lines += [[x1, y1, x2, y1], [x2, y1, x2, y2], [x2, y2, x1, y2], [x1, y2, x1, y1]]
    for colour, width in (("black", 3), (TRUTH_COLOUR, 1)):
        for line in lines:
            draw.line(line, fill=colour, width=width)
    if overlay.true_joints is not None:
        for x, y in (place(point) for point in overlay.true_joints[known]):
            draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=TRUTH_COLOUR, outline="black")


def _colour(*joints: int) -> str:
    names = [JOINT_NAMES[joint] for joint in joints]
    return next(
        (colour for side, colour in (("left", LEFT_COLOUR), ("right", RIGHT_COLOUR)) if any(name.startswith(side) for name in names)),
        MIDDLE_COLOUR,
    )


def _break_legend(entries: Sequence[tuple[str, str]], width: int) -> list[list[tuple[str, str]]]:
    """Lines of entries that fit into the width; at least one."""
    lines: list[list[tuple[str, str]]] = [[]]
    x = 8.0
    for entry in entries:
        needed = 20 + _font().getlength(entry[1])
        if lines[-1] and x + needed > width:
            lines.append([])
            x = 8.0
        lines[-1].append(entry)
        x += needed + 24
    return lines


def _draw_legend(draw: ImageDraw.ImageDraw, top: int, entries: Sequence[tuple[str, str]]) -> None:
    x = 8.0
    for colour, text in entries:
        draw.rectangle([x, top + 9, x + 14, top + 23], fill=colour, outline="black")
        draw.text((x + 20, top + 8), text, fill="black", font=_font())
        x += 20 + draw.textlength(text, font=_font()) + 24


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=14)
