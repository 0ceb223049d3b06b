"""One training run.

The driver loads the samples, builds the model, starts the workers of `train_loop` and leaves a run folder that explains itself.
"""

import dataclasses
import importlib.metadata
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import ray.data
import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    ControllerError,
    DataConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
)
from ray.train.torch import TorchTrainer
from torch.nn.modules.batchnorm import _BatchNorm

import posepipe
from posepipe import capacity, cluster, failures, samples, storage
from posepipe.checkpoints import NOT_SCORED
from posepipe.claiming import claim_folder, describe_config
from posepipe.config import TrainConfig
from posepipe.model_file import MODEL_FILE, ModelConfig
from posepipe.models import PoseModel, build_model, save_model
from posepipe.optimizers import reached_decay, require_schedule
from posepipe.retrying import is_passing
from posepipe.runs import CONFIG_FILE, HISTORY_FILE, RESULT_FILE, has_checkpoint, num_train
from posepipe.snapshots import SNAPSHOTS_FILE
from posepipe.train_loop import train_loop
from posepipe.train_steps import NonFiniteError
from posepipe.training_data import TrainingData, choose_cache, load_data
from posepipe.watching import require_logger
from posepipe.weights import load_weights
from posepipe.writers import Writer

logger = logging.getLogger(__name__)

RESTART_PAUSES = (10, 30, 60, 120, 240)
"""Seconds before Ray Train is started again that the storage has failed."""
LIBRARIES = ("ray", "torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg")


def train(config: TrainConfig, callbacks: Sequence[UserCallback] = ()) -> dict[str, Any]:
    """Trains, or goes on where a run of this name stopped, or hands out the result of one that is complete.

    Args:
        config: what to do.
        callbacks: of Ray Train.

    Returns:
        The result as written to `result.json`.

    Raises:
        ValueError: a name that is taken by other settings, another process that writes the run, an unknown model, no samples, too small a
            cluster; NonFiniteError.
    """
    if (result := _read_result(config)) is not None:
        return result
    require_logger(config.logger)
    require_workers(f"training with {config.min_workers} workers", config)
    data = load_data(config)
    num_steps = _num_steps(config, data)
    require_schedule(config, num_steps)
    if (reached := reached_decay(config.ema_decay, num_steps)) < config.ema_decay:
        print(f"--ema-decay {config.ema_decay:g}: in {num_steps} steps the decay of the average only rises to {reached:.6g}", flush=True)
    # Built here first: a wrong name or weights file is found before the folder is taken and workers start.
    model = build_initial_model(config, data)
    with Writer(_find_folder(config), interrupt=True) as writer:
        try:
            return _fit(config, data, model, callbacks, writer.check)
        except (KeyboardInterrupt, SystemExit) as error:  # Ray makes one of the other.
            writer.check()
            raise KeyboardInterrupt(f"the run {_find_folder(config)} was interrupted; the same command goes on") from error


def train_trial(config: TrainConfig, data: TrainingData, callbacks: Sequence[UserCallback]) -> dict[str, Any]:
    """`train` on samples that are loaded already, below the folder of a sweep, whose writer has the right to write the run's."""
    if (result := _read_result(config)) is not None:
        return result
    require_schedule(config, _num_steps(config, data))
    return _fit(config, data, build_initial_model(config, data), callbacks)


def _num_steps(config: TrainConfig, data: TrainingData) -> int:
    """Optimizer steps of all epochs; `batches.split_batches` leaves a last batch of one sample out."""
    return math.ceil((data.num_train - 1) / config.batch_size) * config.epochs


def _find_folder(config: TrainConfig) -> str:
    return storage.join_uri(storage.resolve_uri(config.runs_uri), config.name)


def _read_result(config: TrainConfig) -> dict[str, Any] | None:
    """The result of a run that is complete, or None; ValueError where it is one of other settings."""
    run_uri = _find_folder(config)
    if not storage.exists(storage.join_uri(run_uri, storage.SUCCESS)):
        return None
    claim_folder(run_uri, describe_config(config))
    logger.warning("run %s is complete; its result is read, nothing is trained", run_uri)
    return storage.read_json(storage.join_uri(run_uri, RESULT_FILE))


