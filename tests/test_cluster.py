"""What fits a cluster, and what is refused before anything starts."""

import os
import platform
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import placement_group_table

from posepipe import cluster
from posepipe.cluster import Need


def nodes(monkeypatch: pytest.MonkeyPatch, *resources: dict[str, float]) -> None:
    """A cluster of these nodes."""
    alive: list[dict[str, Any]] = [{"Alive": True, "Resources": node} for node in resources]
    monkeypatch.setattr(cluster.ray, "nodes", lambda: alive)
    monkeypatch.setattr(cluster.ray._private.state.state, "get_cluster_config", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def ray_up(monkeypatch: pytest.MonkeyPatch, folder: Path, max_workers: int) -> None:
    """A cluster that `ray up` may grow."""
    config = folder / "ray_bootstrap_config.yaml"
    config.write_text(
        f"max_workers: {max_workers}\nhead_node_type: head\navailable_node_types:\n"
        "  head: {resources: {CPU: 0}}\n"
        "  cpu: {max_workers: 8, resources: {CPU: 16}}\n"
        "  gpu: {max_workers: 4, resources: {CPU: 8, GPU: 1}}\n"
    )
    monkeypatch.setattr(cluster, "BOOTSTRAP_CONFIG", str(config))


def test_what_fits_is_not_refused(ray_session: None) -> None:
    cluster.require("a job", [Need("workers", 6, 1)], hint="change --x")


def test_what_does_not_fit_is_refused_with_the_numbers(ray_session: None) -> None:
    with pytest.raises(ValueError, match=r"^a job needs 7 CPUs and 0 GPUs, the cluster has 6 CPUs and 0 GPUs; change --x$"):
        cluster.require("a job", [Need("workers", 7, 1)], hint="change --x")
    with pytest.raises(ValueError, match="needs 1 CPUs and 2 GPUs"):
        cluster.require("a job", [Need("workers", 1, 1, 2)], hint="change --x")


def test_the_scarcest_resource_decides_how_many_fit(ray_session: None) -> None:
    assert cluster.num_fitting(cpus=4, gpus=0) == 1
    assert cluster.num_fitting(cpus=3, gpus=0) == 2
    assert cluster.num_fitting(cpus=1, gpus=1) == 0


def test_a_process_does_not_stretch_over_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 4}, {"CPU": 4})
    cluster.require("a job", [Need("workers", 2, 3)], hint="")
    with pytest.raises(ValueError, match="needs 6 CPUs and 0 GPUs, the cluster has 8 CPUs and 0 GPUs, but its nodes fit only 0 of 1; hint"):
        cluster.require("a job", [Need("worker", 1, 6)], hint="hint")
    with pytest.raises(ValueError, match="but its nodes fit only 2 of 3"):
        cluster.require("a job", [Need("actors", 2, 3), Need("reading", 1, 2)], hint="")


def test_small_processes_go_where_large_ones_leave_room(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 3}, {"CPU": 7})
    cluster.require("a job", [Need("reading", 2, 0.5), Need("actors", 3, 3)], hint="")
    with pytest.raises(ValueError, match=r"needs 10.5 CPUs and 0 GPUs \(reading: 3 x 0.5 CPU, actors: 3 x 3 CPU\), the cluster has 10"):
        cluster.require("a job", [Need("reading", 3, 0.5), Need("actors", 3, 3)], hint="")


def test_processes_without_a_gpu_leave_the_gpu_nodes_to_those_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 2, "GPU": 1}, {"CPU": 2})
    cluster.require("a job", [Need("reading", 2, 1), Need("actors", 1, 2, 1)], hint="")
    with pytest.raises(ValueError, match="but its nodes fit only 1 of 2"):
        cluster.require("a job", [Need("actors", 2, 2, 0.5)], hint="")


def test_samples_have_to_fit_on_every_node_that_may_take_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(
        monkeypatch,
        {"CPU": 0, "object_store_memory": 2**20},
        {"CPU": 8, "object_store_memory": 2**30},
        {"CPU": 8, "GPU": 1, "object_store_memory": 4 * 2**30},
    )
    cluster.require("a job", [Need("workers", 1, 8, 0, cache=0.7 * 2**30, cache_kind="decoded")], hint="")
    cluster.require("a job", [Need("workers", 1, 8, 1, cache=3 * 2**30, cache_kind="decoded")], hint="")
    with pytest.raises(ValueError, match=r"take 3\.0 GiB, the object store of a node holds 1\.0 GiB .*--size, --margin of jobs.prepare"):
        cluster.require("a job", [Need("workers", 1, 8, 0, cache=3 * 2**30, cache_kind="decoded")], hint="")


