"""What fits a cluster, and what is refused before anything starts."""

from pathlib import Path
from typing import Any

import pytest

from posepipe import capacity
from posepipe.capacity import Need


def nodes(monkeypatch: pytest.MonkeyPatch, *resources: dict[str, float]) -> None:
    """A cluster of these nodes."""
    alive: list[dict[str, Any]] = [{"Alive": True, "Resources": node} for node in resources]
    monkeypatch.setattr(capacity.ray, "nodes", lambda: alive)
    monkeypatch.setattr(capacity.ray._private.state.state, "get_cluster_config", lambda: None)
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
    monkeypatch.setattr(capacity, "BOOTSTRAP_CONFIG", str(config))


def test_what_fits_is_not_refused(ray_session: None) -> None:
    capacity.require("a job", [Need("workers", 6, 1)], hint="change --x")


def test_what_does_not_fit_is_refused_with_the_numbers(ray_session: None) -> None:
    with pytest.raises(ValueError, match=r"^a job needs 7 CPUs and 0 GPUs, the cluster has 6 CPUs and 0 GPUs; change --x$"):
        capacity.require("a job", [Need("workers", 7, 1)], hint="change --x")
    with pytest.raises(ValueError, match="needs 1 CPUs and 2 GPUs"):
        capacity.require("a job", [Need("workers", 1, 1, 2)], hint="change --x")


def test_the_scarcest_resource_decides_how_many_fit(ray_session: None) -> None:
    assert capacity.num_fitting(cpus=4, gpus=0) == 1
    assert capacity.num_fitting(cpus=3, gpus=0) == 2
    assert capacity.num_fitting(cpus=1, gpus=1) == 0


def test_a_process_does_not_stretch_over_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 4}, {"CPU": 4})
    capacity.require("a job", [Need("workers", 2, 3)], hint="")
    with pytest.raises(ValueError, match="needs 6 CPUs and 0 GPUs, the cluster has 8 CPUs and 0 GPUs, but its nodes fit only 0 of 1; hint"):
        capacity.require("a job", [Need("worker", 1, 6)], hint="hint")
    with pytest.raises(ValueError, match="but its nodes fit only 2 of 3"):
        capacity.require("a job", [Need("actors", 2, 3), Need("reading", 1, 2)], hint="")


def test_small_processes_go_where_large_ones_leave_room(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 3}, {"CPU": 7})
    capacity.require("a job", [Need("reading", 2, 0.5), Need("actors", 3, 3)], hint="")
    with pytest.raises(ValueError, match=r"needs 10.5 CPUs and 0 GPUs \(reading: 3 x 0.5 CPU, actors: 3 x 3 CPU\), the cluster has 10"):
        capacity.require("a job", [Need("reading", 3, 0.5), Need("actors", 3, 3)], hint="")


def test_processes_without_a_gpu_leave_the_gpu_nodes_to_those_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 2, "GPU": 1}, {"CPU": 2})
    capacity.require("a job", [Need("reading", 2, 1), Need("actors", 1, 2, 1)], hint="")
    with pytest.raises(ValueError, match="but its nodes fit only 1 of 2"):
        capacity.require("a job", [Need("actors", 2, 2, 0.5)], hint="")


def test_samples_have_to_fit_on_every_node_that_may_take_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(
        monkeypatch,
        {"CPU": 0, "object_store_memory": 2**20},
        {"CPU": 8, "object_store_memory": 2**30},
        {"CPU": 8, "GPU": 1, "object_store_memory": 4 * 2**30},
    )
    capacity.require("a job", [Need("workers", 1, 8, 0, cache=0.7 * 2**30, cache_kind="decoded")], hint="")
    capacity.require("a job", [Need("workers", 1, 8, 1, cache=3 * 2**30, cache_kind="decoded")], hint="")
    with pytest.raises(ValueError, match=r"take 3\.0 GiB, the object store of a node holds 1\.0 GiB .*--size, --margin of jobs.prepare"):
        capacity.require("a job", [Need("workers", 1, 8, 0, cache=3 * 2**30, cache_kind="decoded")], hint="")


def test_nodes_that_ray_up_may_still_start_count(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_up(monkeypatch, tmp_path, max_workers=12)
    assert capacity.num_fitting(cpus=1) == 6, "a local Ray is not the cluster of that file"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert (capacity.num_fitting(cpus=16), capacity.num_fitting(cpus=8, gpus=1), capacity.most_cpus()) == (8, 4, 16)
    capacity.require("a job", [Need("workers", 8, 16)], hint="")
    with pytest.raises(ValueError, match="needs 5 CPUs and 5 GPUs, the cluster has 160 CPUs and 4 GPUs"):
        capacity.require("a job", [Need("workers", 5, 1, 1)], hint="")
    with pytest.raises(ValueError, match="the cluster has 160 CPUs and 4 GPUs, but its nodes fit only 0 of 1; hint"):
        capacity.require("a job", [Need("workers", 1, 16, 1)], hint="hint")


def test_the_limit_of_all_nodes_together_holds(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_up(monkeypatch, tmp_path, max_workers=3)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert (capacity.num_fitting(cpus=16), capacity.num_fitting(cpus=8, gpus=1), capacity.num_cpus()) == (3, 3, 48)
    capacity.require("a job", [Need("workers", 6, 8)], hint="")
    capacity.require("a job", [Need("actors", 2, 8, 1), Need("reading", 1, 8)], hint="")
    with pytest.raises(ValueError, match="but its nodes fit only 3 of 4"):
        capacity.require("a job", [Need("actors", 3, 8, 1), Need("reading", 1, 1)], hint="")


def test_cpus_of_all_nodes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}, {"GPU": 1.0})
    assert capacity.num_cpus() == 6


def test_people_read_what_the_nodes_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 2.0, "object_store_memory": 3 * 2**30}, {"CPU": 4.0, "GPU": 0.5, "object_store_memory": 2.25 * 2**30})
    assert capacity.describe() == "2 nodes with 6 CPUs and 0.5 GPUs, the smallest object store 2.2 GiB"
