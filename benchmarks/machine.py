"""What a benchmark runs on and with: its cores, Ray on just these, and the JSON that says so beside the figures."""

import importlib.metadata
import logging
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CORES = len(os.sched_getaffinity(0))
PACKAGES = ("posepipe", "ray", "torch", "torchvision", "timm", "pillow", "simplejpeg", "numpy", "scipy", "pyarrow", "fsspec", "s3fs")


def start_ray(num_cpus: int = CORES) -> None:
    """Starts Ray on this machine, without its lines and bars."""
    import ray
    import ray.data

    # Ray's workers are nice(15) by default, the others are not: on a machine that does something else besides, that would decide.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
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
            "python": platform.python_version(),
        },
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        **figures,
    }


def medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(each) for name, each in values.items()}


def spread(values: Sequence[float]) -> str:
    """Smallest and largest, for tables."""
    return f"[{min(values):.1f} .. {max(values):.1f}]"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
