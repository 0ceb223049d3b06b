"""Who may import whom: numbers know nothing of torch, maths knows nothing of Ray, jobs import nothing heavy before they have a config."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TORCH = {"torch", "torchvision", "timm"}
NUMBERS = {"skeleton", "storage", "geometry"}
MATHS = NUMBERS | {"metrics", "images"}
COUNTS = {"columns", "metrics", "diagnosis", "bootstrap", "people", "slices", "evaluation", "scores"}
RESULTS = COUNTS | {"storage", "config", "predictions", "arrays", "truths", "sources", "results"}
NETWORKS = {"models", "heads", "tasks", "augmentation"}

# module -> (what of posepipe it may import, whether torch, whether Ray)
RULES: dict[str, tuple[set[str], bool, bool]] = {
    "skeleton": (set(), False, False),
    "retrying": (set(), False, False),
    "storage": ({"retrying"}, False, False),
    "s3_reads": (set(), False, False),
    "web_reads": ({"retrying", "storage"}, False, False),
    "fetching": ({"retrying", "s3_reads", "storage", "web_reads"}, False, False),
    "progress": (set(), False, False),
    "config": (set(), False, False),
    "failures": (set(), False, False),
    "presets": (set(), False, False),
    "cli": ({"config", "presets", "retrying", "storage"}, False, False),
    "geometry": ({"skeleton"}, False, False),
    "metrics": ({"skeleton"}, False, False),
    "images": ({"skeleton", "geometry"}, False, False),
    "views": ({"geometry", "images"}, False, False),
    "decoding": ({"views"}, False, False),
    "inputs": ({"geometry", "storage"}, False, False),
    "writers": ({"retrying", "storage"}, False, False),
    "journal": ({"storage", "writers"}, False, False),
    "gallery": ({"fetching", "images", "overlays", "predictions", "skeleton", "storage"}, False, False),
    "mpii": (NUMBERS, False, False),
    "figure": (NUMBERS, False, False),
    "painting": (NUMBERS | {"figure"}, False, False),
    "scene": (NUMBERS | {"figure", "painting"}, False, False),
    "synthetic": (NUMBERS | {"figure", "painting", "scene", "mpii"}, False, False),
    "columns": (set(), False, False),
    "diagnosis": ({"skeleton", "metrics"}, False, False),
    "bootstrap": (set(), False, False),
    "people": ({"skeleton", "columns", "metrics"}, False, False),
    "slices": ({"skeleton", "metrics", "people"}, False, False),
    "evaluation": ({"skeleton", "metrics", "diagnosis", "bootstrap", "people", "slices"}, False, False),
    "scores": ({"skeleton", "metrics", "diagnosis", "bootstrap", "evaluation"}, False, False),
    "overlays": ({"geometry", "images", "skeleton"}, False, False),
    "predictions": ({"skeleton", "storage"}, False, False),
    "tasks": ({"skeleton", "geometry", "metrics", "storage"}, False, False),
    "head_parts": (set(), True, False),
    "coordinate_heads": ({"head_parts"}, True, False),
    "map_heads": ({"head_parts"}, True, False),
    "heads": ({"head_parts", "coordinate_heads", "map_heads"}, True, False),
    "backbones": (set(), True, False),
    "model_file": ({"storage"}, False, False),
    "models": ({"storage", "tasks", "backbones", "head_parts", "heads", "model_file"}, True, False),
    "weights": ({"storage", "backbones", "model_file", "models"}, True, False),
    "optimizers": ({"config", "models"}, True, False),
    "augmentation": ({"skeleton", "tasks", "batches"}, True, False),
    "averaging": ({"models", "tasks"}, True, False),
    "capacity": (set(), False, True),
    "cluster": ({"capacity"}, False, True),
    "samples": (MATHS | {"mpii", "config", "columns"}, False, False),
    "arrays": ({"skeleton", "storage"}, False, False),
    "truths": (MATHS | {"config", "columns", "samples", "predictions", "arrays"}, False, False),
    "sources": ({"storage", "predictions", "arrays", "truths"}, False, False),
    "results": (RESULTS - {"results"}, False, False),
    "snapshots": (set(), False, False),
    "runs": ({"model_file", "storage", "snapshots"}, False, False),
    "cases": ({"skeleton", "geometry", "fetching", "images", "overlays", "results", "retrying"}, False, False),
    "comparing": ({"metrics", "scores", "results", "cases"}, False, False),
    "plots": ({"skeleton", "metrics", "diagnosis"}, False, False),
    "html_page": (set(), False, False),
    "material": ({"results", "runs", "cases", "comparing"}, False, False),
    "report_scores": ({"scores", "sources", "html_page", "material"}, False, False),
    "report_people": ({"scores", "overlays", "cases", "comparing", "html_page", "material", "runs"}, False, False),
    "report_page": ({"predictions", "results", "storage", "html_page", "material", "report_scores", "report_people"}, False, False),
    "cutting": ({"fetching", "images", "samples", "storage"}, False, False),
    "preparing": (MATHS | {"mpii", "config", "samples", "capacity", "cluster", "cutting", "progress", "writers"}, False, True),
    "global_batch": ({"batches"}, True, False),
    "sample_cache": ({"images", "samples"}, True, False),
    "checkpoints": ({"model_file", "models", "optimizers", "runs", "snapshots", "storage"}, True, True),
    "batches": (set(), True, False),
    "train_steps": (
        NETWORKS | {"batches", "checkpoints", "config", "global_batch", "head_parts", "optimizers", "sample_cache"},
        True,
        False,
    ),
    "watching": ({"failures", "storage"}, False, False),
    "train_loop": (
        MATHS
        | NETWORKS
        | {"checkpoints", "config", "global_batch", "model_file", "optimizers"}
        | {"batches", "sample_cache", "snapshots", "train_steps", "watching"},
        True,
        True,
    ),
    "training_data": (MATHS | {"capacity", "cluster", "config", "samples", "tasks"}, False, True),
    "claiming": ({"config", "runs", "samples", "storage", "training_data"}, False, True),
    "training": (
        {"capacity", "checkpoints", "claiming", "cluster", "config", "model_file", "models", "runs", "samples"}
        | {"snapshots", "storage", "tasks"}
        | {"failures", "optimizers", "retrying", "train_loop", "train_steps", "training_data", "watching", "weights", "writers"},
        True,
        True,
    ),
    "reading": (MATHS | {"decoding", "fetching", "inputs", "journal", "samples", "views"}, False, True),
    "ensemble": ({"averaging", "config", "geometry", "model_file", "models", "tasks"}, True, False),
    "predicting": (MATHS | {"config", "ensemble", "journal", "model_file", "predictions", "tasks"}, False, False),
    "planning": (NUMBERS | {"capacity", "config", "images", "inputs", "journal", "model_file", "samples"}, False, True),
    "summaries": (NUMBERS | {"config", "model_file", "predicting", "predictions", "tasks"}, False, False),
    "scoring": (
        {"capacity", "cluster", "config", "gallery", "journal", "planning", "predicting", "predictions", "progress"}
        | {"reading", "retrying", "storage", "summaries", "writers"},
        False,
        True,
    ),
    "trials": ({"retrying", "runs", "storage"}, False, True),
    "searching": ({"config", "trials"}, False, True),
    "stopping": ({"config", "trials"}, False, True),
    "sweep_plots": ({"plots"}, False, False),
    "tuning": (
        {
            "retrying",
            "training",
            "training_data",
            "trials",
            "searching",
            "sweep_plots",
            "watching",
            "writers",
            "config",
            "capacity",
            "claiming",
            "cluster",
            "stopping",
            "failures",
            "storage",
            "model_file",
            "runs",
            "snapshots",
        },
        False,
        True,
    ),
    "report": (RESULTS | {"cli", "cases", "comparing", "runs", "plots", "material", "report_page"}, False, False),
    "study_rows": ({"config", "presets"}, False, False),
    "study_table": ({"predictions", "results", "scores", "sources", "storage"}, False, False),
    "study": (
        {"cli", "config", "failures", "model_file", "preparing", "report", "results", "runs", "scoring", "sources", "storage"}
        | {"study_rows", "study_table", "training", "watching", "writers"},
        False,
        True,
    ),
    "demo": (
        MATHS
        | {
            "mpii",
            "synthetic",
            "preparing",
            "training",
            "tuning",
            "scoring",
            "gallery",
            "report",
            "config",
            "capacity",
            "cluster",
            "progress",
        },
        False,
        True,
    ),
}
MODULES = sorted(path.stem for path in (ROOT / "posepipe").glob("*.py") if path.stem != "__init__")
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if path.stem != "__init__")


def imports(path, *, top_level=False):
    """The modules that a file imports, wherever in it; `posepipe.x` for both ways to import x."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "posepipe" else {node.module}
    return found


