"""Draws an MPII-shaped data set: images and an annotation file in the official layout.

Everything follows from a seed, and pictures are independent of each other, so that any number of processes can draw them. In memory,
coordinates are 0-based image px; only the annotation file is 1-based, as MPII's.
"""

import io
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.io import savemat

from posepipe import storage
from posepipe.figure import ACTIVITIES
from posepipe.mpii import ANNOTATION_FILE, IMAGES_FOLDER
from posepipe.scene import SyntheticPerson, draw_image
from posepipe.skeleton import HEAD_TOP, NUM_JOINTS, UPPER_NECK

TEST_EVERY = 7
"""Every seventh picture is a test picture: even a small data set has both splits."""

_EMPTY: NDArray[Any] = np.empty((0, 0))


def write_image(mpii_uri: str, index: int, seed: int) -> dict[str, Any]:
    """Draws picture `index` of the data set `seed` and writes it as images/NNNNNNNNN.jpg.

    Args:
        mpii_uri: the data set's folder.
        index: place in the list, from 0.
        seed: of the whole data set.

    Returns:
        What `write_annotations` needs: name, is_train, activity and people (0-based image px), of plain values only.
    """
    state = np.random.SeedSequence((seed, index)).generate_state(2)
    image = draw_image(int(state[0]))
    jpeg = io.BytesIO()
    image.picture.save(jpeg, "JPEG", quality=85 + int(state[1]) % 8)
    name = f"{index:09d}.jpg"
    storage.write_bytes(storage.join_uri(mpii_uri, IMAGES_FOLDER, name), jpeg.getvalue())
    is_train = index % TEST_EVERY != TEST_EVERY - 1
    return {
        "name": name,
        "is_train": is_train,
        "activity": image.people[-1].activity if image.people else None,
        "people": [_record(person, is_train) for person in image.people],
    }


def _record(person: SyntheticPerson, is_train: bool) -> dict[str, Any]:
    located = {"scale": person.scale, "objpos": person.objpos.tolist()}
    if not is_train:
        return located
    points = [
        (joint, *person.joints[joint].tolist(), None if joint in (UPPER_NECK, HEAD_TOP) else bool(person.is_visible[joint]))
        for joint in range(NUM_JOINTS)
        if np.isfinite(person.joints[joint]).all()
    ]
    return {**located, "head_box": person.head_box.tolist(), "points": points}


def write_annotations(mpii_uri: str, records: Sequence[dict[str, Any]]) -> None:
    """Writes the annotation file in the official layout; equal records give equal bytes.

    Args:
        mpii_uri: the data set's folder.
        records: of `write_image`, in the order of the list.

    Raises:
        ValueError: there are no records.
    """
    if not records:
        raise ValueError("expected at least one record of write_image, got none")
    release = {
        "annolist": _structs([_entry(record) for record in records]),
        "img_train": np.array([[record["is_train"] for record in records]], dtype=np.uint8),
        "version": "12",
        "single_person": _cells([_separated(record["people"]) for record in records]).T,
        "act": _structs([_act(record) for record in records]).T,
        "video_list": _cells([]),
    }
    file = io.BytesIO()
    savemat(cast(Any, file), {"RELEASE": _structs([release])}, do_compression=True, oned_as="column")
    # The first 116 bytes are a text that says when the file was made.
    data = b"MATLAB 5.0 MAT-file, drawn by posepipe".ljust(116) + file.getvalue()[116:]
    storage.write_bytes(storage.join_uri(mpii_uri, ANNOTATION_FILE), data)


def _entry(record: dict[str, Any]) -> dict[str, Any]:
    people = [_rectangle(person) for person in record["people"]]
    return {
        "image": _structs([{"name": record["name"]}]),
        "annorect": _structs(people) if people else _EMPTY,
        # No frames of videos.
        "frame_sec": _EMPTY,
        "vididx": _EMPTY,
    }


def _rectangle(person: dict[str, Any]) -> dict[str, Any]:
    """One struct of annorect; the only place where coordinates become 1-based."""
    x, y = person["objpos"]
    located = {"scale": _number(person["scale"]), "objpos": _structs([{"x": _number(x + 1), "y": _number(y + 1)}])}
    if "points" not in person:
        return located
    corners = {name: _number(value + 1) for name, value in zip(("x1", "y1", "x2", "y2"), person["head_box"], strict=True)}
    points = [
        {"x": _number(x + 1), "y": _number(y + 1), "id": _number(joint), "is_visible": _EMPTY if seen is None else _number(int(seen))}
        for joint, x, y, seen in person["points"]
    ]
    return {**corners, "annopoints": _structs([{"point": _structs(points)}]), **located}


def _separated(people: Sequence[dict[str, Any]]) -> NDArray[Any]:
    """The 1-based rectangle ids of people whose neighbours stand at least a person's width of MPII's crop away, as a column."""
    alone = [
        place
        for place, one in enumerate(people, start=1)
        if all(abs(one["objpos"][0] - other["objpos"][0]) > 125 * max(one["scale"], other["scale"]) for other in people if other is not one)
    ]
    return np.array(alone, dtype=np.uint8)[:, None] if alone else _EMPTY


def _act(record: dict[str, Any]) -> dict[str, Any]:
    """One struct of act; the activity of test pictures is not public."""
    if not record["is_train"] or record["activity"] is None:
        return {"cat_name": _EMPTY, "act_name": _EMPTY, "act_id": _number(-1)}
    return {"cat_name": record["activity"], "act_name": record["activity"], "act_id": _number(1 + ACTIVITIES.index(record["activity"]))}


def _number(value: float) -> NDArray[Any]:
    """A 1x1 array of the smallest type that holds the value, as scipy gives it for files saved by MATLAB."""
    kinds = (np.uint8, np.int16, np.int32) if value == int(value) else ()
    kind = next((kind for kind in kinds if np.iinfo(kind).min <= value <= np.iinfo(kind).max), np.float64)
    return np.array([[value]]).astype(kind)


def _structs(records: Sequence[dict[str, Any]]) -> NDArray[Any]:
    """A 1xN struct array of N records with the same fields."""
    array = np.empty((1, len(records)), dtype=[(name, object) for name in records[0]])
    for place, record in enumerate(records):
        array[0, place] = tuple(record.values())
    return array


def _cells(values: Sequence[Any]) -> NDArray[Any]:
    """A 1xN cell array."""
    array = np.empty((1, len(values)), dtype=object)
    for place, value in enumerate(values):
        array[0, place] = value
    return array
