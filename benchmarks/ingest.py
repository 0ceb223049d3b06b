"""Pictures per second of `prepare` beside Ray's own reader, a torch DataLoader and the decoder alone.

All read the same files on the same cores, one after the other, round by round. What is timed:

* prepare: the whole of `preparing.prepare` in image framing at 220 px: parse the .mat, read, decode, crop, encode and write the samples.
* read_images: `ray.data.read_images(paths, size=(220, 220), mode="RGB").materialize()`: the pixels end in Ray's object store, which costs
  less than bringing them to the driver. Ray cuts this into many small tasks; "as prepare" has as many tasks as prepare has shards. The mark
  is measured against the faster of the two.
* DataLoader: torchvision's decoder and antialiased resize, one worker process per core, which are started before the clock.
* script: what prepare does, by such a DataLoader: it parses the .mat (as posepipe does), its processes also encode the crops, by
  torchvision, and it maps the joints along and writes Parquet. It keeps no status and dies of a bad picture.
* ceiling: bytes in memory -> header and crop in one process, one thread, times the cores. Who also reads or writes is below it.
* from S3 (with --s3-uri): prepare of the same pictures, read from an S3 server instead; "S3 alone" only fetches them, in one process. Where
  that is several times as fast as prepare, the server is not what prepare waits for.

Ray is started and every contestant has gone over all files once before the first round, so the file cache is warm for all.
A server for --s3-uri, of Debian's packages, without installing them (it shares the cores; on another machine it would not):

    export AWS_ENDPOINT_URL=$(bash tests/ceph_rgw.sh start /tmp/ceph) AWS_ACCESS_KEY_ID=testkey AWS_SECRET_ACCESS_KEY=testsecret
    export AWS_DEFAULT_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true AWS_REQUEST_CHECKSUM_CALCULATION=when_required
    python -c "import boto3; boto3.client('s3').create_bucket(Bucket='bench')"
    python -m benchmarks.ingest --images-uri FOLDER --s3-uri s3://bench/ingest
    bash tests/ceph_rgw.sh stop /tmp/ceph
"""

import concurrent.futures
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch
import torchvision
import tyro
from torchvision.transforms.v2 import functional

from benchmarks import machine
from benchmarks.machine import CORES
from posepipe import fetching, geometry, images, mpii, preparing, storage, synthetic
from posepipe.config import PrepareConfig
from posepipe.skeleton import NUM_JOINTS

SIZE = 220
MARKS = {"ceiling": 0.8, "read_images": 2.0, "DataLoader": 1.3}
S3_MARK = 0.9
SHAPES = ((1280, 720), (1920, 1080))
CEILING_SAMPLE = 256
NUM_DRAWN = 240


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Pictures per second of `prepare` beside Ray's own reader, a torch DataLoader and the decoder alone."""

    images_uri: str = ""
    """Folder of JPEGs, of which those of 1280x720 and 1920x1080 are read; without one they are drawn."""
    s3_uri: str = ""
    """Prefix on an S3 server (AWS_ENDPOINT_URL) to which the pictures are copied, to prepare them from there too; emptied afterwards."""
    num_images: int = 512 * CORES
    """Pictures per repetition, by default four of prepare's shards per core; a folder that has fewer is gone through more than once."""
    repetitions: int = 3
    """Rounds over all contestants."""
    output_uri: str = ""
    """JSON file of every repetition, the machine and the versions."""

    def __post_init__(self) -> None:
        if self.num_images < 1 or self.repetitions < 1:
            raise ValueError("--num-images and --repetitions must be at least 1")
        if self.s3_uri and not storage.is_s3(self.s3_uri):
            raise ValueError(f"--s3-uri must start with s3://, got {self.s3_uri!r}")


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


def upload(folder: Path, paths: list[str], uri: str) -> list[str]:
    """Copies the annotation file and the pictures to the server; the URIs of all."""
    sources = [str(folder / mpii.ANNOTATION_FILE), *paths]
    uris = [storage.join_uri(uri, os.path.relpath(path, folder)) for path in sources]
    if taken := storage.list_files(uri):
        raise ValueError(f"--s3-uri must be empty, {uri} holds {len(taken)} files")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path, to: storage.write_bytes(to, Path(path).read_bytes()), sources, uris))
    return uris


def fetch_rate(uris: list[str]) -> float:
    start = time.perf_counter()
    for uri, data in fetching.read_ahead(uris, images.MAX_BYTES):
        if isinstance(data, OSError):
            raise RuntimeError(f"{uri} could not be read: {data}")
    return len(uris) / (time.perf_counter() - start)


def prepare_rate(folder: Path, paths: list[str], mpii_uri: str) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as samples:
        config = PrepareConfig(mpii_uri=mpii_uri, samples_uri=samples, framing="image", people="single", size=SIZE)
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


def decode(path: str) -> tuple[torch.Tensor, int, int]:
    """What a torchvision user writes: decode the file, resize it; with the picture's width and height."""
    pixels = torchvision.io.decode_image(path, mode=torchvision.io.ImageReadMode.RGB)
    return functional.resize(pixels, [SIZE, SIZE], antialias=True), pixels.shape[2], pixels.shape[1]


