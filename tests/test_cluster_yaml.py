"""The files of `ray up` keep their promises: what Ray would start of them is private, spot, from 0 and without keys."""

import copy
import functools
import importlib.resources
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import jsonschema
import pytest
import ray
from deployment import RAY_UP, ROOT, documents, pinned, read
from ray.autoscaler._private import util

from posepipe.cluster import NODE_ENV

AWS, GCP = RAY_UP
REGION = "us-east-1"


@pytest.fixture(scope="module", params=RAY_UP)
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    (document,) = read(request.param)
    return document


def commands(cluster: dict[str, Any]) -> list[str]:
    return [command for name, value in cluster.items() if name.endswith("_commands") for command in value]


def workers(cluster: dict[str, Any]) -> dict[str, Any]:
    return {name: node for name, node in cluster["available_node_types"].items() if name != cluster["head_node_type"]}


def is_spot(node_config: dict[str, Any]) -> bool:
    market, scheduling = node_config.get("InstanceMarketOptions", {}), node_config.get("scheduling", {})
    return market.get("MarketType") == "spot" or scheduling.get("provisioningModel") == "SPOT"


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    prepared = util.prepare_config(copy.deepcopy(cluster))
    util.validate_config(prepared)
    assert {name: node["max_workers"] for name, node in prepared["available_node_types"].items()} == {
        "head": 0,
        "cpu_worker": 8,
        "gpu_worker": 4,
    }


@pytest.mark.parametrize("mistake", [{"max_worker": 3}, {"max_workers": "many"}, {"head_node_type": "none"}, {"provider": {}}])
def test_ray_refuses_a_mistake(cluster: dict[str, Any], mistake: dict[str, Any]) -> None:
    with pytest.raises((jsonschema.ValidationError, ValueError, KeyError)):
        util.validate_config(util.prepare_config({**copy.deepcopy(cluster), **mistake}))


def test_head_takes_no_work(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert not is_spot(head["node_config"]), "without its head a cluster is lost"


def test_workers_start_from_zero_and_are_spot(cluster: dict[str, Any]) -> None:
    assert {name: node["resources"].get("GPU", 0) for name, node in workers(cluster).items()} == {"cpu_worker": 0, "gpu_worker": 1}
    for node in workers(cluster).values():
        assert node["min_workers"] == 0
        assert is_spot(node["node_config"])


def test_max_workers_is_the_sum_over_worker_types(cluster: dict[str, Any]) -> None:
    assert cluster["max_workers"] == sum(node["max_workers"] for node in workers(cluster).values())
    assert 0 < cluster["idle_timeout_minutes"] <= 15


def test_every_call_needs_the_token(cluster: dict[str, Any]) -> None:
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


def test_idle_workers_are_kept_as_on_one_machine(cluster: dict[str, Any]) -> None:
    assert {f"--env {name}={value}" for name, value in NODE_ENV.items()} <= set(cluster["docker"]["run_options"])


@pytest.mark.parametrize("name", RAY_UP)
def test_no_key_is_written_down(name: str) -> None:
    assert not re.search(r"AWS_ACCESS_KEY|AWS_SECRET|AKIA[0-9A-Z]{16}|gcp_credentials|private_key", (ROOT / name).read_text())


def test_images_hold_the_ray_of_the_constraints(cluster: dict[str, Any]) -> None:
    docker = [cluster["docker"], *(node.get("docker", {}) for node in cluster["available_node_types"].values())]
    images = [value for section in docker for name, value in section.items() if name.endswith("image")]
    assert images == [f"rayproject/ray:{pinned('ray')}-py311", f"rayproject/ray:{pinned('ray')}-py311-gpu"]


def test_setup_installs_what_the_constraints_pin(cluster: dict[str, Any]) -> None:
    installs = [command for command in commands(cluster) if "pip install" in command]
    assert installs
    assert all("--constraint /home/ray/posepipe/constraints.txt" in command for command in installs)
    for package in re.findall(r"constraints\.txt ([a-z][\w-]*)$", "\n".join(installs), re.MULTILINE):
        assert pinned(package)
    extras = re.findall(r"posepipe\[(\w+)\]", " ".join(installs))
    assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in extras)


def test_many_files_may_be_open(cluster: dict[str, Any]) -> None:
    (limit,) = [option for option in cluster["docker"]["run_options"] if option.startswith("--ulimit nofile=")]
    assert int(limit.partition("=")[2].partition(":")[0]) >= 65536


