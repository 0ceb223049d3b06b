"""Tables, curves, overlays: a report of predictions and runs as one HTML page, with its plots and tables beside it."""

from __future__ import annotations

import importlib.metadata
import io
import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv

import posepipe
from posepipe import arrays, cases, cli, comparing, plots, report_page, runs, scores, sources, storage, truths
from posepipe.config import ReportConfig
from posepipe.material import Material
from posepipe.results import Result, evaluate

logger = logging.getLogger(__name__)

PAGE_FILE = "index.html"
LIBRARIES = ("numpy", "pyarrow", "matplotlib", "pillow", "scipy", "h5py")
MAX_DRAWN_RUNS = 4  # whose people are drawn
MAX_COMPARISONS = 3
MAX_PLOTTED = 12  # runs in one plot


def build(config: ReportConfig) -> dict[str, Any]:
    """Evaluates everything and writes the page, its plots and its tables; the page comes last.

    Returns:
        page_uri, page_bytes, the scores as rows of `scores.score_rows`, and notes: what a reader has to know.

    Raises:
        ValueError: nothing to report, a folder that holds something else than a report, an unfinished run, predictions without people or
            that do not fit their truth.
    """
    started = time.monotonic()
    _check_flags(config)
    _require_own(storage.resolve_uri(config.report_uri))
    truth = None
    if config.truth_uri:
        truth = truths.read_truth(storage.resolve_uri(config.truth_uri), config.split, config.first_pixel, config.images_uri)
    opened = sources.open_sources([storage.resolve_uri(uri) for uri in config.predictions_uri], truth, config.first_pixel)
    trained = runs.read_runs(config.runs_uri)
    results = [evaluate(source) for source in opened]
    tables = _tables(results)
    models = [result for result in results if result.source.name != sources.MEAN_POSE]
    drawn = {result.source.name: cases.choose_cases(result, config.num_cases, config.min_confidence) for result in models[:MAX_DRAWN_RUNS]}
    comparisons = [
        found
        for other in models[1 : 1 + MAX_COMPARISONS]
        if (found := comparing.compare(models[0], other, config.num_cases, config.min_confidence))
    ]
    for number, comparison in enumerate(comparisons, 1):
        tables[f"comparison_{number}"] = comparison.table
    if any(drawn.values()):
        tables["cases"] = pa.Table.from_pylist([_case_row(run, case) for run, found in drawn.items() for case in found])
    pngs = _plots(results, tables, trained, comparisons)
    films = {run.name: cases.draw_films(run.snapshots) for run in trained if run.snapshots is not None and run.snapshots.num_rows}
    provenance = {
        "command": shlex.split(cli.command("report", config)),
        "versions": {"posepipe": posepipe.__version__, **{name: importlib.metadata.version(name) for name in LIBRARIES}},
        "truth": config.truth_uri or None,
        "first_pixel": config.first_pixel,
    }
    material = Material(config.title, results, trained, tables, pngs, drawn, comparisons, films, provenance, config.min_confidence)
    data = report_page.render(material).encode()
    _write(config.report_uri, data, pngs, tables)
    notes = [note for result in results for note in result.source.notes]
    return {
        "page_uri": storage.join_uri(config.report_uri, PAGE_FILE),
        "page_bytes": len(data),
        "num_rows": sum(result.source.num_rows for result in results),
        "seconds": time.monotonic() - started,
        "scores": tables["scores"].to_pylist() if "scores" in tables else [],
        "notes": notes,
    }


def _check_flags(config: ReportConfig) -> None:
    """Refuses flags that would have no effect."""
    has_arrays = any(map(arrays.is_array_file, (*config.predictions_uri, *([config.truth_uri] if config.truth_uri else []))))
    has_array_truth = bool(config.truth_uri) and arrays.is_array_file(config.truth_uri)
    if config.first_pixel is not None and not has_arrays:
        raise ValueError("--first-pixel is for array files, and there is none: predictions of jobs.score start at 0")
    if config.images_uri and not has_array_truth:
        raise ValueError("--images-uri is for an array file in --truth-uri; samples and predictions of jobs.score name their pictures")
    if config.split != "val" and (not config.truth_uri or has_array_truth):
        raise ValueError("--split is for samples in --truth-uri")
    if config.truth_uri and not config.predictions_uri:
        raise ValueError("--truth-uri is for --predictions-uri, which is not given")


def _require_own(report_uri: str) -> None:
    manifest_uri = storage.join_uri(report_uri, storage.MANIFEST)
    if storage.exists(manifest_uri) and not all(isinstance(name, str) for name in storage.read_json(manifest_uri).get("files", [None])):
        raise ValueError(f"{report_uri} holds samples or predictions; choose another --report-uri, beside or below it")


def _tables(results: Sequence[Result]) -> dict[str, pa.Table]:
    floors = {result.source.name: _floor(result, results) for result in results}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("scores", "joints", "curve", "slices", "histograms", "statuses")}
    for result in results:
        name, counts = result.source.name, result.counts
        rows["statuses"] += [{"run": name, "status": status, "rows": count} for status, count in sorted(result.statuses.items())]
        rows["scores"] += scores.score_rows(name, counts, floors[name])
        rows["slices"] += scores.slice_rows(name, counts)
        if result.is_labelled:
            rows["histograms"] += scores.histogram_rows(name, counts)
        if result.has_pose:
            rows["joints"] += scores.joint_rows(name, counts.pose)
            rows["curve"] += scores.curve_rows(name, counts.pose)
    return {name: pa.Table.from_pylist(found) for name, found in rows.items() if found}


