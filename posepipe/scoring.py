"""Shards, predictor actors, commit.

A shard of inputs flows through a CPU task that reads and decodes it, and through an actor that predicts and writes one Parquet file of a
fixed name. `_MANIFEST.json` and then `_SUCCESS` come last; readers go by the manifest alone.
"""

import json
import logging
import pickle
from collections import Counter
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import ray.data

from posepipe import cluster, overlays, samples, storage
from posepipe.config import ScoreConfig
from posepipe.models import ModelConfig, read_model_config
from posepipe.predicting import Predictor, ShardReader
from posepipe.predictions import list_predictions
from posepipe.progress import Progress
from posepipe.tasks import PoseScore, Score

logger = logging.getLogger(__name__)

SUMMARY_FILE = "summary.json"
OVERLAYS_FILE = "overlays.jpg"


def score(config: ScoreConfig) -> dict[str, Any]:
    """Predicts for every input and writes PREDICTION rows, a summary, the manifest and the marker.

    Returns:
        The summary.

    Raises:
        ValueError: no checkpoint, no inputs, samples of another size or framing, predictions of another run in the same place.
    """
    predictions_uri = storage.resolve_uri(config.predictions_uri)
    checkpoint_uri = storage.resolve_uri(config.checkpoint_uri)
    model_config, model_id = read_model_config(checkpoint_uri)
    shards, inputs = _sample_shards(config, model_config) if config.samples_uri else _image_shards(config, model_config)
    identity = {"model_id": model_id, "inputs": inputs, "num_inputs": sum(shard["count"] for shard in shards), "run_id": config.run_id}
    hint = "change --num-actors, --cpus-per-actor or --use-gpu"
    actors = f"scoring with {config.num_actors} actors"
    cluster.require(actors, units=config.num_actors, cpus=config.cpus_per_actor, gpus=int(config.use_gpu), hint=hint)
    cluster.require(f"{actors} and a task that reads", units=config.num_actors * config.cpus_per_actor + 1, cpus=1, hint=hint)
    _claim_folder(predictions_uri, identity, config.overwrite)
    work = [{"shard": index, "spec": json.dumps(shard)} for index, shard in enumerate(shards)]
    dataset = (
        ray.data.from_items(work, override_num_blocks=len(work))
        # Ray fuses a task into the actor behind it where resources and strategy agree; as it is, shards are read beside the actor.
        .map(ShardReader(model_config.size), num_cpus=1, scheduling_strategy="SPREAD")
        .map(
            Predictor,
            fn_constructor_kwargs={
                "checkpoint_uri": checkpoint_uri,
                "model_id": model_id,
                "predictions_uri": predictions_uri,
                "run_id": config.run_id,
                "batch_size": config.batch_size,
                "num_threads": config.cpus_per_actor,
                "use_gpu": config.use_gpu,
            },
            compute=ray.data.ActorPoolStrategy(size=config.num_actors),
            num_cpus=config.cpus_per_actor,
            num_gpus=int(config.use_gpu),
            # Its own: an actor that names none takes over the task's.
            scheduling_strategy="DEFAULT",
        )
    )
    files: list[dict[str, Any]] = []
    statuses: Counter[str] = Counter()
    scores: list[tuple[Score, Score]] = []
    with Progress("score", identity["num_inputs"], "inputs") as progress:
        for row in dataset.iter_rows():
            files.append({"file": row["file"], "rows": row["rows"], "sha256": row["sha256"]})
            statuses.update(json.loads(row["statuses"]))
            if row["scores"]:
                scores.append(pickle.loads(row["scores"]))
            progress.update(row["rows"])
    summary = _summarise(config, model_config, identity, statuses, scores)
    storage.write_json(storage.join_uri(predictions_uri, SUMMARY_FILE), summary)
    manifest = {**identity, "files": sorted(files, key=lambda item: item["file"]), "statuses": dict(statuses)}
    storage.write_json(storage.join_uri(predictions_uri, storage.MANIFEST), manifest)
    storage.write_bytes(storage.join_uri(predictions_uri, storage.SUCCESS), b"")
    if config.num_overlays and statuses["ok"]:
        draw_overlays([predictions_uri], storage.join_uri(predictions_uri, OVERLAYS_FILE), config.num_overlays)
    return summary


