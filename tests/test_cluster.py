"""What fits a cluster, and what is refused before anything starts."""

from pathlib import Path

import pytest

from posepipe import cluster


def test_what_fits_is_not_refused(ray_session: None) -> None:
    cluster.require("a job", cpus=6, gpus=0, hint="change --x")


def test_what_does_not_fit_is_refused_with_the_numbers(ray_session: None) -> None:
    with pytest.raises(ValueError, match="a job needs 7 CPUs and 0 GPUs, the cluster has 6 CPUs and 0 GPUs; change --x"):
        cluster.require("a job", cpus=7, hint="change --x")
    with pytest.raises(ValueError, match="needs 1 CPUs and 2 GPUs"):
        cluster.require("a job", cpus=1, gpus=2, hint="change --x")


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
    assert not cluster.can_grow(), "a local Ray is not the cluster of that file"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert cluster.can_grow()
    assert (cluster.capacity()["CPU"], cluster.capacity()["GPU"]) == (160, 4)
    cluster.require("a job", cpus=160, gpus=4, hint="")
    with pytest.raises(ValueError, match="the cluster has 160 CPUs and 4 GPUs"):
        cluster.require("a job", gpus=5, hint="")