def _fit(
    config: TrainConfig,
    data: TrainingData,
    model: PoseModel,
    callbacks: Sequence[UserCallback],
    check: Callable[..., None] = lambda **_: None,
) -> dict[str, Any]:
    """Trains `model` to the end; `check` raises where somebody else has taken the folder over."""
    run_uri = _find_folder(config)
    run_id = claim_folder(run_uri, describe_config(config))
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, os.path.join(folder, MODEL_FILE))
        initial = ray.put(storage.read_bytes(os.path.join(folder, MODEL_FILE)))
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={
            "config": dataclasses.asdict(config),
            "initial": initial,
            "run_uri": run_uri,
            "run_id": run_id,
            "margin": samples.crop_margin(data.manifest),
            "cache": data.cache,
        },
        scaling_config=ScalingConfig(
            num_workers=config.max_workers if config.min_workers == config.max_workers else (config.min_workers, config.max_workers),
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker, **({"GPU": 1} if config.use_gpu else {})},
        ),
        run_config=RunConfig(
            name=config.name,
            storage_path=storage.resolve_uri(config.runs_uri),
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="objective", checkpoint_score_order="max"),
            failure_config=FailureConfig(max_failures=config.max_failures, max_preemption_failures=config.max_preemption_failures),
            callbacks=[_EpochsOnly(callback) for callback in callbacks],
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env=cluster.NETWORK_ENV,
        ),
        datasets={"train": data.train, "val": data.val},
        # Every worker sees all rows and picks its own: Ray's even split would drop the rest.
        dataset_config=DataConfig(datasets_to_split=[]),
    )
    fitted = _fit_through_faults(trainer, run_uri)
    if fitted.return_value:
        raise NonFiniteError(f"the run {run_uri} cannot go on: {fitted.return_value}")
    check(is_fresh=True)
    return _finish(config, run_uri, data, fitted)


def _fit_through_faults(trainer: TorchTrainer, run_uri: str) -> ray.train.Result:
    """Fits. Where the storage failed Ray's controller, which waits for nothing, it is started again at the last checkpoint.

    Raises:
        StorageUnavailableError: the storage stays away.
    """
    pauses = iter(RESTART_PAUSES)
    while True:
        try:
            with cluster.keep_interrupts():
                return trainer.fit()
        except ControllerError as error:
            reason, pause = failures.find_reason(error), next(pauses, None)
            if pause is None or not isinstance(reason, Exception) or not is_passing(reason):
                raise
            print(f"the storage failed ({failures.describe_reason(error)}); going on at the last checkpoint when it is back", flush=True)
        time.sleep(pause)
        storage.read_bytes(storage.join_uri(run_uri, CONFIG_FILE))  # waits until it answers


class _EpochsOnly(UserCallback):
    """Hands a callback what is reported at the end of an epoch, not the checkpoints in between, which have no score."""

    def __init__(self, callback: UserCallback) -> None:
        self._callback = callback

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        if metrics[0]["objective"] != NOT_SCORED:
            self._callback.after_report(run_context, metrics, checkpoint)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self._callback.after_exception(run_context, worker_exceptions)


def resolve_uris(config: TrainConfig) -> TrainConfig:
    """The same config, whatever folder it is used from."""
    weights = tuple(source if source in ("none", "imagenet") else storage.resolve_uri(source) for source in config.weights)
    samples_uri, runs_uri = storage.resolve_uri(config.samples_uri), storage.resolve_uri(config.runs_uri)
    extra = tuple(storage.resolve_uri(uri) for uri in config.extra_samples_uri)
    return dataclasses.replace(config, samples_uri=samples_uri, extra_samples_uri=extra, runs_uri=runs_uri, weights=weights)


