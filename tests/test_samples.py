"""samples.py: one sample from one picture and one person, its round trip through the table, and the manifest."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from posepipe import storage
from posepipe.geometry import transform
from posepipe.images import ImageError, crop, cut_margin, decode_jpeg, read_header
from posepipe.mpii import PERSON, read_annotations
from posepipe.samples import ERROR, SAMPLE, build_table, crop_margin, crop_size, cut, label_arrays, list_split, read_manifest
from posepipe.skeleton import JOINT, NUM_JOINTS

WIDTH, HEIGHT, SIZE = 400, 200, (100, 100)


def person(**changes):
    """A PERSON row with its split: three joints, the other thirteen not annotated."""
    joints = np.full((NUM_JOINTS, 2), np.nan)
    for name, point in {"left_knee": (299.5, 149.5), "head_top": (200.0, 40.0), "upper_neck": (230.0, 80.0)}.items():
        joints[JOINT[name]] = point
    row = {
        "image": "a.jpg",
        "person_index": 2,
        "is_train": True,
        "split": "train",
        "has_joints": True,
        "joints": joints.ravel().tolist(),
        "is_annotated": np.isfinite(joints).all(axis=1).tolist(),
        "is_visible": [None] * 4 + [False] + [None] * 11,
        "head_box": [199.5, 29.5, 239.5, 59.5],
        "center": [250.0, 120.0],
        "scale": 0.8,
        "activity": "sports",
        "video": None,
    }
    assert set(row) == {*PERSON.names, "split"}
    return row | changes


def picture(at=(299, 149), orientation=1):
    """A black JPEG with a white disc around one pixel."""
    image = Image.new("RGB", (WIDTH, HEIGHT))
    ImageDraw.Draw(image).ellipse([at[0] - 8, at[1] - 8, at[0] + 8, at[1] + 8], fill="white")
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=95, exif=exif)
    return sink.getvalue()


def build_sample(data, person, framing, size, margin=(0, 0)):
    """A SAMPLE row, its points and its affine as arrays."""
    people = pa.Table.from_pylist([person], PERSON.append(pa.field("split", pa.string())))
    (row,) = build_table(people, [cut(data, person, framing, size, margin)], framing).to_pylist()
    return row | {name: np.array(row[name]) for name in ("crop_to_image", "joints", "head_box") if row[name] is not None}


def to_table(*rows):
    return pa.Table.from_pylist(list(rows), SAMPLE)


# One sample


def test_the_whole_picture_by_hand():
    # 400 x 200 on 100 x 100: crop = (image + 0.5) / (4, 2) - 0.5.
    sample = build_sample(picture(), person(), "image", SIZE)
    assert (sample["sample_id"], sample["image"], sample["person_index"]) == ("a.jpg#2", "a.jpg", 2)
    assert (sample["split"], sample["framing"], sample["width"], sample["height"]) == ("train", "image", WIDTH, HEIGHT)
    joints = sample["joints"].reshape(NUM_JOINTS, 2)
    np.testing.assert_allclose(joints[JOINT["left_knee"]], [74.5, 74.5], atol=1e-9)
    assert np.isfinite(joints).all(axis=1).tolist() == sample["is_annotated"]
    np.testing.assert_allclose(sample["head_box"], [49.5, 14.5, 59.5, 29.5], atol=1e-9)
    # Image px, whatever the crop: the box is 40 x 30, its diagonal 50; the bone goes from (200, 40) to (230, 80).
    assert sample["head_size"] == pytest.approx(30)
    assert sample["head_bone"] == pytest.approx(50)


def test_the_square_around_a_person_by_hand():
    # side 1.25 * 200 * 0.8 = 200 px on 100: 2 image px per crop px, centre (250, 120 + 12).
    sample = build_sample(picture(), person(), "person", SIZE)
    np.testing.assert_allclose(sample["crop_to_image"], [2, 0, 250 - 99, 0, 2, 132 - 99])
    np.testing.assert_allclose(sample["joints"].reshape(NUM_JOINTS, 2)[JOINT["left_knee"]], [(299.5 - 151) / 2, (149.5 - 33) / 2])
    assert (sample["head_size"], sample["head_bone"]) == (pytest.approx(30), pytest.approx(50))


@pytest.mark.parametrize("framing", ["image", "person"])
def test_the_crop_shows_what_the_label_says(framing):
    sample = build_sample(picture(), person(), framing, SIZE)
    crop = decode_jpeg(sample["crop"])
    assert crop.shape == (100, 100, 3)
    y, x = np.nonzero(crop[..., 0] > 128)
    np.testing.assert_allclose([x.mean(), y.mean()], sample["joints"].reshape(NUM_JOINTS, 2)[JOINT["left_knee"]], atol=0.5)


@pytest.mark.parametrize("framing", ["image", "person"])
def test_labels_map_back_to_the_picture(framing):
    sample = build_sample(picture(), person(), framing, SIZE)
    affine = sample["crop_to_image"].reshape(2, 3)
    np.testing.assert_allclose(transform(affine, sample["joints"].reshape(NUM_JOINTS, 2)), np.reshape(person()["joints"], (NUM_JOINTS, 2)))
    np.testing.assert_allclose(transform(affine, sample["head_box"].reshape(2, 2)).ravel(), person()["head_box"])


def test_a_margin_lies_around_the_crop_and_moves_no_label():
    size, margin = (60, 80), (12, 16)
    plain, wide = build_sample(picture(), person(), "person", size), build_sample(picture(), person(), "person", size, margin)
    for name in ("crop_to_image", "joints", "head_box"):
        np.testing.assert_array_equal(wide[name], plain[name])
    stored = decode_jpeg(wide["crop"])
    assert stored.shape == (80 + 32, 60 + 24, 3)
    np.testing.assert_allclose(cut_margin(stored, size).astype(int), decode_jpeg(plain["crop"]), atol=12)
    y, x = np.nonzero(stored[..., 0] > 128)
    knee = plain["joints"].reshape(NUM_JOINTS, 2)[JOINT["left_knee"]]
    np.testing.assert_allclose([x.mean() - 12, y.mean() - 16], knee, atol=0.5)


def test_exif_is_ignored_as_mpiis_labels_do():
    plain, turned = (build_sample(picture(orientation=orientation), person(), "image", SIZE) for orientation in (1, 6))
    np.testing.assert_array_equal(plain["crop_to_image"], turned["crop_to_image"])
    np.testing.assert_array_equal(decode_jpeg(plain["crop"]), decode_jpeg(turned["crop"]))
    assert (turned["width"], turned["height"]) == (WIDTH, HEIGHT)


def test_a_person_without_a_head_box_has_no_head_size():
    sample = build_sample(picture(), person(head_box=None), "image", SIZE)
    assert sample["head_box"] is sample["head_size"] is None
    assert sample["head_bone"] == pytest.approx(50)


@pytest.mark.parametrize("lost", ["head_top", "upper_neck"])
def test_a_person_without_an_end_of_the_head_bone_has_none(lost):
    joints = np.reshape(person()["joints"], (NUM_JOINTS, 2)).copy()
    joints[JOINT[lost]] = np.nan
    changes = {"joints": joints.ravel().tolist(), "is_annotated": np.isfinite(joints).all(axis=1).tolist()}
    sample = build_sample(picture(), person(**changes), "image", SIZE)
    assert sample["head_bone"] is None
    assert sample["head_size"] == pytest.approx(30)


# Bad pictures


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (FileNotFoundError("gone"), "missing"),
        (PermissionError("no"), "forbidden"),
        (OSError("broken"), "unreadable"),
        (b"", "empty"),
        (b"<html></html>", "not_an_image"),
        (picture()[:-500], "truncated"),
    ],
)
def test_a_bad_picture_has_a_status(data, status):
    with pytest.raises(ImageError) as caught:
        build_sample(data, person(), "image", SIZE)
    assert caught.value.status == status
    row = {"image": "a.jpg", "person_index": 2, "split": "train", "status": status, "detail": caught.value.detail}
    assert pa.Table.from_pylist([row], ERROR).to_pylist() == [row]


def test_a_person_without_a_place_cannot_be_framed_but_the_picture_can():
    lost = person(center=None, scale=None)
    with pytest.raises(ImageError, match="unsupported: the annotation has no objpos and scale"):
        build_sample(picture(), lost, "person", SIZE)
    assert build_sample(picture(), lost, "image", SIZE)["framing"] == "image"


# The table


def test_a_person_beside_the_picture_is_nobody_whatever_the_margin_shows():
    beside = person(center=[-130.0, 50.0], scale=1.0)
    with pytest.raises(ImageError, match=r"no_person: a frame of x from -254 to -4 .* lies beside the picture"):
        build_sample(picture(), beside, "person", SIZE, (SIZE[0] // 2, SIZE[1] // 2))


def test_a_sample_comes_back_from_its_table():
    sample = build_sample(picture(), person(), "person", SIZE)
    (row,) = to_table(sample).to_pylist()
    assert set(row) == set(SAMPLE.names) == set(sample)
    assert row["crop"] == sample["crop"]
    assert row["is_visible"] == person()["is_visible"]
    assert row["crop_to_image"] == sample["crop_to_image"].tolist()
    np.testing.assert_array_equal(np.float32(row["joints"]), np.float32(sample["joints"]))


def test_every_column_is_documented():
    assert all(field.metadata[b"doc"] for schema in (SAMPLE, ERROR) for field in schema)


@pytest.fixture(scope="module")
def rows():
    """Four samples; the second has no head box, the third no head bone either and no joints at all."""
    nothing = {"joints": [np.nan] * 32, "is_annotated": [False] * 16, "head_box": None, "split": "test"}
    changes = [{}, {"head_box": None}, nothing, {"person_index": 3}]
    return [build_sample(picture(), person(**each), "person", SIZE) for each in changes]


def expected_arrays(rows):
    return {
        "sample_id": np.array([row["sample_id"] for row in rows]),
        "crop_to_image": np.array([row["crop_to_image"] for row in rows]).reshape(-1, 2, 3),
        "head_box": np.array([[np.nan] * 4 if row["head_box"] is None else row["head_box"] for row in rows], dtype=np.float32),
        "joints": np.array([row["joints"] for row in rows], dtype=np.float32).reshape(-1, NUM_JOINTS, 2),
        "is_annotated": np.array([row["is_annotated"] for row in rows]),
        "head_size": np.array([row["head_size"] for row in rows], dtype=np.float32),
        "head_bone": np.array([row["head_bone"] for row in rows], dtype=np.float32),
    }


def check_arrays(table, rows):
    arrays, expected = label_arrays(table), expected_arrays(rows)
    assert set(arrays) == set(expected)
    assert arrays["is_annotated"].dtype == bool
    for name, values in expected.items():
        np.testing.assert_array_equal(arrays[name], values, err_msg=name)


def test_labels_are_arrays_with_nan_where_null(rows):
    check_arrays(to_table(*rows), rows)
    arrays = label_arrays(to_table(*rows))
    assert np.isnan(arrays["head_box"]).all(axis=1).tolist() == np.isnan(arrays["head_size"]).tolist() == [False, True, True, False]
    assert np.isnan(arrays["head_bone"]).tolist() == [False, False, True, False]


@pytest.mark.parametrize("part", [slice(1, 3), slice(2, 4), slice(2, 3)])
def test_labels_of_a_part_of_a_table(rows, part):
    check_arrays(to_table(*rows).slice(part.start, part.stop - part.start), rows[part])


def test_labels_of_a_table_of_many_chunks(rows):
    table = pa.concat_tables([to_table(*rows[:1]), to_table(*rows[1:3]).slice(1), to_table(*rows[3:])])
    check_arrays(table, [rows[0], rows[2], rows[3]])


def test_labels_need_neither_crops_nor_pixels(rows):
    check_arrays(to_table(*rows).drop_columns(["crop", "is_visible"]), rows)


def test_labels_of_nobody_are_empty_arrays():
    arrays = label_arrays(to_table())
    assert {name: values.shape for name, values in arrays.items()} == {
        "sample_id": (0,),
        "crop_to_image": (0, 2, 3),
        "head_box": (0, 4),
        "joints": (0, 16, 2),
        "is_annotated": (0, 16),
        "head_size": (0,),
        "head_bone": (0,),
    }


# The manifest


MANIFEST = {
    "files": [
        {"file": "train/part-00000.parquet", "split": "train", "rows": 2},
        {"file": "train/part-00001.parquet", "split": "train", "rows": 1},
        {"file": "val/part-00000.parquet", "split": "val", "rows": 1},
    ],
    "rows": {"train": 3, "val": 1, "test": 0},
}


def test_size_and_margin_stand_in_the_manifest_and_samples_of_older_versions_are_squares_without():
    assert (crop_size({"size": [192, 256]}), crop_margin({"margin": [38, 51]})) == ((192, 256), (38, 51))
    assert (crop_size({"size": 220}), crop_margin({"size": 220})) == ((220, 220), (0, 0))


def test_samples_without_a_manifest_are_not_complete(tmp_path):
    storage.write_table(str(tmp_path / "train" / "part-00000.parquet"), to_table())
    with pytest.raises(ValueError, match=rf"no complete samples at {tmp_path}: expected _MANIFEST.json, which jobs.prepare writes last"):
        read_manifest(str(tmp_path))


def test_a_split_has_the_files_that_the_manifest_names_and_no_others(tmp_path):
    storage.write_json(str(tmp_path / storage.MANIFEST), MANIFEST)
    storage.write_table(str(tmp_path / "train" / "part-00007.parquet"), to_table())
    assert read_manifest(str(tmp_path)) == MANIFEST
    assert list_split(str(tmp_path), "train") == [f"{tmp_path}/train/part-0000{index}.parquet" for index in (0, 1)]
    assert list_split(str(tmp_path), "val") == [f"{tmp_path}/val/part-00000.parquet"]


def test_an_empty_split_says_what_there_is(tmp_path):
    storage.write_json(str(tmp_path / storage.MANIFEST), MANIFEST)
    with pytest.raises(ValueError, match=rf"{tmp_path} has no test samples; rows per split: {{'test': 0, 'train': 3, 'val': 1}}"):
        list_split(str(tmp_path), "test")


# Real people


@pytest.mark.parametrize("framing", ["image", "person"])
def test_real_people_become_samples_that_map_back(shared_data, framing):
    folder = shared_data / "mpii-subset"
    people = read_annotations(str(folder))[1].to_pylist()[::200]
    built = []
    for row in people:
        built.append(build_sample((folder / "images" / row["image"]).read_bytes(), row | {"split": "val"}, framing, (128, 128)))
    arrays = label_arrays(to_table(*built))
    joints = transform(arrays["crop_to_image"], arrays["joints"])
    np.testing.assert_allclose(joints, np.reshape([row["joints"] for row in people], (-1, NUM_JOINTS, 2)), atol=1e-3)
    assert len(built) == 9
    if framing == "person":
        # head size = 25 * scale, so half a head is 5 % of the side.
        side = 128 * np.linalg.norm(arrays["crop_to_image"][:, :, 0], axis=1)
        assert np.median(0.5 * arrays["head_size"] / side) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("size", [(128, 128), (96, 128)])
def test_the_middle_of_a_stored_real_person_is_the_crop_without_a_margin(shared_data, size):
    folder = shared_data / "mpii-subset"
    people = read_annotations(str(folder))[1].to_pylist()[::200]
    for row in people:
        data = (folder / "images" / row["image"]).read_bytes()
        plain, wide = (build_sample(data, row | {"split": "val"}, "person", size, margin) for margin in ((0, 0), (26, 19)))
        exact = crop(data, read_header(data), plain["crop_to_image"].reshape(2, 3), size).astype(int)
        wide_error = np.abs(cut_margin(decode_jpeg(wide["crop"]), size) - exact).mean()
        # Both are off by their JPEG alone, which cuts them into other blocks.
        assert 0 < wide_error < 1.1 * np.abs(decode_jpeg(plain["crop"]) - exact).mean()
