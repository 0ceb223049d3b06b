"""Scoring of samples and of image prefixes: every input one row, numbers that agree with the metric."""

import contextlib
import dataclasses
import io
import json
import math
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from posepipe import capacity, cluster, metrics, model_file, models, planning, predictions, samples, scoring, storage, summaries
from posepipe.config import ScoreConfig
from posepipe.predictions import PREDICTION


def write_checkpoint(folder: Path, **changes: Any) -> str:
    """An untrained model: what it predicts is arbitrary but always the same."""
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "task": "pose",
        "model": "resnet10t",
        "regression_head": "heatmap",
        "feature_stride": 16,
        "size": (64, 64),
        **changes,
    }
    points = 2 if values["task"] == "head" else 16
    values = {"framing": "person", "mean_points": [[0.5, 0.5]] * points, "samples_fingerprint": "", **values}
    folder.mkdir(parents=True, exist_ok=True)
    models.save_model(models.build_model(model_file.ModelConfig(**values)), str(folder / model_file.MODEL_FILE))
    return str(folder)


@pytest.fixture(scope="module")
def pose_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_checkpoint(tmp_path_factory.mktemp("pose"))


@pytest.fixture(scope="module")
def image_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_checkpoint(tmp_path_factory.mktemp("image"), framing="image", regression_head="direct", feature_stride=32)


