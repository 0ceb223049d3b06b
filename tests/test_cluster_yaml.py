"""cluster.yaml keeps its promises: valid for Ray, closed to the public, pinned, from 0 GPUs."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def ray_version() -> str:
    found = re.search(r"^ray(?:\[[^\]]*\])?==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None, "constraints.txt pins no Ray"
    return found[1]


def commands(cluster: dict[str, Any]) -> list[str]:
    return [command for name, value in cluster.items() if name.endswith("_commands") for command in value]


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)


def test_head_takes_no_work(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}


def test_gpu_workers_start_from_zero_and_are_spot(cluster: dict[str, Any]) -> None:
    gpu_types = [node for node in cluster["available_node_types"].values() if node["resources"].get("GPU")]
    assert gpu_types
    for node in gpu_types:
        assert node["min_workers"] == 0
        assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_max_workers_is_the_sum_over_worker_types(cluster: dict[str, Any]) -> None:
    workers = {name: node for name, node in cluster["available_node_types"].items() if name != cluster["head_node_type"]}
    assert cluster["max_workers"] == sum(node["max_workers"] for node in workers.values())
    assert all(0 <= node["min_workers"] <= node["max_workers"] for node in workers.values())


def test_nothing_listens_to_the_public(cluster: dict[str, Any]) -> None:
    assert "0.0.0.0" not in json.dumps(cluster)
    assert cluster["provider"]["use_internal_ips"] is True
    (start,) = [command for command in cluster["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start
    for node in cluster["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"], "without a group of its own Ray makes one that is open for SSH"


def test_every_call_needs_the_token(cluster: dict[str, Any]) -> None:
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


def test_nodes_have_a_profile_instead_of_keys(cluster: dict[str, Any]) -> None:
    assert all(node["node_config"]["IamInstanceProfile"] for node in cluster["available_node_types"].values())
    assert not re.search(r"AWS_ACCESS_KEY|AWS_SECRET|AKIA[0-9A-Z]{16}", (ROOT / "cluster.yaml").read_text())


def test_images_hold_the_ray_of_the_constraints(cluster: dict[str, Any], ray_version: str) -> None:
    docker = [cluster["docker"], *(node.get("docker", {}) for node in cluster["available_node_types"].values())]
    images = [value for section in docker for name, value in section.items() if name.endswith("image")]
    assert len(images) == 2
    assert {image.partition(":")[2].split("-")[0] for image in images} == {ray_version}


def test_setup_installs_what_the_constraints_pin(cluster: dict[str, Any], ray_version: str) -> None:
    installs = [command for command in commands(cluster) if "pip install" in command]
    assert installs
    assert all("--constraint /home/ray/posepipe/constraints.txt" in command for command in installs)
    named = re.findall(r"ray(?:\[[^\]]*\])?==([\w.]+)", " ".join(installs))
    assert all(version == ray_version for version in named)
