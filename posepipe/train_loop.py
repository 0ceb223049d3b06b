"""What every training worker runs: epochs over the sample cache, validation, checkpoints.

The samples lie decoded in Ray's object store, where the workers of a host share them without a copy. Every worker draws the same order of
samples and takes its part of each global batch; gradients are those of the mean over the global batch; validation counts every row once.
"""

import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
from numpy.typing import NDArray
from ray.train import Checkpoint
from torch import Tensor, nn

from posepipe import images, samples, snapshots, storage
from posepipe.augmentation import augment
from posepipe.config import TrainConfig
from posepipe.geometry import transform
from posepipe.models import MODEL_FILE, PoseModel, load_model, save_model
from posepipe.runs import HISTORY_FILE
from posepipe.snapshots import SNAPSHOTS_FILE
from posepipe.tasks import TASKS, Score, Task

STATE_FILE = "state.pt"
WARMUP = 0.03  # of all steps
MAX_TRAIN_SCORED = 2000  # of the train people, whose score is shown beside that of validation


class SampleCache:
    """All samples of one split, in the order of their ids; the pixels stay where Ray put them, in shared memory."""

    def __init__(self, dataset: Any) -> None:
        tables: list[pa.Table] = list(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
        labels = samples.label_arrays(pa.concat_tables([table.drop_columns(["pixels"]) for table in tables]))
        order = np.argsort(labels["sample_id"], kind="stable")
        self.labels = {name: values[order] for name, values in labels.items()}
        chunks = [chunk for table in tables for chunk in table["pixels"].chunks]
        rows = [row for chunk in chunks for row in _as_rows(chunk)]
        self._rows = [rows[index] for index in order]

    def __len__(self) -> int:
        return len(self._rows)

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """(N, 3, S, S) uint8."""
        stacked = np.stack([self._rows[index] for index in indices])
        size = round((stacked.shape[1] / 3) ** 0.5)
        return torch.from_numpy(stacked).view(len(indices), size, size, 3).permute(0, 3, 1, 2)


def _as_rows(chunk: pa.FixedSizeBinaryArray) -> NDArray[np.uint8]:
    """(N, bytes) view of a column without nulls."""
    width = chunk.type.byte_width
    data = np.frombuffer(chunk.buffers()[1], dtype=np.uint8)
    return data[chunk.offset * width : (chunk.offset + len(chunk)) * width].reshape(len(chunk), width)


def train_loop(arguments: dict[str, Any]) -> None:
    """What every worker runs."""
    config = TrainConfig(**arguments["config"])
    task = TASKS[config.task]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.cpus_per_worker)
    for name in ("", "ray.data"):  # Ray Train logs each report through the root logger.
        logging.getLogger(name).setLevel(logging.WARNING)
    device = ray.train.torch.get_device()
    cache, val_cache = (SampleCache(ray.train.get_dataset_shard(name)) for name in ("train", "val"))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, MODEL_FILE)
        storage.write_bytes(path, ray.get(arguments["initial"]))
        own, _ = load_model(path)
    steps = [batch for batch in torch.arange(len(cache)).split(config.batch_size) if len(batch) >= 2 * world]
    if not steps:
        raise ValueError(f"{len(cache)} train samples are too few for {world} workers")
    optimizer = torch.optim.Adam(own.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, len(steps) * config.epochs, config.schedule))
    history: list[dict[str, Any]] = []
    chosen = snapshots.choose_people(task.truth(val_cache.labels), config.num_snapshot_people)
    kept = _start_snapshots(task, val_cache, chosen)
    snapshot_epochs = snapshots.choose_epochs(config.epochs, config.num_snapshot_epochs)
    # As many as there are for validation, in eval mode and not augmented: the two scores differ in the people alone.
    num_scored = min(len(cache), len(val_cache), MAX_TRAIN_SCORED)
    train_rows = np.linspace(0, len(cache) - 1, num_scored).round().astype(int)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            own.load_state_dict(load_model(folder)[0].state_dict())
            state = torch.load(os.path.join(folder, STATE_FILE), map_location="cpu", weights_only=True)
            history = storage.read_json(os.path.join(folder, HISTORY_FILE))
            kept = storage.read_table(os.path.join(folder, SNAPSHOTS_FILE))
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    # prepare_model moves the parameters, so the optimizer's state has to follow them.
    model = ray.train.torch.prepare_model(own)
    optimizer.load_state_dict(optimizer.state_dict())
    for epoch in range(len(history), config.epochs):
        start = time.monotonic()
        # Dropout draws from here: every worker its own, and the same again after a restart.
        torch.manual_seed(hash((config.seed, epoch, rank)) & 0x7FFFFFFF)
        loss = _train_epoch(config, task, model, own, cache, optimizer, schedule, epoch, (rank, world), len(steps), device)
        seconds = time.monotonic() - start
        if world > 1:  # Validate what is saved: the statistics of rank 0.
            for buffer in own.buffers():
                torch.distributed.broadcast(buffer, 0)
        val_loss, score = evaluate(own, task, val_cache, np.arange(len(val_cache)), config.batch_size, (rank, world), device)
        _, train_score = evaluate(own, task, cache, train_rows, config.batch_size, (rank, world), device)
        row = {
            "epoch": epoch + 1,
            "train_loss": loss,
            **{f"train_{name}": value for name, value in (train_score.summary() if train_score.num_scored else {}).items()},
            "learning_rate": schedule.get_last_lr()[0],
            "images_per_second": len(steps) * config.batch_size / seconds,
            "val_loss": val_loss,
            **{f"val_{name}": value for name, value in score.summary().items()},
            "objective": score.objective,
        }
        history.append(row)
        with tempfile.TemporaryDirectory() as folder:
            saved = None
            if rank == 0:
                shown = ", ".join(f"{name} {100 * row[f'val_{name}']:.2f}" for name in task.metric_names if row[f"val_{name}"] is not None)
                line = (
                    f"{config.name} epoch {epoch + 1}/{config.epochs}: loss {loss:.5g}, val loss {val_loss:.5g}, {shown}, {seconds:.0f} s"
                )
                # Ray Train patches print to log each line a second time.
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
                save_model(own, os.path.join(folder, MODEL_FILE))
                torch.save({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, os.path.join(folder, STATE_FILE))
                storage.write_json(os.path.join(folder, HISTORY_FILE), history)
                if epoch + 1 in snapshot_epochs and len(chosen):
                    kept = snapshots.extend(kept, epoch + 1, _predict(own, val_cache, chosen, device))
                storage.write_table(os.path.join(folder, SNAPSHOTS_FILE), kept)
                saved = Checkpoint.from_directory(folder)
            ray.train.report(row, checkpoint=saved)


def _start_snapshots(task: Task, cache: SampleCache, chosen: NDArray[np.int64]) -> pa.Table:
    crops = [images.encode_jpeg(pixels) for pixels in cache.pixels(chosen.tolist()).permute(0, 2, 3, 1).numpy()] if len(chosen) else []
    return snapshots.start(cache.labels["sample_id"][chosen].tolist(), crops, task.truth(cache.labels)[chosen])


@torch.inference_mode()
def _predict(model: PoseModel, cache: SampleCache, rows: NDArray[np.int64], device: torch.device) -> NDArray[np.float64]:
    """(N, num_points, 2) crop px."""
    model.eval()
    points, _ = model.predict(cache.pixels(rows.tolist()).to(device))
    return points.double().cpu().numpy()


def _rate(step: int, total: int, schedule: str) -> float:
    """The factor on the learning rate at a step."""
    if schedule == "constant":
        return 1.0
    warmup = max(1, round(WARMUP * total))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _train_epoch(
    config: TrainConfig,
    task: Task,
    model: nn.Module,
    own: PoseModel,
    cache: SampleCache,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    epoch: int,
    place: tuple[int, int],
    num_steps: int,
    device: torch.device,
) -> float:
    """One pass; returns the mean loss over all workers."""
    rank, world = place
    model.train()
    if config.freeze_norm:
        for module in own.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    order = torch.randperm(len(cache), generator=torch.Generator().manual_seed(config.seed + epoch))
    truth = torch.from_numpy(task.truth(cache.labels)).float()
    total = torch.zeros(2, dtype=torch.float64)
    for step, batch in enumerate(order.split(config.batch_size)[:num_steps]):
        indices = batch[rank::world]
        pixels, target = cache.pixels(indices.tolist()).to(device, non_blocking=True), truth[indices].to(device)
        if config.augment:
            generator = torch.Generator().manual_seed(hash((config.seed, epoch, step)) & 0x7FFFFFFF)
            pixels, target = augment(pixels, target, task, generator, place)
        is_valid = target.isfinite().all(dim=-1)
        if config.missing_joints == "zero":
            target, is_valid = torch.nan_to_num(target), torch.ones_like(is_valid)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
            output = model(pixels)
        head: Any = own.head
        loss, count = head.loss(output, target, is_valid)
        sums = _sum_over_workers(torch.stack([loss.detach().double().cpu(), count.double().cpu()]), world, device)
        if not torch.isfinite(sums[0]):
            ids = cache.labels["sample_id"][indices.numpy()].tolist()
            raise FloatingPointError(f"the loss is {sums[0].item()} in epoch {epoch + 1}, step {step + 1}; samples of this worker: {ids}")
        optimizer.zero_grad(set_to_none=True)
        # DDP averages gradients over workers; with this factor that is the gradient of the mean over the global batch.
        (loss * (world / sums[1].clamp_min(1).item())).backward()
        optimizer.step()
        schedule.step()
        total += sums
    return (total[0] / total[1].clamp_min(1)).item()


def _sum_over_workers(values: Tensor, world: int, device: torch.device) -> Tensor:
    if world == 1:
        return values
    values = values.to(device)
    torch.distributed.all_reduce(values)
    return values.cpu()


@torch.inference_mode()
def evaluate(
    model: PoseModel,
    task: Task,
    cache: SampleCache,
    rows: NDArray[np.int64],
    batch_size: int,
    place: tuple[int, int],
    device: torch.device,
) -> tuple[float, Score]:
    """Loss and score over the given rows of the cache, each exactly once, whatever the number of workers."""
    rank, world = place
    model.eval()
    head: Any = model.head
    mine = rows[rank::world]
    truth = torch.from_numpy(task.truth(cache.labels)).float()
    points = np.empty((len(mine), task.num_points, 2))
    total = torch.zeros(2, dtype=torch.float64)
    for start in range(0, len(mine), batch_size):
        indices = mine[start : start + batch_size]
        output = model(cache.pixels(indices.tolist()).to(device))
        target = truth[torch.from_numpy(indices)].to(device)
        loss, count = head.loss(output, target, target.isfinite().all(dim=-1))
        total += torch.stack([loss.double().cpu(), count.double().cpu()])
        points[start : start + len(indices)] = head.decode(output)[0].double().cpu().numpy()
    labels = {name: values[mine] for name, values in cache.labels.items()}
    score = task.evaluate(transform(labels["crop_to_image"], points), labels)
    if world > 1:
        gathered: list[Any] = [None] * world
        torch.distributed.all_gather_object(gathered, score)
        score = gathered[0]
        for other in gathered[1:]:
            score += other
    total = _sum_over_workers(total, world, device)
    return (total[0] / total[1].clamp_min(1)).item(), score
