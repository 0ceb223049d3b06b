"""Where the predictions of a report come from: folders and arrays of other systems; their rows in chunks, and one by one."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from posepipe import arrays, predictions, storage, truths
from posepipe.predictions import PREDICTION, SUMMARY_FILE
from posepipe.truths import Truth

CHUNK = 8192  # rows
NAMED = 5  # how many people a message names


@dataclass(frozen=True)
class Part:
    """Some rows of a run: a file, or what stands for one."""

    file: str
    num_rows: int
    load: Callable[[list[str]], pa.Table]
    """Columns of PREDICTION -> its rows."""


@dataclass(frozen=True)
class Source:
    """One run of predictions.

    Attributes:
        name: for tables and plots.
        uri: where it lies.
        parts: its rows, in their order.
        summary: what jobs.score wrote beside them, or nothing.
        notes: what a reader has to know: people without a prediction, predictions without a person.
    """

    name: str
    uri: str
    parts: tuple[Part, ...]
    summary: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def floor(self) -> dict[str, float | None]:
        """What the mean pose of the train labels scores, by measure, 0..1; empty where nobody has worked it out."""
        return {name: value for task in self.summary.get("tasks", {}).values() for name, value in task.get("floor", {}).items()}

    @property
    def num_rows(self) -> int:
        return sum(part.num_rows for part in self.parts)

    def chunks(self, columns: list[str]) -> Iterator[pa.Table]:
        """Columns of all rows, some thousands at a time."""
        waiting: list[pa.Table] = []
        for part in self.parts:
            waiting.append(part.load(columns))
            if sum(table.num_rows for table in waiting) >= CHUNK:
                yield from _cut(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            yield from _cut(pa.concat_tables(waiting))

    def locate(self, row: int) -> tuple[str, int]:
        """The file of a row, and its place in it."""
        ends = np.cumsum([part.num_rows for part in self.parts])
        index = int(np.searchsorted(ends, row, side="right"))
        return self.parts[index].file, row - int(ends[index] - self.parts[index].num_rows)

    def read_rows(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """The rows with these numbers, as PREDICTION names their values."""
        places = [self.locate(row) for row in rows]
        by_file = {part.file: part for part in self.parts}
        tables = {file: by_file[file].load(PREDICTION.names) for file in dict.fromkeys(file for file, _ in places)}
        return [tables[file].slice(place, 1).to_pylist()[0] for file, place in places]


def _cut(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, CHUNK):
        yield table.slice(start, CHUNK)


def open_sources(uris: Sequence[str], truth: Truth | None, first_pixel: int | None) -> list[Source]:
    """The runs below `uris`, with names that tell them apart.

    Raises:
        ValueError: a folder is not complete, a file holds no predictions, an array has no truth or another number of people than it.
    """
    found: list[Source] = []
    for uri in uris:
        if arrays.is_array_file(uri):
            found += _open_arrays(uri, truth, arrays.require_first_pixel(uri, first_pixel))
        else:
            found.append(_open_folder(uri, truth))
    if truth is not None and truth.mean_pose is not None and any(arrays.is_array_file(uri) for uri in uris):
        found.append(_array_source(MEAN_POSE, truth.uri, truths.predict(truth.labels, truth.mean_pose), MEAN_POSE_NOTE))
    names = storage.distinct_names([source.name for source in found], [source.uri for source in found])
    return [replace(source, name=name) for source, name in zip(found, names, strict=True)]


MEAN_POSE = "mean pose"
MEAN_POSE_NOTE = "mean pose: the floor. The mean of these same people's labels in the frame of their objpos and scale, so it is optimistic"


def _open_folder(uri: str, truth: Truth | None) -> Source:
    uri = storage.resolve_uri(uri)
    files = predictions.read_manifest(uri)["files"]
    parts = [Part(item["file"], item["rows"], functools.partial(_load_file, storage.join_uri(uri, item["file"]), truth)) for item in files]
    summary_uri = storage.join_uri(uri, SUMMARY_FILE)
    summary = storage.read_json(summary_uri) if storage.exists(summary_uri) else {}
    notes: list[str] = []
    if truth is not None:
        summary.pop("tasks", None)  # scores of the labels that the run had, not of these
        is_found = np.zeros(truth.labels.num_rows, bool)
        extra: list[str] = []
        tasks: set[str] = set()
        not_ok: Counter[str] = Counter()
        for part in parts:
            table = part.load(["sample_id", "task", "status"])
            places = truths.find_places(table["sample_id"], truth)
            is_found[places[places >= 0]] = True
            tasks |= set(table["task"].to_pylist())
            not_ok.update(
                status for status, place in zip(table["status"].to_pylist(), places, strict=True) if place >= 0 and status != "ok"
            )
            extra += table.filter(pa.array(places < 0))["sample_id"].to_pylist()
        missing = truth.labels.filter(pa.array(~is_found))
        if len(extra) == sum(part.num_rows for part in parts):
            raise ValueError(f"none of the {len(extra)} predictions of {uri} is of a person of {truth.uri}; {_listed('predicted', extra)}")
        if missing.num_rows:
            table = truths.miss(truth, np.flatnonzero(~is_found), max(tasks, key=len))
            parts.append(Part("people without a prediction", missing.num_rows, functools.partial(_select, table)))
            text = _listed("missing", missing["sample_id"].to_pylist())
            notes.append(f"{missing.num_rows} people of the truth have no prediction and count as misses; {text}")
        if not_ok:
            text = ", ".join(f"{count} {status}" for status, count in sorted(not_ok.items()))
            notes.append(f"{not_ok.total()} people of the truth have a row that is not ok and count as misses: {text}")
        if extra:
            notes.append(f"{len(extra)} predictions are of nobody in the truth and are not scored; {_listed('extra', extra)}")
    return Source(uri.rpartition("/")[2], uri, tuple(parts), summary, tuple(notes))


def _listed(what: str, sample_ids: Sequence[str]) -> str:
    more = f", … ({len(sample_ids)} in all)" if len(sample_ids) > NAMED else ""
    return f"{what}: {', '.join(sample_ids[:NAMED])}{more}"


def _load_file(uri: str, truth: Truth | None, columns: list[str]) -> pa.Table:
    needed = columns if truth is None else PREDICTION.names
    try:
        table = storage.read_table(uri, needed)
    except pa.ArrowInvalid as error:
        lacking = set(needed) - set(storage.read_table(uri).column_names)
        if not lacking:
            raise
        raise ValueError(f"{uri} has no column {', '.join(sorted(lacking))}: it was written by another version; score again") from error
    if truth is not None:
        table = truths.relabel(table, truth, truths.find_places(table["sample_id"], truth))
    return table.select(columns)


def _open_arrays(uri: str, truth: Truth | None, first_pixel: int) -> list[Source]:
    if truth is None:
        raise ValueError(f"{uri} holds joints without labels: say with --truth-uri what they are scored against")
    found = arrays.read_poses(uri)
    base, _ = arrays.split_key(uri)
    stem = base.rpartition("/")[2].rpartition(".")[0]
    sources = []
    for key, joints in found.items():
        if len(joints) != truth.labels.num_rows:
            raise ValueError(f"{base}::{key} has {len(joints)} people, its truth {truth.uri} has {truth.labels.num_rows}")
        table = truths.predict(truth.labels, joints - first_pixel)
        sources.append(_array_source(stem if len(found) == 1 else key, f"{base}::{key}", table))
    return sources


def _array_source(name: str, uri: str, table: pa.Table, *notes: str) -> Source:
    return Source(name, uri, (Part(uri.rpartition("/")[2], table.num_rows, functools.partial(_select, table)),), {}, notes)


def _select(table: pa.Table, columns: list[str]) -> pa.Table:
    return table.select(columns)
