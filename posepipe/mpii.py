"""The MPII annotation file -> persons (the only place that knows .mat and 1-based pixels).

The official layout: http://human-pose.mpi-inf.mpg.de/#download. Its irregularities are normal here: empty `annorect`, people without
`annopoints`, fields that differ from picture to picture, joints in any order or absent, `is_visible` empty or absent, test people with
nothing but `scale` and `objpos`, small unsigned integers that wrap around when subtracted.
"""

import io
import json
import math
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.io import loadmat

from posepipe import storage
from posepipe.skeleton import JOINT_NAMES, NUM_JOINTS

ANNOTATION_FILE = "mpii_human_pose_v1_u12_1.mat"
IMAGES_FOLDER = "images"

Listed = dict[str, list[tuple[float, float]] | None]
"""Picture -> objpos of some of its people, in image px (0-based), or None for all of them."""

_EMPTY = np.empty((0, 0))

# One row per picture of the list, in its order.
IMAGE = pa.schema(
    [
        pa.field("image", pa.string(), metadata={"doc": "file name below images/"}),
        pa.field("is_train", pa.bool_(), metadata={"doc": "MPII's own flag; joints of test pictures are not public"}),
    ]
)

# One row per rectangle of the list that says anything usable: annotated people (train), located people (test).
PERSON = pa.schema(
    [
        pa.field("image", pa.string(), metadata={"doc": "file name below images/"}),
        pa.field("person_index", pa.int32(), metadata={"doc": "0-based place in annorect (MPII's ridx - 1)"}),
        pa.field("is_train", pa.bool_(), metadata={"doc": "MPII's own flag"}),
        pa.field("has_joints", pa.bool_(), metadata={"doc": "carries annopoints"}),
        pa.field("joints", pa.list_(pa.float32()), metadata={"doc": "x, y in image px (0-based), NaN where not annotated"}),
        pa.field("is_annotated", pa.list_(pa.bool_()), metadata={"doc": "a coordinate exists"}),
        pa.field("is_visible", pa.list_(pa.bool_()), metadata={"doc": "null where unknown"}),
        pa.field("head_box", pa.list_(pa.float32()), metadata={"doc": "x1, y1, x2, y2 in image px (0-based), or null"}),
        pa.field("center", pa.list_(pa.float64()), metadata={"doc": "objpos in image px (0-based), or null"}),
        pa.field("scale", pa.float64(), metadata={"doc": "person height / 200 px, or null"}),
        pa.field("activity", pa.string(), metadata={"doc": "MPII's category of the picture, or null where unknown"}),
        pa.field("video", pa.int32(), metadata={"doc": "MPII's vididx of the picture: whose frames are alike; null where unknown"}),
    ]
)


def read_annotations(mpii_uri: str) -> tuple[pa.Table, pa.Table]:
    """Reads the annotation file below `mpii_uri`.

    Returns:
        An IMAGE table and a PERSON table.

    Raises:
        ValueError: there is no such file, or it is not MPII's.
    """
    uri = storage.join_uri(mpii_uri, ANNOTATION_FILE)
    return parse_annotations(read_annotation_file(mpii_uri), uri)


def read_annotation_file(mpii_uri: str) -> bytes:
    """The bytes of the annotation file below `mpii_uri`; ValueError where there is none."""
    uri = storage.join_uri(mpii_uri, ANNOTATION_FILE)
    try:
        return storage.read_bytes(uri)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"no annotation file at {uri}: --mpii-uri must hold {ANNOTATION_FILE} and {IMAGES_FOLDER}/") from error
    except PermissionError as error:
        raise ValueError(f"the storage refuses to hand out {uri}: {error}") from error


def parse_annotations(data: bytes, uri: str = ANNOTATION_FILE) -> tuple[pa.Table, pa.Table]:
    """As `read_annotations`, from the bytes of the file; `uri` is for messages."""
    try:
        contents = loadmat(cast(Any, io.BytesIO(data)), variable_names=["RELEASE"])
    except Exception as error:  # scipy raises many kinds on a file that is not MATLAB's.
        raise ValueError(f"{uri} is not a MATLAB 5 file: {error}") from error
    if "RELEASE" not in contents or not {"annolist", "img_train"} <= set(contents["RELEASE"].dtype.names or ()):
        raise ValueError(f"{uri} is not MPII's annotation file: expected a struct RELEASE with annolist and img_train")
    release = contents["RELEASE"][0, 0]
    entries, train_flags = release["annolist"].ravel(), release["img_train"].ravel()
    if len(entries) != len(train_flags):
        raise ValueError(f"{uri}: {len(entries)} entries in annolist but {len(train_flags)} in img_train")
    if not len(entries):
        raise ValueError(f"{uri} lists no images")
    activities = _activities(release, len(entries), uri)
    images: list[dict[str, Any]] = []
    persons: list[dict[str, Any]] = []
    for entry, flag, activity in zip(entries, train_flags, activities, strict=True):
        name, is_train = str(entry["image"][0, 0]["name"].item()), bool(flag)
        if name.startswith("/") or "://" in name or ".." in name.split("/"):
            raise ValueError(f"{uri} names a picture outside of {IMAGES_FOLDER}/: {name!r}")
        images.append({"image": name, "is_train": is_train})
        [(video,)] = _numbers(entry, ["vididx"])
        picture = {"image": name, "is_train": is_train, "activity": activity, "video": None if video is None else int(video)}
        rectangles = entry["annorect"].ravel() if entry["annorect"].dtype.names else ()
        for person_index, rectangle in enumerate(rectangles):
            person = _parse_person(rectangle)
            if person["has_joints"] if is_train else person["center"] is not None:
                persons.append({**picture, "person_index": person_index, **person})
    return pa.Table.from_pylist(images, IMAGE), pa.Table.from_pylist(persons, PERSON)


