"""What grows with the number of pictures: wall time and memory of prepare, of train's loading and of score, the planning of manifests.

* prepare, load: `preparing.prepare` of --num-prepared pictures with a person each, and what a training run does with these samples before
  its first step (`training_data.load_data` and the cache of one worker), each in a process of its own on Ray as below, from the call on.
  `more` is what every picture took beyond those of the row before, so what starts once is not in it.
* score: a scoring run in a process of its own, on Ray with an object store of --object-store-mib, for each of --num-images; the manifest
  goes through the folder's pictures again and again. `more` is again beyond those of the row before, here of the time after the first
  commit: as many pictures had been read before it in each, but in a row so short that all had. So the row after such a one counts too
  little, and what may be compared are those from the third on. Memory is the sum over all processes of the run (Ray's included): RSS counts
  what they share once for each of them, PSS once.
* plan: from the call to the stored list of inputs, for manifests of --num-rows, in a process of its own, with its peak RSS.
* first commit: `jobs.score` on the longest of these manifests until its first shard is committed; then it is killed.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tyro

from benchmarks import machine
from benchmarks.ingest import find_pictures, write_mpii
from benchmarks.machine import CORES
from posepipe import inputs, storage

SHARD_SIZE = 256
SIZE = 128  # px of what is prepared
SAMPLING_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """What grows with the number of pictures: wall time and memory of the jobs, and the planning of long manifests."""

    images_uri: str
    """Folder of JPEGs, of which those of 1280x720 are read."""
    checkpoint_uri: str
    """A run trained on image framing."""
    num_prepared: tuple[int, ...] = (1024, 4096, 16384)
    """Pictures to prepare and to load."""
    num_images: tuple[int, ...] = (1000, 5000, 20000, 80000)
    """Pictures to score."""
    num_rows: tuple[int, ...] = (1000, 10_000, 100_000, 1_000_000)
    """Rows of the manifests to plan."""
    num_actors: int = 0
    """Of a scoring run; 0: as many as it takes on its own."""
    object_store_mib: int = 500
    """Ray's object store."""
    price_per_hour: float = 0.0
    """Of this machine, for the cost of a million pictures by the time that one took, start-up left out."""
    output_uri: str = ""
    """JSON file of all figures and the machine."""


