"""averaging.py: what is mirrored, scaled and averaged comes back to where it was. The models here are stubs that find bright pixels."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from posepipe.averaging import average, predict, scale_crops
from posepipe.geometry import points_to_box
from posepipe.heads import HEADS
from posepipe.model_file import ModelConfig
from posepipe.models import build_model
from posepipe.skeleton import JOINT, NUM_JOINTS
from posepipe.tasks import TASKS

WIDTH, HEIGHT = 96, 80
NAN = float("nan")
LEFT = [place for name, place in JOINT.items() if name.startswith("left_")]
RIGHT = [place for name, place in JOINT.items() if name.startswith("right_")]


class Head:
    """Points in crop px as they are; mirrored and averaged as a regression head's raw output is."""

    def mirror(self, output, flip_order):
        mirrored = output[:, list(flip_order)].clone()
        mirrored[..., 0] = WIDTH - 1 - mirrored[..., 0]
        return mirrored

    def average(self, outputs):
        return torch.stack(list(outputs)).mean(dim=0)

    def decode(self, output):
        return output, torch.full(output.shape[:2], 0.25)


class Finder:
    """Sees the centre of what is bright: of the crop's left half as the right joints, of its right half as the left ones.

    A mirrored crop gives mirrored joints, but for an error that is always to the same side.
    """

    def __init__(self, task="pose", error=0.0, confidence=0.25):
        self.config, self.head, self.error, self.confidence, self.seen = SimpleNamespace(task=task), Head(), error, confidence, []

    def __call__(self, pixels):
        self.seen.append(pixels)
        grey = pixels.double().mean(dim=1)
        half = grey.shape[-1] // 2
        left, right = grey.clone(), grey.clone()
        left[..., half:], right[..., : grey.shape[-1] - half] = 0, 0
        if self.config.task == "head":
            return torch.stack([centroid(left), centroid(right)], dim=1) + torch.tensor([self.error, 0])
        points = centroid(grey)[:, None].repeat(1, NUM_JOINTS, 1)
        points[:, RIGHT], points[:, LEFT] = centroid(left)[:, None], centroid(right)[:, None]
        return points + torch.tensor([self.error, 0])

    def predict(self, pixels):
        output = self(pixels)
        return output, None if self.confidence is None else torch.full(output.shape[:2], self.confidence)


def centroid(grey):
    """(N, 2) crop px of (N, H, W)."""
    y, x = torch.meshgrid(torch.arange(grey.shape[1]), torch.arange(grey.shape[2]), indexing="ij")
    mass = grey.sum(dim=(1, 2))
    return torch.stack([(grey * x).sum(dim=(1, 2)) / mass, (grey * y).sum(dim=(1, 2)) / mass], dim=-1)


