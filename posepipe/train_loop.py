"""What every training worker runs: epochs over the sample cache, validation, checkpoints.

Validation counts every row once, whatever the number of workers.
"""

import logging
import math
import os
import sys
import tempfile
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor

from posepipe import images, snapshots, storage
from posepipe.batches import split_batches
from posepipe.checkpoints import Checkpoints, Progress
from posepipe.config import TrainConfig
from posepipe.geometry import transform
from posepipe.global_batch import GlobalBatch, share
from posepipe.model_file import MODEL_FILE
from posepipe.models import PoseModel, load_model
from posepipe.optimizers import WeightAverage, build_optimizer, build_schedule, learning_rate_factor
from posepipe.sample_cache import SampleCache
from posepipe.tasks import TASKS, Score, Task
from posepipe.train_steps import NonFiniteError, Steps, build_truth
from posepipe.watching import Watcher

MAX_TRAIN_SCORED = 2000  # of the train people, whose score is shown beside that of validation


def train_loop(arguments: dict[str, Any]) -> str | None:
    """What every worker runs. Returns why the run cannot go on, where starting it again would not help; None where it is complete."""
    config = TrainConfig(**arguments["config"])
    task = TASKS[config.task]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.cpus_per_worker)
    if config.deterministic:
        make_deterministic()
    else:
        # Every step has the same shapes: what is quickest for them is found out in the first.
        torch.backends.cudnn.benchmark = True
    # Ray Train logs each report through the root logger, and Ray Data warns that its bars are off.
    for name, level in {"": logging.WARNING, "ray.data": logging.WARNING, "ray.data._internal.progress": logging.ERROR}.items():
        logging.getLogger(name).setLevel(level)
    device = ray.train.torch.get_device()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, MODEL_FILE)
        storage.write_bytes(path, ray.get(arguments["initial"]))
        own, _ = load_model(path)
    size, margin, num_threads, is_pinned = own.config.size, arguments["margin"], config.cpus_per_worker, device.type == "cuda"
    cache = SampleCache(ray.train.get_dataset_shard("train"), size, margin, num_threads, is_pinned=is_pinned)
    val_margin = (0, 0) if arguments["cache"] == "decoded" else margin
    val_cache = SampleCache(ray.train.get_dataset_shard("val"), size, val_margin, num_threads, is_pinned=is_pinned)
    num_steps = len(split_batches(torch.arange(len(cache)), config.batch_size))
    batch = GlobalBatch(rank, world)
    average = WeightAverage(own, config.ema_decay) if config.ema_decay else None
    share(own, batch, device)
    optimizer = build_optimizer(own, config)
    schedule = build_schedule(optimizer, config, num_steps * config.epochs)
    chosen = snapshots.choose_people(task.truth(val_cache.labels), config.num_snapshot_people)
    snapshot_epochs = snapshots.choose_epochs(config.epochs, config.num_snapshot_epochs)
    checkpoints = Checkpoints(own, optimizer, schedule, average, is_writer=rank == 0)
    progress = checkpoints.restore() or Progress([], _start_snapshots(task, val_cache, chosen))
    # prepare_model moves the parameters, so the optimizer's state has to follow them.
    model = ray.train.torch.prepare_model(own)
    optimizer.load_state_dict(optimizer.state_dict())
    shown = average.model.to(device) if average else own
    truth = torch.from_numpy(task.truth(cache.labels)).float()
    steps = Steps(config, task, model, own, cache, truth, optimizer, schedule, average, batch, device, checkpoints.save)
    place = (arguments["run_uri"], arguments["run_id"], config.name, arguments["config"], config.logger)
    watcher = Watcher(*place, is_new=not progress.history) if rank == 0 else None
    is_complete = False
    try:
        while progress.epoch < config.epochs and not is_stalled(progress.history, config.patience):
            steps.run_epoch(progress)
            row = _end_epoch(config, progress, steps, shown, val_cache)
            kept = progress.snapshots
            if watcher is not None:
                if row["epoch"] in snapshot_epochs and len(chosen):
                    kept = snapshots.extend(kept, row["epoch"], _predict(shown, val_cache, chosen, device))
                _print_row(config, task, row)
                watcher.show_epoch(row, progress.losses)
            progress = progress.end_epoch(row, kept)
            checkpoints.save(progress)
        is_complete = True
    except NonFiniteError as error:  # The same on all workers.
        return str(error)
    finally:
        if watcher is not None:
            watcher.close(is_complete)
    return None


