"""overlays.py: what is drawn lies where it was predicted, in the colour of its side."""

import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from posepipe.overlays import (
    BOX_COLOUR,
    LEFT_COLOUR,
    LEGEND_HEIGHT,
    MIDDLE_COLOUR,
    MISS_COLOUR,
    RIGHT_COLOUR,
    TILE,
    TRUTH_COLOUR,
    Overlay,
    draw_grid,
    draw_picture,
    overlay_rows,
    without_picture,
)
from posepipe.skeleton import JOINT, NUM_JOINTS

# A picture of this size fills a tile at one screen px per image px, 4 px from its left and upper border.
WIDTH, HEIGHT, BORDER = 392, 368, 4


def picture(width=WIDTH, height=HEIGHT, colour="black"):
    sink = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(sink, "PNG")
    return sink.getvalue()


def pose(**named):
    joints = np.full((NUM_JOINTS, 2), np.nan)
    for name, point in named.items():
        joints[JOINT[name]] = point
    return joints


def draw(*overlays, columns=4):
    image = Image.open(io.BytesIO(draw_grid(overlays, columns)))
    assert image.format == "JPEG"
    return np.asarray(image).astype(int)


def has_colour(grid, colour, x, y, radius=1):
    """Whether the colour is around a place of the first tile's picture (screen px at scale 1), as far as a JPEG keeps it."""
    x, y = round(x) + BORDER, round(y) + BORDER
    near = grid[y - radius : y + radius + 1, x - radius : x + radius + 1]
    return bool((np.abs(near - ImageColor.getrgb(colour)).max(axis=-1) < 60).any())


def count_colour(grid, colour, bottom=HEIGHT):
    return int((np.abs(grid[:bottom] - ImageColor.getrgb(colour)).max(axis=-1) < 40).sum())


@pytest.mark.parametrize(("count", "columns", "shape"), [(1, 4, (1, 1)), (4, 4, (1, 4)), (5, 4, (2, 3)), (6, 4, (2, 3)), (5, 2, (3, 2))])
def test_overlays_lie_side_by_side_with_a_legend(count, columns, shape):
    grid = draw(*[Overlay(picture(), "a caption")] * count, columns=columns)
    assert grid.shape == (shape[0] * TILE + LEGEND_HEIGHT, shape[1] * TILE, 3)


@pytest.mark.parametrize(("joint", "colour"), [("left_knee", LEFT_COLOUR), ("right_knee", RIGHT_COLOUR), ("pelvis", MIDDLE_COLOUR)])
def test_a_joint_is_drawn_at_its_place_in_its_sides_colour(joint, colour):
    grid = draw(Overlay(picture(), "", pose(**{joint: (100, 200)})))
    assert has_colour(grid, colour, 100, 200)
    for x, y in [(110, 200), (90, 200), (100, 210), (100, 190), (200, 100)]:
        assert has_colour(grid, "black", x, y, radius=0)


def test_a_limb_is_drawn_between_two_joints_and_no_others():
    grid = draw(Overlay(picture(), "", pose(left_knee=(50, 100), left_hip=(150, 100), right_knee=(50, 300), left_ankle=(np.nan, np.nan))))
    assert has_colour(grid, LEFT_COLOUR, 100, 100)
    # Knees are no limb, and a limb needs both of its ends.
    assert has_colour(grid, "black", 50, 200, radius=0)


def test_joints_outside_the_picture_are_not_drawn():
    grid = draw(Overlay(picture(), "", pose(left_knee=(50, 100), left_hip=(5000, 100), left_ankle=(-50, 100), left_wrist=(50, 400))))
    assert has_colour(grid, LEFT_COLOUR, 50, 100)
    assert has_colour(grid, "black", 200, 100, radius=0)
    assert has_colour(grid, "black", 10, 100, radius=0)


def test_only_joints_off_by_more_than_half_a_head_are_ringed():
    joints = pose(left_knee=(100, 100), right_knee=(200, 100), pelvis=(300, 100), left_wrist=(100, 300))
    errors = np.full(NUM_JOINTS, np.nan)
    errors[[JOINT["left_knee"], JOINT["right_knee"], JOINT["left_wrist"]]] = 0.6, 0.5, np.inf
    grid = draw(Overlay(picture(), "", joints, errors))
    ringed = [has_colour(grid, MISS_COLOUR, x - 7, y) for x, y in [(100, 100), (200, 100), (300, 100), (100, 300)]]
    assert ringed == [True, False, False, True]


def test_a_head_box_is_an_outline_in_its_place():
    grid = draw(Overlay(picture(), "", head_box=np.array([100.0, 50, 200, 150])))
    assert all(has_colour(grid, BOX_COLOUR, x, y) for x, y in [(100, 100), (200, 100), (150, 50), (150, 150), (100, 50), (200, 150)])
    assert has_colour(grid, "black", 150, 100, radius=0)
    assert has_colour(grid, "black", 90, 100, radius=0)


