"""study.py: budgets, what is refused, and a short study on a generated data set."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest

from posepipe import cli, predictions, results, runs, samples, scoring, sources, storage, study, study_table, training, watching, writers
from posepipe.config import StudyConfig, TrainConfig

CONFIG = StudyConfig(mpii_uri="raw", study_uri="study")


# Budgets


@pytest.mark.parametrize(("minutes", "seconds", "epochs"), [(30, 60, 30), (1, 7, 8), (1, 7.5, 8), (0.5, 100, 1), (0.001, 5, 1)])
def test_as_many_whole_epochs_are_trained_as_fit_but_at_least_one(minutes: float, seconds: float, epochs: int) -> None:
    assert study.num_epochs(minutes, seconds) == epochs


def history(*seconds: float) -> list[dict[str, Any]]:
    """Rows that account for so many seconds each."""
    parts = {"seconds_data": 0.25, "seconds_compute": 0.5, "seconds_checkpoint": 0.25}
    return [{"epoch": 1 + index, **{name: part * each for name, part in parts.items()}} for index, each in enumerate(seconds)]


def test_an_epoch_takes_what_the_second_one_took_with_its_validation() -> None:
    assert study.epoch_seconds(history(20, 4), [100, 106]) == (6, 2)


def test_the_first_epoch_counts_with_what_the_history_leaves_out_of_the_others() -> None:
    # 20 s, then 4 s and 5 s beside 2 s and 3 s that the history does not account for; the calibration found 2 s.
    assert study.training_seconds(history(20, 4, 5), [100, 106, 114], other_seconds=2) == 20 + 4 + 5 + 3 * 2
    assert study.training_seconds(history(20), [100], other_seconds=2) == 22


def test_a_pause_of_an_interrupted_run_does_not_count() -> None:
    assert study.training_seconds(history(4, 4, 4, 4), [6, 12, 5000, 5006], other_seconds=2) == 4 * 6
    assert study.training_seconds(history(4, 4), [6, 5000], other_seconds=2) == 2 * 6


def test_a_calibration_that_was_interrupted_begins_anew_and_keeps_no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run_uri = tmp_path / "checkpoint_study" / "row"
    storage.write_bytes(str(run_uri / "checkpoint_1" / "state.pt"), b"half")
    storage.write_bytes(str(run_uri / "config.json"), b"{}")
    trained = []

    def train(config: TrainConfig) -> None:
        if not storage.exists(str(run_uri / storage.SUCCESS)):
            trained.append(storage.list_files(str(run_uri)))
        storage.write_json(str(run_uri / runs.HISTORY_FILE), history(20, 4))
        for name in ("checkpoint_2/state.pt", "model.safetensors", storage.SUCCESS):
            storage.write_bytes(str(run_uri / name), b"")

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(watching, "read_epoch_ends", lambda _: [100.0, 106.0])
    config = TrainConfig(samples_uri="samples", runs_uri=str(run_uri.parent), name="row", epochs=2)
    assert study._calibrate(config) == study._calibrate(config) == (6, 2)
    assert trained == [[]], "once, in an empty folder"
    left = {path.removeprefix(f"{run_uri}/") for path in storage.list_files(str(run_uri))}
    assert {runs.HISTORY_FILE, storage.SUCCESS} <= left
    assert not any(name.startswith("checkpoint") for name in left)


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": ("paper", "best")}, "unknown row 'best'; choices: paper, paper-small, masks"),
        ({"rows": ("paper", "masks", "paper")}, "--rows names one row twice: paper masks paper"),
        ({"rows": ("flip-test",)}, "--rows needs a row that is trained"),
        ({"rows": ()}, "--rows needs a row that is trained"),
        ({"weights": ("none",)}, "--weights none leaves the row pretrained without effect"),
        ({"minutes": 0.0}, "--minutes must be positive, got 0.0"),
        ({"minutes": float("nan")}, "--minutes must be positive, got nan"),
        ({"size": 7}, "--size must be a number of px of at least 8, or WIDTHxHEIGHT of such, got 7"),
        ({"num_workers": 0}, "--num-workers must be at least 1, got 0"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_without_the_row_pretrained_no_weights_are_needed() -> None:
    assert dataclasses.replace(CONFIG, weights=("none",), rows=("masks", "person")).weights == ("none",)


def test_a_folder_of_another_study_is_refused_with_what_differs(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, study_uri=str(tmp_path))
    study._claim_folder(config)
    study._claim_folder(dataclasses.replace(config, rows=("paper", "masks")))
    with pytest.raises(ValueError, match=r"holds a study with other settings \(minutes was 30\.0, now 5\.0\); choose another --study-uri"):
        study._claim_folder(dataclasses.replace(config, minutes=5.0))


# A short study


@pytest.fixture(scope="module")
def config(ray_session: None, synthetic_mpii: str, extra_mpii: str, tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    """One epoch for each of two rows, whose people are not the same, and a third one whose weights are not there."""
    folder = tmp_path_factory.mktemp("study")
    names = sorted(Path(uri).name for uri in storage.list_files(f"{synthetic_mpii}/images"))
    (folder / "val.txt").write_text("\n".join(names[::3]))
    return StudyConfig(
        mpii_uri=synthetic_mpii,
        extra_mpii_uri=(extra_mpii,),
        val_list=str(folder / "val.txt"),
        study_uri=str(folder / "study"),
        minutes=0.001,
        size=48,
        model="test_resnet",
        feature_stride=32,
        weights=(str(folder / "absent.pt"),),
        batch_size=16,
        rows=("person", "pretrained", "masks"),
    )


@pytest.fixture(scope="module")
def outcome(config: StudyConfig) -> study.Outcome:
    return study.run(config)


def test_rows_come_in_the_order_of_the_study_and_one_that_fails_stops_no_other(outcome: study.Outcome) -> None:
    assert [(row["row"], row["status"]) for row in outcome.rows] == [("masks", "ok"), ("person", "ok"), ("pretrained", "failed")]
    assert "absent.pt" in outcome.rows[2]["reason"]


def test_a_row_holds_what_its_predictions_say(outcome: study.Outcome) -> None:
    for row in outcome.rows[:2]:
        (source,) = sources.open_sources([row["predictions_uri"]], None, None)
        found = study_table.score(results.evaluate(source))
        assert {name: row[name] for name in found} == found
        assert predictions.read_predictions(row["predictions_uri"]).num_rows == row["num_people"]
        assert row["epochs"] == 1
        assert 0 < row["seconds"] < 60
    masks, person = outcome.rows[:2]
    assert person["num_people"] > masks["num_people"] == masks["shared_people"] == person["shared_people"]


def test_extra_data_is_trained_on_and_never_validated_on(outcome: study.Outcome) -> None:
    for row in outcome.rows[:2]:
        kept = storage.read_json(f"{row['run_uri']}/{runs.CONFIG_FILE}")
        (extra_uri,) = kept["extra_samples_uri"]
        main, extra = samples.read_manifest(kept["samples_uri"]), samples.read_manifest(extra_uri)
        assert extra["rows"]["val"] == 0 < extra["rows"]["train"]
        assert row["num_train"] == main["rows"]["train"] + extra["rows"]["train"]
        assert kept["extra_samples_fingerprints"] == [samples.fingerprint(extra)]


def test_the_command_of_a_row_is_its_training(outcome: study.Outcome, config: StudyConfig) -> None:
    python, dash_m, job, *flags = shlex.split(outcome.rows[1]["command"])
    assert (python, dash_m, job) == ("python", "-m", "jobs.train")
    assert cli.parse(TrainConfig, flags) == study.train_config("person", study._resolve_uris(config), 1)


def test_the_table_and_the_report_are_written(outcome: study.Outcome, config: StudyConfig) -> None:
    table = storage.read_table(f"{config.study_uri}/study.parquet")
    assert table["pckh"].to_pylist() == [row.get("pckh") for row in outcome.rows]
    page = storage.read_bytes(outcome.page_uri).decode()
    for expected in ("PCKh@0.5, official", "Loss of masks over the epochs", "Loss of person over the epochs", "cannot be read"):
        assert (expected in page) == (expected != "cannot be read")
    text = study.describe(outcome)
    for expected in ("| masks | ", "failed: ", outcome.page_uri, outcome.study_uri):
        assert expected in text


def test_run_again_it_reads_what_is_complete(outcome: study.Outcome, config: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "TorchTrainer", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(scoring, "_run_shards", lambda *_: pytest.fail("scored again"))
    assert study.run(dataclasses.replace(config, rows=("masks", "person"))).rows == outcome.rows[:2]


def test_two_processes_do_not_work_on_one_study(outcome: study.Outcome, config: StudyConfig) -> None:
    message = r"is writing .*study; wait for it, or stop it"
    with writers.Writer(config.study_uri, takeover_after=2.0), pytest.raises(ValueError, match=message):
        study.run(config)


def test_samples_of_another_validation_list_are_not_gone_on_with(outcome: study.Outcome, config: StudyConfig) -> None:
    listed = Path(config.val_list)
    names = listed.read_text()
    listed.write_text(names.partition("\n")[2])
    try:
        with pytest.raises(ValueError, match=r"holds samples made with other settings \(val was .*list_sha256"):
            study.run(config)
    finally:
        listed.write_text(names)


def test_a_study_without_any_score_says_why(outcome: study.Outcome, config: StudyConfig) -> None:
    with pytest.raises(ValueError, match=r"no row of the study .* has a score; pretrained failed: .*absent\.pt"):
        study.run(dataclasses.replace(config, rows=("pretrained",)))
