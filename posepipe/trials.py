"""The trials of a sweep: what was tried, how each ended, its curve.

Every trial is a training run in a folder of its own, with a record of the sweep beside it. What a trial reached is read from its
checkpoints, which outlive every process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.train

from posepipe import storage
from posepipe.retrying import retry
from posepipe.runs import HISTORY_FILE, RESULT_FILE, has_checkpoint

TRIALS_FOLDER = "trials"
RECORD_FILE = "trial.json"
ERROR_FILE = "error.json"


@dataclass(frozen=True)
class Trial:
    """One configuration of a sweep.

    Attributes:
        name: of its run folder.
        parameters: the searched fields and their values.
        status: under way, completed, stopped early or failed.
        error: why it failed.
        history: one dict per epoch, as training runs keep it.
        best: the history's row of the checkpoint that is kept as the best, or None where there is no checkpoint.
        checkpoint_uri: of that checkpoint.
    """

    name: str
    parameters: dict[str, Any]
    status: str
    error: str | None
    history: list[dict[str, Any]]
    best: dict[str, Any] | None
    checkpoint_uri: str | None

    @property
    def has_ended(self) -> bool:
        return self.status != "under way"

    def row(self) -> dict[str, Any]:
        """Of the table of trials."""
        best = self.best or {}
        return {
            "trial_id": self.name,
            **self.parameters,
            "status": self.status,
            "error": self.error,
            "epochs": len(self.history),
            "epoch": best.get("epoch"),
            "objective": best.get("objective"),
            "checkpoint_uri": self.checkpoint_uri,
            **{name: value for name, value in best.items() if name.startswith("val_")},
        }


def trial_uri(sweep_uri: str, name: str) -> str:
    """The run folder of a trial."""
    return storage.join_uri(sweep_uri, TRIALS_FOLDER, name)


def trial_name(number: int) -> str:
    return f"trial-{number:03d}"


def tune_name(tune_trial: Any) -> str:
    """The name of one of Ray Tune's trials, whose configuration `searching` suggests."""
    return tune_trial.config["trial"]["name"]


def write_record(sweep_uri: str, name: str, parameters: dict[str, Any], *, has_ended: bool = False, error: str | None = None) -> None:
    """Writes what the sweep's driver knows of a trial."""
    record = {"name": name, "parameters": parameters, "has_ended": has_ended, "error": error}
    storage.write_json(storage.join_uri(trial_uri(sweep_uri, name), RECORD_FILE), record)


def read_trials(sweep_uri: str) -> list[Trial]:
    """All trials that were started, by name."""
    found = storage.list_files(storage.join_uri(sweep_uri, TRIALS_FOLDER))
    folders = [uri.rpartition("/")[0] for uri in found if uri.endswith(f"/{RECORD_FILE}")]
    files = set(found)
    return [_read_trial(folder, storage.join_uri(folder, storage.SUCCESS) in files) for folder in folders]


def _read_trial(uri: str, is_complete: bool) -> Trial:
    record = storage.read_json(storage.join_uri(uri, RECORD_FILE))
    known = (record["name"], record["parameters"])
    if is_complete:
        history = storage.read_json(storage.join_uri(uri, HISTORY_FILE))
        best_epoch = storage.read_json(storage.join_uri(uri, RESULT_FILE))["best_epoch"]
        return Trial(*known, "completed", None, history, next(row for row in history if row["epoch"] == best_epoch), uri)
    status = "under way" if not record["has_ended"] else "failed" if record["error"] else "stopped early"
    try:
        is_begun = has_checkpoint(uri)
    except ValueError:  # A lost machine left half of Ray's list of them.
        is_begun = False
    if not is_begun:
        return Trial(*known, status, record["error"], [], None, None)
    result = retry(lambda: ray.train.Result.from_path(uri))
    # An objective is a share; a checkpoint in the middle of an epoch has none, or one below.
    scored = [pair for pair in result.best_checkpoints or [] if pair[1].get("objective", -1.0) >= 0]
    if not scored or result.checkpoint is None:
        return Trial(*known, status, record["error"], [], None, None)
    history = storage.read_json(storage.join_uri(_within(uri, result.checkpoint), HISTORY_FILE))
    checkpoint, best = max(scored, key=lambda pair: pair[1]["objective"])
    return Trial(*known, status, record["error"], history, best, _within(uri, checkpoint))


def _within(uri: str, checkpoint: ray.train.Checkpoint) -> str:
    # Ray's path has no scheme.
    return storage.join_uri(uri, checkpoint.path.rstrip("/").rpartition("/")[2])


def to_table(trials: Sequence[Trial]) -> pa.Table:
    """A row per trial."""
    rows = [trial.row() for trial in trials]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])


def describe(rows: Sequence[dict[str, Any]]) -> str:
    """The table, for people, the best trials first; below it, why some failed."""
    hidden = ("error", "checkpoint_uri")
    ordered = sorted(rows, key=lambda row: -1.0 if row["objective"] is None else row["objective"], reverse=True)
    names = [name for name in rows[0] if name not in hidden and not name.startswith("val_")]
    table = [names] + [[_text(row.get(name)) for name in names] for row in ordered]
    widths = [max(len(line[column]) for line in table) for column in range(len(names))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in table]
    return "\n".join([*lines, *(f"{row['trial_id']} failed: {row['error']}" for row in rows if row["error"])])


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
