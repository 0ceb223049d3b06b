"""Regression heads that give coordinates themselves: linear ones with a distance as loss, and residual log-likelihood."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from posepipe.head_parts import HeadInput, hide, masked_sum

SMOOTH_L1_BETA = 0.01  # of the side


class DirectHead(nn.Module):
    """Global average, one linear layer, a distance in the unit frame (coordinates / size) as loss."""

    outputs_per_point = 2
    size: Tensor  # (width, height) crop px

    def __init__(self, built_for: HeadInput) -> None:
        super().__init__()
        self.num_points, self.loss_name = built_for.num_points, built_for.direct_loss
        self.linear = nn.Linear(built_for.channels[-1], self.outputs_per_point * built_for.num_points)
        self.register_buffer("size", torch.tensor(built_for.size, dtype=torch.float32), persistent=False)
        self._start(built_for)

    def _start(self, built_for: HeadInput) -> None:
        """At the mean of the labels: what is left to learn is how people differ from it."""
        with torch.no_grad():
            self.linear.bias.view(self.num_points, -1)[:, :2] = torch.tensor(built_for.mean_points)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        last = features[-1]
        # Eight bits of a bfloat16 are half a pixel of 128.
        with torch.autocast("cuda" if last.is_cuda else "cpu", enabled=False):
            pooled = (last.mean(dim=(2, 3)) if last.ndim == 4 else last).float()
            return self.linear(pooled).view(-1, self.num_points, self.outputs_per_point)

    def loss(self, output: Tensor, target: Tensor, is_valid: Tensor) -> tuple[Tensor, Tensor]:
        return masked_sum(_DISTANCES[self.loss_name](output, hide(target, is_valid) / self.size), is_valid)

    def decode(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        return output * self.size, None

    def mirror(self, output: Tensor, flip_order: Sequence[int]) -> Tensor:
        """What the mirrored crop's output says of the crop itself."""
        # The middles of the first and the last pixel change places.
        x = (self.size[0] - 1) / self.size[0] - output[:, list(flip_order), :1]
        return torch.cat([x, output[:, list(flip_order), 1:]], dim=-1)

    def average(self, outputs: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(outputs)).mean(dim=0)


def _squares(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean(dim=-1)


def _absolute(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs().mean(dim=-1)


def _smooth(output: Tensor, target: Tensor) -> Tensor:
    return F.smooth_l1_loss(output, target, reduction="none", beta=SMOOTH_L1_BETA).mean(dim=-1)


def _box(output: Tensor, target: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al., 2019) of boxes given by two corners (N, 2, 2): the same for both corners."""
    corners = [torch.cat([points.amin(dim=1), points.amax(dim=1)], dim=-1) for points in (output, target)]
    return generalized_box_iou_loss(*corners, reduction="none")[:, None].expand(-1, 2)


_DISTANCES = {"mse": _squares, "l1": _absolute, "smooth_l1": _smooth, "giou": _box}


class PaperHead(DirectHead):
    """As in the paper: ReLU outputs in crop px, mean squared error in px^2."""

    def _start(self, built_for: HeadInput) -> None:
        pass

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return F.relu(super().forward(features))

    def loss(self, output: Tensor, target: Tensor, is_valid: Tensor) -> tuple[Tensor, Tensor]:
        return masked_sum(_squares(output, hide(target, is_valid)), is_valid)

    def decode(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        return output, None

    def mirror(self, output: Tensor, flip_order: Sequence[int]) -> Tensor:
        return super().mirror(output / self.size, flip_order) * self.size


class LikelihoodHead(DirectHead):
    """Residual log-likelihood estimation (Li et al., "Human Pose Regression with Residual Log-likelihood Estimation", 2021).

    Gives a place and a deviation per axis. The loss is the likelihood of the errors in deviations, under a Laplace distribution and what a
    normalising flow makes of it. The flow is part of the loss alone: predicting does not go through it.
    """

    outputs_per_point = 4
    MIN_SIGMA = 1e-3  # of the side: an eighth of a pixel of 128
    MAX_ERROR = 50.0  # deviations that the flow is asked about: exp would leave float32 soon after

    def __init__(self, built_for: HeadInput) -> None:
        super().__init__(built_for)
        self.flow = Flow()

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(N, K, 4): x, y and their deviations, in the unit frame."""
        places, raw = super().forward(features).split(2, dim=-1)
        return torch.cat([places, raw.sigmoid().clamp_min(self.MIN_SIGMA)], dim=-1)

    def loss(self, output: Tensor, target: Tensor, is_valid: Tensor) -> tuple[Tensor, Tensor]:
        # Indexed, not masked: nothing of a point without a label goes through the flow.
        places, sigma = output[is_valid].split(2, dim=-1)
        error = (places - target[is_valid] / self.size) / sigma
        log_sigma = sigma.log()
        laplace = math.log(2) + log_sigma + error.abs()
        flow = self.flow(error.clamp(-self.MAX_ERROR, self.MAX_ERROR))[:, None]
        return (log_sigma - flow + laplace).sum(), is_valid.sum()

    def decode(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        return output[..., :2] * self.size, 1 - output[..., 2:].mean(dim=-1)


class Flow(nn.Module):
    """RealNVP (Dinh et al., 2017) of the plane: six layers, each moves one coordinate by what a small network says of the other."""

    NUM_LAYERS, WIDTH = 6, 64

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ModuleList(self._network(nn.Tanh()) for _ in range(self.NUM_LAYERS))
        self.shifts = nn.ModuleList(self._network(nn.Identity()) for _ in range(self.NUM_LAYERS))

    @classmethod
    def _network(cls, last: nn.Module) -> nn.Module:
        layers = [nn.Linear(1, cls.WIDTH), nn.LeakyReLU(), nn.Linear(cls.WIDTH, cls.WIDTH), nn.LeakyReLU(), nn.Linear(cls.WIDTH, 1)]
        for layer in layers[::2]:
            nn.init.xavier_uniform_(layer.weight, gain=0.01)  # type: ignore[arg-type]
        return nn.Sequential(*layers, last)

    def forward(self, error: Tensor) -> Tensor:
        """The logarithm of the density at errors (M, 2)."""
        columns = list(error.unbind(dim=-1))
        log_density = torch.zeros_like(columns[0])
        for number, (scale, shift) in enumerate(zip(self.scales, self.shifts, strict=True)):
            moved, kept = number % 2, 1 - number % 2
            log_scale = scale(columns[kept][:, None])[:, 0]
            columns[moved] = (columns[moved] - shift(columns[kept][:, None])[:, 0]) * (-log_scale).exp()
            log_density = log_density - log_scale
        return log_density - math.log(2 * math.pi) - sum(column.square() for column in columns) / 2
