"""Reads what `ray up` and Kubernetes read, and finds what would be open to the public in it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
RAY_UP = ("cluster.yaml", "deploy/gcp.yaml")
MANIFESTS = ("deploy/kuberay/namespace.yaml", "deploy/kuberay/cluster.yaml", "deploy/kuberay/job.yaml")
PAGES = ("README.md", "docs/cluster.md")
LOOPBACK = ("127.0.0.1", "localhost")
# The dashboard with the job server, Ray's client server, the cluster's own store.
PORTS = {8265, 10001, 6379}


def pinned(package: str) -> str:
    """The version in constraints.txt."""
    found = re.search(rf"^{re.escape(package)}(?:\[[^\]]*\])?==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None, f"constraints.txt pins no {package}"
    return found[1]


def documents(text: str) -> list[Any]:
    return [document for document in yaml.safe_load_all(text) if document]


def read(name: str) -> list[Any]:
    return documents((ROOT / name).read_text())


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a document, with the path to it."""
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from walk(each, f"{path}.{key}" if path else str(key))


def openings(text: str) -> list[str]:
    """What of a YAML file would be reachable from outside of the cluster's network."""
    return [found for document in documents(text) for path, value in walk(document) for found in _openings(path, value)]


def _openings(path: str, value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from (f"{path}: {found}" for found in [*open_hosts(value), *re.findall(r"0\.0\.0\.0/0|::/0", value)])
        if path.endswith("dashboard-host") and value not in LOOPBACK:
            yield f"{path}: {value}"
        if path.endswith("serviceType") and value != "ClusterIP":
            yield f"{path}: {value}"
    if isinstance(value, list) and path.endswith(("accessConfigs", "ipv6AccessConfigs", "externalIPs")) and value:
        yield f"{path}: {value}"
    if not isinstance(value, dict):
        return
    for name in ("hostNetwork", "enableIngress", "AssociatePublicIpAddress"):
        if value.get(name):
            yield f"{path}.{name}"
    if "hostPort" in value:
        yield f"{path}.hostPort: {value['hostPort']}"
    if value.get("kind") in ("Ingress", "Gateway", "HTTPRoute"):
        yield f"{path}: {value['kind']}"
    # KubeRay adds Ray's ports to the service that it makes from headService.
    is_service = value.get("kind") == "Service" or path.endswith("headService")
    spec = value.get("spec", {}) if is_service else {}
    ports = {port.get(name) for port in spec.get("ports", []) for name in ("port", "targetPort")}
    if spec.get("type") in ("LoadBalancer", "NodePort") and (path.endswith("headService") or ports & {*PORTS, "dashboard", "client"}):
        yield f"{path}: a service of type {spec['type']}"
    if "provider" in value and value["provider"].get("use_internal_ips") is not True:
        yield f"{path}.provider.use_internal_ips: {value['provider'].get('use_internal_ips')}"


def open_hosts(text: str) -> Iterator[str]:
    """The addresses of all interfaces, in a value, a command or a page, and dashboards that listen elsewhere than on the loopback."""
    yield from re.findall(r"0\.0\.0\.0(?!/0)|\[::\]", text)
    yield from (found for found in re.findall(r"--dashboard-host[= ](\S+)", text) if found not in LOOPBACK)


def container_openings(text: str) -> list[str]:
    """The same of a Dockerfile, whose EXPOSE is a promise that nobody should make."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [found for line in lines for found in open_hosts(line)] + [line for line in lines if line.startswith("EXPOSE")]
