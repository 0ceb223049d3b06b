"""What each step from the paper's recipe to the best one is worth: a table, all rows on the same data and budget.

The rows are trained one after the other. Before each, a calibration of two epochs finds out how many epochs its budget holds. What is
complete below the study's folder is read and not done again. A row that fails is a row with its reason.
"""

import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posepipe import cli, failures, preparing, report, results, scoring, sources, storage, study_table, training, watching
from posepipe.config import PrepareConfig, ReportConfig, ScoreConfig, StudyConfig, TrainConfig
from posepipe.model_file import MODEL_FILE
from posepipe.results import Result
from posepipe.runs import HISTORY_FILE, num_train
from posepipe.study_rows import ROWS, SCORED, changes_of, say, settings_of, split_settings
from posepipe.writers import Writer

SETTINGS_FILE = "study.json"


@dataclass(frozen=True)
class Outcome:
    """What a study made: the rows of `study_table.STUDY`, the report's page and the study's folder."""

    rows: list[dict[str, Any]]
    page_uri: str
    study_uri: str


def samples_uri(study_uri: str, settings: Mapping[str, Any], number: int = 0) -> str:
    """Where the samples of one kind are: of the data set itself (0), or of one of those that are added for training."""
    prepared, _ = split_settings(settings)
    kind = "-".join(map(str, prepared.values()))
    return storage.join_uri(study_uri, "samples", f"{kind}-extra{number}" if number else kind)


def train_config(name: str, config: StudyConfig, epochs: int, folder: str = "runs") -> TrainConfig:
    """The training of a row, below a folder of the study; ValueError or TypeError where this version has no such setting."""
    settings = settings_of(name, config)
    extra = tuple(samples_uri(config.study_uri, settings, number) for number in range(1, 1 + len(config.extra_mpii_uri)))
    _, trained = split_settings(settings)
    shared = {field: getattr(config, field) for field in ("seed", "num_workers", "cpus_per_worker", "use_gpu")}
    places = {
        "samples_uri": samples_uri(config.study_uri, settings),
        "extra_samples_uri": extra,
        "runs_uri": storage.join_uri(config.study_uri, folder),
    }
    return TrainConfig(**{**trained, **shared, **places, "name": name, "epochs": epochs})


def run(config: StudyConfig) -> Outcome:
    """Trains, scores and tabulates every row, or reads what is there.

    Raises:
        ValueError: a folder of another study, or one that another process is at, data that cannot be prepared, or that has changed since,
            or no row that got as far as a score.
    """
    config = _resolve_uris(config)
    _claim_folder(config)
    with Writer(config.study_uri):
        return _run(config)


def _run(config: StudyConfig) -> Outcome:
    names = [name for name in (*ROWS, *SCORED) if name in config.rows]
    wanted = [settings_of(name, config) for name in names if name in ROWS]
    for settings in {samples_uri(config.study_uri, each): each for each in wanted}.values():  # rows share samples
        _prepare(config, settings)
    rows: list[dict[str, Any]] = []
    scored: dict[str, Result] = {}
    for name in names:
        change = changes_of(name, config) if name in ROWS else say(SCORED[name])
        row: dict[str, Any] = {"row": name, "change": change, "status": "ok", "reason": "", "minutes": config.minutes}
        try:
            row |= _train_row(name, config) if name in ROWS else _score_again(name, config, rows)
            (source,) = sources.open_sources([row["predictions_uri"]], None, None)
            result = results.evaluate(dataclasses.replace(source, name=name))
            row |= study_table.score(result)
            scored[name] = result
        # Whatever it was: the other rows do not depend on it.
        except Exception as error:
            row |= {"status": "failed", "reason": failures.describe_reason(error)}
        rows.append(row)
        print(study_table.describe_row(row), flush=True)
    study_table.add_shared(rows, scored)
    study_table.write(config.study_uri, rows)
    if not scored:
        raise ValueError(f"no row of the study {config.study_uri} has a score; {rows[0]['row']} failed: {rows[0]['reason']}")
    return Outcome(rows, _report(config, rows), config.study_uri)


def _resolve_uris(config: StudyConfig) -> StudyConfig:
    return dataclasses.replace(
        config,
        mpii_uri=storage.resolve_uri(config.mpii_uri),
        extra_mpii_uri=tuple(storage.resolve_uri(uri) for uri in config.extra_mpii_uri),
        val_list=storage.resolve_uri(config.val_list) if config.val_list else "",
        study_uri=storage.resolve_uri(config.study_uri),
        weights=tuple(source if source in ("none", "imagenet") else storage.resolve_uri(source) for source in config.weights),
    )


def _claim_folder(config: StudyConfig) -> None:
    """Writes what the study is of; ValueError where the folder belongs to another one. Rows may come and go."""
    uri = storage.join_uri(config.study_uri, SETTINGS_FILE)
    wanted = json.loads(storage.to_json({name: value for name, value in dataclasses.asdict(config).items() if name != "rows"}))
    if storage.exists(uri):
        older = storage.read_json(uri)
        names = [name for name in wanted if older.get(name) != wanted[name]]
        if names:
            text = "; ".join(f"{name} was {older.get(name)!r}, now {wanted[name]!r}" for name in names)
            raise ValueError(f"{config.study_uri} holds a study with other settings ({text}); choose another --study-uri")
    storage.write_json(uri, wanted)


def _prepare(config: StudyConfig, settings: Mapping[str, Any]) -> None:
    """Samples of one kind of every data set; those that are complete stay."""
    prepared, _ = split_settings(settings)
    for number, mpii_uri in enumerate((config.mpii_uri, *config.extra_mpii_uri)):
        uri = samples_uri(config.study_uri, settings, number)
        split = {"val_percent": 0.0} if number else {"val_list": config.val_list}
        wanted = PrepareConfig(**{"mpii_uri": mpii_uri, "samples_uri": uri, **split, **prepared})
        print(preparing.describe(preparing.prepare(wanted), uri), flush=True)


