"""Persons + images -> samples: shards of pictures, written in parallel, the manifest last."""

import json
import logging
import math
import re
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from posepipe import capacity, cluster, cutting, images, mpii, samples, storage
from posepipe.config import PrepareConfig
from posepipe.progress import Progress
from posepipe.writers import Writer

PERSONS_FILE = "persons.parquet"
logger = logging.getLogger(__name__)


def inventory(config: PrepareConfig) -> dict[str, Any]:
    """Counts what the data set holds, without reading a picture."""
    table, persons = mpii.read_annotations(config.mpii_uri)
    folder = storage.join_uri(config.mpii_uri, mpii.IMAGES_FOLDER)
    below = storage.spell_below(folder, folder) or ""
    present = {uri.removeprefix(below) for uri in storage.list_files(folder)}
    return mpii.inventory(table, persons, present)


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Writes samples, the manifest last, or hands out the manifest of those that are complete.

    Returns:
        The manifest.

    Raises:
        ValueError: no annotations, samples of other settings in the same place, somebody else who writes there, no CPU, or nothing that
            could be used.
        LostRunError: another process has taken the folder over while this one gave no sign of life.
    """
    samples_uri = storage.resolve_uri(config.samples_uri)
    capacity.require("preparing samples", [capacity.Need("task", 1, 1)], hint="start Ray with CPUs, or a node that has some")
    annotations = mpii.read_annotation_file(storage.resolve_uri(config.mpii_uri))
    settings = _settings(config, storage.sha256(annotations))
    if kept := _read_complete(samples_uri, settings, config.overwrite):
        return kept
    with Writer(samples_uri) as writer:
        # Whoever wrote before may just have come to its end.
        kept = _read_complete(samples_uri, settings, config.overwrite)
        return kept or _prepare(config, samples_uri, annotations, settings, writer)


def _prepare(config: PrepareConfig, samples_uri: str, annotations: bytes, settings: dict[str, Any], writer: Writer) -> dict[str, Any]:
    mpii_uri = storage.resolve_uri(config.mpii_uri)
    persons = _persons(annotations, mpii_uri, samples_uri, settings["annotations_sha256"])
    persons = _assign_splits(mpii.select_people(persons, config.people), config)
    if not persons.num_rows:
        raise ValueError(f"{mpii_uri} has no annotated or located people for --people {config.people}")
    writer.check(is_fresh=True)
    _claim_folder(samples_uri)
    shards = _cut_shards(persons, config.shard_size)
    images_uri = storage.join_uri(mpii_uri, mpii.IMAGES_FOLDER)
    work = [{"shard": index, "people": cutting.pack(table)} for index, table in enumerate(shards)]
    dataset = cluster.from_items(work).map(
        cutting.ShardWriter(images_uri, samples_uri, config.framing, config.crop_size, config.crop_margin)
    )
    files: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    with Progress("prepare", len(set(persons["image"].to_pylist())), "pictures") as progress:
        for row in dataset.iter_rows():
            result = json.loads(row["result"])
            files += result["files"]
            errors += result["errors"]
            progress.update(result["num_images"])
            writer.check()
    writer.check(is_fresh=True)
    errors.sort(key=lambda row: (row["image"], row["person_index"]))
    storage.write_table(storage.join_uri(samples_uri, samples.ERRORS_FILE), pa.Table.from_pylist(errors, samples.ERROR))
    rows = {split: sum(item["rows"] for item in files if item["split"] == split) for split in ("train", "val", "test")}
    counts = dict(sorted(Counter(row["status"] for row in errors).items()))
    if not any(rows.values()):
        raise ValueError(
            f"none of {persons.num_rows} people could be used: {counts}; see {storage.join_uri(samples_uri, samples.ERRORS_FILE)}"
        )
    manifest = {
        **settings,
        "images_uri": images_uri,
        "files": sorted(files, key=lambda item: item["file"]),
        "rows": rows,
        "errors": counts,
    }
    writer.check(is_fresh=True)
    storage.write_json(storage.join_uri(samples_uri, storage.MANIFEST), manifest)
    return manifest


def describe(manifest: dict[str, Any], samples_uri: str) -> str:
    """What `prepare` made, for people."""
    rows = ", ".join(f"{manifest['rows'][split]} {split}" for split in ("train", "val", "test"))
    errors = ", ".join(f"{count} {status}" for status, count in manifest["errors"].items())
    width, height = samples.crop_size(manifest)
    margin_x, margin_y = samples.crop_margin(manifest)
    return (
        f"samples: {rows} ({manifest['framing']} framing, {width} x {height} px, margin {margin_x} x {margin_y} px) at {samples_uri}\n"
        f"not usable: {f'{errors}; see {storage.join_uri(samples_uri, samples.ERRORS_FILE)}' if errors else 'none'}"
    )


def _settings(config: PrepareConfig, annotations_sha256: str) -> dict[str, Any]:
    """All that decides what the samples are; two runs with equal settings write equal files."""
    listed = _read_val_list(config.val_list) if config.val_list else None
    return {
        "annotations_sha256": annotations_sha256,
        "pixels": images.PIXELS,
        "framing": config.framing,
        "people": config.people,
        "size": list(config.crop_size),
        "margin": list(config.crop_margin),
        "val": {"percent": config.val_percent, "by": "video"}
        if listed is None
        else {"list_sha256": storage.fingerprint(listed if any(listed.values()) else sorted(listed)), "num_images": len(listed)},
        "shard_size": config.shard_size,
    }


def _read_complete(samples_uri: str, settings: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The manifest of samples that are complete, or None; ValueError where they were made with other settings. None if they are to go."""
    manifest_uri = storage.join_uri(samples_uri, storage.MANIFEST)
    if overwrite or not storage.exists(manifest_uri):
        return None
    older: dict[str, Any] = storage.read_json(manifest_uri)
    differing = {name: (older.get(name), value) for name, value in settings.items() if older.get(name) != value}
    if differing:
        text = "; ".join(f"{name} was {was!r}, now {now!r}" for name, (was, now) in differing.items())
        raise ValueError(f"{samples_uri} holds samples made with other settings ({text}); choose another --samples-uri or pass --overwrite")
    logger.warning("the samples at %s are complete and stay; --overwrite makes them anew", samples_uri)
    return older


