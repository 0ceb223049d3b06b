"""Pictures per second of `prepare` beside Ray's own reader, a torch DataLoader and the decoder alone.

All read the same files on the same cores, one after the other, round by round. What is timed:

* prepare: the whole of `preparing.prepare` in image framing at 220 px: parse the .mat, read, decode, crop, encode and write the samples.
* read_images: `ray.data.read_images(paths, size=(220, 220), mode="RGB").materialize()`: the pixels end in Ray's object store, which costs
  less than bringing them to the driver. Ray cuts this into many small tasks; "as prepare" has as many tasks as prepare has shards. The mark
  is measured against the faster of the two.
* DataLoader: torchvision's decoder and antialiased resize, one worker process per core, which are started before the clock.
* ceiling: bytes in memory -> header and crop in one process, one thread, times the cores. Who also reads or writes is below it.

Ray is started and every contestant has gone over all files once before the first round, so the file cache is warm for all.
"""

import concurrent.futures
import importlib.metadata
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
import ray.data
import torch
import torchvision
import tyro
from torchvision.transforms.v2 import functional

from posepipe import geometry, images, mpii, preparing, synthetic
from posepipe.config import PrepareConfig
from posepipe.skeleton import NUM_JOINTS

SIZE = 220
MARK = 1.6
SHAPES = ((1280, 720), (1920, 1080))
CEILING_SAMPLE = 256
NUM_DRAWN = 240
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Pictures per second of `prepare` beside Ray's own reader, a torch DataLoader and the decoder alone."""

    images_uri: str = ""
    """Folder of JPEGs, of which those of 1280x720 and 1920x1080 are read; without one they are drawn."""
    num_images: int = 512 * CORES
    """Pictures per repetition, by default four of prepare's shards per core; a folder that has fewer is gone through more than once."""
    repetitions: int = 3
    """Rounds over all contestants."""
    output_uri: str = ""
    """JSON file of every repetition, the machine and the versions."""

    def __post_init__(self) -> None:
        if self.num_images < 1 or self.repetitions < 1:
            raise ValueError("--num-images and --repetitions must be at least 1")


def find_pictures(folder: Path, shapes: Sequence[tuple[int, int]] = SHAPES) -> list[Path]:
    """The JPEGs of these shapes in the folder, by their headers."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".jpg", ".jpeg"):
            header = images.read_header(path.read_bytes())
            if (header.width, header.height) in shapes:
                found.append(path)
    if not found:
        raise ValueError(f"{folder} has no JPEG of {' or '.join(f'{width}x{height}' for width, height in shapes)}")
    return found


def write_mpii(folder: Path, pictures: list[Path], count: int) -> list[str]:
    """Lays `count` pictures out as MPII does: links in images/ and an annotation file with one person on each."""
    (folder / mpii.IMAGES_FOLDER).mkdir()
    # Every n-th one: neighbours in MPII's list are frames of one video.
    chosen = [pictures[index * len(pictures) // count if count <= len(pictures) else index % len(pictures)] for index in range(count)]
    paths = [folder / mpii.IMAGES_FOLDER / f"{index:06d}.jpg" for index in range(count)]
    points = [(joint, 100.0 + 20 * joint, 200.0 + 9 * joint, True) for joint in range(NUM_JOINTS)]
    person = {"scale": 2.0, "objpos": [320.0, 300.0], "head_box": [300.0, 200.0, 360.0, 280.0], "points": points}
    for path, source in zip(paths, chosen, strict=True):
        path.symlink_to(source.resolve())
    records = [{"name": path.name, "is_train": True, "activity": "standing", "people": [person]} for path in paths]
    synthetic.write_annotations(str(folder), records)
    return [str(path) for path in paths]


def prepare_rate(folder: Path, paths: list[str]) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as samples:
        config = PrepareConfig(mpii_uri=str(folder), samples_uri=samples, framing="image", people="single", size=SIZE)
        start = time.perf_counter()
        manifest = preparing.prepare(config)
        seconds = time.perf_counter() - start
    if sum(manifest["rows"].values()) != len(paths):
        raise RuntimeError(f"prepare wrote {manifest['rows']} rows for {len(paths)} pictures: {manifest['errors']}")
    return len(paths) / seconds


def read_images_rate(paths: list[str], num_blocks: int | None = None) -> float:
    start = time.perf_counter()
    rows = ray.data.read_images(paths, size=(SIZE, SIZE), mode="RGB", override_num_blocks=num_blocks).materialize().count()
    seconds = time.perf_counter() - start
    if rows != len(paths):
        raise RuntimeError(f"read_images gave {rows} rows for {len(paths)} pictures")
    return rows / seconds


class Pictures(torch.utils.data.Dataset[torch.Tensor]):
    """What a torchvision user writes: decode the file, resize it."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        pixels = torchvision.io.decode_image(self._paths[index], mode=torchvision.io.ImageReadMode.RGB)
        return functional.resize(pixels, [SIZE, SIZE], antialias=True)


