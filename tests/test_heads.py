"""heads.py and the heads themselves: losses worked by hand, masks that hold, and points that come back out of their maps."""

import math

import numpy as np
import pytest
import torch

from posepipe.head_parts import HeadInput, fit_peak, masked_sum, soft_target, to_cells, to_px
from posepipe.heads import HEADS, NEED_MAPS

NAN = float("nan")
SIZE, STRIDE, FEATURES = 64, 16, 8


STRIDES = (4, 8, 16)


def build(name, num_points=3, size=(SIZE, SIZE), strides=STRIDES, **changes):
    torch.manual_seed(0)
    values = {"channels": (FEATURES,) * len(strides), "strides": strides, "mean_points": [[0.5, 0.25]] * num_points, **changes}
    columns, rows = (side // strides[-1] if strides[-1] else 0 for side in size)
    return HEADS[name](HeadInput(num_points=num_points, size=size, cells=(columns, rows), **values))


def features(count=2, size=(SIZE, SIZE), strides=STRIDES):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, FEATURES, size[1] // stride, size[0] // stride, generator=generator) for stride in strides]


def constant(name, *numbers, size=(SIZE, SIZE), num_points=None, **changes):
    """A linear head with zero weights: its output before any activation is `numbers`, whatever it sees."""
    head = build(name, num_points or len(numbers) // 2, size, **changes)
    torch.nn.init.zeros_(head.linear.weight)
    head.linear.bias.data = torch.tensor(numbers)
    return head, head(features(1))


def loss_and_gradients(head, target, is_valid):
    seen = [maps.requires_grad_() for maps in features(len(target))]
    head.zero_grad()
    loss, count = head.loss(head(seen), target, is_valid)
    loss.backward()
    tensors = [*seen, *head.parameters()]
    return loss.item(), int(count), [torch.zeros_like(each) if each.grad is None else each.grad.clone() for each in tensors]


def perfect(name, head, points):
    """The output whose distributions are the targets of points (N, 1, 2), up to constants."""
    if name == "simcc":
        sides = [(side, 2 * side, head.SIGMA * 2 * side) for side in head.size]
    else:
        sides = [(side, side // 4, head.SIGMA) for side in head.size]
    x, y = (
        -((torch.arange(count) - to_cells(points[..., axis], side, count)[..., None]) ** 2) / (2 * sigma**2)
        for axis, (side, count, sigma) in enumerate(sides)
    )
    return torch.cat([x, y], dim=-1) if name == "simcc" else y[..., :, None] + x[..., None, :]


# Worked by hand


def test_masked_sum_by_hand():
    values = torch.tensor([[1.0, NAN, 3.0]])
    total, count = masked_sum(values, torch.tensor([[True, False, True]]))
    assert (total.item(), count.item()) == (4, 2)


def test_direct_loss_is_the_mean_squared_error_of_unit_coordinates():
    # Unit targets (0.25, 0.5): squares 0.25^2 and 0.5^2, mean over x and y 0.15625.
    head, output = constant("direct", 0.5, 1.0)
    loss, count = head.loss(output, torch.tensor([[[16.0, 32.0]]]), torch.tensor([[True]]))
    assert (loss.item(), count.item()) == (0.15625, 1)


def test_direct_points_are_unit_outputs_times_the_size():
    head, output = constant("direct", 0.25, -0.5, 1.5, 0.0)
    points, confidence = head.decode(output)
    assert points.tolist() == [[[16, -32], [96, 0]]]
    assert confidence is None


def test_paper_head_is_relu_in_crop_px_with_squared_px_as_loss():
    head, output = constant("paper", 30.0, -5.0, 100.0, 7.0)
    assert output.tolist() == [[[30, 0], [100, 7]]]
    points, confidence = head.decode(output)
    assert (points.tolist(), confidence) == (output.tolist(), None)
    # (30 - 10)^2 = 400 and (0 - 4)^2 = 16, mean 208; (100 - 99)^2 = 1 and (7 - 10)^2 = 9, mean 5.
    loss, count = head.loss(output, torch.tensor([[[10.0, 4.0], [99.0, 10.0]]]), torch.tensor([[True, True]]))
    assert (loss.item(), count.item()) == (213, 2)


def test_linear_heads_average_feature_maps_and_take_vectors_as_they_are():
    maps = features()
    for name in ("direct", "paper", "rle"):
        head = build(name)
        torch.testing.assert_close(head(maps), head([maps[-1].mean(dim=(2, 3))]))


def test_a_linear_head_starts_at_the_mean_of_the_labels():
    for name in ("direct", "rle"):
        head = build(name)
        torch.nn.init.zeros_(head.linear.weight)
        assert head.decode(head(features(1)))[0].tolist() == [[[32, 16]] * 3]


def test_direct_losses_by_hand():
    # Unit errors (0.25, -0.005): squares 0.0625 and 0.000025; smooth: 0.25 - 0.005 and 0.005^2 / 0.02.
    expected = {"mse": 0.0312625, "l1": 0.1275, "smooth_l1": (0.245 + 0.00125) / 2}
    for name, value in expected.items():
        head, output = constant("direct", 0.5, 0.495, direct_loss=name)
        loss, count = head.loss(output, torch.tensor([[[16.0, 32.0]]]), torch.tensor([[True]]))
        assert (loss.item(), count.item()) == (pytest.approx(value), 1), name


def test_generalised_iou_of_boxes_by_hand():
    # Two squares of side 1/4 that touch at a corner: IoU 0, hull 1/4 of which 1/8 is neither: GIoU -1/2, loss 3/2, once per corner.
    head, output = constant("direct", 0.25, 0.25, 0.5, 0.5, direct_loss="giou")
    target = torch.tensor([[[32.0, 32.0], [48.0, 48.0]]])
    loss, count = head.loss(output, target, torch.ones(1, 2, dtype=torch.bool))
    assert (loss.item(), count.item()) == (pytest.approx(3.0), 2)
    # A box is the same whichever of its corners comes first.
    head, output = constant("direct", 0.5, 0.25, 0.25, 0.5, direct_loss="giou")
    assert head.loss(output, target, torch.ones(1, 2, dtype=torch.bool))[0].item() == pytest.approx(3.0)


def test_likelihood_without_a_flow_is_that_of_laplace_and_normal():
    # A flow of zeros is the normal distribution. Sigma sigmoid(0) = 1/2, errors (0.5, -1) deviations.
    head, output = constant("rle", 0.5, 0.0, 0.0, 0.0, num_points=1)
    for parameter in head.flow.parameters():
        torch.nn.init.zeros_(parameter)
    assert output.tolist() == [[[0.5, 0, 0.5, 0.5]]]
    loss, count = head.loss(output, torch.tensor([[[16.0, 32.0]]]), torch.tensor([[True]]))
    normal = -(0.5**2 + 1) / 2 - math.log(2 * math.pi)
    laplace = sum(math.log(2 * 0.5) + error for error in (0.5, 1))
    assert loss.item() == pytest.approx(2 * math.log(0.5) - 2 * normal + laplace, rel=1e-6)
    assert count == 1
    points, confidence = head.decode(output)
    assert (points.tolist(), confidence.tolist()) == ([[[32, 0]]], [[0.5]])


def test_a_flow_is_a_density():
    flow = build("rle").flow
    for layer in flow.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=0.15)
    axis = torch.arange(-12, 12, 0.05)
    grid = torch.cartesian_prod(axis, axis)
    with torch.inference_mode():
        density = flow(grid).exp()
    assert (density.sum() * 0.05**2).item() == pytest.approx(1, abs=1e-3)
    normal = (-grid.square().sum(dim=-1) / 2).exp() / (2 * math.pi)
    assert (density - normal).abs().max() > 0.01, "it is not the normal distribution any more"


def test_predicting_does_not_go_through_the_flow():
    head = build("rle")
    del head.flow
    head.decode(head(features()))


def test_the_likelihood_stays_a_number_with_wrong_labels_in_bfloat16():
    torch.manual_seed(0)
    head = HEADS["rle"](HeadInput(channels=(32,), strides=(0,), cells=(0, 0), num_points=4, size=(256, 256), mean_points=[[0.5, 0.5]] * 4))
    body = torch.nn.Linear(8, 32)
    optimizer = torch.optim.Adam([*head.parameters(), *body.parameters()], lr=1e-3)
    mapping = torch.randn(8, 8)
    for _ in range(2000):
        seen = torch.randn(16, 8)
        target = 128 + 40 * (seen @ mapping).view(16, 4, 2) / 8**0.5
        target = torch.where(torch.rand(16, 4, 1) < 0.05, 256 * torch.rand(16, 4, 2), target)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = head([body(seen)])
        assert output.dtype == torch.float32
        loss, count = head.loss(output, target, torch.rand(16, 4) < 0.9)
        optimizer.zero_grad()
        (loss / count).backward()
        assert math.isfinite(loss.item())
        assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())
        optimizer.step()
    seen = torch.randn(4096, 8)
    target = 128 + 40 * (seen @ mapping).view(-1, 4, 2) / 8**0.5
    error, of_the_mean = ((points - target).norm(dim=-1).median() for points in (head.decode(head([body(seen)]))[0], 128))
    assert error < of_the_mean / 2, "it has not learned what it was shown"


@pytest.mark.parametrize(("name", "shape", "cells"), [("heatmap", (1, 1, 16, 16), 256), ("unet", (1, 1, 16, 16), 256)])
def test_heatmap_loss_of_equal_cells_is_the_log_of_their_number(name, shape, cells):
    # Cross-entropy with a uniform distribution is log(cells), whatever the target.
    loss, count = build(name, 1).loss(torch.zeros(shape), torch.tensor([[[20.0, 31.0]]]), torch.tensor([[True]]))
    assert loss.item() == pytest.approx(math.log(cells), rel=1e-5)
    assert count.item() == 1


def test_simcc_loss_of_equal_bins_is_the_log_of_their_numbers():
    head = build("simcc", 1, (64, 32))
    loss, count = head.loss(torch.zeros(1, 1, 192), torch.tensor([[[20.0, 31.0]]]), torch.tensor([[True]]))
    assert (loss.item(), count.item()) == (pytest.approx(math.log(128) + math.log(64), rel=1e-5), 1)


@pytest.mark.parametrize("name", NEED_MAPS)
def test_a_distributions_loss_is_least_where_it_is_the_target(name):
    head = build(name, 1)
    target = torch.tensor([[[20.3, 31.8]]])
    losses = [
        head.loss(perfect(name, head, target + torch.tensor(shift)), target, torch.tensor([[True]]))[0].item()
        for shift in ([0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0])
    ]
    assert losses[0] < min(losses[1:])


@pytest.mark.parametrize("size", [(256, 256), (192, 256), (128, 64)])
def test_heatmaps_have_stride_4_and_bins_half_a_pixel(size):
    for strides in ((4,), (4, 8), (4, 8, 16), (4, 8, 16, 32)):
        seen = features(2, size, strides)
        for name in ("heatmap", "unet"):
            assert build(name, 2, size, strides)(seen).shape == (2, 2, size[1] // 4, size[0] // 4)
        assert build("simcc", 2, size, strides)(seen).shape == (2, 2, 2 * sum(size))


# Labels that are not there


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("hidden", [NAN, 1e6, -3.0])
def test_points_under_the_mask_reach_neither_loss_nor_gradient(name, hidden):
    head = build(name)
    target = torch.tensor([[[10.0, 20.0], [30.0, 5.0], [0.0, 0.0]], [[40.0, 60.0], [0.0, 0.0], [50.0, 50.0]]])
    is_valid = torch.tensor([[True, True, False], [True, False, True]])
    loss, count, gradients = loss_and_gradients(head, torch.where(is_valid[..., None], target, hidden), is_valid)
    plain_loss, plain_count, plain_gradients = loss_and_gradients(head, torch.where(is_valid[..., None], target, 7.0), is_valid)
    assert (loss, count) == (plain_loss, plain_count) == (loss, 4)
    assert math.isfinite(loss)
    for gradient, plain in zip(gradients, plain_gradients, strict=True):
        assert torch.isfinite(gradient).all()
        torch.testing.assert_close(gradient, plain, rtol=0, atol=0)
    assert any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", HEADS)
def test_a_batch_without_labels_has_no_loss_and_no_gradient(name):
    loss, count, gradients = loss_and_gradients(build(name), torch.full((2, 3, 2), NAN), torch.zeros(2, 3, dtype=torch.bool))
    assert (loss, count) == (0, 0)
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", HEADS)
def test_points_far_away_have_finite_gradients(name):
    target = torch.tensor([[[1e4, -1e4], [1e4, 1e4], [-0.4, 63.4]], [[-1e4, 0.0], [63.4, -0.4], [1e3, 5.0]]])
    loss, _, gradients = loss_and_gradients(build(name), target, torch.ones(2, 3, dtype=torch.bool))
    assert math.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", NEED_MAPS)
@pytest.mark.parametrize("outside", [(-0.6, 10.0), (10.0, -0.6), (SIZE - 0.4, 10.0), (10.0, 1e9), (-1e9, -1e9)])
def test_a_point_outside_the_crop_has_no_distribution(name, outside):
    head = build(name, 2)
    inside = (10.0, 20.0)
    is_valid = torch.ones(2, 2, dtype=torch.bool)
    found = loss_and_gradients(head, torch.tensor([[inside, outside], [inside, inside]]), is_valid)
    without = loss_and_gradients(head, torch.tensor([[inside, (NAN, NAN)], [inside, inside]]), torch.tensor([[True, False], [True, True]]))
    assert found[:2] == without[:2]
    assert found[1] == 3
    for gradient, plain in zip(found[2], without[2], strict=True):
        torch.testing.assert_close(gradient, plain, rtol=0, atol=0)


@pytest.mark.parametrize("name", NEED_MAPS)
@pytest.mark.parametrize("corner", [(-0.5, -0.5), (SIZE - 0.5, SIZE - 0.5)])
def test_a_point_on_the_crops_edge_has_a_distribution(name, corner):
    head = build(name, 1)
    assert loss_and_gradients(head, torch.tensor([[corner], [corner]]), torch.ones(2, 1, dtype=torch.bool))[1] == 2


@pytest.mark.parametrize("name", ["direct", "paper", "rle"])
def test_a_linear_head_learns_points_outside_the_crop(name):
    head = build(name, 1)
    assert loss_and_gradients(head, torch.tensor([[[-20.0, 90.0]], [[5.0, 5.0]]]), torch.ones(2, 1, dtype=torch.bool))[1] == 2


# There and back


@pytest.mark.parametrize(("name", "scale"), [("direct", 1 / SIZE), ("paper", 1.0)])
def test_an_output_without_loss_decodes_to_its_target(name, scale):
    target = torch.tensor([[[10.25, 20.5], [0.0, 63.5]]])
    head, output = constant(name, *(target.flatten() * scale).tolist())
    assert head.loss(output, target, torch.ones(1, 2, dtype=torch.bool))[0].item() == 0
    torch.testing.assert_close(head.decode(output)[0], target)


@pytest.mark.parametrize("name", NEED_MAPS)
@pytest.mark.parametrize("size", [(64, 64), (192, 256), (256, 256)])
def test_a_perfect_distribution_decodes_to_its_point(name, size):
    head = build(name, 1, size)
    points = torch.from_numpy(np.random.default_rng(0).uniform((-0.5, -0.5), np.array(size) - 0.5, (2000, 1, 2))).float()
    decoded, confidence = head.decode(perfect(name, head, points))
    # Also at the border, where half of the peak is cut off.
    torch.testing.assert_close(decoded, points, rtol=0, atol=1e-4)
    to_border = torch.minimum(points + 0.5, torch.tensor(size) - 0.5 - points).amin(dim=(1, 2)) / 4
    assert confidence[to_border >= 3].min() > 0.85


def test_cells_and_pixels_go_there_and_back():
    px = torch.tensor([-0.5, 0.0, 10.25, 63.5])
    assert to_cells(px, 64, 16).tolist() == [-0.5, -0.375, 2.1875, 15.5]
    torch.testing.assert_close(to_px(to_cells(px, 64, 16), 64, 16), px)


def test_a_peak_that_is_no_peak_stays_in_its_cell():
    flat, one, slope = torch.zeros(9), torch.full((9,), -1e4), torch.arange(9.0)
    one[4] = 0
    for logits, peak in ((flat, 0), (one, 4), (slope, 8)):
        assert fit_peak(logits, torch.tensor(peak)).item() == peak


def test_a_peak_between_cells_is_found_beside_another_one():
    logits = (soft_target(torch.tensor(5.3), 32, 1.5) + 0.8 * soft_target(torch.tensor(20.0), 32, 1.5)).log()
    assert fit_peak(logits, logits.argmax()).item() == pytest.approx(5.3, abs=1e-4)


@pytest.mark.parametrize("name", NEED_MAPS)
def test_the_decoded_point_is_where_the_head_was_trained_to_see_it(name):
    # Gradient descent on the logits themselves, through the real loss.
    head = build(name, 1)
    target = torch.tensor([[[21.7, 40.2]]])
    output = torch.zeros_like(head(features(1))).requires_grad_()
    optimizer = torch.optim.Adam([output], lr=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        head.loss(output, target, torch.tensor([[True]]))[0].backward()
        optimizer.step()
    torch.testing.assert_close(head.decode(output.detach())[0], target, rtol=0, atol=0.5)


def test_confidence_is_the_mass_around_the_peak():
    maps = torch.full((1, 2, 16, 16), -1e4)
    maps[0, 0, 5, 9] = 0  # all of it in one cell
    maps[0, 1, 5, 3] = maps[0, 1, 5, 13] = 0  # half here, half far away
    points, confidence = build("heatmap", 2).decode(maps)
    torch.testing.assert_close(confidence, torch.tensor([[1, 0.5]]))
    # Cells are 4 px: the middle of cell 9 is 9.5 * 4 - 0.5 = 37.5, of cell 5 21.5, of cell 3 13.5.
    assert points.tolist() == [[[37.5, 21.5], [13.5, 21.5]]]


# Mirrors


@pytest.mark.parametrize("name", HEADS)
def test_a_mirrored_output_is_that_of_mirrored_points(name):
    # Points 0 and 1 are each other's other side; 63 - x is the mirrored pixel.
    points = torch.tensor([[[10.0, 20.0]], [[40.5, 30.25]], [[7.0, 50.0]]])
    mirrored = torch.stack([63 - points[..., 0], points[..., 1]], dim=-1)
    head = build(name)

    def show(points):
        if name in NEED_MAPS:
            return perfect(name, head, points).transpose(0, 1)
        sigma = torch.full_like(points, 0.1) if name == "rle" else points[..., :0]
        return torch.cat([points if name == "paper" else points / SIZE, sigma], dim=-1).transpose(0, 1)

    found = head.mirror(show(mirrored[[1, 0, 2]]), (1, 0, 2))
    torch.testing.assert_close(head.decode(found)[0], points.transpose(0, 1), rtol=0, atol=1e-4)
    again = head.average([found, show(points)])
    torch.testing.assert_close(head.decode(again)[0], points.transpose(0, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["heatmap", "direct", "simcc"])
def test_an_average_lies_between(name):
    head = build(name, 1)
    first, second = (torch.tensor([[[x, 20.0]]]) for x in (20.0, 20.8))
    outputs = [perfect(name, head, points) if name in NEED_MAPS else points / SIZE for points in (first, second)]
    points = head.decode(head.average(outputs))[0]
    assert points[0, 0].tolist() == pytest.approx([20.4, 20], abs=0.05)
