"""views.py: frames of whole pictures and of people; what could not be cut."""

import io

import numpy as np
from PIL import Image

from posepipe import images
from posepipe.geometry import frame_image, frame_person
from posepipe.views import View, decode

EXIF = Image.Exif()
EXIF[0x0112] = 6


def jpeg(**options):
    sink = io.BytesIO()
    Image.new("RGB", (400, 300), "white").save(sink, "JPEG", **options)
    return sink.getvalue()


def test_a_view_of_a_person_is_framed_as_mpii_does_and_upright():
    header = images.read_header(jpeg(exif=EXIF))
    assert (header.width, header.height, header.orientation) == (400, 300, 6)
    np.testing.assert_array_equal(View((64, 64)).crop_to_image(header), frame_image(400, 300, (64, 64), 6))
    np.testing.assert_array_equal(View((64, 64), (9.0, 8.0), 0.5).crop_to_image(header), frame_person((9, 8), 0.5, (64, 64), 6))


def test_a_picture_that_cannot_be_cropped_has_its_size_all_the_same():
    found = decode(jpeg(), [View((32, 32)), View((32, 32), (200.0, 100.0), 1e5)])
    assert (found.status, found.width, found.height, found.crops, found.crop_to_image) == ("unsupported", 400, 300, [], [])


def test_a_person_beside_the_picture_leaves_its_size_too():
    found = decode(jpeg(), [View((32, 32), (-900.0, 100.0), 1.0)])
    assert (found.status, found.width, found.height, found.crops) == ("no_person", 400, 300, [])