def _activities(release: np.void, num_images: int, uri: str) -> list[str | None]:
    """The category of each picture, None where it is not known; some releases have no `act` at all."""
    records = _field(release, "act").ravel()
    if not records.size:
        return [None] * num_images
    if len(records) != num_images:
        raise ValueError(f"{uri}: {num_images} entries in annolist but {len(records)} in act")
    names = [_field(record, "cat_name").ravel() for record in records]
    return [str(name[0]) if name.size and str(name[0]) else None for name in names]


def _parse_person(rectangle: np.void) -> dict[str, Any]:
    joints = np.full((NUM_JOINTS, 2), np.nan, dtype=np.float32)
    is_visible: list[bool | None] = [None] * NUM_JOINTS
    annopoints = _field(rectangle, "annopoints")
    points = _field(annopoints.flat[0], "point").ravel() if annopoints.size and annopoints.dtype.names else _EMPTY
    for joint, x, y, visible in _numbers(points, ("id", "x", "y", "is_visible")):
        if joint is None or x is None or y is None or not 0 <= joint < NUM_JOINTS:
            continue
        joints[int(joint)] = x - 1, y - 1
        is_visible[int(joint)] = None if visible is None else bool(visible)
    [(*corners, scale)] = _numbers(rectangle, ("x1", "y1", "x2", "y2", "scale"))
    objpos = _field(rectangle, "objpos")
    center = _numbers(objpos.flat[0], "xy")[0] if objpos.size and objpos.dtype.names else [None]
    is_located = scale is not None and scale > 0 and None not in center
    is_annotated = np.isfinite(joints).all(axis=1)
    return {
        "has_joints": bool(is_annotated.any()),
        "joints": joints.ravel(),
        "is_annotated": is_annotated,
        "is_visible": is_visible,
        "head_box": None if None in corners else [corner - 1 for corner in corners if corner is not None],
        "center": [value - 1 for value in center if value is not None] if is_located else None,
        "scale": scale if is_located else None,
    }


def _field(record: np.void, name: str) -> np.ndarray[Any, Any]:
    """The field as an array; empty where the record does not have it."""
    return record[name] if name in (record.dtype.names or ()) else _EMPTY


def _numbers(records: "np.ndarray[Any, Any] | np.void", names: Iterable[str]) -> list[list[float | None]]:
    """These fields of each record as floats, None where absent, empty or not finite."""
    fields = records.dtype.names or ()
    places = [fields.index(name) if name in fields else None for name in names]
    # As tuples: a field of a numpy record costs ten times as much, and MPII's list has two million.
    rows: Any = records.tolist()
    return [[None if place is None else _number(row[place]) for place in places] for row in (rows if isinstance(rows, list) else [rows])]


def _number(values: np.ndarray[Any, Any]) -> float | None:
    # Some releases hold is_visible as text.
    value = values.item(0) if values.size else ""
    number = float(value) if value != "" else math.nan
    return number if math.isfinite(number) else None


def select_people(persons: pa.Table, people: str) -> pa.Table:
    """The persons of `people`: "all", or "single": of pictures with exactly one annotated (train) or located (test) person.

    "single" on MPII's train pictures is the paper's set of 11,503: other rectangles may be in the list, without joints.
    """
    if people == "all":
        return persons
    names, counts = np.unique(persons["image"].to_numpy(zero_copy_only=False).astype(str), return_counts=True)
    single = pa.array(names[counts == 1], pa.string())
    return persons.filter(pc.is_in(persons["image"], value_set=single))


def inventory(images: pa.Table, persons: pa.Table, present: set[str]) -> dict[str, Any]:
    """What a data set holds, as plain numbers.

    Args:
        images: IMAGE table.
        persons: PERSON table.
        present: names of the files below images/.
    """
    num_train = int(np.count_nonzero(images["is_train"]))
    annotated = persons.filter(persons["has_joints"])
    labels = np.array(annotated["is_annotated"].combine_chunks().flatten()).reshape(-1, NUM_JOINTS)
    single = select_people(annotated, "single")
    return {
        "images": images.num_rows,
        "train": num_train,
        "test": images.num_rows - num_train,
        "annotated_people": annotated.num_rows,
        "located_test_people": persons.num_rows - annotated.num_rows,
        "single_person_train_images": single.num_rows,
        "people_with_all_joints": int(labels.all(axis=1).sum()),
        "joints_labelled": dict(zip(JOINT_NAMES, labels.sum(axis=0).tolist(), strict=True)),
        "images_missing": sum(name not in present for name in images["image"].to_pylist()),
    }


def parse_val_list(text: str) -> Listed:
    """A list of validation pictures, a name per line, or of validation people, as HRNet's valid.json: [{"image": …, "center": …}, …].

    The standard 2,958 people are fewer than half of those in their pictures.
    https://github.com/leoxiaobin/deep-high-resolution-net.pytorch/blob/master/lib/dataset/mpii.py

    Raises:
        KeyError, TypeError, ValueError: it is JSON, but no such list.
    """
    if not text.lstrip().startswith("["):
        return {name: None for line in text.splitlines() if (name := line.strip())}
    listed: Listed = {}
    for item in json.loads(text):
        if not isinstance(item, dict) or "center" not in item:
            listed[item["image"] if isinstance(item, dict) else str(item)] = None
        elif (centers := listed.setdefault(item["image"], [])) is not None:
            x, y = item["center"]
            centers.append((x - 1.0, y - 1.0))
    return listed
