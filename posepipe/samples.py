"""The sample record; persons + images -> samples; the samples of a split, read through their manifest.

A folder of samples holds `persons.parquet` (the parsed annotation file), `errors.parquet` (people whose picture could not be used),
`<split>/part-NNNNN-HASH.parquet` (SAMPLE records), `writers/` (of `posepipe.writers`) and, written last, `_MANIFEST.json`. Readers go by
the manifest alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from posepipe import geometry, images, metrics, storage
from posepipe.columns import float_array, list_array, list_column, text_array
from posepipe.config import Split
from posepipe.geometry import FloatArray
from posepipe.skeleton import NUM_JOINTS

ERRORS_FILE = "errors.parquet"

SAMPLE = pa.schema(
    [
        pa.field("sample_id", pa.string(), metadata={"doc": "image#person_index"}),
        pa.field("image", pa.string(), metadata={"doc": "file name below images/"}),
        pa.field("person_index", pa.int32(), metadata={"doc": "0-based place in annorect"}),
        pa.field("split", pa.string(), metadata={"doc": "train, val or test"}),
        pa.field("framing", pa.string(), metadata={"doc": "image or person"}),
        pa.field("width", pa.int32(), metadata={"doc": "image px"}),
        pa.field("height", pa.int32(), metadata={"doc": "image px"}),
        pa.field("crop", pa.binary(), metadata={"doc": "JPEG, the crop with the manifest's margin on each side"}),
        pa.field("crop_to_image", pa.list_(pa.float64()), metadata={"doc": "2 x 3 affine of the crop without its margin, row by row"}),
        pa.field("head_box", pa.list_(pa.float32()), metadata={"doc": "x1, y1, x2, y2 in px of the crop without its margin, or null"}),
        pa.field(
            "joints",
            pa.list_(pa.float32()),
            metadata={"doc": "x, y in px of the crop without its margin, NaN where not annotated"},
        ),
        pa.field("is_annotated", pa.list_(pa.bool_()), metadata={"doc": "a coordinate exists"}),
        pa.field("is_visible", pa.list_(pa.bool_()), metadata={"doc": "null where unknown"}),
        pa.field("head_size", pa.float32(), metadata={"doc": "0.6 x diagonal of the head box, image px, or null"}),
        pa.field("head_bone", pa.float32(), metadata={"doc": "head top to upper neck, image px, or null"}),
        pa.field("activity", pa.string(), metadata={"doc": "MPII's category of the picture, or null where unknown"}),
    ]
)


ERROR = pa.schema(
    [
        pa.field("image", pa.string(), metadata={"doc": "file name below images/"}),
        pa.field("person_index", pa.int32(), metadata={"doc": "0-based place in annorect"}),
        pa.field("split", pa.string(), metadata={"doc": "train, val or test"}),
        pa.field("status", pa.string(), metadata={"doc": "one of posepipe.images.STATUSES"}),
        pa.field("detail", pa.string(), metadata={"doc": "what was found"}),
    ]
)


# What `label_arrays` reads.
LABELS = ("sample_id", "crop_to_image", "head_box", "joints", "is_annotated", "head_size", "head_bone")

Decoded = dict[int, np.ndarray[Any, Any]]  # of `images.decode`


class Cut(NamedTuple):
    """What a sample has of its picture.

    Attributes:
        width: image px.
        height: image px.
        crop: JPEG, with its margin.
        crop_to_image: (2, 3), of the crop without its margin.
    """

    width: int
    height: int
    crop: bytes
    crop_to_image: FloatArray


def cut(
    data: bytes | OSError,
    person: dict[str, Any],
    framing: str,
    size: tuple[int, int],
    margin: tuple[int, int] = (0, 0),
    decoded: Decoded | None = None,
) -> Cut:
    """Cuts a person's crop out of the bytes of a picture; ImageError where the picture is no good.

    Args:
        data: the encoded picture, or why it could not be read.
        person: `center` and `scale` of a PERSON row.
        framing: image or person.
        size: width and height of the crop, px.
        margin: crop px (x, y) to store around it on each side.
        decoded: shared by the people of one picture, so that each scale of it is decoded once.
    """
    if isinstance(data, OSError):
        raise images.storage_error(data)
    header = images.read_header(data)
    if framing == "image":
        crop_to_image = geometry.frame_image(header.width, header.height, size)
    elif person["center"] is None:
        raise images.ImageError("unsupported", "the annotation has no objpos and scale: the person cannot be framed")
    else:
        crop_to_image = geometry.frame_person(person["center"], person["scale"], size)
    # What augmentation may bring in from the margin is not what the model sees otherwise.
    images.require_overlap(header, crop_to_image, size)
    stored_size = size[0] + 2 * margin[0], size[1] + 2 * margin[1]
    crop = images.crop(data, header, geometry.with_margin(crop_to_image, margin), stored_size, decoded)
    return Cut(header.width, header.height, images.encode_jpeg(crop), crop_to_image)


def build_table(people: pa.Table, cuts: Sequence[Cut], framing: str) -> pa.Table:
    """A SAMPLE table of the people of a PERSON table with the column `split`, each with its cut."""
    crop_to_image = np.stack([cut.crop_to_image for cut in cuts])
    image_to_crop = geometry.invert(crop_to_image)
    joints = list_array(people["joints"], NUM_JOINTS, 2)
    is_annotated = list_array(people["is_annotated"], NUM_JOINTS).astype(bool)
    head_box = list_array(people["head_box"], 4)
    columns = {
        **{name: people[name] for name in ("image", "person_index", "split", "is_annotated", "is_visible", "activity")},
        "sample_id": pc.binary_join_element_wise(people["image"], people["person_index"].cast(pa.string()), "#"),
        "framing": [framing] * len(cuts),
        "width": [cut.width for cut in cuts],
        "height": [cut.height for cut in cuts],
        "crop": [cut.crop for cut in cuts],
        "crop_to_image": list(crop_to_image.reshape(-1, 6)),
        "head_box": list_column(geometry.transform(image_to_crop, head_box.reshape(-1, 2, 2)).reshape(-1, 4), pa.float32()),
        "joints": list(geometry.transform(image_to_crop, joints).reshape(-1, 2 * NUM_JOINTS)),
        "head_size": pa.array(metrics.head_size(head_box), from_pandas=True).cast(pa.float32()),
        "head_bone": pa.array(metrics.head_bone(joints, is_annotated), from_pandas=True).cast(pa.float32()),
    }
    return pa.table({name: columns[name] for name in SAMPLE.names}, schema=SAMPLE)


def read_manifest(samples_uri: str) -> dict[str, Any]:
    """The manifest of complete samples; ValueError where there are none."""
    try:
        return storage.read_json(storage.join_uri(samples_uri, storage.MANIFEST))
    except FileNotFoundError as error:
        raise ValueError(f"no complete samples at {samples_uri}: expected {storage.MANIFEST}, which jobs.prepare writes last") from error


def crop_size(manifest: dict[str, Any]) -> tuple[int, int]:
    """Width and height of the crops, px, without their margin."""
    size = manifest["size"]
    # Samples of older versions are square.
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def crop_margin(manifest: dict[str, Any]) -> tuple[int, int]:
    """What is stored around the crops, px (x, y) on each side."""
    # Samples of older versions have none.
    x, y = manifest.get("margin", (0, 0))
    return x, y


def fingerprint(manifest: dict[str, Any]) -> str:
    """Names the samples by what they are; where their pictures lie may change."""
    return storage.fingerprint({name: value for name, value in manifest.items() if name != "images_uri"})


def list_split(samples_uri: str, split: Split) -> list[str]:
    """URIs of the files of one split; ValueError where it is empty."""
    manifest = read_manifest(samples_uri)
    files = [storage.join_uri(samples_uri, item["file"]) for item in manifest["files"] if item["split"] == split]
    if not files:
        raise ValueError(f"{samples_uri} has no {split} samples; rows per split: {manifest['rows']}")
    return files


def label_arrays(table: pa.Table) -> dict[str, np.ndarray[Any, Any]]:
    """The labels of a SAMPLE table as arrays, named like its columns; NaN where null.

    Returns:
        sample_id (N,), crop_to_image (N, 2, 3), head_box (N, 4) crop px, joints (N, 16, 2) crop px, is_annotated (N, 16),
        head_size (N,) and head_bone (N,) image px.
    """
    return {
        "sample_id": text_array(table["sample_id"]).astype(str),
        "crop_to_image": list_array(table["crop_to_image"], 2, 3),
        "head_box": list_array(table["head_box"], 4),
        "joints": list_array(table["joints"], NUM_JOINTS, 2),
        "is_annotated": list_array(table["is_annotated"], NUM_JOINTS).astype(bool),
        **{name: float_array(table[name]) for name in ("head_size", "head_bone")},
    }
