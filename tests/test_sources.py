"""sources.py, truths.py and arrays.py: predictions of every origin end beside the right labels, or are refused with the reason."""

import io

import h5py
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from scipy.io import savemat
from test_samples import build_sample

from benchmarks.report import draw_rows, write_predictions
from posepipe import arrays, people, predictions, results, samples, slices, sources, storage, truths
from posepipe.columns import list_array
from posepipe.sources import open_sources
from posepipe.truths import NOT_PREDICTED, read_truth

NUM = 7
PICTURES = ["a.jpg"]


@pytest.fixture
def labels():
    """Labels of seven people as in a published set: 1-based, meaningless where not annotated."""
    random = np.random.default_rng(0)
    joints = random.uniform(1, 500, (NUM, 16, 2))
    annotated = random.random((NUM, 16)) < 0.8
    annotated[:, 8:10] = True
    corner = random.uniform(1, 400, (NUM, 1, 2))
    return {"joints": joints, "annotated": annotated, "headboxes": np.concatenate([corner, corner + np.array([30, 40])], axis=1)}


@pytest.fixture
def truth_uri(labels, tmp_path):
    np.savez(tmp_path / "truth.npz", **labels)
    return str(tmp_path / "truth.npz")


def write_array(path, **named):
    """The arrays as the programs write them: MATLAB holds axes in Fortran order, which a v7.3 file shows in reverse."""
    if path.suffix == ".npz":
        np.savez(path, **named)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file.update(named)
    elif path.stem.endswith("73"):
        with h5py.File(path, "w", userblock_size=512) as file:
            file.update({name: array.T for name, array in named.items()})
    else:
        savemat(path, named)
    return str(path)


def only_people(found):
    return people.from_table(found.parts[0].load(people.COLUMNS))


# Array files


@pytest.mark.parametrize("name", ["preds.npz", "preds_valid.mat", "preds73.mat", "preds.h5"])
def test_every_kind_of_file_gives_the_same_people(labels, truth_uri, tmp_path, name):
    uri = write_array(tmp_path / name, preds=labels["joints"] + [3, 4])
    truth = read_truth(truth_uri, "val", 1, "")
    (found,) = open_sources([uri], truth, 1)
    part = only_people(found)
    assert found.name == name.rpartition(".")[0]
    # 3-4-5 triangles; a head box of 30 x 40 px has the head size 30.
    np.testing.assert_allclose(part.joint_error[labels["annotated"]], 5 / 30)
    assert np.isnan(part.joint_error[~labels["annotated"]]).all()
    np.testing.assert_allclose(part.joints, labels["joints"] + [2, 3])
    np.testing.assert_allclose(list_array(truth.labels["true_head_box"], 2, 2), labels["headboxes"] - 1)


def test_labels_in_the_layout_of_hrnet_are_the_same_labels(labels, truth_uri, tmp_path):
    uri = write_array(
        tmp_path / "gt_valid.mat",
        jnt_missing=(~labels["annotated"]).T.astype(float),
        pos_gt_src=labels["joints"].transpose(1, 2, 0),
        headboxes_src=labels["headboxes"].transpose(1, 2, 0),
    )
    assert read_truth(uri, "val", 1, "").labels.equals(read_truth(truth_uri, "val", 1, "").labels)


def write_samples(folder, framing):
    """Two train samples and one of validation, on a 200 x 100 picture, with the head box (10, 20, 40, 60) and two joints."""
    sink = io.BytesIO()
    Image.new("RGB", (200, 100)).save(sink, "JPEG")
    joints = np.full((16, 2), np.nan)
    joints[[8, 9]] = (25, 60), (25, 20)
    person = {
        "joints": joints.ravel(),
        "is_annotated": np.isfinite(joints).all(axis=1),
        "is_visible": [None] * 9 + [True] + [None] * 6,
        "head_box": [10.0, 20, 40, 60],
        "center": [60.0, 50.0],
        "scale": 0.4,
        "activity": "sports",
    }
    files = []
    for split, numbers in (("train", [0, 1]), ("val", [2])):
        rows = [
            build_sample(sink.getvalue(), {**person, "image": f"{n}.jpg", "person_index": n, "split": split}, framing, (64, 64))
            for n in numbers
        ]
        storage.write_table(str(folder / split / "part-00000.parquet"), pa.Table.from_pylist(rows, samples.SAMPLE))
        files.append({"file": f"{split}/part-00000.parquet", "split": split, "rows": len(rows)})
    rows = {"train": 2, "val": 1, "test": 0}
    storage.write_json(str(folder / storage.MANIFEST), {"files": files, "rows": rows, "images_uri": "s3://mpii/images"})
    return joints


