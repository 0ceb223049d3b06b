"""What a report knows of one run: its counts, its statuses, and one number per person to find people by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from posepipe import bootstrap, evaluation, people, slices
from posepipe.columns import float_array
from posepipe.evaluation import RunCounts
from posepipe.people import People
from posepipe.sources import Source

MAX_EXAMPLES = 3  # of each status


@dataclass(frozen=True, eq=False)
class Result:
    """One run, evaluated. Of each of the N people no more than the id, its hash and one float is kept.

    Attributes:
        source: the run.
        counts: of all people.
        statuses: rows by status.
        examples: some rows of each status but ok: sample_id, uri, status, detail, row.
        sample_ids: (N,)
        keys: (N,) hashes of the ids.
        person_errors: (N,) float32, see `People.person_error`; NaN where nothing is labelled.
        is_predicted: (N,) the status is ok.
    """

    source: Source
    counts: RunCounts
    statuses: Counter[str]
    examples: list[dict[str, Any]]
    sample_ids: pa.ChunkedArray
    keys: NDArray[np.uint64]
    person_errors: NDArray[np.float32]
    is_predicted: NDArray[np.bool_]

    @property
    def has_pose(self) -> bool:
        return self.counts.pose.official.num_joints > 0

    @property
    def has_head(self) -> bool:
        return self.counts.head.boxes.num_boxes > 0

    @property
    def is_labelled(self) -> bool:
        return self.has_pose or self.has_head


def evaluate(source: Source) -> Result:
    """Reads a run twice: for the limits of its slices, and for all the rest.

    Raises:
        ValueError: no rows, or two of one sample_id.
    """
    if not source.num_rows:
        raise ValueError(f"{source.uri} holds no people: expected at least one row of predictions, got 0")
    sizes, activities = [], Counter[str | None]()
    for table in source.chunks(["head_size", "activity"]):
        sizes.append(float_array(table["head_size"]).astype(np.float32))
        activities.update(table["activity"].to_pylist())
    slicing = slices.choose_slicing(np.concatenate(sizes).astype(np.float64), activities.elements())
    statuses: Counter[str] = Counter()
    examples: list[dict[str, Any]] = []
    ids: list[pa.Array] = []
    keys: list[NDArray[np.uint64]] = []
    errors: list[NDArray[np.float32]] = []
    predicted: list[NDArray[np.bool_]] = []

    def chunks() -> Iterator[People]:
        row = 0
        for table in source.chunks([*people.COLUMNS, "uri", "detail"]):
            for status, uri, detail, sample_id in zip(*(table[name].to_pylist() for name in _EXAMPLE), strict=True):
                if status != "ok" and statuses[status] < MAX_EXAMPLES:
                    examples.append({"status": status, "uri": uri, "detail": detail, "sample_id": sample_id, "row": row})
                statuses[status] += 1
                row += 1
            part = people.from_table(table)
            ids.extend(table["sample_id"].chunks)
            keys.append(bootstrap.person_keys(part.sample_id))
            errors.append(part.person_error.astype(np.float32))
            predicted.append(part.status == "ok")
            yield part

    counts = reduce(add, (evaluation.count(part, slicing) for part in chunks()))
    all_keys, all_ids = np.concatenate(keys), pa.chunked_array(ids)
    order = np.argsort(all_keys, kind="stable")
    repeated = np.flatnonzero(np.diff(all_keys[order]) == 0)
    if repeated.size:
        row = int(order[repeated[0]])
        raise ValueError(f"{source.uri} has {repeated.size} rows whose sample_id another row has too, {all_ids[row].as_py()!r} among them")
    return Result(source, counts, statuses, examples, all_ids, all_keys, np.concatenate(errors), np.concatenate(predicted))


_EXAMPLE = ("status", "uri", "detail", "sample_id")


def match(one: Result, other: Result) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str], list[str]]:
    """The people that two runs share.

    Returns:
        Rows of the first and of the second run, one pair per person; ids that only the first has, and only the second.
    """
    _, rows, other_rows = np.intersect1d(one.keys, other.keys, assume_unique=True, return_indices=True)
    alone = [_alone(result, found) for result, found in ((one, rows), (other, other_rows))]
    order = np.argsort(rows)
    return rows[order], other_rows[order], alone[0], alone[1]


def _alone(result: Result, shared: NDArray[np.int64]) -> list[str]:
    is_alone = np.ones(len(result.keys), bool)
    is_alone[shared] = False
    return result.sample_ids.filter(pa.array(is_alone)).to_pylist()


def extremes(values: NDArray[np.floating[Any]], number: int) -> dict[str, NDArray[np.int64]]:
    """Rows of the lowest, middle and highest values (N,), lowest first; no row twice, NaN never. Few rows are shared out."""
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    number = min(number, max(1, -(-len(order) // 3)))
    best = order[:number]
    worst = order[max(len(order) - number, len(best)) :]
    between = order[len(best) : len(order) - len(worst)]
    start = max(0, (len(between) - number) // 2)
    return {"best": best, "median": between[start : start + number], "worst": worst[::-1]}