@pytest.fixture(scope="module")
def scored(person_samples: str, pose_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    uri = str(tmp_path_factory.mktemp("predictions"))
    config = ScoreConfig(checkpoint_uri=(pose_checkpoint,), samples_uri=person_samples, predictions_uri=uri, num_overlays=4)
    return uri, scoring.score(config)


def jpeg(**options: Any) -> bytes:
    sink = io.BytesIO()
    x, y = np.meshgrid(np.arange(160), np.arange(120))
    Image.fromarray(np.stack([x, 2 * y, 255 - x], axis=-1).astype(np.uint8)).save(sink, "JPEG", quality=95, **options)
    return sink.getvalue()


def test_every_sample_has_one_row_of_the_record(scored: tuple[str, dict[str, Any]], person_samples: str) -> None:
    table = predictions.read_predictions(scored[0])
    assert table.schema.equals(PREDICTION)
    expected = [row for uri in samples.list_split(person_samples, "val") for row in storage.read_table(uri)["sample_id"].to_pylist()]
    assert Counter(table["sample_id"].to_pylist()) == Counter(expected)
    assert set(table["status"].to_pylist()) == {"ok"}
    assert scored[1]["rows_read"] == scored[1]["rows_predicted"] == len(expected)


def test_the_summary_is_the_metric_of_the_rows(scored: tuple[str, dict[str, Any]]) -> None:
    uri, summary = scored
    errors = np.array(predictions.read_predictions(uri)["joint_error"].to_pylist(), dtype=float)
    assert summary["tasks"]["pose"]["score"]["pckh"] == pytest.approx(metrics.pckh_counts(errors).total)
    left_knee = errors[~np.isnan(errors[:, 4]), 4]
    assert summary["tasks"]["pose"]["pckh_per_joint"]["left_knee"] == pytest.approx(np.mean(left_knee <= 0.5))
    assert summary["tasks"]["pose"]["score"]["num_joints_scored"] == np.isfinite(errors).sum() - np.isfinite(errors[:, [6, 7]]).sum()


def test_joints_are_in_image_px(scored: tuple[str, dict[str, Any]], person_samples: str, pose_checkpoint: str) -> None:
    table = storage.read_table(samples.list_split(person_samples, "val")[0])
    labels = samples.label_arrays(table)
    from posepipe import geometry, images

    model, _ = models.load_model(pose_checkpoint)
    crops = np.stack([images.decode_jpeg(crop)[13:-13, 13:-13] for crop in table["crop"].to_pylist()])
    pixels = torch.from_numpy(crops).permute(0, 3, 1, 2)
    with torch.inference_mode():
        points = geometry.transform(labels["crop_to_image"], model.predict(pixels)[0].double().numpy())
    rows = {row["sample_id"]: row for row in predictions.read_predictions(scored[0]).to_pylist()}
    for sample_id, expected in zip(labels["sample_id"], points, strict=True):
        np.testing.assert_allclose(np.reshape(rows[sample_id]["joints"], (16, 2)), expected, atol=0.05)


def test_with_fewer_nodes_than_may_come_the_two_stages_go_on(
    ray_session: None, pose_checkpoint: str, image_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four nodes one is up, which the actors of one stage alone would fill."""
    monkeypatch.setattr(capacity, "_nodes", lambda: ([capacity._Group(4, {"CPU": 6})], math.inf))
    for number in range(48):
        storage.write_bytes(str(tmp_path / "pictures" / f"{number:02d}.jpg"), jpeg())
    config = ScoreConfig(
        checkpoint_uri=(pose_checkpoint,),
        first_stage_uri=image_checkpoint,
        images_uri=str(tmp_path / "pictures"),
        predictions_uri=str(tmp_path / "predictions"),
        shard_size=1,
    )
    assert planning.choose_num_actors(config, 48) == 12
    assert scoring._pool(config, 12) == {"min_size": 1, "initial_size": 3, "max_size": 12}
    assert scoring._pool(config, 3) == {"size": 3}
    assert scoring.score(config)["rows_read"] == 48


@pytest.mark.parametrize(("num_up", "num_missing"), [(0, 7), (1, 7), (4, 4), (8, 0), (9, 0)])
def test_nodes_are_asked_for_that_the_actors_to_come_need(num_up: int, num_missing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight actors the first one waits for its node itself, and so do all that nodes are up for."""
    asked: list[tuple[int, int]] = []

    def ask(count: int, cpus: float, gpus: float, beside: int) -> contextlib.AbstractContextManager[None]:
        asked.append((count, beside))
        return contextlib.nullcontext()

    record = {"shard": 0, "rows": 3, "statuses": {"ok": 3}}
    monkeypatch.setattr(cluster, "ask_for_nodes", ask)
    monkeypatch.setattr(planning, "num_actors_up", lambda config: num_up)
    monkeypatch.setattr(planning, "choose_num_actors", lambda config, num_shards: 8)
    monkeypatch.setattr(planning, "choose_cpus_per_actor", lambda config: 1)
    monkeypatch.setattr(scoring, "_pipeline", lambda *_: SimpleNamespace(iter_rows=lambda: iter([{"record": json.dumps(record)}])))
    config = ScoreConfig(checkpoint_uri=("run",), samples_uri="samples", predictions_uri="predictions", use_gpu=True)
    done: dict[int, dict[str, Any]] = {}
    writer = SimpleNamespace(check=lambda: None)
    scoring._run_shards(config, planning.Plan({}, [], None, [{}], [3]), "run", "done", done, writer)  # type: ignore[arg-type]
    assert done == {0: record}
    assert asked == [(num_missing, max(1, num_up))]


@pytest.mark.parametrize(("use_gpu", "niceness"), [(True, 10), (False, 0)])
def test_readers_beside_a_gpu_leave_the_actor_its_core(
    ray_session: None,
    pose_checkpoint: str,
    person_samples: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    use_gpu: bool,
    niceness: int,
) -> None:
    given = ScoreConfig(checkpoint_uri=(pose_checkpoint,), samples_uri=person_samples, predictions_uri=str(tmp_path), use_gpu=use_gpu)
    found: dict[str, Any] = {}

    def stop(**arguments: Any) -> None:
        found.update(arguments)
        raise InterruptedError

    monkeypatch.setattr(scoring, "ShardReader", stop)
    with pytest.raises(InterruptedError):
        scoring._pipeline(given, planning.plan_run(given, *planning.load_checkpoints(given), None, str(tmp_path)), "run", "done", [0])
    assert found["niceness"] == niceness


def test_the_floor_stands_beside_the_score(scored: tuple[str, dict[str, Any]], pose_checkpoint: str, person_samples: str) -> None:
    found = scored[1]["tasks"]["pose"]
    assert set(found["floor"]) == set(found["score"])
    text = summaries.describe(scored[1], scored[0])
    assert "mean pose" in text
    assert f"{100 * found['floor']['pckh']:.2f}" in text


def test_overlays_are_a_picture(scored: tuple[str, dict[str, Any]]) -> None:
    picture = Image.open(Path(scored[0]) / scoring.OVERLAYS_FILE)
    assert picture.width > 1000


def test_a_complete_run_is_not_scored_again(
    scored: tuple[str, dict[str, Any]], person_samples: str, pose_checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_pipeline", lambda *_: pytest.fail("scored again"))
    config = ScoreConfig(checkpoint_uri=(pose_checkpoint,), samples_uri=person_samples, predictions_uri=scored[0])
    assert scoring.score(config) == scored[1]


def test_scoring_anew_writes_the_same_bytes(scored: tuple[str, dict[str, Any]], person_samples: str, pose_checkpoint: str) -> None:
    before = storage.read_json(storage.join_uri(scored[0], storage.MANIFEST))
    overlays = Path(scored[0]) / scoring.OVERLAYS_FILE
    config = ScoreConfig(checkpoint_uri=(pose_checkpoint,), samples_uri=person_samples, predictions_uri=scored[0], overwrite=True)
    scoring.score(config)
    assert storage.read_json(storage.join_uri(scored[0], storage.MANIFEST)) == before
    assert not overlays.exists(), "drawn of the rows before"
    # Asked for later, or by who goes on after a driver that died before it drew.
    scoring.score(dataclasses.replace(config, overwrite=False, num_overlays=2))
    assert Image.open(overlays).width > 200


@pytest.mark.parametrize("overwrite", [False, True])
def test_samples_are_not_taken_for_predictions(person_samples: str, pose_checkpoint: str, overwrite: bool) -> None:
    before = storage.list_files(person_samples)
    config = ScoreConfig(checkpoint_uri=(pose_checkpoint,), samples_uri=person_samples, predictions_uri=person_samples, overwrite=overwrite)
    with pytest.raises(ValueError, match="holds something else that is complete"):
        scoring.score(config)
    assert storage.list_files(person_samples) == before


def test_predictions_of_another_model_are_not_overwritten(scored: tuple[str, dict[str, Any]], person_samples: str, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", mean_points=[[0.4, 0.4]] * 16)
    with pytest.raises(ValueError, match=r"holds other predictions \(models was {'pose': '[0-9a-f]{64}'}, now {'pose': '[0-9a-f]{64}'}\)"):
        scoring.score(ScoreConfig(checkpoint_uri=(other,), samples_uri=person_samples, predictions_uri=scored[0]))
    assert storage.exists(storage.join_uri(scored[0], storage.SUCCESS))


def test_people_whose_picture_was_bad_have_a_row_too(person_samples: str, pose_checkpoint: str, tmp_path: Path) -> None:
    manifest = samples.read_manifest(person_samples)
    for item in manifest["files"]:
        storage.write_bytes(str(tmp_path / "samples" / item["file"]), (Path(person_samples) / item["file"]).read_bytes())
    failed = [{"image": "gone.jpg", "person_index": 1, "split": "val", "status": "missing", "detail": "FileNotFoundError"}]
    import pyarrow as pa

    storage.write_table(str(tmp_path / "samples" / samples.ERRORS_FILE), pa.Table.from_pylist(failed, samples.ERROR))
    storage.write_json(str(tmp_path / "samples" / storage.MANIFEST), manifest)
    summary = scoring.score(
        ScoreConfig(checkpoint_uri=(pose_checkpoint,), samples_uri=str(tmp_path / "samples"), predictions_uri=str(tmp_path / "out"))
    )
    assert summary["statuses"] == {"ok": manifest["rows"]["val"], "missing": 1}
    row = next(row for row in predictions.read_predictions(str(tmp_path / "out")).to_pylist() if row["status"] != "ok")
    assert (row["sample_id"], row["status"], row["joints"]) == ("gone.jpg#1", "missing", None)
    assert "not predicted: 1 missing\n  missing: " in summaries.describe(summary, "x")


def test_every_file_below_a_prefix_has_a_row(ray_session: None, image_checkpoint: str, tmp_path: Path) -> None:
    good = jpeg()
    png = io.BytesIO()
    Image.open(io.BytesIO(good)).save(png, "PNG")
    cmyk = io.BytesIO()
    Image.open(io.BytesIO(good)).convert("CMYK").save(cmyk, "JPEG")
    files = {
        "a/good.jpg": good,
        "a/grey.jpg": (lambda sink: (Image.open(io.BytesIO(good)).convert("L").save(sink, "JPEG"), sink.getvalue())[1])(io.BytesIO()),
        "b/png_named.jpg": png.getvalue(),
        "b/cmyk.jpg": cmyk.getvalue(),
        "b/empty.jpg": b"",
        "b/half.jpg": good[: len(good) // 2],
        "b/page.jpg": b"<html></html>",
    }
    for name, data in files.items():
        (tmp_path / "bucket" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bucket" / name).write_bytes(data)
    config = ScoreConfig(
        checkpoint_uri=(image_checkpoint,), images_uri=str(tmp_path / "bucket"), predictions_uri=str(tmp_path / "out"), shard_size=3
    )
    summary = scoring.score(config)
    rows = predictions.read_predictions(str(tmp_path / "out")).to_pylist()
    statuses = {str(Path(row["uri"]).relative_to(tmp_path / "bucket")): row["status"] for row in rows}
    bad = {"b/empty.jpg": "empty", "b/half.jpg": "truncated", "b/page.jpg": "not_an_image"}
    assert statuses == {name: bad.get(name, "ok") for name in files}
    assert len(rows) == len(files)
    assert not summary["tasks"]
    ok = [row for row in rows if row["status"] == "ok"]
    assert all((row["width"], row["height"]) == (160, 120) and np.isfinite(row["joints"]).all() for row in ok)
    assert all(row["joints"] is None and row["detail"] for row in rows if row["status"] != "ok")


def test_a_turned_picture_is_seen_upright_and_answered_in_stored_px(ray_session: None, image_checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    upright = Image.open(io.BytesIO(jpeg()))
    upright.save(tmp_path / "bucket" / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left of upright
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "bucket" / "turned.png", exif=exif)
    larger = write_checkpoint(tmp_path / "larger", framing="image", regression_head="direct", feature_stride=32, size=(96, 96))
    places = {"images_uri": str(tmp_path / "bucket"), "predictions_uri": str(tmp_path / "out")}
    # What is averaged is averaged in px of the picture, whatever way up it was seen.
    config = ScoreConfig(checkpoint_uri=(image_checkpoint, larger), **places, flip_test=True, test_scales=(1.0, 1.25))
    summary = scoring.score(config)
    assert predictions.list_averaged(summary) == ["2 pose models", "the mirrored crop", "crops scaled by 1, 1.25"]
    rows = {
        Path(row["uri"]).name: np.reshape(row["joints"], (16, 2)) for row in predictions.read_predictions(str(tmp_path / "out")).to_pylist()
    }
    # A point (x, y) of the 160 x 120 picture lies at (y, 159 - x) in the stored one.
    expected = np.column_stack([rows["upright.png"][:, 1], 159 - rows["upright.png"][:, 0]])
    np.testing.assert_allclose(rows["turned.png"], expected, atol=0.05)


def test_mistakes_are_named(person_samples: str, pose_checkpoint: str, image_checkpoint: str, tmp_path: Path) -> None:
    def attempt(**values: Any) -> None:
        scoring.score(ScoreConfig(predictions_uri=str(tmp_path / "out"), **values))

    (tmp_path / "bucket").mkdir()
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / model_file.MODEL_FILE).write_bytes(b"0" * 100)
    with pytest.raises(ValueError, match="no checkpoint at"):
        attempt(checkpoint_uri=(str(tmp_path / "nowhere"),), samples_uri=person_samples)
    with pytest.raises(ValueError, match="is not a posepipe checkpoint"):
        attempt(checkpoint_uri=(str(tmp_path / "junk"),), samples_uri=person_samples)
    with pytest.raises(ValueError, match=r"trained on samples of framing image, .* has framing person"):
        attempt(checkpoint_uri=(image_checkpoint,), samples_uri=person_samples)
    with pytest.raises(ValueError, match=r"trained on samples of size 96 x 96, .* has size 64 x 64"):
        attempt(checkpoint_uri=(write_checkpoint(tmp_path / "large", size=(96, 96)),), samples_uri=person_samples)
    with pytest.raises(ValueError, match="trained on person framing, which needs to know where the person is"):
        attempt(checkpoint_uri=(pose_checkpoint,), images_uri=str(tmp_path / "bucket"))
    with pytest.raises(ValueError, match="no files below"):
        attempt(checkpoint_uri=(image_checkpoint,), images_uri=str(tmp_path / "bucket"))
    with pytest.raises(ValueError, match="no complete samples at"):
        attempt(checkpoint_uri=(pose_checkpoint,), samples_uri=str(tmp_path))
    with pytest.raises(ValueError, match="no complete predictions at"):
        predictions.read_predictions(str(tmp_path / "out"))


def test_the_head_task_writes_boxes_and_their_iou(person_samples: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "head", task="head")
    summary = scoring.score(ScoreConfig(checkpoint_uri=(checkpoint,), samples_uri=person_samples, predictions_uri=str(tmp_path / "out")))
    rows = predictions.read_predictions(str(tmp_path / "out")).to_pylist()
    assert all(row["head_box"][0] <= row["head_box"][2] and row["joints"] is None for row in rows)
    labelled = [row["head_iou"] for row in rows if row["head_iou"] is not None]
    assert summary["tasks"]["head"]["score"]["head_iou"] == pytest.approx(np.mean(labelled), abs=1e-6)
    assert summary["tasks"]["head"]["score"]["num_people"] == len(labelled)


def test_files_of_others_in_the_same_place_stay(person_samples: str, pose_checkpoint: str, tmp_path: Path) -> None:
    others = ["part-00000-abc.snappy.parquet", "runs/pose/_SUCCESS", "samples/train/part-00000.parquet", "notes.txt"]
    for name in others:
        storage.write_bytes(str(tmp_path / name), b"precious")
    config = ScoreConfig(checkpoint_uri=(pose_checkpoint,), samples_uri=person_samples, predictions_uri=str(tmp_path))
    scoring.score(config)
    assert all((tmp_path / name).read_bytes() == b"precious" for name in others)


def test_pictures_in_a_folder_of_the_run_are_refused_and_stay(ray_session: None, image_checkpoint: str, tmp_path: Path) -> None:
    picture = tmp_path / "parts" / "a.jpg"
    storage.write_bytes(str(picture), jpeg())
    for overwrite in (False, True):
        config = ScoreConfig(
            checkpoint_uri=(image_checkpoint,), images_uri=str(picture.parent), predictions_uri=str(tmp_path), overwrite=overwrite
        )
        with pytest.raises(ValueError, match="whose folder parts/ has the pictures in it"):
            scoring.score(config)
    assert picture.read_bytes() == jpeg()


def test_pictures_that_a_manifest_names_in_the_folders_of_the_run_are_scored_and_stay(
    ray_session: None, image_checkpoint: str, tmp_path: Path
) -> None:
    names = ["done/a.jpg", "inputs/a.jpg", "parts/a.jpg", "parts/deep/a.jpg"]
    for name in names:
        storage.write_bytes(str(tmp_path / name), jpeg())
    storage.write_bytes(str(tmp_path / "inputs" / "list.txt"), "".join(f"../{name}\n" for name in names).encode())
    for _ in range(2):
        config = ScoreConfig(
            checkpoint_uri=(image_checkpoint,),
            images_uri=str(tmp_path / "inputs" / "list.txt"),
            predictions_uri=str(tmp_path),
            overwrite=True,
        )
        assert scoring.score(config)["statuses"] == {"ok": 4}
    assert all((tmp_path / name).read_bytes() == jpeg() for name in names)


def test_a_part_that_is_only_copied_elsewhere_is_scored_again(
    scored: tuple[str, dict[str, Any]], person_samples: str, pose_checkpoint: str, tmp_path: Path
) -> None:
    shutil.copytree(scored[0], tmp_path, dirs_exist_ok=True)
    part = tmp_path / storage.read_json(str(tmp_path / storage.MANIFEST))["files"][0]["file"]
    (tmp_path / "parts" / "copies").mkdir()
    part.rename(tmp_path / "parts" / "copies" / part.name)
    (tmp_path / storage.SUCCESS).unlink()
    config = ScoreConfig(checkpoint_uri=(pose_checkpoint,), samples_uri=person_samples, predictions_uri=str(tmp_path))
    scoring.score(config)
    assert part.read_bytes() == (tmp_path / "parts" / "copies" / part.name).read_bytes()


def test_who_wakes_after_its_last_shard_leaves_the_summary_of_the_writer_that_replaced_it(
    ray_session: None, image_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(jpeg())
    run_shards = scoring._run_shards
    out = str(tmp_path / "out")

    def sleep_meanwhile(*arguments: Any) -> Any:
        session = run_shards(*arguments)
        storage.write_json(storage.join_uri(out, "writers", "000002.json"), {})
        storage.write_json(storage.join_uri(out, "summary.json"), {"of": "another model"})
        return session

    monkeypatch.setattr(scoring, "_run_shards", sleep_meanwhile)
    config = ScoreConfig(checkpoint_uri=(image_checkpoint,), images_uri=str(tmp_path / "photos"), predictions_uri=out)
    with pytest.raises(ValueError, match="was taken over by another writer"):
        scoring.score(config)
    assert storage.read_json(storage.join_uri(out, "summary.json")) == {"of": "another model"}


def test_what_could_not_be_read_is_scored_again_when_it_can_be(
    ray_session: None, image_checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [tmp_path / name for name in ("a.jpg", "b.jpg", "c.jpg")]
    (tmp_path / "list.txt").write_text("".join(f"{picture}\n" for picture in pictures))
    for picture in (pictures[0], pictures[2]):
        picture.write_bytes(jpeg())
    out = str(tmp_path / "out")

    def score(*redo: Any) -> dict[str, int]:
        config = ScoreConfig(
            checkpoint_uri=(image_checkpoint,), images_uri=str(tmp_path / "list.txt"), predictions_uri=out, shard_size=1, redo=redo
        )
        return scoring.score(config)["statuses"]

    assert score() == {"missing": 1, "ok": 2}
    before = predictions.list_predictions(out)
    pictures[1].write_bytes(jpeg(optimize=True))
    assert score() == score("forbidden") == {"missing": 1, "ok": 2}
    assert capsys.readouterr().out.count("is complete") == 2
    assert score("forbidden", "missing") == {"ok": 3}
    assert "going on: 2 of 3 shards are done, 1 are left" in capsys.readouterr().out
    after = predictions.list_predictions(out)
    assert (after[0], after[2], after[1] != before[1]) == (before[0], before[2], True)
    assert predictions.read_predictions(out)["status"].to_pylist() == ["ok"] * 3
    assert len(list((tmp_path / "out" / "parts").iterdir())) == 3


def test_a_run_of_which_shards_are_to_be_done_again_is_no_complete_one_meanwhile(
    ray_session: None, image_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'a.jpg'}\n")
    config = ScoreConfig(checkpoint_uri=(image_checkpoint,), images_uri=str(tmp_path / "list.txt"), predictions_uri=str(tmp_path / "out"))
    scoring.score(config)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(scoring, "_run_shards", die)
        with pytest.raises(KeyboardInterrupt):
            scoring.score(dataclasses.replace(config, redo=("missing",)))
    with pytest.raises(ValueError, match="no complete predictions at"):
        predictions.read_predictions(str(tmp_path / "out"))
    assert scoring.score(config)["statuses"] == {"missing": 1}


def test_what_was_done_again_before_an_interruption_is_not_done_once_more(
    ray_session: None, image_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text("".join(f"{tmp_path / name}\n" for name in ("a.jpg", "b.jpg")))
    out = str(tmp_path / "out")
    config = ScoreConfig(
        checkpoint_uri=(image_checkpoint,), images_uri=str(tmp_path / "list.txt"), predictions_uri=out, shard_size=1, redo=("missing",)
    )
    scoring.score(dataclasses.replace(config, redo=()))
    pipeline = scoring._pipeline

    def die(*arguments: Any) -> Any:
        # One shard is done, still without its picture; then comes Ctrl-C.
        list(pipeline(*arguments[:-1], [0]).iter_rows())
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(scoring, "_pipeline", die)
        with pytest.raises(KeyboardInterrupt):
            scoring.score(config)
    (tmp_path / "b.jpg").write_bytes(jpeg())
    capsys.readouterr()
    assert scoring.score(config)["statuses"] == {"missing": 1, "ok": 1}
    assert "going on: 1 of 2 shards are done, 1 are left" in capsys.readouterr().out
    # The run has come to its end: the next time it is another one.
    (tmp_path / "a.jpg").write_bytes(jpeg())
    assert scoring.score(config)["statuses"] == {"ok": 2}
