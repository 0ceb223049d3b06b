"""BatchNorm and dropout over the global batch, however many workers share it.

A worker holds the rows rank, rank + world, … of a global batch. Statistics of its part alone, or a dropout mask of its own, would make the
result depend on how many workers there are. torch's SyncBatchNorm works on GPUs only, so CPUs have a version of their own.
"""

import functools
from typing import Any

import torch
import torch.distributed
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class GlobalBatch:
    """What the layers of a network have to know of the global batch that they see a part of.

    Attributes:
        rank: of this worker.
        world: number of workers.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self._num_rows = 0
        self._generator = torch.Generator()

    def begin(self, num_rows: int, seed: int) -> None:
        """A step begins: rows of the global batch, and what its dropout masks are drawn from."""
        self._num_rows = num_rows
        self._generator.manual_seed(seed)

    def draw(self, *shape: int) -> Tensor:
        """Uniform numbers (own rows, *shape): this worker's part of those of the global batch."""
        return torch.rand((self._num_rows, *shape), generator=self._generator)[self.rank :: self.world]


def share(model: nn.Module, batch: GlobalBatch, device: torch.device) -> None:
    """Makes the layers of a network see `batch` instead of their part of it, in training mode; weights keep their names."""
    if batch.world > 1 and device.type == "cuda":
        convert_sync_batchnorm(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.forward = functools.partial(_drop, module, batch)  # type: ignore[method-assign]
        elif isinstance(module, _BatchNorm) and batch.world > 1 and device.type != "cuda":
            module.forward = functools.partial(_normalise, module)  # type: ignore[method-assign]


def _drop(module: nn.Dropout, batch: GlobalBatch, values: Tensor) -> Tensor:
    if not module.training:
        return values
    is_kept = (batch.draw(*values.shape[1:]) >= module.p).to(values.device)
    return torch.where(is_kept, values / (1 - module.p), torch.zeros_like(values)) if module.p < 1 else torch.zeros_like(values)


def _normalise(module: Any, values: Tensor) -> Tensor:
    """What `module` does in training mode, with the statistics of all workers' parts."""
    if not module.training:
        return type(module).forward(module, values)
    module.num_batches_tracked.add_(1)
    rate = 1 / module.num_batches_tracked.item() if module.momentum is None else module.momentum
    standardised, mean, variance, count = _Standardise.apply(values.to(torch.promote_types(values.dtype, torch.float32)), module.eps)
    with torch.no_grad():
        # Running variances are unbiased, those of the batch are not.
        unbiased = variance * count / (count - 1).clamp_min(1)
        module.running_mean.lerp_(mean.to(module.running_mean.dtype), rate)
        module.running_var.lerp_(unbiased.to(module.running_var.dtype), rate)
    shape = (1, -1, *([1] * (values.ndim - 2)))
    if module.affine:
        standardised = standardised * module.weight.view(shape) + module.bias.view(shape)
    output = standardised.to(values.dtype)
    # timm's BatchNormAct2d is a BatchNorm2d with an activation inside.
    for name in ("drop", "act"):
        output = getattr(module, name, nn.Identity())(output)
    return output


class _Standardise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) per channel over all workers; parts may be empty. x: (N, C, …) float32 or float64."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims, num_channels = [dim for dim in range(x.ndim) if dim != 1], x.shape[1]
        moments = torch.zeros(2 * num_channels + 1, dtype=torch.float64, device=x.device)
        if x.numel():
            variance, mean = (values.double() for values in torch.var_mean(x, dims, correction=0))
            # As float64, the difference of these sums is still exact to float32.
            moments = torch.cat([mean, variance + mean.square(), moments.new_ones(1)]) * (x.numel() // num_channels)
        torch.distributed.all_reduce(moments)
        count = moments[-1]
        mean, square = (moments[:-1] / count).view(2, num_channels).unbind()
        variance = (square - mean.square()).clamp_min(0)
        shape = (1, -1, *([1] * (x.ndim - 2)))
        scale = (variance + eps).rsqrt().to(x.dtype).view(shape)
        standardised = (x - mean.to(x.dtype).view(shape)) * scale
        ctx.save_for_backward(standardised, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return standardised, mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None]:
        standardised, scale, count = ctx.saved_tensors
        dims = [dim for dim in range(gradient.ndim) if dim != 1]
        sums = torch.stack([gradient.sum(dims), (gradient * standardised).sum(dims)]).double()
        torch.distributed.all_reduce(sums)
        mean, slope = (sums / count).to(gradient.dtype).view(2, *scale.shape).unbind()
        return scale * (gradient - mean - standardised * slope), None
