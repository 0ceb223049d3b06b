"""Training runs on Ray Train: what they leave behind, resume, several workers."""

import contextlib
import dataclasses
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from ray.train import ControllerError
from s3 import FaultProxy

from posepipe import (
    capacity,
    images,
    mpii,
    predictions,
    preparing,
    runs,
    samples,
    scoring,
    snapshots,
    storage,
    train_loop,
    training,
    training_data,
    watching,
)
from posepipe.batches import split_batches
from posepipe.config import PrepareConfig, ScoreConfig, TrainConfig
from posepipe.models import load_model
from posepipe.sample_cache import SampleCache
from posepipe.tasks import TASKS
from posepipe.train_steps import NonFiniteError
from posepipe.writers import Writer


def config(samples_uri: str, runs_uri: str | Path, name: str, **changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "model": "resnet10t",
        "regression_head": "heatmap",
        "feature_stride": 16,
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 2e-3,
        "augment": True,
        **changes,
    }
    return TrainConfig(samples_uri=samples_uri, runs_uri=str(runs_uri), name=name, **values)  # type: ignore[arg-type]


def crop_of(sample: dict[str, Any]) -> np.ndarray[Any, Any]:
    """What validation sees of a sample of 64 x 64 px."""
    return images.cut_margin(images.decode_jpeg(sample["crop"]), (64, 64))


@pytest.fixture(scope="module")
def finished(person_samples: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, dict[str, Any]]:
    rates = {"schedule": "step", "milestones": (0.5,), "warmup_steps": 0, "layer_decay": 0.9}
    run = config(person_samples, tmp_path_factory.mktemp("runs"), "finished", **rates)
    return run, training.train(run)


def test_a_run_folder_explains_itself(finished: tuple[TrainConfig, dict[str, Any]], person_samples: str) -> None:
    run, result = finished
    folder = Path(run.runs_uri) / run.name
    assert (folder / storage.SUCCESS).exists()
    kept = storage.read_json(str(folder / training.CONFIG_FILE))
    assert kept["learning_rate"] == run.learning_rate
    assert kept["samples_fingerprint"] == samples.fingerprint(samples.read_manifest(person_samples))
    history = storage.read_json(str(folder / "history.json"))
    assert [row["epoch"] for row in history] == [1, 2]
    assert {"train_loss", "val_loss", "train_pckh", "val_pckh"} <= set(history[0])
    assert [row["learning_rate"] for row in history] == pytest.approx([2e-3, 2e-4]), "of the head, in the epoch's last step"
    assert history[0]["train_num_people"] == history[0]["val_num_people"] == samples.read_manifest(person_samples)["rows"]["val"]
    best = max(history, key=lambda row: row["val_pckh"])
    assert result["val"]["val_pckh"] == best["val_pckh"]
    assert result["versions"]["ray"]


def test_a_run_keeps_what_it_predicted_for_a_few_validation_people(
    finished: tuple[TrainConfig, dict[str, Any]], person_samples: str
) -> None:
    run, result = finished
    rows = runs.read_runs([result["run_uri"]])[0].snapshots.to_pylist()
    labels = {}
    for uri in samples.list_split(person_samples, "val"):
        labels |= {row["sample_id"]: row for row in storage.read_table(uri).to_pylist()}
    assert len(rows) == run.num_snapshot_people
    for row in rows:
        sample = labels[row["sample_id"]]
        assert row["epochs"] == [1, 2]
        np.testing.assert_array_equal(row["truth"], np.array(sample["joints"], np.float32))
        assert np.abs(images.decode_jpeg(row["crop"]).astype(int) - crop_of(sample)).mean() < 3
    # The model after the last epoch, or the one before, is the best one that was kept.
    model, _ = load_model(result["run_uri"])
    model.eval()
    pixels = np.stack([crop_of(labels[row["sample_id"]]) for row in rows])
    with torch.inference_mode():
        points = model.predict(torch.from_numpy(pixels).permute(0, 3, 1, 2))[0].numpy()
    kept = np.array([row["points"][result["best_epoch"] - 1] for row in rows]).reshape(points.shape)
    np.testing.assert_allclose(kept, points, atol=0.01)


