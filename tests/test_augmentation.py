"""augmentation.py: points stay on the pixels they name."""

import pytest
import torch

from posepipe.augmentation import MAX_ROTATION, MAX_SHIFT, SCALES, augment
from posepipe.skeleton import JOINT
from posepipe.tasks import TASKS

POSE, HEAD = TASKS["pose"], TASKS["head"]
SIZE = 96


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def poses(count, spread=20.0):
    """Random joints near the middle, but for three that always turn the same way round."""
    points = SIZE / 2 + (torch.rand(count, 16, 2, generator=generator(1)) - 0.5) * 2 * spread
    for name, point in (("pelvis", (48.0, 60.0)), ("thorax", (60.0, 40.0)), ("head_top", (36.0, 36.0))):
        points[:, JOINT[name]] = torch.tensor(point)
    return points


def is_mirrored(points):
    """Whether pelvis, thorax and head top turn the other way round than in `poses`."""
    pelvis, thorax, top = (points[:, JOINT[name]] for name in ("pelvis", "thorax", "head_top"))
    one, two = thorax - pelvis, top - pelvis
    return one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0] > 0


def dots(points):
    """(N, 3, S, S) black pictures with a soft bright dot at each point (N, 2)."""
    axis = torch.arange(SIZE, dtype=torch.float32)
    x, y = (torch.exp(-((axis - points[:, i, None]) ** 2) / (2 * 2.0**2)) for i in (0, 1))
    return (200 * y[:, :, None] * x[:, None, :])[:, None].expand(-1, 3, -1, -1).contiguous()


def centroids(pixels):
    light = pixels.mean(dim=1)
    axis = torch.arange(SIZE, dtype=torch.float32)
    return torch.stack([(light.sum(dim=1) * axis).sum(-1), (light.sum(dim=2) * axis).sum(-1)], dim=-1) / light.sum(dim=(1, 2))[:, None]


@pytest.mark.parametrize("joint", ["left_wrist", "right_knee", "pelvis"])
def test_a_dot_lies_under_its_joint_and_a_mirrored_one_under_the_other_side(joint):
    points = poses(64)
    assert not is_mirrored(points).any()
    pixels, moved = augment(dots(points[:, JOINT[joint]]), points, POSE, generator())
    flipped = is_mirrored(moved)
    assert 16 < flipped.sum() < 48
    other = POSE.flip_order[JOINT[joint]]
    expected = torch.where(flipped[:, None], moved[:, other], moved[:, JOINT[joint]])
    assert (centroids(pixels) - expected).norm(dim=1).max() < 0.25
    # The pictures did move.
    assert (expected - points[:, JOINT[joint]]).norm(dim=1).median() > 2


def test_corner_dots_of_the_head_box_bound_what_they_bounded():
    # The box keeps its sides when the head is turned, so only its middle and its size can be checked.
    corners = torch.tensor([[[40.0, 35.0], [52.0, 51.0]]]).expand(64, -1, -1).contiguous()
    pixels, moved = augment(dots(corners.mean(dim=1)), corners, HEAD, generator())
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
    _, moved = augment(torch.zeros(256, 3, SIZE, SIZE), points, POSE, generator())
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
    points = torch.full((256, 16, 2), (SIZE - 1) / 2)
    _, moved = augment(torch.zeros(256, 3, SIZE, SIZE), points, POSE, generator())
    shift = (moved - points).abs().amax(dim=(1, 2))
    assert 0.8 * MAX_SHIFT * SIZE < shift.max() <= MAX_SHIFT * SIZE + 1e-3


def test_a_point_without_a_label_stays_without_and_alone():
    points = poses(8)
    points[:, JOINT["left_wrist"]] = float("nan")
    points[3] = float("nan")
    _, moved = augment(torch.zeros(8, 3, SIZE, SIZE), points, POSE, generator())
    _, plain = augment(torch.zeros(8, 3, SIZE, SIZE), poses(8), POSE, generator())
    flipped = is_mirrored(plain)
    for index in range(8):
        hidden = {*range(16)} if index == 3 else {POSE.flip_order[JOINT["left_wrist"]] if flipped[index] else JOINT["left_wrist"]}
        assert set(moved[index].isnan().any(dim=-1).nonzero().flatten().tolist()) == hidden
        shown = sorted(set(range(16)) - hidden)
        torch.testing.assert_close(moved[index, shown], plain[index, shown], rtol=0, atol=0)


def test_a_person_without_a_head_box_stays_without():
    corners = torch.tensor([[[40.0, 35.0], [52.0, 51.0]], [[float("nan")] * 2] * 2])
    _, moved = augment(torch.zeros(2, 3, SIZE, SIZE), corners, HEAD, generator())
    assert moved[0].isfinite().all()
    assert moved[1].isnan().all()


def test_a_head_boxs_corners_are_not_exchanged():
    swapped = torch.tensor([[[52.0, 51.0], [40.0, 35.0]]]).expand(16, -1, -1)
    _, moved = augment(torch.zeros(16, 3, SIZE, SIZE), swapped, HEAD, generator())
    assert (moved[:, 0] < moved[:, 1]).all()


def test_the_same_generator_gives_the_same_pictures_and_another_one_others():
    points = poses(4)
    pictures = dots(points[:, 0])
    first, second, other = (augment(pictures, points, POSE, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


def test_bytes_and_floats_of_the_same_pixels_agree():
    pictures = torch.randint(0, 256, (4, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator(2))
    torch.testing.assert_close(
        augment(pictures, poses(4), POSE, generator())[0], augment(pictures.float(), poses(4), POSE, generator())[0], rtol=0, atol=0
    )


def test_pixels_stay_in_range_black_outside_and_change_their_colour():
    pixels, _ = augment(torch.full((64, 3, SIZE, SIZE), 250, dtype=torch.uint8), poses(64), POSE, generator())
    assert pixels.min() == 0
    assert 250 < pixels.max() <= 255
    corners = pixels[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 0).any()
    middle = pixels[:, :, SIZE // 2, SIZE // 2]
    assert middle.std(dim=0).min() > 10
    assert (middle.amax(dim=1) - middle.amin(dim=1)).max() > 5


def test_what_comes_in_is_not_changed():
    points = poses(4)
    pictures = dots(points[:, 0])
    kept = pictures.clone(), points.clone()
    augment(pictures, points, POSE, generator())
    assert torch.equal(pictures, kept[0])
    assert torch.equal(points, kept[1])
