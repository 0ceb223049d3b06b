"""A sweep of training runs.

The samples are decoded once for all trials. Every trial is a training run below the sweep's folder; the best one's weights are copied to
the folder itself, so that it is a checkpoint like any other run's.
"""

import dataclasses
import json
import logging
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import BasicVariantGenerator

from posepipe import cluster, storage, training
from posepipe.config import TuneConfig, parse_search
from posepipe.models import MODEL_FILE

logger = logging.getLogger(__name__)

TRIALS_FILE = "trials.parquet"
TRIALS_FOLDER = "trials"


def tune(config: TuneConfig) -> dict[str, Any]:
    """Runs the sweep, or goes on where one of this name stopped.

    Returns:
        The result as written to `result.json`: the best trial and its scores.

    Raises:
        ValueError: a name that is taken by another sweep, no samples, too small a cluster, or no trial that ended well.
    """
    # Trials run in folders of their own, where a relative path means something else.
    config = dataclasses.replace(config, train=training.resolve_uris(config.train))
    shared = config.train
    sweep_uri = storage.join_uri(shared.runs_uri, shared.name)
    if storage.exists(storage.join_uri(sweep_uri, storage.SUCCESS)):
        _claim_sweep(config, sweep_uri)
        logger.warning("sweep %s is complete; its result is read, nothing is trained", sweep_uri)
        return storage.read_json(storage.join_uri(sweep_uri, training.RESULT_FILE))
    training.require_workers("one trial", shared)
    at_once = cluster.num_fitting(cpus=shared.cpus_per_worker, gpus=int(shared.use_gpu)) // shared.max_workers
    data = training.load_data(shared)
    training.build_initial_model(shared, data)
    _claim_sweep(config, sweep_uri)
    trainable = ray.tune.with_parameters(_run_trial, config=config, data=data)
    # The driver of a trial waits; its workers are what needs the CPUs. Tune takes no request for nothing, so it asks for one byte.
    trainable = ray.tune.with_resources(trainable, {"memory": 1})
    # Tune's own files lie apart from the trials' run folders.
    tune_uri = storage.join_uri(sweep_uri, "tune")
    if ray.tune.Tuner.can_restore(tune_uri):
        tuner = ray.tune.Tuner.restore(tune_uri, trainable, resume_errored=True)
    else:
        tuner = ray.tune.Tuner(
            trainable,
            param_space={name: _space(kind, values) for name, kind, values in map(parse_search, config.search)},
            tune_config=ray.tune.TuneConfig(
                metric="objective",
                mode="max",
                num_samples=config.num_trials,
                search_alg=BasicVariantGenerator(
                    max_concurrent=min(at_once, config.max_concurrent_trials or at_once), random_state=shared.seed
                ),
                scheduler=_scheduler(config),
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=ray.tune.RunConfig(name="tune", storage_path=sweep_uri, verbose=0),
        )
    return _finish(config, sweep_uri, tuner.fit(), data)


def _claim_sweep(config: TuneConfig, sweep_uri: str) -> None:
    wanted = {
        **training.describe_config(config.train),
        "job": "tune",
        "search": list(config.search),
        "num_trials": config.num_trials,
        "scheduler": config.scheduler,
    }
    training.claim_folder(sweep_uri, wanted)


def _run_trial(parameters: dict[str, Any], config: TuneConfig, data: training.TrainingData) -> None:
    trials_uri = storage.join_uri(config.train.runs_uri, config.train.name, TRIALS_FOLDER)
    trial = dataclasses.replace(config.train, **parameters, runs_uri=trials_uri, name=ray.tune.get_context().get_trial_id())
    training.train(trial, data, [TuneReportCallback()])


def _space(kind: str, values: Sequence[Any]) -> Any:
    if kind == "grid":
        return ray.tune.grid_search(list(values))
    if kind == "choice":
        return ray.tune.choice(list(values))
    return {"uniform": ray.tune.uniform, "loguniform": ray.tune.loguniform}[kind](*values)


def _scheduler(config: TuneConfig) -> ASHAScheduler | None:
    epochs = config.train.epochs
    if config.scheduler == "none" or epochs == 1:
        return None
    # One more than there are epochs: a trial that gets to the end closes its run folder itself.
    return ASHAScheduler(time_attr="epoch", max_t=epochs + 1, grace_period=max(1, epochs // 4), reduction_factor=2)


def _finish(config: TuneConfig, sweep_uri: str, results: ray.tune.ResultGrid, data: training.TrainingData) -> dict[str, Any]:
    rows = sorted((_row(config, sweep_uri, result) for result in results), key=lambda row: row["trial_id"])
    storage.write_table(storage.join_uri(sweep_uri, TRIALS_FILE), pa.Table.from_pylist(rows))
    scored = [row for row in rows if row["objective"] is not None]
    if not scored:
        raise ValueError(f"no trial of {sweep_uri} got as far as a score; first error: {rows[0]['error']}")
    best = max(scored, key=lambda row: row["objective"])
    model = storage.read_bytes(storage.join_uri(best["checkpoint_uri"], MODEL_FILE))
    storage.write_bytes(storage.join_uri(sweep_uri, MODEL_FILE), model)
    result = {
        "run_uri": sweep_uri,
        "model_id": storage.sha256(model),
        "trials": rows,
        "best_trial": best["trial_id"],
        "best_epoch": best["epoch"],
        "val": {name: value for name, value in best.items() if name.startswith("val_")},
        "floor": data.floor,
    }
    storage.write_json(storage.join_uri(sweep_uri, training.RESULT_FILE), result)
    storage.write_bytes(storage.join_uri(sweep_uri, storage.SUCCESS), b"")
    return result


def _row(config: TuneConfig, sweep_uri: str, result: Any) -> dict[str, Any]:
    """One trial: what was tried, how it ended, its best epoch."""
    fields = [parse_search(text)[0] for text in config.search]
    trial_id = result.path.rstrip("/").rpartition("/")[2]
    trial_uri = storage.join_uri(sweep_uri, TRIALS_FOLDER, trial_id)
    is_complete = storage.exists(storage.join_uri(trial_uri, storage.SUCCESS))
    # A complete run says more than Tune, which forgets what happened before the sweep was interrupted.
    epochs = storage.read_json(storage.join_uri(trial_uri, training.HISTORY_FILE)) if is_complete else _reported(result)
    row: dict[str, Any] = {
        "trial_id": trial_id,
        **{name: (result.config or {}).get(name) for name in fields},
        "status": "completed" if is_complete else "failed" if result.error else "stopped early",
        "error": str(result.error) if result.error else None,
        "epochs": len(epochs),
        "epoch": None,
        "objective": None,
        "checkpoint_uri": None,
    }
    if epochs:
        # Of equals Ray keeps the latest checkpoint.
        best = max(epochs, key=lambda epoch: (epoch["objective"], epoch["epoch"]))
        folder = str(best.get("checkpoint_path", "")).rstrip("/").rpartition("/")[2]
        row |= {
            "epoch": best["epoch"],
            "objective": best["objective"],
            "checkpoint_uri": trial_uri if is_complete else storage.join_uri(trial_uri, folder),
            **{name: value for name, value in best.items() if name.startswith("val_")},
        }
    return row


def _reported(result: Any) -> list[dict[str, Any]]:
    """What a trial told Tune, one dict per epoch."""
    if result.metrics_dataframe is None or "objective" not in result.metrics_dataframe:
        return []
    return json.loads(result.metrics_dataframe.to_json(orient="records"))


def describe(result: dict[str, Any]) -> str:
    """The sweep's table, for people."""
    hidden = ("error", "checkpoint_uri")
    names = [name for name in result["trials"][0] if name not in hidden and not name.startswith("val_")]
    table = [names] + [[_text(row[name]) for name in names] for row in result["trials"]]
    widths = [max(len(line[column]) for line in table) for column in range(len(names))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in table]
    return "\n".join([*lines, f"best trial {result['best_trial']}", training.describe(result)])


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
