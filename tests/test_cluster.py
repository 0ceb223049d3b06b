"""What fits a cluster, and what is refused before anything starts."""

from pathlib import Path

import pytest

from posepipe import cluster


def test_what_fits_is_not_refused(ray_session: None) -> None:
    cluster.require("a job", units=6, cpus=1, hint="change --x")


def test_what_does_not_fit_is_refused_with_the_numbers(ray_session: None) -> None:
    with pytest.raises(ValueError, match="a job needs 7 CPUs and 0 GPUs, the cluster has 6 CPUs and 0 GPUs; change --x"):
        cluster.require("a job", units=7, cpus=1, hint="change --x")
    with pytest.raises(ValueError, match="needs 1 CPUs and 2 GPUs"):
        cluster.require("a job", units=1, cpus=1, gpus=2, hint="change --x")


def test_the_scarcest_resource_decides_how_many_fit(ray_session: None) -> None:
    assert cluster.num_fitting(cpus=4, gpus=0) == 1
    assert cluster.num_fitting(cpus=3, gpus=0) == 2
    assert cluster.num_fitting(cpus=1, gpus=1) == 0


def test_nodes_that_ray_up_may_still_start_count(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "ray_bootstrap_config.yaml"
    config.write_text(
        "max_workers: 12\nhead_node_type: head\navailable_node_types:\n"
        "  head: {resources: {CPU: 0}}\n"
        "  cpu: {max_workers: 8, resources: {CPU: 16}}\n"
        "  gpu: {max_workers: 4, resources: {CPU: 8, GPU: 1}}\n"
    )
    monkeypatch.setattr(cluster, "BOOTSTRAP_CONFIG", str(config))
    assert cluster.num_fitting(cpus=1) == 6, "a local Ray is not the cluster of that file"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert (cluster.num_fitting(cpus=16), cluster.num_fitting(cpus=8, gpus=1), cluster.most_cpus()) == (8, 4, 16)
    cluster.require("a job", units=8, cpus=16, hint="")
    with pytest.raises(ValueError, match="needs 5 CPUs and 5 GPUs, the cluster has 160 CPUs and 4 GPUs"):
        cluster.require("a job", units=5, cpus=1, gpus=1, hint="")
    with pytest.raises(ValueError, match="the cluster has 160 CPUs and 4 GPUs, but its nodes fit only 0 of 1; hint"):
        cluster.require("a job", units=1, cpus=16, gpus=1, hint="hint")


def test_cpus_of_all_nodes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_nodes", lambda: [(1, {"CPU": 2.0}), (3, {"CPU": 4.0, "GPU": 1.0}), (2, {"GPU": 1.0})])
    assert cluster.num_cpus() == 14


def test_people_read_what_the_nodes_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_nodes", lambda: [(1, {"CPU": 2.0}), (3, {"CPU": 4.0, "GPU": 0.5}), (0, {"CPU": 64.0})])
    monkeypatch.setattr(cluster, "smallest_object_store", lambda: 2.25 * 2**30)
    assert cluster.describe() == "4 nodes with 14 CPUs and 1.5 GPUs, the smallest object store 2.2 GiB"
