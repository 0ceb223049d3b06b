"""How far the pixels of `images.crop` are from a full-size decode and an area resize, in grey levels and in PCKh.

    python -m benchmarks.numerics --samples-uri samples --checkpoint-uri runs/pose

The pictures are those of the validation people of samples, each cut by both framings at every size. Beside the reference there are three
ways to a crop: `crop` as scoring sees it, `stored` as training sees it (the same through the JPEG of the samples), and `triangle`, the full
decode with the triangle filter that `crop` uses, which tells what the scaled decode changes from what the filter does. The reference
averages the area under each pixel; where a crop enlarges the picture there is no area to average, and it interpolates as `crop` does.

With checkpoints, the people are predicted and scored from the crops of each way, in the framing and size of each model; several models are
pooled. Beside PCKh@0.5 there is its mean over thresholds from 0.4 to 0.6: what pixels do to joints near the one threshold they do to those
near its neighbours, and with more of them chance counts less.
"""

import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image

from benchmarks import machine
from posepipe import bootstrap, geometry, images, metrics, preparing, samples, storage
from posepipe.models import load_model
from posepipe.skeleton import NUM_JOINTS, PCKH_JOINTS

LEVELS = 256
THRESHOLD = 0.5
NEIGHBOURS = np.linspace(0.4, 0.6, 41)
BATCH = 64

