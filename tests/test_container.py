"""The container file: linted, on the Ray and Python of the constraints, with all that the package needs and nothing else, not as root."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from deployment import ROOT, pinned

from posepipe.cluster import NODE_ENV

DOCKERFILE = ROOT / "deploy/Dockerfile"


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """(instruction, its arguments), with lines that go on joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], " ".join(line.split()[1:])) for line in text.splitlines() if line.strip()]


def of(steps: list[tuple[str, str]], instruction: str) -> list[str]:
    return [arguments for name, arguments in steps if name == instruction]


def copied(steps: list[tuple[str, str]]) -> set[str]:
    return {source for arguments in of(steps, "COPY") for source in arguments.split()[1:-1]}


def lint(text: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("hadolint")), "--no-color", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)


def test_hadolint_finds_nothing() -> None:
    linted = lint(DOCKERFILE.read_text())
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert linted.stdout == ""
    assert "DL3002" in lint(DOCKERFILE.read_text() + "USER root\n").stdout


def test_the_base_holds_the_ray_and_python_of_the_constraints(steps: list[tuple[str, str]]) -> None:
    (python,) = re.findall(r"\(Python (\d+)\.(\d+)", (ROOT / "constraints.txt").read_text())
    assert of(steps, "FROM") == [f"rayproject/ray:{pinned('ray')}-py{''.join(python)}${{VARIANT}}"]
    assert of(steps, "ARG") == ["VARIANT=", "EXTRAS="]


def test_it_installs_by_the_constraints(steps: list[tuple[str, str]]) -> None:
    installs = [run for run in of(steps, "RUN") if "pip install" in run]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in run or "--no-deps" in run for run in installs)


def test_it_copies_what_the_package_needs(steps: list[tuple[str, str]]) -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {project["project"]["readme"], *project["project"]["license-files"], *project["tool"]["setuptools"]["packages"]}
    assert {"pyproject.toml", "constraints.txt", *needed} <= copied(steps)
    assert all((ROOT / source).exists() for source in copied(steps))


def test_the_build_sees_what_is_copied_and_nothing_else(steps: list[tuple[str, str]]) -> None:
    lines = [line for line in DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == {source.partition("/")[0] for source in copied(steps)}


def test_it_does_not_run_as_root(steps: list[tuple[str, str]]) -> None:
    # Kubernetes' runAsNonRoot needs a number.
    assert of(steps, "USER") == ["1000:100"]


def environment(steps: list[tuple[str, str]]) -> set[str]:
    return {setting for line in of(steps, "ENV") for setting in line.split()}


def test_idle_workers_are_kept_as_on_one_machine(steps: list[tuple[str, str]]) -> None:
    assert {f"{name}={value}" for name, value in NODE_ENV.items()} <= environment(steps)


def test_token_authentication_is_on_and_no_secret_is_inside(steps: list[tuple[str, str]]) -> None:
    assert "RAY_AUTH_MODE=token" in environment(steps)
    assert not re.search(r"(?i)secret|password|access_key|auth_token|--mount", "\n".join(" ".join(step) for step in steps))