@pytest.mark.parametrize("framing", ["image", "person"])
def test_samples_are_a_truth_in_px_of_their_pictures(tmp_path, framing):
    joints = write_samples(tmp_path / "samples", framing)
    truth = read_truth(str(tmp_path / "samples"), "train", None, "")
    assert truth.labels["sample_id"].to_pylist() == ["0.jpg#0", "1.jpg#1"]
    assert truth.labels["uri"][1].as_py() == "s3://mpii/images/1.jpg"
    np.testing.assert_allclose(list_array(truth.labels["true_joints"], 16, 2), [joints] * 2, atol=1e-3)
    np.testing.assert_allclose(list_array(truth.labels["true_head_box"], 4), [[10, 20, 40, 60]] * 2, atol=1e-3)
    uri = write_array(tmp_path / "preds.npz", preds=np.array([joints + np.array([3, 4])] * 2))
    part = only_people(open_sources([uri], truth, 0)[0])
    np.testing.assert_allclose(part.joint_error[:, [8, 9]], 5 / 30, atol=1e-4)
    assert part.is_visible[0, 9] == 1
    assert part.activity.tolist() == ["sports"] * 2
    assert part.picture_size.tolist() == [[200, 100]] * 2
    with pytest.raises(ValueError, match="has no test samples; rows per split"):
        read_truth(str(tmp_path / "samples"), "test", None, "")
    older = tmp_path / "samples" / "val" / "part-00000.parquet"
    storage.write_table(str(older), storage.read_table(str(older)).drop_columns(["activity"]))
    with pytest.raises(ValueError, match=r"part-00000.parquet was written by another version .*activity.*; prepare again"):
        read_truth(str(tmp_path / "samples"), "val", None, "")


def test_each_array_of_a_file_is_a_run_and_one_can_be_named(labels, truth_uri, tmp_path):
    uri = write_array(tmp_path / "two.npz", one=labels["joints"], two=labels["joints"] + 1, others=np.zeros((NUM, 16)))
    truth = read_truth(truth_uri, "val", 1, "")
    assert [found.name for found in open_sources([uri], truth, 1)] == ["one", "two"]
    assert [(found.name, found.uri) for found in open_sources([f"{uri}::two"], truth, 1)] == [("two", f"{uri}::two")]


def test_the_first_pixel_is_never_guessed(labels, truth_uri, tmp_path):
    uri = write_array(tmp_path / "preds.npz", preds=labels["joints"])
    with pytest.raises(ValueError, match=r"truth.npz is an array file: say with --first-pixel whether its coordinates start at 1"):
        read_truth(truth_uri, "val", None, "")
    with pytest.raises(ValueError, match=r"preds.npz is an array file: say with --first-pixel"):
        open_sources([uri], read_truth(truth_uri, "val", 1, ""), None)
    zero, one = (only_people(open_sources([uri], read_truth(truth_uri, "val", first, ""), first)[0]) for first in (0, 1))
    np.testing.assert_allclose(zero.joints, one.joints + 1)
    np.testing.assert_array_equal(zero.joint_error, one.joint_error)


@pytest.mark.parametrize("number", [NUM - 1, NUM + 1])
def test_an_array_with_a_person_too_many_or_too_few_is_refused_with_both_numbers(labels, truth_uri, tmp_path, number):
    uri = write_array(tmp_path / "preds.npz", preds=np.zeros((number, 16, 2)))
    with pytest.raises(ValueError, match=rf"preds.npz::preds has {number} people, its truth .*truth.npz has {NUM}"):
        open_sources([uri], read_truth(truth_uri, "val", 1, ""), 1)


def test_what_is_wrong_with_an_array_file_is_said(labels, truth_uri, tmp_path):
    truth = read_truth(truth_uri, "val", 1, "")
    with pytest.raises(ValueError, match=r"expected an array of shape \(N, 16, 2\), got a \(3, 14, 2\), b \(3,\)"):
        open_sources([write_array(tmp_path / "x.npz", a=np.zeros((3, 14, 2)), b=np.zeros(3))], truth, 1)
    with pytest.raises(ValueError, match=r"has no array 'c'; it has a"):
        open_sources([write_array(tmp_path / "y.npz", a=labels["joints"]) + "::c"], truth, 1)
    with pytest.raises(ValueError, match=r"no file at .*none.npz"):
        open_sources([str(tmp_path / "none.npz")], truth, 1)
    for suffix in ("npz", "mat", "h5"):
        (tmp_path / f"bad.{suffix}").write_bytes(b"something else" * 99)
        with pytest.raises(ValueError, match=rf"bad.{suffix} cannot be read as {suffix}"):
            open_sources([str(tmp_path / f"bad.{suffix}")], truth, 1)
    with pytest.raises(ValueError, match=r"holds joints without labels: say with --truth-uri"):
        open_sources([str(tmp_path / "y.npz")], None, 1)
    with pytest.raises(ValueError, match=r"holds no labels that are known: .*; got a"):
        read_truth(str(tmp_path / "y.npz"), "val", 1, "")
    np.savez(tmp_path / "odd.npz", **labels | {"annotated": labels["annotated"][:3]})
    with pytest.raises(ValueError, match=r"annotated has shape \(3, 16\); expected \(7, 16\)"):
        read_truth(str(tmp_path / "odd.npz"), "val", 1, "")


