"""The whole line on a small generated data set: prepare, train both tasks, sweep, score, draw."""

import dataclasses
import io
from pathlib import Path

import pytest
from PIL import Image

from posepipe import demo, predictions, samples, scoring, storage, training, training_data, tuning
from posepipe.config import DemoConfig, ScoreConfig, TuneConfig


@pytest.fixture(scope="module")
def outcome(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> demo.Outcome:
    return demo.run(DemoConfig(work_uri=str(tmp_path_factory.mktemp("demo")), num_images=60, size=64, epochs=4))


def test_both_tasks_are_scored_on_all_validation_people(outcome: demo.Outcome) -> None:
    rows = samples.read_manifest(storage.join_uri(outcome.work_uri, "samples"))["rows"]
    table = predictions.read_predictions(storage.join_uri(outcome.work_uri, "predictions"))
    assert table.num_rows == rows["val"] == outcome.summary["rows_predicted"]
    assert set(table["task"].to_pylist()) == {"head+pose"}
    assert table["joints"].null_count == table["head_box"].null_count == 0


def test_scoring_says_what_training_said(outcome: demo.Outcome) -> None:
    for task, name in (("pose", "pckh"), ("head", "head_iou")):
        result = storage.read_json(storage.join_uri(outcome.work_uri, "runs", task, training.RESULT_FILE))
        found = outcome.summary["tasks"][task]
        assert found["score"][name] == pytest.approx(result["val"][f"val_{name}"], abs=1e-3)
        assert found["floor"][name] == pytest.approx(result["floor"][name], abs=1e-3)


def test_the_sweep_writes_a_row_per_trial_and_names_the_best(outcome: demo.Outcome) -> None:
    rows = storage.read_table(storage.join_uri(outcome.work_uri, "runs", "sweep", tuning.TRIALS_FILE)).to_pylist()
    assert sorted(row["learning_rate"] for row in rows) == [5e-4, 3e-3]
    assert {row["status"] for row in rows} <= {"completed", "stopped early"}
    best = max(rows, key=lambda row: row["objective"])
    assert outcome.sweep["best_trial"] == best["trial_id"]
    assert best["objective"] == best["val_head_iou"]
    assert best["trial_id"] in tuning.describe(outcome.sweep)


def test_the_sweeps_folder_is_a_checkpoint(outcome: demo.Outcome, tmp_path: Path) -> None:
    sweep_uri = storage.join_uri(outcome.work_uri, "runs", "sweep")
    config = ScoreConfig(
        checkpoint_uri=(sweep_uri,), samples_uri=storage.join_uri(outcome.work_uri, "samples"), predictions_uri=str(tmp_path)
    )
    summary = scoring.score(config)
    assert summary["models"] == {"head": outcome.sweep["model_id"]}
    assert summary["tasks"]["head"]["score"]["head_iou"] == pytest.approx(outcome.sweep["val"]["val_head_iou"], abs=1e-3)


def test_a_complete_sweep_is_not_run_again_and_another_is_refused(outcome: demo.Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = storage.read_json(storage.join_uri(outcome.work_uri, "runs", "sweep", training.CONFIG_FILE))
    train = demo._train_config(DemoConfig(work_uri=outcome.work_uri, size=64, epochs=4), "head", kept["epochs"])
    config = TuneConfig(train=dataclasses.replace(train, name="sweep"), search=tuple(kept["search"]))
    monkeypatch.setattr(training_data, "load_data", lambda *_: pytest.fail("ran again"))
    assert tuning.tune(config)["best_trial"] == outcome.sweep["best_trial"]
    with pytest.raises(ValueError, match=r"exists with other settings \(search was"):
        tuning.tune(dataclasses.replace(config, search=("learning_rate=grid:1e-3",)))


def test_the_grid_shows_predictions(outcome: demo.Outcome) -> None:
    picture = Image.open(io.BytesIO(storage.read_bytes(outcome.grid_uri)))
    colours = {colour for _, colour in picture.quantize(64).convert("RGB").getcolors(64) or []}
    assert picture.height > 400
    assert len(colours) > 16


def test_the_report_holds_both_tasks_their_curves_and_the_same_people_at_several_epochs(outcome: demo.Outcome) -> None:
    page = storage.read_bytes(outcome.report_uri).decode()
    for expected in ("PCKh@0.5, official", "head boxes, IoU ≥ 0.5", "Loss of pose over the epochs", "Loss of head over the epochs"):
        assert expected in page
    assert page.count(">epoch 1<") == 12, "six people of each task"
    assert "cannot be read" not in page


def test_the_table_names_scores_floors_and_places(outcome: demo.Outcome) -> None:
    text = demo.describe(outcome)
    for expected in (
        "PCKh@0.5, official",
        "PCKh@0.5, the paper's",
        "IoU >= 0.5",
        "mean pose",
        outcome.grid_uri,
        outcome.report_uri,
        "minutes",
    ):
        assert expected in text