def data_loader_rate(loader: "torch.utils.data.DataLoader[torch.Tensor]", count: int) -> float:
    start = time.perf_counter()
    rows = sum(len(batch) for batch in loader)
    seconds = time.perf_counter() - start
    if rows != count:
        raise RuntimeError(f"the DataLoader gave {rows} rows for {count} pictures")
    return rows / seconds


def ceiling_rate(paths: list[str]) -> float:
    data = [Path(path).read_bytes() for path in paths[:: max(1, len(paths) // CEILING_SAMPLE)]]
    start = time.perf_counter()
    for picture in data:
        header = images.read_header(picture)
        images.crop(picture, header, geometry.frame_image(header.width, header.height, (SIZE, SIZE)), (SIZE, SIZE))
    return CORES * len(data) / (time.perf_counter() - start)


def measure(config: IngestConfig, folder: Path) -> dict[str, list[float]]:
    """Pictures per second of every repetition, by contestant."""
    if not config.images_uri:
        with concurrent.futures.ProcessPoolExecutor(CORES) as pool:
            list(pool.map(synthetic.write_image, *zip(*((str(folder / "drawn"), index, 0) for index in range(NUM_DRAWN)), strict=True)))
    pictures = find_pictures(Path(config.images_uri) if config.images_uri else folder / "drawn" / mpii.IMAGES_FOLDER)
    paths = write_mpii(folder, pictures, config.num_images)
    loader = torch.utils.data.DataLoader(
        Pictures(paths), batch_size=32, num_workers=CORES, persistent_workers=True, multiprocessing_context="forkserver"
    )
    contestants: dict[str, Callable[[], float]] = {
        "prepare": lambda: prepare_rate(folder, paths),
        "read_images": lambda: read_images_rate(paths),
        "as prepare": lambda: read_images_rate(paths, -(-len(paths) // PrepareConfig.shard_size)),
        "ceiling": lambda: ceiling_rate(paths),
        "DataLoader": lambda: data_loader_rate(loader, len(paths)),
    }
    # Ray's workers are nice(15) by default, the others are not: on a machine that does something else besides, that would decide.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(address="local", num_cpus=CORES, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for round_index in range(config.repetitions + 1):
        for name, run in contestants.items():
            rate = run()
            if round_index:
                rates[name].append(rate)
            print(f"{f'round {round_index}' if round_index else 'warm-up'}: {name} {rate:.1f} img/s", file=sys.stderr, flush=True)
    ray.shutdown()
    return rates


def main() -> None:
    config = tyro.cli(IngestConfig)
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="posepipe-ingest-") as folder:
        rates = measure(config, Path(folder))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    peer = max(medians["read_images"], medians["as prepare"])
    print(f"{'':12}{'img/s':>8}  {'[min .. max]':18}{'/ read_images':>14}{'/ ceiling':>11}")
    for name, values in rates.items():
        spread = f"[{min(values):.1f} .. {max(values):.1f}]"
        print(f"{name:12}{medians[name]:8.1f}  {spread:18}{medians[name] / peer:14.2f}{medians[name] / medians['ceiling']:11.2f}")
    ratio = medians["prepare"] / peer
    print(f"prepare reads {ratio:.2f} times as many pictures per second as the faster read_images; the mark is {MARK}")
    if config.output_uri:
        packages = ("posepipe", "ray", "torch", "torchvision", "pillow", "simplejpeg", "numpy", "pyarrow")
        report = {
            "command": ["python", "-m", "benchmarks.ingest", *sys.argv[1:]],
            "machine": {
                "platform": platform.platform(),
                "cores": CORES,
                "load_average": {"before": load_before, "after": os.getloadavg()},
                "python": platform.python_version(),
            },
            "versions": {name: importlib.metadata.version(name) for name in packages},
            "pictures": {"num_images": config.num_images, "source": config.images_uri or "drawn", "shapes": SHAPES, "size": SIZE},
            "images_per_second": rates,
            "medians": medians,
            "prepare_to_read_images": ratio,
        }
        Path(config.output_uri).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
