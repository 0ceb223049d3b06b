"""What the nodes hold, also those that may still start; refuses what does not fit them."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray._private.state
import yaml

BOOTSTRAP_CONFIG = "~/ray_bootstrap_config.yaml"
NO_LIMIT = 10_000  # nodes of a kind, for what Ray calls -1
MOST_OF_STORE = 0.8  # of an object store, that samples may take


@dataclass(frozen=True)
class Need:
    """Processes of one kind that have to run at the same time, each inside one node.

    Attributes:
        name: what they are or do.
        count: how many.
        cpus: of each.
        gpus: of each.
        cache: bytes of samples that the object store of each one's node has to hold; processes of one node share them.
        cache_kind: as what they are kept.
    """

    name: str
    count: int
    cpus: float
    gpus: float = 0
    cache: float = 0
    cache_kind: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.count} x {self.cpus:g} CPU{f' + {self.gpus:g} GPU' if self.gpus else ''}"


@dataclass(frozen=True)
class _Group:
    """Nodes that are alike: how many there are or may be, what each offers, whether the autoscaler's limit counts them."""

    count: int
    resources: Mapping[str, float]
    is_counted: bool = False

    def num_units(self, cpus: float, gpus: float) -> int:
        """How many units of so many CPUs and GPUs one of these nodes holds."""
        limits = [self.resources.get(name, 0.0) // each for name, each in (("CPU", cpus), ("GPU", gpus)) if each > 0]
        return int(min(limits, default=0))


def _nodes() -> tuple[list[_Group], float]:
    """The nodes there are, or those that the autoscaler may start, and how many of the counted ones there may be at once."""
    reported = ray._private.state.state.get_cluster_config()
    groups = reported.node_group_configs if reported else ()
    if groups:
        return [_Group(group.max_count if group.max_count >= 0 else NO_LIMIT, dict(group.resources)) for group in groups], math.inf
    config = _bootstrap_config()
    if config is None:
        return _nodes_up(), math.inf
    limit = config.get("max_workers", 0)
    return [
        _Group(1, node.get("resources", {}))
        if name == config["head_node_type"]
        else _Group(min(node.get("max_workers", limit), limit), node.get("resources", {}), is_counted=True)
        for name, node in config["available_node_types"].items()
    ], limit


def _nodes_up() -> list[_Group]:
    return [_Group(1, node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _bootstrap_config() -> dict[str, Any] | None:
    """What `ray up` leaves on the head node, where submitted jobs start; None where there is no autoscaler, or none of that kind."""
    path = os.path.expanduser(BOOTSTRAP_CONFIG)
    if "RAY_ADDRESS" not in os.environ or not os.path.exists(path):
        return None
    with open(path) as file:
        return yaml.safe_load(file)


def most_cpus() -> int:
    """CPUs of the largest node."""
    return max(1, *(int(group.resources.get("CPU", 0)) for group in _nodes()[0]))


def num_cpus() -> float:
    """CPUs of all nodes."""
    return _total("CPU")


def _total(name: str) -> float:
    """Of all nodes; where a limit counts them, of the largest ones within it."""
    groups, limit = _nodes()
    total = 0.0
    for group in sorted(groups, key=lambda group: -group.resources.get(name, 0.0)):
        count = min(group.count, limit) if group.is_counted else group.count
        limit -= count if group.is_counted else 0
        total += count * group.resources.get(name, 0.0)
    return total


def describe() -> str:
    """What the nodes offer, for people."""
    return (
        f"{sum(group.count for group in _nodes()[0])} nodes with {_total('CPU'):g} CPUs and {_total('GPU'):g} GPUs, "
        f"the smallest object store {smallest_object_store() / 2**30:.1f} GiB"
    )


def smallest_object_store(cpus: float = 1, gpus: float = 0) -> float:
    """Bytes of the smallest object store among the nodes that could take a process of so many CPUs and GPUs."""
    return min((node.resources.get("object_store_memory", 0.0) for node in _nodes_up() if node.num_units(cpus, gpus)), default=math.inf)


def room_for_cache(cpus: float, gpus: float) -> float:
    """Bytes that samples may take of the object store of any node that could take a process of so many CPUs and GPUs."""
    return MOST_OF_STORE * smallest_object_store(cpus, gpus)


def num_fitting(*, cpus: float, gpus: float = 0, are_up: bool = False) -> int:
    """How many units of so many CPUs and GPUs the nodes hold at once, or those that are up; a unit does not stretch over nodes."""
    groups, limit = (_nodes_up(), math.inf) if are_up else _nodes()
    fitting = 0
    for group in sorted(groups, key=lambda group: -group.num_units(cpus, gpus)):
        count = int(min(group.count, limit)) if group.is_counted else group.count
        limit -= count if group.is_counted else 0
        fitting += count * group.num_units(cpus, gpus)
    return fitting


def require(what: str, needs: Sequence[Need], *, hint: str) -> None:
    """Refuses a request that the cluster cannot hold, which Ray would wait for without end.

    Every kind of process is placed on nodes, largest first: what fits by the sums alone may still not fit.

    Args:
        what: names the request in the message.
        needs: all that has to run at the same time.
        hint: the flags to change.

    Raises:
        ValueError: with what is needed, what there is and the hint.
    """
    total = sum(need.count for need in needs)
    placed = _num_placed(needs)
    if placed < total:
        needed = {"CPU": sum(need.count * need.cpus for need in needs), "GPU": sum(need.count * need.gpus for need in needs)}
        have = {name: _total(name) for name in needed}
        parts = f" ({', '.join(map(str, needs))})" if len(needs) > 1 else ""
        is_scattered = all(have[name] >= needed[name] for name in needed)
        raise ValueError(
            f"{what} needs {needed['CPU']:g} CPUs and {needed['GPU']:g} GPUs{parts}, "
            f"the cluster has {have['CPU']:g} CPUs and {have['GPU']:g} GPUs"
            f"{f', but its nodes fit only {placed} of {total}' if is_scattered else ''}; {hint}"
        )
    for need in needs:
        # Ray may put such a process on any node that has room for it.
        if need.cache and need.cache > room_for_cache(need.cpus, need.gpus):
            raise ValueError(
                f"the {need.cache_kind} samples take {need.cache / 2**30:.1f} GiB, the object store of a node holds "
                f"{smallest_object_store(need.cpus, need.gpus) / 2**30:.1f} GiB and must keep a fifth free; "
                f"{'take --sample-cache encoded, ' if need.cache_kind == 'decoded' else ''}"
                "use smaller crops (--size, --margin of jobs.prepare), or start Ray with a larger --object-store-memory"
            )


def _num_placed(needs: Sequence[Need]) -> int:
    """How many of the processes find room, by the better of two orders in which the autoscaler may start nodes."""
    return max(_place(needs, is_largest_first) for is_largest_first in (False, True))


def _place(needs: Sequence[Need], is_largest_first: bool) -> int:
    """Best fit, largest processes first; exact for processes of one size beside smaller ones that fit in a corner."""
    groups, limit = _nodes()
    closed = {index: group.count for index, group in enumerate(groups) if group.is_counted}
    total = sum(need.count for need in needs)
    # Of more nodes than processes some stay empty.
    free = [_room(group) for group in groups if not group.is_counted for _ in range(min(group.count, total))]
    placed = 0
    for need in sorted(needs, key=lambda need: (-need.gpus, -need.cpus)):
        size = (need.gpus, need.cpus)
        for _ in range(need.count):
            rooms = [room for room in free if all(left >= part for left, part in zip(room, size, strict=True))]
            if not rooms and limit > 0:
                startable = [index for index, count in closed.items() if count and groups[index].num_units(*reversed(size))]
                if startable:
                    order = sorted(startable, key=lambda index: _room(groups[index]))
                    chosen = order[-1 if is_largest_first else 0]
                    closed[chosen] -= 1
                    limit -= 1
                    free.append(_room(groups[chosen]))
                    rooms = [free[-1]]
            if not rooms:
                break
            best = min(rooms)
            for axis, part in enumerate(size):
                best[axis] -= part
            placed += 1
    return placed


def _room(group: _Group) -> list[float]:
    """GPUs and CPUs of a node, in this order: of two nodes the one without GPUs is the smaller."""
    return [group.resources.get("GPU", 0.0), group.resources.get("CPU", 0.0)]
