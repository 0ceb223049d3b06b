"""predicting.py: crops become points in image px, points become people and rows, rows are committed. The models here are stubs."""

import json
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from posepipe import ensemble, journal, storage
from posepipe.geometry import frame_image, frame_person
from posepipe.model_file import Checkpoint
from posepipe.predicting import FirstStage, Predictor, find_person
from posepipe.predictions import PREDICTION
from posepipe.skeleton import HEAD_TOP, JOINT, NUM_JOINTS, UPPER_NECK


@dataclass
class StubConfig:
    task: str
    size: tuple[int, int]


class Stub:
    """Predicts the same points (crop px) for every crop, moved right by the red value of the crop's first pixel."""

    def __init__(self, task, size, points, confidence=None):
        self.config, self.points, self.confidence, self.batches = StubConfig(task, size), points, confidence, []
        self.backbone = torch.nn.Identity()

    def to(self, device):
        return self

    def predict(self, pixels):
        assert pixels.dtype == torch.uint8
        assert pixels.shape[1:] == (3, *self.config.size[::-1])
        self.batches.append(len(pixels))
        points = torch.tensor(self.points, dtype=torch.float64).repeat(len(pixels), 1, 1)
        points[..., 0] += pixels[:, 0, 0, 0].double()[:, None]
        return points, None if self.confidence is None else torch.tensor(self.confidence).repeat(len(pixels), 1)


@pytest.fixture
def load(monkeypatch):
    """Gives each stub a Checkpoint that loads it: id-pose, id-pose1 and so on."""

    def give(*stubs):
        tasks = [stub.config.task for stub in stubs]
        names = [f"{task}{tasks[:place].count(task) or ''}" for place, task in enumerate(tasks)]
        by_id = {f"id-{name}": stub for name, stub in zip(names, stubs, strict=True)}
        monkeypatch.setattr(ensemble, "load_model", lambda uri: (by_id[f"id-{uri[7:]}"], f"id-{uri[7:]}"))
        return [
            Checkpoint(f"s3://b/{name}", f"id-{name}", stub.config.task, "person", stub.config.size)
            for name, stub in zip(names, stubs, strict=True)
        ]

    return give


def pose(**named):
    points = np.zeros((NUM_JOINTS, 2))
    for name, point in named.items():
        points[JOINT[name]] = point
    return points.tolist()


HEAD = [[2.0, 1.0], [6.0, 4.0]]


def known(name, status="ok", width=200, height=100, **changes):
    good = {"width": width, "height": height} if status == "ok" else {"width": None, "height": None}
    common = {"sample_id": name, "uri": f"s3://b/{name}", "person_from": None, "framing": "image", "status": status}
    return {**common, "detail": "" if status == "ok" else f"{name} is bad", **good, **changes}


def row_of(rows, sizes, reds, frames, labels=None, inputs=None):
    """What a ShardReader sends on: a crop per good row, black but for its first pixel's red."""
    pixels = b""
    for width, height in sizes:
        crops = np.zeros((len(reds), height, width, 3), np.uint8)
        crops[:, 0, 0, 0] = reds
        pixels += crops.tobytes()
    read = {"known": rows, "crop_to_image": np.reshape(frames, (len(sizes), -1, 2, 3)), "labels": labels, "inputs": inputs}
    return {"shard": 7, "rows": pickle.dumps(read), "pixels": pixels, "done": ""}


def predictor(tmp_path, checkpoints, sizes, batch_size=2):
    return Predictor(checkpoints, sizes, str(tmp_path), str(tmp_path / "done" / "x"), "run-a", batch_size, 1, False)


def written(tmp_path, result):
    """The rows that the record is about."""
    record = json.loads(result["record"])
    assert record == journal.read_done(str(tmp_path / "done" / "x"), record["shard"])
    table = storage.read_table(str(tmp_path / record["file"]))
    assert table.schema.equals(PREDICTION)
    assert table.num_rows == record["rows"]
    return record, table.to_pylist()


SCALED = [[2.0, 0, 10], [0, 3, 20]]
PLAIN = np.eye(2, 3).tolist()


# Finding people


def test_a_head_box_of_3_4_5_frames_a_person_by_hand():
    # 30 x 40 px: the diagonal is 50, the scale 0.024 * 50; the body's middle lies 1.39 diagonals below the box's middle (115, 70).
    found = find_person(np.array([[100.0, 50], [130, 90]]), is_box=True)
    assert found == {"center_x": 115.0, "center_y": pytest.approx(70 + 69.5), "scale": pytest.approx(1.2), "person_from": "first_stage"}
    swapped = find_person(np.array([[130.0, 50], [100, 90]]), is_box=True)
    assert swapped == found