def test_the_checkpoint_holds_all_that_scoring_needs(finished: tuple[TrainConfig, dict[str, Any]]) -> None:
    _, result = finished
    model, model_id = load_model(result["run_uri"])
    assert model_id == result["model_id"]
    assert (model.config.task, model.config.size, model.config.framing) == ("pose", (64, 64), "person")
    assert np.shape(model.config.mean_points) == (16, 2)


def test_a_run_leaves_ctrl_c_as_it_was(finished: tuple[TrainConfig, dict[str, Any]]) -> None:
    handler: Any = signal.getsignal(signal.SIGINT)
    assert not str(getattr(handler, "__module__", "")).startswith("ray")


def test_a_complete_run_is_not_trained_again(finished: tuple[TrainConfig, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    run, result = finished
    monkeypatch.setattr(training, "TorchTrainer", lambda *_, **__: pytest.fail("trained again"))
    assert training.train(run) == result


def test_a_name_with_other_settings_is_refused(finished: tuple[TrainConfig, dict[str, Any]]) -> None:
    run, _ = finished
    with pytest.raises(ValueError, match=r"learning_rate was 0\.002, now 0\.1"):
        training.train(config(run.samples_uri, run.runs_uri, run.name, learning_rate=0.1))


def test_a_run_that_another_process_writes_is_refused(person_samples: str, tmp_path: Path) -> None:
    run = config(person_samples, tmp_path, "x")
    with Writer(str(tmp_path / "x"), 0.6), pytest.raises(ValueError, match=r"process \d+ is writing .*/x; wait for it, or stop it"):
        training.train(run)
    assert not (tmp_path / "x" / training.CONFIG_FILE).exists()


@pytest.mark.parametrize("checkpoints", [[], ["checkpoint_2026-11-27_10-00-00", "checkpoint_2026-11-27_09-59-59"]])
def test_a_run_whose_list_of_checkpoints_is_cut_off_says_what_to_do(person_samples: str, tmp_path: Path, checkpoints: list[str]) -> None:
    for name in checkpoints:
        storage.write_bytes(str(tmp_path / "x" / name / "model.safetensors"), b"")
    storage.write_bytes(str(tmp_path / "x" / runs.CHECKPOINTS_FILE), b'{"ray_version": "2.6')
    newest = rf" and --weights {tmp_path}/x/checkpoint_2026-11-27_10-00-00/model.safetensors, the newest of them"
    hint = f"start another --name{newest if checkpoints else ''}$"
    with pytest.raises(ValueError, match=hint):
        training.train(config(person_samples, tmp_path, "x"))


def test_a_name_that_ray_train_gave_its_list_is_the_one_that_is_looked_at(finished: tuple[TrainConfig, dict[str, Any]]) -> None:
    run, _ = finished
    assert storage.read_json(str(Path(run.runs_uri) / run.name / runs.CHECKPOINTS_FILE))["checkpoint_results"]


def test_a_run_that_goes_on_at_a_checkpoint_needs_no_other_weights(finished: tuple[TrainConfig, dict[str, Any]]) -> None:
    run, _ = finished
    data = training_data.load_data(run)
    gone = dataclasses.replace(run, weights=(f"{run.runs_uri}/gone.pt",))
    assert training.build_initial_model(gone, data)
    with pytest.raises(ValueError, match="no weights at"):
        training.build_initial_model(dataclasses.replace(gone, name="another"), data)


class FlakyTrainer:
    """A trainer whose controller fails so, one fit after the other, and then gives a result."""

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.num_fits = list(failures), 0

    def fit(self) -> str:
        self.num_fits += 1
        if self.failures:
            raise ControllerError(self.failures.pop(0))
        return "result"


def test_a_storage_that_fails_ray_s_controller_is_waited_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / training.CONFIG_FILE), b"")
    monkeypatch.setattr(training, "RESTART_PAUSES", (0.0, 0.0))
    passing = [OSError("AWS Error NETWORK_CONNECTION during PutObject"), TimeoutError("late")]
    trainer: Any = FlakyTrainer(*passing)
    assert (training._fit_through_faults(trainer, str(tmp_path)), trainer.num_fits) == ("result", 3)
    trainer = FlakyTrainer(*passing, *passing)
    with pytest.raises(ControllerError):
        training._fit_through_faults(trainer, str(tmp_path))
    assert trainer.num_fits == 3
    for lasting in (ValueError("a mistake"), PermissionError("no")):
        trainer = FlakyTrainer(lasting)
        with pytest.raises(ControllerError):
            training._fit_through_faults(trainer, str(tmp_path))
        assert trainer.num_fits == 1


