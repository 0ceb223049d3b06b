"""The whole line on object storage: prepare, train, score samples, score a bucket's pictures.

The server is moto's, or with POSEPIPE_CEPH=1 a real one (Ceph RGW, see `s3_endpoint`).
"""

import json
import pickle
from collections import Counter
from dataclasses import dataclass
from typing import Any

import boto3
import fsspec
import pytest

from posepipe import images, inputs, mpii, predictions, preparing, reading, samples, scoring, storage, training, watching
from posepipe.config import PrepareConfig, ScoreConfig, TrainConfig

BUCKET = "posepipe-test"
MPII_URI = f"s3://{BUCKET}/mpii"
IMAGES_URI = f"{MPII_URI}/images"
SAMPLES_URI = f"s3://{BUCKET}/samples"
RUNS_URI = f"s3://{BUCKET}/runs"
BAD = ("missing", "forbidden", "truncated", "empty")
NUM_VAL = 12


@dataclass(frozen=True)
class Line:
    """What prepare and train left in the bucket. names: the picture of each status in BAD."""

    names: dict[str, str]
    manifest: dict[str, Any]
    result: dict[str, Any]


@pytest.fixture(scope="module")
def line(ray_session: None, s3_endpoint: str, synthetic_mpii: str) -> Line:
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    client.create_bucket(Bucket=BUCKET)
    fsspec.filesystem("s3").put(f"{synthetic_mpii}/", f"{BUCKET}/mpii/", recursive=True)
    _, persons = mpii.read_annotations(MPII_URI)
    single = mpii.select_people(persons.filter(persons["has_joints"]), "single")["image"].to_pylist()
    names = dict(zip(BAD, single, strict=False))
    client.delete_object(Bucket=BUCKET, Key=f"mpii/images/{names['missing']}")
    picture = storage.read_bytes(f"{IMAGES_URI}/{names['truncated']}")
    storage.write_bytes(f"{IMAGES_URI}/{names['truncated']}", picture[: len(picture) // 2])
    storage.write_bytes(f"{IMAGES_URI}/{names['empty']}", b"")
    storage.write_bytes(f"{IMAGES_URI}/notes.txt", b"no picture")
    key = f"arn:aws:s3:::{BUCKET}/mpii/images/{names['forbidden']}"
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": key}
    client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]}))
    storage.write_bytes(f"{MPII_URI}/val.txt", "\n".join(single[:NUM_VAL]).encode())

    prepare_config = PrepareConfig(mpii_uri=MPII_URI, samples_uri=SAMPLES_URI, size=64, val_list=f"{MPII_URI}/val.txt", shard_size=8)
    manifest = preparing.prepare(prepare_config)
    train_config = TrainConfig(
        samples_uri=SAMPLES_URI,
        runs_uri=RUNS_URI,
        name="run",
        model="test_resnet",
        regression_head="heatmap",
        feature_stride=16,
        epochs=1,
        batch_size=8,
        checkpoint_every=1,
    )
    return Line(names, manifest, training.train(train_config))


def test_checkpoints_in_an_epoch_do_not_pile_up_and_its_events_lie_beside_the_run(line: Line) -> None:
    folders = {uri.split("/")[-2] for uri in storage.list_files(line.result["run_uri"])}
    folders = {folder for folder in folders if folder.startswith("checkpoint_")}
    losses = watching.read_events(line.result["run_uri"])["step/loss"]
    assert len(losses) > 1, "the step before the last made a checkpoint too"
    assert len(folders) == 1
    assert [step for step, _ in losses] == list(range(1, len(losses) + 1))


def test_prepare_records_what_it_could_not_use(line: Line) -> None:
    assert line.manifest["rows"]["val"] == NUM_VAL - len(BAD)
    assert line.manifest["errors"] == {status: 1 for status in sorted(BAD)}
    errors = storage.read_table(storage.join_uri(SAMPLES_URI, samples.ERRORS_FILE)).to_pylist()
    assert {row["status"]: row["image"] for row in errors} == line.names


def test_the_run_folder_is_complete_in_the_bucket(line: Line) -> None:
    found = {uri.rpartition("/")[2] for uri in storage.list_files(f"{RUNS_URI}/run")}
    assert {storage.SUCCESS, "model.safetensors", "config.json", "history.json", "result.json"} <= found
    assert line.result["run_uri"] == f"{RUNS_URI}/run"


def test_scored_samples_have_one_row_per_person_whatever_became_of_it(line: Line) -> None:
    predictions_uri = f"s3://{BUCKET}/predictions/samples"
    summary = scoring.score(ScoreConfig(checkpoint_uri=(f"{RUNS_URI}/run",), predictions_uri=predictions_uri, samples_uri=SAMPLES_URI))
    rows = predictions.read_predictions(predictions_uri).to_pylist()
    assert Counter(row["status"] for row in rows) == {"ok": NUM_VAL - len(BAD), **{status: 1 for status in BAD}}
    assert summary["rows_read"] == NUM_VAL
    assert summary["tasks"]["pose"]["num_people"] == NUM_VAL - len(BAD)
    assert {row["model_id"] for row in rows} == {line.result["model_id"]}


def test_a_scored_prefix_has_one_row_per_object_whatever_became_of_it(line: Line) -> None:
    predictions_uri = f"s3://{BUCKET}/predictions/images"
    config = ScoreConfig(checkpoint_uri=(f"{RUNS_URI}/run",), predictions_uri=predictions_uri, images_uri=IMAGES_URI, shard_size=20)
    listed = storage.list_files(IMAGES_URI)
    scoring.score(config)
    rows = predictions.read_predictions(predictions_uri).to_pylist()
    assert [row["uri"] for row in rows] == listed
    bad = {row["uri"].rpartition("/")[2]: row["status"] for row in rows if row["status"] != "ok"}
    assert bad == {**{line.names[status]: status for status in BAD if status != "missing"}, "notes.txt": "not_an_image"}
    assert all((row["joints"] is not None) == (row["status"] == "ok") for row in rows)
    assert all(row["detail"] for row in rows if row["status"] != "ok")


def test_an_object_that_goes_between_listing_and_reading_is_a_row(line: Line) -> None:
    good = next(uri for uri in storage.list_files(IMAGES_URI) if uri.rpartition("/")[2] not in line.names.values())
    run_uri = f"s3://{BUCKET}/gone"
    storage.write_bytes(f"{run_uri}.txt", f"{good}\n{IMAGES_URI}/zzz.jpg".encode())
    files = inputs.write_inputs(run_uri, inputs.read_inputs(f"{run_uri}.txt"), 2)
    read = reading.ShardReader(run_uri, tuple(files), f"{run_uri}/done", "image", ((64, 64),), images.MAX_BYTES, images.MAX_PIXELS)
    known = pickle.loads(read({"shard": 0, "spec": "{}"})["rows"])["known"]
    assert [row["status"] for row in known] == ["ok", "missing"]
