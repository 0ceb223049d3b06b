"""The record of a sweep's trials: every way to end, read from what lies in the run folders."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posepipe import storage, trials
from posepipe.runs import CHECKPOINTS_FILE
from posepipe.trials import Trial


def history(*objectives: float) -> list[dict[str, Any]]:
    return [{"epoch": number, "objective": value, "val_loss": 1.0 - value} for number, value in enumerate(objectives, start=1)]


def write_run(sweep_uri: str, name: str, *, checkpoints: list[float], is_complete: bool = False) -> None:
    """What training leaves in a trial's folder: the last checkpoint holds the whole history."""
    uri = trials.trial_uri(sweep_uri, name)
    storage.write_json(f"{uri}/{CHECKPOINTS_FILE}", {"checkpoint_results": checkpoints})
    for number in range(len(checkpoints)):
        storage.write_json(f"{uri}/checkpoint_{number}/history.json", history(*checkpoints[: number + 1]))
    if is_complete:
        rows = history(*checkpoints)
        storage.write_json(f"{uri}/history.json", rows)
        storage.write_json(f"{uri}/result.json", {"best_epoch": max(rows, key=lambda row: row["objective"])["epoch"]})
        storage.write_bytes(f"{uri}/{storage.SUCCESS}", b"")


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A sweep's folder, whose trials' checkpoints Ray finds."""

    def from_path(path: str) -> SimpleNamespace:
        folders = sorted(each for each in Path(path).glob("checkpoint_*") if each.is_dir())
        kept = [(SimpleNamespace(path=str(each)), storage.read_json(f"{each}/history.json")[-1]) for each in folders]
        return SimpleNamespace(checkpoint=kept[-1][0], best_checkpoints=kept)

    monkeypatch.setattr(trials.ray.train, "Result", SimpleNamespace(from_path=from_path))
    return str(tmp_path)


def only(sweep_uri: str) -> Trial:
    (trial,) = trials.read_trials(sweep_uri)
    return trial


def test_a_trial_that_was_just_started_is_under_way(sweep: str) -> None:
    trials.write_record(sweep, "trial-000", {"learning_rate": 1e-3})
    trial = only(sweep)
    assert (trial.status, trial.has_ended, trial.history, trial.best, trial.checkpoint_uri) == ("under way", False, [], None, None)
    assert trial.parameters == {"learning_rate": 1e-3}


def test_a_trial_under_way_has_the_history_of_its_last_checkpoint(sweep: str) -> None:
    trials.write_record(sweep, "trial-000", {})
    write_run(sweep, "trial-000", checkpoints=[0.1, 0.3])
    assert not only(sweep).has_ended
    assert only(sweep).history == history(0.1, 0.3)


def test_a_trial_that_was_stopped_has_its_best_checkpoint(sweep: str) -> None:
    trials.write_record(sweep, "trial-000", {}, has_ended=True)
    write_run(sweep, "trial-000", checkpoints=[0.1, 0.4, 0.2])
    trial = only(sweep)
    assert (trial.status, trial.error) == ("stopped early", None)
    assert trial.checkpoint_uri == f"{sweep}/trials/trial-000/checkpoint_1"
    assert trial.best == history(0.1, 0.4)[1]
    row = trial.row()
    assert (row["epochs"], row["epoch"], row["objective"], row["val_loss"]) == (3, 2, 0.4, 0.6)


@pytest.mark.parametrize("has_ended", [True, False])
def test_a_complete_run_is_complete_also_where_the_driver_died_before_it_knew(sweep: str, has_ended: bool) -> None:
    trials.write_record(sweep, "trial-000", {}, has_ended=has_ended)
    write_run(sweep, "trial-000", checkpoints=[0.1, 0.4, 0.2], is_complete=True)
    trial = only(sweep)
    assert (trial.status, trial.has_ended, trial.checkpoint_uri) == ("completed", True, f"{sweep}/trials/trial-000")
    assert trial.best == history(0.1, 0.4)[1]


@pytest.mark.parametrize("content", [b"", b'{"checkpoint_results": [{"vers', b'{"checkpoint_results": []}'])
def test_a_trial_without_a_whole_list_of_checkpoints_has_none(sweep: str, content: bytes) -> None:
    trials.write_record(sweep, "trial-000", {})
    write_run(sweep, "trial-000", checkpoints=[0.3])
    storage.write_bytes(f"{trials.trial_uri(sweep, 'trial-000')}/{CHECKPOINTS_FILE}", content)
    assert (only(sweep).status, only(sweep).best) == ("under way", None)


def test_checkpoints_that_cannot_be_read_just_now_are_not_taken_for_none(sweep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trials.write_record(sweep, "trial-000", {}, has_ended=True)
    write_run(sweep, "trial-000", checkpoints=[0.3])
    from_path, faults = trials.ray.train.Result.from_path, [OSError("AWS Error NETWORK_CONNECTION"), TimeoutError("late")]

    def maybe_fail(path: str) -> SimpleNamespace:
        if faults:
            raise faults.pop()
        return from_path(path)

    monkeypatch.setattr(trials.ray.train.Result, "from_path", maybe_fail)
    monkeypatch.setattr("posepipe.retrying._pauses", lambda: iter(lambda: 1e-4, None))
    assert only(sweep).row()["objective"] == 0.3


def test_a_failed_trial_keeps_its_reason_and_what_it_reached(sweep: str) -> None:
    trials.write_record(sweep, "trial-000", {}, has_ended=True, error="FloatingPointError: the loss is nan")
    trials.write_record(sweep, "trial-001", {}, has_ended=True, error="ValueError: unknown model")
    write_run(sweep, "trial-000", checkpoints=[0.3])
    later, never = trials.read_trials(sweep)
    assert (later.status, later.error, later.row()["objective"]) == ("failed", "FloatingPointError: the loss is nan", 0.3)
    assert (never.status, never.row()["objective"], never.row()["epochs"]) == ("failed", None, 0)


def test_a_sweep_without_trials_has_none(sweep: str) -> None:
    assert trials.read_trials(sweep) == []


def test_the_table_has_a_column_for_everything_that_any_trial_has(sweep: str) -> None:
    failed = Trial("trial-000", {"batch_size": 32}, "failed", "ValueError: no", [], None, None)
    done = Trial("trial-001", {"batch_size": 64}, "completed", None, history(0.5), history(0.5)[0], "uri")
    table = trials.to_table([failed, done])
    assert table["objective"].to_pylist() == [None, 0.5]
    assert table["val_loss"].to_pylist() == [None, 0.5]
    assert table["batch_size"].to_pylist() == [32, 64]
    assert table["error"].to_pylist() == ["ValueError: no", None]


def test_people_read_the_best_trial_first_and_why_others_failed() -> None:
    rows = [
        Trial("trial-000", {"batch_size": 32}, "failed", "ValueError: no", [], None, None).row(),
        Trial("trial-001", {"batch_size": 64}, "completed", None, history(0.25), history(0.25)[0], "uri").row(),
        Trial("trial-002", {"batch_size": 128}, "completed", None, history(0.5), history(0.5)[0], "uri").row(),
    ]
    lines = [line.split() for line in trials.describe(rows).splitlines()]
    assert [line[0] for line in lines] == ["trial_id", "trial-002", "trial-001", "trial-000", "trial-000"]
    assert lines[1] == ["trial-002", "128", "completed", "1", "1", "0.5"]
    assert " ".join(lines[-1]) == "trial-000 failed: ValueError: no"
