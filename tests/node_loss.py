"""Trains twice on three nodes of one machine, the second time without the node that trains from the middle of an epoch on.

    python tests/node_loss.py SAMPLES_URI RUNS_URI

A script of its own, as a process can be part of one cluster only. Prints what was killed and the last row of both histories as JSON.
"""

import dataclasses
import json
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster
from test_training import interruptible, train_workers, wait_for_middle_of_epoch

from posepipe import cluster, storage, training


def main(samples_uri: str, runs_uri: str) -> dict[str, Any]:
    memory = 200 * 2**20
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": memory})
    others = [nodes.add_node(num_cpus=2, object_store_memory=memory) for _ in range(2)]
    ray.init(address=nodes.address, logging_level="ERROR")
    cluster.connect()
    whole = interruptible(samples_uri, runs_uri, "whole", num_workers=2)
    cut = dataclasses.replace(whole, name="cut")
    found: dict[str, Any] = {}
    for run in (whole, cut):
        thread = threading.Thread(target=lambda: found.update(killed=take_node_away(nodes, others, Path(runs_uri) / cut.name)))
        if run is cut:
            thread.start()
        training.train(run)
        if run is cut:
            thread.join()
        found[run.name] = storage.read_json(f"{runs_uri}/{run.name}/history.json")[-1]
    ray.shutdown()
    nodes.shutdown()
    return found


def take_node_away(nodes: Cluster, others: list[Any], folder: Path) -> int:
    """Kills the first of the nodes that trains, and returns how many workers it held."""
    wait_for_middle_of_epoch(folder)
    parents = [psutil.Process(pid).ppid() for pid in train_workers()]
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in others}
    pid = next(pid for pid in parents if pid in raylets)
    nodes.remove_node(raylets[pid], allow_graceful=False)
    return parents.count(pid)


if __name__ == "__main__":
    result = main(*sys.argv[1:])
    print(json.dumps(result), flush=True)
