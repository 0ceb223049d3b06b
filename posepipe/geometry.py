"""Frames and affines: image px <-> crop px, flip, rotate, scale.

Pixel coordinates name pixel centres, 0-based: the picture's left edge lies at x = -0.5. An affine is a (2, 3) float64 array that maps
column vectors (x, y, 1). Every sample carries `crop_to_image`; every mapping back uses it and nothing else. Sizes are (width, height).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

# MPII's protocol: a person is `scale * 200` px tall, its square is 1.25 times that, centred 15 * scale px below `objpos`.
# https://github.com/leoxiaobin/deep-high-resolution-net.pytorch/blob/master/lib/dataset/mpii.py
PERSON_HEIGHT = 200.0
PERSON_MARGIN = 1.25
PERSON_SHIFT = 15.0

# EXIF orientation -> 2x2 matrix from upright axes to stored axes (centred coordinates). Source: EXIF 2.3, tag 274.
_UPRIGHT_TO_STORED = {
    1: ((1, 0), (0, 1)),
    2: ((-1, 0), (0, 1)),
    3: ((-1, 0), (0, -1)),
    4: ((1, 0), (0, -1)),
    5: ((0, 1), (1, 0)),
    6: ((0, 1), (-1, 0)),
    7: ((0, -1), (-1, 0)),
    8: ((0, -1), (1, 0)),
}


def frame_image(width: int, height: int, size: tuple[int, int], orientation: int = 1) -> FloatArray:
    """The `crop_to_image` of the whole picture resized to the crop, aspect not kept (the paper's framing).

    Args:
        width: image px, as stored.
        height: image px, as stored.
        size: width and height of the crop, px.
        orientation: EXIF orientation 1 to 8; the crop is upright, the image frame stays as stored. 1 ignores it, as MPII's labels do.
    """
    turn = np.array(_UPRIGHT_TO_STORED[orientation], dtype=np.float64)
    upright_size = np.abs(turn).T @ np.array([width, height], dtype=np.float64)
    scale = turn @ np.diag(upright_size / np.array(size))
    return _centred(scale, np.array([(width - 1) / 2, (height - 1) / 2]), size)


def frame_person(center: ArrayLike, scale: float, size: tuple[int, int], orientation: int = 1, shift: float = PERSON_SHIFT) -> FloatArray:
    """The `crop_to_image` of the square around one person, by MPII's protocol; a crop that is no square shows more of the picture.

    The square is widened to the crop's aspect and never narrowed, as in HRNet and mmpose: all of it is in the crop.

    Args:
        center: (2,) image px, MPII's `objpos`.
        scale: MPII's `scale`, person height / 200 px.
        size: width and height of the crop, px.
        orientation: as in `frame_image`: the crop is upright, `center` and the image frame are as stored.
        shift: of the square's middle below `center` in the upright picture, in px per unit of scale.
    """
    turn = np.array(_UPRIGHT_TO_STORED[orientation], dtype=np.float64)
    side = PERSON_MARGIN * PERSON_HEIGHT * scale
    middle = np.asarray(center, dtype=np.float64) + turn @ np.array([0.0, shift * scale])
    return _centred(turn * side / min(size), middle, size)


def _centred(linear: FloatArray, middle: FloatArray, size: tuple[int, int]) -> FloatArray:
    """The affine with this linear part that maps the middle of the crop to `middle`."""
    offset = middle - linear @ ((np.array(size) - 1) / 2)
    return np.column_stack([linear, offset])


def with_margin(crop_to_image: ArrayLike, margin: tuple[int, int]) -> FloatArray:
    """The affine of the same crop with `margin` (x, y) crop px more on each side; pixel (0, 0) of the crop is its pixel `margin`."""
    affine = np.asarray(crop_to_image, dtype=np.float64)
    return np.column_stack([affine[:, :2], affine[:, 2] - affine[:, :2] @ np.array(margin)])


def transform(affine: ArrayLike, points: ArrayLike) -> FloatArray:
    """Maps points (..., 2) by one affine (2, 3) or by one per row: affine (N, 2, 3), points (N, K, 2)."""
    affine = np.asarray(affine, dtype=np.float64)
    points = np.asarray(points, dtype=np.float64)
    linear, offset = affine[..., :2], affine[..., 2]
    if affine.ndim == 2:
        return points @ linear.T + offset
    return np.einsum("nij,nkj->nki", linear, points) + offset[:, None, :]


def invert(affine: ArrayLike) -> FloatArray:
    """The inverse of affines (..., 2, 3)."""
    affine = np.asarray(affine, dtype=np.float64)
    linear = np.linalg.inv(affine[..., :2])
    return np.concatenate([linear, -linear @ affine[..., 2:]], axis=-1)


def is_inside(points: ArrayLike, size: ArrayLike) -> NDArray[np.bool_]:
    """Whether points (..., 2), image px, lie on pictures of this width and height (..., 2); those that are not finite do not."""
    points = np.asarray(points, dtype=np.float64)
    return np.all((points >= -0.5) & (points <= np.asarray(size, dtype=np.float64) - 0.5), axis=-1)


def points_to_box(points: ArrayLike) -> FloatArray:
    """Two corners (..., 2, 2) in any order -> boxes (..., 4) x1, y1, x2, y2; a NaN corner stays NaN."""
    points = np.asarray(points, dtype=np.float64)
    return np.concatenate([points.min(axis=-2), points.max(axis=-2)], axis=-1)
