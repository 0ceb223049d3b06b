"""mpii.py: the official layout with all its irregularities, and the real list's numbers."""

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy.io import savemat

from posepipe.mpii import (
    ANNOTATION_FILE,
    IMAGE,
    PERSON,
    inventory,
    parse_annotations,
    parse_val_list,
    read_annotation_file,
    read_annotations,
    select_people,
)
from posepipe.preparing import _is_listed
from posepipe.skeleton import JOINT, JOINT_NAMES

EMPTY = np.empty((0, 0))
NO_POINTS = {"annopoints": EMPTY, "scale": EMPTY, "objpos": EMPTY}


def records(rows):
    """A MATLAB struct array; every row is a dict with the same keys."""
    fields = list(rows[0])
    array = np.empty((1, len(rows)), dtype=[(name, object) for name in fields])
    for index, row in enumerate(rows):
        assert list(row) == fields, "a struct array has one set of fields"
        for name, value in row.items():
            array[0, index][name] = value
    return array


def point(joint, x, y, **visible):
    """`visible` is empty (the field is absent) or is_visible=..."""
    return {"x": np.uint8(x) if 0 <= x < 256 and x == int(x) else x, "y": y, "id": np.uint8(joint), **visible}


def annotated(*points, box=(10, 20, 40, 60), scale=2.0, objpos=(101, 51)):
    """A rectangle with all seven fields."""
    corners = dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))
    place = {"x": objpos[0], "y": objpos[1]} if objpos else EMPTY
    return {**corners, "annopoints": {"point": records(points)} if points else EMPTY, "scale": scale, "objpos": place}


def mat(*images, train=None, **others):
    """The bytes of an annotation file: `images` are (name, list of rectangles)."""
    rows = [{"image": {"name": name}, "annorect": records(rectangles) if rectangles else EMPTY} for name, rectangles in images]
    release = {"annolist": records(rows), "img_train": np.array([train or [1] * len(images)], dtype=np.uint8), **others}
    return save(RELEASE=release)


def save(**variables):
    sink = io.BytesIO()
    savemat(sink, variables)
    return sink.getvalue()


def persons_of(*images, **options):
    return parse_annotations(mat(*images, **options))[1].to_pylist()


def joints_of(person):
    """Joints by name; the others have to be NaN and not annotated."""
    found = {}
    for name, x, y, is_annotated in zip(JOINT_NAMES, person["joints"][::2], person["joints"][1::2], person["is_annotated"], strict=True):
        assert is_annotated == np.isfinite(x) == np.isfinite(y)
        if is_annotated:
            found[name] = (x, y)
    return found


# Activities


def test_the_video_of_a_picture_is_known_or_not():
    videos = [{"vididx": np.uint16(300)}, {"vididx": EMPTY}, {}]
    found = []
    for video in videos:
        release = {"annolist": records([{"image": {"name": "a.jpg"}, "annorect": records([annotated(point(0, 3, 4))]), **video}])}
        _, persons = parse_annotations(save(RELEASE={**release, "img_train": np.array([[1]], dtype=np.uint8)}))
        found += persons["video"].to_pylist()
    assert found == [300, None, None]


def test_the_activity_is_the_category_of_the_picture():
    act = [{"cat_name": "sports", "act_name": "rope skipping", "act_id": 1}, {"cat_name": EMPTY, "act_name": EMPTY, "act_id": -1}]
    person = [annotated(point(6, 1, 1))]
    persons = persons_of(("a.jpg", person * 2), ("b.jpg", person), act=records(act).T)
    assert [row["activity"] for row in persons] == ["sports", "sports", None]
    assert [row["activity"] for row in persons_of(("a.jpg", person))] == [None]


def test_activities_that_do_not_fit_the_list_are_an_error():
    with pytest.raises(ValueError, match="2 entries in annolist but 1 in act"):
        persons_of(("a.jpg", []), ("b.jpg", []), act=records([{"cat_name": "sports"}]))


# One person


def test_points_become_zero_based_joints_at_the_place_of_their_id():
    (person,) = persons_of(("a.jpg", [annotated(point(6, 100, 50), point(0, 31, 41), point(15, 1, 1))]))
    assert joints_of(person) == {"pelvis": (99, 49), "right_ankle": (30, 40), "left_wrist": (0, 0)}


def test_box_centre_and_scale_by_hand():
    (person,) = persons_of(("a.jpg", [annotated(point(6, 1, 1), box=(10, 20, 40, 60), scale=2.5, objpos=(101, 51))]))
    assert person["head_box"] == [9, 19, 39, 59]
    assert person["center"] == [100, 50]
    assert person["scale"] == 2.5
    assert (person["image"], person["person_index"], person["is_train"], person["has_joints"]) == ("a.jpg", 0, True, True)


