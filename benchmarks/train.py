"""Images per second of `training` beside the step alone, a plain DDP script and Ray's documented pattern.

All train the same network on the same samples with as many workers and threads, one after the other, round by round. What is timed:

* posepipe: `training.train`; an epoch's images by its seconds of waiting for data and computing, from history.json.
* limit: posepipe's optimizer step on a batch that is on the device already, augmented. Nobody who also fetches or augments can be faster.
* script: DDP and a DataLoader that decodes the same crops and augments them with torchvision, Adam as its writer gets it by default.
* iter_torch_batches: Ray's documented pattern: decoding and augmenting in `map_batches`, one pass over them in every epoch, not shuffled.

Rates are of the epochs from the second on. What starts once (processes, imports, decoding into the object store, the first batches) is
`start`: the end of the first epoch after the call, less what the second one takes, validation included where there is one.
The model's FLOP are those of its products and convolutions; their share of what a product of large matrices reaches is `of matrix rate`.
`GPU busy` is the share of those epochs in which a kernel ran, by nvidia-smi, validation and checkpoints included. The second table is of
one step of posepipe's, each part waited for.
"""

import dataclasses
import os
import statistics
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import ray
import ray.data
import ray.train
import tyro
from ray.train import RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from benchmarks import machine, train_peers
from benchmarks.train_peers import Job
from posepipe import cluster, samples, storage, training
from posepipe.config import Precision, RegressionHead, TrainConfig, check_choice
from posepipe.model_file import MODEL_FILE, ModelConfig
from posepipe.models import PoseModel, build_model, save_model
from posepipe.skeleton import NUM_JOINTS

