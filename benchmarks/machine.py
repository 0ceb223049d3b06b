"""What a benchmark runs on and with: its cores and GPUs, Ray on just these, and the JSON that says so beside the figures."""

import datetime
import importlib.metadata
import logging
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import posepipe

CORES = len(os.sched_getaffinity(0))
IMAGE_PACKAGES = ("pillow", "simplejpeg", "cykooz-resizer")
PACKAGES = ("posepipe", "ray", "torch", "torchvision", "timm", *IMAGE_PACKAGES, "numpy", "scipy", "pyarrow", "fsspec", "s3fs")


def start_ray(num_cpus: int = CORES) -> None:
    """Starts Ray on this machine, without its lines and bars."""
    import ray.data

    from posepipe import cluster

    # Ray's workers are nice(15) by default, the others are not: on a machine that does something else besides, that would decide.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    cluster.start(num_cpus=num_cpus, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def record(benchmark: str, figures: dict[str, Any], load_before: Sequence[float] | None = None) -> dict[str, Any]:
    """The figures, with the command, the machine and the versions.

    Args:
        benchmark: its module's name.
        figures: of it.
        load_before: `os.getloadavg()` at its start.
    """
    return {
        "command": ["python", "-m", f"benchmarks.{benchmark}", *sys.argv[1:]],
        "machine": {
            "platform": platform.platform(),
            "processor": _processor(),
            "cores": CORES,
            "load_average": {"before": load_before, "after": os.getloadavg()},
            "gpus": _ask_gpus("name,driver_version"),
            "python": platform.python_version(),
        },
        "versions": {name: _version(name) for name in PACKAGES},
        **figures,
    }


def medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(each) for name, each in values.items()}


def spread(values: Sequence[float]) -> str:
    """Smallest and largest, for tables."""
    return f"[{min(values):.1f} .. {max(values):.1f}]"


class GpuWatch:
    """How busy the GPUs are, asked of nvidia-smi ten times a second; without one there is nothing to see. A context manager."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, float]] = []
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "GpuWatch":
        if shutil.which("nvidia-smi"):
            command = ["nvidia-smi", "--query-gpu=timestamp,utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=100"]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def _read(self, lines: Iterable[str]) -> None:
        for line in lines:
            stamp, _, share = line.strip().partition(", ")
            if share.isdecimal():
                moment = datetime.datetime.strptime(stamp, "%Y/%m/%d %H:%M:%S.%f").timestamp()
                self._seen.append((moment, int(share) / 100))

    def mean(self, begin: float, end: float) -> float | None:
        """The mean share of time in which a kernel ran, over all GPUs, between two times of `time.time()`; None where nobody looked."""
        seen = [share for moment, share in self._seen if begin <= moment <= end]
        return statistics.mean(seen) if seen else None


def _ask_gpus(fields: str) -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()


def _version(name: str) -> str | None:
    """None for what is not installed, as s3fs where no benchmark asks for it."""
    if name == "posepipe":  # runs from its folder, installed or not
        return posepipe.__version__
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
