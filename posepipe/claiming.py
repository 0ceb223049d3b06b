"""Whose a run folder is: the settings it was claimed with, and which of them a run that goes on may change."""

import dataclasses
import json
import uuid
from typing import Any

from posepipe import samples, storage
from posepipe.config import TrainConfig
from posepipe.runs import CONFIG_FILE
from posepipe.training_data import read_manifests

# What a run may be resumed with differently: where it runs, not what it computes.
RESOURCES = (
    *("num_workers", "cpus_per_worker", "use_gpu", "max_failures", "max_preemption_failures"),
    # Where things lie; what the samples are is told by their fingerprints.
    *("samples_uri", "extra_samples_uri", "runs_uri"),
    # These decide what becomes of a fault and who watches; a run without a fault computes the same.
    *("checkpoint_every", "on_nonfinite", "logger"),
    # Decoded once or for every batch, the pixels are the same.
    "sample_cache",
)


def describe_config(config: TrainConfig) -> dict[str, Any]:
    """The config as the run folder keeps it, with the samples that it stands on."""
    fingerprint, *extra = (samples.fingerprint(manifest) for manifest in read_manifests(config))
    described = {"job": "train", "samples_fingerprint": fingerprint, "extra_samples_fingerprints": extra}
    return {**dataclasses.asdict(config), **described}


def claim_folder(run_uri: str, wanted: dict[str, Any], name: str = CONFIG_FILE) -> str:
    """Writes `wanted` as the config of the folder, with an id that stays, and returns that; ValueError where it belongs to another one."""
    uri = storage.join_uri(run_uri, name)
    run_id = uuid.uuid4().hex
    if storage.exists(uri):
        # A run from before a field existed had what is its default now.
        defaults = {item.name: item.default for item in dataclasses.fields(TrainConfig) if item.default is not dataclasses.MISSING}
        older = _as_written(defaults | {"extra_samples_fingerprints": []}) | storage.read_json(uri)
        wanted = _as_written(wanted)
        names = [name for name in wanted if older.get(name) != wanted[name] and name not in RESOURCES]
        if names:
            text = "; ".join(f"{name} was {older.get(name)!r}, now {wanted[name]!r}" for name in names)
            raise ValueError(f"the run {run_uri} exists with other settings ({text}); choose another --name")
        # A run from before there were ids was known by its place.
        run_id = older.get("id") or storage.fingerprint(run_uri)
    storage.write_json(uri, {**wanted, "id": run_id})
    return run_id


def _as_written(values: dict[str, Any]) -> dict[str, Any]:
    """As they are read from a file: tuples are lists there."""
    return json.loads(storage.to_json(values))
