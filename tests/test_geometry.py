"""geometry.py: framings worked by hand, round trips, EXIF orientations as Pillow understands them."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from posepipe.geometry import frame_image, frame_person, invert, points_to_box, transform, with_margin

ORIENTATIONS = range(1, 9)


def edges(size):
    """The outer corners of a crop: half a pixel beyond the centres of its corner pixels."""
    return np.array([(-0.5, -0.5), (size[0] - 0.5, size[1] - 0.5)])


# Image framing


def test_edges_of_the_crop_lie_on_the_edges_of_the_picture():
    affine = frame_image(640, 480, (220, 220))
    np.testing.assert_allclose(transform(affine, edges((220, 220))), [(-0.5, -0.5), (639.5, 479.5)], atol=1e-9)


def test_image_framing_by_hand():
    # 2 image px per crop px across, 1 down: crop pixel 0 covers image columns 0 and 1, whose middle is 0.5.
    np.testing.assert_allclose(frame_image(8, 4, (4, 4)), [[2, 0, 0.5], [0, 1, 0]], atol=1e-12)


def test_a_picture_of_the_crops_size_stays_where_it_is():
    np.testing.assert_allclose(frame_image(220, 220, (220, 220)), [[1, 0, 0], [0, 1, 0]], atol=1e-9)


def test_a_whole_picture_is_squeezed_into_a_crop_of_any_aspect():
    # 640 x 480 on 160 x 240: 4 image px per crop px across, 2 down.
    affine = frame_image(640, 480, (160, 240))
    np.testing.assert_allclose(affine[:, :2], [[4, 0], [0, 2]])
    np.testing.assert_allclose(transform(affine, edges((160, 240))), [(-0.5, -0.5), (639.5, 479.5)], atol=1e-9)


def test_a_turned_picture_fills_a_crop_of_any_aspect():
    # Orientation 6: the upright picture is 480 x 640, its right is up in the stored one.
    affine = frame_image(640, 480, (48, 128), 6)
    np.testing.assert_allclose(affine[:, :2], [[0, 5], [-10, 0]])
    np.testing.assert_allclose(points_to_box(transform(affine, edges((48, 128)))), [-0.5, -0.5, 639.5, 479.5], atol=1e-9)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_covers_the_whole_picture(orientation):
    corners = transform(frame_image(30, 20, (7, 7), orientation), edges((7, 7)))
    np.testing.assert_allclose(points_to_box(corners), [-0.5, -0.5, 29.5, 19.5], atol=1e-9)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientations_agree_with_exif_transpose(orientation):
    # Each stored pixel holds its own address, so that Pillow's upright picture says where every pixel came from.
    width, height = 5, 3
    addresses = np.arange(width * height, dtype=np.uint8).reshape(height, width)
    stored = Image.fromarray(addresses)
    stored.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(stored))
    up_height, up_width = upright.shape
    # frame_image makes squares: scale the upright picture's pixel centres to its crop.
    size = 60
    y, x = np.mgrid[:up_height, :up_width]
    centres = np.stack([(x + 0.5) * size / up_width - 0.5, (y + 0.5) * size / up_height - 0.5], axis=-1)
    column, row = np.moveaxis(transform(frame_image(width, height, (size, size), orientation), centres), -1, 0)
    np.testing.assert_allclose(row * width + column, upright, atol=1e-9)


# Person framing


def test_person_framing_by_mpiis_numbers():
    # side = 1.25 * 200 * 2 = 500 px, centre = (300, 200 + 15 * 2).
    affine = frame_person((300, 200), 2.0, (250, 250))
    np.testing.assert_allclose(affine[:, :2], [[2, 0], [0, 2]])
    np.testing.assert_allclose(transform(affine, edges((250, 250))), [(50, -20), (550, 480)], atol=1e-9)


@pytest.mark.parametrize(
    ("size", "box"), [((192, 256), (175, 50 - 125 / 3, 425, 300 + 125 / 3)), ((256, 192), (175 - 125 / 3, 50, 425 + 125 / 3, 300))]
)
def test_the_square_is_widened_to_the_crops_aspect_and_never_narrowed(size, box):
    # side = 250 px, centre = (300, 160 + 15): x from 175 to 425, y from 50 to 300; a third of it is added along the longer side.
    affine = frame_person((300, 160), 1.0, size)
    assert affine[0, 0] == affine[1, 1] == 250 / 192
    np.testing.assert_allclose(transform(affine, edges(size)).ravel(), box, atol=1e-9)


def test_the_crop_with_its_margin_is_the_same_crop_further_out():
    for affine in (frame_person((300, 160), 1.3, (192, 256)), frame_image(640, 480, (192, 256), 6)):
        wide = with_margin(affine, (38, 51))
        points = np.array([(0.0, 0.0), (191.0, 255.0), (10.5, 20.25)])
        np.testing.assert_allclose(transform(wide, points + np.array([38, 51])), transform(affine, points), atol=1e-9)
        np.testing.assert_array_equal(wide[:, :2], affine[:, :2])


def test_the_middle_of_a_person_crop_is_15_scales_below_objpos():
    np.testing.assert_allclose(transform(frame_person((10.5, 20.25), 0.8, (64, 64)), [31.5, 31.5]), [10.5, 20.25 + 12])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_turned_person_is_framed_as_in_the_upright_picture(orientation):
    # The person stands upright in the upright picture, so that is where the square lies 15 scales below objpos.
    width, height, size, center, scale = 400, 300, (64, 64), np.array([120.0, 90.0]), 0.7
    upright_size = (width, height) if orientation <= 4 else (height, width)
    # What frame_image says of both pictures is how upright pixels lie among the stored ones.
    to_stored = transform(
        frame_image(width, height, (1000, 1000), orientation), transform(invert(frame_image(*upright_size, (1000, 1000))), [center])
    )[0]
    upright = transform(frame_person(center, scale, size), [[0, 0], [63, 0], [10, 50]])
    expected = transform(
        frame_image(width, height, (1000, 1000), orientation), transform(invert(frame_image(*upright_size, (1000, 1000))), upright)
    )
    np.testing.assert_allclose(
        transform(frame_person(to_stored, scale, size, orientation), [[0, 0], [63, 0], [10, 50]]), expected, atol=1e-9
    )


def test_a_person_that_is_not_turned_is_framed_by_mpii_alone():
    np.testing.assert_array_equal(frame_person((10, 20), 0.5, (64, 64), 1), frame_person((10, 20), 0.5, (64, 64)))


def test_a_person_on_its_side_by_hand():
    # Orientation 6: upright's down is stored's right. side = 250 px, centre (300 + 15, 200).
    affine = frame_person((300, 200), 1.0, (250, 250), 6)
    np.testing.assert_allclose(transform(affine, [124.5, 124.5]), [315, 200])
    np.testing.assert_allclose(transform(affine, [124.5, 224.5]), [415, 200])


def test_pckh_at_half_a_head_is_five_percent_of_the_side():
    # MPII's scale is 0.6 x the head box's diagonal / 25 (data/README.md): head size = 25 * scale, half of it = 0.05 * 250 * scale.
    scale, size = 3.2, 256
    crop_px_per_image_px = 1 / frame_person((0, 0), scale, (size, size))[0, 0]
    assert 0.5 * 25 * scale * crop_px_per_image_px == pytest.approx(0.05 * size)


# Mapping


@pytest.mark.parametrize(
    "affine", [frame_image(640, 480, (220, 220)), frame_image(31, 47, (64, 64), 6), frame_person((-20.5, 333), 1.7, (128, 96))]
)
def test_there_and_back(affine):
    points = np.random.default_rng(0).uniform(-100, 700, (50, 2))
    np.testing.assert_allclose(transform(invert(affine), transform(affine, points)), points, atol=1e-9)
    np.testing.assert_allclose(transform(affine, transform(invert(affine), points)), points, atol=1e-9)
    np.testing.assert_allclose(invert(invert(affine)), affine, atol=1e-9)


def test_transform_by_hand():
    affine = [[2, 1, 10], [0, -3, 20]]
    assert transform(affine, [1, 2]).tolist() == [14, 14]
    assert transform(affine, [[[1, 2]], [[0, 0]]]).tolist() == [[[14, 14]], [[10, 20]]]


def test_one_affine_per_row_maps_each_row_by_its_own():
    affines = np.stack([frame_person((100, 50), 1.5, (64, 64)), frame_image(640, 480, (64, 64), 8), [[2, 1, 10], [0, -3, 20]]])
    points = np.random.default_rng(1).uniform(0, 64, (3, 5, 2))
    expected = [transform(affine, each) for affine, each in zip(affines, points, strict=True)]
    np.testing.assert_allclose(transform(affines, points), expected, atol=1e-9)


def test_a_point_without_a_label_stays_nan_and_alone():
    mapped = transform(np.stack([frame_image(10, 10, (5, 5))] * 2), [[(np.nan, np.nan), (2, 2)]] * 2)
    assert np.isnan(mapped[:, 0]).all()
    np.testing.assert_allclose(mapped[:, 1], [(4.5, 4.5)] * 2)


def test_corners_in_any_order_make_a_box():
    corners = [[(1, 2), (3, 4)], [(3, 4), (1, 2)], [(3, 2), (1, 4)], [(np.nan, np.nan), (3, 4)]]
    np.testing.assert_array_equal(points_to_box(corners), [[1, 2, 3, 4]] * 3 + [[np.nan] * 4])