@pytest.mark.parametrize(("down", "center"), [((0, 2), (115, 139.5)), ((0, -3), (115, 0.5)), ((1, 0), (184.5, 70)), ((-5, 0), (45.5, 70))])
def test_the_body_lies_below_the_head_whatever_way_up_the_picture_is_stored(down, center):
    found = find_person(np.array([[100.0, 50], [130, 90]]), True, down)
    assert (found["center_x"], found["center_y"]) == pytest.approx(center)


def test_a_pose_of_3_4_5_frames_a_person_by_hand():
    # The head's bone is 50 px, 0.8 of a diagonal of 62.5: scale 1.5. The joints span 0..200 x 10..410.
    points = np.tile([100.0, 200.0], (NUM_JOINTS, 1))
    points[HEAD_TOP], points[UPPER_NECK] = (100, 10), (130, 50)
    points[JOINT["left_wrist"]], points[JOINT["right_wrist"]], points[JOINT["left_ankle"]] = (0, 300), (200, 300), (80, 410)
    found = find_person(points, is_box=False)
    assert found == {"center_x": 100.0, "center_y": 210.0, "scale": pytest.approx(1.5), "person_from": "first_stage"}


def test_the_frame_of_a_person_is_mpiis_for_that_head():
    # MPII: head size = 0.6 x diagonal, and the square's side is 10 head sizes.
    found = find_person(np.array([[100.0, 50], [130, 90]]), is_box=True)
    assert frame_person((0, 0), found["scale"], (1, 1))[0, 0] == pytest.approx(10 * 0.6 * 50)


@pytest.mark.parametrize(
    ("points", "is_box", "detail"),
    [
        ([[5.0, 5], [5, 5]], True, "a head of 0 px"),
        ([[5.0, 5], [5.6, 5.8]], True, "a head of 1 px"),
        ([[np.nan, 5], [7, 8]], True, "a head of nan px"),
        ([[-np.inf, 5], [7, 8]], True, "a head of inf px"),
        ([[5.0, 5]] * NUM_JOINTS, False, "a head of 0 px"),
        ([[np.nan, 5.0]] * NUM_JOINTS, False, "a head of nan px"),
    ],
)
def test_a_head_without_a_size_is_nobody(points, is_box, detail):
    points = np.array(points)
    if is_box and detail == "a head of 1 px":
        assert np.hypot(*(points[1] - points[0])) == pytest.approx(1)
    assert find_person(points, is_box) == {"status": "no_person", "detail": f"the first stage sees {detail}"}


def test_one_joint_astray_is_nobody():
    points = np.tile([100.0, 200.0], (NUM_JOINTS, 1))
    points[HEAD_TOP] = (100, 10)
    points[0, 0] = np.inf
    assert find_person(points, is_box=False)["status"] == "no_person"


def first_stage(load, stub):
    [checkpoint] = load(stub)
    return FirstStage(checkpoint, batch_size=2, num_threads=1, use_gpu=False)


def item(name, **changes):
    nobody = {"center_x": None, "center_y": None, "scale": None, "person_from": None}
    return {"sample_id": name, "uri": f"s3://b/{name}", "size": 5, **nobody, **changes}


def test_the_first_stage_frames_who_is_not_framed_yet(load):
    stage = first_stage(load, Stub("head", (8, 8), HEAD))
    given = {"center_x": 1.0, "center_y": 2.0, "scale": 3.0, "person_from": "center"}
    inputs = [item("a"), item("b"), item("c", **given), item("d")]
    rows = [known("a"), known("b", "empty"), known("c", person_from="center"), known("d")]
    # Image = crop x (10, 10): heads of 40 x 30 px; the red pixel moves the last one by 10 crop px.
    frames = [np.diag([10.0, 10, 0])[:2]] * 3
    found = stage(row_of(rows, [(8, 8)], [0, 0, 10], frames, inputs=inputs))
    assert (found["shard"], found["done"]) == (7, "")
    a, b, c, d = pickle.loads(found["inputs"])
    framed = {"center_x": 40.0, "center_y": pytest.approx(25 + 69.5), "scale": pytest.approx(1.2), "person_from": "first_stage"}
    read = {"status": "ok", "detail": "", "width": 200, "height": 100}
    assert a == item("a", **framed, **read)
    assert d == {**a, "sample_id": "d", "uri": "s3://b/d", "center_x": 140.0}
    assert c == item("c", **given, **read)
    assert b == item("b", status="empty", detail="b is bad", width=None, height=None)