def test_a_prediction_that_is_not_finite_is_a_miss(labels, truth_uri, tmp_path):
    joints = labels["joints"].copy()
    joints[0, 9, 1] = np.nan
    (found,) = open_sources([write_array(tmp_path / "preds.npz", preds=joints)], read_truth(truth_uri, "val", 1, ""), 1)
    part = only_people(found)
    assert part.joint_error[0, 9] == np.inf
    assert np.isnan(part.joints[0, 9]).all()


def test_names_of_pictures_and_people_come_from_the_labels(labels, tmp_path):
    named = {"image": np.array([f"{index}.jpg" for index in range(NUM)]), "rect_id": np.arange(NUM) + 1}
    uri = write_array(tmp_path / "truth.npz", **labels, **named)
    found = read_truth(uri, "val", 1, "s3://bucket/images").labels
    assert (found["sample_id"][2].as_py(), found["uri"][2].as_py()) == ("2.jpg#2", "s3://bucket/images/2.jpg")


def test_the_mean_pose_is_a_run_where_the_truth_says_where_people_are(labels, tmp_path):
    place = {"objpos": labels["joints"].mean(axis=1), "scale": np.full(NUM, 2.0)}
    truth = read_truth(write_array(tmp_path / "truth.npz", **labels, **place), "val", 1, "")
    found = open_sources([write_array(tmp_path / "preds.npz", preds=labels["joints"])], truth, 1)
    assert [source.name for source in found] == ["preds", sources.MEAN_POSE]
    relative = np.where(labels["annotated"][..., None], (labels["joints"] - place["objpos"][:, None]) / 2, np.nan)
    expected = place["objpos"][:, None] + 2 * np.nanmean(relative, axis=0) - 1
    np.testing.assert_allclose(only_people(found[1]).joints, expected)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://a/b.npz::preds", ("s3://a/b.npz", "preds")),
        ("b.mat", ("b.mat", "")),
        ("zip::s3://a/folder", ("zip::s3://a/folder", "")),
        ("a::b.h5::c", ("a::b.h5", "c")),
    ],
)
def test_a_key_stands_behind_a_file(uri, expected):
    assert arrays.split_key(uri) == expected


# Folders of predictions


@pytest.fixture
def folder(tmp_path):
    uri = str(tmp_path / "scored")
    write_predictions(uri, [draw_rows(np.arange(start, start + 4), 0.3, PICTURES) for start in (0, 4, 8)])
    return uri


def truth_of(rows):
    return truths.Truth("truth", rows.select(truths.LABELS).cast(truths.WIDE_PREDICTION.empty_table().select(truths.LABELS).schema))


def test_rows_are_found_by_their_number_in_their_file(folder):
    (found,) = open_sources([folder], None, None)
    assert (found.num_rows, found.locate(0), found.locate(5), found.locate(11)) == (
        12,
        ("part-000000.parquet", 0),
        ("part-000001.parquet", 1),
        ("part-000002.parquet", 3),
    )
    assert [row["sample_id"] for row in found.read_rows([11, 0, 5])] == ["00000011.jpg#0", "00000000.jpg#0", "00000005.jpg#0"]


def test_chunks_hold_all_rows_in_their_order(folder, monkeypatch):
    (found,) = open_sources([folder], None, None)
    for size in (1, 3, 5, 100):
        monkeypatch.setattr(sources, "CHUNK", size)
        tables = list(found.chunks(["sample_id"]))
        assert [value for table in tables for value in table["sample_id"].to_pylist()] == [f"{index:08d}.jpg#0" for index in range(12)]
        assert max(table.num_rows for table in tables) <= size


