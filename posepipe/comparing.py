"""Two runs person by person: who got better, who got worse."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from posepipe import cases, results, scores
from posepipe.cases import Case
from posepipe.metrics import FloatArray
from posepipe.results import Result


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a second run does otherwise than a first one, on the people that both have labelled.

    Attributes:
        names: of the first and the second run.
        errors: (2, N) person errors of the people they share.
        only_first: ids of the people that the second run does not have.
        only_second: ids of the people that the first run does not have.
        measure: the key in `scores.LABELS` of what is compared.
        change: second less first in percent points, with its 95 % interval; None where the two did not score the same people.
        better: the people whose error fell most, each as the case of the first and of the second run.
        worse: the people whose error rose most, likewise.
        table: a row per shared person: sample_id, error and row in the first and in the second run, change.
    """

    names: tuple[str, str]
    errors: FloatArray
    only_first: list[str]
    only_second: list[str]
    measure: str
    change: tuple[float, float, float] | None
    better: list[tuple[Case, Case]]
    worse: list[tuple[Case, Case]]
    table: pa.Table

    @property
    def num_better(self) -> int:
        return int(np.sum(self.errors[1] < self.errors[0]))

    @property
    def num_worse(self) -> int:
        return int(np.sum(self.errors[1] > self.errors[0]))


def compare(first: Result, second: Result, number: int, min_confidence: float) -> Comparison | None:
    """Compares two runs that scored the same kind of thing; None where they did not, or share no labelled person.

    Args:
        first: what is compared with.
        second: what is compared.
        number: how many of those who changed most are drawn.
        min_confidence: joints of less are not drawn.
    """
    if not (first.has_pose and second.has_pose) and not (first.has_head and second.has_head and not first.has_pose and not second.has_pose):
        return None
    rows, other_rows, only_first, only_second = results.match(first, second)
    errors = np.stack([first.person_errors[rows], second.person_errors[other_rows]]).astype(np.float64)
    is_known = ~np.isnan(errors).any(axis=0)
    rows, other_rows, errors = rows[is_known], other_rows[is_known], errors[:, is_known]
    if not len(rows):
        return None
    change = errors[1] - errors[0]
    order = np.argsort(change, kind="stable")
    changed = {
        "better": order[: min(number, int(np.sum(change < 0)))],
        "worse": order[::-1][: min(number, int(np.sum(change > 0)))],
    }
    drawn = {
        kind: list(
            zip(
                cases.draw_rows(first, kind, rows[places].tolist(), min_confidence),
                cases.draw_rows(second, kind, other_rows[places].tolist(), min_confidence),
                strict=True,
            )
        )
        for kind, places in changed.items()
    }
    table = pa.table(
        {
            "sample_id": first.sample_ids.take(pa.array(rows)),
            "first_row": rows,
            "second_row": other_rows,
            "first_error": errors[0].astype(np.float32),
            "second_error": errors[1].astype(np.float32),
            "change": change.astype(np.float32),
        }
    )
    measure = "pckh" if first.has_pose else "head_iou_50"
    same = _num_known(first) == _num_known(second) == len(rows)
    interval = scores.change(first.counts, second.counts, measure) if same else None
    names = (first.source.name, second.source.name)
    return Comparison(names, errors, only_first, only_second, measure, interval, drawn["better"], drawn["worse"], table)


def _num_known(result: Result) -> int:
    return int(np.sum(~np.isnan(result.person_errors)))
