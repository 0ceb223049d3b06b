"""Connect to Ray, check resources before starting."""

import logging
import os
from typing import Any

import ray
import ray._private.state
import ray.data
import yaml

BOOTSTRAP_CONFIG = "~/ray_bootstrap_config.yaml"


def connect() -> None:
    """Connects to the cluster that RAY_ADDRESS names (a submitted job's own), or starts Ray on this machine."""
    if not ray.is_initialized():
        ray.init(address=None if "RAY_ADDRESS" in os.environ else "local", logging_level=logging.WARNING, log_to_driver=True)
    # The jobs count pictures themselves; Ray's lines about each operator would bury theirs.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False


def _nodes() -> list[tuple[int, dict[str, float]]]:
    """(how many, resources of each) of the nodes there are, or of those that the autoscaler may start."""
    reported = ray._private.state.state.get_cluster_config()
    groups = reported.node_group_configs if reported else ()
    if groups:
        return [(group.max_count, dict(group.resources)) for group in groups]
    config = _bootstrap_config()
    if config is None:
        return [(1, node["Resources"]) for node in ray.nodes() if node["Alive"]]
    limit = config.get("max_workers", 0)
    return [
        (1 if name == config["head_node_type"] else min(node.get("max_workers", limit), limit), node.get("resources", {}))
        for name, node in config["available_node_types"].items()
    ]


def _bootstrap_config() -> dict[str, Any] | None:
    """What `ray up` leaves on the head node, where submitted jobs start; None where there is no autoscaler, or none of that kind."""
    path = os.path.expanduser(BOOTSTRAP_CONFIG)
    if "RAY_ADDRESS" not in os.environ or not os.path.exists(path):
        return None
    with open(path) as file:
        return yaml.safe_load(file)


def smallest_object_store() -> float:
    """Bytes of the smallest object store among the nodes that take work; each holds all samples of a training run on it."""
    stores = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    return min(stores, default=float("inf"))


def most_cpus() -> int:
    """CPUs of the largest node."""
    return max(1, *(int(resources.get("CPU", 0)) for _, resources in _nodes()))


def num_cpus() -> float:
    """CPUs of all nodes."""
    return sum(count * resources.get("CPU", 0.0) for count, resources in _nodes())


def describe() -> str:
    """What the nodes offer, for people."""
    nodes = [(count, resources) for count, resources in _nodes() if count]
    totals = {name: sum(count * resources.get(name, 0.0) for count, resources in nodes) for name in ("CPU", "GPU")}
    return (
        f"{sum(count for count, _ in nodes)} nodes with {totals['CPU']:g} CPUs and {totals['GPU']:g} GPUs, "
        f"the smallest object store {smallest_object_store() / 2**30:.1f} GiB"
    )


def from_items(items: list[dict[str, Any]]) -> ray.data.Dataset:
    """A Dataset with a task per item, for pipelines of one stage whose results are small or all kept.

    Ray Data reserves half of the CPUs for stages that may need them later: on two cores, one stage would use one (1.1 tasks at a time
    instead of 1.85, measured with Ray 2.60). It also reserves memory between stages, so longer pipelines should keep the reservation.
    """
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    dataset.context.op_resource_reservation_enabled = False
    return dataset


def num_fitting(*, cpus: float, gpus: float = 0) -> int:
    """How many units of so many CPUs and GPUs the nodes hold at once; a unit does not stretch over nodes."""
    fitting = 0
    for count, resources in _nodes():
        limits = [resources.get(name, 0.0) // each for name, each in (("CPU", cpus), ("GPU", gpus)) if each > 0]
        fitting += count * int(min(limits, default=0))
    return fitting


def require(what: str, *, units: int, cpus: float, gpus: float = 0, hint: str) -> None:
    """Refuses a request that the cluster cannot hold, which Ray would wait for without end.

    Args:
        what: names the request in the message.
        units: processes that have to run at the same time.
        cpus: CPUs of each.
        gpus: GPUs of each.
        hint: the flags to change.

    Raises:
        ValueError: with what is needed, what there is and the hint.
    """
    fitting = num_fitting(cpus=cpus, gpus=gpus)
    if fitting < units:
        have = {name: sum(count * resources.get(name, 0.0) for count, resources in _nodes()) for name in ("CPU", "GPU")}
        is_scattered = have["CPU"] >= units * cpus and have["GPU"] >= units * gpus
        raise ValueError(
            f"{what} needs {units * cpus:g} CPUs and {units * gpus:g} GPUs, the cluster has {have['CPU']:g} CPUs and {have['GPU']:g} GPUs"
            f"{f', but its nodes fit only {fitting} of {units}' if is_scattered else ''}; {hint}"
        )