def test_labels_of_a_truth_take_the_place_of_those_in_the_rows(folder):
    table = predictions.read_predictions(folder)
    (own,), (joined,) = (open_sources([folder], truth, None) for truth in (None, truth_of(table.take(list(range(11, -1, -1))))))
    one, other = (people.from_table(next(found.chunks(people.COLUMNS))) for found in (own, joined))
    assert joined.notes == ()
    np.testing.assert_allclose(other.joint_error, one.joint_error, atol=1e-4)
    np.testing.assert_allclose(other.person_error, one.person_error, atol=1e-4)
    np.testing.assert_array_equal(other.head_box, one.head_box)


def test_people_too_few_and_too_many_are_named_and_nobody_is_misaligned(folder):
    table = predictions.read_predictions(folder)
    stranger = draw_rows(np.array([99]), 0.3, PICTURES)
    truth = truth_of(pa.concat_tables([table.slice(2), stranger]))
    (found,) = open_sources([folder], truth, None)
    assert found.notes == (
        "1 people of the truth have no prediction and count as misses; missing: 00000099.jpg#0",
        "2 predictions are of nobody in the truth and are not scored; extra: 00000000.jpg#0, 00000001.jpg#0",
    )
    result = results.evaluate(found)
    assert result.statuses == {"ok": 12, NOT_PREDICTED: 1}
    assert result.counts.pose.num_people == 11
    assert result.counts.pose.num_missing == np.isfinite(list_array(stranger["true_joints"], 16, 2)).all(axis=2).sum()
    own = results.evaluate(open_sources([folder], None, None)[0])
    np.testing.assert_allclose(result.person_errors[2:12], own.person_errors[2:], atol=1e-4)
    assert np.isnan(result.person_errors[:2]).all()
    assert result.person_errors[12] == 1
    assert found.locate(12) == ("people without a prediction", 0)


def with_status(rows, place, status):
    """The rows, one of which was not predicted."""
    found = rows.to_pylist()
    kept = ("sample_id", "uri", "task")
    found[place] = {**dict.fromkeys(found[place]), **{name: found[place][name] for name in kept}, "status": status, "detail": "bad"}
    return pa.Table.from_pylist(found, predictions.PREDICTION)


def test_people_without_a_prediction_are_misses_of_the_runs_own_tasks(tmp_path):
    drawn = draw_rows(np.arange(12), 0.01, PICTURES)
    truth = truth_of(drawn)
    for task in ("head", "pose", "head+pose"):
        blank = {"head": ("joints", "joint_error", "pckh", "pckh_bone"), "pose": ("head_box", "head_iou")}.get(task, ())
        rows = [{**row, "task": task, **dict.fromkeys(blank)} for row in drawn.slice(0, 9).to_pylist()]
        uri = str(tmp_path / task)
        write_predictions(uri, [pa.Table.from_pylist(rows, predictions.PREDICTION)])
        result = results.evaluate(open_sources([uri], truth, None)[0])
        assert result.has_pose == ("pose" in task)
        assert result.counts.pose.num_people == (12 if "pose" in task else 0)
        assert result.counts.head.boxes.num_boxes == (12 if "head" in task else 0)
        if "head" in task:
            assert result.counts.head.boxes.iou_at_50 == pytest.approx(9 / 12)


def test_people_whose_row_was_not_predicted_are_misses_and_named(tmp_path):
    rows = draw_rows(np.arange(6), 0.01, PICTURES)
    write_predictions(str(tmp_path), [with_status(rows, 2, "corrupt")])
    (found,) = open_sources([str(tmp_path)], truth_of(rows), None)
    assert found.notes == ("1 people of the truth have a row that is not ok and count as misses: 1 corrupt",)
    assert results.evaluate(found).counts.pose.num_people == 6


def test_a_picture_is_found_where_the_row_says_unless_the_truth_names_a_place(folder):
    rows = predictions.read_predictions(folder)
    own = rows["uri"].to_pylist()
    for uris, expected in (
        (["x.jpg"] * 12, own),
        (["/there/x.jpg"] * 12, ["/there/x.jpg"] * 12),
        (["s3://b/x.jpg"] * 12, ["s3://b/x.jpg"] * 12),
    ):
        truth = truth_of(rows.set_column(rows.column_names.index("uri"), "uri", pa.array(uris)))
        (found,) = open_sources([folder], truth, None)
        assert [row["uri"] for row in found.read_rows(range(12))] == expected


