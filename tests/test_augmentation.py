"""augmentation.py: points stay on the pixels they name, whatever is drawn, and any number of workers draws the same."""

import pytest
import torch

from posepipe import augmentation
from posepipe.augmentation import (
    BLUR_SHARE,
    BLURS,
    HALF_BODY_SHARE,
    HOLES_SHARE,
    MAX_ROTATION,
    MAX_SHIFT,
    MAX_ZOOM,
    SCALES,
    augment,
    blur,
    hide,
    recolour,
    warp,
)
from posepipe.skeleton import JOINT, LOWER_BODY, UPPER_BODY
from posepipe.tasks import TASKS

POSE, HEAD = TASKS["pose"], TASKS["head"]
WIDTH, HEIGHT = 80, 104
MARGIN = (16, 20)
SIZE = torch.tensor([WIDTH, HEIGHT])
MIDDLE = (SIZE - 1) / 2
# No turn, no scale, no shift, no flip, no half body.
NEUTRAL = [0.5, 0.5, 0.5, 0.5, 0.9, 0.99, 0.0]
ANGLE, SCALE, FLIP, HALF, WHICH = 0, 1, 4, 5, 6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def neutral(count, **changes):
    drawn = torch.tensor([NEUTRAL]).repeat(count, 1)
    for name, value in changes.items():
        drawn[:, {"angle": ANGLE, "scale": SCALE, "flip": FLIP, "half": HALF, "which": WHICH}[name]] = value
    return drawn


def any_warp(count, seed=0):
    """Random numbers, but for half bodies."""
    drawn = torch.rand((count, 7), generator=generator(seed))
    drawn[:, HALF] = 0.99
    return drawn


def poses(count, spread=20.0):
    """Random joints near the middle, but for three that always turn the same way round."""
    points = SIZE / 2 + (torch.rand(count, 16, 2, generator=generator(1)) - 0.5) * 2 * spread
    for name, point in (("pelvis", (40.0, 64.0)), ("thorax", (52.0, 44.0)), ("head_top", (28.0, 40.0))):
        points[:, JOINT[name]] = torch.tensor(point)
    return points


def is_mirrored(points):
    """Whether pelvis, thorax and head top turn the other way round than in `poses`."""
    pelvis, thorax, top = (points[:, JOINT[name]] for name in ("pelvis", "thorax", "head_top"))
    one, two = thorax - pelvis, top - pelvis
    return one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0] > 0


def dots(points, margin=MARGIN):
    """Black pictures with their margin and a soft bright dot at each point (N, 2) of the crop."""
    light = []
    for axis, side in enumerate((WIDTH, HEIGHT)):
        place = torch.arange(side + 2 * margin[axis], dtype=torch.float32) - margin[axis]
        light.append(torch.exp(-((place - points[:, axis, None]) ** 2) / (2 * 2.0**2)))
    return (200 * light[1][:, :, None] * light[0][:, None, :])[:, None].expand(-1, 3, -1, -1).contiguous()


def blank(count, value=0.0, margin=MARGIN):
    return torch.full((count, 3, HEIGHT + 2 * margin[1], WIDTH + 2 * margin[0]), value)


def centroids(pixels):
    light = pixels.mean(dim=1)
    x, y = (torch.arange(side, dtype=torch.float32) for side in (pixels.shape[-1], pixels.shape[-2]))
    return torch.stack([(light.sum(dim=1) * x).sum(-1), (light.sum(dim=2) * y).sum(-1)], dim=-1) / light.sum(dim=(1, 2))[:, None]


# Points and pixels


@pytest.mark.parametrize("joint", ["left_wrist", "right_knee", "pelvis"])
@pytest.mark.parametrize("margin", [MARGIN, (0, 0)])
def test_a_dot_lies_under_its_joint_and_a_mirrored_one_under_the_other_side(joint, margin):
    points = poses(64)
    assert not is_mirrored(points).any()
    pixels, moved = warp(dots(points[:, JOINT[joint]], margin), points, POSE, any_warp(64), margin)
    assert pixels.shape == (64, 3, HEIGHT, WIDTH)
    flipped = is_mirrored(moved)
    assert 16 < flipped.sum() < 48
    other = POSE.flip_order[JOINT[joint]]
    expected = torch.where(flipped[:, None], moved[:, other], moved[:, JOINT[joint]])
    assert (centroids(pixels) - expected).norm(dim=1).max() < 0.25
    # The pictures did move.
    assert (expected - points[:, JOINT[joint]]).norm(dim=1).median() > 2


