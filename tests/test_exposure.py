"""Nothing that is written for a cluster opens the dashboard, the job server or Ray's client port to the public."""

import pytest
from deployment import MANIFESTS, PAGES, RAY_UP, ROOT, container_openings, open_hosts, openings


@pytest.mark.parametrize("name", [*RAY_UP, *MANIFESTS])
def test_nothing_is_open_to_the_public(name: str) -> None:
    assert openings((ROOT / name).read_text()) == []


def test_the_container_opens_no_port() -> None:
    assert container_openings((ROOT / "deploy/Dockerfile").read_text()) == []


@pytest.mark.parametrize("name", PAGES)
def test_no_command_of_the_pages_opens_a_port(name: str) -> None:
    assert list(open_hosts((ROOT / name).read_text())) == []


# (file, what is replaced, by what, what has to be found)
MISTAKES = [
    ("cluster.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "0.0.0.0"),
    ("cluster.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=10.0.0.7", "10.0.0.7"),
    ("cluster.yaml", "--dashboard-host=127.0.0.1", "--ray-client-server-port=10001 --node-ip-address=0.0.0.0", "0.0.0.0"),
    ("cluster.yaml", "use_internal_ips: true", "use_internal_ips: false", "use_internal_ips"),
    ("cluster.yaml", "  use_internal_ips: true\n", "", "use_internal_ips"),
    ("cluster.yaml", "InstanceType: m7i.xlarge", "NetworkInterfaces: [{AssociatePublicIpAddress: true}]", "AssociatePublicIpAddress"),
    (
        "cluster.yaml",
        "use_internal_ips: true",
        "use_internal_ips: true\n  security_group: {IpPermissions: [{IpRanges: [{CidrIp: 0.0.0.0/0}]}]}",
        "0.0.0.0/0",
    ),
    ("deploy/kuberay/namespace.yaml", "- podSelector: {}", "- ipBlock: {cidr: 0.0.0.0/0}", "0.0.0.0/0"),
    ("deploy/gcp.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host 0.0.0.0", "0.0.0.0"),
    (
        "deploy/gcp.yaml",
        "subnetworks/CHANGE_ME",
        "subnetworks/CHANGE_ME\n          accessConfigs: [{type: ONE_TO_ONE_NAT}]",
        "accessConfigs",
    ),
    ("deploy/kuberay/cluster.yaml", 'num-cpus: "0"', 'dashboard-host: "0.0.0.0"', "0.0.0.0"),
    ("deploy/kuberay/cluster.yaml", 'num-cpus: "0"', 'dashboard-host: "::"', "dashboard-host"),
    ("deploy/kuberay/cluster.yaml", "serviceType: ClusterIP", "serviceType: LoadBalancer", "LoadBalancer"),
    ("deploy/kuberay/job.yaml", "serviceType: ClusterIP", "serviceType: NodePort", "NodePort"),
    ("deploy/kuberay/job.yaml", "serviceType: ClusterIP", "enableIngress: true", "enableIngress"),
    ("deploy/kuberay/job.yaml", "serviceType: ClusterIP", "headService: {spec: {type: LoadBalancer}}", "LoadBalancer"),
    ("deploy/kuberay/job.yaml", "containerPort: 8265", "containerPort: 8265, hostPort: 8265", "hostPort"),
    ("deploy/kuberay/job.yaml", "serviceAccountName: posepipe-head", "hostNetwork: true", "hostNetwork"),
]


@pytest.mark.parametrize(("name", "before", "after", "expected"), MISTAKES)
def test_a_mistake_that_opens_a_port_is_found(name: str, before: str, after: str, expected: str) -> None:
    text = (ROOT / name).read_text()
    assert before in text
    assert any(expected in found for found in openings(text.replace(before, after, 1)))


SERVICE = """
---
apiVersion: v1
kind: Service
metadata: {{name: open}}
spec: {{type: {type}, ports: [{{port: {port}, targetPort: {target}}}]}}
"""


@pytest.mark.parametrize("service_type", ["LoadBalancer", "NodePort"])
@pytest.mark.parametrize(("port", "target"), [(8265, 8265), (80, 8265), (443, "dashboard"), (10001, 10001), (80, "client")])
def test_a_service_that_opens_a_port_is_found(service_type: str, port: int, target: int | str) -> None:
    text = (ROOT / "deploy/kuberay/cluster.yaml").read_text()
    added = SERVICE.format(type=service_type, port=port, target=target)
    assert openings(text + added) == [f": a service of type {service_type}"]
    assert openings(text + added.replace(service_type, "ClusterIP")) == []


def test_an_ingress_is_found() -> None:
    assert openings("kind: Ingress\nspec: {rules: []}\n") == [": Ingress"]


def test_a_port_that_the_container_exposes_is_found() -> None:
    assert container_openings("FROM x\nEXPOSE 8265\nCMD ray start --dashboard-host=0.0.0.0\n") == ["0.0.0.0", "0.0.0.0", "EXPOSE 8265"]