def test_nodes_that_ray_up_may_still_start_count(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_up(monkeypatch, tmp_path, max_workers=12)
    assert cluster.num_fitting(cpus=1) == 6, "a local Ray is not the cluster of that file"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert (cluster.num_fitting(cpus=16), cluster.num_fitting(cpus=8, gpus=1), cluster.most_cpus()) == (8, 4, 16)
    cluster.require("a job", [Need("workers", 8, 16)], hint="")
    with pytest.raises(ValueError, match="needs 5 CPUs and 5 GPUs, the cluster has 160 CPUs and 4 GPUs"):
        cluster.require("a job", [Need("workers", 5, 1, 1)], hint="")
    with pytest.raises(ValueError, match="the cluster has 160 CPUs and 4 GPUs, but its nodes fit only 0 of 1; hint"):
        cluster.require("a job", [Need("workers", 1, 16, 1)], hint="hint")


def test_the_limit_of_all_nodes_together_holds(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_up(monkeypatch, tmp_path, max_workers=3)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert (cluster.num_fitting(cpus=16), cluster.num_fitting(cpus=8, gpus=1), cluster.num_cpus()) == (3, 3, 48)
    cluster.require("a job", [Need("workers", 6, 8)], hint="")
    cluster.require("a job", [Need("actors", 2, 8, 1), Need("reading", 1, 8)], hint="")
    with pytest.raises(ValueError, match="but its nodes fit only 3 of 4"):
        cluster.require("a job", [Need("actors", 3, 8, 1), Need("reading", 1, 1)], hint="")


def test_cpus_of_all_nodes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}, {"GPU": 1.0})
    assert cluster.num_cpus() == 6


def test_people_read_what_the_nodes_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 2.0, "object_store_memory": 3 * 2**30}, {"CPU": 4.0, "GPU": 0.5, "object_store_memory": 2.25 * 2**30})
    assert cluster.describe() == "2 nodes with 6 CPUs and 0.5 GPUs, the smallest object store 2.2 GiB"


def states() -> Counter[str]:
    """Of the placement groups that there are."""
    return Counter(group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED")


def wait_for_states(expected: Counter[str]) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if states() == expected:
            return True
        time.sleep(0.1)
    return False


def test_nodes_are_asked_for_and_no_place_on_them_is_taken(ray_session: None) -> None:
    before = states()
    with cluster.ask_for_nodes(2, 4, 0, beside=1):  # 6 CPUs hold one at a time
        deadline = time.monotonic() + 60
        while states() != before and time.monotonic() < deadline:
            time.sleep(0.1)
        assert states() == before, "a place was kept"
    with cluster.ask_for_nodes(3, 64, 0, beside=0):
        time.sleep(1.5)
        assert states() - before == {"PENDING": 3}
    assert states() == before


def test_nodes_are_asked_for_though_idle_ones_have_room_at_first(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    @ray.remote(num_cpus=6)
    class Actor:
        def is_ready(self) -> bool:
            return True

    monkeypatch.setattr(cluster, "ASK_AGAIN_AFTER", 1.0)
    before = states()
    with cluster.ask_for_nodes(2, 4, 0, beside=1):
        assert wait_for_states(before), "a place was kept"
        actor = Actor.remote()
        assert ray.get(actor.is_ready.remote(), timeout=60), "no place was left to the actor"
        assert wait_for_states(before + Counter(PENDING=2))
        ray.kill(actor)
    assert states() == before


def test_no_more_nodes_are_asked_for_than_are_missing(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def bring_up(count: int) -> None:
        monkeypatch.setattr(cluster, "_nodes_up", lambda: [cluster._Group(count, {"CPU": 64})])

    monkeypatch.setattr(cluster, "ASK_AGAIN_AFTER", 1.0)
    before = states()
    bring_up(1)
    with cluster.ask_for_nodes(3, 64, 0, beside=1):
        assert wait_for_states(before + Counter(PENDING=3))
        bring_up(3)
        assert wait_for_states(before + Counter(PENDING=1))
        bring_up(2)  # A node that is lost is asked for by the process that was on it.
        time.sleep(2.5)
        assert states() - before == {"PENDING": 1}
        bring_up(5)
        assert wait_for_states(before)
    bring_up(1)
    with cluster.ask_for_nodes(1, 64, 0, beside=0):
        assert wait_for_states(before), "the one that came was not beside any other"


def test_a_worker_process_that_idled_is_used_again(ray_session: None) -> None:
    @ray.remote(num_cpus=6)
    class Holder:
        def is_ready(self) -> bool:
            return True

    holder = Holder.remote()  # No CPU is free, and so by default no process may idle for more than a second.
    ask = ray.remote(num_cpus=0)(lambda: os.getpid())
    assert ray.get(holder.is_ready.remote(), timeout=60)
    before = ray.get(ask.remote(), timeout=60)
    time.sleep(3)
    after = ray.get(ask.remote(), timeout=60)
    ray.kill(holder)
    assert after == before


_FAULTS = """
import resource, threading, torch
def run():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            torch.ones(10 * 2**20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=run)  # as Ray Train runs a loop
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_processes_that_run_networks_keep_the_memory_of_their_buffers():
    def count(env):
        said = subprocess.run([sys.executable, "-c", _FAULTS], env={**os.environ, **env}, capture_output=True, text=True, check=True)
        return int(said.stdout)

    assert count(cluster.NETWORK_ENV["env_vars"]) < count({}) / 10