def test_all_nodes_spill_to_the_disk_that_is_mounted(cluster: dict[str, Any]) -> None:
    assert "--volume /mnt/spill:/mnt/spill" in cluster["docker"]["run_options"]
    starts = [command for command in commands(cluster) if command.startswith("ray start")]
    assert len(starts) == 2
    assert all("--object-spilling-directory=/mnt/spill" in command for command in starts)


@pytest.fixture
def mount(cluster: dict[str, Any], tmp_path: Path) -> Callable[..., list[str]]:
    """Runs initialization_commands with stand-ins for what needs root; returns what was done as root."""
    (command,) = cluster["initialization_commands"]
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, script in {
        "sudo": f'echo "$@" >> {tmp_path}/done',
        "systemctl": "exit 1",
        "lsblk": 'printf "$DISKS"',
        "mountpoint": 'case " $MOUNTED " in *" $2 "*) exit 0;; esac; exit 32',
        "lspci": 'printf "$DEVICES"',
        "nvidia-smi": f"echo asked >> {tmp_path}/asked; test $(wc -l < {tmp_path}/asked) -gt 2",
        "sleep": "true",
    }.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (bin_folder / name).chmod(0o755)
    google_disk = tmp_path / "google-disk"

    def run(*, disk: bool = False, mounted: str = "", devices: str = "") -> list[str]:
        google_disk.unlink(missing_ok=True)
        if disk:
            google_disk.touch()
        text = command.replace("/dev/disk/by-id/google-local-nvme-ssd-0", str(google_disk))
        disks = "/dev/nvme0n1 Amazon Elastic Block Store\n" + ("/dev/nvme1n1 Amazon EC2 NVMe Instance Storage\n" if disk else "")
        env = {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "DISKS": disks, "MOUNTED": mounted, "DEVICES": devices}
        (tmp_path / "done").write_text("")
        subprocess.run(["bash", "-c", text], env=env, check=True, timeout=60)
        done = (tmp_path / "done").read_text().replace(str(google_disk), "/dev/nvme1n1").splitlines()
        assert (done[0], done[-1]) == ("mkdir -p /mnt/spill", "chmod 1777 /mnt/spill")
        return done[1:-1]

    return run


def test_a_nodes_own_disk_is_formatted_and_mounted_once(mount: Callable[..., list[str]]) -> None:
    made, mounted = mount(disk=True)
    assert re.fullmatch(r"mkfs\.\w+ -\w+ /dev/nvme1n1", made)
    assert mounted == "mount /dev/nvme1n1 /mnt/spill"
    assert mount(disk=True, mounted="/mnt/spill") == [], "a node that is set up again keeps its disk"


def test_a_node_without_a_disk_of_its_own_formats_nothing(mount: Callable[..., list[str]]) -> None:
    assert mount() == []


def test_a_node_with_a_gpu_waits_for_its_driver(cluster: dict[str, Any], mount: Callable[..., list[str]], tmp_path: Path) -> None:
    """Of Compute Engine, which installs it while the node starts; without it Ray would run its container without GPUs."""
    mount(devices="00:03.0 Host bridge: Intel\n")
    assert not (tmp_path / "asked").exists()
    mount(devices="00:03.0 3D controller: NVIDIA Corporation AD104GL [L4]\n")
    if cluster["provider"]["type"] == "gcp":
        assert (tmp_path / "asked").read_text().split() == ["asked"] * 3


def test_a_disk_that_the_image_has_mounted_is_used_as_it_is(cluster: dict[str, Any], mount: Callable[..., list[str]]) -> None:
    if cluster["provider"]["type"] == "aws":
        assert mount(disk=True, mounted="/opt/dlami/nvme") == ["mount --bind /opt/dlami/nvme /mnt/spill"]


