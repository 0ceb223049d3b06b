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
    Overlay,
    draw_grid,
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


@pytest.mark.parametrize(("count", "columns", "shape"), [(1, 4, (1, 1)), (4, 4, (1, 4)), (5, 4, (2, 4)), (5, 2, (3, 2))])
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
        (LEFT_COLOUR, RIGHT_COLOUR): Overlay(picture(), "", joints),
        (LEFT_COLOUR, RIGHT_COLOUR, MISS_COLOUR): Overlay(picture(), "", joints, errors),
        (BOX_COLOUR,): Overlay(picture(), "", head_box=box),
    }
    for expected, overlay in cases.items():
        legend = draw(overlay, Overlay(picture(), ""), columns=4)[TILE:]
        found = [colour for colour in (LEFT_COLOUR, RIGHT_COLOUR, BOX_COLOUR, MISS_COLOUR) if count_colour(legend, colour) > 50]
        assert sorted(found) == sorted(expected)


def test_the_caption_stands_under_its_picture():
    with_text, without = (draw(Overlay(picture(), caption)) for caption in ("PCKh 71", ""))
    changed = np.argwhere(np.abs(with_text - without).max(axis=-1) > 60)
    assert len(changed) > 20
    assert changed[:, 0].min() >= TILE - 24
    assert changed[:, 0].max() < TILE