class Memory(threading.Thread):
    """Peak memory of a process and all that it started, sampled."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process, self._end = psutil.Process(pid), threading.Event()
        self.peak_rss = self.peak_pss = 0

    def run(self) -> None:
        while not self._end.wait(SAMPLING_SECONDS):
            rss = pss = 0
            try:
                family = [self._process, *self._process.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in family:
                try:
                    info = process.memory_full_info()
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
                rss, pss = rss + info.rss, pss + info.pss
            self.peak_rss, self.peak_pss = max(self.peak_rss, rss), max(self.peak_pss, pss)

    def stop(self) -> None:
        self._end.set()
        self.join()


_RAY = """
import os, time, ray
from posepipe import cluster
os.environ["RAY_worker_niceness"] = "0"
cluster.start(num_cpus={cpus}, object_store_memory={store}, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
{imports}
cluster.connect()
started = time.perf_counter()
{body}
seconds = time.perf_counter() - started
from ray._private.internal_api import memory_summary
print(memory_summary(ray.get_runtime_context().gcs_address, stats_only=True), "seconds", seconds)
"""
# A process imports what its job does, which is part of its memory.
_IMPORTS = {
    "prepare": "from posepipe import preparing\nfrom posepipe.config import PrepareConfig",
    "load": "from posepipe import samples, training_data\nfrom posepipe.config import TrainConfig\n"
    "from posepipe.sample_cache import SampleCache",
    "score": "from posepipe import scoring\nfrom posepipe.config import ScoreConfig",
}
_PREPARE = "preparing.prepare(PrepareConfig(mpii_uri={mpii!r}, samples_uri={samples!r}, size={size}))"
_LOAD = """data = training_data.load_data(TrainConfig(samples_uri={samples!r}, runs_uri="", name="x"))
cache = SampleCache(data.train, samples.crop_size(data.manifest), samples.crop_margin(data.manifest))
assert len(cache) == data.manifest["rows"]["train"]"""


def start(config: ScaleConfig, stage: str, body: str) -> "subprocess.Popen[str]":
    code = _RAY.format(cpus=CORES, store=config.object_store_mib * 2**20, imports=_IMPORTS[stage], body=body)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)


def start_score(config: ScaleConfig, manifest: Path, out: Path) -> "subprocess.Popen[str]":
    values = {
        "checkpoint_uri": (config.checkpoint_uri,),
        "images_uri": str(manifest),
        "predictions_uri": str(out),
        "shard_size": SHARD_SIZE,
        "num_actors": config.num_actors,
    }
    return start(config, "score", f"scoring.score(ScoreConfig(**{values!r}))")


def run_to_end(config: ScaleConfig, process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Peak memory of it and all that it started, what was spilled, and its own seconds."""
    memory = Memory(process.pid)
    memory.start()
    said, _ = process.communicate()
    memory.stop()
    if process.returncode:
        raise RuntimeError(f"a run ended with status {process.returncode}")
    spilled = re.search(r"Spilled (\d+) MiB", said)
    return {
        "seconds": float(said.split()[-1]),
        "peak_rss_gib": memory.peak_rss / 2**30,
        "peak_pss_gib": memory.peak_pss / 2**30,
        "spilled_mib": int(spilled[1]) if spilled else 0,
    }


def measure_training_data(config: ScaleConfig, pictures: list[Path], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of prepare and of load by the number of pictures."""
    found: dict[str, list[dict[str, Any]]] = {"prepare": [], "load": []}
    for count in config.num_prepared:
        mpii, samples = folder / f"mpii-{count}", folder / f"samples-{count}"
        mpii.mkdir()
        write_mpii(mpii, pictures, count)
        for stage, body in (("prepare", _PREPARE), ("load", _LOAD)):
            work = body.format(mpii=str(mpii), samples=str(samples), size=SIZE)
            row = {"num_images": count, **run_to_end(config, start(config, stage, work))}
            before = found[stage][-1] if found[stage] else {"num_images": 0, "seconds": 0.0}
            row["ms_per_further_image"] = 1000 * (row["seconds"] - before["seconds"]) / (count - before["num_images"])
            found[stage].append(row)
            print(
                f"{stage:8}{count:9}{row['seconds']:9.1f}{row['ms_per_further_image']:10.2f}"
                f"{row['peak_rss_gib']:9.2f}{row['peak_pss_gib']:9.2f}{row['spilled_mib']:13}",
                flush=True,
            )
    return found


def commits(out: Path) -> list[float]:
    """When each shard was committed."""
    return sorted(path.stat().st_mtime for path in out.glob("done/*/*.json"))


def measure_score(config: ScaleConfig, paths: list[str], count: int, folder: Path) -> dict[str, Any]:
    manifest, out = folder / f"{count}.txt", folder / f"out-{count}"
    manifest.write_text("\n".join(paths[index % len(paths)] for index in range(count)))
    started = time.time()
    row = run_to_end(config, start_score(config, manifest, out))
    summary = storage.read_json(str(out / "summary.json"))
    if summary["rows_predicted"] != count:
        raise RuntimeError(f"{summary['rows_predicted']} of {count} pictures were scored: {summary['statuses']}")
    at = commits(out)
    return {"num_images": count, **row, "seconds_to_first_commit": at[0] - started, "seconds_after_it": at[-1] - at[0]}


def write_manifest(paths: list[str], count: int, folder: Path) -> Path:
    manifest = folder / f"rows-{count}.txt"
    manifest.write_text("\n".join(paths[index % len(paths)] for index in range(count)))
    return manifest


def plan(manifest_uri: str, run_uri: str) -> None:
    """In a process of its own: plans, and prints seconds and peak RSS as JSON."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    inputs.write_inputs(run_uri, inputs.read_inputs(manifest_uri), SHARD_SIZE)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": time.perf_counter() - started, "peak_rss_gib": peak / 2**20, "rss_before_gib": before / 2**20}))