def dots(*centres, width=WIDTH, height=HEIGHT, sigma=3.0):
    """One crop that is black but for soft dots, (1, 3, H, W)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grey = sum(200 * torch.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * sigma**2)) for at in centres)
    return grey.expand(1, 3, height, width)


def crops():
    return torch.cat([dots((20.3, 30.1), (72.2, 50.7)), dots((24.0, 28.5), (70.4, 40.0))])


# Flip test


@pytest.mark.parametrize("task", TASKS)
def test_a_model_that_sees_mirrors_alike_says_the_same_with_and_without_flip_test(task):
    plain, _ = predict(Finder(task), crops())
    both, confidence = predict(Finder(task), crops(), flip_test=True)
    assert plain[0, TASKS[task].num_points - 1, 0] > 45
    torch.testing.assert_close(both, plain, atol=1e-4, rtol=0)
    assert (confidence == 0.25).all()


@pytest.mark.parametrize("task", TASKS)
def test_an_error_to_one_side_is_gone_after_a_flip_test(task):
    exact, _ = predict(Finder(task), crops())
    plain, _ = predict(Finder(task, error=3.0), crops())
    both, _ = predict(Finder(task, error=3.0), crops(), flip_test=True)
    torch.testing.assert_close(plain - exact, torch.tensor([3.0, 0]).double().expand_as(exact))
    torch.testing.assert_close(both, exact, atol=1e-4, rtol=0)


def test_without_averaging_the_model_sees_just_the_pixels_it_was_given():
    model, pixels = Finder(), crops().to(torch.uint8)
    predict(model, pixels)
    assert len(model.seen) == 1
    assert model.seen[0] is pixels


@pytest.mark.parametrize(
    ("values", "passes"), [({"flip_test": True}, 2), ({"scales": (1.25, 1.0, 0.8)}, 3), ({"scales": (0.8, 1.25), "flip_test": True}, 4)]
)
def test_each_view_is_one_forward_pass_of_the_batch(values, passes):
    model = Finder()
    predict(model, crops(), **values)
    assert [len(pixels) for pixels in model.seen] == [2] * passes


def test_a_flip_test_averages_before_decoding():
    """A head whose decoding is not linear shows it: the decoded average of 1 and 3 is 4, the average of the decoded is 5."""
    model = Finder()
    outputs = iter([1.0, 3.0])
    model.__class__ = type("Squares", (Finder,), {"__call__": lambda self, pixels: torch.full((1, NUM_JOINTS, 2), next(outputs))})
    model.head.mirror = lambda output, flip_order: output
    model.head.decode = lambda output: (output**2, None)
    points, _ = predict(model, crops()[:1], flip_test=True)
    assert (points == 4).all()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", HEADS)
def test_with_a_flip_test_every_head_sees_a_mirrored_crop_mirrored(name, task):
    """Whatever the network makes of a crop: the average of both sides knows no side."""
    torch.manual_seed(0)
    size, num_points = (48, 64), TASKS[task].num_points
    values = {"model": "test_resnet", "feature_stride": 16, "framing": "person", "samples_fingerprint": ""}
    mean_points = torch.rand(num_points, 2).tolist()
    model = build_model(ModelConfig(task=task, regression_head=name, size=size, mean_points=mean_points, **values)).eval()
    pixels = torch.randint(0, 256, (4, 3, size[1], size[0]), dtype=torch.uint8)
    with torch.inference_mode():
        for values in ({}, {"scales": (0.9, 1.2)}):
            points, confidence = predict(model, pixels, flip_test=True, **values)
            mirrored, mirrored_confidence = predict(model, pixels.flip(-1), flip_test=True, **values)
            order = list(TASKS[task].flip_order)
            back = torch.stack([size[0] - 1 - mirrored[..., 0], mirrored[..., 1]], dim=-1)[:, order]
            if TASKS[task].is_box:
                back = torch.stack([back.amin(dim=1), back.amax(dim=1)], dim=1)
            # Untrained maps are flat, and the peak of what is flat is found to a hundredth of a pixel.
            torch.testing.assert_close(back, points, atol=0.05, rtol=0)
            assert (points - predict(model, pixels, **values)[0]).abs().max() > 0.01
            assert (confidence is None) == (name in ("direct", "paper"))
            if confidence is not None:
                torch.testing.assert_close(mirrored_confidence[:, order], confidence, atol=1e-4, rtol=0)


# Scaled views


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.25, 2.0])
def test_a_scaled_crop_holds_at_each_pixel_what_lay_there_before(scale):
    # Bilinear sampling of a ramp is exact: the value is x, and then y, of where the pixel comes from.
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    warped = scale_crops(torch.stack([x, y, x])[None].float(), scale)
    middle = torch.tensor([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    source = middle + (torch.stack([x, y], dim=-1) - middle) / scale
    is_inside = ((source >= 0) & (source <= torch.tensor([WIDTH - 1, HEIGHT - 1]))).all(dim=-1)
    assert is_inside.sum() >= HEIGHT * WIDTH * min(scale**2, 1) * 0.9
    torch.testing.assert_close(warped[0, :2].permute(1, 2, 0)[is_inside], source[is_inside], atol=1e-4, rtol=0)
    assert (warped[0, :, 0, 0] == 0).all() == (scale < 1)


@pytest.mark.parametrize("values", [{}, {"flip_test": True}])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("scale", [0.8, 1.2])
def test_points_of_a_scaled_view_are_mapped_back(scale, task, values):
    expected, _ = predict(Finder(task), crops())
    model = Finder(task)
    points, _ = predict(model, crops(), scales=(scale,), **values)
    moved, _ = Finder(task).predict(model.seen[0])
    assert (moved - expected).abs().max() > 3
    torch.testing.assert_close(points, expected, atol=0.01, rtol=0)


def test_views_are_averaged_in_one_order_whatever_the_order_given():
    # An error of 1 px in each view is 2 px of the half-size crop, 1 and 1/2 px of the others: 7/6 on average.
    pixels = dots((36.0, 35.0), (60.0, 45.0))
    exact, _ = predict(Finder(), pixels)
    points, _ = predict(Finder(error=1.0), pixels, scales=(2.0, 0.5, 1.0))
    again, _ = predict(Finder(error=1.0), pixels, scales=(1.0, 2.0, 0.5))
    assert torch.equal(points, again)
    assert (points - exact)[..., 0].mean().item() == pytest.approx(7 / 6, abs=0.01)


# Averages by hand


def estimate(points, confidence=None):
    return torch.tensor(points).double(), None if confidence is None else torch.tensor(confidence).double()


def test_points_are_weighed_by_their_confidence():
    one, other = estimate([[[0.0, 10.0], [8.0, 8.0]]], [[0.75, 0.5]]), estimate([[[4.0, 30.0], [4.0, 2.0]]], [[0.25, 0.5]])
    points, confidence = average([one, other], is_box=False)
    assert points.tolist() == [[[1, 15], [6, 5]]]
    assert confidence.tolist() == [[0.5, 0.5]]


def test_points_count_equally_where_not_all_have_a_confidence():
    one, other = estimate([[[0.0, 10.0]]], [[0.75]]), estimate([[[4.0, 30.0]]])
    points, confidence = average([one, other], is_box=False)
    assert (points.tolist(), confidence) == ([[[2, 20]]], None)


def test_points_nobody_is_sure_of_count_equally():
    points, confidence = average([estimate([[[0.0, 10.0]]], [[0.0]]), estimate([[[4.0, 30.0]]], [[0.0]])], is_box=False)
    assert (points.tolist(), confidence.tolist()) == ([[[2, 20]]], [[0]])


def test_a_point_that_is_no_number_makes_no_other_point_of_its_average():
    points, _ = average(
        [estimate([[[NAN, 1.0], [1.0, 2.0]]], [[0.0, 0.5]]), estimate([[[4.0, 3.0], [3.0, 2.0]]], [[1.0, 0.5]])], is_box=False
    )
    np.testing.assert_array_equal(points.numpy(), [[[NAN, 3], [2, 2]]])


@pytest.mark.parametrize("confidence", [None, [[0.9, 0.3], [0.0, 0.1]]])
@pytest.mark.parametrize("is_box", [True, False])
def test_equals_average_to_one_of_them(confidence, is_box):
    one = estimate([[[1.3, 2.7], [5.1, 9.9]], [[0.1, 0.2], [0.3, 0.7]]], confidence)
    points, found = average([one, one], is_box=is_box)
    torch.testing.assert_close(points, one[0])
    if confidence is not None:
        torch.testing.assert_close(found.mean(dim=1), one[1].mean(dim=1))


def test_one_estimate_stays_as_it_is():
    one = estimate([[[5.0, 1.0], [2.0, 3.0]]], [[0.9, 0.1]])
    assert average([one], is_box=True) is one


def test_corners_are_sorted_before_boxes_are_averaged():
    # (2, 1, 6, 4) once as it is and once with its x exchanged, as a mirrored crop gives it; the other box is 2 px further right.
    given = [[[2.0, 1.0], [6.0, 4.0]]], [[[8.0, 1.0], [4.0, 4.0]]]
    points, _ = average([estimate(each) for each in given], is_box=True)
    assert points.tolist() == [[[3, 1], [7, 4]]]
    assert points_to_box(given[1]).tolist() == [[4, 1, 8, 4]]


def test_a_box_counts_as_much_as_its_mean_confidence():
    # 0.6 and 0.2: the mean weights of both corners, since a sorted corner is of both.
    points, confidence = average(
        [estimate([[[0.0, 0.0], [8.0, 8.0]]], [[0.2, 1.0]]), estimate([[[4.0, 4.0], [12.0, 12.0]]], [[0.4, 0.0]])], is_box=True
    )
    torch.testing.assert_close(points, torch.tensor([[[1.0, 1.0], [9.0, 9.0]]]).double())
    torch.testing.assert_close(confidence, torch.full((1, 2), 0.4).double())