def test_small_unsigned_integers_do_not_wrap():
    # x2 - x1 and 0 - 1 wrap around in uint8.
    box = tuple(np.array(each, dtype=np.uint8) for each in (200, 0, 10, 250))
    (person,) = persons_of(("a.jpg", [annotated(point(0, 0, np.uint8(0)), box=box, objpos=(np.uint8(0), np.uint8(255)))]))
    assert person["head_box"] == [199, -1, 9, 249]
    assert joints_of(person) == {"right_ankle": (-1, -1)}
    assert person["center"] == [-1, 254]


def test_joints_outside_the_picture_and_fractions_are_kept():
    (person,) = persons_of(("a.jpg", [annotated(point(8, 12.5, -7.25), point(9, 4000.75, -0.5))]))
    assert joints_of(person) == {"upper_neck": (11.5, -8.25), "head_top": (3999.75, -1.5)}


@pytest.mark.parametrize("unknown", [16, 255, np.nan])
def test_a_point_of_no_joint_is_passed_over(unknown):
    stray = {"x": 5, "y": 5, "id": unknown}
    (person,) = persons_of(("a.jpg", [annotated(stray, point(0, 3, 4))]))
    assert joints_of(person) == {"right_ankle": (2, 3)}


@pytest.mark.parametrize("lost", [EMPTY, np.nan, np.inf])
def test_a_point_without_a_coordinate_is_not_annotated(lost):
    (person,) = persons_of(("a.jpg", [annotated({"x": 5, "y": lost, "id": 1}, {"x": 3, "y": 4, "id": 0})]))
    assert joints_of(person) == {"right_ankle": (2, 3)}


def test_is_visible_is_a_number_a_text_or_unknown():
    values = {0: 1, 1: 0, 2: "1", 3: "0", 4: EMPTY, 5: "", 6: np.uint8(1)}
    points = [point(joint, 10 + joint, 10, is_visible=value) for joint, value in values.items()]
    (person,) = persons_of(("a.jpg", [annotated(*points)]))
    assert person["is_visible"] == [True, False, True, False, None, None, True, *[None] * 9]
    # Occluded and unknown joints are annotated all the same.
    assert person["is_annotated"] == [True] * 7 + [False] * 9


def test_without_the_field_is_visible_nothing_is_known_of_it():
    (person,) = persons_of(("a.jpg", [annotated(point(0, 3, 4))]))
    assert person["is_visible"] == [None] * 16


@pytest.mark.parametrize("box", [(EMPTY, EMPTY, EMPTY, EMPTY), (10, 20, 30, EMPTY), (10, np.nan, 30, 40)])
def test_a_box_that_is_not_whole_is_none(box):
    (person,) = persons_of(("a.jpg", [annotated(point(0, 3, 4), box=box)]))
    assert person["head_box"] is None
    assert person["has_joints"]


@pytest.mark.parametrize(("scale", "objpos"), [(EMPTY, (5, 5)), (0, (5, 5)), (-1.0, (5, 5)), (np.nan, (5, 5)), (2, None), (2, (5, EMPTY))])
def test_centre_and_scale_are_there_together_or_not_at_all(scale, objpos):
    (person,) = persons_of(("a.jpg", [annotated(point(0, 3, 4), scale=scale, objpos=objpos)]))
    assert person["center"] is person["scale"] is None
    assert joints_of(person) == {"right_ankle": (2, 3)}


# Pictures


def test_field_sets_may_differ_from_picture_to_picture():
    seven = annotated(point(0, 3, 4))
    only_box = {"x1": 1, "y1": 1, "x2": 26, "y2": 34}
    no_box = {"annopoints": {"point": records([point(1, 5, 6)])}, "scale": 1.0, "objpos": {"x": 9, "y": 9}}
    found = persons_of(("seven.jpg", [seven]), ("box.jpg", [only_box]), ("nobody.jpg", []), ("no_box.jpg", [no_box]))
    assert [(each["image"], joints_of(each), each["head_box"]) for each in found] == [
        ("seven.jpg", {"right_ankle": (2, 3)}, [9, 19, 39, 59]),
        ("no_box.jpg", {"right_knee": (4, 5)}, None),
    ]


def test_every_picture_is_listed_in_order_with_mpiis_flag():
    images, _ = parse_annotations(mat(("b.jpg", []), ("a.jpg", [annotated(point(0, 3, 4))]), ("c.jpg", []), train=[1, 1, 0]))
    assert images.schema == IMAGE
    assert images.to_pylist() == [
        {"image": "b.jpg", "is_train": True},
        {"image": "a.jpg", "is_train": True},
        {"image": "c.jpg", "is_train": False},
    ]


