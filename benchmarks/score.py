"""Pictures per second of `scoring` beside its two limits and a hand-written torch script that does the same work.

All read the same files on the same cores, one after the other, round by round. What is timed:

* posepipe: `scoring.score`, without what starts once (actors, their imports, the model), which is told apart, as `start`. Reading may run
  ahead of the actors by a number of shards, and does so while they start: the clock starts after so many commits and stops so many before
  the last one, so that about as many shards are read in its time as are committed. Cores that work in step commit in bursts, so the rate is
  taken from each commit to one that is a multiple of the cores later: from one burst's last commit to another's first would be too few.
* script: a torch DataLoader with torchvision's decoder and antialiased resize, one worker process per core, started before the clock;
  the same network on all cores; rows to Parquet, a file per shard. It keeps no status, resumes nothing and dies of a bad picture.
* decode: bytes in memory -> crops, a process per core.
* model: crops in memory -> points, on all cores: by one process with a thread per core, and by a process of one thread per core. The limit
  is the one of the two with the better median. With --use-gpu, crops on the GPU -> points there, by one process.
* nvJPEG (with --use-gpu): bytes in memory -> crops on the GPU, by torchvision's decoder for GPUs.

Decoding and the network share the cores, so nobody can have both limits: `bound` is what all cores reach if they do nothing but the two,
1 / (1 / decode + 1 / model). With the network on a GPU it is the slower of the two.
"""

import concurrent.futures
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
import torchvision
import tyro
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional

from benchmarks import machine
from benchmarks.ingest import find_pictures
from benchmarks.machine import CORES
from posepipe import cluster, geometry, images, model_file, planning, predictions, scoring, storage
from posepipe.config import Precision, ScoreConfig
from posepipe.ensemble import Ensemble
from posepipe.model_file import MODEL_FILE, ModelConfig
from posepipe.models import PoseModel, build_model, save_model
from posepipe.skeleton import NUM_JOINTS