def test_the_first_stage_frames_who_stands_in_a_turned_picture(load):
    # Stored a quarter turn to the left: crop px (x, y) lie at (10 y, 100 - 10 x), and down is to the right.
    stage = first_stage(load, Stub("head", (8, 8), HEAD))
    found = stage(row_of([known("a")], [(8, 8)], [0], [[[0.0, 10, 0], [-10, 0, 100]]], inputs=[item("a")]))
    [row] = pickle.loads(found["inputs"])
    # The head is (10, 40) to (40, 80): 30 x 40 px.
    assert (row["center_x"], row["center_y"], row["scale"]) == (pytest.approx(25 + 69.5), pytest.approx(60), pytest.approx(1.2))


def test_the_first_stage_sees_the_mirrored_picture_too_where_a_flip_test_is_asked_for(load):
    # The red pixel moves the head 2 crop px to the right, the mirrored one has it elsewhere: (4, 1, 8, 4) and (1, 1, 5, 4).
    stub = Stub("head", (8, 8), HEAD)
    [checkpoint] = load(stub)
    stage = FirstStage(checkpoint, batch_size=2, num_threads=1, use_gpu=False, flip_test=True)
    found = stage(row_of([known("a")], [(8, 8)], [2], [np.diag([10.0, 10, 0])[:2]], inputs=[item("a")]))
    [row] = pickle.loads(found["inputs"])
    assert row["center_x"] == pytest.approx(45)
    assert stub.batches == [1, 1]


def test_who_has_no_head_keeps_that(load):
    stage = first_stage(load, Stub("head", (8, 8), [[1.0, 1], [1, 1]]))
    found = stage(row_of([known("a")], [(8, 8)], [0], [PLAIN], inputs=[item("a")]))
    [row] = pickle.loads(found["inputs"])
    assert (row["status"], row["detail"], row["scale"]) == ("no_person", "the first stage sees a head of 0 px", None)
    assert (row["width"], row["height"]) == (200, 100)


def test_the_first_stage_passes_on_what_is_done_and_shards_without_pictures(load):
    stub = Stub("head", (8, 8), HEAD)
    stage = first_stage(load, stub)
    assert stage({"shard": 3, "rows": b"", "pixels": b"", "done": "{}"}) == {"shard": 3, "inputs": b"", "done": "{}"}
    found = stage(row_of([known("a", "empty")], [(8, 8)], [], [], inputs=[item("a")]))
    assert [row["status"] for row in pickle.loads(found["inputs"])] == ["empty"]
    assert stub.batches == []


# Rows


def test_points_are_mapped_to_the_image_and_rows_keep_their_order(load, tmp_path):
    checkpoints = load(Stub("head", (8, 8), HEAD))
    rows = [known("a"), known("b", "missing"), known("c"), known("d", "truncated"), known("e", "truncated")]
    result = predictor(tmp_path, checkpoints, [(8, 8)])(row_of(rows, [(8, 8)], [0, 50], [SCALED, PLAIN]))
    record, (a, b, c, d, e) = written(tmp_path, result)
    assert (record["shard"], record["rows"], record["statuses"]) == (7, 5, {"missing": 1, "ok": 2, "truncated": 2})
    assert record["examples"] == {
        "missing": [["s3://b/b", "b is bad"]],
        "truncated": [[f"s3://b/{name}", f"{name} is bad"] for name in "de"],
    }
    # (2, 1) and (6, 4) by x * 2 + 10, y * 3 + 20; and moved right by 50 where the frame is the picture's own.
    assert a["head_box"] == [14, 23, 22, 32]
    assert c["head_box"] == [52, 1, 56, 4]
    assert a["crop_to_image"] == [2, 0, 10, 0, 3, 20]
    assert [row["sample_id"] for row in (a, b, c, d, e)] == list("abcde")
    assert [row["status"] for row in (a, b, c, d, e)] == ["ok", "missing", "ok", "truncated", "truncated"]
    for row in (a, b, c):
        assert (row["task"], row["model_id"], row["run_id"]) == ("head", "id-head", "run-a")
    for name in ("head_box", "joints", "crop_to_image", "is_inside", "width", "head_iou", "true_joints"):
        assert b[name] is None
    assert b["detail"] == "b is bad"


