"""A sweep of training runs.

The samples are decoded once for all trials. Every trial is a training run below the sweep's folder; the best one's weights and settings are
copied to the folder itself, so that it is a checkpoint like any other run's. Ray Tune runs the trials; what is known of them lies in their
folders, so that a sweep whose driver died goes on from there, whatever Tune remembered.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray.exceptions
import ray.train
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

from posepipe import capacity, claiming, cluster, failures, searching, stopping, storage, sweep_plots, training, training_data, trials
from posepipe.config import TuneConfig, parse_search, with_parameters
from posepipe.model_file import MODEL_FILE
from posepipe.retrying import StorageUnavailableError, is_passing
from posepipe.runs import CONFIG_FILE, HISTORY_FILE, RESULT_FILE
from posepipe.snapshots import SNAPSHOTS_FILE
from posepipe.trials import Trial
from posepipe.watching import require_logger
from posepipe.writers import Writer

logger = logging.getLogger(__name__)

TRIALS_FILE = "trials.parquet"
SWEEP_FILE = "sweep.json"
NETWORK_FIELDS = ("model", "regression_head", "feature_stride", "direct_loss", "freeze_norm")
MISTAKES = ("ValueError:", "TypeError:", "NonFiniteError:", "FloatingPointError:")
OBJECTIVES = {"pose": "PCKh@0.5, official", "head": "mean IoU of the head box"}


def tune(config: TuneConfig) -> dict[str, Any]:
    """Runs the sweep, or goes on where one of this name stopped.

    Returns:
        The result as written to `result.json`: the best trial and its scores.

    Raises:
        ValueError: a name that is taken by another sweep, another process that writes it, no samples, too small a cluster, or no trial that
            got as far as a score.
    """
    # Trials run in folders of their own, where a relative path means something else.
    config = dataclasses.replace(config, train=training.resolve_uris(config.train))
    shared = config.train
    sweep_uri = storage.join_uri(shared.runs_uri, shared.name)
    if storage.exists(storage.join_uri(sweep_uri, storage.SUCCESS)):
        _claim_sweep(config, sweep_uri)
        logger.warning("sweep %s is complete; its result is read, nothing is trained", sweep_uri)
        return storage.read_json(storage.join_uri(sweep_uri, RESULT_FILE))
    require_logger(shared.logger)
    training.require_workers("one trial", shared)
    at_once = capacity.num_fitting(cpus=shared.cpus_per_worker, gpus=int(shared.use_gpu)) // shared.max_workers
    data = training_data.load_data(shared)
    _require_a_model(config, data)
    with Writer(sweep_uri, interrupt=True) as writer:
        try:
            return _sweep(config, sweep_uri, data, min(at_once, config.max_concurrent_trials or at_once), writer.check)
        except (KeyboardInterrupt, SystemExit):  # Ray makes one of the other.
            writer.check()
            raise


def _sweep(
    config: TuneConfig, sweep_uri: str, data: training_data.TrainingData, at_once: int, check: Callable[..., None]
) -> dict[str, Any]:
    """Sweeps to the end; `check` raises where somebody else has taken the folder over."""
    _claim_sweep(config, sweep_uri)
    known = [_try_again(trial) for trial in trials.read_trials(sweep_uri)]
    for trial in known:
        if not trial.has_ended:  # Nor has one that failed and is tried again, as long as its turn has not come.
            trials.write_record(sweep_uri, trial.name, trial.parameters)
    if known:
        num_ended = sum(trial.has_ended for trial in known)
        others = len(known) - num_ended
        print(f"going on: {num_ended} trials have ended, {others} were under way, or failed and are tried again", flush=True)
    is_exhausted = _run_trials(config, sweep_uri, data, known, at_once)
    known = trials.read_trials(sweep_uri)
    # Tune returns after Ctrl-C as if nothing had happened.
    if not _is_over(config, known, is_exhausted):
        raise KeyboardInterrupt(f"the sweep {sweep_uri} was interrupted; the same command goes on")
    check(is_fresh=True)
    return _finish(config, sweep_uri, known, data)


def _is_over(config: TuneConfig, known: Sequence[Trial], is_exhausted: bool) -> bool:
    """Whether all trials have ended, not only those that have begun; none begins any more where the search `is_exhausted`."""
    ended = {trial.name for trial in known if trial.has_ended}
    if len(ended) < len(known):
        return False
    if config.search_algorithm == "optuna":
        return is_exhausted or len(ended) >= _num_trials(config)
    return ended.issuperset(searching.plan_trials(config))


def _num_trials(config: TuneConfig) -> int:
    """Of a sweep that never runs out of new configurations."""
    return len(searching.grid([parse_search(text) for text in config.search])) * config.num_trials


def _require_a_model(config: TuneConfig, data: training_data.TrainingData) -> None:
    """Raises what is wrong with the network or its weights where that is so for every trial."""
    searched = [field for field in map(parse_search, config.search) if field[0] in NETWORK_FIELDS]
    wrong = None
    for parameters in searching.grid([(name, "grid", values) for name, _, values in searched]):
        try:
            training.build_initial_model(with_parameters(config.train, parameters), data)
        except ValueError as error:
            wrong = wrong or error
        else:
            return
    if wrong is not None:
        raise wrong


def _try_again(trial: Trial) -> Trial:
    """A trial that failed, as one under way, unless its own settings are the reason: the disk, the tracker or the GPU may be there now."""
    if trial.status != "failed" or str(trial.error).startswith(MISTAKES):
        return trial
    return dataclasses.replace(trial, status="under way", error=None)


def _claim_sweep(config: TuneConfig, sweep_uri: str) -> None:
    config_uri = storage.join_uri(sweep_uri, CONFIG_FILE)
    if not storage.exists(storage.join_uri(sweep_uri, SWEEP_FILE)) and storage.exists(config_uri):
        raise ValueError(f"{sweep_uri} is a run of jobs.{storage.read_json(config_uri)['job']}; choose another --name")
    names = ("search", "search_algorithm", "num_trials", "scheduler")
    wanted = {**claiming.describe_config(config.train), "job": "tune", **{name: getattr(config, name) for name in names}}
    wanted["search"] = list(config.search)
    claiming.claim_folder(sweep_uri, wanted, SWEEP_FILE)
    if not storage.exists(config_uri):
        # Until it holds the best trial's settings: jobs.train, too, shall find the name taken.
        storage.write_json(config_uri, wanted)


def _run_trials(config: TuneConfig, sweep_uri: str, data: training_data.TrainingData, known: Sequence[Trial], at_once: int) -> bool:
    """Runs every trial that has not ended, those that were under way first; whether Optuna found no other configuration to try."""
    ended = {trial.name for trial in known if trial.has_ended}
    space: dict[str, Any] = {}
    optuna = None
    if config.search_algorithm == "optuna":
        num_samples = _num_trials(config) - len(ended)
        optuna = searching.Optuna(config, known)
        algorithm: Any = ConcurrencyLimiter(optuna, max_concurrent=at_once)
    else:
        planned = {name: parameters for name, parameters in searching.plan_trials(config).items() if name not in ended}
        under_way = [trial.name for trial in known if trial.name in planned]
        ordered = list(dict.fromkeys([*under_way, *planned]))
        space["trial"] = ray.tune.grid_search([{"name": name, "parameters": planned[name]} for name in ordered])
        num_samples = min(1, len(ordered))
        algorithm = BasicVariantGenerator(max_concurrent=at_once)
    if num_samples <= 0:
        return False
    trainable = ray.tune.with_parameters(_run_trial, config=config, data=data)
    # The driver of a trial waits; its workers are what needs the CPUs. Tune takes no request for nothing, so it asks for one byte.
    trainable = ray.tune.with_resources(trainable, {"memory": 1})
    tuner = ray.tune.Tuner(
        trainable,
        param_space=space,
        tune_config=ray.tune.TuneConfig(
            metric="objective",
            mode="max",
            num_samples=num_samples,
            search_alg=algorithm,
            scheduler=stopping.build_scheduler(config, known),
            trial_name_creator=trials.tune_name,
            trial_dirname_creator=trials.tune_name,
        ),
        # Tune's own files lie apart from the trials' run folders. What a trial itself does wrong ends it; these failures are lost nodes.
        run_config=ray.tune.RunConfig(
            name="tune",
            storage_path=sweep_uri,
            verbose=0,
            callbacks=[_Recorder(sweep_uri)],
            failure_config=ray.tune.FailureConfig(max_failures=config.train.max_failures),
        ),
    )
    # A trial that fails before its first epoch has no objective, which else would end the whole sweep.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    with cluster.keep_interrupts():
        tuner.fit()
    return optuna is not None and optuna.is_exhausted


def _run_trial(parameters: dict[str, Any], config: TuneConfig, data: training_data.TrainingData) -> None:
    """In a process of its own: one training run. What goes wrong in it is left in its folder."""
    trial = parameters["trial"]
    sweep_uri = storage.join_uri(config.train.runs_uri, config.train.name)
    runs_uri = storage.join_uri(sweep_uri, trials.TRIALS_FOLDER)
    try:
        run = dataclasses.replace(with_parameters(config.train, trial["parameters"]), runs_uri=runs_uri, name=trial["name"])
        training.train_trial(run, data, [TuneReportCallback()])
    except Exception as error:
        storage.write_json(_error_uri(sweep_uri, trial["name"]), {"error": failures.describe_reason(error)})
        reason = failures.find_reason(error)
        # A lost node, a lack of memory or a storage that is away, which Tune tries again. What befalls workers Train has tried already.
        is_lost = isinstance(reason, ray.exceptions.RayError) and not isinstance(reason, ray.exceptions.RayTaskError)
        is_unavailable = isinstance(reason, StorageUnavailableError) or (isinstance(reason, Exception) and is_passing(reason))
        if (is_lost or is_unavailable) and not isinstance(error, ray.train.WorkerGroupError):
            raise


def _error_uri(sweep_uri: str, name: str) -> str:
    return storage.join_uri(trials.trial_uri(sweep_uri, name), trials.ERROR_FILE)


class _Recorder(ray.tune.Callback):
    """Writes down which trials were started and which have ended, as soon as the driver knows."""

    def __init__(self, sweep_uri: str) -> None:
        self._sweep_uri = sweep_uri

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        storage.delete([self._error_uri(trial)])
        self._write(trial)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._write(trial, has_ended=True, error=self._error(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        text = Path(trial.error_file).read_text() if trial.error_file and Path(trial.error_file).exists() else "no reason is known"
        self._write(trial, has_ended=True, error=self._error(trial) or failures.one_line(text))

    def _error(self, trial: Any) -> str | None:
        uri = self._error_uri(trial)
        return storage.read_json(uri)["error"] if storage.exists(uri) else None

    def _error_uri(self, trial: Any) -> str:
        return _error_uri(self._sweep_uri, trials.tune_name(trial))

    def _write(self, trial: Any, has_ended: bool = False, error: str | None = None) -> None:
        if error:
            print(f"{trials.tune_name(trial)} failed: {error}", flush=True)
        parameters = trial.config["trial"]["parameters"]
        trials.write_record(self._sweep_uri, trials.tune_name(trial), parameters, has_ended=has_ended, error=error)


def _finish(config: TuneConfig, sweep_uri: str, known: Sequence[Trial], data: training_data.TrainingData) -> dict[str, Any]:
    """Makes the sweep's folder explain itself, as a training run's does: the best trial's files, all trials; the marker comes last."""
    table = trials.to_table(known)
    storage.write_table(storage.join_uri(sweep_uri, TRIALS_FILE), table)
    rows = table.to_pylist()
    scored = [trial for trial in known if trial.best and trial.checkpoint_uri]
    if not scored:
        raise ValueError(f"no trial of {sweep_uri} got as far as a score; first error: {rows[0]['error']}")
    best = max(scored, key=lambda trial: (trial.best or {})["objective"])
    fields = [parse_search(text)[0] for text in config.search]
    for name, picture in sweep_plots.draw(rows, [trial.history for trial in known], fields, OBJECTIVES[config.train.task]).items():
        storage.write_bytes(storage.join_uri(sweep_uri, name), picture)
    sweep = storage.read_json(storage.join_uri(sweep_uri, SWEEP_FILE))
    files = {name: storage.read_bytes(storage.join_uri(str(best.checkpoint_uri), name)) for name in (MODEL_FILE, SNAPSHOTS_FILE)}
    files[HISTORY_FILE] = storage.to_json(best.history)
    chosen = {**best.parameters, "milestones": with_parameters(config.train, best.parameters).milestones}
    files[CONFIG_FILE] = storage.to_json({**sweep, **chosen, "trial_id": best.name})
    for name, content in files.items():
        storage.write_bytes(storage.join_uri(sweep_uri, name), content)
    row = best.row()
    result = {
        "run_uri": sweep_uri,
        "model_id": storage.sha256(files[MODEL_FILE]),
        "trials": rows,
        "best_trial": best.name,
        "best_epoch": row["epoch"],
        "val": {name: value for name, value in row.items() if name.startswith("val_")},
        **training.describe_data(data),
    }
    storage.write_json(storage.join_uri(sweep_uri, RESULT_FILE), result)
    storage.write_bytes(storage.join_uri(sweep_uri, storage.SUCCESS), b"")
    return result


def describe(result: dict[str, Any]) -> str:
    """The sweep's table, for people."""
    return "\n".join([trials.describe(result["trials"]), f"best trial {result['best_trial']}", training.describe(result)])