@pytest.fixture(scope="module")
def aws_nodes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What `ray up` makes of the AWS file: an instance of each type, on moto's EC2; with what was asked for and what EC2 says of it."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private import commands as ray_up
    from ray.autoscaler._private.aws import utils as aws_utils
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    settings = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "HOME": str(tmp_path_factory.mktemp("home"))}
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        for name, value in settings.items():
            patch.setenv(name, value)
        calls: set[str] = set()
        boto3.setup_default_session()
        boto3.DEFAULT_SESSION.events.register("before-call.ec2", lambda model, **_: calls.add(f"ec2:{model.name}"))
        aws_utils.resource_cache.cache_clear()
        aws_utils.client_cache.cache_clear()
        ec2, iam = boto3.Session().client("ec2", REGION), boto3.client("iam", REGION)
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        made = {
            "subnet-CHANGE_ME": ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"],
            "sg-CHANGE_ME": ec2.create_security_group(GroupName="nodes", Description="nodes", VpcId=vpc)["GroupId"],
            "ami-CHANGE_ME": ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"],
        }
        for profile in ("CHANGE_ME-posepipe-head", "CHANGE_ME-posepipe-worker"):
            iam.create_instance_profile(InstanceProfileName=profile)
        text = functools.reduce(lambda text, each: text.replace(*each), made.items(), (ROOT / AWS).read_text())
        (document,) = documents(text)
        config = ray_up._bootstrap_config(document, no_config_cache=True)
        # From here on it is the head's autoscaler that calls.
        calls.clear()
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        nodes = {}
        for name, node in config["available_node_types"].items():
            tags = {"ray-node-type": "worker", "ray-user-node-type": name}
            (instance_id,) = provider.create_node(node["node_config"], tags, 1)
            (reservation,) = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
            (instance,) = reservation["Instances"]
            (kind,) = ec2.describe_instance_types(InstanceTypes=[instance["InstanceType"]])["InstanceTypes"]
            nodes[name] = {**instance, "asked": node, "kind": kind, "made": made, "calls": calls}
        started = provider.non_terminated_nodes({})
        assert len(started) == len(nodes)
        provider.set_node_tags(started[0], {"ray-node-status": "up-to-date"})
        provider.terminate_nodes(started)
        boto3.DEFAULT_SESSION = None
        aws_utils.resource_cache.cache_clear()
        aws_utils.client_cache.cache_clear()
    return nodes


def test_ray_up_starts_private_instances_of_the_given_kind(aws_nodes: dict[str, dict[str, Any]]) -> None:
    assert {name: (node["InstanceType"], node.get("InstanceLifecycle")) for name, node in aws_nodes.items()} == {
        "head": ("m7i.xlarge", None),
        "cpu_worker": ("c6id.4xlarge", "spot"),
        "gpu_worker": ("g6.2xlarge", "spot"),
    }
    for node in aws_nodes.values():
        assert not node.get("PublicIpAddress")
        assert [group["GroupId"] for group in node["SecurityGroups"]] == [node["made"]["sg-CHANGE_ME"]], "Ray's own is open for SSH"
        assert node["SubnetId"] == node["made"]["subnet-CHANGE_ME"]