@pytest.mark.parametrize("which", [0.0, 0.9])
def test_a_dot_lies_under_its_joint_in_a_half_body_too(which):
    points = poses(64)
    drawn = any_warp(64)
    drawn[:, HALF], drawn[:, WHICH], drawn[:, FLIP] = 0.0, which, 0.9
    joint = JOINT["thorax" if which else "pelvis"]
    assert joint in (UPPER_BODY if which else LOWER_BODY)
    pixels, moved = warp(dots(points[:, joint]), points, POSE, drawn, MARGIN)
    is_inside = ((moved[:, joint] > 12) & (moved[:, joint] < SIZE - 12)).all(dim=1)
    assert is_inside.sum() > 32
    assert (centroids(pixels) - moved[:, joint]).norm(dim=1)[is_inside].max() < 0.25


def test_where_nothing_is_drawn_the_crop_stays_as_it_is():
    pictures = torch.randint(0, 256, blank(3).shape, dtype=torch.uint8, generator=generator(2))
    pixels, moved = warp(pictures, poses(3), POSE, neutral(3), MARGIN)
    torch.testing.assert_close(pixels, pictures[:, :, 20:-20, 16:-16].float(), atol=0.05, rtol=0)
    torch.testing.assert_close(moved, poses(3), atol=1e-4, rtol=0)


def test_zooming_out_shows_the_margin_and_black_only_beyond_it():
    drawn = neutral(1, scale=0.0)  # by SCALES[0]: 1 / 0.75 of the crop is seen
    wide = (round(WIDTH / 6) + 1, round(HEIGHT / 6) + 1)
    assert warp(blank(1, 90.0, wide), poses(1), POSE, drawn, wide)[0].min() == pytest.approx(90)
    cut, _ = warp(blank(1, 90.0, (0, 0)), poses(1), POSE, drawn, (0, 0))
    assert cut[0, 0, 0].max() == cut[0, 0, :, 0].max() == 0
    assert cut[0, 0, HEIGHT // 2, WIDTH // 2] == pytest.approx(90)


def test_the_middle_of_a_turned_head_box_and_its_size_are_right():
    # The box keeps its sides when the head is turned, so only its middle and its size can be checked.
    corners = torch.tensor([[[32.0, 41.0], [44.0, 57.0]]]).expand(64, -1, -1).contiguous()
    pixels, moved = warp(dots(corners.mean(dim=1)), corners, HEAD, any_warp(64), MARGIN)
    assert (centroids(pixels) - moved.mean(dim=1)).norm(dim=1).max() < 0.25
    sides = moved[:, 1] - moved[:, 0]
    assert (sides > 0).all()
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.full((64,), 16 / 12))
    scale = sides[:, 0] / 12
    assert (scale >= SCALES[0] - 1e-5).all()
    assert (scale <= SCALES[1] + 1e-5).all()
    assert scale.std() > 0.05


def test_changes_stay_within_their_limits():
    points = poses(256)
    _, moved = warp(blank(256), points, POSE, any_warp(256), MARGIN)
    pelvis, thorax = JOINT["pelvis"], JOINT["thorax"]
    before, after = points[:, thorax] - points[:, pelvis], moved[:, thorax] - moved[:, pelvis]
    before = torch.where(is_mirrored(moved)[:, None], before * torch.tensor([-1.0, 1.0]), before)
    scale = after.norm(dim=1) / before.norm(dim=1)
    cosine = (before * after).sum(-1) / (before.norm(dim=1) * after.norm(dim=1))
    angle = torch.arccos(cosine.clamp(-1, 1))
    assert SCALES[0] - 1e-4 <= scale.min() < 0.8
    assert 1.2 < scale.max() <= SCALES[1] + 1e-4
    assert 0.8 * MAX_ROTATION < angle.max() <= MAX_ROTATION + 1e-3


def test_the_middle_moves_by_the_shift_alone():
    points = MIDDLE.expand(256, 16, 2)
    _, moved = warp(blank(256), points, POSE, any_warp(256), MARGIN)
    shift = (moved - points).abs().amax(dim=(0, 1)) / SIZE
    assert (shift > 0.8 * MAX_SHIFT).all()
    assert (shift <= MAX_SHIFT + 1e-5).all()


