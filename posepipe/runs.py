"""What a run folder holds: the names of its files, and a finished run read from them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from posepipe import storage
from posepipe.model_file import MODEL_FILE
from posepipe.snapshots import SNAPSHOTS_FILE

CONFIG_FILE = "config.json"
RESULT_FILE = "result.json"
HISTORY_FILE = "history.json"
CHECKPOINTS_FILE = "checkpoint_manager_snapshot.json"  # Ray Train's


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        name: of its folder.
        uri: of its folder.
        config: of jobs.train.
        history: one dict per epoch: epoch, train_loss, val_loss, train_pckh, val_pckh, …
        result: best_epoch, val, floor, samples, versions, model_id.
        snapshots: a SNAPSHOT table, or None where none were kept.
    """

    name: str
    uri: str
    config: dict[str, Any]
    history: list[dict[str, Any]]
    result: dict[str, Any]
    snapshots: pa.Table | None


def read_runs(uris: Sequence[str]) -> list[Run]:
    """Finished runs of jobs.train, with names that tell them apart; ValueError where one is not there or not finished."""
    found = [_read_run(storage.resolve_uri(uri)) for uri in uris]
    names = storage.distinct_names([run.name for run in found], [run.uri for run in found])
    return [replace(run, name=name) for run, name in zip(found, names, strict=True)]


def _read_run(uri: str) -> Run:
    if not storage.exists(storage.join_uri(uri, storage.SUCCESS)) or not storage.exists(storage.join_uri(uri, HISTORY_FILE)):
        raise ValueError(f"no finished run at {uri}: expected {HISTORY_FILE} and {storage.SUCCESS}, as jobs.train leaves them")
    config, history, result = (storage.read_json(storage.join_uri(uri, name)) for name in (CONFIG_FILE, HISTORY_FILE, RESULT_FILE))
    kept = storage.join_uri(uri, SNAPSHOTS_FILE)
    return Run(uri.rpartition("/")[2], uri, config, history, result, storage.read_table(kept) if storage.exists(kept) else None)


def num_train(result: dict[str, Any]) -> int:
    """People that a run was trained on, those of extra samples among them."""
    # A run from before there were extra samples has none.
    return result["samples"]["rows"]["train"] + result["samples"].get("num_extra_train", 0)


def has_checkpoint(run_uri: str) -> bool:
    """Whether a run has one to go on with; ValueError as `read_checkpoint_list`."""
    return bool(read_checkpoint_list(run_uri).get("checkpoint_results"))


def read_checkpoint_list(run_uri: str) -> dict[str, Any]:
    """Ray Train's list of a run's checkpoints, empty where there is none.

    Raises:
        ValueError: it was cut off: it is written in place, and machines die.
    """
    uri = storage.join_uri(run_uri, CHECKPOINTS_FILE)
    try:
        return storage.read_json(uri)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        found = [each.split("/")[-2] for each in storage.list_files(run_uri) if re.search(rf"/checkpoint_[^/]+/{MODEL_FILE}$", each)]
        newest = storage.join_uri(run_uri, max(found), MODEL_FILE) if found else ""
        hint = f" and --weights {newest}, the newest of them" if found else ""
        raise ValueError(
            f"{uri}, Ray Train's list of the checkpoints, is cut off, so the run cannot go on; start another --name{hint}"
        ) from error
