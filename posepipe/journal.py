"""The folder of a scoring run: what it is of, which shards are done.

    writers/000001.json    of `posepipe.writers`
    inputs/part-00000-0123456789ab.parquet    named after its bytes
    _RUN.json              what the run is of; written when its plan is complete
    _REDO.json             the statuses whose shards are being done again, while they are
    parts/part-000000-0123456789ab.parquet    named after its bytes
    done/0123456789ab/000000.json    a part counts from here on; never replaced; the folder is named after what the run is of
    _MANIFEST.json         the parts that count
    _SUCCESS               last

A writer that has lost its place and does not know it yet can do no harm: parts are named after their bytes, done records after what the run
is of, and neither is ever replaced. (`--redo` takes records away.)

Whatever else lies in these folders belongs to others: only files that are named as above are ever deleted.
"""

import re
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from posepipe import storage
from posepipe.writers import LostRunError, Writer

RUN_FILE = "_RUN.json"
_REDO_FILE = "_REDO.json"
_OWN_NAMES = {
    "done": r"[0-9a-f]{12}/\d{6,}\.json",
    "parts": r"part-\d{6,}-[0-9a-f]{12}\.parquet",
    "inputs": r"part-\d{5,}-[0-9a-f]{12}\.parquet",
}


def read_run(run_uri: str) -> dict[str, Any] | None:
    """What the run is of, None where it has no complete plan yet."""
    try:
        return storage.read_json(storage.join_uri(run_uri, RUN_FILE))
    except FileNotFoundError:
        return None


def write_run(run_uri: str, run: dict[str, Any]) -> None:
    """Writes what the run is of, once; LostRunError where another writer was first."""
    if not storage.create_bytes(storage.join_uri(run_uri, RUN_FILE), storage.to_json(run)):
        raise LostRunError(f"another writer has planned {run_uri} in the meantime")


def require_same(run_uri: str, older: dict[str, Any], wanted: dict[str, Any]) -> None:
    """ValueError, with both values of what differs, where the folder holds a run of something else."""
    differing = [f"{name} was {older.get(name)!r}, now {value!r}" for name, value in wanted.items() if older.get(name) != value]
    if differing:
        text = "; ".join(differing)
        raise ValueError(f"{run_uri} holds other predictions ({text}); choose another --predictions-uri or pass --overwrite")


def done_folder(run_uri: str, run: dict[str, Any]) -> str:
    """Where the done records of a run of just this lie."""
    return storage.join_uri(run_uri, "done", storage.fingerprint(run)[:12])


def commit_part(run_uri: str, done_uri: str, shard: int, table: pa.Table, record: dict[str, Any]) -> dict[str, Any]:
    """Writes a shard's rows and then the record that makes them count.

    Returns:
        The shard's done record: this one, or that of whoever was first.
    """
    data = storage.to_parquet(table)
    sha256 = storage.sha256(data)
    name = f"parts/part-{shard:06d}-{sha256[:12]}.parquet"
    storage.write_bytes(storage.join_uri(run_uri, name), data)
    record = {"shard": shard, "file": name, "rows": table.num_rows, "sha256": sha256, **record}
    uri = _record_uri(done_uri, shard)
    return record if storage.create_bytes(uri, storage.to_json(record)) else storage.read_json(uri)


def read_done(done_uri: str, shard: int) -> dict[str, Any] | None:
    """The done record of a shard, or None."""
    try:
        return storage.read_json(_record_uri(done_uri, shard))
    except FileNotFoundError:
        return None


def list_done(done_uri: str) -> dict[int, dict[str, Any]]:
    """The done records by shard."""
    below = storage.spell_below(done_uri, done_uri) or ""
    uris = [uri for uri in storage.list_files(done_uri) if re.fullmatch(r"\d{6,}\.json", uri.removeprefix(below))]
    with ThreadPoolExecutor(16) as pool:
        return {record["shard"]: record for record in pool.map(storage.read_json, uris)}


