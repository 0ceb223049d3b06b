"""Trains on a cluster of this machine that changes in the middle of an epoch.

    python tests/nodes.py lose SAMPLES_URI RUNS_URI    two runs on three nodes, the second without the node that trains from then on
    python tests/nodes.py gain SAMPLES_URI RUNS_URI    a run on two nodes of which one is too small for a worker, then another one joins

A script of its own, as a process can be part of one cluster only. Prints what happened as JSON.
"""

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster
from test_training import interruptible, train_workers, wait_for_middle_of_epoch

from posepipe import cluster, storage, training

NODE = {"num_cpus": 2, "object_store_memory": 200 * 2**20}


def start(num_nodes: int) -> tuple[Cluster, list[Any]]:
    """A head that is too small for a worker of two CPUs, and so many nodes with room for one."""
    nodes = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 1})
    others = [nodes.add_node(**NODE) for _ in range(num_nodes)]
    ray.init(address=nodes.address, logging_level="ERROR")
    cluster.connect()
    return nodes, others


def history(runs_uri: str, name: str) -> list[dict[str, Any]]:
    return storage.read_json(f"{runs_uri}/{name}/history.json")


def lose(samples_uri: str, runs_uri: str) -> dict[str, Any]:
    """How many workers the node held, and the last row of both histories."""
    nodes, others = start(2)
    whole = interruptible(samples_uri, runs_uri, "whole", num_workers=2)
    cut = dataclasses.replace(whole, name="cut")
    found: dict[str, Any] = {}
    training.train(whole)
    thread = threading.Thread(target=lambda: found.update(killed=take_node_away(nodes, others, Path(runs_uri) / cut.name)))
    thread.start()
    training.train(cut)
    thread.join()
    ray.shutdown()
    nodes.shutdown()
    return found | {name: history(runs_uri, name)[-1] for name in ("whole", "cut")}


def take_node_away(nodes: Cluster, others: list[Any], folder: Path) -> int:
    """Kills the first of the nodes that trains, and returns how many workers it held."""
    wait_for_middle_of_epoch(folder)
    parents = [psutil.Process(pid).ppid() for pid in train_workers()]
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in others}
    pid = next(pid for pid in parents if pid in raylets)
    nodes.remove_node(raylets[pid], allow_graceful=False)
    return parents.count(pid)


def gain(samples_uri: str, runs_uri: str) -> dict[str, Any]:
    """The history of a run that may have one or two workers, and has room for one at first."""
    nodes, _ = start(1)
    joined: list[subprocess.Popen[bytes]] = []
    run = interruptible(samples_uri, runs_uri, "grown", num_workers="1:2", cpus_per_worker=2)
    # Ray looks for room once a minute.
    run = dataclasses.replace(run, epochs=200, checkpoint_every=2, num_snapshot_people=0)

    def add() -> None:
        wait_for_middle_of_epoch(Path(runs_uri) / run.name)
        # `add_node` works in the main thread alone, which trains.
        flags = (f"--{name.replace('_', '-')}={value}" for name, value in NODE.items())
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={nodes.address}", "--block", *flags]
        joined.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))

    thread = threading.Thread(target=add)
    thread.start()
    training.train(run)
    thread.join()
    ray.shutdown()
    for process in joined:
        process.terminate()
        process.wait()
    nodes.shutdown()
    return {"history": history(runs_uri, run.name)}


if __name__ == "__main__":
    print(json.dumps({"lose": lose, "gain": gain}[sys.argv[1]](*sys.argv[2:])), flush=True)