def test_two_models_fill_one_row_each_from_crops_of_its_size(load, tmp_path):
    confidence = [np.linspace(0, 1, NUM_JOINTS).tolist()]
    checkpoints = load(Stub("pose", (16, 8), pose(head_top=(5, 6)), confidence), Stub("head", (8, 8), HEAD, [[0.25, 0.75]]))
    frames = [[SCALED], [frame_image(200, 100, (16, 8))]]
    result = predictor(tmp_path, checkpoints, [(8, 8), (16, 8)])(row_of([known("a")], [(8, 8), (16, 8)], [0], frames))
    _, [row] = written(tmp_path, result)
    assert (row["task"], row["model_id"]) == ("pose+head", "id-pose+id-head")
    assert row["head_box"] == [14, 23, 22, 32]
    assert row["head_confidence"] == 0.5
    # 200 x 100 on 16 x 8: image = (crop + 0.5) * 12.5 - 0.5.
    np.testing.assert_allclose(np.reshape(row["joints"], (-1, 2))[HEAD_TOP], [68.25, 80.75])
    np.testing.assert_allclose(row["joint_confidence"], confidence[0], atol=1e-7)
    assert row["crop_to_image"] == SCALED[0] + SCALED[1], "the first of the sizes"


def test_an_ensemble_averages_points_in_image_px_by_their_confidence(load, tmp_path):
    sure, unsure = [[0.75] * NUM_JOINTS], [[0.25] * NUM_JOINTS]
    poses = (Stub("pose", (8, 8), pose(head_top=(2, 1)), sure), Stub("pose", (16, 16), pose(head_top=(5, 6)), unsure))
    checkpoints = load(poses[0], poses[1], Stub("head", (8, 8), HEAD))
    result = predictor(tmp_path, checkpoints, ((8, 8), (16, 16)))(row_of([known("a")], [(8, 8), (16, 16)], [0], [[SCALED], [PLAIN]]))
    _, [row] = written(tmp_path, result)
    assert (row["task"], row["model_id"]) == ("pose+head", "id-pose,id-pose1+id-head")
    # (14, 23) and (5, 6): 3/4 of one and 1/4 of the other.
    np.testing.assert_allclose(np.reshape(row["joints"], (-1, 2))[HEAD_TOP], [11.75, 18.75])
    assert row["joint_confidence"] == [0.5] * NUM_JOINTS
    assert row["head_box"] == [14, 23, 22, 32]


def test_an_ensemble_of_equal_models_predicts_what_one_does(load, tmp_path):
    stubs = [Stub("pose", (8, 8), pose(head_top=(2, 1)), [[0.3] * NUM_JOINTS]) for _ in range(2)]
    rows = [
        written(
            tmp_path / str(count),
            predictor(tmp_path / str(count), load(*stubs[:count]), ((8, 8),))(row_of([known("a")], [(8, 8)], [3], [SCALED])),
        )
        for count in (1, 2)
    ]
    (_, [one]), (_, [two]) = rows
    assert (one["joints"], one["joint_confidence"]) == (two["joints"], two["joint_confidence"])


def test_an_ensembles_boxes_may_have_their_corners_in_any_order(load, tmp_path):
    # In image px: (14, 23, 22, 32), and the same box once more, 2 crop px to the right.
    checkpoints = load(Stub("head", (8, 8), HEAD, [[0.5, 0.5]]), Stub("head", (8, 8), [[8.0, 1.0], [4.0, 4.0]]))
    _, [row] = written(tmp_path, predictor(tmp_path, checkpoints, ((8, 8),))(row_of([known("a")], [(8, 8)], [0], [SCALED])))
    assert row["head_box"] == [16, 23, 24, 32]
    assert row["head_confidence"] is None


def test_flip_test_and_scales_reach_the_models(load, tmp_path):
    stub = Stub("head", (8, 8), HEAD)
    models = Predictor(load(stub), ((8, 8),), str(tmp_path), str(tmp_path / "done" / "x"), "a", 2, 1, False, True, (1.0, 2.0))
    stub.predict = lambda pixels: (stub.batches.append(len(pixels)), (torch.tensor([HEAD]).double().repeat(len(pixels), 1, 1), None))[1]
    _, [row] = written(tmp_path, models(row_of([known("a")], [(8, 8)], [0], [PLAIN])))
    assert stub.batches == [1] * 4
    # Averaged with its mirror image (1, 1, 5, 4) the box is (1.5, 1, 5.5, 4); seen twice as large about (3.5, 3.5): (2.5, 2.25, 4.5, 3.75).
    assert row["head_box"] == [2, 1.625, 5, 3.875]


