"""What `benchmarks.train` measures training against: the step alone, a plain DDP script, and Ray's documented pattern.

All train the network that posepipe trains, with its regression head and loss, so that only the way of the pixels to it differs.
"""

import json
import random
import resource
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.multiprocessing
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from posepipe.augmentation import augment
from posepipe.batches import send
from posepipe.config import TrainConfig
from posepipe.models import load_model
from posepipe.optimizers import build_optimizer
from posepipe.tasks import TASKS
from posepipe.train_steps import find_valid

COLOURS = v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.4)
BLUR = v2.RandomApply([v2.GaussianBlur(9, (0.5, 1.5))], p=0.2)
HOLE = v2.RandomErasing(p=0.3, scale=(0.01, 0.09), ratio=(0.33, 3.0))
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
PARTS = ("upload", "augment", "forward", "backward", "optimizer")
NUM_TIMED = 12  # the first two of which only warm up
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Job:
    """What a worker of a peer does.

    Attributes:
        config: of the run that posepipe makes of the same.
        crops: folder of `write_crops`.
        model: file of the network before its first step.
        size: width and height of the crops without their margin.
        num_images: of the train split.
        is_ready: the step alone, on a batch that is on the device already; otherwise the DDP script.
        loader_workers: DataLoader processes of each worker of the script.
        is_compiled: by torch.compile.
        is_channels_last: in memory, as posepipe's networks are.
    """

    config: TrainConfig
    crops: str
    model: str
    size: tuple[int, int]
    num_images: int
    is_ready: bool
    loader_workers: int = 1
    is_compiled: bool = False
    is_channels_last: bool = True


def augment_crop(pixels: Tensor, joints: Tensor, size: tuple[int, int], is_augmented: bool) -> Batch:
    """What a torchvision user writes: flip, affine, colours, blur and a hole of one crop, on the CPU.

    Args:
        pixels: (3, height + 2 y, width + 2 x) uint8.
        joints: (16, 2) px of the crop without its margin.
        size: width and height without the margin.
        is_augmented: otherwise only the margin is cut off.
    """
    width, height = size
    if is_augmented:
        middle = torch.tensor([width - 1, height - 1]) / 2
        if random.random() < 0.5:
            pixels = functional.horizontal_flip(pixels)
            joints = torch.stack([width - 1 - joints[:, 0], joints[:, 1]], dim=1)[list(TASKS["pose"].flip_order)]
        angle, scale = random.uniform(-30, 30), random.uniform(0.75, 1.25)
        shift = [random.uniform(-0.05, 0.05) * side for side in size]
        pixels = functional.affine(pixels, angle, shift, scale, [0.0, 0.0], interpolation=v2.InterpolationMode.BILINEAR)
        turn = torch.tensor(angle).deg2rad()
        linear = scale * torch.stack([torch.stack([turn.cos(), -turn.sin()]), torch.stack([turn.sin(), turn.cos()])])
        joints = (joints - middle) @ linear.T + middle + torch.tensor(shift)
    pixels = functional.center_crop(pixels, [height, width])
    return (HOLE(BLUR(COLOURS(pixels))) if is_augmented else pixels), joints


class Crops(torch.utils.data.Dataset[Batch]):
    """JPEG files and an array of joints.

    Attributes:
        paths: of the files.
    """

    def __init__(self, folder: str, size: tuple[int, int], is_augmented: bool) -> None:
        self.paths = sorted(str(path) for path in Path(folder).glob("*.jpg"))
        self._joints = torch.from_numpy(np.load(Path(folder) / "joints.npy"))
        self._size, self._is_augmented = size, is_augmented

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Batch:
        pixels = torchvision.io.decode_image(self.paths[index], mode=torchvision.io.ImageReadMode.RGB)
        return augment_crop(pixels, self._joints[index], self._size, self._is_augmented)


def train_step(
    model: nn.Module, own: Any, optimizer: torch.optim.Optimizer, batch: Batch, config: TrainConfig, device: torch.device
) -> None:
    pixels, target = (part.to(device, non_blocking=True) for part in batch)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
        output = model(pixels)
    loss, count = own.head.loss(output, target, find_valid(target, TASKS["pose"], own.config.size))
    optimizer.zero_grad(set_to_none=True)
    (loss / count.clamp_min(1)).backward()
    optimizer.step()


