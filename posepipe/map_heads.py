"""Regression heads that give distributions over cells: along each axis (SimCC), or over the crop (heat maps)."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posepipe.head_parts import PEAK_REACH, HeadInput, fit_peak, is_inside, log_mean, masked_sum, soft_target, to_cells, to_px


class SimccHead(nn.Module):
    """A distribution over each axis (Li et al., "SimCC: a Simple Coordinate Classification Perspective", 2022).

    A map per point is flattened and two linear layers, which all points share, turn it into bins of half a pixel. The target is a Gaussian
    over the bins, the label smoothing of the paper's SA-SimCC; a point lies between bins, where the logarithms peak.
    """

    BINS_PER_PX = 2
    SIGMA = 3 / 256  # of the side

    def __init__(self, built_for: HeadInput) -> None:
        super().__init__()
        self.size = built_for.size
        num_cells = math.prod(built_for.cells)
        self.maps = nn.Conv2d(built_for.channels[-1], built_for.num_points, 1)
        self.axes = nn.ModuleList(nn.Linear(num_cells, side * self.BINS_PER_PX) for side in self.size)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(N, K, bins of x and then of y) logits."""
        flat = self.maps(features[-1]).flatten(2)
        return torch.cat([axis(flat) for axis in self.axes], dim=-1).float()

    def _split(self, output: Tensor) -> list[Tensor]:
        return list(output.split([side * self.BINS_PER_PX for side in self.size], dim=-1))

    def loss(self, output: Tensor, target: Tensor, is_valid: Tensor) -> tuple[Tensor, Tensor]:
        # A point outside the crop has no bin to light up.
        is_valid = is_valid & is_inside(target, self.size)
        total = torch.zeros_like(output[..., 0])
        for axis, (logits, side) in enumerate(zip(self._split(output), self.size, strict=True)):
            num_bins = logits.shape[-1]
            wanted = soft_target(torch.nan_to_num(to_cells(target[..., axis], side, num_bins)), num_bins, self.SIGMA * num_bins)
            wanted = wanted / wanted.sum(dim=-1, keepdim=True).clamp_min(1e-12)
            total = total - (wanted * F.log_softmax(logits, dim=-1)).sum(dim=-1)
        return masked_sum(total, is_valid)

    def decode(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        places, masses = [], []
        for logits, side in zip(self._split(output), self.size, strict=True):
            num_bins = logits.shape[-1]
            peak = logits.argmax(dim=-1)
            places.append(to_px(fit_peak(logits, peak), side, num_bins))
            # The part of the distribution within two sigmas, as far as it would lie there if it were the target.
            near = (torch.arange(num_bins, device=output.device) - peak[..., None]).abs() <= 2 * self.SIGMA * num_bins
            masses.append((logits.softmax(dim=-1) * near).sum(dim=-1))
        return torch.stack(places, dim=-1).to(output.dtype), torch.minimum(*masses)

    def mirror(self, output: Tensor, flip_order: Sequence[int]) -> Tensor:
        """What the mirrored crop's output says of the crop itself."""
        x, y = self._split(output[:, list(flip_order)])
        return torch.cat([x.flip(-1), y], dim=-1)

    def average(self, outputs: Sequence[Tensor]) -> Tensor:
        parts = zip(*(self._split(output) for output in outputs), strict=True)
        return torch.cat([log_mean(list(part), 1) for part in parts], dim=-1)


class HeatmapHead(nn.Module):
    """A map per point at stride 4, cross-entropy against a Gaussian; decoded between the cells around the peak.

    Decoders upsample bilinearly, with a 3x3 convolution after each step, in place of transposed convolutions. A map is a distribution over
    cells, so no weight balances the one cell of the peak against the background.
    """

    STRIDE = 4
    SIGMA = 1.5  # cells

    def __init__(self, built_for: HeadInput, build_decoder: "Callable[[HeadInput], PlainDecoder | UnetDecoder]") -> None:
        super().__init__()
        self.size = built_for.size
        self.decoder = build_decoder(built_for)
        self.last = nn.Conv2d(self.decoder.width, built_for.num_points, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(N, K, rows, columns) logits."""
        return self.last(self.decoder(features)).float()

    def loss(self, output: Tensor, target: Tensor, is_valid: Tensor) -> tuple[Tensor, Tensor]:
        # A point outside the crop has no cell to light up.
        is_valid = is_valid & is_inside(target, self.size)
        x, y = (self._target(target[..., axis], self.size[axis], output.shape[-1 - axis]) for axis in (0, 1))
        maps = (y[..., :, None] * x[..., None, :]).flatten(2)
        maps = maps / maps.sum(dim=-1, keepdim=True).clamp_min(1e-12)
        return masked_sum(-(maps * F.log_softmax(output.flatten(2), dim=-1)).sum(dim=-1), is_valid)

    def _target(self, coordinates: Tensor, side: int, num_cells: int) -> Tensor:
        return soft_target(torch.nan_to_num(to_cells(coordinates, side, num_cells)), num_cells, self.SIGMA)

    def decode(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        rows, columns = output.shape[-2:]
        logits = F.log_softmax(output.flatten(2), dim=-1)
        peak = logits.argmax(dim=-1)
        row, column = peak // columns, peak % columns
        logits = logits.view_as(output)
        near_rows, near_columns = _near(row, rows), _near(column, columns)
        # What lies beside the window belongs to other peaks.
        along_x = torch.where(near_rows[..., :, None], logits, -torch.inf).logsumexp(dim=-2)
        along_y = torch.where(near_columns[..., None, :], logits, -torch.inf).logsumexp(dim=-1)
        places = [to_px(fit_peak(along_x, column), self.size[0], columns), to_px(fit_peak(along_y, row), self.size[1], rows)]
        mass = torch.where(near_columns, along_x, -torch.inf).exp().sum(dim=-1)
        return torch.stack(places, dim=-1).to(output.dtype), mass

    def mirror(self, output: Tensor, flip_order: Sequence[int]) -> Tensor:
        """What the mirrored crop's output says of the crop itself."""
        return output[:, list(flip_order)].flip(-1)

    def average(self, outputs: Sequence[Tensor]) -> Tensor:
        return log_mean(list(outputs), 2)


class PlainDecoder(nn.Module):
    """Upsamples the coarsest map (after Xiao et al., "Simple Baselines for Human Pose Estimation", 2018)."""

    def __init__(self, built_for: HeadInput) -> None:
        super().__init__()
        self.width, stride = built_for.channels[-1], built_for.strides[-1]
        width = _width(self.width)
        layers: list[nn.Module] = []
        while stride > HeatmapHead.STRIDE:
            layers += [nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False), *_convolution(self.width, width)]
            self.width, stride = width, stride // 2
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.layers(features[-1])


class UnetDecoder(nn.Module):
    """Upsamples the coarsest map and lets the finer ones in on the way (after Ronneberger et al., "U-Net", 2015)."""

    def __init__(self, built_for: HeadInput) -> None:
        super().__init__()
        self.width = built_for.channels[-1]
        width = _width(self.width)
        self.skips, self.joins = nn.ModuleList(), nn.ModuleList()
        for channels in built_for.channels[-2::-1]:
            self.skips.append(nn.Sequential(*_convolution(channels, width, 1)))
            self.joins.append(nn.Sequential(*_convolution(self.width + width, width)))
            self.width = width

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        values = features[-1]
        for skip, join, maps in zip(self.skips, self.joins, features[-2::-1], strict=True):
            values = F.interpolate(values, size=maps.shape[2:], mode="bilinear", align_corners=False)
            values = join(torch.cat([values, skip(maps)], dim=1))
        return values


def _near(peak: Tensor, num_cells: int) -> Tensor:
    """(…) indices -> (…, num_cells) whether a cell lies within the window around them."""
    return (torch.arange(num_cells, device=peak.device) - peak[..., None]).abs() <= PEAK_REACH


def _width(channels: int) -> int:
    return min(256, max(64, channels // 4))


def _convolution(channels: int, width: int, kernel: int = 3) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