def _train_row(name: str, config: StudyConfig) -> dict[str, Any]:
    """Calibrates, trains and scores."""
    seconds_per_epoch, other_seconds = _calibrate(train_config(name, config, 2, "calibration"))
    planned = train_config(name, config, num_epochs(config.minutes, seconds_per_epoch))
    print(f"{name}: {seconds_per_epoch:.1f} s per epoch, so {planned.epochs} epochs in {config.minutes:g} minutes", flush=True)
    result = training.train(planned)
    history = storage.read_json(storage.join_uri(result["run_uri"], HISTORY_FILE))
    predictions_uri = storage.join_uri(config.study_uri, "predictions", name)
    _score(config, result["run_uri"], planned.samples_uri, predictions_uri, name)
    return {
        "run_uri": result["run_uri"],
        "predictions_uri": predictions_uri,
        "samples_uri": planned.samples_uri,
        "num_train": num_train(result),
        "epochs": len(history),
        "best_epoch": result["best_epoch"],
        "seconds": training_seconds(history, watching.read_epoch_ends(result["run_uri"]), other_seconds),
        "command": cli.command("train", planned),
    }


def _calibrate(config: TrainConfig) -> tuple[float, float]:
    """Trains two epochs and keeps the small files of that run. See `epoch_seconds`."""
    run_uri = storage.join_uri(config.runs_uri, config.name)
    if not storage.exists(storage.join_uri(run_uri, storage.SUCCESS)):
        # An interruption would count as time of the epoch that it fell into.
        storage.delete(storage.list_files(run_uri))
    training.train(config)
    names = ((uri, uri.removeprefix(run_uri)) for uri in storage.list_files(run_uri))
    storage.delete(uri for uri, name in names if "/checkpoint_" in name or name.endswith(f"/{MODEL_FILE}"))
    return epoch_seconds(storage.read_json(storage.join_uri(run_uri, HISTORY_FILE)), watching.read_epoch_ends(run_uri))


def epoch_seconds(history: Sequence[Mapping[str, Any]], ends: Sequence[float]) -> tuple[float, float]:
    """Of the second epoch of a calibration, which is free of what happens once: all of it, and what the history does not account for.

    Args:
        history: a row per epoch.
        ends: when each epoch was over, s.
    """
    seconds = ends[1] - ends[0]
    return seconds, max(0.0, seconds - _accounted(history[1]))


def num_epochs(minutes: float, seconds_per_epoch: float) -> int:
    """How many epochs fit; one, where none does."""
    return max(1, math.floor(minutes * 60 / seconds_per_epoch))


def training_seconds(history: Sequence[Mapping[str, Any]], ends: Sequence[float], other_seconds: float) -> float:
    """Of all epochs with their validation. A pause between two of them, where a run was interrupted, does not count.

    Args:
        history: a row per epoch, with the seconds that it accounts for.
        ends: when each epoch was over, s.
        other_seconds: of an epoch, that the history does not account for, as measured by the calibration.
    """
    others = [max(0.0, end - start - _accounted(row)) for (start, end), row in zip(itertools.pairwise(ends), history[1:], strict=True)]
    return sum(map(_accounted, history)) + len(history) * statistics.median_low([other_seconds, *others])


def _accounted(row: Mapping[str, Any]) -> float:
    return sum(value for name, value in row.items() if name.startswith("seconds_"))


def _score_again(name: str, config: StudyConfig, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Scores the best of the rows so far with other settings."""
    trained = [row for row in rows if row["status"] == "ok" and row["row"] in ROWS]
    if not trained:
        raise ValueError("there is no row to score again: none that was trained has a score")
    best = max(trained, key=lambda row: row["pckh"])
    predictions_uri = storage.join_uri(config.study_uri, "predictions", f"{name}-of-{best['row']}")
    scored = _score(config, best["run_uri"], best["samples_uri"], predictions_uri, name, SCORED[name])
    kept = {field: best[field] for field in ("samples_uri", "num_train", "epochs", "best_epoch", "seconds")}
    change = f"{best['row']}, the best so far, with {say(SCORED[name])}"
    return {**kept, "predictions_uri": predictions_uri, "change": change, "command": cli.command("score", scored)}


def _score(
    config: StudyConfig, run_uri: str, samples_uri: str, predictions_uri: str, name: str, changes: Mapping[str, Any] | None = None
) -> ScoreConfig:
    places = {"checkpoint_uri": (run_uri,), "samples_uri": samples_uri, "predictions_uri": predictions_uri}
    scored = ScoreConfig(**{**places, "run_id": name, "use_gpu": config.use_gpu, **(changes or {})})
    scoring.score(scored)
    return scored


def _report(config: StudyConfig, rows: Sequence[Mapping[str, Any]]) -> str:
    # The first is compared with those that follow.
    ranked = sorted((row for row in rows if row["status"] == "ok"), key=lambda row: -row["pckh"])
    written = report.build(
        ReportConfig(
            report_uri=storage.join_uri(config.study_uri, "report"),
            predictions_uri=tuple(row["predictions_uri"] for row in ranked),
            runs_uri=tuple(row["run_uri"] for row in rows if row["status"] == "ok" and row["row"] in ROWS),
            title=f"Study: {config.minutes:g} minutes of training for each row",
        )
    )
    return written["page_uri"]


def describe(outcome: Outcome) -> str:
    """The table, for people."""
    lines = ["", study_table.to_markdown(outcome.rows)]
    return "\n".join([*lines, f"report: {outcome.page_uri}", f"everything else: {outcome.study_uri}"])