def _floor(result: Result, results: Sequence[Result]) -> dict[str, Any]:
    """Fractions by measure: of the summary of jobs.score, or of the mean pose of the truth."""
    if result.source.floor:
        return result.source.floor
    for other in results:
        if other.source.name == sources.MEAN_POSE and other is not result and not result.source.summary:
            return {row["measure"]: row["value"] / 100 for row in scores.score_rows("", other.counts, {}) if row["unit"] == "%"}
    return {}


def _case_row(run: str, case: cases.Case) -> dict[str, Any]:
    values = case.values
    return {
        "run": run,
        "kind": case.kind,
        "sample_id": values["sample_id"],
        "file": case.file,
        "row_in_file": case.place,
        "row": case.row,
        "picture_uri": values["uri"],
        "person_error": case.person_error,
        **{name: values[name] for name in ("pckh", "head_iou", "status")},
    }


def _plots(
    results: Sequence[Result], tables: Mapping[str, pa.Table], trained: Sequence[runs.Run], comparisons: Sequence[comparing.Comparison]
) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    poses = [result for result in results if result.has_pose][:MAX_PLOTTED]
    heads = [result for result in results if result.has_head][:MAX_PLOTTED]
    if poses:
        names = [result.source.name for result in poses]
        found["joints"] = plots.per_joint(tables["joints"].to_pylist(), names)
        found["curve"] = plots.curves(tables["curve"].to_pylist(), names)
        found["errors"] = plots.error_histograms({result.source.name: result.counts.pose.histogram for result in poses})
    if heads:
        found["iou"] = plots.unit_histogram({result.source.name: result.counts.head.histogram for result in heads}, "IoU of the head box")
    for measure, shown in (("pckh", poses), ("head_iou_50", heads)):
        rows = [row for row in tables["slices"].to_pylist() if row["measure"] == measure] if shown else []
        if rows:
            found[f"slices_{measure}"] = plots.slices(rows, [result.source.name for result in shown])
    confidences = {
        "joint_confidence": {result.source.name: result.counts.joint_confidence.sum(axis=0) for result in results[:MAX_PLOTTED]},
        "head_confidence": {result.source.name: result.counts.head_confidence for result in results[:MAX_PLOTTED]},
    }
    for name, histograms in confidences.items():
        known = {run: counts for run, counts in histograms.items() if counts.sum()}
        if known:
            found[name] = plots.unit_histogram(
                known, f"{'confidence of joints' if name == 'joint_confidence' else 'confidence of head boxes'}"
            )
    for number, comparison in enumerate(comparisons, 1):
        found[f"comparison_{number}"] = plots.scatter(comparison.errors[0], comparison.errors[1], comparison.names)
    for run in trained:
        found[f"loss_{run.name}"] = plots.training(run.history, (("train_loss", "train", "--"), ("val_loss", "validation", "-")), "loss")
        metric, label = {"pose": ("pckh", "PCKh@0.5, %"), "head": ("head_iou", "mean IoU, %")}[run.config["task"]]
        extra = {"pose": ("val_pckh_bone", "validation, the paper's"), "head": ("val_head_iou_50", "validation, IoU ≥ 0.5")}[
            run.config["task"]
        ]
        lines = ((f"train_{metric}", "train", "--"), (f"val_{metric}", "validation", "-"), (*extra, ":"))
        found[f"score_{run.name}"] = plots.training(run.history, lines, label, 100, run.result["floor"].get(metric))
    return found


def _write(report_uri: str, page: bytes, pngs: Mapping[str, bytes], tables: Mapping[str, pa.Table]) -> None:
    """Takes the files of an older report away first: what lies there afterwards belongs together."""
    report_uri = storage.resolve_uri(report_uri)
    manifest_uri = storage.join_uri(report_uri, storage.MANIFEST)
    if storage.exists(manifest_uri):
        older = [storage.join_uri(report_uri, name) for name in storage.read_json(manifest_uri)["files"]]
        storage.delete([uri for uri in older if storage.exists(uri)])
    files = {f"plots/{name}.png": png for name, png in zip(report_page.file_names(pngs).values(), pngs.values(), strict=True)}
    for name, table in tables.items():
        sink = io.BytesIO()
        pyarrow.csv.write_csv(table, sink)
        files[f"tables/{name}.csv"] = sink.getvalue()
    names = sorted([*files, *(f"tables/{name}.parquet" for name in tables), PAGE_FILE])
    storage.write_json(manifest_uri, {"files": names})
    for name, data in files.items():
        storage.write_bytes(storage.join_uri(report_uri, name), data)
    for name, table in tables.items():
        storage.write_table(storage.join_uri(report_uri, "tables", f"{name}.parquet"), table)
    storage.write_bytes(storage.join_uri(report_uri, PAGE_FILE), page)


def describe(outcome: dict[str, Any]) -> str:
    """What a report says first, for people."""
    lines = []
    for row in outcome["scores"]:
        if row["measure"] in scores.HEADLINES:
            floor = "" if row["floor"] is None or row["floor"] != row["floor"] else f", floor {row['floor']:.2f} %"
            interval = "" if row["low"] != row["low"] else f" ({row['low']:.2f} to {row['high']:.2f})"
            lines.append(f"{row['run']}: {row['label']}: {row['value']:.2f} %{interval}, {row['count']} {row['of']}{floor}")
    lines += [f"note: {note}" for note in outcome["notes"]]
    size = f"{outcome['page_bytes'] / 2**20:.1f} MiB, {outcome['num_rows']} rows, {outcome['seconds']:.0f} s"
    return "\n".join([*lines, f"report: {outcome['page_uri']} ({size})"])