def read_pixels(path: str) -> torch.Tensor:
    return decode(path)[0]


def read_crop(path: str) -> dict[str, Any]:
    pixels, width, height = decode(path)
    return {"crop": torchvision.io.encode_jpeg(pixels, quality=images.JPEG_QUALITY).numpy().tobytes(), "width": width, "height": height}


class Pictures(torch.utils.data.Dataset[Any]):
    def __init__(self, paths: list[str], read: Callable[[str], Any]) -> None:
        self._paths, self._read = paths, read

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Any:
        return self._read(self._paths[index])


def build_loader(dataset: Pictures, **options: Any) -> "torch.utils.data.DataLoader[Any]":
    return torch.utils.data.DataLoader(
        dataset, batch_size=32, num_workers=CORES, persistent_workers=True, multiprocessing_context="forkserver", **options
    )


def script_rate(folder: Path, loader: "torch.utils.data.DataLoader[Any]", count: int) -> float:
    start = time.perf_counter()
    _, table = mpii.read_annotations(str(folder))
    persons = iter(table.to_pylist())  # one per picture, in the order of the pictures
    with tempfile.TemporaryDirectory(dir=folder) as samples:
        rows: list[dict[str, Any]] = []
        files = written = 0
        for batch in loader:
            for crop, person in zip(batch, persons, strict=False):
                scale = np.array([SIZE / crop["width"], SIZE / crop["height"]])
                joints = (np.reshape(person["joints"], (NUM_JOINTS, 2)) + 0.5) * scale - 0.5
                rows.append({**person, **crop, "joints": joints.ravel()})
            written += len(batch)
            if len(rows) >= PrepareConfig.shard_size or written == count:
                pq.write_table(pa.Table.from_pylist(rows), f"{samples}/{files}.parquet")
                files, rows = files + 1, []
        seconds = time.perf_counter() - start
    if written != count:
        raise RuntimeError(f"the script wrote {written} rows for {count} pictures")
    return count / seconds


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
    loader, script_loader = build_loader(Pictures(paths, read_pixels)), build_loader(Pictures(paths, read_crop), collate_fn=list)
    contestants: dict[str, Callable[[], float]] = {
        "prepare": lambda: prepare_rate(folder, paths, str(folder)),
        "read_images": lambda: read_images_rate(paths),
        "as prepare": lambda: read_images_rate(paths, -(-len(paths) // PrepareConfig.shard_size)),
        "ceiling": lambda: ceiling_rate(paths),
        "DataLoader": lambda: data_loader_rate(loader, len(paths)),
        "script": lambda: script_rate(folder, script_loader, len(paths)),
    }
    uploaded = upload(folder, paths, config.s3_uri) if config.s3_uri else []
    if uploaded:
        contestants["from S3"] = lambda: prepare_rate(folder, paths, config.s3_uri)
        contestants["S3 alone"] = lambda: fetch_rate(uploaded[1:])
    machine.start_ray()
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for round_index in range(config.repetitions + 1):
        for name, run in contestants.items():
            rate = run()
            if round_index:
                rates[name].append(rate)
            print(f"{f'round {round_index}' if round_index else 'warm-up'}: {name} {rate:.1f} img/s", file=sys.stderr, flush=True)
    ray.shutdown()
    storage.delete(uploaded)
    return rates


def main() -> None:
    config = tyro.cli(IngestConfig)
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="posepipe-ingest-") as folder:
        rates = measure(config, Path(folder))
    medians = machine.medians(rates)
    peers = {
        "ceiling": medians["ceiling"],
        "read_images": max(medians["read_images"], medians["as prepare"]),
        "DataLoader": medians["DataLoader"],
        "script": medians["script"],
    }
    print(f"{'':12}{'img/s':>8}  {'[min .. max]':18}" + "".join(f"{f'/ {name}':>15}" for name in peers))
    for name, values in rates.items():
        ratios = "".join(f"{medians[name] / peer:15.2f}" for peer in peers.values())
        print(f"{name:12}{medians[name]:8.1f}  {machine.spread(values):18}{ratios}")
    ratios_of_prepare = {name: medians["prepare"] / peer for name, peer in peers.items()}
    for name, mark in MARKS.items():
        print(f"prepare to {name}: {ratios_of_prepare[name]:.2f}, the mark is {mark}")
    print(f"prepare to script, which does the same: {ratios_of_prepare['script']:.2f}")
    if config.s3_uri:
        ratios_of_prepare["from S3 to local"] = medians["from S3"] / medians["prepare"]
        alone = medians["S3 alone"] / medians["from S3"]
        print(f"from S3 to local: {ratios_of_prepare['from S3 to local']:.2f}, the mark is {S3_MARK}; the server alone: {alone:.1f} times")
    if config.output_uri:
        figures = {
            "pictures": {"num_images": config.num_images, "source": config.images_uri or "drawn", "shapes": SHAPES, "size": SIZE},
            "images_per_second": rates,
            "medians": medians,
            "ratios_of_prepare": ratios_of_prepare,
        }
        storage.write_json(config.output_uri, machine.record("ingest", figures, load_before))


if __name__ == "__main__":
    main()