def _claim_folder(samples_uri: str) -> None:
    """Takes the manifest away, so that nobody reads while files change, and then the files of an older run; those of others stay."""
    manifest_uri = storage.join_uri(samples_uri, storage.MANIFEST)
    older = storage.read_json(manifest_uri).get("files", []) if storage.exists(manifest_uri) else []
    storage.delete([manifest_uri])
    for split in ("train", "val", "test"):
        storage.delete(storage.list_named(storage.join_uri(samples_uri, split), r"part-\d{5,}-[0-9a-f]{12}\.parquet").values())
        # Older versions did not name parts by their bytes.
        names = [item["file"] for item in older if re.fullmatch(rf"{split}/part-\d{{5,}}\.parquet", item["file"])]
        storage.delete(storage.join_uri(samples_uri, name) for name in names)


def _persons(annotations: bytes, mpii_uri: str, samples_uri: str, sha256: str) -> pa.Table:
    """The PERSON table of the annotation file, parsed once and kept beside the samples."""
    uri = storage.join_uri(samples_uri, PERSONS_FILE)
    if storage.exists(uri):
        kept = storage.read_table(uri)
        if (kept.schema.metadata or {}).get(b"mpii_sha256") == sha256.encode() and kept.schema.equals(mpii.PERSON):
            return kept
    _, persons = mpii.parse_annotations(annotations, storage.join_uri(mpii_uri, mpii.ANNOTATION_FILE))
    persons = persons.replace_schema_metadata({"mpii_sha256": sha256})
    storage.write_table(uri, persons)
    return persons


def _read_val_list(uri: str) -> mpii.Listed:
    try:
        return mpii.parse_val_list(storage.read_bytes(uri).decode())
    except FileNotFoundError as error:
        raise ValueError(f"no validation list at {uri}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{uri} is neither a list of names nor HRNet's valid.json: {type(error).__name__}: {error}") from error


def _is_val_by_hash(image: str, video: int | None, percent: float) -> bool:
    """By the video where it is known: of two frames that are nearly the same, one would be trained on and one validated."""
    key = image if video is None else f"video {video}"
    return int(storage.sha256(key.encode())[:8], 16) % 10_000 < round(percent * 100)


def _assign_splits(persons: pa.Table, config: PrepareConfig) -> pa.Table:
    """Adds the column `split`; where a list names people, others of their pictures are in no split and left out."""
    names, flags = persons["image"].to_pylist(), persons["is_train"].to_pylist()
    if not config.val_list:
        is_val = [_is_val_by_hash(name, video, config.val_percent) for name, video in zip(names, persons["video"].to_pylist(), strict=True)]
        is_left_out = [False] * len(names)
    else:
        listed = _read_val_list(config.val_list)
        if not listed.keys() & set(names):
            raise ValueError(f"none of the {len(listed)} names in {config.val_list} is a picture of {config.mpii_uri}")
        places = persons["center"].to_pylist()
        is_val = [_is_listed(name, place, listed) for name, place in zip(names, places, strict=True)]
        is_left_out = [name in listed and is_train and not each for name, is_train, each in zip(names, flags, is_val, strict=True)]
    splits = ["test" if not is_train else "val" if each else "train" for is_train, each in zip(flags, is_val, strict=True)]
    return persons.append_column("split", pa.array(splits)).filter(pc.invert(pa.array(is_left_out)))


def _is_listed(name: str, center: list[float] | None, listed: mpii.Listed) -> bool:
    centers = listed.get(name, [])
    return centers is None or any(center is not None and math.dist(center, each) < 1 for each in centers)


def _cut_shards(persons: pa.Table, shard_size: int) -> list[pa.Table]:
    """Tables of the people of shard_size pictures each, in the order of their names; a picture is never cut apart."""
    persons = persons.sort_by([("image", "ascending"), ("person_index", "ascending")]).combine_chunks()
    names = persons["image"].to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])[::shard_size]
    return [persons.slice(start, end - start) for start, end in zip(starts, [*starts[1:], len(names)], strict=True)]
