"""What a training run is of: the samples, in Ray's object store, decoded once and in parallel or as they are stored."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray

from posepipe import capacity, cluster, images, samples, storage
from posepipe.config import CacheKind, Split, TrainConfig
from posepipe.geometry import transform
from posepipe.tasks import TASKS

# What a manifest says of the crops themselves, which a network sees.
CROP = ("framing", "size", "margin", "pixels")


@dataclass(frozen=True)
class TrainingData:
    """Samples in Ray's object store.

    Attributes:
        train: columns of `load_crops`, with the margin.
        val: the same; decoded, without the margin.
        manifest: of the samples.
        cache: as what they are kept: decoded or encoded.
        extra: the manifests of those that were added to the train split.
        mean_points: (num_points, 2) mean of the train labels, unit frame.
        floor: the score of mean_points on val.
    """

    train: ray.data.Dataset
    val: ray.data.Dataset
    manifest: dict[str, Any]
    cache: CacheKind
    extra: tuple[dict[str, Any], ...]
    mean_points: NDArray[np.float64]
    floor: dict[str, Any]

    @property
    def num_train(self) -> int:
        """People in the train split, those of added samples among them."""
        return sum(manifest["rows"]["train"] for manifest in (self.manifest, *self.extra))


def load_data(config: TrainConfig) -> TrainingData:
    """Loads both splits; ValueError where one is empty, has no label for the task, or holds a person twice."""
    task = TASKS[config.task]
    manifest, *extra = read_manifests(config)
    samples_uri, extra_uris = storage.resolve_uri(config.samples_uri), [storage.resolve_uri(uri) for uri in config.extra_samples_uri]
    kind, num_bytes = choose_cache(config)
    if config.sample_cache == "auto" and kind == "encoded":
        is_known = capacity.room_for_cache(config.cpus_per_worker, int(config.use_gpu)) < math.inf
        reason = "decoded they would not fit" if is_known else "no node that takes a worker is up yet to say what it holds"
        print(f"samples: {reason}, so their JPEGs are kept ({num_bytes / 2**30:.1f} GiB); --sample-cache decides otherwise", flush=True)
    # The margin is for augmentation, and takes memory. Both are there before the one is loaded: an empty one is found at once.
    train = load_crops([samples_uri, *extra_uris], "train", kind, keep_margin=True)
    val = load_crops([samples_uri], "val", kind, keep_margin=False)
    train, val = train.materialize(), val.materialize()
    train_labels, val_labels = _collect_labels(train), _collect_labels(val)
    if extra_uris:
        _check_ids(np.concatenate([train_labels["sample_id"], val_labels["sample_id"]]), [samples_uri, *extra_uris])
    size = samples.crop_size(manifest)
    truth = task.truth(train_labels) / size
    if not np.isfinite(truth).any(axis=(0, 2)).all():
        raise ValueError(f"the train split of {samples_uri} has no label for some points of the task {config.task!r}")
    if len(truth) < 2:
        raise ValueError(f"the train split of {samples_uri} has 1 sample; a step needs two")
    shown = f"{manifest['framing']} framing, {size[0]} x {size[1]} px"
    print(f"samples: {shown}, {len(truth)} people to train on, {len(val_labels['sample_id'])} to validate on", flush=True)
    mean_points = np.nanmean(truth, axis=0)
    pixels = np.broadcast_to(mean_points * size, task.truth(val_labels).shape)
    floor = task.evaluate(transform(val_labels["crop_to_image"], pixels), val_labels)
    if not floor.num_scored:
        raise ValueError(f"the val split of {samples_uri} has nothing to score for the task {config.task!r}")
    return TrainingData(train, val, manifest, kind, tuple(extra), mean_points, floor.summary())


def read_manifests(config: TrainConfig) -> list[dict[str, Any]]:
    """Of the samples and of those that are added to the train split; ValueError where the crops of two are not of one kind."""
    uris = [storage.resolve_uri(uri) for uri in (config.samples_uri, *config.extra_samples_uri)]
    manifests = [samples.read_manifest(uri) for uri in uris]
    for uri, manifest in zip(uris[1:], manifests[1:], strict=True):
        for name in CROP:
            theirs, own = (each.get(name, 1 if name == "pixels" else None) for each in (manifest, manifests[0]))
            if theirs != own:
                raise ValueError(
                    f"--extra-samples-uri must hold crops like those of --samples-uri: the {name} of {uri} is {theirs!r}, "
                    f"that of {uris[0]} is {own!r}"
                )
    return manifests


def choose_cache(config: TrainConfig) -> tuple[CacheKind, int]:
    """As what the samples are kept, and the bytes that they take: decoded, unless something else is asked for or they do not fit so."""
    manifest, *extra = read_manifests(config)
    (width, height), (x, y) = samples.crop_size(manifest), samples.crop_margin(manifest)
    num_train = sum(each["rows"]["train"] for each in (manifest, *extra))
    decoded = 3 * (num_train * (width + 2 * x) * (height + 2 * y) + manifest["rows"]["val"] * width * height)
    if config.sample_cache == "decoded":
        return "decoded", decoded
    room = capacity.room_for_cache(config.cpus_per_worker, int(config.use_gpu))
    # Of a node that has to be started first nobody knows what it holds.
    if config.sample_cache == "auto" and decoded <= room < math.inf:
        return "decoded", decoded
    folders = [storage.join_uri(storage.resolve_uri(uri), "train") for uri in (config.samples_uri, *config.extra_samples_uri)]
    folders.append(storage.join_uri(storage.resolve_uri(config.samples_uri), "val"))
    return "encoded", sum(size for folder in folders for _, size in storage.list_sizes(folder))


def _check_ids(sample_ids: NDArray[np.str_], uris: Sequence[str]) -> None:
    ids, counts = np.unique(sample_ids, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"a person may be in one place only, but {(counts > 1).sum()} are there more than once in the samples {', '.join(uris)}, "
            f"{str(ids[counts > 1][0])!r} among them"
        )


def load_crops(samples_uris: Sequence[str], split: Split, kind: CacheKind, keep_margin: bool) -> ray.data.Dataset:
    """The samples of one split, one block per file.

    The columns are SAMPLE's; decoded, with `pixels` (fixed-size binary, height x width x 3 uint8 RGB) instead of `crop`: of the crop alone,
    or with the margin around it.
    """
    files = [file for uri in samples_uris for file in samples.list_split(uri, split)]
    size = None if keep_margin else samples.crop_size(samples.read_manifest(samples_uris[0]))
    dataset = cluster.from_items([{"uri": uri} for uri in files])
    arguments = {"kind": kind, "size": size}
    return dataset.map_batches(_read_crops, batch_size=1, batch_format="pyarrow", fn_kwargs=arguments)


def _read_crops(batch: pa.Table, kind: CacheKind, size: tuple[int, int] | None) -> pa.Table:
    """A file's samples; decoded, `pixels` instead of `crop`: all that is stored, or what lies within this size."""
    table = storage.read_table(batch["uri"][0].as_py())
    if kind == "encoded":
        return table
    stored = [images.decode_jpeg(crop) for crop in table["crop"].to_pylist()]
    pixels = [(crop if size is None else images.cut_margin(crop, size)).tobytes() for crop in stored]
    column = pa.array(pixels, pa.binary(len(pixels[0])))
    return table.drop_columns(["crop"]).append_column("pixels", column)


def _collect_labels(dataset: ray.data.Dataset) -> dict[str, NDArray[Any]]:
    # Without the pixels, which would all come to the driver's node.
    tables = list(dataset.select_columns(list(samples.LABELS)).iter_batches(batch_size=None, batch_format="pyarrow"))
    return samples.label_arrays(pa.concat_tables(tables))
