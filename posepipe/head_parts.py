"""What regression heads have in common: what they are built for, masked sums, soft targets and their peaks."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

PEAK_REACH = 3  # cells to each side of a peak that its place is fitted to


@dataclass(frozen=True, kw_only=True)
class HeadInput:
    """What a regression head is built for.

    Attributes:
        channels: of the backbone's feature maps, the coarsest last.
        strides: of the same maps in crop px; (0,) for a backbone that ends in a vector.
        cells: columns and rows of the coarsest map.
        num_points: K.
        size: (width, height) crop px.
        mean_points: (K, 2) mean of the training labels in the unit frame, where linear heads start.
        direct_loss: of the direct head.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    cells: tuple[int, int]
    num_points: int
    size: tuple[int, int]
    mean_points: list[list[float]]
    direct_loss: str = "mse"


def masked_sum(values: Tensor, is_valid: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of values (N, K) where is_valid, and how many they are; what lies under the mask may be NaN."""
    return torch.where(is_valid, values, torch.zeros_like(values)).sum(), is_valid.sum()


def hide(target: Tensor, is_valid: Tensor) -> Tensor:
    """Points (N, K, 2) with zeros under the mask: a NaN there would leave the sum but not the gradient, which is 0 * NaN."""
    return torch.where(is_valid[..., None], target, torch.zeros_like(target))


def is_inside(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Whether points (N, K, 2), crop px, lie in a crop of this width and height; NaN does not."""
    x, y = points.unbind(dim=-1)
    return (x >= -0.5) & (x <= size[0] - 0.5) & (y >= -0.5) & (y <= size[1] - 0.5)


def to_cells(coordinates: Tensor, side: int, num_cells: int) -> Tensor:
    """Crop px along an axis of `side` px -> places along its cells, whose centres are whole numbers."""
    return (coordinates + 0.5) * (num_cells / side) - 0.5


def to_px(cells: Tensor, side: int, num_cells: int) -> Tensor:
    """The inverse of `to_cells`."""
    return (cells + 0.5) * (side / num_cells) - 0.5


def soft_target(centres: Tensor, num_cells: int, sigma: float) -> Tensor:
    """Gaussians (…, num_cells) around centres (…), in cells, not normalised."""
    axis = torch.arange(num_cells, device=centres.device, dtype=centres.dtype)
    return torch.exp(-((axis - centres[..., None]) ** 2) / (2 * sigma**2))


def fit_peak(logits: Tensor, peak: Tensor) -> Tensor:
    """Where between its cells a peak lies: the top of the parabola through the logarithms around it, which is exact for a Gaussian.

    Least squares with weights that are the squares of the probabilities, after Guo: "A Simple Algorithm for Fitting a Gaussian
    Function" (2011). Unlike a centroid it is not drawn inwards by a window or a border that cuts the peak off.

    Args:
        logits: (…, cells).
        peak: (…) index of the largest.

    Returns:
        (…) in cells; the peak's own cell where no top lies within the window.
    """
    num_cells = logits.shape[-1]
    offsets = torch.arange(-PEAK_REACH, PEAK_REACH + 1, device=logits.device)
    places = peak[..., None] + offsets
    is_there = (places >= 0) & (places < num_cells)
    values = logits.double().gather(-1, places.clamp(0, num_cells - 1)) - logits.double().gather(-1, peak[..., None])
    is_there &= values > -60
    weights = torch.where(is_there, values.exp().square(), torch.zeros_like(values))
    values = torch.where(is_there, values, torch.zeros_like(values))
    x = offsets.double()
    powers = torch.stack([x**0, x, x**2])  # (3, window)
    moments = torch.einsum("...w,iw,jw->...ij", weights, powers, powers)
    right = torch.einsum("...w,iw->...i", weights * values, powers)
    # Where fewer than three cells have weight the system has no solution of its own; a little of the identity keeps it solvable.
    ridge = 1e-18 * torch.eye(3, dtype=torch.float64, device=logits.device)
    # Not `solve`, which waits for a GPU to say whether there was a solution.
    _, slope, curvature = torch.linalg.solve_ex(moments + ridge, right).result.unbind(-1)
    offset = -slope / (2 * curvature)
    is_top = (curvature < 0) & (offset.abs() <= PEAK_REACH) & (is_there.sum(-1) >= 3)
    return peak + torch.where(is_top, offset, torch.zeros_like(offset))


def log_mean(logits: "list[Tensor]", dims: int) -> Tensor:
    """The logarithm of the mean of several distributions over the last `dims` axes."""
    flat = [F.log_softmax(each.flatten(-dims), dim=-1) for each in logits]
    return (torch.stack(flat).logsumexp(dim=0) - math.log(len(flat))).view_as(logits[0])
