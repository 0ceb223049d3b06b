"""synthetic: what is drawn is labelled, and the annotation file has the official layout."""

import io
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from posepipe import mpii
from posepipe.figure import ACTIVITIES, Look, sample_figure, sample_look, seen_on
from posepipe.mpii import ANNOTATION_FILE
from posepipe.painting import Brush, draw_figure
from posepipe.scene import SyntheticImage, draw_image, head_box
from posepipe.skeleton import HEAD_TOP, JOINT, LEFT_RIGHT_PAIRS, NUM_JOINTS, UPPER_NECK
from posepipe.synthetic import TEST_EVERY, write_annotations, write_image

ENDS = [UPPER_NECK, HEAD_TOP]

# Two train people by hand, a test person, and a picture of nobody; 0-based image px.
POINTS = [(JOINT["right_wrist"], 299.0, 10.0, False), (UPPER_NECK, 99.5, 80.25, None), (JOINT["left_hip"], 0.0, 254.0, True)]
RECORDS: list[dict[str, Any]] = [
    {
        "name": "000000000.jpg",
        "is_train": True,
        "activity": "walking",
        "people": [
            {"scale": 1.2, "objpos": [149.0, 132.0], "head_box": [90.0, 20.0, 120.0, 60.0], "points": POINTS},
            {"scale": 2, "objpos": [899.0, 132.0], "head_box": [890.0, 20.0, 920.0, 60.0], "points": POINTS[:1]},
        ],
    },
    {"name": "000000001.jpg", "is_train": False, "activity": "sitting", "people": [{"scale": 1.5, "objpos": [639.0, 359.0]}]},
    {"name": "000000002.jpg", "is_train": True, "activity": None, "people": []},
]


@pytest.fixture(scope="module")
def images() -> list[SyntheticImage]:
    return [draw_image(seed) for seed in range(24)]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> np.void:
    folder = tmp_path_factory.mktemp("records")
    write_annotations(str(folder), RECORDS)
    return read_release(folder)


def read_release(folder: Path) -> np.void:
    return loadmat(folder / ANNOTATION_FILE)["RELEASE"][0, 0]


def layout(value: Any) -> Any:
    """Names and orientation of nested structs, by their first element, whatever the numbers' types and sizes."""
    if value.dtype.names:
        return "row" if value.shape[0] == 1 else "column", {name: layout(value[name].flat[0]) for name in value.dtype.names}
    return "text" if value.dtype.kind == "U" else "number", value.ndim