def test_a_warm_up_longer_than_the_training_is_refused_before_the_name_is_taken(person_samples: str, tmp_path: Path) -> None:
    run = config(person_samples, tmp_path, "x", warmup_steps=500)
    num_people = samples.read_manifest(person_samples)["rows"]["train"]
    num_steps = training._num_steps(run, training_data.load_data(run))
    assert num_steps == 2 * len(split_batches(torch.arange(num_people), 16)) < 500
    with pytest.raises(ValueError, match=rf"--warmup-steps 500 lasts until .* after {num_steps} of {num_steps} steps"):
        training.train(run)
    assert not (tmp_path / "x").exists()


def test_what_is_trained_on_is_said_first(person_samples: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = samples.read_manifest(person_samples)["rows"]
    training_data.load_data(config(person_samples, tmp_path, "x"))
    expected = f"samples: person framing, 64 x 64 px, {rows['train']} people to train on, {rows['val']} to validate on\n"
    assert capsys.readouterr().out == expected


def test_norms_that_are_not_there_cannot_be_frozen(person_samples: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--freeze-norm has no effect: convnext_atto has no BatchNorm"):
        training.train(config(person_samples, tmp_path, "x", model="convnext_atto", freeze_norm=True))
    assert not (tmp_path / "x").exists()


def write_manifest(folder: Path, **changes: object) -> str:
    """A manifest alone, of samples without a file."""
    manifest = {"framing": "person", "size": 64, "rows": {"train": 5, "val": 1}, "files": [], **changes}
    storage.write_json(str(folder / storage.MANIFEST), manifest)
    return str(folder)


@pytest.mark.parametrize(("name", "value"), [("framing", "image"), ("size", 96), ("margin", 0.25), ("pixels", 2)])
def test_extra_samples_of_another_kind_are_refused(tmp_path: Path, name: str, value: object) -> None:
    main, other = write_manifest(tmp_path / "main"), write_manifest(tmp_path / "other", **{name: value})
    with pytest.raises(ValueError, match=rf"the {name} of {other} is {value!r}, that of {main} is"):
        training.train(config(main, tmp_path, "x", extra_samples_uri=(other,)))
    assert not (tmp_path / "x").exists()


def test_places_of_extra_samples_mean_the_same_in_every_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    run = training.resolve_uris(config("a", "runs", "x", extra_samples_uri=("b", "s3://bucket/c")))
    assert run.extra_samples_uri == (str(tmp_path / "b"), "s3://bucket/c")


def test_extra_samples_join_the_train_split_alone(person_samples: str, extra_samples: str) -> None:
    alone, joined = (
        training_data.load_data(config(person_samples, "unused", "x", extra_samples_uri=uris)) for uris in ((), (extra_samples,))
    )
    num_extra = samples.read_manifest(extra_samples)["rows"]["train"]
    assert num_extra > 0
    assert joined.train.count() == alone.train.count() + num_extra
    assert joined.val.count() == alone.val.count()
    assert training.describe_data(joined)["samples"]["num_extra_train"] == num_extra
    assert np.abs(joined.mean_points - alone.mean_points).max() > 1e-4


def test_a_person_in_two_places_is_refused_with_the_id(person_samples: str) -> None:
    tables = [storage.read_table(uri) for uri in samples.list_split(person_samples, "train")]
    ids = pa.concat_tables(tables)["sample_id"].to_pylist()
    with pytest.raises(ValueError, match=rf"a person may be in one place only, but {len(ids)} are .*'{min(ids)}' among them"):
        training_data.load_data(config(person_samples, "unused", "x", extra_samples_uri=(person_samples,)))


def test_a_wrong_model_is_refused_before_the_name_is_taken(person_samples: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown model 'resnet1000'"):
        training.train(config(person_samples, tmp_path, "x", model="resnet1000"))
    assert not (tmp_path / "x").exists()


def test_more_than_the_cluster_has_is_refused_with_the_numbers(person_samples: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"training with 40 workers needs 40 CPUs and 0 GPUs, the cluster has 6 CPUs and 0 GPUs; change --num-workers"
    ):
        training.train(config(person_samples, tmp_path, "x", num_workers=40, batch_size=80))
    with pytest.raises(ValueError, match="1 GPUs, the cluster has 6 CPUs and 0 GPUs"):
        training.train(config(person_samples, tmp_path, "x", use_gpu=True))


def test_one_two_and_four_workers_learn_the_same_and_score_every_row_once(person_samples: str, tmp_path: Path) -> None:
    num_train, num_val = (samples.read_manifest(person_samples)["rows"][split] for split in ("train", "val"))
    # Neither the parts of a batch nor those of the validation rows are of one size, and the last batch is a small one.
    batch_size = next(size for size in range(10, 20) if size % 2 and num_train % size > 1)
    assert num_val % 2 == 1
    histories, losses = {}, {}
    for world in (1, 2, 4):
        run = config(person_samples, tmp_path, f"world{world}", num_workers=world, epochs=1, batch_size=batch_size)
        training.train(run)
        (histories[world],) = storage.read_json(str(tmp_path / run.name / "history.json"))
        losses[world] = [loss for _, loss in watching.read_events(str(tmp_path / run.name))["step/loss"]]
    for world, row in histories.items():
        assert (row["num_workers"], row["val_num_people"]) == (world, num_val)
        # Adam makes more of rounding from step to step, as it does where one worker gets the same rows in another order.
        assert losses[world][0] == pytest.approx(losses[1][0], rel=1e-6)
        assert losses[world][1] == pytest.approx(losses[1][1], rel=2e-4)
        assert row["train_loss"] == pytest.approx(histories[1]["train_loss"], rel=1e-3)
        assert row["val_loss"] == pytest.approx(histories[1]["val_loss"], rel=2e-3)


CLOCK = {"images_per_second", "seconds_data", "seconds_compute", "seconds_checkpoint"}


def without_clock(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in history]


def interruptible(samples_uri: str, runs_uri: str | Path, name: str, **changes: object) -> TrainConfig:
    """A run whose bits can be compared, with a checkpoint after every step."""
    recipe = {"optimizer": "adamw", "weight_decay": 0.01, "clip_norm": 5.0, "ema_decay": 0.9, "schedule": "cosine"}
    return config(samples_uri, runs_uri, name, epochs=5, deterministic=True, checkpoint_every=1, **recipe, **changes)


def test_a_run_that_is_interrupted_says_so(person_samples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(training, "_fit", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"/stopped was interrupted; the same command goes on"):
        training.train(interruptible(person_samples, tmp_path, "stopped"))


@pytest.fixture(scope="module")
def undisturbed(person_samples: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Result and history of that run with checkpoints at the end of epochs alone, never interrupted."""
    run = dataclasses.replace(interruptible(person_samples, tmp_path_factory.mktemp("runs"), "undisturbed"), checkpoint_every=0)
    result = training.train(run)
    return result, storage.read_json(f"{result['run_uri']}/history.json")


def train_workers() -> list[int]:
    """Process ids of the training workers below this process; others on this machine may train too."""
    children = psutil.Process().children(recursive=True)
    return [child.pid for child in children if "RayTrainWorker" in "".join(child.cmdline()[:1])]


def wait_for_middle_of_epoch(folder: Path, epochs: int = 1, seconds: float = 300, is_alive: Callable[[], bool] = lambda: True) -> None:
    """Returns as soon as there is a checkpoint in the middle of an epoch, so many or more of which are complete."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        is_over = not is_alive() or (folder / storage.SUCCESS).exists()
        assert not is_over, "the run ended before it could be interrupted"
        for path in folder.glob("checkpoint_*/state.pt"):
            # It may be on its way, or deleted meanwhile.
            with contextlib.suppress(OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
                done = len(storage.read_json(str(path.parent / "history.json")))
                if done >= epochs and torch.load(path, weights_only=True)["progress"]["losses"]:
                    return
        time.sleep(0.02)
    pytest.fail(f"no checkpoint in the middle of an epoch within {seconds} s")


def test_a_run_whose_worker_is_killed_in_an_epoch_ends_with_the_same_bits(
    person_samples: str, tmp_path: Path, undisturbed: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    run = interruptible(person_samples, tmp_path, "worker-killed", max_failures=1)
    killed = []

    def kill() -> None:
        wait_for_middle_of_epoch(tmp_path / run.name)
        for pid in train_workers():
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    result = training.train(run)
    thread.join()
    assert len(killed) == 1
    assert result["model_id"] == undisturbed[0]["model_id"]
    assert without_clock(storage.read_json(f"{result['run_uri']}/history.json")) == without_clock(undisturbed[1])


def test_a_run_whose_driver_is_killed_in_an_epoch_goes_on_to_the_same_bits(
    person_samples: str, tmp_path: Path, undisturbed: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    run = interruptible(person_samples, tmp_path, "driver-killed")
    changed = {item.name: getattr(run, item.name) for item in dataclasses.fields(run) if getattr(run, item.name) != item.default}
    flags = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in changed.items()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # Its own process group, so that SIGKILL takes its Ray with it, as a lost machine would.
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.train", *flags],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for_middle_of_epoch(tmp_path / run.name, is_alive=lambda: process.poll() is None)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / run.name / storage.SUCCESS).exists()
    result = training.train(run)
    assert result["model_id"] == undisturbed[0]["model_id"]
    assert without_clock(storage.read_json(f"{result['run_uri']}/history.json")) == without_clock(undisturbed[1])
    kept = storage.read_table(f"{result['run_uri']}/{snapshots.SNAPSHOTS_FILE}").to_pylist()
    assert [row["epochs"] for row in kept] == [snapshots.choose_epochs(run.epochs, run.num_snapshot_epochs)] * run.num_snapshot_people
    # No step is shown twice, whoever wrote it.
    steps = [step for step, _ in watching.read_events(str(tmp_path / run.name))["step/loss"]]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) % 5 == 0


def test_deterministic_refuses_what_may_give_other_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    kept = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    try:
        train_loop.make_deterministic()
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert torch.backends.cudnn.deterministic
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = kept


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_two_workers_of_which_one_is_killed_now_and_then_end_where_undisturbed_ones_do(person_samples: str, tmp_path: Path) -> None:
    whole = interruptible(person_samples, tmp_path, "whole", num_workers=2)
    cut = dataclasses.replace(whole, name="cut", max_failures=2)
    killed = []

    def kill() -> None:
        for epochs in (1, 3):
            wait_for_middle_of_epoch(tmp_path / cut.name, epochs)
            killed.append(train_workers()[-1])
            os.kill(killed[-1], signal.SIGKILL)

    training.train(whole)
    thread = threading.Thread(target=kill)
    thread.start()
    training.train(cut)
    thread.join()
    assert len(set(killed)) == 2
    undisturbed, disturbed = (storage.read_json(str(tmp_path / name / "history.json"))[-1] for name in ("whole", "cut"))
    assert disturbed["val_loss"] == pytest.approx(undisturbed["val_loss"], rel=1e-4)
    assert disturbed["val_pckh"] == undisturbed["val_pckh"]


def run_on_nodes(what: str, samples_uri: str, runs_uri: Path) -> dict[str, Any]:
    """What `nodes.py` prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    script = Path(__file__).with_name("nodes.py")
    # Its own process group: whatever of its clusters outlasts it ends with it.
    process = subprocess.Popen(
        [sys.executable, str(script), what, samples_uri, str(runs_uri)],
        cwd=script.parents[1],
        env={**environment, "PYTHONPATH": str(script.parents[1])},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=1500)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return json.loads(output.splitlines()[-1])


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_a_run_that_loses_a_node_ends_where_an_undisturbed_one_does(person_samples: str, tmp_path: Path) -> None:
    found = run_on_nodes("lose", person_samples, tmp_path)
    assert found["killed"] >= 1
    assert found["cut"]["val_loss"] == pytest.approx(found["whole"]["val_loss"], rel=1e-4)
    assert found["cut"]["val_pckh"] == found["whole"]["val_pckh"]
    assert (tmp_path / "cut" / storage.SUCCESS).exists()


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_a_run_takes_another_worker_when_a_node_joins(person_samples: str, tmp_path: Path) -> None:
    rows = run_on_nodes("gain", person_samples, tmp_path)["history"]
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    workers = [row["num_workers"] for row in rows]
    print(f"\nthe second worker came in epoch {workers.index(2) + 1} of {len(rows)}")
    assert workers == sorted(workers)
    assert (workers[0], workers[-1]) == (1, 2)


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_a_run_outlasts_a_bucket_that_is_away_when_ray_writes_its_list_of_checkpoints(
    person_samples: str, s3_server: str, s3_proxy: FaultProxy, capfd: pytest.CaptureFixture[str]
) -> None:
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket="outage")
    run = config(person_samples, "s3://outage/runs", "outage", epochs=6, max_failures=0)

    def cut() -> None:
        with s3_proxy.holding("PUT", "outage/runs/outage/checkpoint_manager_snapshot", after=2) as hold:
            hold.wait(600)
            s3_proxy.cut()
        time.sleep(45)
        s3_proxy.restore()

    thread = threading.Thread(target=cut)
    thread.start()
    result = training.train(run)
    thread.join()
    history = storage.read_json(f"{result['run_uri']}/{runs.HISTORY_FILE}")
    assert [row["epoch"] for row in history] == list(range(1, 7))
    assert "going on at the last checkpoint when it is back" in capfd.readouterr().out


@pytest.fixture(scope="module")
def poisoned_samples(person_samples: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Samples one of which gives a loss that is no number, and its id."""
    folder = tmp_path_factory.mktemp("poisoned")
    shutil.copytree(person_samples, folder, dirs_exist_ok=True)
    uri = samples.list_split(str(folder), "train")[0]
    rows = storage.read_table(uri).to_pylist()
    rows[0] |= {"joints": [1e30] * 32, "is_annotated": [True] * 16}
    storage.write_table(uri, pa.Table.from_pylist(rows, storage.read_table(uri).schema))
    return str(folder), rows[0]["sample_id"]


def test_a_loss_that_is_not_finite_ends_a_run_at_once_which_goes_on_without_the_step(
    poisoned_samples: tuple[str, str], tmp_path: Path
) -> None:
    uri, sample_id = poisoned_samples
    # A head that starts at the mean of the labels would have no finite loss for anybody.
    changes = {"regression_head": "paper", "missing_joints": "zero", "augment": False, "epochs": 1, "batch_size": 8, "num_workers": 2}
    run = config(uri, tmp_path, "poisoned", **changes)
    with pytest.raises(NonFiniteError, match=r"the loss is inf in epoch 1, step \d+; the samples of the batch: ") as error:
        training.train(run)
    named = str(error.value).partition("the batch: ")[2].partition(";")[0].split(", ")
    assert sample_id in named
    assert len(named) == 8, "those of the other worker too"
    # Which workers there are is not part of what a run computes.
    result = training.train(dataclasses.replace(run, on_nonfinite="skip", num_workers="1:3"))
    (row,) = storage.read_json(f"{result['run_uri']}/history.json")
    assert row["skipped_steps"] == 1
    assert 1 <= row["num_workers"] <= 3
    assert np.isfinite(row["train_loss"])


def test_the_floor_is_the_mean_pose_of_the_training_labels(person_samples: str) -> None:
    data = training_data.load_data(config(person_samples, "unused", "unused"))
    joints = []
    for uri in samples.list_split(person_samples, "train"):
        joints.append(samples.label_arrays(storage.read_table(uri))["joints"])
    np.testing.assert_allclose(data.mean_points, np.nanmean(np.concatenate(joints), axis=0) / 64, atol=1e-6)
    assert 0 < data.floor["pckh"] < 0.6
    assert set(data.floor) >= {"pckh", "pckh_bone", "num_people"}


def test_crops_that_are_no_squares_go_all_the_way_and_samples_score_as_their_pictures(
    ray_session: None, synthetic_mpii: str, tmp_path: Path
) -> None:
    samples_uri = str(tmp_path / "samples")
    prepare = PrepareConfig(mpii_uri=synthetic_mpii, samples_uri=samples_uri, framing="person", people="all", size="48x64", val_percent=25)
    manifest = preparing.prepare(prepare)
    run = config(samples_uri, tmp_path, "tall", model="test_resnet", epochs=1, sample_cache="encoded")
    result = training.train(run)
    assert result["samples"]["size"] == [48, 64]
    [kept] = {images.decode_jpeg(row["crop"]).shape for row in runs.read_runs([result["run_uri"]])[0].snapshots.to_pylist()}
    assert kept == (64, 48, 3)
    # The same people, framed from the pictures themselves.
    _, persons = mpii.read_annotations(synthetic_mpii)
    rows = [row for row in persons.to_pylist() if row["center"]]
    lines = [f"{manifest['images_uri']}/{row['image']},{row['center'][0]},{row['center'][1]},{row['scale']}" for row in rows]
    (tmp_path / "people.csv").write_text("\n".join(["uri,center_x,center_y,scale", *lines]))
    found = []
    for name, inputs in (("samples", {"samples_uri": samples_uri}), ("pictures", {"images_uri": str(tmp_path / "people.csv")})):
        scoring.score(ScoreConfig(checkpoint_uri=(result["run_uri"],), predictions_uri=str(tmp_path / "scored" / name), **inputs))
        found.append(predictions.read_predictions(str(tmp_path / "scored" / name)).to_pylist())
    by_frame = {tuple(np.round(row["crop_to_image"], 6)): np.reshape(row["joints"], (16, 2)) for row in found[1]}
    sides = [10 * row["head_size"] for row in found[0]]
    off = [
        np.linalg.norm(np.reshape(row["joints"], (16, 2)) - by_frame[tuple(np.round(row["crop_to_image"], 6))], axis=1).mean() / side
        for row, side in zip(found[0], sides, strict=True)
    ]
    assert np.median(off) < 0.01


def test_the_margin_is_decoded_for_training_alone(person_samples: str) -> None:
    files = samples.list_split(person_samples, "val")
    stored = [images.decode_jpeg(crop) for uri in files for crop in storage.read_table(uri)["crop"].to_pylist()]
    for keep_margin, expected in ((True, stored), (False, [crop[13:-13, 13:-13] for crop in stored])):
        dataset = training_data.load_crops([person_samples], "val", "decoded", keep_margin=keep_margin)
        assert sorted(dataset.to_pandas()["pixels"].tolist()) == sorted(crop.tobytes() for crop in expected)


@pytest.mark.parametrize("is_augmented", [False, True])
def test_what_stays_encoded_is_the_same_picture_for_picture(person_samples: str, is_augmented: bool) -> None:
    decoded, encoded = (
        SampleCache(training_data.load_crops([person_samples], "train", kind, keep_margin=True), (64, 64), (13, 13), num_threads=2)
        for kind in ("decoded", "encoded")
    )
    indices = [7, 0, len(decoded) - 1]
    pixels = [cache.with_margin(indices) if is_augmented else cache.pixels(indices) for cache in (decoded, encoded)]
    assert torch.equal(*pixels)
    assert pixels[0].shape[2:] == ((90, 90) if is_augmented else (64, 64))
    assert decoded.labels["sample_id"].tolist() == encoded.labels["sample_id"].tolist()


ROWS = {"train": 10, "val": 3, "test": 5}
DECODED = 3 * (10 * 56 * 84 + 3 * 40 * 60)  # val without its margin


@pytest.mark.parametrize(
    ("store", "changes", "expected"),
    [
        (math.inf, {}, ("encoded", 30)),  # of a node that has to be started first nobody knows the store
        (math.inf, {"sample_cache": "decoded"}, ("decoded", DECODED)),
        (DECODED / capacity.MOST_OF_STORE + 1, {}, ("decoded", DECODED)),
        (DECODED / capacity.MOST_OF_STORE - 1, {}, ("encoded", 30)),
        (1, {"sample_cache": "decoded"}, ("decoded", DECODED)),
        (math.inf, {"sample_cache": "encoded"}, ("encoded", 30)),
    ],
)
def test_samples_stay_encoded_where_they_would_not_fit_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: float, changes: dict[str, str], expected: tuple[str, int]
) -> None:
    storage.write_json(str(tmp_path / storage.MANIFEST), {"size": [40, 60], "margin": [8, 12], "rows": ROWS})
    for file, size in (("train/part-00000.parquet", 20), ("val/part-00000.parquet", 10), ("test/part-00000.parquet", 5)):
        storage.write_bytes(str(tmp_path / file), bytes(size))
    monkeypatch.setattr(capacity, "smallest_object_store", lambda cpus, gpus: store)
    asked: list[tuple[str, float]] = []
    monkeypatch.setattr(capacity, "require", lambda _, needs, **__: asked.append((needs[0].cache_kind, needs[0].cache)))
    training.require_workers("training", config(str(tmp_path), tmp_path, "x", **changes))
    assert asked == [expected]


def test_samples_without_a_validation_split_are_refused_before_any_is_loaded(
    person_samples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = samples.read_manifest(person_samples)
    storage.write_json(str(tmp_path / storage.MANIFEST), {**manifest, "files": [f for f in manifest["files"] if f["split"] == "train"]})
    monkeypatch.setattr("ray.data.Dataset.materialize", lambda _: pytest.fail("was loaded"))
    with pytest.raises(ValueError, match="has no val samples; rows per split"):
        training_data.load_data(config(str(tmp_path), tmp_path, "x"))


@pytest.mark.parametrize("task", sorted(TASKS))
def test_an_empty_split_is_refused_with_the_rows_there_are(person_samples: str, tmp_path: Path, task: str) -> None:
    manifest = samples.read_manifest(person_samples)
    storage.write_json(str(tmp_path / storage.MANIFEST), {**manifest, "files": [f for f in manifest["files"] if f["split"] == "test"]})
    with pytest.raises(ValueError, match="has no train samples; rows per split"):
        training_data.load_data(config(str(tmp_path), tmp_path, "x", task=task))
