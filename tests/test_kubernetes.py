"""The Kubernetes manifests: known to KubeRay and Kubernetes, one cluster in both, restricted pods, the token, spot workers from 0."""

import copy
import importlib.resources
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from deployment import MANIFESTS, ROOT, pinned, read, walk
from ray.autoscaler._private.kuberay import autoscaling_config
from referencing import Registry, Resource

from posepipe import capacity

NAMESPACE, CLUSTER, JOB = MANIFESTS
KUBERNETES = "1.37"


@pytest.fixture(scope="module")
def ray_cluster() -> dict[str, Any]:
    (document,) = read(CLUSTER)
    return document


@pytest.fixture(scope="module")
def ray_job() -> dict[str, Any]:
    (document,) = read(JOB)
    return document


@pytest.fixture(scope="module")
def namespace() -> dict[str, Any]:
    """By kind and name."""
    return {f"{document['kind']}/{document['metadata']['name']}": document for document in read(NAMESPACE)}


@pytest.fixture(scope="module")
def kuberay() -> jsonschema.Draft202012Validator:
    """KubeRay's own fields from kuberay_schema.json, pods and services from Kubernetes' schemas; neither takes an unknown field."""
    folder = importlib.resources.files(kubernetes_validate) / f"kubernetes-json-schema/v{KUBERNETES}.0-local-strict"
    definitions = Resource.from_contents(json.loads((folder / "_definitions.json").read_text()))
    schema = json.loads(Path(__file__).with_name("kuberay_schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema, registry=definitions @ Registry())


def groups(spec: dict[str, Any]) -> dict[str, Any]:
    return {"head": spec["headGroupSpec"], **{group["groupName"]: group for group in spec["workerGroupSpecs"]}}


def pods(ray_job: dict[str, Any]) -> dict[str, Any]:
    """The pod specs of a job: its nodes and the one that submits it."""
    nodes = {name: group["template"]["spec"] for name, group in groups(ray_job["spec"]["rayClusterSpec"]).items()}
    return {**nodes, "submitter": ray_job["spec"]["submitterPodTemplate"]["spec"]}


def test_kuberay_accepts_both(kuberay: jsonschema.Draft202012Validator, ray_cluster: dict[str, Any], ray_job: dict[str, Any]) -> None:
    kuberay.validate(ray_cluster)
    kuberay.validate(ray_job)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.submissionMode", "Sidecar"),
        ("spec.backoffLimits", 3),
        ("spec.activeDeadlineSeconds", 0),
        ("spec.rayClusterSpec.authOptions.mode", "tokens"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("spec.rayClusterSpec.headGroupSpec.replicas", 1),
        ("spec.rayClusterSpec.workerGroupSpecs.1.minReplicas", "0"),
        ("spec.rayClusterSpec.workerGroupSpecs.1.template.spec.nodeselector", {}),
        ("spec.rayClusterSpec.workerGroupSpecs.1.template.spec.containers.0.resources.limit", {}),
        ("spec.rayClusterSpec.autoscalerOptions.securityContext.privilege", True),
        ("metadata.name", "Posepipe_sweep"),
    ],
)
def test_a_mistake_in_a_field_is_found(kuberay: jsonschema.Draft202012Validator, ray_job: dict[str, Any], path: str, value: Any) -> None:
    wrong = copy.deepcopy(ray_job)
    *way, last = path.split(".")
    place = wrong
    for name in way:
        place = place[int(name) if isinstance(place, list) else name]
    place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        kuberay.validate(wrong)


def test_kubernetes_accepts_what_they_stand_on(namespace: dict[str, Any]) -> None:
    assert set(namespace) == {
        "Namespace/posepipe",
        "ServiceAccount/posepipe-head",
        "ServiceAccount/posepipe-worker",
        "NetworkPolicy/posepipe",
        "ResourceQuota/posepipe",
        "ConfigMap/posepipe-nodes",
    }
    for document in namespace.values():
        assert kubernetes_validate.validate(document, KUBERNETES, strict=True) == KUBERNETES
    wrong = copy.deepcopy(namespace["NetworkPolicy/posepipe"])
    wrong["spec"]["ingres"] = wrong["spec"].pop("ingress")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_all_lie_in_the_namespace_that_restricts_pods(
    ray_cluster: dict[str, Any], ray_job: dict[str, Any], namespace: dict[str, Any]
) -> None:
    assert namespace["Namespace/posepipe"]["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    others = [document for name, document in namespace.items() if not name.startswith("Namespace/")]
    assert {document["metadata"]["namespace"] for document in [ray_cluster, ray_job, *others]} == {"posepipe"}


def test_the_jobs_cluster_is_the_cluster(ray_cluster: dict[str, Any], ray_job: dict[str, Any]) -> None:
    assert ray_job["spec"]["rayClusterSpec"] == ray_cluster["spec"]


def test_token_authentication_is_on(ray_cluster: dict[str, Any]) -> None:
    assert ray_cluster["spec"]["authOptions"] == {"mode": "token"}
    assert ray_cluster["spec"]["rayVersion"] == pinned("ray"), "KubeRay looks here whether Ray knows tokens"
    names = [each["name"] for _, each in walk(ray_cluster) if isinstance(each, dict) and str(each.get("name", "")).startswith("RAY_AUTH")]
    assert names == [], "a variable of its own would take the place of the operator's"


def test_head_takes_no_work(ray_cluster: dict[str, Any]) -> None:
    assert ray_cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "nodeSelector" not in ray_cluster["spec"]["headGroupSpec"]["template"]["spec"], "without its head a cluster is lost"


def test_workers_start_from_zero_on_spot_nodes(ray_cluster: dict[str, Any]) -> None:
    assert ray_cluster["spec"]["enableInTreeAutoscaling"] is True
    workers = ray_cluster["spec"]["workerGroupSpecs"]
    assert [group["groupName"] for group in workers] == ["cpu", "gpu"]
    for group in workers:
        assert (group["replicas"], group["minReplicas"]) == (0, 0)
        assert group["template"]["spec"]["nodeSelector"] == {"karpenter.sh/capacity-type": "spot"}
        assert group["template"]["spec"]["tolerations"]
    assert "nvidia.com/gpu" in {toleration["key"] for toleration in workers[1]["template"]["spec"]["tolerations"]}


def test_what_jobs_may_count_on_is_what_the_autoscaler_may_start(
    ray_cluster: dict[str, Any], namespace: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = namespace["ConfigMap/posepipe-nodes"]["data"]["ray_bootstrap_config.yaml"]
    told = {name: (node.get("max_workers", 0), node["resources"]) for name, node in yaml.safe_load(text)["available_node_types"].items()}
    started = autoscaling_config._generate_available_node_types_from_ray_cr_spec(ray_cluster["spec"])
    assert {name if name != "headgroup" else "head": node["max_workers"] for name, node in started.items()} == {
        name: count for name, (count, _) in told.items()
    }
    for name, node in started.items():
        resources = told["head" if name == "headgroup" else name][1]
        assert resources == {key: value for key, value in node["resources"].items() if key in ("CPU", "GPU") and (value or key == "CPU")}

    (mounted,) = [each for _, each in walk(ray_cluster["spec"]) if isinstance(each, dict) and each.get("subPath")]
    assert mounted["mountPath"] == capacity.BOOTSTRAP_CONFIG.replace("~", "/home/ray")
    (tmp_path / "config.yaml").write_text(text)
    monkeypatch.setattr(capacity, "BOOTSTRAP_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.setattr(capacity.ray._private.state.state, "get_cluster_config", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert (capacity.num_fitting(cpus=6, gpus=1), capacity.num_fitting(cpus=14)) == (4, 8)


def test_pods_are_restricted(ray_job: dict[str, Any]) -> None:
    for spec in pods(ray_job).values():
        assert (
            spec["securityContext"].items()
            >= {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}.items()
        )
        for container in spec["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert ray_job["spec"]["rayClusterSpec"]["autoscalerOptions"]["securityContext"]["allowPrivilegeEscalation"] is False


def test_pods_have_an_account_instead_of_keys(ray_job: dict[str, Any], namespace: dict[str, Any]) -> None:
    accounts = {name: spec.get("serviceAccountName") for name, spec in pods(ray_job).items()}
    assert accounts == {"head": "posepipe-head", "cpu": "posepipe-worker", "gpu": "posepipe-worker", "submitter": None}
    for name in {account for account in accounts.values() if account}:
        assert "eks.amazonaws.com/role-arn" in namespace[f"ServiceAccount/{name}"]["metadata"]["annotations"]
    # The head's autoscaler talks to Kubernetes; nobody else has a reason to.
    tokens = {name: spec.get("automountServiceAccountToken") for name, spec in pods(ray_job).items()}
    assert tokens == {"head": None, "cpu": False, "gpu": False, "submitter": False}
    for name in MANIFESTS:
        assert not re.search(r"AWS_ACCESS_KEY|AWS_SECRET|AKIA[0-9A-Z]{16}|kind: Secret", (ROOT / name).read_text())


def test_only_the_operator_gets_in_from_outside(namespace: dict[str, Any]) -> None:
    spec = namespace["NetworkPolicy/posepipe"]["spec"]
    assert (spec["podSelector"], spec["policyTypes"]) == ({}, ["Ingress"])
    inside, outside = spec["ingress"]
    assert inside == {"from": [{"podSelector": {}}]}
    assert [port["port"] for port in outside["ports"]] == [8265]
    (operator,) = outside["from"]
    assert operator["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}
    assert "kubernetes.io/metadata.name" in operator["namespaceSelector"]["matchLabels"]


def test_a_job_is_tried_again_bounded_and_cleaned_up(ray_job: dict[str, Any]) -> None:
    spec = ray_job["spec"]
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["backoffLimit"] > 0
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["shutdownAfterJobFinishes"] is True, "KubeRay refuses a ttl without it"
    assert spec["ttlSecondsAfterFinished"] >= 0
    assert "jobId" not in spec, "Ray refuses an id that was used"


def test_containers_state_what_they_need(ray_job: dict[str, Any]) -> None:
    for spec in pods(ray_job).values():
        for container in spec["containers"]:
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert {name: requests[name] for name in limits} == limits, "Ray counts limits, Kubernetes places by requests"
            assert {"cpu", "memory"} <= set(limits)


def test_nodes_spill_to_an_empty_dir(ray_cluster: dict[str, Any]) -> None:
    for group in groups(ray_cluster["spec"]).values():
        folder = group["rayStartParams"]["object-spilling-directory"]
        (container,) = group["template"]["spec"]["containers"]
        (mount,) = [mount for mount in container["volumeMounts"] if mount["mountPath"] == folder]
        (volume,) = [volume for volume in group["template"]["spec"]["volumes"] if volume["name"] == mount["name"]]
        assert volume["emptyDir"]["sizeLimit"]


def test_images_are_the_containers(ray_job: dict[str, Any]) -> None:
    images = {name: [container["image"] for container in spec["containers"]] for name, spec in pods(ray_job).items()}
    cpu, gpu = ["CHANGE_ME/posepipe:cpu"], ["CHANGE_ME/posepipe:gpu"]
    assert images == {"head": cpu, "cpu": cpu, "gpu": gpu, "submitter": cpu}