def test_equal_seeds_give_equal_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_annotations(str(tmp_path / folder), [write_image(str(tmp_path / folder), index, 7) for index in (0, 1)])
    for name in ("images/000000000.jpg", "images/000000001.jpg", ANNOTATION_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert b"Created on" not in (tmp_path / "a" / ANNOTATION_FILE).read_bytes()[:116]  # scipy's header holds the time.


def test_seed_and_index_both_change_the_picture(tmp_path: Path) -> None:
    records = [write_image(str(tmp_path / str(seed)), index, seed) for seed, index in ((7, 0), (8, 0), (7, 1))]
    assert len({str(record["people"]) for record in records}) == 3


def test_record_is_plain_and_the_picture_a_jpeg_of_an_mpii_size(tmp_path: Path) -> None:
    record = write_image(str(tmp_path), 12, 3)
    assert record["name"] == "000000012.jpg"
    assert record["is_train"]
    (file,) = (tmp_path / "images").iterdir()
    assert file.name == record["name"]
    picture = Image.open(io.BytesIO(file.read_bytes()))
    assert picture.format == "JPEG"
    assert picture.size in {(1280, 720), (1920, 1080), (640, 480)}
    points = [point for person in record["people"] for point in person["points"]]
    assert {joint for joint, _, _, is_visible in points if is_visible is None} == set(ENDS)
    assert all(type(value) in (int, float, bool, type(None)) for point in points for value in point)


def test_most_pictures_show_one_person_and_some_more(images: list[SyntheticImage]) -> None:
    counts = np.bincount([len(image.people) for image in images], minlength=4)
    assert 0.6 <= counts[1] / len(images) <= 0.9
    assert counts[2:].sum() >= 3


def test_nearly_all_labels_lie_inside_the_picture_and_none_far_outside(images: list[SyntheticImage]) -> None:
    num_labels = num_outside = 0
    for image in images:
        size = np.array(image.picture.size)
        for person in image.people:
            labels = person.joints[np.isfinite(person.joints).all(axis=1)]
            is_outside = ((labels < 0) | (labels > size - 1)).any(axis=1)
            num_labels, num_outside = num_labels + len(labels), num_outside + is_outside.sum()
            assert (labels > -0.06 * size.max()).all()
            assert (labels < 1.06 * size.max()).all()
            assert (person.head_box >= 0).all()
            assert (person.head_box[2:] < size).all()
    assert num_labels > 500
    assert num_outside <= 0.02 * num_labels


def test_figure_is_drawn_at_its_joints_and_wears_its_band_on_the_left_wrist() -> None:
    red, green, blue, yellow, white = (200, 60, 60), (60, 200, 60), (60, 60, 200), (200, 200, 60), (255, 255, 255)
    look = Look(red, blue, blue, yellow, green, blue, 0.0, 1.0, "plain", "short", 1.0)
    rng = np.random.default_rng(4)
    origin, height, num_seen = np.array((250.0, 300.0)), 380.0, 0
    for _ in range(12):
        figure = sample_figure(rng)
        picture, owners = Image.new("RGB", (500, 600), white), Image.new("L", (500, 600))
        brush = Brush(picture, owners, (0, 0, 500, 600))
        draw_figure(brush, figure, look, origin, height, 1)
        brush.finish()
        joints = figure.joints[:, :2] * height + origin
        for side, band in (("left", yellow), ("right", red)):
            wrist, elbow, shoulder, knee, ankle = (JOINT[f"{side}_{part}"] for part in ("wrist", "elbow", "shoulder", "knee", "ankle"))
            if np.hypot(*(joints[wrist] - joints[elbow])) < 0.08 * height:
                continue  # A forearm that points at the viewer shows the band in front of the elbow.
            places = {  # joint: a point on the limb that ends there, and the limb's colour
                wrist: (0.93 * joints[wrist] + 0.07 * joints[elbow], band),
                elbow: (0.9 * joints[elbow] + 0.1 * joints[shoulder], red),
                knee: (joints[knee], green),
                ankle: (0.9 * joints[ankle] + 0.1 * joints[knee], green),
            }
            for joint, (point, colour) in places.items():
                at_joint, at_point = ([int(value) for value in np.round(place)] for place in (joints[joint], point))
                on_top = {cast(int, owners.getpixel((x, y))) - 1 for x, y in (at_joint, at_point)}
                if on_top <= seen_on(figure, joint):
                    pixel = np.array(picture.getpixel((at_point[0], at_point[1])), dtype=float)
                    # Limbs are shaded: only the hue is the same.
                    likeness = {other: pixel @ np.array(other) / np.linalg.norm(other) for other in (red, green, blue, yellow, white)}
                    num_seen += 1
                    assert max(likeness, key=lambda other: likeness[other]) == colour, (side, joint)
    assert num_seen > 50


def test_joint_nearest_to_the_viewer_is_on_top() -> None:
    rng = np.random.default_rng(8)
    limbs = [joint for pair in LEFT_RIGHT_PAIRS for joint in pair]
    look, num_checked = sample_look(rng), 0
    for _ in range(30):
        figure = sample_figure(rng)
        nearest = limbs[int(np.argmax(figure.joints[limbs, 2]))]
        if figure.joints[nearest, 2] > 0.12:
            owners = Image.new("L", (500, 600))
            draw_figure(Brush(Image.new("RGB", (500, 600)), owners, (0, 0, 500, 600)), figure, look, (250, 300), 300, 1)
            x, y = np.round(figure.joints[nearest, :2] * 300 + (250, 300)).astype(int).tolist()
            assert cast(int, owners.getpixel((x, y))) - 1 in seen_on(figure, nearest)
            num_checked += 1
    assert num_checked > 10


def test_head_box_of_an_upright_head_is_worked_by_hand() -> None:
    # Bone 100: half sides 31.5 and 54, so the corners are (68.5, 96) and (131.5, 204), rounded to even.
    box, ends = head_box((100, 200), (100, 100))
    assert box.tolist() == [68, 96, 132, 204]
    # Diagonal hypot(64, 108) = 125.539; 0.4 of it is 50.216 on either side of (100, 150).
    assert ends == pytest.approx(np.array([(100, 200.216), (100, 99.784)]), abs=1e-3)


def test_head_bone_is_0_8_diagonals_and_scale_0_6_diagonals_over_25(images: list[SyntheticImage]) -> None:
    for image in images:
        for person in image.people:
            box, (neck, top) = person.head_box, person.joints[ENDS]
            diagonal = np.hypot(*(box[2:] - box[:2]))
            assert (box == np.round(box)).all()
            assert np.hypot(*(top - neck)) == pytest.approx(0.8 * diagonal, abs=1e-3)
            assert (top + neck) / 2 == pytest.approx((box[:2] + box[2:]) / 2, abs=1e-3)
            assert person.scale == pytest.approx(0.6 * diagonal / 25)


def test_objpos_is_the_centre_of_the_labelled_joints(images: list[SyntheticImage]) -> None:
    for image in images:
        for person in image.people:
            labels = person.joints[np.isfinite(person.joints).all(axis=1)]
            assert person.objpos == pytest.approx((labels.min(axis=0) + labels.max(axis=0)) / 2, abs=0.5)


def test_right_side_is_on_the_image_left_of_people_who_face_the_viewer(images: list[SyntheticImage]) -> None:
    num_front = num_back = 0
    for image in images:
        for person in image.people:
            upright = person.joints[HEAD_TOP, 1] < person.joints[UPPER_NECK, 1] and person.activity != "bending"
            left, right = (person.joints[JOINT[f"{side}_shoulder"], 0] for side in ("left", "right"))
            if upright and person.facing > 0.7:
                num_front += 1
                assert right < left
            elif upright and person.facing < -0.7:
                num_back += 1
                assert left < right
    assert num_front > num_back >= 4


def test_every_joint_pair_is_drawn_on_two_places(images: list[SyntheticImage]) -> None:
    for image in images:
        for person in image.people:
            spread = [np.hypot(*(person.joints[left] - person.joints[right])) for left, right in LEFT_RIGHT_PAIRS]
            assert np.nanmax(spread) > 0.1 * 200 * person.scale
            assert person.activity in ACTIVITIES


def test_sizes_and_poses_vary(images: list[SyntheticImage]) -> None:
    sizes = [200 * person.scale / image.picture.height for image in images for person in image.people]
    assert min(sizes) < 0.3
    assert max(sizes) > 0.6
    assert len({person.activity for image in images for person in image.people}) >= 6
    assert len({image.picture.size for image in images}) == 3


def test_visible_joints_are_annotated_and_inside_and_some_annotated_ones_are_hidden(images: list[SyntheticImage]) -> None:
    hidden, absent = np.zeros(NUM_JOINTS, dtype=int), np.zeros(NUM_JOINTS, dtype=int)
    for image in images:
        width, height = image.picture.size
        for person in image.people:
            is_annotated = ~np.isnan(person.joints[:, 0])
            assert is_annotated[person.is_visible].all()
            assert is_annotated[ENDS].all()
            seen = person.joints[person.is_visible].round()
            assert ((seen > -1) & (seen < (width, height))).all()
            hidden = hidden + (is_annotated & ~person.is_visible)
            absent = absent + ~is_annotated
    assert 0.05 < hidden.sum() / sum(NUM_JOINTS * len(image.people) for image in images) < 0.3
    ankles, wrists = ([JOINT[f"left_{part}"], JOINT[f"right_{part}"]] for part in ("ankle", "wrist"))
    assert absent[ankles].sum() > absent[wrists].sum()


def test_every_seventh_picture_is_a_test_picture_and_says_where_people_are_but_nothing_of_joints(tmp_path: Path) -> None:
    assert TEST_EVERY == 7
    records = [write_image(str(tmp_path), index, 1) for index in (5, 6)]
    assert [record["is_train"] for record in records] == [True, False]
    assert {key for person in records[1]["people"] for key in person} == {"scale", "objpos"}


def test_coordinates_are_one_based_in_the_file(release: np.void) -> None:
    person = release["annolist"][0, 0]["annorect"][0, 0]
    assert [person[name].item() for name in ("x1", "y1", "x2", "y2")] == [91, 21, 121, 61]
    assert [person["objpos"][0, 0][axis].item() for axis in "xy"] == [150, 133]
    points = person["annopoints"][0, 0]["point"]
    assert points.shape == (1, 3)
    assert [(point["id"].item(), point["x"].item(), point["y"].item()) for point in points[0]] == [
        (10, 300, 11),
        (8, 100.5, 81.25),
        (3, 1, 255),
    ]


def test_is_visible_is_empty_for_neck_and_head_top_and_0_or_1_elsewhere(release: np.void) -> None:
    points = release["annolist"][0, 0]["annorect"][0, 0]["annopoints"][0, 0]["point"][0]
    assert [point["is_visible"].ravel().tolist() for point in points] == [[0], [], [1]]


def test_numbers_have_the_smallest_type_that_holds_them(release: np.void) -> None:
    wrist, neck, hip = release["annolist"][0, 0]["annorect"][0, 0]["annopoints"][0, 0]["point"][0]
    assert [wrist["x"].dtype, neck["x"].dtype, hip["y"].dtype] == [np.int16, np.float64, np.uint8]
    assert release["act"][1, 0]["act_id"].item() == -1


def test_test_people_have_only_scale_and_objpos_and_nobody_is_an_empty_array(release: np.void) -> None:
    assert release["img_train"].tolist() == [[1, 0, 1]]
    (test_person,) = release["annolist"][0, 1]["annorect"][0]
    assert test_person.dtype.names == ("scale", "objpos")
    assert release["annolist"][0, 2]["annorect"].shape == (0, 0)


def test_single_person_lists_people_who_stand_apart(tmp_path: Path, release: np.void) -> None:
    # 750 px apart at scale 2: a crop of 250 px per scale is 500 px wide. 100 px apart they are not.
    assert [cell.ravel().tolist() for cell in release["single_person"][:, 0]] == [[1, 2], [1], []]
    near = [{**person, "objpos": [149.0 + 100 * place, 132.0]} for place, person in enumerate(RECORDS[0]["people"])]
    write_annotations(str(tmp_path), [{**RECORDS[0], "people": near}])
    assert read_release(tmp_path)["single_person"][0, 0].size == 0


def test_layout_is_that_of_the_real_file(shared_data: Path, release: np.void) -> None:
    real = read_release(shared_data / "mpii-subset")
    assert release.dtype.names == real.dtype.names
    for name in ("annolist", "img_train", "version", "act"):
        assert layout(release[name]) == layout(real[name]), name
    for name in ("single_person", "video_list"):
        assert release[name].dtype == real[name].dtype == object
    assert release["single_person"].shape[1] == real["single_person"].shape[1] == 1
    assert release["single_person"][0, 0].shape == real["single_person"][0, 0].shape == (2, 1)


def test_mpii_reader_gives_back_the_labels_that_were_drawn(tmp_path: Path) -> None:
    records = [write_image(str(tmp_path), index, 11) for index in (0, 1, 2, 6)]
    write_annotations(str(tmp_path), records)
    images, persons = mpii.read_annotations(str(tmp_path))
    assert images["is_train"].to_pylist() == [True, True, True, False]
    drawn = [(record["name"], person) for record in records for person in record["people"]]
    assert persons["image"].to_pylist() == [name for name, _ in drawn]
    for row, (_, person) in zip(persons.to_pylist(), drawn, strict=True):
        expected = np.full((NUM_JOINTS, 2), np.nan)
        visible: list[bool | None] = [None] * NUM_JOINTS
        for joint, x, y, is_visible in person.get("points", []):
            expected[joint], visible[joint] = (x, y), is_visible
        np.testing.assert_allclose(np.reshape(row["joints"], (-1, 2)), expected, rtol=1e-6)
        assert row["is_visible"] == visible
        assert row["head_box"] == person.get("head_box")
        assert row["center"] == person["objpos"]
        assert row["scale"] == pytest.approx(person["scale"])


def test_no_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one record"):
        write_annotations(str(tmp_path), [])