def _end_epoch(config: TrainConfig, progress: Progress, steps: Steps, shown: PoseModel, val_cache: SampleCache) -> dict[str, Any]:
    """Validates, and returns the epoch's row of the history."""
    task, device, place = steps.task, steps.device, (steps.batch.rank, steps.batch.world)
    val_loss, score = evaluate(shown, task, val_cache, np.arange(len(val_cache)), config, place, device)
    if not math.isfinite(val_loss):
        raise NonFiniteError(
            f"the validation loss is {val_loss} after epoch {progress.epoch + 1}; take a lower --learning-rate, under another --name"
        )
    # As many as there are for validation, in eval mode and not augmented: the two scores differ in the people alone.
    num_scored = min(len(steps.cache), len(val_cache), MAX_TRAIN_SCORED)
    train_rows = np.linspace(0, len(steps.cache) - 1, num_scored).round().astype(int)
    _, train_score = evaluate(shown, task, steps.cache, train_rows, config, place, device)
    batches = split_batches(torch.arange(len(steps.cache)), config.batch_size)
    trained = sum(len(batch) for batch, loss in zip(batches, progress.losses, strict=True) if math.isfinite(loss))
    return {
        "epoch": progress.epoch + 1,
        "train_loss": progress.loss_sum / max(1.0, progress.num_points),
        **{f"train_{name}": value for name, value in (train_score.summary() if train_score.num_scored else {}).items()},
        "learning_rate": config.learning_rate * learning_rate_factor(config, steps.schedule.last_epoch - 1, len(batches) * config.epochs),
        "images_per_second": trained / (progress.seconds["data"] + progress.seconds["compute"]),
        "val_loss": val_loss,
        **{f"val_{name}": value for name, value in score.summary().items()},
        "objective": score.objective,
        "num_workers": place[1],
        "skipped_steps": sum(not math.isfinite(loss) for loss in progress.losses),
        **{f"seconds_{name}": seconds for name, seconds in progress.seconds.items()},
        "gpu_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def is_stalled(history: list[dict[str, Any]], patience: int) -> bool:
    """Whether the last `patience` epochs brought nothing better than those before; never where patience is 0."""
    scores = [row["objective"] for row in history]
    return bool(patience) and len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])


def make_deterministic() -> None:
    """From here on torch takes algorithms that give the same bits every time, and refuses what has none; before CUDA is used."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _print_row(config: TrainConfig, task: Task, row: dict[str, Any]) -> None:
    shown = ", ".join(f"{name} {100 * row[f'val_{name}']:.2f}" for name in task.metric_names if row[f"val_{name}"] is not None)
    seconds = ", ".join(f"{name} {row[f'seconds_{name}']:.1f} s" for name in ("data", "compute", "checkpoint"))
    skipped = f", {row['skipped_steps']} steps left out" if row["skipped_steps"] else ""
    line = (
        f"{config.name} epoch {row['epoch']}/{config.epochs}: "
        f"loss {row['train_loss']:.5g}, val loss {row['val_loss']:.5g}, {shown}{skipped}; "
        f"{row['images_per_second']:.3g} images/s ({seconds})"
    )
    # Ray Train patches print to log each line a second time.
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _start_snapshots(task: Task, cache: SampleCache, chosen: NDArray[np.int64]) -> pa.Table:
    crops = [images.encode_jpeg(pixels) for pixels in cache.pixels(chosen.tolist()).permute(0, 2, 3, 1).numpy()] if len(chosen) else []
    return snapshots.start(cache.labels["sample_id"][chosen].tolist(), crops, task.truth(cache.labels)[chosen])


@torch.inference_mode()
def _predict(model: PoseModel, cache: SampleCache, rows: NDArray[np.int64], device: torch.device) -> NDArray[np.float64]:
    """(N, num_points, 2) crop px."""
    model.eval()
    points, _ = model.predict(cache.pixels(rows.tolist()).to(device))
    return points.double().cpu().numpy()


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
    config: TrainConfig,
    place: tuple[int, int],
    device: torch.device,
) -> tuple[float, Score]:
    """Loss, as it is trained, and score over the given rows of the cache, each exactly once, whatever the number of workers."""
    rank, world = place
    model.eval()
    head: Any = model.head
    mine = rows[rank::world]
    truth = torch.from_numpy(task.truth(cache.labels)).float()
    points = np.empty((len(mine), task.num_points, 2))
    total = torch.zeros(2, dtype=torch.float64)
    for start in range(0, len(mine), config.batch_size):
        indices = mine[start : start + config.batch_size]
        output = model(cache.pixels(indices.tolist()).to(device))
        target = truth[torch.from_numpy(indices)].to(device)
        loss, count = head.loss(output, *build_truth(target, task, model.config.size, config.missing_joints))
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