def packages(names):
    return {name.partition(".")[0] for name in names}


def own(names):
    return {name.split(".")[1] for name in names if name.startswith("posepipe.")}


def first_sentence(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, f"{path.name} has no docstring"
    return re.split(r"\.\s", " ".join(docstring.split("\n\n")[0].split()) + " ")[0].strip()


def test_imports_are_found_wherever_they_stand(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("import a.b\nfrom posepipe import x\nfrom posepipe.y import z\ndef f():\n    import torch.nn\n")
    assert imports(path) == {"a.b", "posepipe.x", "posepipe.y", "torch.nn"}
    assert imports(path, top_level=True) == {"a.b", "posepipe.x", "posepipe.y"}
    assert (packages(imports(path)), own(imports(path))) == ({"a", "posepipe", "torch"}, {"x", "y"})


def test_every_module_has_a_rule():
    assert set(MODULES) <= set(RULES), "a new module needs its line in RULES and in the README's tree"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_layer_may(module):
    allowed, may_torch, may_ray = RULES[module]
    names = imports(ROOT / "posepipe" / f"{module}.py")
    assert own(names) <= allowed
    assert may_torch or not packages(names) & TORCH
    assert may_ray or "ray" not in packages(names)
    assert not packages(names) & {"jobs", "tests", "benchmarks"}


def test_the_rules_have_no_circle():
    def below(module, path=()):
        assert module not in path, f"a circle: {path}"
        for other in RULES[module][0]:
            below(other, (*path, module))

    for module in RULES:
        below(module)


@pytest.mark.parametrize("job", JOBS)
def test_a_job_imports_config_cluster_and_the_module_that_does_the_work(job):
    path = ROOT / "jobs" / f"{job}.py"
    assert own(imports(path, top_level=True)) <= {"config", "cli"}
    assert len(own(imports(path)) - {"config", "cli", "cluster"}) == 1
    assert not packages(imports(path)) & (TORCH | {"ray"})


def test_importing_the_jobs_loads_neither_torch_nor_ray():
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, {', '.join(f'jobs.{job}' for job in JOBS)}; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "posepipe.config" in loaded
    assert not ({"ray", "scipy", "pandas"} | TORCH) & set(loaded)


def test_the_driver_of_a_scoring_run_does_without_torch():
    """It takes longer to import than all else, and half a GiB; the networks are built in actors."""
    code = "import sys, posepipe.scoring; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "posepipe.predicting" in loaded
    assert not TORCH & set(loaded)


def test_reading_annotations_and_scoring_numbers_loads_neither_torch_nor_ray():
    light = [module for module, (_, may_torch, may_ray) in RULES.items() if not may_torch and not may_ray and module in MODULES]
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, {', '.join(f'posepipe.{module}' for module in light)}; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "posepipe.metrics" in loaded
    assert not ({"ray"} | TORCH) & set(loaded)


@pytest.mark.parametrize("path", [f"posepipe/{module}.py" for module in MODULES] + [f"jobs/{job}.py" for job in JOBS])
def test_the_readmes_tree_says_what_the_module_says(path):
    readme = (ROOT / "README.md").read_text()
    if not readme.strip():
        pytest.skip("README.md is empty")
    line = rf"(?im)^\W*{re.escape(Path(path).name)}\s+{re.escape(first_sentence(ROOT / path))}\s*$"
    assert re.search(line, readme), f"README.md needs the line: {Path(path).name}  {first_sentence(ROOT / path)}"
