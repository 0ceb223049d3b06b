"""What a scoring run came to, for programs and for people."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pyarrow.compute as pc

from posepipe import storage
from posepipe.config import ScoreConfig
from posepipe.geometry import transform
from posepipe.model_file import Checkpoint, ModelConfig, join_ids, read_model_config
from posepipe.predicting import NUM_EXAMPLES
from posepipe.predictions import SUMMARY_FILE, list_averaged
from posepipe.skeleton import NUM_JOINTS
from posepipe.tasks import TASKS, Labels, PoseScore, Score


@dataclass(frozen=True)
class Session:
    """What this process did of a run: inputs, and seconds from the start of the actors."""

    num_scored: int
    seconds: float


def summarise(
    config: ScoreConfig, models: Sequence[Checkpoint], run_uri: str, records: Sequence[dict[str, Any]], session: Session
) -> dict[str, Any]:
    """Builds and writes the summary of a run whose shards are all done.

    Args:
        config: of the run.
        models: that predicted.
        run_uri: the run's folder.
        records: the done records, by shard.
        session: of this process.
    """
    statuses = sum((Counter(record["statuses"]) for record in records), Counter())
    examples: dict[str, list[list[str]]] = {}
    for record in records:
        for status, found in record["examples"].items():
            examples[status] = (examples.get(status, []) + found)[:NUM_EXAMPLES]
    rate = session.num_scored / session.seconds if session.num_scored else None
    summary: dict[str, Any] = {
        "run_id": config.run_id,
        "models": join_ids(models),
        "flip_test": config.flip_test,
        "test_scales": sorted(config.test_scales),
        "precision": config.precision,
        "framing": models[0].framing,
        "inputs": config.samples_uri or config.images_uri,
        "rows_read": sum(statuses.values()),
        "rows_predicted": statuses["ok"],
        "statuses": dict(sorted(statuses.items())),
        "examples": dict(sorted(examples.items())),
        "session": {"num_scored": session.num_scored, "seconds": round(session.seconds, 3), "images_per_second": rate},
        "cost_per_million": config.price_per_hour / 3600 / rate * 1e6 if rate and config.price_per_hour else None,
        "tasks": {},
    }
    if config.samples_uri and statuses["ok"]:
        for task in summary["models"]:
            of_task = [model for model in models if model.task == task]
            summary["tasks"][task] = _score(of_task, [storage.join_uri(run_uri, record["file"]) for record in records])
    storage.write_json(storage.join_uri(run_uri, SUMMARY_FILE), summary)
    return summary


def read(run_uri: str) -> dict[str, Any]:
    """The summary of a complete run."""
    return storage.read_json(storage.join_uri(run_uri, SUMMARY_FILE))


def _score(models: Sequence[Checkpoint], files: Sequence[str]) -> dict[str, Any]:
    """The score of one task from the rows that were written, and its floor, that of the mean pose of the models' training samples."""
    configs = [read_model_config(model.uri)[0] for model in models]
    config = dataclasses.replace(configs[0], mean_points=np.mean([each.mean_points for each in configs], axis=0).tolist())
    parts = [found for found in (_score_part(config, uri) for uri in files) if found is not None]
    ours, floor = (reduce(add, scores) for scores in zip(*parts, strict=True))
    if not ours.num_scored:
        return {"num_people": 0}
    found = {"num_people": ours.num_people, "score": ours.summary(), "floor": floor.summary()}
    return {**found, "pckh_per_joint": ours.per_joint} if isinstance(ours, PoseScore) else found


def _score_part(config: ModelConfig, uri: str) -> tuple[Score, Score] | None:
    names = ["status", "crop_to_image", "head_box", "joints", "true_joints", "true_head_box", "head_size", "head_bone"]
    table = storage.read_table(uri, names)
    table = table.filter(pc.equal(table["status"], "ok"))
    if not table.num_rows:
        return None
    task = TASKS[config.task]
    joints = np.array(table["true_joints"].to_pylist(), dtype=float).reshape(-1, NUM_JOINTS, 2)
    boxes = np.array([box or [np.nan] * 4 for box in table["true_head_box"].to_pylist()], dtype=float)
    labels: Labels = {
        # The labels of these rows are in image px already.
        "crop_to_image": np.tile(np.eye(2, 3), (table.num_rows, 1, 1)),
        "joints": joints,
        "is_annotated": np.isfinite(joints).all(axis=2),
        "head_box": boxes,
        **{name: np.array(table[name].to_pylist(), dtype=float) for name in ("head_size", "head_bone")},
    }
    points = np.array(table["head_box" if task.is_box else "joints"].to_pylist(), dtype=float).reshape(-1, task.num_points, 2)
    affines = np.array(table["crop_to_image"].to_pylist()).reshape(-1, 2, 3)
    mean = np.broadcast_to(np.asarray(config.mean_points) * np.asarray(config.size), points.shape)
    return task.evaluate(points, labels), task.evaluate(transform(affines, mean), labels)


def describe(summary: dict[str, Any], predictions_uri: str) -> str:
    """The summary, for people."""
    lines = [f"read {summary['rows_read']} rows, predicted {summary['rows_predicted']}"]
    bad = {name: count for name, count in summary["statuses"].items() if name != "ok"}
    lines[0] += f", not predicted: {', '.join(f'{count} {name}' for name, count in bad.items()) or 'none'}"
    for name in bad:
        lines += [f"  {name}: {uri} ({detail})" for uri, detail in summary["examples"].get(name, [])]
    if averaged := list_averaged(summary):
        lines.append(f"averaged over: {'; '.join(averaged)}")
    session = summary["session"]
    if session["num_scored"]:
        cost = summary["cost_per_million"]
        lines.append(
            f"{session['images_per_second']:.1f} pictures per second over {session['num_scored']} pictures in {session['seconds']:.0f} s, "
            f"the start of the models included{f'; a million cost {cost:.2f} at this rate and price' if cost else ''}"
        )
    framing = "person framing from the label" if summary["framing"] == "person" else "image framing"
    for task, found in summary["tasks"].items():
        if "score" not in found:
            lines.append(f"{task}: nothing to score, nobody is labelled")
            continue
        lines += [f"{task} on {found['num_people']} labelled people, {framing}, in percent", f"  {'':22}{'model':>8}{'mean pose':>12}"]
        for name, value in found["score"].items():
            if not name.startswith("num_") and value is not None:
                lines.append(f"  {name:22}{100 * value:8.2f}{100 * found['floor'][name]:12.2f}")
    return "\n".join([*lines, f"predictions: {predictions_uri}"])