def require_workers(what: str, config: TrainConfig) -> None:
    """Refuses a run whose workers, or the samples that they hold, the cluster has no room for."""
    kind, num_bytes = choose_cache(config)
    # The samples are loaded before workers start, and drivers and controllers take no CPU.
    workers = capacity.Need("workers", config.min_workers, config.cpus_per_worker, int(config.use_gpu), num_bytes, kind)
    capacity.require(what, [workers], hint="change --num-workers, --cpus-per-worker or --use-gpu")


def build_initial_model(config: TrainConfig, data: TrainingData) -> PoseModel:
    """The model before its first step, the same for every worker; ValueError for an unknown name or weights that do not fit.

    Of a run that goes on at a checkpoint the weights are not loaded: that has its own, and theirs may have gone.
    """
    torch.manual_seed(config.seed)
    model = build_model(
        ModelConfig(
            **{name: getattr(config, name) for name in ("task", "model", "regression_head", "feature_stride", "direct_loss")},
            size=samples.crop_size(data.manifest),
            framing=data.manifest["framing"],
            mean_points=data.mean_points.tolist(),
            samples_fingerprint=samples.fingerprint(data.manifest),
        )
    )
    if config.freeze_norm and not any(isinstance(module, _BatchNorm) for module in model.backbone.modules()):
        raise ValueError(f"--freeze-norm has no effect: {config.model} has no BatchNorm")
    if has_checkpoint(_find_folder(config)):
        return model
    report = load_weights(model, config.weights)
    if report.loaded:
        print(
            f"weights: {len(report.loaded)} tensors loaded; missing {report.missing or 'none'}; unused {report.unused or 'none'}",
            flush=True,
        )
    return model


def _finish(config: TrainConfig, run_uri: str, data: TrainingData, fitted: ray.train.Result) -> dict[str, Any]:
    """Makes the run folder explain itself: the best weights, the history, the versions; the marker comes last."""
    best, metrics = max(fitted.best_checkpoints, key=lambda pair: pair[1]["objective"])
    with best.as_directory() as folder:
        model_data = storage.read_bytes(os.path.join(folder, MODEL_FILE))
    with cast(Checkpoint, fitted.checkpoint).as_directory() as folder:
        history = storage.read_json(os.path.join(folder, HISTORY_FILE))
        kept = storage.read_bytes(os.path.join(folder, SNAPSHOTS_FILE))
    storage.write_bytes(storage.join_uri(run_uri, MODEL_FILE), model_data)
    storage.write_json(storage.join_uri(run_uri, HISTORY_FILE), history)
    storage.write_bytes(storage.join_uri(run_uri, SNAPSHOTS_FILE), kept)
    result = {
        "run_uri": run_uri,
        "model_id": storage.sha256(model_data),
        "best_epoch": metrics["epoch"],
        "val": {name: value for name, value in metrics.items() if name.startswith("val_")},
        **describe_data(data),
    }
    storage.write_json(storage.join_uri(run_uri, RESULT_FILE), result)
    storage.write_bytes(storage.join_uri(run_uri, storage.SUCCESS), b"")
    return result


def describe_data(data: TrainingData) -> dict[str, Any]:
    """What a result says of its samples and of the libraries."""
    return {
        "floor": data.floor,
        "samples": {
            **{name: data.manifest[name] for name in ("framing", "people", "size", "rows")},
            "num_extra_train": sum(manifest["rows"]["train"] for manifest in data.extra),
        },
        "versions": {"posepipe": posepipe.__version__, **{name: importlib.metadata.version(name) for name in LIBRARIES}},
    }


def describe(result: dict[str, Any]) -> str:
    """What a run reached, for people."""
    lines = [
        f"trained on {num_train(result)} people; best epoch {result['best_epoch']}, on {result['val']['val_num_people']} validation people "
        "(mean of the train labels: the floor)"
    ]
    for name, floor in result["floor"].items():
        if not name.startswith("num_") and floor is not None:
            lines.append(f"  {name:18} {100 * result['val'][f'val_{name}']:6.2f} %   floor {100 * floor:6.2f} %")
    return "\n".join([*lines, f"checkpoint: {result['run_uri']}"])