def test_where_the_head_of_a_network_knows_no_confidence_there_is_none(load, tmp_path):
    _, [row] = written(
        tmp_path, predictor(tmp_path, load(Stub("pose", (8, 8), pose())), [(8, 8)])(row_of([known("a")], [(8, 8)], [0], [PLAIN]))
    )
    assert row["joint_confidence"] is row["head_confidence"] is None


def test_crops_go_through_the_model_in_batches(load, tmp_path):
    stub = Stub("head", (8, 8), HEAD)
    rows = [known(str(index)) for index in range(5)]
    result = predictor(tmp_path, load(stub), [(8, 8)], batch_size=2)(row_of(rows, [(8, 8)], range(5), [PLAIN] * 5))
    assert stub.batches == [2, 2, 1]
    assert [row["head_box"][0] for row in written(tmp_path, result)[1]] == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("task", ["pose", "head"])
def test_a_shard_without_a_good_row_is_committed_too(load, tmp_path, task):
    stub = Stub(task, (8, 8), pose() if task == "pose" else HEAD, [[0.5] * (16 if task == "pose" else 2)])
    result = predictor(tmp_path, load(stub), [(8, 8)])(row_of([known("a", "empty"), known("b", "missing")], [(8, 8)], [], []))
    record, rows = written(tmp_path, result)
    assert record["statuses"] == {"empty": 1, "missing": 1}
    assert [row["joints"] for row in rows] == [None, None]
    assert stub.batches == []


def test_points_that_are_no_numbers_are_stored_as_they_are(load, tmp_path):
    points = pose(head_top=(np.nan, 1), pelvis=(np.inf, 2), thorax=(3, -np.inf))
    _, [row] = written(
        tmp_path, predictor(tmp_path, load(Stub("pose", (8, 8), points)), [(8, 8)])(row_of([known("a")], [(8, 8)], [0], [PLAIN]))
    )
    joints = np.reshape(row["joints"], (NUM_JOINTS, 2))
    assert np.isfinite(joints).all(axis=1).tolist() == np.isfinite(points).all(axis=1).tolist()
    assert row["status"] == "ok"
    assert [index for index, is_inside in enumerate(row["is_inside"]) if not is_inside] == sorted(
        JOINT[name] for name in ("head_top", "pelvis", "thorax")
    )


def test_a_shard_that_is_done_is_passed_on(load, tmp_path):
    assert predictor(tmp_path, load(Stub("head", (8, 8), HEAD)), [(8, 8)])(
        {"shard": 3, "rows": b"", "pixels": b"", "done": '{"x": 1}'}
    ) == {"record": '{"x": 1}'}
    assert storage.list_files(str(tmp_path)) == []


def test_the_same_shard_gives_the_same_bytes(load, tmp_path):
    results = [
        json.loads(
            predictor(tmp_path / name, load(Stub("head", (8, 8), HEAD)), [(8, 8)])(row_of([known("a")], [(8, 8)], [3], [SCALED]))["record"]
        )
        for name in ("one", "two")
    ]
    assert results[0] == results[1]


# Inside


def test_a_joint_is_inside_up_to_the_outer_edge_of_the_last_pixel(load, tmp_path):
    # 200 x 100 px: x from -0.5 to 199.5, y from -0.5 to 99.5. All others lie at (0, 0).
    outside = {"head_top": (-0.51, 5), "pelvis": (199.51, 5), "thorax": (5, -0.51), "left_knee": (5, 99.51), "left_hip": (-1, -1)}
    inside = {"right_knee": (-0.5, -0.5), "right_hip": (199.5, 99.5), "right_wrist": (199.5, -0.5)}
    stub = Stub("pose", (8, 8), pose(**outside, **inside))
    _, [row] = written(tmp_path, predictor(tmp_path, load(stub), [(8, 8)])(row_of([known("a")], [(8, 8)], [0], [PLAIN])))
    assert {name for name, place in JOINT.items() if not row["is_inside"][place]} == set(outside)


