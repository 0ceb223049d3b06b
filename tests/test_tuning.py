"""A sweep of trials on Ray Tune: what goes wrong in a trial, a driver that is killed."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions
from fault_tools import ROOT, descendants, kill_all
from ray.train import ControllerError, WorkerGroupError

from posepipe import claiming, failures, runs, samples, scoring, searching, storage, training, trials, tuning
from posepipe.config import ScoreConfig, TrainConfig, TuneConfig
from posepipe.retrying import StorageUnavailableError
from posepipe.trials import Trial
from posepipe.writers import LostRunError, Writer


def sweep(epochs: int = 8, **changes: Any) -> TuneConfig:
    return TuneConfig(train=TrainConfig(samples_uri="s", runs_uri="r", name="sweep", epochs=epochs), **changes)


def test_a_run_of_train_is_no_place_for_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = sweep()
    monkeypatch.setattr(claiming, "describe_config", lambda _: {})
    tuning._claim_sweep(config, str(tmp_path / "sweep"))
    tuning._claim_sweep(config, str(tmp_path / "sweep"))
    storage.write_json(str(tmp_path / "run" / runs.CONFIG_FILE), {"job": "train"})
    with pytest.raises(ValueError, match=r"run is a run of jobs\.train; choose another --name"):
        tuning._claim_sweep(config, str(tmp_path / "run"))
    assert os.listdir(tmp_path / "run") == [runs.CONFIG_FILE]


# What goes wrong


def run_trial(monkeypatch: pytest.MonkeyPatch, folder: Path, error: Exception) -> str:
    """Runs a trial whose training ends with `error`, and returns the reason in its folder."""

    def train(*_: Any) -> None:
        raise error

    monkeypatch.setattr(training, "train_trial", train)
    monkeypatch.setattr(tuning, "TuneReportCallback", lambda: None)
    config = TuneConfig(train=TrainConfig(samples_uri="s", runs_uri=str(folder), name="sweep"))
    try:
        tuning._run_trial({"trial": {"name": "trial-000", "parameters": {"batch_size": 32}}}, config, None)  # type: ignore[arg-type]
    finally:
        reason = storage.read_json(str(folder / "sweep" / "trials" / "trial-000" / trials.ERROR_FILE))["error"]
    return reason


def test_a_trial_that_does_something_wrong_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run_trial(monkeypatch, tmp_path, ValueError("unknown model")) == "ValueError: unknown model"
    cause = FloatingPointError("the loss is nan")
    assert run_trial(monkeypatch, tmp_path, WorkerGroupError("", {0: cause})) == "FloatingPointError: the loss is nan"


def test_a_trial_whose_node_is_lost_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lost = ray.exceptions.OutOfMemoryError("full")
    for error in (ray.exceptions.ActorDiedError(), lost, ControllerError(lost)):
        with pytest.raises(type(error)):
            run_trial(monkeypatch, tmp_path, error)
    # Train has tried this again already.
    assert run_trial(monkeypatch, tmp_path, WorkerGroupError("", {0: lost})).startswith("OutOfMemoryError: ")


def test_a_trial_whose_storage_was_away_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for error in (StorageUnavailableError("away"), ControllerError(OSError("AWS Error NETWORK_CONNECTION")), TimeoutError("late")):
        with pytest.raises(type(error)):
            run_trial(monkeypatch, tmp_path, error)
    assert run_trial(monkeypatch, tmp_path, FileNotFoundError(2, "gone")).startswith("FileNotFoundError: ")


def test_a_sweep_that_goes_on_tries_again_what_did_not_fail_by_its_own_settings() -> None:
    def status_of(error: str | None, status: str = "failed") -> str:
        return tuning._try_again(Trial("trial-000", {}, status, error, [], None, None)).status

    for error in ("OSError: [Errno 28] No space left on device", "OutOfMemoryError: full", "MlflowException: no server", None):
        assert status_of(error) == "under way"
    for error in ("ValueError: unknown model 'nosuch'", "NonFiniteError: the loss is nan"):
        assert status_of(error) == "failed"
    assert status_of(None, "completed") == "completed"
    assert status_of(None, "stopped early") == "stopped early"


def test_the_model_that_is_looked_at_first_is_one_that_trials_use(
    ray_session: None, person_samples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[TrainConfig] = []

    def build(config: TrainConfig, data: object) -> None:
        looked_at.append(config)
        raise ValueError(f"no {config.model}")

    monkeypatch.setattr(training, "build_initial_model", build)
    train = TrainConfig(samples_uri=person_samples, runs_uri=str(tmp_path), name="sweep", model="resnet10t")
    search = ("model=choice:test_resnet,resnet18", "learning_rate=loguniform:1e-4,1e-3")
    config = TuneConfig(train=train, search=search, num_trials=2)
    with pytest.raises(ValueError, match="no test_resnet"):
        tuning.tune(config)
    assert [(each.model, each.learning_rate) for each in looked_at] == [(name, train.learning_rate) for name in ("test_resnet", "resnet18")]
    monkeypatch.setattr(
        training, "build_initial_model", lambda config, data: build(config, data) if config.model == "test_resnet" else None
    )
    tuning._require_a_model(config, None)  # type: ignore[arg-type]


def test_a_reason_is_one_short_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run_trial(monkeypatch, tmp_path, MemoryError("none\nleft")) == "MemoryError: none left"
    assert len(run_trial(monkeypatch, tmp_path, MemoryError("process " * 1000))) == failures.MAX_REASON + 1


def test_more_than_the_cluster_has_is_refused(ray_session: None, person_samples: str, tmp_path: Path) -> None:
    train = TrainConfig(samples_uri=person_samples, runs_uri=str(tmp_path), name="sweep", num_workers=4, cpus_per_worker=4)
    with pytest.raises(ValueError, match="one trial needs 16 CPUs and 0 GPUs, the cluster has 6 CPUs"):
        tuning.tune(TuneConfig(train=train))


def test_a_sweep_that_another_process_writes_is_refused(ray_session: None, person_samples: str, tmp_path: Path) -> None:
    train = TrainConfig(samples_uri=person_samples, runs_uri=str(tmp_path), name="sweep", model="resnet10t")
    with Writer(str(tmp_path / "sweep"), 0.6), pytest.raises(ValueError, match=r"process \d+ is writing .*/sweep; wait for it, or stop it"):
        tuning.tune(TuneConfig(train=train))
    assert not (tmp_path / "sweep" / tuning.SWEEP_FILE).exists()


def test_trials_which_run_elsewhere_get_absolute_uris(
    ray_session: None, person_samples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[TuneConfig] = []

    def stop(trainable: Any, config: TuneConfig, data: Any) -> None:
        given.append(config)
        raise InterruptedError

    monkeypatch.setattr(tuning.ray.tune, "with_parameters", stop)
    monkeypatch.chdir(Path(person_samples).parent)
    train = TrainConfig(samples_uri=Path(person_samples).name, runs_uri="runs", name="sweep", model="resnet10t")
    with pytest.raises(InterruptedError):
        tuning.tune(TuneConfig(train=train))
    assert given[0].train.samples_uri == person_samples
    assert given[0].train.runs_uri == str(Path(person_samples).parent / "runs")
    assert given[0].train.weights == ("none",)


# A sweep that is interrupted


def small_sweep(samples_uri: str, folder: Path, **changes: Any) -> TuneConfig:
    train = TrainConfig(samples_uri=samples_uri, runs_uri=str(folder), name="sweep", task="head", model="resnet10t")
    return TuneConfig(train=train, max_concurrent_trials=1, **changes)


GRID: dict[str, Any] = {"search": ("batch_size=grid:8,16,32",)}
DRAWS: dict[str, Any] = {"search": ("batch_size=choice:8,16,32,64",), "num_trials": 3, "search_algorithm": "optuna"}


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C means here what Python makes of it, whatever ran in this process before."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def unscored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials that end at once, without a score: a sweep that gets to its end says so."""
    monkeypatch.setattr(tuning, "_run_trial", lambda parameters, config, data: None)


