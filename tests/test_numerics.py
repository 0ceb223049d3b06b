"""The reference that `images.crop` is compared with, and the counting of differences."""

import io

import numpy as np
import pytest
from PIL import Image

from benchmarks.numerics import WAYS, Differences, area, compare_pixels, compare_scores, triangle, val_people
from posepipe import geometry, images, storage
from posepipe.model_file import MODEL_FILE, ModelConfig
from posepipe.models import build_model, save_model
from posepipe.skeleton import NUM_JOINTS


def encode(pixels, file_format="PNG", **options):
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, file_format, **options)
    return sink.getvalue()


def noise(width, height):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_reference_averages_the_area_under_each_pixel():
    pixels = noise(12, 8)
    data = encode(pixels)
    averaged = pixels.reshape(4, 2, 4, 3, 3).mean(axis=(1, 3))
    found = area(data, images.read_header(data), geometry.frame_image(12, 8, (4, 4)), (4, 4))
    # Pillow rounds after each direction.
    np.testing.assert_allclose(found, averaged, atol=1)


def test_the_reference_is_black_outside_the_picture():
    data = encode(np.full((20, 20, 3), 200, np.uint8))
    # side 20 px on 10, its middle at the picture's corner: a quarter of the crop is picture.
    affine = geometry.with_margin(np.array([[2.0, 0, 0.5], [0, 2.0, 0.5]]), (5, 5))
    found = area(data, images.read_header(data), affine, (10, 10))
    assert (found[:5] == 0).all()
    assert (found[:, :5] == 0).all()
    assert (found[5:, 5:] == 200).all()


@pytest.mark.parametrize("framing", ["image", "person"])
def test_the_reference_shows_the_same_place_as_crop(framing):
    y, x = np.mgrid[:480, :640]
    data = encode(np.stack([x * 255 / 640, y * 255 / 480, 0 * x], axis=-1).astype(np.uint8), "JPEG", quality=95)
    header, size = images.read_header(data), (96, 96)
    affine = geometry.frame_image(640, 480, size) if framing == "image" else geometry.frame_person((320.3, 240.7), 1.1, size)
    for way in (*WAYS.values(), triangle):
        assert np.abs(area(data, header, affine, size).astype(int) - way(data, header, affine, size)).mean() < 1.5


def test_differences_add_up():
    found = Differences()
    found.add(np.array([10, 20], np.uint8), np.array([13, 20], np.uint8))
    found.add(np.array([0, 0], np.uint8), np.array([255, 0], np.uint8))
    assert found.row() == {"mean": 64.5, "p99": 255, "largest": 255, "worst_crop": 127.5}


def test_the_people_are_those_of_the_validation_split(person_samples, tmp_path):
    images_uri, people = val_people(person_samples, 0)
    _, some = val_people(person_samples, 2)
    np.testing.assert_equal(some, people[:2])
    expected = [storage.read_table(str(path)) for path in sorted((tmp_path.__class__(person_samples) / "val").iterdir())]
    ids = {(row["image"], row["person_index"]) for table in expected for row in table.to_pylist()}
    assert {(row["image"], row["person_index"]) for row in people} == ids
    rows = compare_pixels(images_uri, some, (32,))
    assert {(row["framing"], row["way"]) for row in rows} == {(framing, way) for framing in ("image", "person") for way in WAYS}
    assert all(row["mean"] < 8 for row in rows)


def test_any_run_of_task_pose_is_scored_from_the_crops_of_each_way(person_samples, tmp_path):
    images_uri, people = val_people(person_samples, 4)

    def run(task, points):
        config = ModelConfig(
            task=task,
            model="test_resnet",
            regression_head="direct",
            feature_stride=16,
            size=(48, 64),
            framing="person",
            mean_points=[[0.5, 0.5]] * points,
            samples_fingerprint="",
        )
        (tmp_path / task).mkdir()
        save_model(build_model(config).eval(), str(tmp_path / task / MODEL_FILE))
        return str(tmp_path / task)

    pose = run("pose", NUM_JOINTS)
    rows = compare_scores(images_uri, people, [pose])
    assert [row["way"] for row in rows] == ["area", *WAYS]
    same = ("pckh_change", "pckh_near_change", "gained", "lost", "median_move_in_head_sizes")
    assert {rows[0][name] for name in same} == {0}
    for row in rows:
        assert row["pckh_change"] == pytest.approx(100 * (row["gained"] - row["lost"]) / row["num_joints"])
        for name in ("pckh", "pckh_near"):
            assert row[f"{name}_change"] == pytest.approx(row[name] - rows[0][name])
    num_people = sum(row["has_joints"] for row in people)
    assert {(row["num_models"], row["num_people"]) for row in rows} == {(1, num_people)}
    # The same model twice: twice the joints of as many people, the same shares.
    twice = compare_scores(images_uri, people, [pose, pose])
    for row, doubled in zip(rows, twice, strict=True):
        assert (doubled["num_models"], doubled["num_people"], doubled["num_joints"]) == (2, num_people, 2 * row["num_joints"])
        for name in ("pckh", "pckh_near", "pckh_change"):
            assert doubled[name] == pytest.approx(row[name])
        assert doubled["pckh_change_95"] == pytest.approx(row["pckh_change_95"])
    with pytest.raises(ValueError, match="must be a run of task pose"):
        compare_scores(images_uri, people, [pose, run("head", 2)])