def test_the_annotated_person_need_not_be_the_first():
    first = {**annotated(), **NO_POINTS}
    (person,) = persons_of(("a.jpg", [first, annotated(point(0, 3, 4)), annotated()]))
    assert person["person_index"] == 1
    assert joints_of(person) == {"right_ankle": (2, 3)}


def test_test_people_have_only_scale_and_objpos():
    located = {"scale": 3, "objpos": {"x": np.uint16(640), "y": np.uint16(360)}}
    lost = {"scale": EMPTY, "objpos": EMPTY}
    (person,) = persons_of(("t.jpg", [lost, located]), train=[0])
    assert (person["person_index"], person["is_train"], person["has_joints"]) == (1, False, False)
    assert (person["center"], person["scale"], person["head_box"]) == ([639, 359], 3.0, None)
    assert joints_of(person) == {}


def test_train_people_without_joints_and_test_people_without_a_place_are_no_persons():
    assert persons_of(("a.jpg", [annotated()]), ("b.jpg", [{"scale": EMPTY, "objpos": EMPTY}]), ("c.jpg", []), train=[1, 0, 0]) == []


def test_the_tables_have_their_documented_schema_even_when_empty():
    _, persons = parse_annotations(mat(("a.jpg", [])))
    assert (persons.num_rows, persons.schema) == (0, PERSON)
    assert all(field.metadata[b"doc"] for schema in (IMAGE, PERSON) for field in schema)


# Selections and counts


def test_single_counts_annotated_people_and_not_rectangles():
    one, two = annotated(point(0, 3, 4)), annotated(point(1, 5, 6))
    without_joints = annotated()
    _, persons = parse_annotations(mat(("pair.jpg", [one, two]), ("beside.jpg", [without_joints, one]), ("alone.jpg", [two])))
    single = select_people(persons, "single").to_pylist()
    assert [(each["image"], each["person_index"]) for each in single] == [("beside.jpg", 1), ("alone.jpg", 0)]
    assert select_people(persons, "all").num_rows == 4


def test_inventory_by_hand():
    everything = [point(joint, joint + 1, 1) for joint in range(16)]
    tables = parse_annotations(
        mat(
            ("pair.jpg", [annotated(point(0, 3, 4)), annotated(*everything)]),
            ("alone.jpg", [annotated(point(0, 3, 4), point(9, 3, 4))]),
            ("nobody.jpg", []),
            ("test.jpg", [{"scale": 1, "objpos": {"x": 1, "y": 1}}]),
            train=[1, 1, 1, 0],
        )
    )
    counts = inventory(*tables, {"pair.jpg", "test.jpg", "other.jpg"})
    joints = counts.pop("joints_labelled")
    assert counts == {
        "images": 4,
        "train": 3,
        "test": 1,
        "annotated_people": 3,
        "located_test_people": 1,
        "single_person_train_images": 1,
        "people_with_all_joints": 1,
        "images_missing": 2,
    }
    assert joints == {name: 1 for name in JOINT_NAMES} | {"right_ankle": 3, "head_top": 2}


# Mistakes


def test_no_folder_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match=rf"no annotation file at .*nowhere/{ANNOTATION_FILE}: --mpii-uri must hold .* and images/"):
        read_annotations(str(tmp_path / "nowhere"))


def test_a_folder_without_the_file_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="no annotation file at"):
        read_annotation_file(str(tmp_path))


