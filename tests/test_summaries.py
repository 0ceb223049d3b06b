"""summaries.py: the summary of a run by hand: what was scored, how well, how quickly and what it cost."""

import numpy as np
import pyarrow as pa
import pytest
from test_scoring import write_checkpoint

from posepipe import storage, summaries
from posepipe.config import ScoreConfig
from posepipe.model_file import Checkpoint, read_model_config
from posepipe.predictions import PREDICTION
from posepipe.skeleton import JOINT, NUM_JOINTS
from posepipe.summaries import Session, describe, summarise

HEAD_MEAN = [[0.25, 0.5], [0.75, 1.0]]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A pose and a head model of 64 px whose training samples have their joints in the middle, their head boxes at HEAD_MEAN."""
    folder = tmp_path_factory.mktemp("models")
    small = {"model": "test_resnet", "regression_head": "direct", "feature_stride": 32}
    uris = {
        "pose": write_checkpoint(folder / "pose", **small),
        "head": write_checkpoint(folder / "head", task="head", mean_points=HEAD_MEAN, **small),
    }
    return {task: Checkpoint(uri, read_model_config(uri)[1], task, "person", 64) for task, uri in uris.items()}


def joints(value=None, **named):
    """32 numbers: all `value`, but for the joints named."""
    points = np.full((NUM_JOINTS, 2), np.nan if value is None else value, dtype=object)
    for name, point in named.items():
        points[JOINT[name]] = point
    return [None if number != number else float(number) for number in points.ravel()]


def row(status="ok", **values):
    return {
        "sample_id": "a",
        "uri": "s3://b/a",
        "status": status,
        "crop_to_image": [2.0, 0, 10, 0, 2, 20] if status == "ok" else None,
        **values,
    }


@pytest.fixture
def run(tmp_path):
    """Writes the parts of a run; returns its done records."""

    def write(*parts, examples=()):
        records = []
        for number, rows in enumerate(parts):
            name = f"parts/part-{number:06d}.parquet"
            storage.write_table(str(tmp_path / name), pa.Table.from_pylist(rows, PREDICTION))
            statuses = {status: sum(each["status"] == status for each in rows) for status in {each["status"] for each in rows}}
            records.append(
                {
                    "shard": number,
                    "file": name,
                    "rows": len(rows),
                    "statuses": statuses,
                    "examples": dict(examples[number]) if examples else {},
                }
            )
        return records

    return write


def config(**values):
    values = {"checkpoint_uri": ("x",), "predictions_uri": "out", "samples_uri": "samples", **values}
    return ScoreConfig(**values)


PICTURES = {"samples_uri": "", "images_uri": "s3://b/pictures"}


# Counts, examples and cost


def test_rows_are_counted_over_all_shards(models, run, tmp_path):
    records = run([row(), row("missing")], [row("missing"), row("empty")], [row(), row()])
    summary = summarise(config(**PICTURES, run_id="a"), [models["pose"]], str(tmp_path), records, Session(6, 2.0))
    assert summary["statuses"] == {"empty": 1, "missing": 2, "ok": 3}
    assert list(summary["statuses"]) == ["empty", "missing", "ok"]
    assert (summary["rows_read"], summary["rows_predicted"], summary["run_id"]) == (6, 3, "a")
    assert (summary["inputs"], summary["framing"], summary["tasks"]) == ("s3://b/pictures", "person", {})
    assert summary["models"] == {"pose": models["pose"].model_id}
    assert summaries.read(str(tmp_path)) == summary


def test_a_few_examples_of_each_status_are_kept(models, run, tmp_path):
    shards = [{"missing": [["a", "1"], ["b", "2"]], "empty": [["c", "3"]]}, {}, {"missing": [["d", "4"], ["e", "5"]]}]
    records = run([row("missing")], [row()], [row("missing")], examples=shards)
    summary = summarise(config(**PICTURES), [models["pose"]], str(tmp_path), records, Session(3, 1.0))
    assert summary["examples"] == {"empty": [["c", "3"]], "missing": [["a", "1"], ["b", "2"], ["d", "4"]]}


def test_a_million_pictures_cost_what_the_rate_and_the_price_say(models, run, tmp_path):
    # 20 pictures in 2 s are 10/s: a million take 100,000 s or 27.8 h, at 3.60 an hour 100.
    records = run([row()] * 20)
    values = {**PICTURES, "price_per_hour": 3.6}
    summary = summarise(config(**values), [models["pose"]], str(tmp_path), records, Session(20, 2.0))
    assert summary["session"] == {"num_scored": 20, "seconds": 2.0, "images_per_second": 10.0}
    assert summary["cost_per_million"] == pytest.approx(100)
    said = describe(summary, "s3://b/out")
    assert "10.0 pictures per second over 20 pictures in 2 s" in said
    assert "a million cost 100.00 at this rate and price" in said


def test_the_rate_is_of_what_this_session_did(models, run, tmp_path):
    summary = summarise(config(**PICTURES, price_per_hour=3.6), [models["pose"]], str(tmp_path), run([row()] * 20), Session(4, 2.0))
    assert summary["session"]["images_per_second"] == 2.0
    assert summary["cost_per_million"] == pytest.approx(500)


def test_without_a_price_or_without_work_there_is_no_cost(models, run, tmp_path):
    records = run([row()])
    assert summarise(config(**PICTURES), [models["pose"]], str(tmp_path), records, Session(1, 1.0))["cost_per_million"] is None
    nothing = summarise(config(**PICTURES, price_per_hour=1), [models["pose"]], str(tmp_path), records, Session(0, 0.0))
    assert nothing["cost_per_million"] is nothing["session"]["images_per_second"] is None
    assert "per second" not in describe(nothing, "out")


# Scores


def test_a_pose_is_scored_from_the_rows_beside_the_mean_pose(models, run, tmp_path):
    # Official: head size 10, so 4 px is right and 6 px is wrong, the pelvis does not count. The paper's: bone 13.3, 4 and 6 px are right.
    first = row(
        joints=joints(0, left_knee=(54, 50), right_knee=(56, 50), pelvis=(500, 500)),
        true_joints=joints(left_knee=(50, 50), right_knee=(50, 50), pelvis=(50, 50)),
        head_size=10.0,
        head_bone=40 / 3,
        true_head_box=[0, 0, 10, 10],
    )
    # Nobody knows how large this head is: the joints do not count officially, but the bone is known.
    no_box = row(joints=joints(0, left_knee=(0, 0)), true_joints=joints(left_knee=(6, 0)), head_size=None, head_bone=12.0)
    nobody = row(joints=joints(0), true_joints=joints(), head_size=10.0, head_bone=None)
    # The mean pose lies at (0.5, 0.5) * 64 px of the crop, in the image at (74, 84): 24 and 34 px from (50, 50), but right for this one.
    at_mean = row(joints=joints(0, left_knee=(100, 100)), true_joints=joints(left_knee=(74, 84)), head_size=10.0, head_bone=10.0)
    records = run([first, row("missing"), no_box], [nobody], [row("empty")], [at_mean])
    task = summarise(config(), [models["pose"]], str(tmp_path), records, Session(6, 1.0))["tasks"]["pose"]
    assert task["num_people"] == 2
    assert task["score"]["num_joints_scored"] == 3
    assert task["score"]["pckh"] == pytest.approx(1 / 3)
    assert task["score"]["pckh_bone"] == pytest.approx(3 / 5)  # two knees of the first one and the one without a box
    assert task["floor"]["pckh"] == pytest.approx(1 / 3)
    assert task["floor"]["pckh_bone"] == pytest.approx(1 / 5)
    assert task["pckh_per_joint"]["left_knee"] == pytest.approx(1 / 2)
    assert task["pckh_per_joint"]["right_knee"] == 0
    assert task["pckh_per_joint"]["head_top"] is None


def test_heads_are_scored_by_their_overlap_and_people_without_a_box_are_not(models, run, tmp_path):
    # Image = crop * 2 + (10, 20): the mean box (16, 32) .. (48, 64) is (42, 84) .. (106, 148).
    half = row(true_joints=joints(), head_box=[10, 0, 30, 20], true_head_box=[0, 0, 20, 20])  # 200 / 600
    exact = row(true_joints=joints(), head_box=[42, 84, 106, 148], true_head_box=[42, 84, 106, 148])
    no_box = row(true_joints=joints(), head_box=[0, 0, 1, 1], true_head_box=None)
    task = summarise(config(), [models["head"]], str(tmp_path), run([half, no_box], [exact]), Session(3, 1.0))["tasks"]["head"]
    assert task["score"] == {"num_people": 2, "head_iou": pytest.approx(2 / 3), "head_iou_50": 0.5, "head_iou_75": 0.5}
    assert task["floor"]["head_iou"] == pytest.approx(1 / 2)
    assert "pckh_per_joint" not in task


def test_two_models_are_scored_each_for_its_task(models, run, tmp_path):
    both = row(
        joints=joints(0, left_knee=(50, 50)), true_joints=joints(left_knee=(50, 50)), head_size=10.0, head_bone=10.0,
        head_box=[0, 0, 20, 20], true_head_box=[0, 0, 20, 20],
    )  # fmt: skip
    summary = summarise(config(), list(models.values()), str(tmp_path), run([both]), Session(1, 1.0))
    assert summary["tasks"]["pose"]["score"]["pckh"] == summary["tasks"]["head"]["score"]["head_iou"] == 1
    said = describe(summary, "out")
    assert "pose on 1 labelled people, person framing from the label, in percent" in said
    assert "head on 1 labelled people" in said


def test_points_that_are_no_numbers_are_missed_and_not_dropped(models, run, tmp_path):
    nan, truth = float("nan"), {"true_joints": joints(left_knee=(50, 50), right_knee=(50, 50)), "head_size": 10.0, "head_bone": 10.0}
    predicted = row(joints=[nan if place == 2 * JOINT["left_knee"] else 50.0 for place in range(32)], **truth)
    score = summarise(config(), [models["pose"]], str(tmp_path), run([predicted]), Session(1, 1.0))["tasks"]["pose"]["score"]
    assert (score["pckh"], score["num_joints_scored"]) == (0.5, 2)


def test_rows_without_a_label_have_no_score(models, run, tmp_path):
    records = run([row(joints=joints(0), true_joints=joints(), head_size=10.0)])
    summary = summarise(config(), [models["pose"]], str(tmp_path), records, Session(1, 1.0))
    assert summary["tasks"] == {"pose": {"num_people": 0}}
    assert "pose: nothing to score, nobody is labelled" in describe(summary, "out")


def test_pictures_are_not_scored(models, run, tmp_path):
    assert summarise(config(**PICTURES), [models["pose"]], str(tmp_path), run([row(joints=joints(0))]), Session(1, 1.0))["tasks"] == {}


def test_samples_without_one_good_row_are_not_scored(models, run, tmp_path):
    assert summarise(config(), [models["pose"]], str(tmp_path), run([row("missing")]), Session(1, 1.0))["tasks"] == {}


def test_the_floor_of_an_ensemble_is_the_average_of_its_floors(models, run, tmp_path):
    left = write_checkpoint(
        tmp_path / "left", model="test_resnet", regression_head="direct", feature_stride=32, mean_points=[[0.25, 0.5]] * NUM_JOINTS
    )
    both = [models["pose"], Checkpoint(left, read_model_config(left)[1], "pose", "person", 64)]
    # The means lie at (0.5, 0.5) and (0.25, 0.5), so between them at (0.375, 0.5) * 64 px of the crop, in the image at (58, 84).
    found = row(joints=joints(0), true_joints=joints(left_knee=(58, 84), right_knee=(74, 84)), head_size=2.0, head_bone=2.0)
    summary = summarise(config(), both, str(tmp_path), run([found]), Session(1, 1.0))
    assert summary["models"] == {"pose": ",".join(model.model_id for model in both)}
    assert summary["tasks"]["pose"]["floor"]["pckh"] == 0.5


# For people


def test_people_read_what_was_averaged(models, run, tmp_path):
    both = [models["pose"], Checkpoint("x", "other", "pose", "person", 64), models["head"]]
    given = config(**PICTURES, flip_test=True, test_scales=(1.0, 0.9))
    summary = summarise(given, both, str(tmp_path), run([row()]), Session(0, 0.0))
    assert (summary["flip_test"], summary["test_scales"]) == (True, [0.9, 1.0])
    assert "averaged over: 2 pose models; the mirrored crop; crops scaled by 0.9, 1" in describe(summary, "out").splitlines()
    older = {name: value for name, value in summary.items() if name not in ("flip_test", "test_scales")}
    assert "averaged over: 2 pose models" in describe(older, "out").splitlines()


def test_people_read_what_was_wrong_and_where(models, run, tmp_path):
    shards = [{"empty": [["s3://b/c.jpg", "0 bytes"]], "missing": [["s3://b/a.jpg", "FileNotFoundError"], ["s3://b/b.jpg", "gone"]]}]
    records = run([row(), row("missing"), row("missing"), row("empty")], examples=shards)
    summary = summarise(config(**PICTURES), [models["pose"]], str(tmp_path), records, Session(0, 0.0))
    assert describe(summary, "s3://b/out").splitlines() == [
        "read 4 rows, predicted 1, not predicted: 1 empty, 2 missing",
        "  empty: s3://b/c.jpg (0 bytes)",
        "  missing: s3://b/a.jpg (FileNotFoundError)",
        "  missing: s3://b/b.jpg (gone)",
        "predictions: s3://b/out",
    ]


def test_people_read_that_nothing_was_wrong(models, run, tmp_path):
    summary = summarise(config(**PICTURES), [models["pose"]], str(tmp_path), run([row()]), Session(0, 0.0))
    assert describe(summary, "out").startswith("read 1 rows, predicted 1, not predicted: none\n")
