"""What a training run is of: the samples, decoded once and in parallel into Ray's object store."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray

from posepipe import cluster, images, samples, storage
from posepipe.config import Split, TrainConfig
from posepipe.geometry import transform
from posepipe.tasks import TASKS

# What a manifest says of the crops themselves, which a network sees.
CROP = ("framing", "size", "margin")


@dataclass(frozen=True)
class TrainingData:
    """Decoded samples in Ray's object store.

    Attributes:
        train: columns of `load_pixels`, with the margin.
        val: the same, without.
        manifest: of the samples.
        extra: the manifests of those that were added to the train split.
        mean_points: (num_points, 2) mean of the train labels, unit frame.
        floor: the score of mean_points on val.
    """

    train: ray.data.Dataset
    val: ray.data.Dataset
    manifest: dict[str, Any]
    extra: tuple[dict[str, Any], ...]
    mean_points: NDArray[np.float64]
    floor: dict[str, Any]


def load_data(config: TrainConfig) -> TrainingData:
    """Decodes both splits; ValueError where one is empty, has no label for the task, or holds a person twice."""
    task = TASKS[config.task]
    manifest, *extra = read_manifests(config)
    samples_uri, extra_uris = storage.resolve_uri(config.samples_uri), [storage.resolve_uri(uri) for uri in config.extra_samples_uri]
    train = load_pixels([samples_uri, *extra_uris], "train", keep_margin=True).materialize()
    # The margin is for augmentation, and takes memory.
    val = load_pixels([samples_uri], "val", keep_margin=False).materialize()
    train_labels, val_labels = _collect_labels(train), _collect_labels(val)
    if extra_uris:
        _check_ids(np.concatenate([train_labels["sample_id"], val_labels["sample_id"]]), [samples_uri, *extra_uris])
    size = samples.crop_size(manifest)
    truth = task.truth(train_labels) / size
    if not np.isfinite(truth).any(axis=(0, 2)).all():
        raise ValueError(f"the train split of {samples_uri} has no label for some points of the task {config.task!r}")
    if len(truth) < 2:
        raise ValueError(f"the train split of {samples_uri} has 1 sample; a step needs two")
    mean_points = np.nanmean(truth, axis=0)
    pixels = np.broadcast_to(mean_points * size, task.truth(val_labels).shape)
    floor = task.evaluate(transform(val_labels["crop_to_image"], pixels), val_labels)
    if not floor.num_scored:
        raise ValueError(f"the val split of {samples_uri} has nothing to score for the task {config.task!r}")
    return TrainingData(train, val, manifest, tuple(extra), mean_points, floor.summary())


def read_manifests(config: TrainConfig) -> list[dict[str, Any]]:
    """Of the samples and of those that are added to the train split; ValueError where the crops of two are not of one kind."""
    uris = [storage.resolve_uri(uri) for uri in (config.samples_uri, *config.extra_samples_uri)]
    manifests = [samples.read_manifest(uri) for uri in uris]
    for uri, manifest in zip(uris[1:], manifests[1:], strict=True):
        for name in CROP:
            if manifest.get(name) != manifests[0].get(name):
                raise ValueError(
                    f"--extra-samples-uri must hold crops like those of --samples-uri: the {name} of {uri} is {manifest.get(name)!r}, "
                    f"that of {uris[0]} is {manifests[0].get(name)!r}"
                )
    return manifests


def _check_ids(sample_ids: NDArray[np.str_], uris: Sequence[str]) -> None:
    ids, counts = np.unique(sample_ids, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"a person may be in one place only, but {(counts > 1).sum()} are there more than once in the samples {', '.join(uris)}, "
            f"{str(ids[counts > 1][0])!r} among them"
        )


def load_pixels(samples_uris: Sequence[str], split: Split, keep_margin: bool) -> ray.data.Dataset:
    """The samples of one split with their crops decoded, one block per file.

    The columns are SAMPLE's, with `pixels` (fixed-size binary, height x width x 3 uint8 RGB) instead of `crop`: of the crop alone, or with
    the margin around it.
    """
    files = [file for uri in samples_uris for file in samples.list_split(uri, split)]
    size = None if keep_margin else samples.crop_size(samples.read_manifest(samples_uris[0]))
    dataset = cluster.from_items([{"uri": uri} for uri in files])
    return dataset.map_batches(_decode_crops, batch_size=1, batch_format="pyarrow", fn_kwargs={"size": size})


def _decode_crops(batch: pa.Table, size: tuple[int, int] | None) -> pa.Table:
    """`pixels` instead of `crop`: all that is stored, or what lies within this size."""
    table = storage.read_table(batch["uri"][0].as_py())
    stored = [images.decode_jpeg(crop) for crop in table["crop"].to_pylist()]
    pixels = [(crop if size is None else images.cut_margin(crop, size)).tobytes() for crop in stored]
    column = pa.array(pixels, pa.binary(len(pixels[0])))
    return table.drop_columns(["crop"]).append_column("pixels", column)


def _collect_labels(dataset: ray.data.Dataset) -> dict[str, NDArray[Any]]:
    # Without the pixels, which would all come to the driver's node.
    tables = list(dataset.drop_columns(["pixels"]).iter_batches(batch_size=None, batch_format="pyarrow"))
    return samples.label_arrays(pa.concat_tables(tables))