def run_epochs(config: TrainConfig, device: torch.device, batches: Callable[[int], Iterable[Batch]], step: Callable[[Batch], None]) -> Any:
    """Times when epochs began and ended, and how many images of this worker were in each."""
    rows = []
    for epoch in range(config.epochs):
        begin, count = time.time(), 0
        for batch in batches(epoch):
            step(batch)
            count += len(batch[0])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        rows.append({"begin": begin, "end": time.time(), "images": count})
    return rows


def describe_worker(device: torch.device) -> dict[str, int]:
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {"gpu_memory_bytes": memory, "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def run_worker(rank: int, world: int, port: int, job: Job, results: Any) -> None:
    config = job.config
    torch.set_num_threads(config.cpus_per_worker)
    device = torch.device("cuda", rank) if config.use_gpu else torch.device("cpu")
    if config.use_gpu:
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = job.is_ready
    if world > 1:
        backend = "nccl" if config.use_gpu else "gloo"
        torch.distributed.init_process_group(backend, f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    own = load_model(job.model)[0].to(device)
    if not job.is_channels_last:
        own.to(memory_format=torch.contiguous_format)
    own.train()
    # The limit has posepipe's optimizer and settings, the script what its writer gets by default.
    optimizer = build_optimizer(own, config) if job.is_ready else torch.optim.Adam(own.parameters(), lr=config.learning_rate)
    model: nn.Module = own
    if world > 1:
        model = nn.parallel.DistributedDataParallel(own, device_ids=[rank] if config.use_gpu else None)
    if job.is_compiled:
        model = torch.compile(model)  # type: ignore[assignment]
    size = config.batch_size // world
    dataset = Crops(job.crops, job.size, config.augment)
    if job.is_ready:
        loaded = [dataset[index % len(dataset)] for index in range(size)]
        pixels, target = torch.stack([each[0] for each in loaded]).float().to(device), torch.stack([each[1] for each in loaded]).to(device)
        if job.is_channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        batches: Callable[[int], Iterable[Batch]] = lambda epoch: [(pixels, target)] * (job.num_images // config.batch_size)  # noqa: E731
    else:
        sampler: Any = torch.utils.data.DistributedSampler(dataset, world, rank) if world > 1 else None
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=size,
            shuffle=sampler is None,
            sampler=sampler,
            num_workers=job.loader_workers,
            persistent_workers=True,
            pin_memory=config.use_gpu,
            drop_last=True,
            multiprocessing_context="forkserver",
        )

        def batches(epoch: int) -> Iterable[Batch]:
            if sampler is not None:
                sampler.set_epoch(epoch)
            return loader

    rows = run_epochs(config, device, batches, lambda batch: train_step(model, own, optimizer, batch, config, device))
    results.put({"rank": rank, "rows": rows, **describe_worker(device)})
    if world > 1:
        torch.distributed.destroy_process_group()


def run_apart(target: Callable[..., None], world: int, *arguments: Any) -> list[dict[str, Any]]:
    """What `target(rank, world, port, *arguments, results)` puts into `results`, in `world` processes at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = torch.multiprocessing.spawn(target, (world, port, *arguments, results), nprocs=world, join=False)
    while not processes.join():
        pass
    return [results.get() for _ in range(world)]


def measure_rates(rank: int, world: int, port: int, job: Job, results: Any) -> None:
    """FLOP of a training step per image, FLOP per second of a large product in the run's precision, and where the time of a step goes."""
    config = job.config
    torch.set_num_threads(config.cpus_per_worker)
    device = torch.device("cuda" if config.use_gpu else "cpu")
    own = load_model(job.model)[0].to(device).train()
    torch.backends.cudnn.benchmark = True
    counter = FlopCounterMode(display=False)
    with counter:
        head: Any = own.head
        target = torch.zeros(2, 16, 2, device=device)
        pixels = torch.zeros(2, 3, job.size[1], job.size[0], device=device)
        head.loss(own(pixels), target, torch.ones(2, 16, dtype=torch.bool, device=device))[0].backward()
    side = MATRIX_SIDE[device.type]
    matrix = torch.randn(side, side, device=device, dtype=getattr(torch, config.precision))
    product = _clock([lambda: matrix @ matrix], device)[0]
    results.put(
        {
            "flop_per_image": counter.get_total_flops() / 2,
            "matrix_flop_per_second": 2 * side**3 / product,
            "step_seconds": _measure_parts(own, job, device),
        }
    )


def _clock(parts: list[Callable[[], Any]], device: torch.device) -> list[float]:
    """Median seconds of each of these, which are done in turn and waited for."""
    seconds: list[list[float]] = [[] for _ in parts]
    for _ in range(NUM_TIMED):
        for part, times in zip(parts, seconds, strict=True):
            start = time.perf_counter()
            part()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return [float(np.median(times[2:])) for times in seconds]


def _measure_parts(own: Any, job: Job, device: torch.device) -> dict[str, float]:
    """Seconds of each part of one worker's step of posepipe's, from pixels on the CPU to new weights."""
    config, (width, height) = job.config, job.size
    picture = torchvision.io.decode_image(next(iter(Crops(job.crops, job.size, False).paths)))
    margin = (picture.shape[2] - width) // 2, (picture.shape[1] - height) // 2
    if not config.augment:  # the margin is for augmentation
        picture = picture[:, margin[1] : margin[1] + height, margin[0] : margin[0] + width]
    count = config.batch_size // config.max_workers
    rows = torch.empty((count, *picture.shape[1:], 3), dtype=torch.uint8, pin_memory=config.use_gpu)
    stored = rows.permute(0, 3, 1, 2)
    stored[:] = picture
    points = torch.rand(count, 16, 2) * torch.tensor(job.size)
    optimizer = build_optimizer(own, config)
    generator = torch.Generator().manual_seed(0)
    made: dict[str, Any] = {}

    def upload() -> None:
        made["pixels"], made["target"] = stored.to(device, non_blocking=True), points

    def change() -> None:
        if config.augment:
            made["pixels"], made["target"] = augment(made["pixels"], made["target"], TASKS["pose"], generator, (0, 1), margin)
        made["target"] = send(made["target"], device)

    def forward() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
            output = own(made["pixels"])
        made["loss"] = own.head.loss(output, made["target"], find_valid(made["target"], TASKS["pose"], job.size))[0]

    def backward() -> None:
        optimizer.zero_grad(set_to_none=True)
        made["loss"].backward()

    return dict(zip(PARTS, _clock([upload, change, forward, backward, optimizer.step], device), strict=True))


def decode_batch(batch: dict[str, Any], size: tuple[int, int], is_augmented: bool) -> dict[str, Any]:
    """Ray's pattern: decode and augment in `map_batches`."""
    made = []
    for data, joints in zip(batch["crop"], batch["joints"], strict=True):
        pixels = torchvision.io.decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=torchvision.io.ImageReadMode.RGB)
        made.append(augment_crop(pixels, torch.tensor(np.asarray(joints, dtype=np.float32)).view(16, 2), size, is_augmented))
    return {"pixels": np.stack([pixels.numpy() for pixels, _ in made]), "joints": np.stack([joints.numpy() for _, joints in made])}


def ray_loop(arguments: dict[str, Any]) -> None:
    """What every worker of Ray's pattern runs: `iter_torch_batches` over its shard."""
    import ray.train
    import ray.train.torch

    config = TrainConfig(**arguments["config"])
    context = ray.train.get_context()
    torch.set_num_threads(config.cpus_per_worker)
    device = ray.train.torch.get_device()
    own = load_model(arguments["model"])[0].train()
    model = ray.train.torch.prepare_model(own)
    optimizer = torch.optim.Adam(own.parameters(), lr=config.learning_rate)
    shard = ray.train.get_dataset_shard("train")
    size = config.batch_size // context.get_world_size()

    def batches(epoch: int) -> Iterable[Batch]:
        return ((batch["pixels"], batch["joints"]) for batch in shard.iter_torch_batches(batch_size=size, drop_last=True))

    rows = run_epochs(config, device, batches, lambda batch: train_step(model, own, optimizer, batch, config, device))
    path = Path(arguments["results"]) / f"{context.get_world_rank()}.json"
    path.write_text(json.dumps({"rank": context.get_world_rank(), "rows": rows, **describe_worker(device)}))


def write_crops(folder: Path, tables: Iterable[Any]) -> int:
    """The crops of SAMPLE tables as files, and their joints as joints.npy; how many they are."""
    folder.mkdir()
    joints: list[Any] = []
    for table in tables:
        for data, points in zip(table["crop"].to_pylist(), table["joints"].to_pylist(), strict=True):
            (folder / f"{len(joints):07d}.jpg").write_bytes(data)
            joints.append(points)
    np.save(folder / "joints.npy", np.array(joints, dtype=np.float32).reshape(-1, 16, 2))
    return len(joints)
