"""The folder of a scoring run: who writes it, what it is of, which shards are done.

    writers/000001.json    one writer after the other: the highest number writes, and shows that it lives
    inputs/part-00000.parquet
    _RUN.json              what the run is of; written when its plan is complete
    parts/part-000000-0123456789ab.parquet    named after its bytes
    done/0123456789ab/000000.json    a part counts from here on; never replaced; the folder is named after what the run is of
    _MANIFEST.json         the parts that count
    _SUCCESS               last

Numbers are taken by writes that succeed for one writer alone, so no clock is compared and no lock is ever left behind. A writer that has
lost its place and does not know it yet can do no harm: parts are named after their bytes, done records after what the run is of, and
neither is ever replaced.
"""

import contextlib
import json
import os
import posixpath
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import pyarrow as pa

from posepipe import storage
from posepipe.retrying import StorageUnavailableError

RUN_FILE = "_RUN.json"
_BEATS_PER_TIMEOUT = 6


class LostRunError(ValueError):
    """Another writer has taken this run over."""


class Writer:
    """The right to write one run. Use as a context manager; while it is held, a thread shows that this process lives.

    Args:
        run_uri: the run's folder.
        takeover_after: seconds without a sign of life after which the writer before counts as dead.
        say: prints a line for people.

    Raises:
        ValueError: on entry, another writer is alive.
    """

    def __init__(self, run_uri: str, takeover_after: float, say: Callable[[str], None] = print) -> None:
        self._folder, self._timeout, self._say = storage.join_uri(run_uri, "writers"), takeover_after, say
        who = f"{socket.gethostname()} process {os.getpid()}"
        self._state = {"who": who, "id": uuid.uuid4().hex, "beat": 0, "released": False, "timeout": takeover_after}
        self._number = 0
        self._lost = threading.Event()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="writer-beat")

    def __enter__(self) -> "Writer":
        number = self._newest()
        if number:
            self._await_end(number)
        self._number = number + 1
        if not storage.create_bytes(self._uri(self._number), self._content()):
            raise ValueError(f"another writer has just started on {posixpath.dirname(self._folder)}; it goes on alone")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()
        if not self._lost.is_set():
            self._state["released"] = True
            # Where the storage is gone the successor has to wait for a sign of life; the error that ends this run is the one to see.
            with contextlib.suppress(OSError, StorageUnavailableError):
                storage.write_bytes(self._uri(self._number), self._content(), patience=0)

    def check(self, is_fresh: bool = False) -> None:
        """Raises LostRunError where another writer has taken over, as of the last sign of life or, if `is_fresh`, of now."""
        if is_fresh and storage.exists(self._uri(self._number + 1)):
            self._lost.set()
        if self._lost.is_set():
            raise LostRunError(f"{posixpath.dirname(self._folder)} was taken over by another writer while this one gave no sign of life")

    def _await_end(self, number: int) -> None:
        """Returns when the writer before has ended or has shown no life for the timeout; ValueError where it shows some."""
        first = storage.read_bytes(self._uri(number))
        state = json.loads(first)
        if state["released"]:
            return
        # How often it shows that it lives follows from its own timeout.
        timeout = max(self._timeout, state.get("timeout", 0))
        self._say(f"{state['who']} was writing here; waiting {timeout:g} s for a sign of life")
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._timeout / _BEATS_PER_TIMEOUT))
            now = storage.read_bytes(self._uri(number))
            if json.loads(now)["released"]:
                return
            if now != first:
                raise ValueError(
                    f"{state['who']} is writing {posixpath.dirname(self._folder)}; "
                    "wait for it, stop it, or choose another --predictions-uri"
                )

    def _beat(self) -> None:
        while not self._end.wait(self._timeout / _BEATS_PER_TIMEOUT):
            try:
                if storage.exists(self._uri(self._number + 1), patience=0):
                    self._lost.set()
                    return
                self._state["beat"] += 1  # type: ignore[operator]
                storage.write_bytes(self._uri(self._number), self._content(), patience=0)
            except (OSError, StorageUnavailableError):
                continue  # no sign of life: whoever waits for one decides

    def _newest(self) -> int:
        found = [re.fullmatch(r"(\d{6})\.json", posixpath.basename(uri)) for uri in storage.list_files(self._folder)]
        return max((int(match[1]) for match in found if match), default=0)

    def _uri(self, number: int) -> str:
        return storage.join_uri(self._folder, f"{number:06d}.json")

    def _content(self) -> bytes:
        return storage.to_json(self._state)


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
    uris = [uri for uri in storage.list_files(done_uri) if re.fullmatch(r"\d{6,}\.json", posixpath.basename(uri))]
    with ThreadPoolExecutor(16) as pool:
        return {record["shard"]: record for record in pool.map(storage.read_json, uris)}


def forget_done(done_uri: str, shards: list[int]) -> None:
    storage.delete(_record_uri(done_uri, shard) for shard in shards)


def _record_uri(done_uri: str, shard: int) -> str:
    return storage.join_uri(done_uri, f"{shard:06d}.json")


def finish(run_uri: str, manifest: dict[str, Any]) -> None:
    """Leaves the parts that count and no others, then the manifest, then the marker."""
    counted = {item["file"] for item in manifest["files"]}
    parts = storage.list_files(storage.join_uri(run_uri, "parts"))
    storage.delete(uri for uri in parts if f"parts/{posixpath.basename(uri)}" not in counted)
    storage.write_json(storage.join_uri(run_uri, storage.MANIFEST), manifest)
    storage.write_bytes(storage.join_uri(run_uri, storage.SUCCESS), b"")


def require_own(run_uri: str, run: dict[str, Any] | None) -> None:
    """ValueError where the folder is complete, but as something else: samples, a training run."""
    if run is None and any(storage.exists(storage.join_uri(run_uri, name)) for name in (storage.SUCCESS, storage.MANIFEST)):
        raise ValueError(f"{run_uri} holds something else that is complete; choose another --predictions-uri")


def clear(run_uri: str, *others: str) -> None:
    """Takes a run's files away, those first that make a reader believe in the others. `others`: more of them, by their names below it."""
    for name in (storage.SUCCESS, storage.MANIFEST, RUN_FILE, *others):
        storage.delete([storage.join_uri(run_uri, name)])
    for folder in ("done", "parts", "inputs"):
        storage.delete(storage.list_files(storage.join_uri(run_uri, folder)))
