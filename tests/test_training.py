"""Training runs on Ray Train: what they leave behind, resume, several workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posepipe import images, runs, samples, snapshots, storage, training
from posepipe.config import TrainConfig
from posepipe.models import load_model
from posepipe.tasks import TASKS


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


@pytest.fixture(scope="module")
def finished(person_samples: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, dict[str, Any]]:
    run = config(person_samples, tmp_path_factory.mktemp("runs"), "finished")
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
    assert {"train_loss", "val_loss", "train_pckh", "val_pckh", "learning_rate"} <= set(history[0])
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
        assert np.abs(images.decode_jpeg(row["crop"]).astype(int) - images.decode_jpeg(sample["crop"])).mean() < 3
    # The model after the last epoch, or the one before, is the best one that was kept.
    model, _ = load_model(result["run_uri"])
    model.eval()
    pixels = np.stack([images.decode_jpeg(labels[row["sample_id"]]["crop"]) for row in rows])
    with torch.inference_mode():
        points = model.predict(torch.from_numpy(pixels).permute(0, 3, 1, 2))[0].numpy()
    kept = np.array([row["points"][result["best_epoch"] - 1] for row in rows]).reshape(points.shape)
    np.testing.assert_allclose(kept, points, atol=0.01)


def test_the_checkpoint_holds_all_that_scoring_needs(finished: tuple[TrainConfig, dict[str, Any]]) -> None:
    _, result = finished
    model, model_id = load_model(result["run_uri"])
    assert model_id == result["model_id"]
    assert (model.config.task, model.config.size, model.config.framing) == ("pose", 64, "person")
    assert np.shape(model.config.mean_points) == (16, 2)


def test_a_complete_run_is_not_trained_again(finished: tuple[TrainConfig, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    run, result = finished
    monkeypatch.setattr(training, "TorchTrainer", lambda *_, **__: pytest.fail("trained again"))
    assert training.train(run) == result


def test_a_name_with_other_settings_is_refused(finished: tuple[TrainConfig, dict[str, Any]]) -> None:
    run, _ = finished
    with pytest.raises(ValueError, match=r"learning_rate was 0\.002, now 0\.1"):
        training.train(config(run.samples_uri, run.runs_uri, run.name, learning_rate=0.1))


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


def test_two_workers_learn_what_one_learns_and_score_every_row_once(person_samples: str, tmp_path: Path) -> None:
    # Layer norms know nothing of the batch, so the split of a batch leaves no trace but rounding.
    shared = {"model": "convnext_atto", "regression_head": "direct", "feature_stride": 32, "epochs": 1}
    histories = []
    for world in (1, 2):
        run = config(person_samples, tmp_path, f"world{world}", num_workers=world, **shared)
        training.train(run)
        histories.append(storage.read_json(str(tmp_path / run.name / "history.json"))[0])
    one, two = histories
    num_val = samples.read_manifest(person_samples)["rows"]["val"]
    assert num_val % 2 == 1, "an even split would not show a dropped row"
    assert one["val_num_people"] == two["val_num_people"] == num_val
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)
    assert two["val_loss"] == pytest.approx(one["val_loss"], rel=1e-2)


def test_a_killed_run_goes_on_at_its_last_checkpoint(person_samples: str, tmp_path: Path) -> None:
    run = config(person_samples, tmp_path, "killed", epochs=6, schedule="cosine")
    flags = [f"--samples-uri={run.samples_uri}", f"--runs-uri={run.runs_uri}", "--name=killed", "--model=resnet10t", "--augment"]
    flags += [
        "--regression-head=heatmap",
        "--feature-stride=16",
        "--epochs=6",
        "--batch-size=16",
        "--learning-rate=0.002",
        "--schedule=cosine",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # Its own process group, so that SIGKILL takes its Ray with it, as a lost machine would.
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.train", *flags],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 180
    while len(list((tmp_path / "killed").glob("checkpoint_*/state.pt"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    newest = max((tmp_path / "killed").glob("checkpoint_*/history.json"))
    before = storage.read_json(str(newest))
    assert 1 <= len(before) < 6
    assert not (tmp_path / "killed" / storage.SUCCESS).exists()
    training.train(run)
    history = storage.read_json(str(tmp_path / "killed" / "history.json"))
    assert [row["epoch"] for row in history] == list(range(1, 7))
    kept = storage.read_table(str(tmp_path / "killed" / snapshots.SNAPSHOTS_FILE)).to_pylist()
    assert [row["epochs"] for row in kept] == [snapshots.choose_epochs(6, run.num_snapshot_epochs)] * run.num_snapshot_people
    # What was trained again came out the same; only the clock differs.
    assert [{**row, "images_per_second": None} for row in history[: len(before)]] == [{**row, "images_per_second": None} for row in before]


def test_the_floor_is_the_mean_pose_of_the_training_labels(person_samples: str) -> None:
    data = training.load_data(config(person_samples, "unused", "unused"))
    joints = []
    for uri in samples.list_split(person_samples, "train"):
        joints.append(samples.label_arrays(storage.read_table(uri))["joints"])
    np.testing.assert_allclose(data.mean_points, np.nanmean(np.concatenate(joints), axis=0) / 64, atol=1e-6)
    assert 0 < data.floor["pckh"] < 0.6
    assert set(data.floor) >= {"pckh", "pckh_bone", "num_people"}


@pytest.mark.parametrize("task", sorted(TASKS))
def test_an_empty_split_is_refused_with_the_rows_there_are(person_samples: str, tmp_path: Path, task: str) -> None:
    manifest = samples.read_manifest(person_samples)
    storage.write_json(str(tmp_path / storage.MANIFEST), {**manifest, "files": [f for f in manifest["files"] if f["split"] == "test"]})
    with pytest.raises(ValueError, match="has no train samples; rows per split"):
        training.load_data(config(str(tmp_path), tmp_path, "x", task=task))