Contestant = Literal["posepipe", "limit", "script", "iter_torch_batches", "limit-compiled", "limit-contiguous"]
WITH_RAY = ("posepipe", "iter_torch_batches")
# What a run of posepipe has from the benchmark's settings.
SHARED = (
    "regression_head", "feature_stride", "batch_size", "precision", "augment", "epochs", "num_workers", "cpus_per_worker", "use_gpu",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainBenchmark:
    """Images per second of `training` beside the step alone, a plain DDP script and Ray's documented pattern."""

    samples_uri: str
    """What jobs.prepare wrote; the whole train split is an epoch."""
    models: tuple[str, ...] = ("resnet18",)
    """Backbones: timm names."""
    regression_head: RegressionHead = "heatmap"
    """Of all networks."""
    feature_stride: int = 16
    """Cut the backbones at the last stage with at most this stride."""
    batch_size: int = 32
    """Samples per optimizer step over all workers; a multiple of them."""
    precision: Precision = "float32"
    """float32 or bfloat16."""
    augment: bool = True
    """Augment the crops."""
    epochs: int = 3
    """Passes over the train split in each repetition, of which the first is not in the rates."""
    num_workers: int = 1
    """Data-parallel workers."""
    cpus_per_worker: int = 1
    """CPUs (and torch threads) of each worker."""
    loader_workers: int = 1
    """DataLoader processes of each worker of the script."""
    use_gpu: bool = False
    """One GPU per worker."""
    contestants: tuple[Contestant, ...] = ("posepipe", "limit", "script", "iter_torch_batches")
    """Who is measured; limit-compiled is the step through torch.compile, limit-contiguous the step with channels apart in memory."""
    repetitions: int = 3
    """Rounds over all contestants."""
    num_cpus: int = 0
    """CPUs that Ray is told of; 0: the cores, but at least one more than the workers take, for Ray's pattern to decode on."""
    output_uri: str = ""
    """JSON file of every repetition, the machine and the versions."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_workers", "cpus_per_worker", "loader_workers", "repetitions"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.epochs < 2:
            raise ValueError(f"--epochs must be at least 2, as the first is not in the rates, got {self.epochs}")
        if self.batch_size % self.num_workers:
            raise ValueError(f"--batch-size must be a multiple of --num-workers, got {self.batch_size} for {self.num_workers}")
        for name in self.contestants:
            check_choice("contestant", name, get_args(Contestant))


class Clock(UserCallback):
    """Writes down when each epoch of posepipe was reported; Ray runs it in a process of its own."""

    def __init__(self, path: str) -> None:
        self._path = path

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        with open(self._path, "a") as file:
            file.write(f"{time.time()}\n")


def posepipe_run(config: TrainConfig, folder: Path) -> dict[str, Any]:
    name = f"{config.model}-{len(list(folder.glob('*.clock')))}"
    clock = folder / f"{name}.clock"
    start = time.time()
    result = training.train(dataclasses.replace(config, name=name, runs_uri=str(folder / "runs")), callbacks=[Clock(str(clock))])
    history = storage.read_json(storage.join_uri(result["run_uri"], "history.json"))
    ends = [float(line) for line in clock.read_text().split()]
    return {
        "images_per_second": statistics.median(row["images_per_second"] for row in history[1:]),
        "start": ends[0] - start - (ends[1] - ends[0]),
        "window": (ends[0], ends[-1]),
        "seconds_data": statistics.median(row["seconds_data"] for row in history[1:]),
        "gpu_memory_bytes": history[-1]["gpu_memory_bytes"] or 0,
    }


def ray_run(config: TrainConfig, job: Job, folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as results:
        start = time.time()
        dataset = ray.data.read_parquet(samples.list_split(config.samples_uri, "train")).select_columns(["crop", "joints"])
        trainer = TorchTrainer(
            train_peers.ray_loop,
            train_loop_config={"config": dataclasses.asdict(config), "model": job.model, "results": results},
            scaling_config=ScalingConfig(
                num_workers=config.max_workers,
                use_gpu=config.use_gpu,
                resources_per_worker={"CPU": config.cpus_per_worker, **({"GPU": 1} if config.use_gpu else {})},
            ),
            run_config=RunConfig(storage_path=str(folder / "ray"), name=Path(results).name),
            datasets={
                "train": dataset.map_batches(
                    train_peers.decode_batch, batch_size=config.batch_size, fn_kwargs={"size": job.size, "is_augmented": config.augment}
                )
            },
        )
        trainer.fit()
        return summarise([storage.read_json(str(path)) for path in Path(results).iterdir()], start)


def summarise(workers: list[dict[str, Any]], start: float) -> dict[str, Any]:
    """Images per second of all workers together, from the second epoch on, and what started once."""
    epochs = list(zip(*(worker["rows"] for worker in workers), strict=True))
    rates = [sum(row["images"] for row in rows) / (max(row["end"] for row in rows) - min(row["begin"] for row in rows)) for rows in epochs]
    ends = [max(row["end"] for row in rows) for rows in epochs]
    return {
        "images_per_second": statistics.median(rates[1:]),
        "start": ends[0] - start - (ends[1] - ends[0]),
        "window": (ends[0], ends[-1]),
        "gpu_memory_bytes": max(worker["gpu_memory_bytes"] for worker in workers),
    }


def process_run(job: Job) -> dict[str, Any]:
    start = time.time()
    # What posepipe's workers have the limit has too; the script has what its writer gets by default.
    with unittest.mock.patch.dict(os.environ, cluster.NETWORK_ENV["env_vars"] if job.is_ready else {}):
        return summarise(train_peers.run_apart(train_peers.run_worker, job.config.max_workers, job), start)


def build_contestants(config: TrainBenchmark, run: TrainConfig, job: Job, folder: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    ready = dataclasses.replace(job, is_ready=True)
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "posepipe": lambda: posepipe_run(run, folder),
        "limit": lambda: process_run(ready),
        "script": lambda: process_run(job),
        "iter_torch_batches": lambda: ray_run(run, job, folder),
        "limit-compiled": lambda: process_run(dataclasses.replace(ready, is_compiled=True)),
        "limit-contiguous": lambda: process_run(dataclasses.replace(ready, is_channels_last=False)),
    }
    return {name: runs[name] for name in config.contestants}


def build_network(run: TrainConfig, manifest: dict[str, Any]) -> PoseModel:
    """What all but posepipe start from; posepipe's own differs in where its head starts."""
    return build_model(
        ModelConfig(
            task="pose",
            model=run.model,
            regression_head=run.regression_head,
            feature_stride=run.feature_stride,
            size=samples.crop_size(manifest),
            framing=manifest["framing"],
            mean_points=[[0.5, 0.5]] * NUM_JOINTS,
            samples_fingerprint="",
        )
    )


def measure(config: TrainBenchmark, folder: Path) -> dict[str, dict[str, Any]]:
    """What every repetition of every contestant gave, and the rates of the machine, by model."""
    if set(config.contestants) & set(WITH_RAY):
        machine.start_ray(config.num_cpus or max(machine.CORES, config.num_workers * config.cpus_per_worker + 1))
        cluster.connect()
    manifest = samples.read_manifest(config.samples_uri)
    size = samples.crop_size(manifest)
    crops = folder / "crops"
    num_images = train_peers.write_crops(crops, map(storage.read_table, samples.list_split(config.samples_uri, "train")))
    measured: dict[str, dict[str, Any]] = {}
    contestants: dict[str, dict[str, Callable[[], dict[str, Any]]]] = {}
    for model in config.models:
        run = TrainConfig(
            samples_uri=config.samples_uri,
            runs_uri=str(folder),
            name="benchmark",
            model=model,
            num_snapshot_people=0,
            **{name: getattr(config, name) for name in SHARED},
        )
        path = folder / model / MODEL_FILE
        path.parent.mkdir()
        save_model(build_network(run, manifest), str(path))
        job = Job(run, str(crops), str(path), size, num_images, is_ready=False, loader_workers=config.loader_workers)
        contestants[model] = build_contestants(config, run, job, folder)
        [rates] = train_peers.run_apart(train_peers.measure_rates, 1, job)
        measured[model] = {**rates, "runs": {name: [] for name in config.contestants}}
    with machine.GpuWatch() as watch:
        for repetition in range(config.repetitions):
            for model, runs in contestants.items():
                for name, contest in runs.items():
                    found = contest()
                    found["gpu_busy"] = watch.mean(*found.pop("window"))
                    measured[model]["runs"][name].append(found)
                    line = f"round {repetition + 1}: {model} {name} {found['images_per_second']:.1f} img/s"
                    print(line, file=sys.stderr, flush=True)
    if ray.is_initialized():
        ray.shutdown()
    return measured


def print_table(measured: dict[str, dict[str, Any]], num_workers: int) -> dict[str, dict[str, float]]:
    """The table; returns the medians of images per second."""
    medians = {
        model: {name: statistics.median(run["images_per_second"] for run in runs) for name, runs in found["runs"].items()}
        for model, found in measured.items()
    }
    titles = f"{'/ limit':>9}{'/ script':>10}{'of matrix rate':>16}{'start, s':>10}{'GPU GiB':>9}{'GPU busy':>10}"
    print(f"{'':18}{'':20}{'img/s':>8}  {'[min .. max]':20}{titles}")
    for model, found in measured.items():
        for name, runs in found["runs"].items():
            rates, rate = [run["images_per_second"] for run in runs], medians[model][name]
            ratios = [f"{rate / medians[model][peer]:.3f}" if peer in medians[model] else "" for peer in ("limit", "script")]
            share = rate * found["flop_per_image"] / (num_workers * found["matrix_flop_per_second"])
            memory = max(run["gpu_memory_bytes"] for run in runs) / 2**30
            busy = [run["gpu_busy"] for run in runs if run["gpu_busy"] is not None]
            print(
                f"{model:18}{name:20}{rate:8.1f}  {machine.spread(rates):20}{ratios[0]:>9}{ratios[1]:>10}{share:16.2f}"
                f"{statistics.median(run['start'] for run in runs):10.1f}{f'{memory:.2f}' if memory else '':>9}"
                f"{f'{statistics.median(busy):.2f}' if busy else '':>10}"
            )
    print(f"\n{'ms of a step':18}" + "".join(f"{part:>12}" for part in train_peers.PARTS))
    for model, found in measured.items():
        print(f"{model:18}" + "".join(f"{1000 * found['step_seconds'][part]:12.2f}" for part in train_peers.PARTS))
    return medians


def main() -> None:
    config = tyro.cli(TrainBenchmark)
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="posepipe-train-") as folder:
        measured = measure(config, Path(folder))
    medians = print_table(measured, config.num_workers)
    if config.output_uri:
        figures = {"settings": dataclasses.asdict(config), "measured": measured, "medians": medians}
        report = machine.record("train", figures, load_before)
        storage.write_json(config.output_uri, report)


if __name__ == "__main__":
    main()
