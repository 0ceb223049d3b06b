"""One pass over the train samples: optimizer steps, what is left out of them, where their time goes.

Every worker draws the same order of samples and takes its part of each global batch; gradients are those of the mean over the global batch,
statistics and dropout masks those of the global batch. All that is drawn is a function of seed, epoch and step, so a run that is
resumed at a step draws the same again.
"""

import functools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from posepipe.augmentation import augment
from posepipe.batches import Fetched, read_ahead, send, split_batches
from posepipe.checkpoints import Progress
from posepipe.config import TrainConfig
from posepipe.global_batch import GlobalBatch
from posepipe.head_parts import is_inside
from posepipe.models import PoseModel
from posepipe.optimizers import WeightAverage
from posepipe.sample_cache import SampleCache
from posepipe.tasks import Task


@dataclass(frozen=True)
class Outcome:
    """What a step came to.

    Attributes:
        step: 0-based, of its epoch.
        batch: indices of the global batch's samples.
        values: (3,) float64 on the CPU: the loss summed over the points, how many points, the largest gradient.
        arrival: of the values, where they are still on their way from the device.
    """

    step: int
    batch: Tensor
    values: Tensor
    arrival: torch.cuda.Event | None


class NonFiniteError(ValueError):
    """A loss or a gradient is no number any more; the same run would come to the same point again."""


def seed_of(*numbers: int) -> int:
    return hash(numbers) & 0x7FFFFFFF


def find_valid(target: Tensor, task: Task, size: tuple[int, int]) -> Tensor:
    """Which points (N, K, 2) have a label that a loss may look at: joints outside the crop cannot be seen, a box may reach out of it."""
    return target.isfinite().all(dim=-1) if task.is_box else is_inside(target, size)


def build_truth(target: Tensor, task: Task, size: tuple[int, int], missing_joints: str) -> tuple[Tensor, Tensor]:
    """What a loss is given of labels (N, K, 2): the points, and which of them (N, K) count.

    With "mask" those of `find_valid` count; with "zero", as in the paper, all do, and points without a label are (0, 0).
    """
    if missing_joints == "zero":
        return torch.nan_to_num(target), torch.ones(target.shape[:2], dtype=torch.bool, device=target.device)
    return target, find_valid(target, task, size)