def test_a_point_without_a_label_stays_without_and_alone():
    points = poses(8)
    points[:, JOINT["left_wrist"]] = float("nan")
    points[3] = float("nan")
    _, moved = warp(blank(8), points, POSE, any_warp(8), MARGIN)
    _, plain = warp(blank(8), poses(8), POSE, any_warp(8), MARGIN)
    flipped = is_mirrored(plain)
    for index in range(8):
        hidden = {*range(16)} if index == 3 else {POSE.flip_order[JOINT["left_wrist"]] if flipped[index] else JOINT["left_wrist"]}
        assert set(moved[index].isnan().any(dim=-1).nonzero().flatten().tolist()) == hidden
        shown = sorted(set(range(16)) - hidden)
        torch.testing.assert_close(moved[index, shown], plain[index, shown], rtol=0, atol=0)


def test_a_person_without_a_head_box_stays_without():
    corners = torch.tensor([[[40.0, 35.0], [52.0, 51.0]], [[float("nan")] * 2] * 2])
    _, moved = augment(blank(2), corners, HEAD, generator(), margin=MARGIN)
    assert moved[0].isfinite().all()
    assert moved[1].isnan().all()


def test_a_head_boxs_corners_are_not_exchanged():
    swapped = torch.tensor([[[52.0, 51.0], [40.0, 35.0]]]).expand(16, -1, -1)
    _, moved = augment(blank(16), swapped, HEAD, generator(), margin=MARGIN)
    assert (moved[:, 0] < moved[:, 1]).all()


# Half bodies


def body(upper=(30.0, 20.0), lower=(40.0, 50.0), known=range(16)):
    """One person: the joints of either half on the corners of a box of 24 x 36 px there, in turn; (1, 16, 2)."""
    points = torch.full((1, 16, 2), float("nan"))
    corners = torch.tensor([(0.0, 0.0), (24.0, 0.0), (24.0, 36.0), (0.0, 36.0)])
    for joints, corner in ((UPPER_BODY, upper), (LOWER_BODY, lower)):
        for number, joint in enumerate(joints):
            if joint in known:
                points[0, joint] = torch.tensor(corner) + corners[number % 4]
    return points


@pytest.mark.parametrize(("which", "joints"), [(0.9, UPPER_BODY), (0.0, LOWER_BODY)])
def test_half_a_body_fills_the_crop_but_for_its_padding(which, joints):
    _, moved = warp(blank(1), body(), POSE, neutral(1, half=0.0, which=which), MARGIN)
    half = moved[0, list(joints)]
    torch.testing.assert_close(half.mean(dim=0), MIDDLE, atol=1e-3, rtol=0)
    # 1.5 x (24, 36) px into 80 x 104: the height decides.
    spans = half.amax(dim=0) - half.amin(dim=0)
    torch.testing.assert_close(spans, torch.tensor([24.0, 36.0]) * (104 / 54), atol=1e-3, rtol=0)


def test_a_half_body_is_scaled_turned_and_shifted_besides():
    drawn = neutral(1, half=0.0, which=0.9, scale=0.0, angle=1.0)
    _, moved = warp(blank(1), body(), POSE, drawn, MARGIN)
    one, two = body()[0, [UPPER_BODY[0], UPPER_BODY[1]]], moved[0, [UPPER_BODY[0], UPPER_BODY[1]]]
    side = two[1] - two[0]
    assert side.norm() == pytest.approx(float((one[1] - one[0]).norm()) * SCALES[0] * 104 / 54, rel=1e-4)
    assert torch.atan2(side[1], side[0]) == pytest.approx(MAX_ROTATION, rel=1e-4)


@pytest.mark.parametrize(("half", "is_aimed"), [(0.0, True), (HALF_BODY_SHARE - 0.01, True), (HALF_BODY_SHARE, False), (0.99, False)])
def test_a_share_of_people_is_cut_in_half(half, is_aimed):
    _, moved = warp(blank(1), body(), POSE, neutral(1, half=half), MARGIN)
    assert bool((moved - body()).abs().max() > 1) == is_aimed


def test_who_has_fewer_than_eight_annotated_joints_stays_whole():
    for known, is_aimed in ((range(4, 12), True), (range(4, 11), False), ((), False)):
        _, moved = warp(blank(1), body(known=known), POSE, neutral(1, half=0.0, which=0.9), MARGIN)
        assert bool(((moved - body(known=known)).abs() > 1).any()) == is_aimed


