"""Bytes -> pixels of one frame: decode (scaled), orient, warp; what is wrong with a bad image.

`prepare` and `score` both come through `crop`, so training and serving see the same pixels. JPEGs are decoded by libjpeg-turbo at the
smallest scale that is not below the crop's resolution; other formats are decoded whole by Pillow.
"""

import errno
import io
import math
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from posepipe.geometry import FloatArray, transform

# Pillow's own limit against decompression bombs.
MAX_PIXELS = 89_478_485
MAX_BYTES = 128 * 2**20
JPEG_QUALITY = 95
# Not all that Pillow knows: some of its plugins start other programs.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

STATUSES = {
    "ok": "decoded",
    "missing": "the storage has no such object",
    "forbidden": "the storage refuses to hand it out",
    "unreadable": "the storage answers with an error that does not pass",
    "empty": "zero bytes",
    "not_an_image": "the bytes are of no known image format",
    "truncated": "the image ends before its last pixel",
    "corrupt": "the decoder failed",
    "unsupported": "an image, but of a kind that has no 8-bit colours or cannot be framed",
    "too_large": "over the limit of pixels or bytes",
    "decoder_crashed": "the decoder's process died of it, twice, or did not come back",
    "no_person": "the first stage found no person to frame",
}


class ImageError(Exception):
    """A bad image: data, not a fault of the program. `status` is one of STATUSES, `detail` says what was found."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(f"{status}: {detail}")
        self.status, self.detail = status, detail


@dataclass(frozen=True)
class Header:
    """What the first bytes of an image say. width and height are image px as stored; orientation is EXIF's, 1 to 8."""

    width: int
    height: int
    format: str
    mode: str
    orientation: int


