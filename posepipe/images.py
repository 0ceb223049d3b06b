"""Bytes -> pixels of one frame: decode (scaled), orient, warp; what is wrong with a bad image.

`prepare` and `score` both come through `crop`, so training and serving see the same pixels. JPEGs are decoded by libjpeg-turbo at the
coarsest of its quick scales that is not below the crop's resolution; other formats are decoded whole by Pillow.
"""

import errno
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from posepipe.geometry import FloatArray

try:
    import cykooz_resizer as resizer
except ImportError:  # Linux on ARM: there is no wheel.
    resizer = None

PIXELS = 2
"""Version of the way from bytes to a crop. Whatever changes the pixels of a crop raises it, so that no samples and no scoring run mix two:
1 decoded JPEGs at any eighth and resized by Pillow."""
# Pillow's own limit against decompression bombs.
MAX_PIXELS = 89_478_485
MAX_BYTES = 128 * 2**20
JPEG_QUALITY = 95
# The scales at which libjpeg-turbo is quick: of a 720p picture 7/8 takes twice as long as 8/8, and 3/8 longer than 4/8.
EIGHTHS = (1, 2, 4, 8)
# Not all that Pillow knows: some of its plugins start other programs.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

STATUSES = {
    "ok": "decoded",
    "missing": "the storage has no such object",
    "forbidden": "the storage refuses to hand it out",
    "unreadable": "the storage answers with an error that does not pass",
    "unreachable": "its web server, or this object of another store, was given up, as --unreachable-after allows",
    "empty": "zero bytes",
    "not_an_image": "the bytes are of no known image format",
    "truncated": "the image ends before its last pixel",
    "corrupt": "the decoder failed",
    "unsupported": "an image, but of a kind that has no 8-bit colours or cannot be framed",
    "too_large": "over the limit of pixels or bytes",
    "decoder_crashed": "the decoder's process died of it, twice, or did not come back",
    "no_person": "nobody to frame: no person is given or found, or one beside the picture",
}