def measure_plan(manifest: Path, count: int, folder: Path) -> dict[str, Any]:
    code = f"from benchmarks.scale import plan; plan({str(manifest)!r}, {str(folder / f'plan-{count}')!r})"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return {"num_rows": count, **json.loads(said)}


def measure_first_commit(config: ScaleConfig, manifest: Path, folder: Path) -> dict[str, Any]:
    out = folder / "first-commit"
    started = time.time()
    process = start_score(config, manifest, out)
    driver = psutil.Process(process.pid)
    peak = 0
    try:
        while not (at := commits(out)):
            if process.poll() is not None:
                raise RuntimeError("scoring ended before its first commit")
            peak = max(peak, driver.memory_info().rss)
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return {"seconds": at[0] - started, "driver_peak_rss_gib": peak / 2**30}


def main() -> None:
    config = tyro.cli(ScaleConfig)
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="posepipe-scale-") as name:
        folder = Path(name)
        pictures = find_pictures(Path(config.images_uri), [(1280, 720)])
        paths = [str(path.resolve()) for path in pictures]
        print(f"{'':8}{'pictures':>9}{'seconds':>9}{'more, ms':>10}{'RSS GiB':>9}{'PSS GiB':>9}{'spilled MiB':>13}", flush=True)
        stages = measure_training_data(config, pictures, folder)
        scored: list[dict[str, Any]] = []
        planned = []
        print(
            f"{'pictures':>9}{'seconds':>9}{'first commit':>14}{'more, ms':>12}{'RSS GiB':>9}{'PSS GiB':>9}{'spilled MiB':>13}",
            flush=True,
        )
        for count in config.num_images:
            row = measure_score(config, paths, count, folder)
            before = scored[-1] if scored else {"num_images": SHARD_SIZE, "seconds_after_it": 0}
            row["ms_per_further_image"] = 1000 * (row["seconds_after_it"] - before["seconds_after_it"]) / (count - before["num_images"])
            scored.append(row)
            print(
                f"{count:9}{row['seconds']:9.1f}{row['seconds_to_first_commit']:14.1f}{row['ms_per_further_image']:12.2f}"
                f"{row['peak_rss_gib']:9.2f}{row['peak_pss_gib']:9.2f}{row['spilled_mib']:13}",
                flush=True,
            )
        print(f"{'rows':>9}{'plan, s':>9}{'RSS GiB':>9}{'before':>9}", flush=True)
        for count in config.num_rows:
            manifest = write_manifest(paths, count, folder)
            row = measure_plan(manifest, count, folder)
            planned.append(row)
            print(f"{count:9}{row['seconds']:9.2f}{row['peak_rss_gib']:9.2f}{row['rss_before_gib']:9.2f}", flush=True)
        first = measure_first_commit(config, manifest, folder)
        print(f"first commit of {count} rows after {first['seconds']:.1f} s, driver's peak RSS {first['driver_peak_rss_gib']:.2f} GiB")
    spent = {name: rows[-1]["ms_per_further_image"] for name, rows in {**stages, "score": scored}.items()}
    for name, ms in spent.items():
        cost = f", {config.price_per_hour * ms / 3.6:.2f} at {config.price_per_hour:g} an hour" if config.price_per_hour else ""
        print(f"a million pictures, {name}: {ms / 3.6:.2f} hours of this machine's {CORES} cores{cost}")
    if config.output_uri:
        figures = {**stages, "score": scored, "plan": planned, "first_commit": first}
        storage.write_json(config.output_uri, machine.record("scale", figures, load_before))


if __name__ == "__main__":
    main()