def storage_error(error: OSError) -> ImageError:
    """The status of a read that the storage refused."""
    if error.errno == errno.EFBIG:
        return ImageError("too_large", str(error.strerror))
    status = "missing" if isinstance(error, FileNotFoundError) else "forbidden" if isinstance(error, PermissionError) else "unreadable"
    return ImageError(status, f"{type(error).__name__}: {error}")


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Reads size, format and orientation without decoding.

    Raises:
        ImageError: empty, not_an_image, too_large, truncated or corrupt.
    """
    if not data:
        raise ImageError("empty", "0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            # PNG's own getexif decodes the whole picture first.
            orientation = Image.Image.getexif(image).get(0x0112, 1)
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError("not_an_image", f"{len(data)} bytes that start with {data[:16]!r}") from error
    except Exception as error:  # Pillow's plugins raise whatever they stumble over; the row carries it.
        raise _decoder_error(error) from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError("too_large", f"{width} x {height} pixels, the limit is {max_pixels}")
    return Header(width, height, image.format or "", image.mode, orientation if orientation in range(1, 9) else 1)


def _decoder_error(error: Exception) -> ImageError:
    status = "truncated" if "truncated" in str(error).lower() else "corrupt"
    return ImageError(status, f"{type(error).__name__}: {error}")


def crop(data: bytes, header: Header, crop_to_image: FloatArray, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Cuts one frame out of an encoded image.

    Args:
        data: the encoded image.
        header: of the same bytes.
        crop_to_image: (2, 3), axis-parallel up to quarter turns and mirrors.
        size: width and height of the crop, px.

    Returns:
        (height, width, 3) uint8 RGB; black where the frame leaves the picture.

    Raises:
        ImageError: truncated, corrupt, unsupported.
    """
    linear = crop_to_image[:, :2]
    is_turned = bool(np.abs(linear[0, 1]) > np.abs(linear[0, 0]))
    if np.any(linear[[0, 1], [0, 1]] if is_turned else linear[[0, 1], [1, 0]]):
        raise ValueError(f"crop_to_image must be parallel to the axes up to quarter turns, got {crop_to_image.tolist()}")
    corners = transform(crop_to_image, [(-0.5, -0.5), (size[0] - 0.5, size[1] - 0.5)]) + 0.5
    box_min, box_max = corners.min(axis=0), corners.max(axis=0)
    stored_size = (size[1], size[0]) if is_turned else size
    pixels = decode(data, header, np.array(stored_size) / (box_max - box_min))
    # libjpeg scales by whole eighths and rounds the size up: the ratio of the sizes would stretch the picture by up to a pixel.
    scale = np.array([8 * pixels.shape[1] // header.width, 8 * pixels.shape[0] // header.height]) / 8
    upright = _resize_box(pixels, box_min * scale, box_max * scale, stored_size)
    if is_turned:
        upright = upright.transpose(1, 0, 2)
    step_x, step_y = linear[:, 0].sum(), linear[:, 1].sum()
    return np.ascontiguousarray(upright[:: -1 if step_y < 0 else 1, :: -1 if step_x < 0 else 1])


def decode(data: bytes, header: Header, min_scale: FloatArray) -> NDArray[np.uint8]:
    """Decodes to (H, W, 3) uint8 RGB at the smallest scale the format offers that is at least `min_scale` (x, y), at most 1."""
    if header.format in ("JPEG", "MPO") and header.mode in ("RGB", "L"):
        # A crop of 220 px from 400 px needs half the picture's resolution, wherever in the picture it lies.
        min_width, min_height = (
            math.ceil(round(n * min(s, 1.0), 6)) for n, s in zip((header.width, header.height), min_scale, strict=True)
        )
        try:
            return simplejpeg.decode_jpeg(data, "RGB", min_height=min_height, min_width=min_width)
        except ValueError as error:
            if "Premature end" in str(error):
                raise ImageError("truncated", str(error)) from error
        try:  # Any other warning of the decoder is one that viewers pass over.
            return simplejpeg.decode_jpeg(data, "RGB", min_height=min_height, min_width=min_width, strict=False)
        except ValueError as error:
            raise ImageError("corrupt", str(error)) from error
    return _decode_any(data)


def _decode_any(data: bytes) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            image.load()
    except Exception as error:  # As above: whatever the plugin raises is a fact about the image.
        raise _decoder_error(error) from error
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 0xFFFF:
            raise ImageError("unsupported", f"mode {image.mode} with values in [{wide.min()}, {wide.max()}], expected 8 or 16 bits")
        return np.repeat((wide.astype(np.uint16) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise ImageError("unsupported", "floating-point pixels have no defined range")
    return np.asarray(image.convert("RGB"))


def _resize_box(pixels: NDArray[np.uint8], box_min: FloatArray, box_max: FloatArray, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resizes the part box_min..box_max (x, y; edges, not centres) of pixels to this size with an antialiasing triangle filter."""
    height, width = pixels.shape[:2]
    # The frame of a whole picture must not leave it by a rounding error, which would draw a dark line along its border.
    box_min, box_max = box_min.round(6), box_max.round(6)
    margin = np.ceil(np.maximum(1.0, (box_max - box_min) / np.array(size))) + 1
    left, top = np.floor(box_min - margin).astype(int)
    right, bottom = np.ceil(box_max + margin).astype(int)
    inner = pixels[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    is_inside = box_min.min() >= 0 and box_max[0] <= width and box_max[1] <= height
    if is_inside:
        # At the picture's border the filter stops at the last pixel, as a plain resize does.
        left, top = max(left, 0), max(top, 0)
    else:
        if (right - left) * (bottom - top) > MAX_PIXELS:
            raise ImageError("unsupported", f"a frame of {right - left} x {bottom - top} px around a picture of {width} x {height}")
        padded = np.zeros((bottom - top, right - left, 3), dtype=np.uint8)
        y, x = max(-top, 0), max(-left, 0)
        padded[y : y + inner.shape[0], x : x + inner.shape[1]] = inner
        inner = padded
    x1, y1, x2, y2 = (float(edge) for edge in (*(box_min - (left, top)), *(box_max - (left, top))))
    return np.asarray(Image.fromarray(inner).resize(size, Image.Resampling.BILINEAR, box=(x1, y1, x2, y2)))


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) uint8 RGB -> JPEG without chroma subsampling, which would blur small joints."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=JPEG_QUALITY, colorsubsampling="444")


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """The whole JPEG that `encode_jpeg` wrote, (H, W, 3) uint8 RGB."""
    return simplejpeg.decode_jpeg(data, "RGB")


def cut_margin(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The crop of this size in the middle of one that is stored with a margin, (H, W, 3); a view."""
    left, top = (pixels.shape[1] - size[0]) // 2, (pixels.shape[0] - size[1]) // 2
    return pixels[top : top + size[1], left : left + size[0]]
