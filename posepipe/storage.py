"""Small files, listings and commit markers at a URI.

A URI is a local path, `file://…`, `s3://…` or any scheme that fsspec knows. `AWS_ENDPOINT_URL` is enough to reach another S3 server.
A folder is complete when its `_SUCCESS` marker exists; writers put it there last, readers look for it first.
"""

import asyncio
import hashlib
import json
import os
import posixpath
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec.core
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, sync

SUCCESS = "_SUCCESS"
MANIFEST = "_MANIFEST.json"
READ_AHEAD = 16


def open_filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """Returns the filesystem of `uri` and the path on it.

    Raises:
        ValueError: the scheme is unknown, or its package is not installed.
    """
    if not uri:
        raise ValueError("expected a URI (a path, file://…, s3://…), got an empty string")
    # Listings are never cached: another process may have written since.
    options = {"use_listings_cache": False, "skip_instance_cache": False} if uri.startswith(("s3://", "s3a://")) else {}
    try:
        filesystem, path = fsspec.core.url_to_fs(uri, **options)
    except (ImportError, ValueError) as error:
        raise ValueError(f"cannot open {uri!r}: {error}") from error
    return filesystem, path


def resolve_uri(uri: str) -> str:
    """An absolute form of `uri` that means the same in every process: local paths become absolute, the rest stays."""
    return uri.rstrip("/") if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def join_uri(uri: str, *parts: str) -> str:
    """`uri` and the names below it, with one slash between them."""
    return posixpath.join(uri.rstrip("/") or "/", *parts)


def distinct_names(names: Sequence[str], uris: Sequence[str]) -> list[str]:
    """The names; where several are alike, as much of the end of their URIs as tells them apart."""
    found = list(names)
    for depth in range(2, 2 + max((uri.count("/") for uri in uris), default=0)):
        counts = Counter(found)
        found = ["/".join(uri.split("/")[-depth:]) if counts[name] > 1 else name for name, uri in zip(found, uris, strict=True)]
    return found


def read_bytes(uri: str) -> bytes:
    """Raises FileNotFoundError or PermissionError as the storage says."""
    filesystem, path = open_filesystem(uri)
    return filesystem.cat_file(path)


def read_many(uris: Sequence[str]) -> list[bytes | Exception]:
    """Reads all `uris`, which lie on one filesystem, concurrently where it can; a failed read is the exception in its place."""
    if not uris:
        return []
    filesystem, _ = open_filesystem(uris[0])
    paths = [filesystem._strip_protocol(uri) for uri in uris]
    if not isinstance(filesystem, AsyncFileSystem):
        return [_read_or_error(filesystem, path) for path in paths]
    return sync(filesystem.loop, _read_all, filesystem, paths)


async def _read_all(filesystem: AsyncFileSystem, paths: Sequence[str]) -> list[bytes | Exception]:
    # Not `cat`, which takes a name with brackets or stars for a pattern.
    return await asyncio.gather(*(filesystem._cat_file(path) for path in paths), return_exceptions=True)


def read_ahead(uris: Sequence[str], chunk: int = READ_AHEAD) -> Iterator[tuple[str, bytes | Exception]]:
    """Reads `uris` in chunks, the next one while the caller works on this one; a failed read is the exception in its place."""
    chunks = [uris[start : start + chunk] for start in range(0, len(uris), chunk)]
    with ThreadPoolExecutor(1) as pool:
        pending = [pool.submit(read_many, part) for part in chunks[:1]]
        for index, part in enumerate(chunks):
            if index + 1 < len(chunks):
                pending.append(pool.submit(read_many, chunks[index + 1]))
            yield from zip(part, pending.pop(0).result(), strict=True)


def _read_or_error(filesystem: AbstractFileSystem, path: str) -> bytes | Exception:
    try:
        return filesystem.cat_file(path)
    except OSError as error:
        return error


def write_bytes(uri: str, data: bytes) -> None:
    """Writes `data` whole or not at all: objects are put at once, local files are renamed into place."""
    filesystem, path = open_filesystem(uri)
    if is_local(uri):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        partial = f"{path}.{uuid.uuid4().hex}.partial"
        with open(partial, "wb") as file:
            file.write(data)
        os.replace(partial, path)
    else:
        filesystem.pipe_file(path, data)


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def exists(uri: str) -> bool:
    filesystem, path = open_filesystem(uri)
    return filesystem.exists(path)


def list_files(uri: str) -> list[str]:
    """URIs of all files below the folder `uri`, sorted; empty where there is none."""
    filesystem, path = open_filesystem(uri)
    try:
        found = filesystem.find(path)
    except FileNotFoundError:
        return []
    return sorted(name if is_local(uri) else filesystem.unstrip_protocol(name) for name in found)


def list_parts(uri: str) -> list[str]:
    """URIs of the files right below the folder `uri` that are named as this project names its parts: part-NNNNN.parquet."""
    return [found for found in list_files(uri) if re.fullmatch(r"part-\d{5,6}\.parquet", posixpath.relpath(_path(found), _path(uri)))]


def _path(uri: str) -> str:
    return open_filesystem(uri)[1]


def delete(uris: Iterable[str]) -> None:
    """Deletes the files `uris`."""
    for uri in uris:
        filesystem, path = open_filesystem(uri)
        filesystem.rm_file(path)


def read_json(uri: str) -> Any:
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """One Parquet file as a table."""
    return pq.read_table(pa.BufferReader(read_bytes(uri)), columns=columns)


def write_table(uri: str, table: pa.Table) -> str:
    """Writes `table` as one Parquet file; equal tables give equal bytes. Returns the sha256 of the file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_statistics=True)
    data = sink.getvalue().to_pybytes()
    write_bytes(uri, data)
    return sha256(data)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fingerprint(value: Any) -> str:
    """sha256 of a JSON value, whatever the order of its keys."""
    return sha256(json.dumps(value, sort_keys=True).encode())
