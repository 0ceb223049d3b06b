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
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from posepipe.batches import send


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

    @property
    def num_own(self) -> int:
        """Rows of this worker."""
        return len(range(self.rank, self._num_rows, self.world))

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
    if not module.training or module.p == 0:
        return values
    if len(values) != batch.num_own:  # tokens or windows, many of a sample: masks of this worker alone
        return F.dropout(values, module.p)
    is_kept = send(batch.draw(*values.shape[1:]) >= module.p, values.device)
    return torch.where(is_kept, values / (1 - module.p), torch.zeros_like(values)) if module.p < 1 else torch.zeros_like(values)


def _normalise(module: Any, values: Tensor) -> Tensor:
    """What `module` does in training mode, with the statistics of all workers' parts."""
    if not module.training:
        return type(module).forward(module, values)
    module.num_batches_tracked.add_(1)
    rate = 1 / module.num_batches_tracked.item() if module.momentum is None else module.momentum
    output, mean, variance, count = _Normalise.apply(values, module.weight, module.bias, module.eps)
    with torch.no_grad():
        # Running variances are unbiased, those of the batch are not.
        unbiased = variance * count / (count - 1).clamp_min(1)
        module.running_mean.lerp_(mean, rate)
        module.running_var.lerp_(unbiased, rate)
    # timm's BatchNormAct2d is a BatchNorm2d with an activation inside.
    for name in ("drop", "act"):
        output = getattr(module, name, nn.Identity())(output)
    return output


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias per channel over all workers; parts may be empty. x: (N, C, …).

    Of torch's own kernels, each of which goes over x once: moments in training mode, and the rest in evaluation mode, where mean and
    variance are given.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        num_channels = x.shape[1]
        moments = torch.zeros(2 * num_channels + 1, dtype=torch.float64)
        dtype = torch.promote_types(x.dtype, torch.float32)
        if x.numel():
            mean, variance = (values.double() for values in torch.batch_norm_update_stats(x, None, None, 0.0))
            # As float64, the difference of these sums is still exact to float32.
            moments = torch.cat([mean, variance + mean.square(), moments.new_ones(1)]) * (x.numel() // num_channels)
        torch.distributed.all_reduce(moments)
        count = moments[-1].to(dtype)
        mean, square = (moments[:-1] / moments[-1]).view(2, num_channels).unbind()
        mean, variance = mean.to(dtype), (square - mean.square()).clamp_min(0).to(dtype)
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        output = F.batch_norm(x, mean, variance, weight, bias, eps=eps) if x.numel() else x.clone()
        return output, mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, variance, count = ctx.saved_tensors
        of_x, sums = torch.zeros_like(x), mean.new_zeros(2, len(mean))
        if x.numel():
            of_x, *of_affine = torch.ops.aten.native_batch_norm_backward(
                gradient, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
            )
            sums = torch.stack(of_affine)
        own = sums
        sums = sums.to(torch.float64, copy=True)
        torch.distributed.all_reduce(sums)
        if x.numel():
            # What the mean of the global batch and its variance take back: a line in x, per channel.
            scale = (variance + ctx.eps).rsqrt() * (1 if weight is None else weight)
            slope, offset = (sums / count).to(mean.dtype) * scale
            of_x.sub_(F.batch_norm(x, mean, variance, slope, offset, eps=ctx.eps))
        of_weight, of_bias = (None, None) if weight is None else own.unbind()
        return of_x, of_weight, of_bias, None
