"""What models see of a picture: bytes -> a crop of each view, or what is wrong with it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from posepipe import geometry, images


@dataclass(frozen=True)
class View:
    """What a model sees of a picture, width x height px: all of it, or one person: `center` (image px as stored) and MPII's `scale`.

    The square's middle lies `shift` px per unit of scale below the centre, in the upright picture.
    """

    size: tuple[int, int]
    center: tuple[float, float] | None = None
    scale: float | None = None
    shift: float = geometry.PERSON_SHIFT

    def crop_to_image(self, header: images.Header) -> geometry.FloatArray:
        if self.center is None or self.scale is None:
            return geometry.frame_image(header.width, header.height, self.size, header.orientation)
        return geometry.frame_person(self.center, self.scale, self.size, header.orientation, self.shift)


@dataclass(frozen=True)
class Decoded:
    """What became of one picture.

    Attributes:
        status: one of `images.STATUSES`.
        detail: what was found, empty where ok.
        width: image px as stored, None where not known.
        height: image px as stored, None where not known.
        crops: (height, width, 3) uint8 of each view; none where not ok.
        crop_to_image: (2, 3) of each view.
    """

    status: str
    detail: str = ""
    width: int | None = None
    height: int | None = None
    crops: list[NDArray[np.uint8]] = field(default_factory=list)
    crop_to_image: list[geometry.FloatArray] = field(default_factory=list)


def decode(data: bytes, views: Iterable[View], max_pixels: int = images.MAX_PIXELS) -> Decoded:
    """Decodes and crops in this process."""
    width = height = None
    try:
        header = images.read_header(data, max_pixels)
        width, height = header.width, header.height
        affines = [view.crop_to_image(header) for view in views]
        decoded: dict[int, NDArray[np.uint8]] = {}
        crops = [images.crop(data, header, affine, view.size, decoded) for affine, view in zip(affines, views, strict=True)]
    except images.ImageError as error:
        return Decoded(error.status, error.detail, width, height)
    return Decoded("ok", "", width, height, crops, affines)