def test_the_picture_that_counts_is_the_rows_own(load, tmp_path):
    rows = [known("a", width=10), known("b", "empty"), known("c", width=30)]
    stub = Stub("pose", (8, 8), pose(head_top=(20, 5)))
    _, found = written(tmp_path, predictor(tmp_path, load(stub), [(8, 8)])(row_of(rows, [(8, 8)], [0, 0], [PLAIN] * 2)))
    assert [row["is_inside"] and row["is_inside"][HEAD_TOP] for row in found] == [False, None, True]


# Labels


def test_labelled_rows_say_how_far_off_they_are(load, tmp_path):
    joints = np.full((1, NUM_JOINTS, 2), np.nan)
    joints[0, JOINT["left_knee"]], joints[0, JOINT["right_knee"]], joints[0, JOINT["pelvis"]] = (3, 4), (8, 4), (50, 50)
    labels = {
        "crop_to_image": np.array([SCALED]),
        "joints": joints,
        "is_annotated": np.isfinite(joints).all(axis=2),
        "is_visible": [[None] * 4 + [True] + [None] * 11],
        "head_box": np.array([[2.0, 1, 6, 4]]),
        "head_size": np.array([10.0]),
        "head_bone": np.array([40 / 3]),
    }
    # In image px the knees are 4 and 6 px off, the pelvis (which official PCKh does not count) 60.
    points = pose(left_knee=(5, 4), right_knee=(5, 4), pelvis=(20, 50))
    checkpoints = load(Stub("pose", (8, 8), points), Stub("head", (8, 8), [[4.0, 1], [8, 4]]))
    _, [row] = written(
        tmp_path, predictor(tmp_path, checkpoints, [(8, 8)])(row_of([known("a", split="val")], [(8, 8)], [0], [SCALED], labels))
    )
    errors = {name: row["joint_error"][place] for name, place in JOINT.items() if row["joint_error"][place] is not None}
    assert errors == {"left_knee": pytest.approx(0.4), "right_knee": pytest.approx(0.6), "pelvis": pytest.approx(6)}
    assert row["pckh"] == pytest.approx(1 / 2)
    assert row["pckh_bone"] == pytest.approx(2 / 3)
    # Boxes of 8 x 9 px that overlap by half: 1 / 3.
    assert row["head_iou"] == pytest.approx(1 / 3)
    assert row["true_head_box"] == [14, 23, 22, 32]
    true_joints = np.array(row["true_joints"], dtype=float).reshape(NUM_JOINTS, 2)
    np.testing.assert_allclose(true_joints[JOINT["left_knee"]], [16, 32])
    assert np.isfinite(true_joints).all(axis=1).sum() == 3
    assert (row["head_size"], row["head_bone"]) == (10, pytest.approx(40 / 3))
    assert row["is_visible"][4] is True
    assert row["split"] == "val"


def test_people_without_labels_have_no_errors(load, tmp_path):
    joints = np.full((1, NUM_JOINTS, 2), np.nan)
    nan = np.array([np.nan])
    labels = {
        "crop_to_image": np.array([SCALED]),
        "joints": joints,
        "is_annotated": np.zeros((1, NUM_JOINTS), bool),
        "is_visible": [None],
        "head_box": np.full((1, 4), np.nan),
        "head_size": nan,
        "head_bone": nan,
    }
    checkpoints = load(Stub("pose", (8, 8), pose()), Stub("head", (8, 8), HEAD))
    _, [row] = written(tmp_path, predictor(tmp_path, checkpoints, [(8, 8)])(row_of([known("a")], [(8, 8)], [0], [SCALED], labels)))
    assert row["joint_error"] == [None] * NUM_JOINTS
    for name in ("pckh", "pckh_bone", "head_iou", "true_head_box", "head_size", "head_bone"):
        assert row[name] is None
    assert row["joints"] is not None


def test_examples_are_the_first_few_of_each_status(load, tmp_path):
    rows = [known(f"{index}", "missing" if index % 2 else "empty") for index in range(12)]
    record, _ = written(tmp_path, predictor(tmp_path, load(Stub("head", (8, 8), HEAD)), [(8, 8)])(row_of(rows, [(8, 8)], [], [])))
    assert {name: [uri[-1] for uri, _ in found] for name, found in record["examples"].items()} == {
        "empty": ["0", "2", "4"],
        "missing": ["1", "3", "5"],
    }