def test_of_a_half_of_two_joints_the_other_one_is_taken():
    known = (*LOWER_BODY, *UPPER_BODY[:2])
    _, moved = warp(blank(1), body(known=known), POSE, neutral(1, half=0.0, which=0.9), MARGIN)
    torch.testing.assert_close(moved[0, list(LOWER_BODY)].mean(dim=0), MIDDLE, atol=1e-3, rtol=0)


@pytest.mark.parametrize("corner", [(-60.0, -70.0), (70.0, 100.0), (-16.0, 100.0)])
def test_a_half_body_at_the_border_is_shown_with_what_is_stored_alone(corner):
    pixels, _ = warp(blank(1, 90.0), body(upper=corner), POSE, neutral(1, half=0.0, which=0.9), MARGIN)
    # But for the outermost pixels, which mix with what lies beyond.
    assert pixels[:, :, 2:-2, 2:-2].min() == pytest.approx(90)


def test_a_half_body_is_not_enlarged_or_shrunk_beyond_what_is_stored():
    small, large = (MIDDLE + (body() - MIDDLE) * factor for factor in (0.1, 20))
    _, moved = warp(blank(1), small, POSE, neutral(1, half=0.0, scale=1.0), MARGIN)
    torch.testing.assert_close((moved[0, 0] - moved[0, 1]).norm(), MAX_ZOOM * (small[0, 0] - small[0, 1]).norm())
    pixels, _ = warp(blank(1, 90.0), large, POSE, neutral(1, half=0.0, scale=0.0), MARGIN)
    assert pixels.min() > 44, "the whole stored picture and no more"


# Colours, blur, holes


def test_saturation_changes_colours_and_not_greys():
    picture = torch.tensor([[120.0, 120, 120], [200, 100, 50]]).view(2, 3, 1, 1)
    dull, plain, bright = (recolour(picture, torch.tensor([[value, 0.5, 0.5, 0.5, 0.5]] * 2)).view(2, 3) for value in (0.0, 0.5, 1.0))
    torch.testing.assert_close(plain, picture.view(2, 3))
    torch.testing.assert_close(dull[0], plain[0])
    # Luma 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2, from which each channel lies 0.6 or 1.4 times as far off.
    torch.testing.assert_close(dull[1], 124.2 + 0.6 * (picture.view(2, 3)[1] - 124.2))
    torch.testing.assert_close(bright[1], 124.2 + 1.4 * (picture.view(2, 3)[1] - 124.2))


def test_contrast_and_tint_by_hand():
    picture = torch.full((1, 3, 1, 1), 100.0)
    assert recolour(picture, torch.tensor([[0.5, 1.0, 0.0, 0.5, 1.0]])).flatten().tolist() == pytest.approx([117, 130, 143])
    assert recolour(2 * picture, torch.tensor([[0.5, 1.0, 0.5, 0.5, 0.5]])).flatten().tolist() == [255] * 3


def test_some_rows_are_blurred_each_by_its_own_width():
    points = MIDDLE.round().expand(4, 2)
    sharp = dots(points, (0, 0))
    blurred = sharp.clone()
    blur(blurred, torch.tensor([[0.0, 0.0], [BLUR_SHARE, 0.5], [0.0, 1.0], [0.99, 0.0]]))
    assert torch.equal(blurred[[1, 3]], sharp[[1, 3]])
    torch.testing.assert_close(blurred.sum(dim=(2, 3)), sharp.sum(dim=(2, 3)), rtol=1e-4, atol=0)
    place = torch.arange(WIDTH) - points[0, 0]
    for row, sigma in ((0, BLURS[0]), (2, BLURS[1])):
        light = blurred[row, 0].sum(dim=0)
        # Variances add; the dots' own is 4 px^2. The kernel is cut off at 4 px.
        assert (light * place**2).sum() / light.sum() == pytest.approx(4 + sigma**2, rel=0.02)
    torch.testing.assert_close(centroids(blurred), points, atol=1e-3, rtol=0)


def test_a_blurred_picture_is_not_darker_at_its_border():
    plain = torch.full((2, 3, 9, 7), 90.0)
    blurred = plain.clone()
    blur(blurred, torch.tensor([[0.0, 1.0]] * 2))
    torch.testing.assert_close(blurred, plain)


def test_a_blur_is_the_gaussian_of_all_its_steps():
    dot = torch.zeros(1, 3, 31, 21)
    dot[..., 15, 10] = 100.0
    blur(dot, torch.tensor([[0.0, 0.5]]))
    weights = torch.exp(-(torch.arange(-4, 5.0) ** 2) / 2)  # sigma 1 px, in the middle of BLURS
    weights /= weights.sum()
    torch.testing.assert_close(dot[0, 0, 11:20, 6:15], 100 * weights[:, None] * weights)
    assert dot[0, 0].count_nonzero() == 81