LIMIT_SAMPLE = 64
SCRIPT_IMAGES = 1024 * CORES  # enough for a rate: its processes run before the clock starts
BATCH = 64  # of the script
BATCHES = 8  # between two looks at the clock
SECONDS = 20.0  # of each limit


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Pictures per second of `scoring` beside its two limits and a hand-written torch script that does the same work."""

    images_uri: str
    """Folder of JPEGs, of which those of 1280x720 and 1920x1080 are read."""
    model: str = "test_resnet"
    """Backbone: a timm name."""
    size: int = 128
    """Side of the crops in px."""
    num_images: int = 12288
    """Pictures per repetition; a folder that has fewer is gone through more than once."""
    shard_size: int = 128
    """Pictures per shard of posepipe and per file of the script."""
    repetitions: int = 3
    """Rounds over all contestants."""
    precision: Precision = "float32"
    """float32 or bfloat16, of all but the decoder."""
    use_gpu: bool = False
    """The networks run on the GPU."""
    num_actors: int = 0
    """Predictor processes of posepipe; 0: as many as it takes on its own."""
    cpus_per_actor: int = 0
    """CPUs of each; 0: as many as it takes on its own."""
    num_cpus: int = CORES
    """CPUs that Ray is told of."""
    output_uri: str = ""
    """JSON file of every repetition, the machine and the versions."""


class Pictures(torch.utils.data.Dataset[tuple[int, torch.Tensor, int, int]]):
    """What a torchvision user writes: decode the file, resize it."""

    def __init__(self, paths: list[str], size: int) -> None:
        self._paths, self._size = paths, size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor, int, int]:
        pixels = torchvision.io.decode_image(self._paths[index], mode=torchvision.io.ImageReadMode.RGB)
        return index, functional.resize(pixels, [self._size, self._size], antialias=True), pixels.shape[2], pixels.shape[1]


def build_run(config: BenchmarkConfig, folder: Path, paths: Sequence[str], predictions_uri: str) -> ScoreConfig:
    manifest_uri = str(folder / f"inputs-{len(paths)}.txt")
    storage.write_bytes(manifest_uri, "\n".join(paths).encode())
    return ScoreConfig(
        checkpoint_uri=(str(folder / "run"),),
        images_uri=manifest_uri,
        predictions_uri=predictions_uri,
        shard_size=config.shard_size,
        precision=config.precision,
        use_gpu=config.use_gpu,
        num_actors=config.num_actors,
        cpus_per_actor=config.cpus_per_actor,
    )


def posepipe_rate(config: BenchmarkConfig, folder: Path, paths: Sequence[str], starts: list[float]) -> float:
    with tempfile.TemporaryDirectory() as predicted:
        run = build_run(config, folder, paths, predicted)
        shard_bytes = config.shard_size * 3 * config.size**2
        num_actors = planning.choose_num_actors(run, config.num_images // config.shard_size)
        num_ahead = math.ceil(scoring.store_limit(run, num_actors, shard_bytes) / 2 / shard_bytes)
        started = time.time()
        if config.num_images < (least := (2 * num_ahead + max(num_ahead + 3, 2 * CORES)) * config.shard_size):
            raise ValueError(f"--num-images must be at least {least}, as reading may run {num_ahead} shards of {config.shard_size} ahead")
        scoring.score(run)
        # The last rows come in order of completion; the first commit is when everything had started.
        [done] = (Path(predicted) / "done").iterdir()
        commits = sorted(path.stat().st_mtime for path in done.iterdir())
        rows = predictions.read_predictions(predicted, ["status"])["status"].to_pylist()
    if rows.count("ok") != config.num_images:
        raise RuntimeError(f"posepipe scored {rows.count('ok')} of {config.num_images} pictures")
    starts.append(commits[0] - started)
    return config.shard_size * commit_rate(np.array(commits[num_ahead:-num_ahead]), CORES)


def commit_rate(commits: NDArray[np.float64], burst: int) -> float:
    """Commits per second.

    Args:
        commits: (N,) when each was, s, rising; at least two bursts.
        burst: how many may come at once.
    """
    span = (len(commits) - burst) // burst * burst
    if span < burst:
        raise ValueError(f"{len(commits)} commits are no two bursts of {burst}; take more pictures")
    return span / float(np.mean(commits[span:] - commits[:-span]))


def warm_up_rate(config: BenchmarkConfig, folder: Path, paths: Sequence[str]) -> float:
    """With the start, which takes most of so short a run."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as predicted:
        scoring.score(build_run(config, folder, paths, predicted))
    return len(paths) / (time.perf_counter() - start)


def script_rate(config: BenchmarkConfig, model: PoseModel, paths: list[str], loader: Any) -> float:
    torch.set_num_threads(CORES)
    torch.backends.cudnn.deterministic = False  # as its writer gets it, whatever posepipe's networks have set in this process
    device = find_device(config)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(), autocast:
        rows: list[dict[str, Any]] = []
        files = count = 0
        start = time.perf_counter()
        for indices, pixels, widths, heights in loader:
            points, confidence = model.predict(pixels.to(device, non_blocking=True))
            confidences = [None] * len(points) if confidence is None else list(confidence.cpu().numpy())
            scale = torch.stack([widths, heights], dim=1)[:, None] / config.size
            joints = ((points.cpu() + 0.5) * scale - 0.5).reshape(len(points), 2 * NUM_JOINTS).numpy()
            for place, index in enumerate(indices.tolist()):
                rows.append({"uri": paths[index], "joints": joints[place], "confidence": confidences[place]})
            if len(rows) >= config.shard_size:
                pq.write_table(pa.Table.from_pylist(rows), f"{folder}/{files}.parquet", compression="zstd")
                files, count, rows = files + 1, count + len(rows), []
        if rows:
            pq.write_table(pa.Table.from_pylist(rows), f"{folder}/{files}.parquet", compression="zstd")
        seconds = time.perf_counter() - start
    if count + len(rows) != len(paths):
        raise RuntimeError(f"the script scored {count + len(rows)} of {len(paths)} pictures")
    return len(paths) / seconds


