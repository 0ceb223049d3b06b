"""The table of a study: scores of its rows with their intervals, as Parquet, CSV and Markdown."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from posepipe import predictions, results, scores, storage
from posepipe.results import Result
from posepipe.sources import Part, Source

TABLE_NAME = "study"

STUDY = pa.schema(
    [
        pa.field("row", pa.string(), metadata={"doc": "its name"}),
        pa.field("change", pa.string(), metadata={"doc": "the settings that differ from those of the row before"}),
        pa.field("status", pa.string(), metadata={"doc": "ok or failed"}),
        pa.field("reason", pa.string(), metadata={"doc": "why it failed, or empty"}),
        pa.field("pckh", pa.float64(), metadata={"doc": "official PCKh@0.5 of the validation people, pooled, %"}),
        pa.field("pckh_low", pa.float64(), metadata={"doc": "lower end of its 95 % interval"}),
        pa.field("pckh_high", pa.float64(), metadata={"doc": "upper end"}),
        pa.field("floor", pa.float64(), metadata={"doc": "the same score of the mean pose of the train labels, in this row's frame"}),
        pa.field("num_people", pa.int64(), metadata={"doc": "scored validation people"}),
        pa.field("shared_pckh", pa.float64(), metadata={"doc": "pckh of the people whom every row has scored"}),
        pa.field("shared_low", pa.float64(), metadata={"doc": "lower end of its 95 % interval"}),
        pa.field("shared_high", pa.float64(), metadata={"doc": "upper end"}),
        pa.field("shared_people", pa.int64(), metadata={"doc": "how many those are"}),
        pa.field("pckh_bone", pa.float64(), metadata={"doc": "the paper's PCKh@0.5, %"}),
        pa.field("floor_bone", pa.float64(), metadata={"doc": "the same of the mean pose"}),
        pa.field("num_train", pa.int64(), metadata={"doc": "people that were trained on"}),
        pa.field("minutes", pa.float64(), metadata={"doc": "of training that the row may take"}),
        pa.field("epochs", pa.int64(), metadata={"doc": "that fitted into them by the calibration"}),
        pa.field("seconds", pa.float64(), metadata={"doc": "that those took, validation included"}),
        pa.field("best_epoch", pa.int64(), metadata={"doc": "whose weights are scored: the best on the validation people"}),
        pa.field("run_uri", pa.string(), metadata={"doc": "of the training, or null"}),
        pa.field("predictions_uri", pa.string(), metadata={"doc": "of the scoring, or null"}),
        pa.field("command", pa.string(), metadata={"doc": "does this row alone"}),
    ]
)

NOTE = """\
Official PCKh@0.5 in percent, pooled over 14 joints, with its 95 % interval (people are resampled); the paper's PCKh divides by the head
bone and counts 16 joints. The floor is the mean pose of the train labels in the frame of the row. Person framing comes from the labels.
The weights are those of the best epoch on the validation people."""


def score(result: Result) -> dict[str, Any]:
    """The columns of a row that say what it reached."""
    found = {row["measure"]: row for row in scores.score_rows("", result.counts, result.source.floor)}
    official, bone = found["pckh"], found.get("pckh_bone", {})
    return {
        **{"pckh": official["value"], "pckh_low": official["low"], "pckh_high": official["high"], "floor": official["floor"]},
        **{"pckh_bone": bone.get("value"), "floor_bone": bone.get("floor"), "num_people": result.counts.pose.num_people},
    }


def add_shared(rows: Sequence[dict[str, Any]], scored: Mapping[str, Result]) -> None:
    """Adds the score of the people whom all rows have scored: those with image framing see single people only."""
    if not scored:
        return
    ids = [set(result.sample_ids.filter(pa.array(np.isfinite(result.person_errors))).to_pylist()) for result in scored.values()]
    shared = pa.array(sorted(set.intersection(*ids)), pa.string())
    for row in rows:
        if row["row"] in scored and len(shared):
            found = score(_restrict(scored[row["row"]], shared))
            row |= {f"shared_{name}": found[column] for name, column in _SHARED.items()}


_SHARED = {"pckh": "pckh", "low": "pckh_low", "high": "pckh_high", "people": "num_people"}


def _restrict(result: Result, sample_ids: pa.Array) -> Result:
    """The same run of these people alone."""
    if len(sample_ids) == len(result.sample_ids):
        return result
    table = predictions.read_predictions(result.source.uri)
    table = table.filter(pc.is_in(table["sample_id"], value_set=sample_ids))
    return results.evaluate(Source(result.source.name, result.source.uri, (Part("", table.num_rows, table.select),), result.source.summary))


def write(study_uri: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """study.parquet, study.csv and study.md."""
    table = pa.Table.from_pylist([{name: row.get(name) for name in STUDY.names} for row in rows], STUDY)
    sink = io.BytesIO()
    pyarrow.csv.write_csv(table, sink)
    storage.write_table(storage.join_uri(study_uri, f"{TABLE_NAME}.parquet"), table)
    storage.write_bytes(storage.join_uri(study_uri, f"{TABLE_NAME}.csv"), sink.getvalue())
    commands = "\n".join(row["command"] for row in rows if row["status"] == "ok")
    text = f"{to_markdown(rows)}\n\n{NOTE}\n\n```sh\n{commands}\n```\n"
    storage.write_bytes(storage.join_uri(study_uri, f"{TABLE_NAME}.md"), text.encode())


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for people. The people whom all rows share have a column where a row has more."""
    is_shared = any(row.get("shared_people") not in (None, row.get("num_people")) for row in rows)
    shared_people = next((row["shared_people"] for row in rows if row.get("shared_people")), 0)
    titles = [
        *("row", "change", "PCKh@0.5 (95 %)", "floor", "people"),
        *([f"of the same {shared_people} people"] if is_shared else []),
        *("the paper's PCKh", "trained on", "epochs", "seconds"),
    ]
    lines = [titles, ["---"] * len(titles)]
    for row in rows:
        if row["status"] != "ok":
            lines.append([row["row"], row["change"], f"failed: {row['reason']}", *[""] * (len(titles) - 3)])
            continue
        shared = [_interval(row["shared_pckh"], row["shared_low"], row["shared_high"])] if is_shared else []
        numbers = [_percent(row["pckh_bone"]), *(str(row[name]) for name in ("num_train", "epochs")), f"{row['seconds']:.0f}"]
        official = _interval(row["pckh"], row["pckh_low"], row["pckh_high"])
        lines.append([row["row"], row["change"], official, _percent(row["floor"]), str(row["num_people"]), *shared, *numbers])
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def describe_row(row: Mapping[str, Any]) -> str:
    """One line, as soon as a row is there."""
    if row["status"] != "ok":
        return f"{row['row']} failed: {row['reason']}"
    interval = _interval(row["pckh"], row["pckh_low"], row["pckh_high"])
    return f"{row['row']}: PCKh@0.5 {interval} of {row['num_people']} people, {row['epochs']} epochs in {row['seconds']:.0f} s"


def _interval(value: float, low: float, high: float) -> str:
    # Too few people have no interval.
    return _percent(value) if low != low else f"{_percent(value)} ({low:.1f} to {high:.1f})"


def _percent(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.1f}"
