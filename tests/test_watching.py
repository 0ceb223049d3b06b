"""What TensorBoard, MLflow and Weights & Biases are told of a run."""

import sys
import time
from collections import defaultdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from posepipe import watching

ROW = {"epoch": 2, "train_loss": 0.5, "val_pckh": 0.25, "gpu_memory_bytes": None}


def test_event_files_hold_epochs_and_steps_and_an_epoch_that_is_done_again_once(tmp_path: Path) -> None:
    watcher = watching.Watcher(str(tmp_path), "id0", "run", {}, "none")
    watcher.show_epoch({**ROW, "epoch": 1}, [4.0, 3.0, 2.0])
    watcher.show_epoch(ROW, [9.0, 9.0, 9.0])
    again = watching.Watcher(str(tmp_path), "id0", "run", {}, "none")
    again.show_epoch(ROW, [1.0, float("nan"), 0.5])
    events = watching.read_events(str(tmp_path))
    assert events["step/loss"] == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0), (6, 0.5)]
    assert events["epoch/val_pckh"] == [(1, 0.25), (2, 0.25)]
    assert "epoch/gpu_memory_bytes" not in events


def test_an_epoch_ends_when_it_is_shown_for_the_last_time(tmp_path: Path) -> None:
    marks = [time.time()]
    for epoch in (1, 2, 2, 3):
        watching.Watcher(str(tmp_path), "id0", "run", {}, "none").show_epoch({**ROW, "epoch": epoch}, [1.0])
        marks.append(time.time())
    ends = watching.read_epoch_ends(str(tmp_path))
    assert [start <= end <= stop for start, end, stop in zip([marks[0], *marks[2:4]], ends, [marks[1], *marks[3:]], strict=True)] == [
        True
    ] * 3


def test_event_files_go_to_any_storage(s3_endpoint: str) -> None:
    from posepipe import storage

    filesystem, _ = storage.open_filesystem("s3://events")
    filesystem.mkdir("events")
    watching.Watcher("s3://events/runs/run", "id0", "run", {}, "none").show_epoch(ROW, [1.0])
    assert watching.read_events("s3://events/runs/run")["epoch/val_pckh"] == [(2, 0.25)]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_refused_with_the_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=rf"--logger {name} needs a package .*: pip install 'posepipe\[{name}\]'"):
        watching.require_logger(name)
    watching.require_logger("none")


class FakeMlflow(ModuleType):
    """Keeps runs as MLflow's server does: by id, with tags, parameters and metrics. One is active at a time."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.runs: dict[str, dict[str, Any]] = {}
        self.active = ""
        self.status: list[str] = []

    def search_runs(self, filter_string: str, output_format: str) -> list[Any]:
        assert output_format == "list"
        wanted = filter_string.partition("'")[2].rstrip("'")
        return [
            SimpleNamespace(info=SimpleNamespace(run_id=name), data=SimpleNamespace(params=dict(run["params"])))
            for name, run in self.runs.items()
            if run["posepipe_run"] == wanted
        ]

    def start_run(self, run_id: str = "", run_name: str = "", tags: dict[str, str] | None = None) -> None:
        if self.active:
            raise Exception(f"Run with UUID {self.active} is already active.")
        self.active = run_id or f"id{len(self.runs)}"
        self.runs.setdefault(self.active, {**(tags or {}), "name": run_name, "params": {}, "metrics": []})

    def log_params(self, params: dict[str, Any]) -> None:
        assert not set(params) & set(self.runs[self.active]["params"]), "MLflow refuses other values"
        self.runs[self.active]["params"] |= params

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        assert all(isinstance(value, int | float) for value in metrics.values())
        self.runs[self.active]["metrics"] += [(name, value, step) for name, value in metrics.items()]

    def end_run(self, status: str) -> None:
        self.active = ""
        self.status.append(status)

    def MlflowClient(self) -> Any:  # noqa: N802
        def history(run_id: str, key: str) -> list[Any]:
            return [SimpleNamespace(step=step) for name, _, step in self.runs[run_id]["metrics"] if name == key]

        return SimpleNamespace(get_metric_history=history)


def test_mlflow_goes_on_with_the_run_that_was_interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mlflow = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    first = watching.Watcher(str(tmp_path), "id0", "run", {"seed": 0}, "mlflow")
    for epoch in (1, 2):
        first.show_epoch({**ROW, "epoch": epoch}, [1.0])
    first.close(False)
    second = watching.Watcher(str(tmp_path), "id0", "run", {"seed": 0}, "mlflow")
    for epoch in (2, 3):
        second.show_epoch({**ROW, "epoch": epoch}, [1.0])
    second.close(True)
    (run,) = mlflow.runs.values()
    assert (run["name"], run["params"], run["run_uri"]) == ("run", {"seed": 0}, str(tmp_path))
    assert [(value, step) for name, value, step in run["metrics"] if name == "val_pckh"] == [(0.25, 1), (0.25, 2), (0.25, 3)]
    assert mlflow.status == ["FAILED", "FINISHED"]
    watching.Watcher(str(tmp_path), "id1", "run", {}, "mlflow")
    assert len(mlflow.runs) == 2


class Outage:
    """Stands in for a call of MLflow's, which fails while the server is away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, mlflow: FakeMlflow, name: str) -> None:
        self._call = getattr(mlflow, name)
        self.is_away = True
        monkeypatch.setattr(mlflow, name, self)

    def __call__(self, *arguments: Any, **others: Any) -> Any:
        if self.is_away:
            raise ConnectionError("no server")
        return self._call(*arguments, **others)


