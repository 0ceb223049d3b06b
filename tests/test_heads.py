"""heads.py: losses worked by hand, masks that hold, and points that come back out of their maps."""

import math

import numpy as np
import pytest
import torch

from posepipe.heads import HEADS, HeatmapHead, masked_sum

NAN = float("nan")
SIZE, STRIDE, FEATURES = 64, 16, 8


def build(name, num_points=3, size=SIZE):
    torch.manual_seed(0)
    return HEADS[name](FEATURES, num_points, size, STRIDE)


def features(count=2, cells=SIZE // STRIDE):
    return torch.randn(count, FEATURES, cells, cells, generator=torch.Generator().manual_seed(1))


def constant(name, *numbers, size=SIZE):
    """A linear head with zero weights: its output before any activation is `numbers`, whatever it sees."""
    head = build(name, len(numbers) // 2, size)
    torch.nn.init.zeros_(head.linear.weight)
    head.linear.bias.data = torch.tensor(numbers)
    return head, head(features(1))


def loss_and_gradients(head, target, is_valid):
    seen = features(len(target)).requires_grad_()
    head.zero_grad()
    loss, count = head.loss(head(seen), target, is_valid)
    loss.backward()
    return loss.item(), int(count), [seen.grad.clone(), *(parameter.grad.clone() for parameter in head.parameters())]


def perfect_maps(head, points):
    """The logits whose softmax is the target map of points (N, 1, 2)."""
    cells = head(torch.zeros(2, FEATURES, head.size // STRIDE, head.size // STRIDE)).shape[-1]
    cell = head.size / cells
    centres = (torch.arange(cells) + 0.5) * cell - 0.5
    x, y = (-((centres - points[..., axis, None]) ** 2) / (2 * (head.SIGMA * cell) ** 2) for axis in (0, 1))
    return y[..., :, None] + x[..., None, :]


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
    for name in ("direct", "paper"):
        head = build(name)
        torch.testing.assert_close(head(maps), head(maps.mean(dim=(2, 3))))


def test_heatmap_loss_of_equal_cells_is_the_log_of_their_number():
    # Cross-entropy with a uniform distribution is log(cells), whatever the target.
    head = build("heatmap", 1)
    loss, count = head.loss(torch.zeros(1, 1, 16, 16), torch.tensor([[[20.0, 31.0]]]), torch.tensor([[True]]))
    assert loss.item() == pytest.approx(math.log(256), rel=1e-5)
    assert count.item() == 1


def test_heatmap_loss_is_least_where_the_map_is_the_target():
    head = build("heatmap", 1)
    target = torch.tensor([[[20.3, 31.8]]])
    losses = [
        head.loss(perfect_maps(head, target + torch.tensor(shift)), target, torch.tensor([[True]]))[0].item()
        for shift in ([0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0])
    ]
    assert losses[0] < min(losses[1:])


def test_heatmaps_have_stride_4():
    for stride in (4, 8, 16, 32):
        head = HeatmapHead(FEATURES, 2, 256, stride)
        assert head(torch.zeros(2, FEATURES, 256 // stride, 256 // stride)).shape == (2, 2, 64, 64)
        assert head.cell(torch.zeros(1, 1, 64, 64)) == 4


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


@pytest.mark.parametrize("outside", [(-0.6, 10.0), (10.0, -0.6), (SIZE - 0.4, 10.0), (10.0, 1e9), (-1e9, -1e9)])
def test_a_point_outside_the_crop_has_no_heatmap(outside):
    head = build("heatmap", 2)
    inside = (10.0, 20.0)
    is_valid = torch.ones(2, 2, dtype=torch.bool)
    found = loss_and_gradients(head, torch.tensor([[inside, outside], [inside, inside]]), is_valid)
    without = loss_and_gradients(head, torch.tensor([[inside, (NAN, NAN)], [inside, inside]]), torch.tensor([[True, False], [True, True]]))
    assert found[:2] == without[:2]
    assert found[1] == 3
    for gradient, plain in zip(found[2], without[2], strict=True):
        torch.testing.assert_close(gradient, plain, rtol=0, atol=0)


@pytest.mark.parametrize("corner", [(-0.5, -0.5), (SIZE - 0.5, SIZE - 0.5)])
def test_a_point_on_the_crops_edge_has_a_heatmap(corner):
    head = build("heatmap", 1)
    assert loss_and_gradients(head, torch.tensor([[corner], [corner]]), torch.ones(2, 1, dtype=torch.bool))[1] == 2


@pytest.mark.parametrize("name", ["direct", "paper"])
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


@pytest.mark.parametrize("size", [64, 224, 256])
def test_a_perfect_heatmap_decodes_to_its_point(size):
    head = build("heatmap", 1, size)
    points = torch.from_numpy(np.random.default_rng(0).uniform(-0.5, size - 0.5, (2000, 1, 2))).float()
    decoded, confidence = head.decode(perfect_maps(head, points))
    error = (decoded - points).norm(dim=-1)[:, 0] / 4  # cells
    to_border = torch.minimum(points + 0.5, size - 0.5 - points).amin(dim=(1, 2)) / 4
    # Measured: 0.09 of a cell inside. At the border the window is the peak's own cell alone: half a cell along each axis.
    assert error[to_border >= 3].max() < 0.1
    assert error.max() < 0.5 * 2**0.5
    assert confidence[to_border >= 3].min() > 0.9


def test_the_decoded_point_is_where_the_head_was_trained_to_see_it():
    # Gradient descent on the logits themselves, through the real loss.
    head = build("heatmap", 1)
    target = torch.tensor([[[21.7, 40.2]]])
    maps = torch.zeros(1, 1, 16, 16, requires_grad=True)
    optimizer = torch.optim.Adam([maps], lr=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        head.loss(maps, target, torch.tensor([[True]]))[0].backward()
        optimizer.step()
    torch.testing.assert_close(head.decode(maps.detach())[0], target, rtol=0, atol=0.5)


def test_confidence_is_the_mass_around_the_peak():
    maps = torch.full((1, 2, 16, 16), -1e4)
    maps[0, 0, 5, 9] = 0  # all of it in one cell
    maps[0, 1, 5, 3] = maps[0, 1, 5, 13] = 0  # half here, half far away
    points, confidence = build("heatmap", 2).decode(maps)
    assert confidence.tolist() == [[1, 0.5]]
    # Cells are 4 px: the middle of cell 9 is 9.5 * 4 - 0.5 = 37.5, of cell 5 21.5, of cell 3 13.5.
    assert points.tolist() == [[[37.5, 21.5], [13.5, 21.5]]]
