"""study_table.py: the table of a study."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.report import draw_rows, write_predictions
from posepipe import metrics, results, sources, storage, study_table
from posepipe.results import Result


def scored(folder: Path, table: pa.Table) -> Result:
    write_predictions(str(folder), [table])
    (source,) = sources.open_sources([str(folder)], None, None)
    return results.evaluate(source)


def row(name: str, result: Result) -> dict[str, Any]:
    known = {"row": name, "change": "size 64", "status": "ok", "reason": "", "epochs": 7, "seconds": 59.6, "num_train": 30}
    return {**known, "command": f"python -m jobs.train --name {name}", **study_table.score(result)}


def pckh(table: pa.Table) -> float:
    return 100 * metrics.pckh_counts(np.array(table["joint_error"].to_pylist(), dtype=float)).total


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    """Predictions of 60 people, and of the first 25 of them, differently good."""
    return {"all": draw_rows(np.arange(60), 0.4, ["a.jpg"]), "few": draw_rows(np.arange(60), 0.7, ["a.jpg"], seed=1).slice(0, 25)}


@pytest.fixture(scope="module")
def rows(tables: dict[str, pa.Table], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("predictions")
    found = {name: scored(folder / name, table) for name, table in tables.items()}
    made = [row(name, result) for name, result in found.items()]
    made.insert(1, {"row": "broken", "change": "model x", "status": "failed", "reason": "ValueError: a | b", "command": ""})
    study_table.add_shared(made, found)
    return made


def test_a_row_has_the_official_score_its_interval_and_the_people(rows: list[dict[str, Any]], tables: dict[str, pa.Table]) -> None:
    for made in (rows[0], rows[2]):
        assert made["pckh"] == pytest.approx(pckh(tables[made["row"]]))
        assert made["pckh_low"] < made["pckh"] < made["pckh_high"]
        assert made["pckh_bone"] > made["pckh"]
    assert (rows[0]["num_people"], rows[2]["num_people"]) == (60, 25)


def test_rows_are_compared_on_the_people_that_all_of_them_have(rows: list[dict[str, Any]], tables: dict[str, pa.Table]) -> None:
    assert rows[0]["shared_pckh"] == pytest.approx(pckh(tables["all"].slice(0, 25)))
    assert rows[0]["shared_pckh"] != pytest.approx(rows[0]["pckh"])
    assert rows[2]["shared_pckh"] == rows[2]["pckh"]
    assert rows[0]["shared_people"] == rows[2]["shared_people"] == 25
    assert "shared_pckh" not in rows[1]


def test_without_anybody_in_common_nothing_is_shared(tables: dict[str, pa.Table], tmp_path: Path) -> None:
    found = {"one": scored(tmp_path / "one", tables["all"].slice(0, 30)), "two": scored(tmp_path / "two", tables["all"].slice(30))}
    made = [row(name, result) for name, result in found.items()]
    study_table.add_shared(made, found)
    assert all("shared_pckh" not in each for each in made)
    assert "of the same" not in study_table.to_markdown(made)


def test_the_table_is_written_as_parquet_csv_and_markdown(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    study_table.write(str(tmp_path), rows)
    table = storage.read_table(str(tmp_path / "study.parquet"))
    assert table.schema.equals(study_table.STUDY)
    assert table["pckh"].to_pylist() == [rows[0]["pckh"], None, rows[2]["pckh"]]
    read = list(csv.DictReader(io.StringIO((tmp_path / "study.csv").read_text())))
    assert [each["status"] for each in read] == ["ok", "failed", "ok"]
    assert float(read[0]["pckh_low"]) == pytest.approx(rows[0]["pckh_low"])
    text = (tmp_path / "study.md").read_text()
    assert "python -m jobs.train --name few" in text
    assert "people are resampled" in text


def test_markdown_has_as_many_cells_in_every_line_and_the_reason_of_a_failure(rows: list[dict[str, Any]]) -> None:
    lines = study_table.to_markdown(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "of the same 25 people" in lines[0]
    assert f"| {rows[0]['pckh']:.1f} ({rows[0]['pckh_low']:.1f} to {rows[0]['pckh_high']:.1f}) |" in lines[2]
    assert lines[2].endswith("| 30 | 7 | 60 |")
    assert "| broken | model x | failed: ValueError: a / b |" in lines[3]


def test_where_all_rows_have_the_same_people_there_is_no_column_for_them(rows: list[dict[str, Any]]) -> None:
    assert "of the same" not in study_table.to_markdown([rows[2]])


def test_a_row_is_one_line_as_soon_as_it_is_there(rows: list[dict[str, Any]]) -> None:
    assert study_table.describe_row(rows[1]) == "broken failed: ValueError: a | b"
    assert study_table.describe_row(rows[2]).startswith(f"few: PCKh@0.5 {rows[2]['pckh']:.1f} (")
    assert study_table.describe_row(rows[2]).endswith("of 25 people, 7 epochs in 60 s")