def test_the_most_frequent_activities_are_kept_apart(tmp_path, monkeypatch):
    rows = draw_rows(np.arange(100), 0.3, PICTURES).to_pylist()
    names = [f"act{number:02d}" for number in range(25) for _ in range(1 + number // 6)]
    rows = rows[: len(names)]
    for row, name in zip(rows, names, strict=True):
        row["activity"] = name
    write_predictions(str(tmp_path), [pa.Table.from_pylist(rows, predictions.PREDICTION)])
    found, choose = [], slices.choose_slicing
    monkeypatch.setattr(slices, "choose_slicing", lambda *given: found.append(choose(*given)) or found[-1])
    results.evaluate(open_sources([str(tmp_path)], None, None)[0])
    assert found[0].activities[0] == "act24"
    assert "act01" not in found[0].activities


def test_predictions_of_other_people_altogether_are_refused(folder):
    with pytest.raises(ValueError, match=r"none of the 12 predictions of .* is of a person of truth; predicted: 00000000.jpg#0, "):
        open_sources([folder], truth_of(draw_rows(np.arange(50, 55), 0.3, PICTURES)), None)


def test_an_unfinished_folder_and_one_of_another_version_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="no complete predictions at"):
        open_sources([str(tmp_path)], None, None)
    write_predictions(str(tmp_path / "old"), [draw_rows(np.arange(3), 0.3, PICTURES).drop_columns(["activity"])])
    (found,) = open_sources([str(tmp_path / "old")], None, None)
    with pytest.raises(ValueError, match=r"part-000000.parquet has no column activity: it was written by another version"):
        results.evaluate(found)


def test_runs_of_one_name_are_told_apart(tmp_path):
    for parent in ("one", "two"):
        write_predictions(str(tmp_path / parent / "pose"), [draw_rows(np.arange(3), 0.3, PICTURES)])
    write_predictions(str(tmp_path / "head"), [draw_rows(np.arange(3), 0.3, PICTURES)])
    found = open_sources([str(tmp_path / name) for name in ("one/pose", "head", "two/pose")], None, None)
    assert [source.name for source in found] == ["one/pose", "head", "two/pose"]


# Results


def test_nobody_is_a_clear_error(tmp_path):
    write_predictions(str(tmp_path), [])
    with pytest.raises(ValueError, match="holds no people: expected at least one row of predictions, got 0"):
        results.evaluate(open_sources([str(tmp_path)], None, None)[0])


def test_two_rows_of_one_person_are_an_error(tmp_path):
    table = draw_rows(np.arange(3), 0.3, PICTURES)
    write_predictions(str(tmp_path), [table, table.slice(1, 1)])
    with pytest.raises(ValueError, match=r"has 1 rows whose sample_id another row has too, '00000001.jpg#0' among them"):
        results.evaluate(open_sources([str(tmp_path)], None, None)[0])


def test_rows_that_were_not_predicted_are_counted_and_some_are_shown(tmp_path):
    rows = draw_rows(np.arange(6), 0.3, PICTURES).to_pylist()
    for row in rows[1:]:
        row |= {**dict.fromkeys(row), "sample_id": row["sample_id"], "uri": row["uri"], "status": "truncated", "detail": "half a JPEG"}
    write_predictions(str(tmp_path), [pa.Table.from_pylist(rows, predictions.PREDICTION)])
    result = results.evaluate(open_sources([str(tmp_path)], None, None)[0])
    assert result.statuses == {"ok": 1, "truncated": 5}
    assert [item["row"] for item in result.examples] == [1, 2, 3]
    assert result.examples[0]["detail"] == "half a JPEG"
    assert result.counts.pose.num_people == 1
    assert result.is_predicted.tolist() == [True] + [False] * 5


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1], ([0], [], [])),
        ([0.2, 0.1], ([1], [], [0])),
        ([0.3, 0.1, np.nan, 0.2], ([1], [3], [0])),
        (np.arange(10) / 10, ([0, 1], [4, 5], [9, 8])),
        ([np.nan], ([], [], [])),
    ],
)
def test_best_median_and_worst_share_few_people_out(values, expected):
    found = results.extremes(np.array(values, float), 2)
    assert tuple(rows.tolist() for rows in found.values()) == expected


def test_people_of_two_runs_are_matched_by_their_ids(tmp_path):
    found = []
    for name, numbers in (("one", [0, 1, 2, 3]), ("two", [5, 3, 1])):
        write_predictions(str(tmp_path / name), [draw_rows(np.array([number]), 0.3, PICTURES) for number in numbers])
        found.append(results.evaluate(open_sources([str(tmp_path / name)], None, None)[0]))
    rows, other_rows, only_one, only_other = results.match(*found)
    assert (rows.tolist(), other_rows.tolist()) == ([1, 3], [2, 1])
    assert (only_one, only_other) == (["00000000.jpg#0", "00000002.jpg#0"], ["00000005.jpg#0"])