class ImageError(Exception):
    """A bad image: data, not a fault of the program. `status` is one of STATUSES, `detail` says what was found."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(f"{status}: {detail}")
        self.status, self.detail = status, detail


@dataclass(frozen=True)
class Header:
    """What the first bytes of an image say. width and height are image px as stored; orientation is EXIF's, 1 to 8.

    Of a TIFF they are those of the upright picture, and orientation is 1: Pillow gives no other.
    """

    width: int
    height: int
    format: str
    mode: str
    orientation: int


def storage_error(error: OSError) -> ImageError:
    """The status of a read that the storage refused."""
    if error.errno in (errno.EFBIG, errno.EHOSTUNREACH):
        status, detail = "too_large" if error.errno == errno.EFBIG else "unreachable", str(error.strerror)
    else:
        status = "missing" if isinstance(error, FileNotFoundError) else "forbidden" if isinstance(error, PermissionError) else "unreadable"
        detail = f"{type(error).__name__}: {error}"
    # A server's words may be bytes of any kind, which no table of strings takes.
    return ImageError(status, detail.encode(errors="backslashreplace").decode())


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
            # PNG's own getexif decodes the whole picture first. A TIFF is turned by Pillow itself.
            orientation = 1 if image.format == "TIFF" else Image.Image.getexif(image).get(0x0112, 1)
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


def crop(
    data: bytes, header: Header, crop_to_image: FloatArray, size: tuple[int, int], decoded: dict[int, NDArray[np.uint8]] | None = None
) -> NDArray[np.uint8]:
    """Cuts one frame out of an encoded image.

    Args:
        data: the encoded image.
        header: of the same bytes.
        crop_to_image: (2, 3), axis-parallel up to quarter turns and mirrors.
        size: width and height of the crop, px.
        decoded: what `decode` keeps of these bytes: frames that share it decode each scale once.

    Returns:
        (height, width, 3) uint8 RGB; black where the frame leaves the picture.

    Raises:
        ImageError: truncated, corrupt, unsupported; no_person where the frame lies beside the picture.
    """
    require_overlap(header, crop_to_image, size)
    # Plain numbers: arrays of two would take as long as the encoding of the crop.
    (x_by_x, x_by_y, x_offset), (y_by_x, y_by_y, y_offset) = np.asarray(crop_to_image, np.float64).tolist()
    is_turned = abs(x_by_y) > abs(x_by_x)
    if (x_by_x or y_by_y) if is_turned else (x_by_y or y_by_x):
        raise ValueError(f"crop_to_image must be parallel to the axes up to quarter turns, got {crop_to_image.tolist()}")
    steps = (x_by_y, y_by_x) if is_turned else (x_by_x, y_by_y)
    stored_size = (size[1], size[0]) if is_turned else size
    edges = [
        sorted((offset + 0.5 - 0.5 * step, offset + 0.5 + (count - 0.5) * step))
        for step, offset, count in zip(steps, (x_offset, y_offset), stored_size, strict=True)
    ]
    pixels = decode(data, header, [count / (high - low) for count, (low, high) in zip(stored_size, edges, strict=True)], decoded)
    # libjpeg scales by whole eighths and rounds the size up: the ratio of the sizes would stretch the picture by up to a pixel.
    scales = 8 * pixels.shape[1] // header.width / 8, 8 * pixels.shape[0] // header.height / 8
    scaled = [(low * scale, high * scale) for scale, (low, high) in zip(scales, edges, strict=True)]
    upright = _resize_box(pixels, scaled[0], scaled[1], stored_size)
    if is_turned:
        upright = upright.transpose(1, 0, 2)
    return np.ascontiguousarray(upright[:: -1 if x_by_y + y_by_y < 0 else 1, :: -1 if x_by_x + y_by_x < 0 else 1])


def require_overlap(header: Header, crop_to_image: FloatArray, size: tuple[int, int]) -> None:
    """ImageError no_person where a frame, of the kind that `crop` cuts, lies beside the picture."""
    corners = [(-0.5, -0.5), (size[0] - 0.5, size[1] - 0.5)]
    (left, right), (top, bottom) = (
        sorted(by_x * x + by_y * y + offset + 0.5 for x, y in corners) for by_x, by_y, offset in np.asarray(crop_to_image).tolist()
    )
    if right <= 0 or bottom <= 0 or left >= header.width or top >= header.height:
        frame = f"x from {left:.0f} to {right:.0f} and y from {top:.0f} to {bottom:.0f}"
        raise ImageError("no_person", f"a frame of {frame} lies beside the picture of {header.width} x {header.height} px")


def decode(
    data: bytes, header: Header, min_scale: Sequence[float] | FloatArray, decoded: dict[int, NDArray[np.uint8]] | None = None
) -> NDArray[np.uint8]:
    """Decodes to (H, W, 3) uint8 RGB at the coarsest quick scale the format offers that is at least `min_scale` (x, y), at most 1.

    Args:
        data: the encoded image.
        header: of the same bytes.
        min_scale: decoded px per image px.
        decoded: pixels of the same bytes by eighths of their size; what is in there is not decoded again, what is not is put in.
    """
    eighths = 8
    # Of less than eight pixels, several scales come to the same size.
    if is_scalable := header.format in ("JPEG", "MPO") and header.mode in ("RGB", "L") and min(header.width, header.height) >= 8:
        # A crop of 220 px from 400 px needs half the picture's resolution, wherever in the picture it lies.
        sides = [(n, math.ceil(round(n * min(s, 1.0), 6))) for n, s in zip((header.width, header.height), min_scale, strict=True)]
        eighths = next((k for k in EIGHTHS if all(-(-n * k // 8) >= wanted for n, wanted in sides)), 8)
    if decoded is not None and eighths in decoded:
        return decoded[eighths]
    if is_scalable:
        pixels = _decode_jpeg(data, -(-header.width * eighths // 8), -(-header.height * eighths // 8))
    else:
        pixels = decode_whole(data)
        if pixels.shape[:2] != (header.height, header.width):  # by an orientation that Pillow finds in the XMP of a TIFF alone
            found = f"{pixels.shape[1]} x {pixels.shape[0]}"
            raise ImageError("unsupported", f"the header says {header.width} x {header.height} px, but {found} were decoded")
    if decoded is not None:
        decoded[eighths] = pixels
    return pixels


def _decode_jpeg(data: bytes, min_width: int, min_height: int) -> NDArray[np.uint8]:
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=min_height, min_width=min_width)
    except ValueError as error:
        if "Premature end" in str(error):
            raise ImageError("truncated", str(error)) from error
    # Any other warning of the decoder is one that viewers pass over, but it tells of its first one alone, and the end may be missing too.
    whole = decode_whole(data)
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=min_height, min_width=min_width, strict=False)
    except ValueError:  # This one takes no warning from a header.
        return whole


def decode_whole(data: bytes) -> NDArray[np.uint8]:
    """Any image that Pillow knows, full size, (H, W, 3) uint8 RGB; of 16 bits the upper eight.

    Raises:
        ImageError: truncated, corrupt, unsupported.
    """
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


def _resize_box(
    pixels: NDArray[np.uint8], x_edges: tuple[float, float], y_edges: tuple[float, float], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Resizes the part of pixels between these edges (not centres) to this size with an antialiasing triangle filter."""
    height, width = pixels.shape[:2]
    # The frame of a whole picture must not leave it by a rounding error, which would draw a dark line along its border: sums are exact.
    (x1, x2), (y1, y2) = ([round(edge * 2**20) / 2**20 for edge in edges] for edges in (x_edges, y_edges))
    margin_x, margin_y = (math.ceil(max(1.0, span / count)) + 1 for span, count in zip((x2 - x1, y2 - y1), size, strict=True))
    left, top, right, bottom = math.floor(x1 - margin_x), math.floor(y1 - margin_y), math.ceil(x2 + margin_x), math.ceil(y2 + margin_y)
    inner = pixels[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if min(x1, y1) >= 0 and x2 <= width and y2 <= height:
        # At the picture's border the filter stops at the last pixel, as a plain resize does.
        left, top = max(left, 0), max(top, 0)
    else:
        if (right - left) * (bottom - top) > MAX_PIXELS:
            raise ImageError("unsupported", f"a frame of {right - left} x {bottom - top} px around a picture of {width} x {height}")
        padded = np.zeros((bottom - top, right - left, 3), dtype=np.uint8)
        y, x = max(-top, 0), max(-left, 0)
        padded[y : y + inner.shape[0], x : x + inner.shape[1]] = inner
        inner = padded
    if resizer is None:
        box = (x1 - left, y1 - top, x2 - left, y2 - top)
        return np.asarray(Image.fromarray(inner).resize(size, Image.Resampling.BILINEAR, box=box))
    # The same filter with the same result, up to one level, in a third of the time.
    source = resizer.ImageData(inner.shape[1], inner.shape[0], resizer.PixelType.U8x3, inner.tobytes())
    resized = resizer.ImageData(*size, resizer.PixelType.U8x3)
    triangle = resizer.ResizeAlg.convolution(resizer.FilterType.bilinear)
    part = resizer.CropBox(x1 - left, y1 - top, x2 - x1, y2 - y1)
    resizer.Resizer().resize(source, resized, resizer.ResizeOptions(triangle, crop_box=part))
    return np.frombuffer(resized.get_buffer(), np.uint8).reshape(size[1], size[0], 3)


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
