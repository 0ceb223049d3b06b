"""docs/cluster.md: its commands are commands, its sums are right, what it points at is there."""

import ast
import json
import operator
import re
import shlex
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
from deployment import MANIFESTS, ROOT, documents, read

from posepipe import cli, config

PAGE = (ROOT / "docs/cluster.md").read_text()
CONFIGS: dict[str, Any] = {
    "prepare": config.PrepareConfig,
    "train": config.TrainConfig,
    "tune": config.TuneConfig,
    "score": config.ScoreConfig,
    "report": config.ReportConfig,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def job_commands(text: str) -> list[tuple[str, list[str]]]:
    """(job, its flags) of every `python -m jobs.…` in a script."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [re.search(r"python -m jobs\.(\w+) (.*)", line) for line in lines]
    return [(match[1], shlex.split(match[2], comments=True)) for match in found if match]


COMMANDS = [command for block in blocks("sh") for command in job_commands(block)]


def test_the_page_goes_from_samples_to_a_report() -> None:
    assert [job for job, _ in COMMANDS] == ["prepare", "tune", "score", "report"]


@pytest.mark.parametrize(("job", "flags"), COMMANDS)
def test_every_command_is_one_that_the_job_takes(job: str, flags: list[str]) -> None:
    cli.parse(CONFIGS[job], flags)


def test_the_kubernetes_job_runs_a_command_that_the_job_takes() -> None:
    jobs = [document for name in MANIFESTS for document in read(name) if document["kind"] == "RayJob"]
    (((job, flags),),) = [job_commands(document["spec"]["entrypoint"]) for document in jobs]
    assert cli.parse(CONFIGS[job], flags).train.use_gpu


def test_what_one_job_writes_the_next_one_reads_and_the_policy_allows() -> None:
    parsed = {job: cli.parse(CONFIGS[job], flags) for job, flags in COMMANDS}
    sweep = parsed["tune"].train
    assert parsed["prepare"].samples_uri == sweep.samples_uri == parsed["score"].samples_uri
    assert parsed["score"].checkpoint_uri == (f"{sweep.runs_uri}/{sweep.name}",)
    assert parsed["report"].predictions_uri == (parsed["score"].predictions_uri,)
    policy = (ROOT / "deploy/aws/bucket-policy.json").read_text()
    for uri in re.findall(r"s3://BUCKET/(\w+)", PAGE):
        assert f"change-me-bucket/{uri}/*" in policy


OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def calculate(text: str) -> float:
    """`2 x (3 + 4) / 2^1` -> 7."""

    def value(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        assert isinstance(node, ast.Constant)
        return float(str(node.value))

    return value(ast.parse(text.strip().replace(" x ", " * ").replace("^", "**"), mode="eval").body)


def is_right(expression: str, result: str) -> bool:
    """Whether it is, to the digits that the result has."""
    return abs(calculate(expression) - float(result)) <= 0.5 * 10.0 ** -len(result.partition(".")[2]) + 1e-9


def test_the_sums_of_the_table_are_right() -> None:
    table = re.findall(r"^\| [^|]+ \| ([\d.]+ x [\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    assert len(table) == 9
    assert [each for each in table if not is_right(*each)] == []
    (total,) = re.findall(r"\*\*sum\*\* \| \| \*\*([\d.]+)\*\*", PAGE)
    assert is_right(" + ".join(dollars for _, dollars in table), total)


def test_the_arithmetic_in_the_text_is_right() -> None:
    text = " ".join(re.sub(r"(\d),(\d{3})", r"\1\2", PAGE).split())
    found = re.findall(r"((?:[(]?[\d.]+(?:\^\d+)?[)]? [x/+-] )+[(]?[\d.]+(?:\^\d+)?[)]?) = ([\d.]*\d)", text)
    assert len(found) >= 12
    assert [each for each in found if not is_right(*each)] == []
    # One that rounds down: fewer than so many times.
    assert not is_right("(8.80 - 3.51) / 0.11", "49")


def test_the_prices_of_the_table_are_those_of_the_inputs() -> None:
    for name, on_demand, spot in re.findall(r"^\| [^|]*`(\S+)`[^|]* \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE):
        assert float(spot) == round(0.4 * float(on_demand), 2), name
    (cluster,) = read("cluster.yaml")
    for node in cluster["available_node_types"].values():
        assert f"`{node['node_config']['InstanceType']}`" in PAGE
    assert round(150 * 0.08 / 730, 4) == 0.0164


def test_the_quotas_are_those_of_cluster_yaml() -> None:
    (cluster,) = read("cluster.yaml")
    for name in ("cpu_worker", "gpu_worker"):
        node = cluster["available_node_types"][name]
        count, cpus = node["max_workers"], node["resources"]["CPU"]
        assert f"{count} x {cpus} = {count * cpus}" in " ".join(PAGE.split())


def test_ray_accepts_the_part_that_may_be_added() -> None:
    (block,) = blocks("yaml")
    (cluster,), (part,) = read("cluster.yaml"), documents(block)
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate({**cluster, **part}, schema)


def test_what_the_page_points_at_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
    for path in set(re.findall(r"(?:deploy|tests)/[\w./-]+\w", PAGE)):
        assert (ROOT / path).exists() or path.endswith("kuberay"), path


def test_the_flags_that_the_page_advises_are_flags() -> None:
    known = {f"--{field.name.replace('_', '-')}" for each in (*CONFIGS.values(), config.TrainConfig) for field in fields(each)}
    advised = set(re.findall(r"`(--[a-z-]+)[ `]", PAGE)) - {"--submission-id", "--object-store-memory", "--address"}
    assert len(advised) >= 5
    assert advised <= known


def test_the_readme_leads_there() -> None:
    assert "(docs/cluster.md)" in (ROOT / "README.md").read_text()
