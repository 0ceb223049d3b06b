"""Nodes are asked for while they are missing; what the environment of Ray's processes does."""

import os
import platform
import subprocess
import sys
import time
from collections import Counter

import pytest
import ray
from ray._private import services
from ray.util import placement_group_table

from posepipe import capacity, cluster


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


def test_processes_of_a_ray_that_a_job_starts_find_it_among_others(ray_session: None) -> None:
    found = ray.get(ray.remote(services.canonicalize_bootstrap_address_or_die).remote(None))
    assert found == ray.get_runtime_context().gcs_address
    assert os.environ.get("RAY_ADDRESS") != found, "what this process starts is told no address"


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
        monkeypatch.setattr(capacity, "_nodes_up", lambda: [capacity._Group(count, {"CPU": 64})])

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