@pytest.mark.parametrize("call", ["MlflowClient", "log_params"])
@pytest.mark.parametrize("can_end", [True, False])
def test_mlflow_is_reached_again_where_its_server_went_away_while_a_run_was_opened(
    call: str, can_end: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mlflow = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    first = watching.Watcher(str(tmp_path), "id0", "run", {"seed": 0}, "mlflow")
    first.show_epoch({**ROW, "epoch": 1}, [1.0])
    first.close(False)
    end_run = mlflow.end_run

    def end(status: str) -> None:
        end_run(status)  # MLflow forgets the run before it tells the server.
        raise ConnectionError("no server")

    if not can_end:
        monkeypatch.setattr(mlflow, "end_run", end)
    outage = Outage(monkeypatch, mlflow, call)
    # The settings have a field more, which a newer posepipe may bring.
    second = watching.Watcher(str(tmp_path), "id0", "run", {"seed": 0, "patience": 3}, "mlflow", is_new=False)
    second.show_epoch({**ROW, "epoch": 2}, [1.0])
    (run,) = mlflow.runs.values()
    assert [step for name, _, step in run["metrics"] if name == "val_pckh"] == [1]
    outage.is_away = False
    monkeypatch.setattr(mlflow, "end_run", end_run)
    second.show_epoch({**ROW, "epoch": 3}, [1.0])
    second.close(True)
    assert [step for name, _, step in run["metrics"] if name == "val_pckh"] == [1, 2, 3]
    assert run["params"] == {"seed": 0, "patience": 3}
    assert mlflow.status[-1] == "FINISHED"


def test_mlflow_gets_the_settings_of_a_run_that_began_without_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mlflow = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    outage = Outage(monkeypatch, mlflow, "log_params")
    with pytest.raises(ConnectionError, match="no server"):
        watching.Watcher(str(tmp_path), "id0", "run", {"seed": 0}, "mlflow")
    (run,) = mlflow.runs.values()
    assert run["params"] == {}
    outage.is_away = False
    mlflow.active = ""  # in the next process
    watching.Watcher(str(tmp_path), "id0", "run", {"seed": 0}, "mlflow").close(True)
    assert list(mlflow.runs.values()) == [run]
    assert run["params"] == {"seed": 0}


def test_wandb_goes_on_with_the_run_that_was_interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logged: dict[str, list[tuple[int, float]]] = defaultdict(list)
    exit_codes = []

    def init(name: str, id: str, resume: str, config: dict[str, Any]) -> Any:
        assert (name, resume, config) == ("run", "allow", {"seed": 0})
        return SimpleNamespace(
            step=logged[id][-1][0] + 1 if logged[id] else 0,
            log=lambda row, step, commit: logged[id].append((step, row["val_pckh"])) if commit else None,
            finish=lambda exit_code: exit_codes.append(exit_code),
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for epochs, is_complete in (((1, 2), False), ((2, 3), True)):
        watcher = watching.Watcher(str(tmp_path), "id0", "run", {"seed": 0}, "wandb")
        for epoch in epochs:
            watcher.show_epoch({**ROW, "epoch": epoch}, [1.0])
        watcher.close(is_complete)
    assert list(logged.values()) == [[(1, 0.25), (2, 0.25), (3, 0.25)]]
    assert exit_codes == [1, 0]


def test_a_server_that_is_away_stops_nobody_and_gets_its_epochs_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    log, is_away = mlflow.log_metrics, [False]

    def maybe_log(*arguments: Any, **others: Any) -> None:
        if is_away[0]:
            raise ConnectionError("no\nserver")
        log(*arguments, **others)

    monkeypatch.setattr(mlflow, "log_metrics", maybe_log)
    watcher = watching.Watcher(str(tmp_path), "id0", "run", {}, "mlflow")
    for epoch in (1, 2, 3, 4):
        is_away[0] = epoch in (2, 3)
        watcher.show_epoch({**ROW, "epoch": epoch}, [1.0])
    watcher.close(True)
    (run,) = mlflow.runs.values()
    assert [step for name, _, step in run["metrics"] if name == "val_pckh"] == [1, 2, 3, 4]
    assert "mlflow does not answer, 2 epochs wait for it: ConnectionError: no server" in capsys.readouterr().out
    assert watching.read_events(str(tmp_path))["epoch/val_pckh"] == [(epoch, 0.25) for epoch in (1, 2, 3, 4)]


def test_a_server_that_is_away_at_a_restart_is_found_later_and_at_the_beginning_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mlflow = FakeMlflow()
    search = mlflow.search_runs

    def fail(**_: Any) -> None:
        raise ConnectionError("no server")

    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setattr(mlflow, "search_runs", fail)
    with pytest.raises(ConnectionError):
        watching.Watcher(str(tmp_path), "id0", "run", {}, "mlflow")
    watcher = watching.Watcher(str(tmp_path), "id0", "run", {}, "mlflow", is_new=False)
    watcher.show_epoch(ROW, [1.0])
    assert not mlflow.runs
    monkeypatch.setattr(mlflow, "search_runs", search)
    watcher.show_epoch({**ROW, "epoch": 3}, [1.0])
    watcher.close(True)
    (run,) = mlflow.runs.values()
    assert [step for name, _, step in run["metrics"] if name == "val_pckh"] == [2, 3]
    assert mlflow.status == ["FINISHED"]