def list_parts(run_uri: str) -> dict[str, str]:
    """URIs of the parts, by their names as done records have them: whether they count or not."""
    return _list_own(run_uri, "parts")


def _list_own(run_uri: str, folder: str) -> dict[str, str]:
    """URIs of what was written into a folder of the run, by their names below the run; what others put there is left out."""
    found = storage.list_named(storage.join_uri(run_uri, folder), _OWN_NAMES[folder])
    return {f"{folder}/{name}": uri for name, uri in found.items()}


def forget_done(done_uri: str, shards: list[int]) -> None:
    storage.delete(_record_uri(done_uri, shard) for shard in shards)


def _record_uri(done_uri: str, shard: int) -> str:
    return storage.join_uri(done_uri, f"{shard:06d}.json")


def reopen(
    run_uri: str, done_uri: str, done: dict[int, dict[str, Any]], statuses: Collection[str], writer: Writer, *others: str
) -> dict[int, dict[str, Any]]:
    """Takes the records of shards with rows of such statuses, after what says that the run is complete. `others`: as in `clear`.

    What has been done since this was called with the same statuses, by a run that did not come to its end, is not taken again.

    Returns:
        The records that stay.

    Raises:
        LostRunError: another writer has taken over.
    """
    redo_uri = storage.join_uri(run_uri, _REDO_FILE)
    again = [shard for shard, record in done.items() if record["statuses"].keys() & set(statuses)]
    if not again or (storage.exists(redo_uri) and set(statuses) <= set(storage.read_json(redo_uri))):
        return done
    writer.check(is_fresh=True)
    for name in (storage.SUCCESS, storage.MANIFEST, *others):
        storage.delete([storage.join_uri(run_uri, name)])
    forget_done(done_uri, again)
    storage.write_json(redo_uri, sorted(statuses))
    return {shard: record for shard, record in done.items() if shard not in again}


def finish(run_uri: str, manifest: dict[str, Any], writer: Writer) -> None:
    """Leaves of the parts those that count, then the manifest, then the marker.

    Raises:
        LostRunError: another writer has taken over, or has taken parts away that count.
    """
    writer.check(is_fresh=True)
    counted = {item["file"] for item in manifest["files"]}
    parts = list_parts(run_uri)
    if lost := sorted(counted - set(parts)):
        # A writer that began anew, of which a shard was under way when this one took over.
        raise LostRunError(f"{len(lost)} parts of {run_uri} are gone, the first is {lost[0]}; the same command makes them again")
    storage.delete(uri for name, uri in parts.items() if name not in counted)
    writer.check(is_fresh=True)
    storage.delete([storage.join_uri(run_uri, _REDO_FILE)])
    storage.write_json(storage.join_uri(run_uri, storage.MANIFEST), manifest)
    storage.write_bytes(storage.join_uri(run_uri, storage.SUCCESS), b"")


def require_own(run_uri: str, run: dict[str, Any] | None) -> None:
    """ValueError where the folder is complete, but as something else: samples, a training run."""
    if run is None and any(storage.exists(storage.join_uri(run_uri, name)) for name in (storage.SUCCESS, storage.MANIFEST)):
        raise ValueError(f"{run_uri} holds something else that is complete; choose another --predictions-uri")


def clear(run_uri: str, writer: Writer, *others: str) -> None:
    """Takes a run's files away, those first that make a reader believe in the others. `others`: more of them, by their names below it.

    Raises:
        LostRunError: another writer has taken over.
    """
    # Where no run was begun, what is named like these others is none of its files.
    others = (*others, _REDO_FILE) if storage.exists(storage.join_uri(run_uri, RUN_FILE)) else ()
    for name in (storage.SUCCESS, storage.MANIFEST, *others, RUN_FILE):
        storage.delete([storage.join_uri(run_uri, name)])
    for folder in _OWN_NAMES:
        writer.check(is_fresh=True)
        storage.delete(_list_own(run_uri, folder).values())
