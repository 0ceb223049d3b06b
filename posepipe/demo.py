"""All of it, on a generated MPII-shaped data set or on a real one.

Draw (or take) a data set, prepare samples, train both tasks, sweep the learning rate a little, score, draw a grid of predictions, write a
report.
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from typing import Any

from posepipe import capacity, cluster, gallery, mpii, preparing, report, scoring, storage, synthetic, training, tuning
from posepipe.config import DemoConfig, PrepareConfig, ReportConfig, ScoreConfig, Task, TrainConfig, TuneConfig
from posepipe.progress import Progress

GRID_FILE = "predictions.jpg"
MODEL = "resnet10t"
STRIDE = 16
SEED = 0


@dataclass(frozen=True)
class Outcome:
    """What a demo made: the summary of `scoring.score`, the sweep's result and the minutes each stage took."""

    summary: dict[str, Any]
    sweep: dict[str, Any]
    minutes: dict[str, float]
    grid_uri: str
    report_uri: str
    work_uri: str


def run(config: DemoConfig) -> Outcome:
    """Runs every stage. Run again below the same work_uri, it takes up what is generated and trained; the rest is done anew.

    Raises:
        ValueError: what lies there is of other settings.
    """
    try:
        return _run(config)
    except ValueError as error:
        if "other settings" not in str(error):
            raise
        # The stages name flags of their own jobs.
        raise ValueError(f"{error} (a demo of other settings needs another --work-uri, of make WORK=…)") from error


def _run(config: DemoConfig) -> Outcome:
    work_uri = storage.resolve_uri(config.work_uri)
    minutes: dict[str, float] = {}
    started = time.monotonic()

    def stage(name: str) -> None:
        nonlocal started
        minutes[name] = (time.monotonic() - started) / 60
        started = time.monotonic()

    mpii_uri = config.mpii_uri or storage.join_uri(work_uri, "mpii")
    if not config.mpii_uri:
        _generate(mpii_uri, config.num_images)
        stage("generate")
    samples_uri = storage.join_uri(work_uri, "samples")
    manifest = preparing.prepare(
        PrepareConfig(mpii_uri=mpii_uri, samples_uri=samples_uri, framing="person", people="all", size=config.size)
    )
    print(preparing.describe(manifest, samples_uri), flush=True)
    stage("prepare")
    epochs: dict[Task, int] = {"pose": config.epochs, "head": config.epochs - 2}
    checkpoints = []
    for task in epochs:
        train_config = _train_config(config, task, epochs[task])
        print(training.describe(training.train(train_config)), flush=True)
        checkpoints.append(storage.join_uri(train_config.runs_uri, task))
        stage(f"train {task}")
    predictions_uri = storage.join_uri(work_uri, "predictions")
    score_config = ScoreConfig(
        checkpoint_uri=tuple(checkpoints),
        samples_uri=samples_uri,
        predictions_uri=predictions_uri,
        overwrite=True,
        use_gpu=config.use_gpu,
    )
    summary = scoring.score(score_config)
    stage("score")
    sweep_config = dataclasses.replace(_train_config(config, "head", max(1, config.epochs // 4)), name="sweep")
    sweep = tuning.tune(TuneConfig(train=sweep_config, search=("learning_rate=grid:5e-4,3e-3", "batch_size=choice:32,64")))
    print(tuning.describe(sweep), flush=True)
    stage("sweep")
    grid_uri = storage.join_uri(work_uri, GRID_FILE)
    gallery.draw_overlays(predictions_uri, grid_uri, 12)
    written = report.build(
        ReportConfig(
            report_uri=storage.join_uri(work_uri, "report"),
            predictions_uri=(predictions_uri,),
            runs_uri=tuple(storage.join_uri(work_uri, "runs", task) for task in epochs),
            title="The demo of posepipe",
        )
    )
    stage("report")
    return Outcome(summary, sweep, minutes, grid_uri, written["page_uri"], work_uri)


def _train_config(config: DemoConfig, task: Task, epochs: int) -> TrainConfig:
    """A small network and a map per point: what two CPU cores learn in minutes. It takes all of a small machine, 4 CPUs of a large one."""
    work_uri = storage.resolve_uri(config.work_uri)
    return TrainConfig(
        samples_uri=storage.join_uri(work_uri, "samples"),
        runs_uri=storage.join_uri(work_uri, "runs"),
        name=task,
        task=task,
        model=MODEL,
        regression_head="heatmap",
        feature_stride=STRIDE,
        epochs=epochs,
        batch_size=32,
        learning_rate=3e-3,
        schedule="cosine",
        augment=True,
        cpus_per_worker=min(4, capacity.most_cpus()),
        use_gpu=config.use_gpu,
    )


def _generate(mpii_uri: str, num_images: int) -> None:
    """Draws the data set in parallel; the annotation file comes last, so what has one is complete."""
    settings_uri = storage.join_uri(mpii_uri, "settings.json")
    settings = {"num_images": num_images}
    is_complete = storage.exists(storage.join_uri(mpii_uri, mpii.ANNOTATION_FILE))
    if is_complete and storage.exists(settings_uri) and storage.read_json(settings_uri) == settings:
        return
    parts = [{"start": start, "stop": min(start + 25, num_images)} for start in range(0, num_images, 25)]
    records: list[dict[str, Any]] = []
    with Progress("generate", num_images, "pictures") as progress:
        for row in cluster.from_items(parts).map(_draw, fn_args=(mpii_uri,)).iter_rows():
            part = json.loads(row["records"])
            records += part
            progress.update(len(part))
    synthetic.write_annotations(mpii_uri, sorted(records, key=lambda record: record["name"]))
    storage.write_json(settings_uri, settings)


def _draw(part: dict[str, Any], mpii_uri: str) -> dict[str, Any]:
    return {"records": json.dumps([synthetic.write_image(mpii_uri, index, SEED) for index in range(part["start"], part["stop"])])}


def describe(outcome: Outcome) -> str:
    """The table at the end, for people."""
    lines = ["", f"{'task':6}{'people':>8}  {'measure':28}{'model':>8}{'mean pose':>11}"]
    measures = {
        "pose": {"pckh": "PCKh@0.5, official", "pckh_bone": "PCKh@0.5, the paper's"},
        "head": {"head_iou_50": "head boxes with IoU >= 0.5", "head_iou": "mean IoU of the head box"},
    }
    for task, names in measures.items():
        ours, floor = outcome.summary["tasks"][task]["score"], outcome.summary["tasks"][task]["floor"]
        for name, text in names.items():
            lines.append(f"{task:6}{ours['num_people']:8}  {text:28}{100 * ours[name]:7.1f}%{100 * floor[name]:10.1f}%")
    lines += ["person framing from the labels; the mean pose of the training labels is the floor", ""]
    spent = ", ".join(f"{name} {minutes:.1f}" for name, minutes in outcome.minutes.items())
    lines += [f"minutes: {spent}; {sum(outcome.minutes.values()):.1f} in all"]
    lines += [
        f"report: {outcome.report_uri}",
        f"pictures with predictions: {outcome.grid_uri}",
        f"everything else: {outcome.work_uri}/{{mpii,samples,runs,predictions}}",
    ]
    return "\n".join(lines)