@pytest.mark.parametrize("data", [b"", b"<html></html>", b"\0" * 200, b"MATLAB 5.0 MAT-file" + b" " * 105 + b"\0\1IM"])
def test_not_a_mat_file_is_a_clear_error(tmp_path, data):
    (tmp_path / ANNOTATION_FILE).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{tmp_path}/{ANNOTATION_FILE} is not (a MATLAB 5|MPII's annotation) file"):
        read_annotations(str(tmp_path))


@pytest.mark.parametrize(
    "contents", [{"points": np.zeros(3)}, {"RELEASE": np.zeros(3)}, {"RELEASE": {"annolist": records([{"image": 1}]), "version": "12"}}]
)
def test_a_mat_file_of_something_else_is_a_clear_error(contents):
    with pytest.raises(ValueError, match=r"x\.mat is not MPII's annotation file: expected a struct RELEASE with annolist and img_train"):
        parse_annotations(save(**contents), "x.mat")


def test_an_empty_list_is_a_clear_error():
    data = save(RELEASE={"annolist": EMPTY, "img_train": EMPTY})
    with pytest.raises(ValueError, match=r"x\.mat lists no images"):
        parse_annotations(data, "x.mat")


@pytest.mark.parametrize("name", ["/etc/hosts", "../secret.jpg", "a/../../secret.jpg", "s3://other/a.jpg"])
def test_a_name_outside_of_the_pictures_folder_is_a_clear_error(name):
    with pytest.raises(ValueError, match=r"x\.mat names a picture outside of images/: "):
        parse_annotations(mat(("a.jpg", []), (name, [])), "x.mat")


def test_a_list_and_flags_of_different_length_are_a_clear_error():
    with pytest.raises(ValueError, match=r"x\.mat: 2 entries in annolist but 1 in img_train"):
        parse_annotations(mat(("a.jpg", []), ("b.jpg", []), train=[1]), "x.mat")


# The real list


@pytest.fixture(scope="module")
def whole_list(shared_data):
    return read_annotations(str(shared_data / "mpii-annotations"))


def test_the_real_list_has_its_known_numbers(whole_list):
    counts = inventory(*whole_list, set())
    counts.pop("joints_labelled")
    assert counts == {
        "images": 24987,
        "train": 18079,
        "test": 6908,
        "annotated_people": 28883,
        "located_test_people": 11731,
        "single_person_train_images": 11503,
        "people_with_all_joints": 19919,
        "images_missing": 24987,
    }


def test_the_standard_validation_people_are_found_among_those_of_their_pictures(whole_list, shared_data):
    truth = np.load(shared_data / "pckh-vectors" / "ground_truth.npz")
    places = zip(truth["image"].tolist(), truth["objpos"].tolist(), strict=True)
    listed = parse_val_list(json.dumps([{"image": image, "center": place, "scale": 1} for image, place in places]))
    persons = whole_list[1].filter(whole_list[1]["has_joints"])
    in_pictures = persons.filter(pc.is_in(persons["image"], pa.array(listed)))
    found = [row for row in in_pictures.to_pylist() if _is_listed(row["image"], row["center"], listed)]
    ids = [f"{image}#{rect - 1}" for image, rect in zip(truth["image"].tolist(), truth["rect_id"].tolist(), strict=True)]
    assert sorted(f"{row['image']}#{row['person_index']}" for row in found) == sorted(ids)
    assert (len(found), in_pictures.num_rows) == (2958, 6637)


def test_single_finds_people_at_the_second_and_third_place_of_the_real_list(whole_list):
    single = select_people(whole_list[1].filter(whole_list[1]["has_joints"]), "single")
    places = single["person_index"].to_numpy()
    assert (single.num_rows, np.count_nonzero(places), places.max()) == (11503, 23, 2)


def test_real_joints_are_annotated_or_nan_and_ankles_are_missing_most(whole_list):
    persons = whole_list[1].filter(whole_list[1]["has_joints"])
    labels = np.array(persons["is_annotated"].combine_chunks().flatten()).reshape(-1, 16)
    joints = np.array(persons["joints"].combine_chunks().flatten()).reshape(-1, 16, 2)
    np.testing.assert_array_equal(np.isfinite(joints), np.repeat(labels[..., None], 2, axis=2))
    # data/README.md: 2,033 placeholder people of one point.
    assert [np.sum(labels.sum(axis=1) == 1), np.sum(labels.sum(axis=1) > 1)] == [2033, 26850]
    assert np.argsort(-labels.sum(axis=0), kind="stable")[-2:].tolist() == [JOINT["left_ankle"], JOINT["right_ankle"]]


def test_the_real_subset_has_its_known_numbers(shared_data):
    folder = shared_data / "mpii-subset"
    images, persons = read_annotations(str(folder))
    counts = inventory(images, persons, {path.name for path in (folder / "images").iterdir()})
    joints = counts.pop("joints_labelled")
    assert counts == {
        "images": 1143,
        "train": 1136,
        "test": 7,
        "annotated_people": 1652,
        "located_test_people": 0,
        "single_person_train_images": 747,
        "people_with_all_joints": 1482,
        "images_missing": 0,
    }
    assert sum(joints.values()) == 25934
    with open(folder / "split.csv", newline="") as file:
        nobody = {row["image"] for row in csv.DictReader(file) if row["split"] == "none"}
    assert nobody == set(images.filter(images["is_train"])["image"].to_pylist()) - set(persons["image"].to_pylist())


def test_real_head_bones_are_four_fifths_of_the_head_boxes_diagonal(shared_data):
    # In MPII joints 8 and 9 were computed from the box, so an off-by-one in one of them would show.
    _, table = read_annotations(str(shared_data / "mpii-subset"))
    off = []
    for person in table.to_pylist():
        joints, box = np.reshape(person["joints"], (16, 2)), np.reshape(person["head_box"], (2, 2))
        ends = joints[[JOINT["upper_neck"], JOINT["head_top"]]]
        off.append((np.linalg.norm(ends[0] - ends[1]) / np.linalg.norm(box[0] - box[1]), *(ends.mean(axis=0) - box.mean(axis=0))))
    ratio, x, y = np.nanmedian(off, axis=0)
    assert ratio == pytest.approx(0.8, abs=1e-3)
    assert (x, y) == pytest.approx((0, 0), abs=0.01)
