"""Accuracy of a model of person crops whose people are found by first stages, beside the same model with the people of the labels.

Scored are the validation pictures of --samples-uri, which have one annotated person each (`jobs.prepare --framing image --people single`),
from the pictures themselves. Rows:

* label: the person is framed from the label's centre and scale (oracle), which no unlabelled picture has.
* a first stage: the person is framed from what that model finds in the whole picture; no label is used.
* … alone: what that first stage itself says of the whole picture.

`change` is to the first row, with the interval of the difference, the same people resampled in both.
"""

import dataclasses
import os
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks import machine
from benchmarks.numerics import THRESHOLD, val_people
from posepipe import bootstrap, cluster, metrics, predictions, scoring, storage
from posepipe.columns import list_array
from posepipe.config import ScoreConfig
from posepipe.skeleton import NUM_JOINTS, PCKH_JOINTS


@dataclass(frozen=True, kw_only=True)
class TwoStagesConfig:
    """Accuracy of a model of person crops whose people are found by first stages, beside the same model with the people of the labels."""

    samples_uri: str
    """Samples of whole pictures of one person; their validation split names the pictures and the labels."""
    checkpoint_uri: str
    """A pose model of person crops."""
    first_stage_uri: tuple[str, ...]
    """Models of whole pictures: joints or head box."""
    flip_test: bool = False
    """Average with the mirrored crop, in both stages."""
    output_uri: str = ""
    """JSON file of all figures, the machine and the versions."""


@dataclass(frozen=True)
class Truth:
    """People in the order of their pictures: joints (N, 16, 2) and head boxes (N, 4) in image px, is_annotated (N, 16)."""

    uris: list[str]
    places: list[tuple[float, float, float]]
    joints: NDArray[np.float64]
    is_annotated: NDArray[np.bool_]
    head_boxes: NDArray[np.float64]

    @property
    def keys(self) -> NDArray[np.uint64]:
        return bootstrap.person_keys(self.uris)


def read_truth(samples_uri: str) -> Truth:
    images_uri, people = val_people(samples_uri, 0)
    people = [person for person in people if person["has_joints"] and person["head_box"] is not None]
    return Truth(
        [storage.join_uri(images_uri, person["image"]) for person in people],
        [(*person["center"], person["scale"]) for person in people],
        np.array([person["joints"] for person in people]).reshape(-1, NUM_JOINTS, 2),
        np.array([person["is_annotated"] for person in people]),
        np.array([person["head_box"] for person in people]),
    )


def score(truth: Truth, config: TwoStagesConfig, **changes: Any) -> dict[str, NDArray[np.float64]]:
    """Joints (N, 16, 2) or head boxes (N, 4) of the people in order, NaN where there is no prediction; by column."""
    with tempfile.TemporaryDirectory() as folder:
        shared = {"predictions_uri": f"{folder}/predictions", "flip_test": config.flip_test}
        if changes.pop("is_framed", False):
            lines = [f"{uri},{x},{y},{scale}" for uri, (x, y, scale) in zip(truth.uris, truth.places, strict=True)]
            inputs, text = f"{folder}/people.csv", "\n".join(["uri,center_x,center_y,scale", *lines])
        else:
            inputs, text = f"{folder}/pictures.txt", "\n".join(truth.uris)
        storage.write_bytes(inputs, text.encode())
        scoring.score(ScoreConfig(**{"images_uri": inputs, **shared, **changes}))
        table = predictions.read_predictions(f"{folder}/predictions")
    order = [table["uri"].to_pylist().index(uri) for uri in truth.uris]
    shapes = {"joints": (NUM_JOINTS, 2), "head_box": (4,)}
    return {
        name: list_array(table[name], *shape).astype(np.float64)[order]
        for name, shape in shapes.items()
        if table[name].null_count < len(table)
    }


def rate(truth: Truth, joints: NDArray[np.float64], reference: NDArray[np.float64] | None = None) -> dict[str, Any]:
    """Official PCKh@0.5 in percent and its change from the reference's, with 95 % intervals."""
    size = metrics.head_size(truth.head_boxes)
    errors, others = (
        metrics.joint_errors(each, truth.joints, truth.is_annotated, size)[:, PCKH_JOINTS]
        for each in (joints, joints if reference is None else reference)
    )
    hits, other_hits = ((each <= THRESHOLD).sum(axis=1) for each in (errors, others))
    values = np.stack([hits, hits - other_hits, (~np.isnan(errors)).sum(axis=1)], axis=1).astype(np.float64)
    sums = bootstrap.resample(truth.keys, values)
    total = values.sum(axis=0)
    with np.errstate(invalid="ignore"):
        found = [100 * sums[:, place] / sums[:, 2] for place in (0, 1)]
    return {
        "pckh": float(100 * total[0] / total[2]),
        "pckh_95": bootstrap.interval(found[0], len(joints)),
        "change": float(100 * total[1] / total[2]),
        "change_95": bootstrap.interval(found[1], len(joints)),
        "num_people": len(joints),
    }


def measure(config: TwoStagesConfig) -> list[dict[str, Any]]:
    truth = read_truth(config.samples_uri)
    oracle = score(truth, config, checkpoint_uri=(config.checkpoint_uri,), is_framed=True)["joints"]
    rows = [{"row": "label", **rate(truth, oracle)}]
    for uri in config.first_stage_uri:
        name = uri.rstrip("/").rpartition("/")[2]
        joints = score(truth, config, checkpoint_uri=(config.checkpoint_uri,), first_stage_uri=uri)["joints"]
        rows.append({"row": name, **rate(truth, joints, oracle)})
        alone = score(truth, config, checkpoint_uri=(uri,))
        if "joints" in alone:
            rows.append({"row": f"{name} alone", **rate(truth, alone["joints"], oracle)})
        else:
            counts = metrics.box_counts(alone["head_box"], truth.head_boxes)
            boxes = {"mean_iou": counts.mean_iou, "iou_50": counts.iou_at_50, "iou_75": counts.iou_at_75, "num_people": counts.num_boxes}
            rows.append({"row": f"{name} alone", **boxes})
    return rows


def main() -> None:
    config = tyro.cli(TwoStagesConfig)
    load_before = os.getloadavg()
    machine.start_ray(2 * machine.CORES)
    cluster.connect()
    rows = measure(config)
    for row in rows:
        if "pckh" in row:
            (low, high), (least, most) = row["pckh_95"], row["change_95"]
            said = f"PCKh@0.5 {row['pckh']:5.1f} ({low:.1f} to {high:.1f}), change {row['change']:+.1f} ({least:+.1f} to {most:+.1f})"
        else:
            said = f"head boxes: IoU >= 0.5 {100 * row['iou_50']:.1f}, >= 0.75 {100 * row['iou_75']:.1f}, mean {100 * row['mean_iou']:.1f}"
        print(f"{row['row']:24}{said}, {row['num_people']} people")
    if config.output_uri:
        figures = {"settings": dataclasses.asdict(config), "rows": rows}
        storage.write_json(config.output_uri, machine.record("two_stages", figures, load_before))


if __name__ == "__main__":
    main()