class Limits:
    """Decoding and the network on all cores, by processes of one thread each.

    Where they run the network they keep their memory as posepipe's actors do; beside a GPU they only decode, as its readers do.
    """

    def __init__(self, config: BenchmarkConfig, checkpoint_uri: str, data: list[bytes]) -> None:
        context = multiprocessing.get_context("fork" if config.use_gpu else "spawn")
        arguments = (config, checkpoint_uri, data, context.Barrier(CORES))
        self._pool = concurrent.futures.ProcessPoolExecutor(CORES, context, _load, arguments)
        with unittest.mock.patch.dict(os.environ, cluster.NETWORK_ENV["env_vars"]):
            self.rate(decode_all)  # starts the processes

    def rate(self, once: Callable[[], int]) -> float:
        return sum(self._pool.map(_repeat, [once] * CORES))


_loaded: Any = None


def _load(*arguments: Any) -> None:
    global _loaded
    config, checkpoint_uri, data, barrier = arguments
    torch.set_num_threads(1)
    _loaded = (None if config.use_gpu else Network(config, checkpoint_uri)), config, data, barrier


def find_device(config: BenchmarkConfig) -> torch.device:
    return torch.device("cuda" if config.use_gpu else "cpu")


class Network:
    """The network as posepipe's actors run it, and a batch of crops where it runs."""

    def __init__(self, config: BenchmarkConfig, checkpoint_uri: str) -> None:
        checkpoint = model_file.read_checkpoint(checkpoint_uri)
        batch = planning.suitable_batch_size(config.use_gpu, [checkpoint.size])
        ensemble = Ensemble([checkpoint], [checkpoint.size], batch, 1, config.use_gpu, False, (1.0,), config.precision)
        [self._model] = ensemble.models
        crops = np.random.default_rng(0).integers(0, 256, (batch, config.size, config.size, 3), dtype=np.uint8)
        self._pixels = torch.from_numpy(crops).permute(0, 3, 1, 2).to(find_device(config))

    @torch.inference_mode()
    def predict(self) -> int:
        for _ in range(BATCHES):
            points, _ = self._model.predict(self._pixels)
        points.cpu()  # Waits for a GPU.
        return BATCHES * len(self._pixels)


def _repeat(once: Callable[[], int]) -> float:
    """Pictures per second of this process; all begin at the same time."""
    once()
    _loaded[3].wait()
    return repeat(once)


def repeat(once: Callable[[], int]) -> float:
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        count += once()
    return count / (time.perf_counter() - start)


def decode_all() -> int:
    _, config, data, _ = _loaded
    for picture in data:
        header = images.read_header(picture)
        size = (config.size, config.size)
        images.crop(picture, header, geometry.frame_image(header.width, header.height, size), size)
    return len(data)


def predict_all() -> int:
    network: Network = _loaded[0]
    return network.predict()


def model_rate(config: BenchmarkConfig, checkpoint_uri: str) -> float:
    torch.set_num_threads(CORES)
    network = Network(config, checkpoint_uri)
    network.predict()
    return repeat(network.predict)


def gpu_decoder_rate(config: BenchmarkConfig, data: list[bytes]) -> float:
    pictures = [torch.frombuffer(bytearray(each), dtype=torch.uint8) for each in data]

    def decode() -> int:
        decoded = torchvision.io.decode_jpeg(pictures, torchvision.io.ImageReadMode.RGB, device="cuda")
        crops = [functional.resize(pixels, [config.size, config.size], antialias=True) for pixels in decoded]
        torch.stack(crops).sum().item()  # Waits for the GPU.
        return len(pictures)

    decode()
    return repeat(decode)


