"""Connect to Ray, check resources before starting."""

import logging
import math
import os
from collections import Counter
from typing import Any

import ray
import ray._private.state
import ray.data
import yaml

logger = logging.getLogger(__name__)

BOOTSTRAP_CONFIG = "~/ray_bootstrap_config.yaml"


def connect() -> None:
    """Connects to the cluster that RAY_ADDRESS names (a submitted job's own), or starts Ray on this machine."""
    if not ray.is_initialized():
        ray.init(address=None if "RAY_ADDRESS" in os.environ else "local", logging_level=logging.WARNING, log_to_driver=True)
    # The jobs count pictures themselves; Ray's lines about each operator would bury theirs.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False


def capacity() -> dict[str, float]:
    """What the cluster holds, or could hold once its autoscaler has started all nodes it may: resource name -> amount."""
    amounts = Counter(ray.cluster_resources())
    largest = _largest_by_autoscaler()
    return {name: max(amounts[name], largest.get(name, 0.0)) for name in {*amounts, *largest}}


def can_grow() -> bool:
    """Whether an autoscaler may add nodes."""
    return bool(_largest_by_autoscaler())


def _largest_by_autoscaler() -> dict[str, float]:
    """Empty where there is no autoscaler, or where the driver cannot see its config."""
    reported = ray._private.state.state.get_max_resources_from_cluster_config()
    if reported:
        return {name: float(amount) for name, amount in reported.items()}
    # `ray up` leaves its config on the head node, where submitted jobs start.
    path = os.path.expanduser(BOOTSTRAP_CONFIG)
    if "RAY_ADDRESS" not in os.environ or not os.path.exists(path):
        return {}
    with open(path) as file:
        config = yaml.safe_load(file)
    largest: Counter[str] = Counter()
    for name, node in config["available_node_types"].items():
        count = 1 if name == config["head_node_type"] else node.get("max_workers", config.get("max_workers", 0))
        for resource, amount in node.get("resources", {}).items():
            largest[resource] += count * amount
    return dict(largest)


def from_items(items: list[dict[str, Any]]) -> ray.data.Dataset:
    """A Dataset with a task per item, for pipelines of one stage whose results are small or all kept.

    Ray Data reserves half of the CPUs for stages that may need them later: on two cores, one stage would use one (1.1 tasks at a time
    instead of 1.85, measured with Ray 2.60). It also reserves memory between stages, so longer pipelines should keep the reservation.
    """
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    dataset.context.op_resource_reservation_enabled = False
    return dataset


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
    total = capacity()
    have_cpus, have_gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    if cpus > have_cpus or gpus > have_gpus:
        raise ValueError(f"{what} needs {cpus:g} CPUs and {gpus:g} GPUs, the cluster has {have_cpus:g} CPUs and {have_gpus:g} GPUs; {hint}")


def num_fitting(*, cpus: float, gpus: float) -> int:
    """How many units of so many CPUs and GPUs the cluster holds at once."""
    total = capacity()
    limits = [total.get(name, 0.0) // each for name, each in (("CPU", cpus), ("GPU", gpus)) if each > 0]
    return max(0, int(min(limits, default=math.inf)))