def _sample_shards(config: ScoreConfig, model: ModelConfig) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One shard per file of the split, and one for the people whose picture could not be used when the samples were made."""
    samples_uri = storage.resolve_uri(config.samples_uri)
    manifest = samples.read_manifest(samples_uri)
    for name in ("size", "framing"):
        if manifest[name] != getattr(model, name):
            raise ValueError(
                f"the checkpoint was trained on samples of {name} {getattr(model, name)}, {samples_uri} has {name} {manifest[name]}"
            )
    files = samples.list_split(samples_uri, config.split)
    rows = {storage.join_uri(samples_uri, item["file"]): item["rows"] for item in manifest["files"]}
    shards: list[dict[str, Any]] = [{"samples": uri, "images": manifest["images_uri"], "count": rows[uri]} for uri in files]
    errors = storage.read_table(storage.join_uri(samples_uri, samples.ERRORS_FILE)).to_pylist()
    failed = [row for row in errors if row["split"] == config.split]
    if failed:
        shards.append({"failed": failed, "images": manifest["images_uri"], "count": len(failed)})
    return shards, {"samples_fingerprint": samples.fingerprint(manifest), "split": config.split}


def _image_shards(config: ScoreConfig, model: ModelConfig) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Shards of shard_size URIs, in their order."""
    images_uri = storage.resolve_uri(config.images_uri)
    if model.framing != "image":
        raise ValueError(
            f"the checkpoint was trained on {model.framing} framing, which needs to know where the person is; "
            "score samples, or use a checkpoint that was trained on image framing"
        )
    uris = storage.list_files(images_uri)
    if not uris:
        raise ValueError(f"no files below {images_uri}")
    parts = [uris[start : start + config.shard_size] for start in range(0, len(uris), config.shard_size)]
    return [{"uris": part, "count": len(part)} for part in parts], {"images_fingerprint": storage.fingerprint(uris)}


def _claim_folder(predictions_uri: str, identity: dict[str, Any], overwrite: bool) -> None:
    """Takes marker and manifest away, so that nobody reads while files change, and the files of an older run with them."""
    manifest_uri = storage.join_uri(predictions_uri, storage.MANIFEST)
    if storage.exists(manifest_uri):
        older = storage.read_json(manifest_uri)
        differing = [f"{name} was {older.get(name)!r}, now {value!r}" for name, value in identity.items() if older.get(name) != value]
        if differing and not overwrite:
            text = "; ".join(differing)
            raise ValueError(f"{predictions_uri} holds other predictions ({text}); choose another --predictions-uri or pass --overwrite")
    for name in (storage.SUCCESS, storage.MANIFEST):
        if storage.exists(storage.join_uri(predictions_uri, name)):
            storage.delete([storage.join_uri(predictions_uri, name)])
    storage.delete(storage.list_parts(predictions_uri))


def _summarise(
    config: ScoreConfig, model: ModelConfig, identity: dict[str, Any], statuses: Counter[str], scores: list[tuple[Score, Score]]
) -> dict[str, Any]:
    summary: dict[str, Any] = {
        **identity,
        "task": model.task,
        "framing": model.framing,
        "inputs": config.samples_uri or config.images_uri,
        "rows_read": sum(statuses.values()),
        "rows_predicted": statuses["ok"],
        "statuses": dict(statuses),
    }
    if scores:
        ours, floor = (reduce(add, parts) for parts in zip(*scores, strict=True))
        summary["rows_labelled"] = ours.num_people
        if ours.num_scored:
            summary |= {"score": ours.summary(), "floor": floor.summary()}
            if isinstance(ours, PoseScore):
                summary["pckh_per_joint"] = ours.per_joint
    return summary


def describe(summary: dict[str, Any], predictions_uri: str) -> str:
    """The summary, for people."""
    bad = {name: count for name, count in summary["statuses"].items() if name != "ok"}
    lines = [f"read {summary['rows_read']} rows, predicted {summary['rows_predicted']}, not predicted: {bad or 'none'}"]
    if "score" in summary:
        ours, floor = summary["score"], summary["floor"]
        framing = "person framing from the label" if summary["framing"] == "person" else "image framing"
        lines.append(f"{summary['task']} on {ours['num_people']} labelled people, {framing}, in percent")
        lines.append(f"  {'':22}{'model':>8}{'mean pose':>12}")
        for name, value in ours.items():
            if not name.startswith("num_") and value is not None:
                lines.append(f"  {name:22}{100 * value:8.2f}{100 * floor[name]:12.2f}")
    return "\n".join([*lines, f"predictions: {predictions_uri}"])


def draw_overlays(predictions_uris: Sequence[str], overlays_uri: str, count: int) -> None:
    """Draws evenly spread rows of the first run, with what the other runs (of the same inputs, another task) say of them.

    Args:
        predictions_uris: complete runs.
        overlays_uri: the JPEG to write.
        count: rows to draw.
    """
    files = _spread(list_predictions(predictions_uris[0]), count)
    runs = [
        {
            row["sample_id"]: row
            for file in files
            for row in storage.read_table(storage.join_uri(uri, file.rpartition("/")[2])).to_pylist()
            if row["status"] == "ok"
        }
        for uri in predictions_uris
    ]
    chosen = _spread(list(runs[0]), count)
    pictures = storage.read_many([runs[0][sample_id]["uri"] for sample_id in chosen])
    drawn = [
        overlays.overlay_rows(picture, [run[sample_id] for run in runs if sample_id in run])
        for sample_id, picture in zip(chosen, pictures, strict=True)
        if isinstance(picture, bytes)
    ]
    if drawn:
        storage.write_bytes(overlays_uri, overlays.draw_grid(drawn))
    else:
        logger.warning("none of the pictures of %s can be read, so there is nothing to draw on", predictions_uris[0])


def _spread(items: list[str], count: int) -> list[str]:
    return [items[index] for index in sorted({round(place) for place in np.linspace(0, len(items) - 1, min(count, len(items)))})]