def measure(config: BenchmarkConfig, folder: Path) -> tuple[dict[str, list[float]], list[float]]:
    """Pictures per second of every repetition by contestant, and posepipe's seconds before its first commit."""
    pictures = find_pictures(Path(config.images_uri))
    paths = [str(pictures[index % len(pictures)].resolve()) for index in range(config.num_images)]
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(
            task="pose",
            model=config.model,
            regression_head="heatmap",
            feature_stride=16,
            size=(config.size, config.size),
            framing="image",
            mean_points=[[0.5, 0.5]] * NUM_JOINTS,
            samples_fingerprint="",
        )
    ).eval()
    (folder / "run").mkdir()
    save_model(model, str(folder / "run" / MODEL_FILE))
    data = [Path(path).read_bytes() for path in paths[:: max(1, len(paths) // LIMIT_SAMPLE)]]
    multiprocessing.set_forkserver_preload(["posepipe.ensemble", "posepipe.scoring"])
    loader = torch.utils.data.DataLoader(
        Pictures(paths[:SCRIPT_IMAGES], config.size),
        batch_size=BATCH,
        num_workers=CORES,
        pin_memory=config.use_gpu,
        persistent_workers=True,
        multiprocessing_context="forkserver",
    )
    limits = Limits(config, str(folder / "run"), data)
    starts: list[float] = []
    on_device = model.to(find_device(config))
    contestants: dict[str, Callable[[], float]] = {
        "posepipe": lambda: posepipe_rate(config, folder, paths, starts),
        "script": lambda: script_rate(config, on_device, paths[:SCRIPT_IMAGES], loader),
        "decode": lambda: limits.rate(decode_all),
        "model": lambda: model_rate(config, str(folder / "run")),
    }
    if config.use_gpu:
        contestants["nvJPEG"] = lambda: gpu_decoder_rate(config, data)
    else:
        contestants["model, a process per core"] = lambda: limits.rate(predict_all)
    machine.start_ray(config.num_cpus)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for round_index in range(config.repetitions + 1):
        order = list(contestants.items())
        for name, run in order if round_index % 2 else reversed(order):
            rate = warm_up_rate(config, folder, paths[:SCRIPT_IMAGES]) if name == "posepipe" and not round_index else run()
            if round_index:
                rates[name].append(rate)
            print(f"{f'round {round_index}' if round_index else 'warm-up'}: {name} {rate:.1f} img/s", file=sys.stderr, flush=True)
    ray.shutdown()
    return rates, starts


def main() -> None:
    config = tyro.cli(BenchmarkConfig)
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="posepipe-score-") as folder:
        rates, starts = measure(config, Path(folder))
    medians = machine.medians(rates)
    network = max(rate for name, rate in medians.items() if name.startswith("model"))
    slower = min(medians["decode"], network)
    bound = slower if config.use_gpu else 1 / (1 / medians["decode"] + 1 / network)
    print(f"{'':26}{'img/s':>8}  {'[min .. max]':18}{'/ slower limit':>15}{'/ bound':>9}{'/ script':>10}")
    for name, values in rates.items():
        ratios = f"{medians[name] / slower:15.3f}{medians[name] / bound:9.3f}{medians[name] / medians['script']:10.2f}"
        print(f"{name:26}{medians[name]:8.1f}  {machine.spread(values):18}{ratios}")
    print(f"{'bound':26}{bound:8.1f}  {'':18}{bound / slower:15.3f}{1:9.3f}{bound / medians['script']:10.2f}")
    print(f"start: {statistics.median(starts):.1f} s from the call to posepipe's first committed shard of {config.shard_size}")
    if config.output_uri:
        figures = {
            "images_per_second": rates,
            "seconds_to_first_commit": starts,
            "medians": {**medians, "bound": bound},
            "posepipe_to_slower_limit": medians["posepipe"] / slower,
            "posepipe_to_script": medians["posepipe"] / medians["script"],
        }
        storage.write_json(config.output_uri, machine.record("score", figures, load_before))


if __name__ == "__main__":
    main()