def test_the_focus_is_what_is_shown_and_drawn_on():
    # The part from (100, 92) on, a quarter of the picture's sides: everything is four times as large.
    focus = np.array([100.0, 92.0, 100 + WIDTH / 4, 92 + HEIGHT / 4])
    grid = draw(Overlay(picture(), "", pose(left_knee=(150, 132)), focus=focus))
    assert has_colour(grid, LEFT_COLOUR, 4 * 50.5, 4 * 40.5)
    assert has_colour(grid, "black", 150, 132, radius=0)


@pytest.mark.parametrize("focus", [(-500, -500, 5000, 5000), (380, 360, 900, 900), (-50, -50, 1, 1), (391.5, 367.5, 391.6, 367.6)])
def test_a_focus_beyond_the_picture_shows_what_there_is(focus):
    grid = draw(Overlay(picture(colour="red"), "", pose(left_knee=(100, 100)), focus=np.array(focus, dtype=float)))
    assert count_colour(grid, "red") > 1000


def test_a_strip_of_a_pixel_is_shown_and_what_is_no_picture_leaves_its_tile_grey():
    strip = draw(Overlay(picture(3000, 2, "black"), ""))[:HEIGHT]
    assert (strip.min(axis=(0, 2)) < 128).sum() == pytest.approx(WIDTH, abs=4)
    grid = draw(Overlay(picture(colour="red"), ""), Overlay(b"<html>", "gone"), columns=2)
    assert count_colour(grid[:, : grid.shape[1] // 2], "red") > 0.9 * WIDTH * HEIGHT
    assert count_colour(grid[:, grid.shape[1] // 2 :], "lightgrey") > 0.9 * WIDTH * HEIGHT


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bits_are_shown_by_their_upper_half(file_format):
    sink = io.BytesIO()
    Image.fromarray(np.full((HEIGHT, WIDTH), 0x8080, np.uint16)).save(sink, file_format)
    assert count_colour(draw(Overlay(sink.getvalue(), "")), "gray") > 0.9 * WIDTH * HEIGHT


@pytest.mark.parametrize(("width", "height"), [(100, 900), (900, 100), (5, 5), (3000, 2000)])
def test_pictures_of_every_shape_fit_their_tile(width, height):
    grid = draw(Overlay(picture(width, height, "red"), ""))
    red = np.argwhere(np.abs(grid - (255, 0, 0)).max(axis=-1) < 40)
    shown = np.ptp(red, axis=0) + 1
    assert (red.min(axis=0) >= BORDER - 1).all()
    assert (red.max(axis=0) <= [BORDER + HEIGHT, BORDER + WIDTH]).all()
    assert shown[1] / shown[0] == pytest.approx(width / height, rel=0.1)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_pictures_of_every_mode_are_shown(mode):
    sink = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), "gray").convert(mode).save(sink, "TIFF")
    assert count_colour(draw(Overlay(sink.getvalue(), "")), "gray") > 0.9 * WIDTH * HEIGHT


def test_the_legend_names_what_is_drawn_and_nothing_else():
    joints, errors, box = pose(pelvis=(9, 9)), np.full(NUM_JOINTS, np.nan), np.array([1.0, 2, 3, 4])
    cases = {
        (): Overlay(picture(), ""),
        (LEFT_COLOUR, RIGHT_COLOUR, MIDDLE_COLOUR): Overlay(picture(), "", joints),
        (LEFT_COLOUR, RIGHT_COLOUR, MIDDLE_COLOUR, MISS_COLOUR): Overlay(picture(), "", joints, errors),
        (BOX_COLOUR,): Overlay(picture(), "", head_box=box),
    }
    for expected, overlay in cases.items():
        legend = draw(overlay, Overlay(picture(), ""), columns=4)[TILE:]
        found = [
            colour for colour in (LEFT_COLOUR, RIGHT_COLOUR, MIDDLE_COLOUR, BOX_COLOUR, MISS_COLOUR) if count_colour(legend, colour) > 50
        ]
        assert sorted(found) == sorted(expected)


def test_the_legend_of_one_overlay_is_not_cut_off():
    joints, errors = pose(pelvis=(9, 9)), np.full(NUM_JOINTS, np.nan)
    grid = draw(Overlay(picture(), "", joints, errors, head_box=np.array([1.0, 2, 3, 4]), true_joints=joints))
    assert grid.shape == (TILE + 3 * LEGEND_HEIGHT, TILE, 3)
    assert (grid[TILE:, -4:] > 250).all()


def test_the_caption_stands_under_its_picture():
    with_text, without = (draw(Overlay(picture(), caption)) for caption in ("PCKh 71", ""))
    changed = np.argwhere(np.abs(with_text - without).max(axis=-1) > 60)
    assert len(changed) > 20
    assert changed[:, 0].min() >= TILE - 24
    assert changed[:, 0].max() < TILE


# Labels, and rows


def row(joints=None, **values):
    nothing = dict.fromkeys(("joint_error", "joint_confidence", "true_joints", "head_box", "true_head_box", "pckh", "head_iou"))
    return {"sample_id": "s3://a/b.jpg#1", "joints": None if joints is None else joints.ravel().tolist(), **nothing, **values}


def test_labels_are_drawn_thin_and_white_with_a_dark_edge():
    grid = draw(Overlay(picture(colour="gray"), "", true_joints=pose(left_knee=(100, 100), left_hip=(200, 100))))
    assert has_colour(grid, TRUTH_COLOUR, 150, 100, radius=1)
    assert has_colour(grid, "black", 150, 101, radius=1)
    assert has_colour(grid, "gray", 150, 106, radius=0)
    assert has_colour(draw(Overlay(picture(), "", true_head_box=np.array([100.0, 50, 200, 150]))), TRUTH_COLOUR, 150, 50)


def test_an_error_is_a_line_from_the_prediction_to_its_label():
    errors = np.full(NUM_JOINTS, np.nan)
    for error, is_drawn in ((0.6, True), (0.4, False)):
        errors[JOINT["left_knee"]] = error
        overlay = Overlay(picture(), "", pose(left_knee=(100, 100)), errors, true_joints=pose(left_knee=(200, 100)))
        assert has_colour(draw(overlay), MISS_COLOUR, 150, 100) == is_drawn


def test_joints_of_low_confidence_are_left_out():
    confidence = np.full(NUM_JOINTS, 0.9)
    confidence[JOINT["left_knee"]] = 0.1
    joints = pose(left_knee=(10, 10), left_hip=(20, 20))
    for least, num_drawn in ((0.0, 2), (0.1, 2), (0.2, 1)):
        overlay = overlay_rows(b"", [row(joints, joint_confidence=confidence.tolist())], least)
        assert np.isfinite(overlay.joints).all(axis=1).sum() == num_drawn


def test_the_focus_is_a_square_around_prediction_and_label():
    overlay = overlay_rows(b"", [row(pose(left_knee=(100, 100)), true_joints=pose(left_knee=(140, 120)).ravel().tolist())])
    np.testing.assert_allclose(overlay.focus, [120 - 30, 110 - 30, 120 + 30, 110 + 30])
    overlay = overlay_rows(b"", [row(head_box=[100.0, 100, 110, 120])])
    np.testing.assert_allclose(overlay.focus, [105 - 70, 110 - 70, 105 + 70, 110 + 70])


def test_the_caption_names_the_input_and_its_scores():
    assert overlay_rows(b"", [row(pose(), pckh=0.705, head_iou=0.5)]).caption == "b.jpg#1  PCKh 70  IoU 50"


def test_of_several_rows_each_says_what_it_predicted():
    box = [100.0, 100, 110, 120]
    overlay = overlay_rows(b"", [row(pose(left_knee=(1, 2))), row(head_box=box)])
    assert (overlay.joints[JOINT["left_knee"]].tolist(), overlay.head_box.tolist()) == ([1, 2], box)


def test_labels_of_what_was_not_predicted_are_not_drawn():
    overlay = overlay_rows(b"", [row(head_box=[1.0, 1, 9, 9], true_joints=pose(left_knee=(1, 2)).ravel().tolist())])
    assert overlay.true_joints is None


def test_without_a_picture_the_pose_lies_on_grey_in_the_same_place():
    shown = without_picture(overlay_rows(b"", [row(pose(left_knee=(5000, 3000), left_hip=(5100, 3000)))]))
    image = Image.open(io.BytesIO(shown.image))
    assert image.size == (150, 150)
    np.testing.assert_allclose(shown.joints[[JOINT["left_knee"], JOINT["left_hip"]]], [[25, 75], [125, 75]])
    with pytest.raises(ValueError, match="there is nothing to draw"):
        without_picture(overlay_rows(b"", [row(pose())]))
    with pytest.raises(ValueError, match="expected at most 8192 px to draw, got"):
        without_picture(overlay_rows(b"", [row(pose(left_knee=(0, 0), left_hip=(1e5, 0)))]))


def test_a_single_picture_is_as_large_as_it_may_be():
    image = Image.open(io.BytesIO(draw_picture(Overlay(picture(800, 400), "not written"), 200, 200)))
    assert (image.format, image.size) == ("JPEG", (200, 100))
