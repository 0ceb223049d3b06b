"""Connect to Ray, check resources before starting."""

import logging
import math
import os

import ray
import ray.data

logger = logging.getLogger(__name__)


def connect() -> None:
    """Connects to the cluster that RAY_ADDRESS names (a submitted job's own), or starts Ray on this machine."""
    if not ray.is_initialized():
        ray.init(address=None if "RAY_ADDRESS" in os.environ else "local", logging_level=logging.WARNING, log_to_driver=True)
    # The jobs count pictures themselves; Ray's lines about each operator would bury theirs.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False


def require(what: str, *, cpus: float = 0, gpus: float = 0, hint: str) -> None:
    """Refuses a request that the cluster cannot hold, which Ray would wait for without end.

    Args:
        what: names the request in the message.
        cpus: CPUs that have to be held at the same time.
        gpus: GPUs that have to be held at the same time.
        hint: the flags to change.

    Raises:
        ValueError: with what is needed, what there is and the hint.
    """
    total = ray.cluster_resources()
    have_cpus, have_gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    if cpus > have_cpus or gpus > have_gpus:
        raise ValueError(f"{what} needs {cpus:g} CPUs and {gpus:g} GPUs, the cluster has {have_cpus:g} CPUs and {have_gpus:g} GPUs; {hint}")


def num_fitting(*, cpus: float, gpus: float) -> int:
    """How many units of so many CPUs and GPUs the cluster holds at once."""
    total = ray.cluster_resources()
    limits = [total.get(name, 0.0) // each for name, each in (("CPU", cpus), ("GPU", gpus)) if each > 0]
    return max(0, int(min(limits, default=math.inf)))