NO_SCORE = "no trial of .*/sweep got as far as a score"


@pytest.mark.parametrize("changes", [GRID, DRAWS], ids=["random", "optuna"])
def test_a_sweep_that_is_interrupted_before_its_first_trial_says_so(
    person_samples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    # As Tune does after Ctrl-C: it returns.
    monkeypatch.setattr(tuning.ray.tune, "Tuner", lambda *_, **__: SimpleNamespace(fit=lambda: None))
    with pytest.raises(KeyboardInterrupt, match=r"/sweep was interrupted; the same command goes on"):
        tuning.tune(small_sweep(person_samples, tmp_path, **changes))


def test_a_sweep_that_is_interrupted_before_it_tries_a_failed_trial_again_is_not_complete(
    person_samples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, sweep_uri = small_sweep(person_samples, tmp_path, **GRID), f"{tmp_path}/sweep"
    for name, parameters in searching.plan_trials(config).items():
        error = {"trial-000": "ValueError: no", "trial-001": "OSError: [Errno 28] No space left on device"}.get(name)
        trials.write_record(sweep_uri, name, parameters, has_ended=True, error=error)
    tuning._claim_sweep(config, sweep_uri)
    monkeypatch.setattr(tuning.ray.tune, "Tuner", lambda *_, **__: SimpleNamespace(fit=lambda: None))
    with pytest.raises(KeyboardInterrupt, match=r"/sweep was interrupted; the same command goes on"):
        tuning.tune(config)
    assert [trial.status for trial in trials.read_trials(sweep_uri)] == ["failed", "under way", "stopped early"]


@pytest.mark.parametrize("changes", [GRID, DRAWS], ids=["random", "optuna"])
def test_a_sweep_that_is_interrupted_between_two_trials_is_not_complete(
    person_samples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruptible: None, unscored: None, changes: dict[str, Any]
) -> None:
    config, complete = small_sweep(person_samples, tmp_path, **changes), tuning._Recorder.on_trial_complete

    def interrupt(*arguments: Any, **others: Any) -> None:
        complete(*arguments, **others)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(tuning._Recorder, "on_trial_complete", interrupt)
        with pytest.raises(KeyboardInterrupt, match=r"/sweep was interrupted; the same command goes on"):
            tuning.tune(config)
    assert [(trial.name, trial.has_ended) for trial in trials.read_trials(f"{tmp_path}/sweep")] == [("trial-000", True)]
    with pytest.raises(ValueError, match=NO_SCORE):
        tuning.tune(config)
    assert [(trial.name, trial.has_ended) for trial in trials.read_trials(f"{tmp_path}/sweep")] == [
        (f"trial-{number:03d}", True) for number in range(3)
    ]


def test_a_sweep_is_over_where_optuna_finds_nothing_new(person_samples: str, tmp_path: Path, unscored: None) -> None:
    config = small_sweep(person_samples, tmp_path, **{**DRAWS, "num_trials": 9})
    for _ in range(2):  # The second time nothing is left to try.
        with pytest.raises(ValueError, match=NO_SCORE):
            tuning.tune(config)
        assert len(trials.read_trials(f"{tmp_path}/sweep")) == 4


def test_a_sweep_that_was_taken_over_stops_its_trials(
    person_samples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruptible: None
) -> None:
    start = tuning._Recorder.on_trial_start

    def take_over(*arguments: Any, **others: Any) -> None:
        start(*arguments, **others)
        storage.write_json(f"{tmp_path}/sweep/writers/000002.json", {})

    monkeypatch.setattr(tuning, "Writer", functools.partial(Writer, takeover_after=0.6))
    monkeypatch.setattr(tuning, "_run_trial", lambda parameters, config, data: time.sleep(40))
    monkeypatch.setattr(tuning._Recorder, "on_trial_start", take_over)
    with pytest.raises(LostRunError, match="/sweep was taken over by another writer"):
        tuning.tune(small_sweep(person_samples, tmp_path, **GRID))
    assert [(trial.name, trial.has_ended) for trial in trials.read_trials(f"{tmp_path}/sweep")] == [("trial-000", False)]


# A driver that is killed

HEATMAP: dict[str, Any] = {"regression_head": "heatmap", "feature_stride": 16}


@contextlib.contextmanager
def tune_process(config: TuneConfig, log: Path, address: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """`python -m jobs.tune` in a process group of its own, on a Ray of its own or on the cluster at `address`."""
    train = config.train
    flags = {
        name: getattr(train, name)
        for name in ("samples_uri", "runs_uri", "name", "task", "model", "regression_head", "feature_stride", "epochs", "batch_size")
    }
    flags |= {"search_algorithm": config.search_algorithm, "num_trials": config.num_trials}
    flags |= {"max_concurrent_trials": config.max_concurrent_trials}
    command = [sys.executable, "-m", "jobs.tune", *(f"--{name.replace('_', '-')}={value}" for name, value in flags.items())]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_") or (address and "RAY_AUTH" in name)}
    with log.open("a") as sink:
        process = subprocess.Popen(
            [*command, "--search", *config.search],
            cwd=ROOT,
            env={**kept, **({"RAY_ADDRESS": address} if address else {})},
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        pids = descendants(process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        kill_all(pids)
        process.wait()


def run_until(process: subprocess.Popen[bytes], log: Path, sweep_uri: str, num_ended: int, timeout: float) -> list[Trial]:
    """Waits until so many trials have ended and another one has a checkpoint."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the sweep ended before it could be killed:\n{log.read_text()[-4000:]}"
        with contextlib.suppress(FileNotFoundError):  # a checkpoint that has just made room for a better one
            found = trials.read_trials(sweep_uri)
            if sum(trial.has_ended for trial in found) >= num_ended and any(trial.history and not trial.has_ended for trial in found):
                return found
        time.sleep(0.1)
    raise AssertionError(f"{num_ended} trials did not end in {timeout:.0f} s:\n{log.read_text()[-4000:]}")


def require_each_ran_once(before: list[Trial], sweep_uri: str) -> list[Trial]:
    """What was known when the driver was killed is what is known now, to the wall clock of every epoch; the rest was added."""
    after = {trial.name: trial for trial in trials.read_trials(sweep_uri)}
    for trial in before:
        assert after[trial.name].parameters == trial.parameters
        assert after[trial.name].history[: len(trial.history)] == trial.history, f"{trial.name} was trained again"
        if trial.has_ended:
            assert after[trial.name] == trial
    assert len({json.dumps(trial.parameters, sort_keys=True) for trial in after.values()}) == len(after)
    assert all([row["epoch"] for row in trial.history] == list(range(1, len(trial.history) + 1)) for trial in after.values())
    return list(after.values())


def test_a_sweep_whose_driver_was_killed_goes_on_and_a_failed_trial_is_a_row(
    ray_session: None, person_samples: str, tmp_path: Path
) -> None:
    train = TrainConfig(
        samples_uri=person_samples, runs_uri=str(tmp_path), name="sweep", task="head", model="resnet10t", epochs=6, batch_size=16, **HEATMAP
    )
    config = TuneConfig(train=train, search=("model=grid:nosuch,resnet10t", "learning_rate=grid:2e-3"), max_concurrent_trials=1)
    sweep_uri, log = f"{tmp_path}/sweep", tmp_path / "log"
    with tune_process(config, log) as process:
        before = run_until(process, log, sweep_uri, 1, 400)
    assert [trial.status for trial in before] == ["failed", "under way"]
    assert 1 <= len(before[1].history) < 6
    assert not Path(sweep_uri, storage.SUCCESS).exists()
    result = tuning.tune(config)
    failed, done = require_each_ran_once(before, sweep_uri)
    assert (failed.status, done.status, len(done.history)) == ("failed", "completed", 6)
    assert str(failed.error).startswith("ValueError: unknown model 'nosuch'")
    rows = storage.read_table(f"{sweep_uri}/{tuning.TRIALS_FILE}").to_pylist()
    assert [row["objective"] for row in rows] == [None, done.row()["objective"]]
    assert "trial-000 failed: ValueError: unknown model 'nosuch'" in tuning.describe(result)
    require_the_folder_explains_itself(sweep_uri, result, {"model": "resnet10t", "learning_rate": 2e-3})
    assert {path.name for path in Path(sweep_uri).glob("*.png")} == {"curves.png", "objective_model.png", "objective_learning_rate.png"}


def require_the_folder_explains_itself(sweep_uri: str, result: dict[str, Any], settings: dict[str, Any]) -> None:
    (run,) = runs.read_runs([sweep_uri])
    assert run.config | settings == run.config
    assert run.config["trial_id"] == result["best_trial"]
    assert max(row["objective"] for row in run.history) == next(
        row["objective"] for row in result["trials"] if row["trial_id"] == result["best_trial"]
    )
    assert storage.sha256(Path(sweep_uri, "model.safetensors").read_bytes()) == run.result["model_id"]
    assert {"floor", "samples", "versions"} <= set(run.result)
    with pytest.raises(ValueError, match="exists with other settings"):
        claiming.claim_folder(sweep_uri, {**run.config, "job": "train"})


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("algorithm", ["random", "optuna"])
def test_six_trials_of_which_asha_stops_some_with_a_driver_that_is_killed(person_samples: str, tmp_path: Path, algorithm: str) -> None:
    """Issue 6, "It must show" 4, on a cluster that outlives the driver."""
    from ray.cluster_utils import Cluster

    train = TrainConfig(
        samples_uri=person_samples, runs_uri=str(tmp_path), name="sweep", task="head", model="resnet10t", epochs=8, batch_size=16, **HEATMAP
    )
    # A learning rate that spoils everything comes last: ASHA has seen better by then.
    search = ("learning_rate=grid:2e-3,1e-3,0.5", "batch_size=grid:16,32")
    if algorithm == "optuna":
        search = (search[0], "batch_size=choice:16,32,24,48")
    config = TuneConfig(
        train=train, search=search, search_algorithm=algorithm, num_trials=2 if algorithm == "optuna" else 1, max_concurrent_trials=2
    )
    sweep_uri, log = f"{tmp_path}/sweep", tmp_path / "log"
    nodes = Cluster(
        initialize_head=True,
        connect=False,
        head_node_args={"num_cpus": 4, "object_store_memory": 300 * 2**20, "include_dashboard": False},
    )
    try:
        started = time.monotonic()
        with tune_process(config, log, nodes.address) as process:
            before = run_until(process, log, sweep_uri, 2, 900)
        killed = time.monotonic()
        with tune_process(config, log, nodes.address) as process:
            assert process.wait(1500) == 0, log.read_text()[-4000:]
        ended = time.monotonic()
        groups = placement_groups(nodes.address)
    finally:
        nodes.shutdown()
    after = require_each_ran_once(before, sweep_uri)
    assert len(after) == 6
    statuses = [trial.status for trial in after]
    assert set(statuses) == {"completed", "stopped early"}
    assert groups, "the sweep made none, so nothing was looked at"
    assert set(groups) == {"REMOVED"}
    result = storage.read_json(f"{sweep_uri}/{training.RESULT_FILE}")
    best = next(trial for trial in after if trial.name == result["best_trial"])
    require_the_folder_explains_itself(sweep_uri, result, best.parameters)
    summary = score_val(sweep_uri, person_samples, tmp_path)
    assert summary["tasks"]["head"]["score"]["head_iou"] == pytest.approx(best.row()["objective"], abs=1e-3)
    print(f"{algorithm}: killed after {killed - started:.0f} s with {[(t.name, t.status, len(t.history)) for t in before]}")
    print(f"resumed in {ended - killed:.0f} s: {[(t.name, t.status, len(t.history)) for t in after]}; {len(groups)} placement groups")


def placement_groups(address: str) -> list[str]:
    """The states of all placement groups that the cluster ever had, once those of a dead driver had time to go."""
    code = (
        "import json, time, ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR'); time.sleep(10);"
        "print('GROUPS', json.dumps([group['state'] for group in ray.util.placement_group_table().values()]))"
    )
    found = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, timeout=200, check=True)
    return json.loads(next(line for line in found.stdout.splitlines() if line.startswith("GROUPS")).removeprefix("GROUPS"))


def score_val(checkpoint_uri: str, samples_uri: str, folder: Path) -> dict[str, Any]:
    config = ScoreConfig(checkpoint_uri=(checkpoint_uri,), samples_uri=samples_uri, predictions_uri=f"{folder}/predictions")
    summary = scoring.score(config)
    assert summary["rows_predicted"] == samples.read_manifest(samples_uri)["rows"]["val"]
    return summary