def test_instances_have_a_profile_instead_of_keys(aws_nodes: dict[str, dict[str, Any]]) -> None:
    profiles = {name: node["IamInstanceProfile"]["Arn"].rpartition("/")[2] for name, node in aws_nodes.items()}
    assert profiles["head"] == "CHANGE_ME-posepipe-head"
    assert profiles["cpu_worker"] == profiles["gpu_worker"] == "CHANGE_ME-posepipe-worker"
    for node in aws_nodes.values():
        assert node["asked"]["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
        assert all(device["Ebs"]["Encrypted"] for device in node["asked"]["node_config"]["BlockDeviceMappings"])


def test_ray_counts_no_more_than_the_instances_have(aws_nodes: dict[str, dict[str, Any]]) -> None:
    for name, node in aws_nodes.items():
        assert node["asked"]["resources"]["CPU"] <= node["kind"]["VCpuInfo"]["DefaultVCpus"]
        assert node["asked"]["resources"].get("GPU", 0) == sum(gpu["Count"] for gpu in node["kind"].get("GpuInfo", {}).get("Gpus", []))
        assert node["kind"]["InstanceStorageSupported"] == (name != "head"), "workers spill to a disk of their own"


def test_the_heads_policy_allows_what_rays_autoscaler_calls(aws_nodes: dict[str, dict[str, Any]]) -> None:
    policy = json.loads((ROOT / "deploy/aws/head-policy.json").read_text())
    actions = [statement["Action"] for statement in policy["Statement"]]
    allowed = {action for each in actions for action in ([each] if isinstance(each, str) else each)}
    called = aws_nodes["head"]["calls"]
    assert {"ec2:RunInstances", "ec2:TerminateInstances", "ec2:DescribeInstances", "ec2:CreateTags"} <= called <= allowed


@functools.cache
def compute_schema() -> dict[str, Any]:
    """Compute Engine's own description of an instance, from its discovery document, as a JSON schema that takes no unknown field."""
    import googleapiclient.discovery_cache.documents as folder

    document = json.loads((importlib.resources.files(folder) / "compute.v1.json").read_text())

    def convert(value: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in value:
            return {"$ref": f"#/$defs/{value['$ref']}"}
        found: dict[str, Any] = {name: value[name] for name in ("enum", "pattern") if name in value}
        if value.get("type") not in (None, "any"):
            found["type"] = ["string", "integer"] if value.get("format") in ("int64", "uint64") else value["type"]
        if "properties" in value:
            found |= {"properties": {name: convert(each) for name, each in value["properties"].items()}, "additionalProperties": False}
        elif isinstance(value.get("additionalProperties"), dict):
            found["additionalProperties"] = convert(value["additionalProperties"])
        if "items" in value:
            found["items"] = convert(value["items"])
        return found

    return {"$defs": {name: convert(each) for name, each in document["schemas"].items()}, "$ref": "#/$defs/Instance"}


@pytest.fixture(scope="module")
def gcp_nodes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What `ray up` sends to Compute Engine for the GCP file: a body of instances.insert for each type."""
    from ray.autoscaler._private import commands as ray_up
    from ray.autoscaler._private.gcp import config as gcp_config
    from ray.autoscaler._private.gcp.node import GCPCompute

    answers = {
        "projects.get": {"name": "project", "projectId": "project", "lifecycleState": "ACTIVE", "commonInstanceMetadata": {"items": []}},
        "projects.getIamPolicy": {"bindings": []},
        "projects.serviceAccounts.get": {"email": "ray-autoscaler-sa-v1@project.iam.gserviceaccount.com", "projectId": "project"},
        "projects.setCommonInstanceMetadata": {"name": "operation"},
        "globalOperations.get": {"status": "DONE"},
    }
    google = MagicMock()
    for name, answer in answers.items():
        place = functools.reduce(lambda place, part: getattr(place, part).return_value, name.split("."), google)
        place.execute.return_value = answer
    (cluster,) = read(GCP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(gcp_config, "construct_clients_from_provider_config", lambda provider: (google, google, google, None))
        config = ray_up._bootstrap_config(cluster, no_config_cache=True)
    google.subnetworks.assert_not_called()
    nodes = {}
    for name, node in config["available_node_types"].items():
        compute = GCPCompute(google, "project", config["provider"]["availability_zone"], config["cluster_name"])
        compute.get_new_authorized_http = MagicMock()
        # As Ray's commands do for the head: what Ray made for it, unless the file says otherwise.
        is_head = name == config["head_node_type"]
        body = {**(config["head_node"] if is_head else {}), **node["node_config"]}
        compute.create_instance(body, {"ray-node-name": f"ray-posepipe-{name}"}, wait_for_operation=False)
        nodes[name] = google.instances.return_value.insert.call_args.kwargs["body"]
    return nodes


def test_compute_engine_knows_every_field_of_the_instances(gcp_nodes: dict[str, dict[str, Any]]) -> None:
    for body in gcp_nodes.values():
        jsonschema.Draft202012Validator(compute_schema()).validate(body)
    wrong = {**gcp_nodes["gpu_worker"], "scheduling": [{"preemptible": True}]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(compute_schema()).validate(wrong)


def test_gcp_instances_are_private_and_carry_their_own_account(gcp_nodes: dict[str, dict[str, Any]]) -> None:
    for name, body in gcp_nodes.items():
        assert [sorted(interface) for interface in body["networkInterfaces"]] == [["subnetwork"]], "accessConfigs give a public address"
        (account,) = body["serviceAccounts"]
        assert account["email"].partition("@")[0] == ("posepipe-head" if name == "head" else "posepipe-worker")


def test_gcp_workers_are_deleted_when_preempted_and_have_a_local_disk(gcp_nodes: dict[str, dict[str, Any]]) -> None:
    for name in ("cpu_worker", "gpu_worker"):
        assert gcp_nodes[name]["scheduling"] == {
            "provisioningModel": "SPOT",
            "instanceTerminationAction": "DELETE",
            "onHostMaintenance": "TERMINATE",
            "automaticRestart": False,
        }
        boot, scratch = gcp_nodes[name]["disks"]
        assert boot["boot"] is True
        assert (scratch["type"], scratch["interface"]) == ("SCRATCH", "NVME")