def test_rectangles_of_one_colour_cover_parts_of_some_rows():
    plain = torch.full((4, 3, 100, 50), 90.0)
    # x, y, width, height, red, green, blue: 20 % x 10 % around (25, 40), and 10 % x 30 % beyond the left border.
    first, second = [0.5, 0.4, 0.5, 0.0, 1.0, 0.0, 0.2], [0.0, 0.9, 0.0, 1.0, 0.0, 1.0, 0.0]
    drawn = torch.tensor([[who, *first, *second] for who in (0.0, HOLES_SHARE / 2, HOLES_SHARE, 0.99)])
    two, one, none, others = covered = plain.clone()
    hide(covered, drawn)
    assert torch.equal(none, plain[0])
    assert torch.equal(others, plain[0])
    changed = (one != 90).any(dim=0).nonzero()
    assert (changed.amin(dim=0).tolist(), changed.amax(dim=0).tolist(), len(changed)) == ([35, 20], [44, 29], 100)
    torch.testing.assert_close(one[:, 40, 25], torch.tensor([255.0, 0.0, 51.0]))
    changed = ((two != one).any(dim=0)).nonzero()
    assert (changed.amin(dim=0).tolist(), changed.amax(dim=0).tolist()) == ([75, 0], [99, 1])
    assert two[:, 90, 0].tolist() == [0, 255, 0]


# All of it


def stored(count, seed=2):
    return torch.randint(0, 256, blank(count).shape, dtype=torch.uint8, generator=generator(seed))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_any_number_of_workers_draws_the_same(world):
    points = poses(17)
    points[4, :9] = float("nan")
    pictures = stored(17)
    pixels, moved = augment(pictures, points, POSE, generator(), margin=MARGIN)
    for rank in range(world):
        mine, my_points = augment(pictures[rank::world], points[rank::world], POSE, generator(), (rank, world), MARGIN)
        torch.testing.assert_close(mine, pixels[rank::world], rtol=0, atol=1e-3)
        torch.testing.assert_close(my_points, moved[rank::world], rtol=0, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("task", [POSE, HEAD])
def test_pixels_stay_on_their_device_and_points_on_the_cpu(task):
    # The meta device refuses to be mixed with another one, as a GPU does.
    pixels, moved = augment(blank(9).to("meta"), torch.zeros(9, task.num_points, 2), task, generator(), margin=MARGIN)
    assert (pixels.device.type, pixels.shape) == ("meta", (9, 3, HEIGHT, WIDTH))
    assert (moved.device.type, moved.shape) == ("cpu", (9, task.num_points, 2))


def test_covering_and_blurring_move_no_label():
    points = poses(32)
    drawn = torch.rand((32, augmentation.NUM_DRAWN), generator=generator())
    _, expected = warp(stored(32), points, POSE, drawn[:, augmentation.WARP], MARGIN)
    _, moved = augment(stored(32), points, POSE, generator(), margin=MARGIN)
    assert torch.equal(moved, expected)


def test_the_same_generator_gives_the_same_pictures_and_another_one_others():
    points = poses(4)
    first, second, other = (augment(stored(4), points, POSE, generator(seed), margin=MARGIN) for seed in (5, 5, 6))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


def test_bytes_and_floats_of_the_same_pixels_agree():
    one, two = (augment(pictures, poses(4), POSE, generator(), margin=MARGIN)[0] for pictures in (stored(4), stored(4).float()))
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_pixels_stay_in_range_black_outside_and_change_their_colour():
    pixels, _ = augment(blank(64, 250.0), poses(64), POSE, generator(), margin=MARGIN)
    assert pixels.min() == 0
    assert 250 < pixels.max() <= 255
    middle = pixels[:, :, HEIGHT // 2, WIDTH // 2]
    assert middle.std(dim=0).min() > 10
    assert (middle.amax(dim=1) - middle.amin(dim=1)).max() > 5


def test_what_comes_in_is_not_changed():
    points = poses(4)
    pictures = dots(points[:, 0])
    kept = pictures.clone(), points.clone()
    augment(pictures, points, POSE, generator(), margin=MARGIN)
    assert torch.equal(pictures, kept[0])
    assert torch.equal(points, kept[1])