Crop = Callable[[bytes, images.Header, geometry.FloatArray, tuple[int, int]], NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class NumericsConfig:
    """How far the pixels of `images.crop` are from a full-size decode and an area resize, in grey levels and in PCKh."""

    samples_uri: str
    """Samples, of any framing and size, whose validation people are cut anew from their pictures."""
    sizes: tuple[int, ...] = (128, 220)
    """Sides of the crops in px."""
    num_people: int = 0
    """Validation people, the first ones; 0: all."""
    checkpoint_uri: tuple[str, ...] = ()
    """Runs of task pose, whose pooled PCKh with the crops of each way is compared; without one only pixels are."""
    output_uri: str = ""
    """JSON file of all figures, the machine and the versions."""

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1 or self.num_people < 0:
            raise ValueError("--sizes must be at least 1, --num-people at least 0")


def area(data: bytes, header: images.Header, crop_to_image: geometry.FloatArray, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The reference: all pixels decoded, and averaged by area."""
    return _from_full(data, crop_to_image, size, Image.Resampling.BOX)


def triangle(data: bytes, header: images.Header, crop_to_image: geometry.FloatArray, size: tuple[int, int]) -> NDArray[np.uint8]:
    """All pixels decoded, and the filter of `images.crop`."""
    return _from_full(data, crop_to_image, size, Image.Resampling.BILINEAR)


def stored(data: bytes, header: images.Header, crop_to_image: geometry.FloatArray, size: tuple[int, int]) -> NDArray[np.uint8]:
    """`images.crop` through the JPEG of the samples."""
    return images.decode_jpeg(images.encode_jpeg(images.crop(data, header, crop_to_image, size)))


WAYS: dict[str, Crop] = {"crop": images.crop, "stored": stored, "triangle": triangle}


def _from_full(data: bytes, crop_to_image: geometry.FloatArray, size: tuple[int, int], resampling: Image.Resampling) -> NDArray[np.uint8]:
    """For upright frames; black where they leave the picture."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    edges = (geometry.transform(crop_to_image, [(-0.5, -0.5), (size[0] - 0.5, size[1] - 0.5)]) + 0.5).round(6)
    if np.any(edges[1] - edges[0] < size):
        resampling = Image.Resampling.BILINEAR
    if edges.min() < 0 or edges[1, 0] > picture.width or edges[1, 1] > picture.height:
        # Pillow resizes no box outside the picture.
        left, top = np.floor(np.minimum(edges[0], 0)).astype(int) - 8
        right, bottom = np.ceil(np.maximum(edges[1], picture.size)).astype(int) + 8
        canvas = Image.new("RGB", (int(right - left), int(bottom - top)))
        canvas.paste(picture, (int(-left), int(-top)))
        picture, edges = canvas, edges - (left, top)
    (x1, y1), (x2, y2) = edges.tolist()
    return np.asarray(picture.resize(size, resampling, box=(x1, y1, x2, y2)))


class Differences:
    """Counts of absolute differences, which add up whatever the number of crops."""

    def __init__(self) -> None:
        self._counts = np.zeros(LEVELS, dtype=np.int64)
        self._means: list[float] = []

    def add(self, one: NDArray[np.uint8], other: NDArray[np.uint8]) -> None:
        difference = np.abs(one.astype(np.int16) - other)
        self._counts += np.bincount(difference.ravel(), minlength=LEVELS)
        self._means.append(float(difference.mean()))

    def row(self) -> dict[str, float]:
        """In grey levels of 255, over all values of all crops; worst_crop is the largest mean of a crop."""
        shares = np.cumsum(self._counts) / self._counts.sum()
        return {
            "mean": float(self._counts @ np.arange(LEVELS) / self._counts.sum()),
            "p99": float(np.searchsorted(shares, 0.99)),
            "largest": float(np.flatnonzero(self._counts)[-1]),
            "worst_crop": max(self._means),
        }


def val_people(samples_uri: str, num_people: int) -> tuple[str, list[dict[str, Any]]]:
    """The folder of the pictures, and the PERSON rows of the validation people."""
    manifest = samples.read_manifest(samples_uri)
    tables = [storage.read_table(uri, ["image", "person_index"]) for uri in samples.list_split(samples_uri, "val")]
    wanted = {(row["image"], row["person_index"]) for table in tables for row in table.to_pylist()}
    persons = storage.read_table(storage.join_uri(samples_uri, preparing.PERSONS_FILE)).to_pylist()
    chosen = [row for row in persons if (row["image"], row["person_index"]) in wanted and row["center"] is not None]
    return manifest["images_uri"], chosen[: num_people or None]


def frame(framing: str, header: images.Header, person: dict[str, Any], size: tuple[int, int]) -> geometry.FloatArray:
    if framing == "image":
        return geometry.frame_image(header.width, header.height, size)
    return geometry.frame_person(person["center"], person["scale"], size)


def compare_pixels(images_uri: str, people: list[dict[str, Any]], sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """A row per framing, size and way to a crop."""
    found: dict[tuple[str, int, str], Differences] = {}
    crops: Counter[tuple[str, int]] = Counter()
    seen: set[str] = set()
    for person in people:
        data = storage.read_bytes(storage.join_uri(images_uri, person["image"]))
        header = images.read_header(data)
        for framing in ("person",) if person["image"] in seen else ("image", "person"):
            for side in sizes:
                affine = frame(framing, header, person, (side, side))
                reference = area(data, header, affine, (side, side))
                crops[framing, side] += 1
                for way, cut in WAYS.items():
                    found.setdefault((framing, side, way), Differences()).add(cut(data, header, affine, (side, side)), reference)
        seen.add(person["image"])
    return [
        {"framing": framing, "size": side, "way": way, "crops": crops[framing, side], **differences.row()}
        for (framing, side, way), differences in sorted(found.items())
    ]


def compare_scores(images_uri: str, people: list[dict[str, Any]], checkpoint_uris: Sequence[str]) -> list[dict[str, Any]]:
    """Official PCKh of the people with the crops of each way, in percent, its change from the reference's and how far the points move.

    Joints are pooled over the models; the intervals resample people, each with what all models say of them. `pckh` is at `THRESHOLD`,
    `pckh_near` the mean over `NEIGHBOURS`.

    Raises:
        ValueError: a checkpoint is not one of task pose.
    """
    labelled = [person for person in people if person["has_joints"] and person["head_box"] is not None]
    truth = np.array([person["joints"] for person in labelled]).reshape(-1, NUM_JOINTS, 2)
    annotated = np.array([person["is_annotated"] for person in labelled])
    size = metrics.head_size(np.array([person["head_box"] for person in labelled]))
    of_models = [predict(images_uri, labelled, uri) for uri in checkpoint_uris]
    # way -> (models, people, joints)
    errors, moves = {}, {}
    for way in ("area", *WAYS):
        errors[way] = np.stack([metrics.joint_errors(points[way], truth, annotated, size)[:, PCKH_JOINTS] for points in of_models])
        moves[way] = np.stack([metrics.joint_errors(points[way], points["area"], annotated, size) for points in of_models])
    hits = {way: each <= THRESHOLD for way, each in errors.items()}
    near = {way: (each[..., None] <= NEIGHBOURS).mean(axis=-1) for way, each in errors.items()}
    num_joints = np.isfinite(errors["area"]).sum(axis=(0, 2))
    keys = bootstrap.person_keys(f"{person['image']}#{person['person_index']}" for person in labelled)
    rows = []
    for way in errors:
        changes = np.stack([(each[way].astype(np.float64) - each["area"]).sum(axis=(0, 2)) for each in (hits, near)], axis=1)
        sums = bootstrap.resample(keys, np.column_stack([changes, num_joints]).astype(np.float64))
        with np.errstate(invalid="ignore"):  # a resample that drew nobody
            resampled = 100 * sums[:, :2] / sums[:, 2:]
        row: dict[str, Any] = {"way": way, "num_models": len(of_models), "num_people": len(labelled), "num_joints": int(num_joints.sum())}
        for place, (name, each) in enumerate({"pckh": hits, "pckh_near": near}.items()):
            row[name] = float(100 * each[way].sum() / num_joints.sum())
            row[f"{name}_change"] = float(100 * changes[:, place].sum() / num_joints.sum())
            row[f"{name}_change_95"] = bootstrap.interval(resampled[:, place], len(labelled))
        row["gained"], row["lost"] = (
            int(np.count_nonzero(one & ~other)) for one, other in ((hits[way], hits["area"]), (hits["area"], hits[way]))
        )
        row["median_move_in_head_sizes"] = float(np.nanmedian(moves[way]))
        rows.append(row)
    return rows


@torch.inference_mode()
def predict(images_uri: str, people: list[dict[str, Any]], checkpoint_uri: str) -> dict[str, NDArray[np.float64]]:
    """Way -> points (N, 16, 2) in image px."""
    model, _ = load_model(checkpoint_uri)
    config = model.config
    if config.task != "pose":
        raise ValueError(f"--checkpoint-uri must be a run of task pose, {checkpoint_uri} is of task {config.task}")
    points = {}
    for way, cut in {"area": area, **WAYS}.items():
        parts = []
        for batch in _batches(people):
            crops, affines = [], []
            for person in batch:
                data = storage.read_bytes(storage.join_uri(images_uri, person["image"]))
                header = images.read_header(data)
                affines.append(frame(config.framing, header, person, config.size))
                crops.append(cut(data, header, affines[-1], config.size))
            pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()
            parts.append(geometry.transform(np.stack(affines), model.predict(pixels)[0].double().numpy()))
        points[way] = np.concatenate(parts)
    return points


def _batches(people: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    return (people[start : start + BATCH] for start in range(0, len(people), BATCH))


def main() -> None:
    config = tyro.cli(NumericsConfig)
    load_before = os.getloadavg()
    images_uri, people = val_people(config.samples_uri, config.num_people)
    pixels = compare_pixels(images_uri, people, config.sizes)
    print("difference from a full decode and an area resize, grey levels")
    print(f"{'framing':9}{'size':>5}  {'way':9}{'crops':>6}{'mean':>7}{'99 %':>6}{'largest':>9}{'worst crop':>12}")
    for row in pixels:
        print(
            f"{row['framing']:9}{row['size']:5}  {row['way']:9}{row['crops']:6}{row['mean']:7.2f}{row['p99']:6.0f}{row['largest']:9.0f}"
            f"{row['worst_crop']:12.2f}"
        )
    scores = compare_scores(images_uri, people, config.checkpoint_uri) if config.checkpoint_uri else []
    for row in scores:
        text = f"{row['way']:9} of {row['num_people']} people and {row['num_models']} models"
        for name, label in (("pckh", "PCKh@0.5"), ("pckh_near", "PCKh@0.4..0.6")):
            low, high = row[f"{name}_change_95"]
            text += f"; {label} {row[name]:.2f}, {row[f'{name}_change']:+.2f} to area ({low:+.2f} .. {high:+.2f})"
        print(
            f"{text}; of {row['num_joints']} joints {row['gained']} gained, {row['lost']} lost; "
            f"half of the points move by less than {row['median_move_in_head_sizes']:.3f} head sizes"
        )
    if config.output_uri:
        storage.write_json(config.output_uri, machine.record("numerics", {"pixels": pixels, "scores": scores}, load_before))


if __name__ == "__main__":
    main()
