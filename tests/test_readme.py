"""README.md: its examples run, and say what the report says."""

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.report import draw_rows, write_predictions
from posepipe import report, storage
from posepipe.config import ReportConfig
from posepipe.metrics import pckh_counts
from posepipe.skeleton import PCKH_GROUPS

README = Path(__file__).resolve().parents[1] / "README.md"


def example(word):
    """The Python block of the README that holds this word."""
    found = [block for block in re.findall(r"(?s)```python\n(.*?)```", README.read_text()) if word in block]
    assert len(found) == 1, word
    return found[0]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A folder of predictions, one row of which was not predicted, a file that its manifest does not list, and its report's scores."""
    folder = tmp_path_factory.mktemp("scored")
    table = draw_rows(np.arange(60), 0.4, ["a.jpg"])
    bad = {
        **dict.fromkeys(table.column_names),
        "sample_id": "b.jpg",
        "uri": "b.jpg",
        "task": "head+pose",
        "status": "missing",
        "detail": "",
    }
    write_predictions(str(folder), [table.slice(0, 25), table.slice(25), type(table).from_pylist([bad], table.schema)])
    storage.write_table(str(folder / "part-000009.parquet"), table)
    outcome = report.build(ReportConfig(report_uri=str(folder / "report"), predictions_uri=(str(folder),)))
    scores = {row["measure"]: row for row in outcome["scores"]}
    errors = np.array(table["joint_error"].to_pylist(), dtype=float)
    assert scores["pckh"]["value"] == pytest.approx(100 * pckh_counts(errors).total)
    return str(folder), scores


def run(block, folder, capsys):
    assert block.count('"s3://bucket/predictions/pose"') == 1
    exec(compile(block.replace("s3://bucket/predictions/pose", folder), "README.md", "exec"), {})
    return capsys.readouterr().out


def test_the_example_in_python_scores_a_run(scored, capsys):
    folder, scores = scored
    total, count, groups = re.fullmatch(r"(\S+) (\d+) (.*)\n", run(example("import pckh"), folder, capsys)).groups()
    assert 100 * float(total) == pytest.approx(scores["pckh"]["value"], abs=1e-9)
    assert int(count) == scores["pckh"]["count"]
    found = {name: 100 * value for name, value in eval(groups).items()}
    assert found == {name: pytest.approx(scores[f"pckh_{name}"]["value"], abs=1e-9) for name in PCKH_GROUPS}


def test_the_example_in_sql_scores_a_run_through_its_manifest(scored, capsys):
    folder, scores = scored
    total, count = run(example("import duckdb"), folder, capsys).split()
    assert 100 * float(total) == pytest.approx(scores["pckh"]["value"], abs=1e-9)
    assert int(count) == scores["pckh"]["count"]