@dataclass(frozen=True)
class Steps:
    """What the steps of a run have in common.

    Attributes:
        config: of the run.
        task: of the run.
        model: what is called: `own`, or what sums its gradients over the workers.
        own: the network itself.
        cache: the train samples.
        truth: (N, num_points, 2) float32 crop px, NaN where there is no label.
        optimizer: of own's parameters.
        schedule: of the learning rate.
        average: of own's weights, where there is one.
        batch: what own's layers know of the global batch.
        device: of own.
        save: makes a checkpoint; called in the middle of an epoch, after every `config.checkpoint_every` steps.
    """

    config: TrainConfig
    task: Task
    model: nn.Module
    own: PoseModel
    cache: SampleCache
    truth: Tensor
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    average: WeightAverage | None
    batch: GlobalBatch
    device: torch.device
    save: Callable[[Progress], None]

    def run_epoch(self, progress: Progress) -> None:
        """Goes on with the epoch where `progress` is, to its end.

        Raises:
            NonFiniteError: on all workers alike.
        """
        self.model.train()
        if self.config.freeze_norm:
            for module in self.own.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        order = torch.randperm(len(self.cache), generator=torch.Generator().manual_seed(self.config.seed + progress.epoch))
        batches = split_batches(order, self.config.batch_size)
        every = self.config.checkpoint_every
        outcome = None
        items = list(enumerate(batches))[progress.step :]
        with read_ahead(functools.partial(self._fetch, progress.epoch), items) as fetched:
            for step, batch in items:
                following = self._step(batch, step, fetched, progress)
                self._settle(outcome, progress)
                outcome = following
                if every and (step + 1) % every == 0 and step + 1 < len(batches):
                    self._settle(outcome, progress)
                    outcome = None
                    self.save(progress)
            self._settle(outcome, progress)
        if not any(math.isfinite(loss) for loss in progress.losses):
            raise NonFiniteError(f"all {len(batches)} steps of epoch {progress.epoch + 1} were left out: no loss was finite")

    @property
    def _is_ahead(self) -> bool:
        """Whether the next step is begun before it is known what this one came to: a device that is waited for has nothing to do meanwhile.

        What a bad step did to the weights ends with the run, so nothing is lost, unless such steps are to leave no trace.
        """
        return self.device.type == "cuda" and self.config.on_nonfinite == "stop"

    @functools.cached_property
    def _uploads(self) -> torch.cuda.Stream | None:
        """On which a GPU gets the next batch while it computes."""
        return torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def _fetch(self, epoch: int, item: tuple[int, Tensor]) -> Fetched:
        """This worker's part of a step's global batch, augmented."""
        step, batch = item
        place = (self.batch.rank, self.batch.world)
        indices = batch[place[0] :: place[1]]
        # A worker may have no part of a last, small batch.
        is_augmented = self.config.augment and len(indices) > 0
        pixels, target = (self.cache.with_margin if is_augmented else self.cache.pixels)(indices.tolist()), self.truth[indices]
        with torch.cuda.stream(self._uploads):
            pixels = pixels.to(self.device, non_blocking=True)
            if is_augmented:
                generator = torch.Generator().manual_seed(seed_of(self.config.seed, epoch, step))
                pixels, target = augment(pixels, target, self.task, generator, place, self.cache.margin)
            target = send(target, self.device)
            return Fetched(pixels, target, None if self._uploads is None else self._uploads.record_event())

    def _step(self, batch: Tensor, step: int, fetched: Iterator[Fetched], progress: Progress) -> Outcome | None:
        """One step of the optimizer. Returns what is still to be settled."""
        start = time.monotonic()
        config, rank, world = self.config, self.batch.rank, self.batch.world
        place = (config.seed, progress.epoch, step)
        torch.manual_seed(seed_of(*place, rank))
        self.batch.begin(len(batch), seed_of(*place, -1))
        pixels, target = next(fetched).receive()
        loaded = time.monotonic()
        target, is_valid = build_truth(target, self.task, self.own.config.size, config.missing_joints)
        # A forward pass that comes to nothing has moved the statistics of the norms already.
        buffers = [buffer.clone() for buffer in self.own.buffers()] if config.on_nonfinite == "skip" else []
        # Where a worker has no rows, SyncBatchNorm would send zeros of the lower precision to the others' float32.
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16" and len(pixels) > 0):
            output = self.model(pixels)
        head: Any = self.own.head
        loss, count = head.loss(output, target, is_valid)
        sums = torch.stack([loss.detach().double(), count.double()])
        if world > 1:
            torch.distributed.all_reduce(sums)
        self.optimizer.zero_grad(set_to_none=True)
        # Gradients are averaged over workers; with this factor that is the gradient of the mean over the global batch.
        (loss * (world / sums[1].clamp_min(1)).to(loss.dtype)).backward()
        gradients = [parameter.grad for parameter in self.own.parameters() if parameter.grad is not None]
        is_cpu = self.device.type == "cpu"
        norm = torch.nn.utils.get_total_norm(gradients) if is_cpu or config.clip_norm else None
        # On CPUs the largest one takes ten times as long, and is finite where only a square is too large for a float32.
        if norm is not None and is_cpu and math.isfinite(norm.item()):
            largest = norm
        else:
            largest = torch.nn.utils.get_total_norm(gradients, norm_type=math.inf)
        outcome: Outcome | None = self._send(batch, step, torch.cat([sums, largest.double().view(1)]))
        if self._is_ahead or self._settle(outcome, progress):
            if norm is not None and config.clip_norm:
                torch.nn.utils.clip_grads_with_norm_(self.own.parameters(), config.clip_norm, norm)
            self.optimizer.step()
            if self.average is not None:
                self.average.update(self.own)
        else:
            for buffer, before in zip(self.own.buffers(), buffers, strict=True):
                buffer.copy_(before)
        with warnings.catch_warnings():  # of a schedule that goes on where the optimizer's first step was left out
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.schedule.step()
        progress.seconds["data"] += loaded - start
        progress.seconds["compute"] += time.monotonic() - loaded
        return outcome if self._is_ahead else None

    def _send(self, batch: Tensor, step: int, values: Tensor) -> Outcome:
        """Starts the values on their way to the CPU."""
        values = values.to("cpu", non_blocking=True)
        arrival = None
        if self.device.type == "cuda":
            arrival = torch.cuda.Event()
            arrival.record()
        return Outcome(step, batch, values, arrival)

    def _settle(self, outcome: Outcome | None, progress: Progress) -> bool:
        """Waits for what a step came to and adds it to `progress`. False: it came to nothing, and may be left out.

        Raises:
            NonFiniteError: it came to nothing, and may not.
        """
        if outcome is None:
            return True
        start = time.monotonic()
        if outcome.arrival is not None:
            outcome.arrival.synchronize()
        if self._is_ahead:
            progress.seconds["compute"] += time.monotonic() - start
        loss_sum, num_points, largest_gradient = outcome.values.tolist()
        if math.isfinite(loss_sum) and math.isfinite(largest_gradient):
            progress.loss_sum += loss_sum
            progress.num_points += num_points
            progress.losses.append(loss_sum / max(1.0, num_points))
            return True
        if self.config.on_nonfinite == "skip":
            progress.losses.append(math.nan)
            return False
        what = f"the largest gradient is {largest_gradient}" if math.isfinite(loss_sum) else f"the loss is {loss_sum}"
        raise NonFiniteError(
            f"{what} in epoch {progress.epoch + 1}, step {outcome.step + 1}; the samples of the batch: "
            f"{', '.join(self.cache.labels['sample_id'][outcome.batch.numpy()])}; look at them, lower --learning-rate, "
            "or leave such steps out with --on-nonfinite skip"
        )
