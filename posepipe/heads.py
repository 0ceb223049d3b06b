"""What is regressed and how: targets, loss, decode, confidence (direct, paper, heatmap).

A regression head turns the backbone's features into K points. All of them share one seam: `forward(features)` gives its raw output,
`loss(output, target, is_valid)` trains it on points in crop px, `decode(output)` gives points in crop px and a confidence per point.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def masked_sum(values: Tensor, is_valid: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of values (N, K) where is_valid, and how many they are; what lies under the mask may be NaN."""
    return torch.where(is_valid, values, torch.zeros_like(values)).sum(), is_valid.sum()


def squared_error(output: Tensor, target: Tensor, is_valid: Tensor) -> tuple[Tensor, Tensor]:
    """The `masked_sum` of the mean of squares over x and y; points (N, K, 2)."""
    # A NaN under the mask would leave the sum but not the gradient, which is 0 * NaN there.
    target = torch.where(is_valid[..., None], target, torch.zeros_like(target))
    return masked_sum((output - target).square().mean(dim=-1), is_valid)


class DirectHead(nn.Module):
    """Global average, one linear layer, mean squared error in the unit frame (coordinates / size)."""

    def __init__(self, num_features: int, num_points: int, size: int, stride: int) -> None:
        super().__init__()
        self.size, self.num_points = size, num_points
        self.linear = nn.Linear(num_features, 2 * num_points)

    def forward(self, features: Tensor) -> Tensor:
        pooled = features.mean(dim=(2, 3)) if features.ndim == 4 else features
        return self.linear(pooled).float().view(-1, self.num_points, 2)

    def loss(self, output: Tensor, target: Tensor, is_valid: Tensor) -> tuple[Tensor, Tensor]:
        return squared_error(output, target / self.size, is_valid)

    def decode(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        return output * self.size, None


class PaperHead(DirectHead):
    """As in the paper: ReLU outputs in crop px, mean squared error in px^2."""

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(super().forward(features))

    def loss(self, output: Tensor, target: Tensor, is_valid: Tensor) -> tuple[Tensor, Tensor]:
        return squared_error(output, target, is_valid)

    def decode(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        return output, None


class HeatmapHead(nn.Module):
    """Upsamples to stride 4, one map per point, cross-entropy against a Gaussian; decoded by the centroid around the peak.

    The layout follows Xiao et al., "Simple Baselines for Human Pose Estimation" (2018), with bilinear upsampling and a 3x3 convolution for
    each transposed one. A map is a distribution over cells, so no weight balances the one cell of the peak against the background.
    """

    STRIDE = 4
    SIGMA = 1.5  # cells
    WINDOW = 3  # cells to each side of the peak: two sigmas

    def __init__(self, num_features: int, num_points: int, size: int, stride: int) -> None:
        super().__init__()
        width = min(256, max(64, num_features // 4))
        layers: list[nn.Module] = []
        while stride > self.STRIDE:
            layers += [
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                nn.Conv2d(num_features, width, 3, padding=1, bias=False),
            ]
            layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            num_features, stride = width, stride // 2
        self.layers = nn.Sequential(*layers, nn.Conv2d(num_features, num_points, 1))
        self.size = size

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features).float()

    def cell(self, maps: Tensor) -> float:
        """Side of one cell in crop px."""
        return self.size / maps.shape[-1]

    def loss(self, output: Tensor, target: Tensor, is_valid: Tensor) -> tuple[Tensor, Tensor]:
        num_cells = output.shape[-1]
        # A point outside the crop has no cell to light up.
        is_valid = is_valid & ((target >= -0.5) & (target <= self.size - 0.5)).all(dim=-1)
        centres = torch.nan_to_num((target + 0.5) / self.cell(output) - 0.5)
        axis = torch.arange(num_cells, device=output.device, dtype=output.dtype)
        x, y = (torch.exp(-((axis - centres[..., i, None]) ** 2) / (2 * self.SIGMA**2)) for i in (0, 1))
        maps = (y[..., :, None] * x[..., None, :]).flatten(2)
        maps = maps / maps.sum(dim=-1, keepdim=True).clamp_min(1e-12)
        return masked_sum(-(maps * F.log_softmax(output.flatten(2), dim=-1)).sum(dim=-1), is_valid)

    def decode(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        num_cells = output.shape[-1]
        probability = output.flatten(2).softmax(dim=-1)
        peak = probability.argmax(dim=-1)
        axis = torch.arange(num_cells, device=output.device)
        weights = probability.view_as(output)
        for dim, at in ((-2, peak // num_cells), (-1, peak % num_cells)):
            # A window cut off by the border would pull the centroid inwards, so it is as narrow on the other side.
            reach = torch.minimum(at, num_cells - 1 - at).clamp_max(self.WINDOW)
            is_near = (axis - at[..., None]).abs() <= reach[..., None]
            weights = weights * (is_near[..., :, None] if dim == -2 else is_near[..., None, :])
        mass = weights.sum(dim=(-2, -1))
        coordinates = axis.to(output.dtype)
        centroid = torch.stack([(weights.sum(dim=-2) * coordinates).sum(-1), (weights.sum(dim=-1) * coordinates).sum(-1)], dim=-1)
        return (centroid / mass[..., None] + 0.5) * self.cell(output) - 0.5, mass


HEADS: dict[str, Callable[[int, int, int, int], nn.Module]] = {"direct": DirectHead, "paper": PaperHead, "heatmap": HeatmapHead}
"""name -> (features of the backbone, points, crop px, stride of the feature map) -> regression head."""
