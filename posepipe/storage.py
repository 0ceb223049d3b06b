"""Small files, listings and commit markers at a URI.

A URI is a local path, `file://…`, `s3://…` or any scheme that fsspec knows. `AWS_ENDPOINT_URL` is enough to reach another S3 server.
A folder is complete when its `_SUCCESS` marker exists; writers put it there last, readers look for it first.
Every call outlasts faults of the storage that pass: see `retrying`.
"""

import contextlib
import functools
import hashlib
import json
import os
import posixpath
import re
import stat
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import fsspec.core
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.asyn import sync

from posepipe.retrying import StorageUnavailableError, error_code, retry

T = TypeVar("T")

SUCCESS = "_SUCCESS"
MANIFEST = "_MANIFEST.json"


def open_filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """Returns the filesystem of `uri` and the path on it.

    Raises:
        ValueError: the scheme is unknown, or its package is not installed.
    """
    if not uri:
        raise ValueError("expected a URI (a path, file://…, s3://…), got an empty string")
    # Listings are never cached: another process may have written since.
    options = {"use_listings_cache": False, "skip_instance_cache": False} if is_s3(uri) else {}
    try:
        # Not `url_to_fs`, for which :: in a name chains file systems.
        protocol, _ = fsspec.core.split_protocol(uri)
        kind = fsspec.get_filesystem_class(protocol or "file")
        # Of ftp://, sftp:// and their like the host is part of the filesystem.
        filesystem = kind(**(options or kind._get_kwargs_from_urls(uri)))
    except (ImportError, TypeError, ValueError) as error:
        raise ValueError(f"cannot open {uri!r}: {error}") from error
    return filesystem, filesystem._strip_protocol(uri)


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


def host(uri: str) -> str:
    """Scheme and host or bucket, s3://bucket; nothing of a local path."""
    return "/".join(uri.split("/", 3)[:3]) if "://" in uri else ""


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def is_s3(uri: str) -> bool:
    return uri.startswith(("s3://", "s3a://"))


def _ask(uri: str, call: Callable[[], T], patience: float | None = None) -> T:
    """`retry`; what ends it names the place."""
    try:
        return retry(call, patience)
    except StorageUnavailableError as error:
        raise StorageUnavailableError(f"{uri}: {error}") from error.__cause__


def read_bytes(uri: str) -> bytes:
    """Raises FileNotFoundError or PermissionError as the storage says."""
    filesystem, path = open_filesystem(uri)
    return _ask(uri, lambda: filesystem.cat_file(path))


def write_bytes(uri: str, data: bytes, patience: float | None = None) -> None:
    """Writes `data` whole or not at all: objects are put at once, local files are renamed into place. For patience see `retry`."""
    filesystem, path = open_filesystem(uri)
    if is_local(uri):
        os.replace(_write_partial(path, data), path)
    else:
        _ask(uri, lambda: filesystem.pipe_file(path, data), patience)


def create_bytes(uri: str, data: bytes) -> bool:
    """Writes `data` unless there is something at `uri`, which no two writers can both do.

    Returns:
        Whether `data` is what stands there now: False where something else stood there before.
    """
    filesystem, path = open_filesystem(uri)
    if is_local(uri):
        partial = _write_partial(path, data)
        try:
            os.link(partial, path)
        except FileExistsError:
            return read_bytes(uri) == data
        finally:
            os.unlink(partial)
        return True
    try:
        _ask(uri, lambda: filesystem.pipe_file(path, data, mode="create"))
    except OSError as error:
        # A server that does not name the condition that failed.
        if not isinstance(error, FileExistsError) and error_code(error) not in ("PreconditionFailed", "412"):
            raise
        # Our own put may have arrived while its answer was lost.
        return read_bytes(uri) == data
    return True


def _write_partial(path: str, data: bytes) -> str:
    """Writes `data` under a name of its own beside `path`, and returns that name."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = f"{path}.{uuid.uuid4().hex}.partial"
    with open(partial, "wb") as file:
        file.write(data)
        # A name that is there after the power failed has its bytes.
        file.flush()
        os.fsync(file.fileno())
    return partial


def exists(uri: str, patience: float | None = None) -> bool:
    filesystem, path = open_filesystem(uri)
    return _ask(uri, lambda: filesystem.exists(path), patience)


def list_files(uri: str) -> list[str]:
    """URIs of all files below the folder `uri`, sorted; empty where there is none."""
    return sorted(found for found, _ in list_sizes(uri))


def list_sizes(uri: str) -> Iterator[tuple[str, int]]:
    """URI and bytes of every file below the folder `uri`, one after the other: a listing of millions takes no memory to speak of."""
    filesystem, path = open_filesystem(uri)
    if is_s3(uri):
        yield from _list_s3(filesystem, path, uri.partition("://")[0])
    elif is_local(uri):
        yield from _list_local(path)
    else:
        for found, info in _ask(uri, lambda: filesystem.find(path, detail=True)).items():
            yield filesystem.unstrip_protocol(found), info.get("size") or 0


def _list_local(path: str) -> Iterator[tuple[str, int]]:
    """Links are followed, but not in a circle; what is neither a file nor a link to nowhere (a pipe, a socket) is no file.

    What is deleted meanwhile is left out, or listed if it was there when its folder was read.
    """
    seen: set[str] = set()

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError) and not (isinstance(error, NotADirectoryError) and error.filename == path):
            raise error

    for folder, folders, names in os.walk(path, followlinks=True, onerror=fail):
        seen.add(os.path.realpath(folder))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(folder, name)) not in seen]
        for name in names:
            file = os.path.join(folder, name)
            try:
                found = os.stat(file)
            except OSError:  # a link to nowhere or in a circle
                if os.path.islink(file):
                    yield file, 0
                continue
            if stat.S_ISREG(found.st_mode):
                yield file, found.st_size


def spell_below(uri: str, listed_uri: str) -> str | None:
    """How the files below the folder `uri` begin in a listing of `listed_uri`; None where they are not below that, or on another store."""
    (filesystem, path), (other, listed) = open_filesystem(uri), open_filesystem(listed_uri)
    if type(filesystem) is not type(other) or not f"{path}/".startswith(f"{listed.rstrip('/')}/"):
        return None
    if is_local(uri):
        return f"{path}/"
    return f"{listed_uri.partition('://')[0]}://{path}/" if is_s3(uri) else f"{filesystem.unstrip_protocol(path)}/"


def _list_s3(filesystem: Any, path: str, scheme: str) -> Iterator[tuple[str, int]]:
    # Not `find`, which keeps a dict of everything that S3 says of each object.
    bucket, prefix, _ = filesystem.split_path(path)
    client = sync(filesystem.loop, filesystem.set_session)
    query = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else ""}
    while True:
        try:
            page = _ask(f"{scheme}://{path}", lambda: sync(filesystem.loop, client.list_objects_v2, **query))
        except FileNotFoundError:
            return
        for item in page.get("Contents", ()):
            # Consoles make folders by putting an empty object of that name.
            if item["Size"] or not item["Key"].endswith("/"):
                yield f"{scheme}://{bucket}/{item['Key']}", item["Size"]
        if not page.get("IsTruncated"):
            return
        query["ContinuationToken"] = page["NextContinuationToken"]


def list_named(uri: str, pattern: str) -> dict[str, str]:
    """Name below the folder `uri` -> URI, of the files whose whole name is of the pattern, and of what writing such a file has left."""
    below = spell_below(uri, uri) or ""
    is_named = re.compile(rf"({pattern})(\.[0-9a-f]{{32}}\.partial)?").fullmatch
    return {name: found for found in list_files(uri) if is_named(name := found.removeprefix(below))}


def _path(uri: str) -> str:
    return open_filesystem(uri)[1]


def delete(uris: Iterable[str]) -> None:
    """Deletes the files `uris`; one that is gone already is no error."""
    for uri in uris:
        filesystem, path = open_filesystem(uri)
        with contextlib.suppress(FileNotFoundError):
            _ask(uri, functools.partial(filesystem.rm_file, path))


def read_json(uri: str) -> Any:
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, to_json(value))


def to_json(value: Any) -> bytes:
    """The bytes of a JSON file; equal values give equal bytes."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """One Parquet file as a table; lists of a fixed size, which older versions of posepipe wrote, become plain ones."""
    table = pq.read_table(pa.BufferReader(read_bytes(uri)), columns=columns)
    for place, field in enumerate(table.schema):
        if pa.types.is_fixed_size_list(field.type):
            plain = field.with_type(pa.list_(field.type.value_field))
            table = table.set_column(place, plain, table.column(place).cast(plain.type))
    return table


def to_parquet(table: pa.Table, row_group_size: int | None = None, packed: Sequence[str] = ()) -> bytes:
    """The bytes of a Parquet file; equal tables give equal bytes.

    Args:
        table: what to write.
        row_group_size: rows that are read together; None for Parquet's own choice.
        packed: columns whose values are compressed already; they are stored as they are.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression={name: "none" if name in packed else "zstd" for name in table.column_names} if packed else "zstd",
        use_dictionary=[name for name in table.column_names if name not in packed] if packed else True,
        write_statistics=True,
        row_group_size=row_group_size,
    )
    return sink.getvalue().to_pybytes()


def write_table(uri: str, table: pa.Table) -> str:
    """Writes `table` as one Parquet file; equal tables give equal bytes. Returns the sha256 of the file."""
    data = to_parquet(table)
    write_bytes(uri, data)
    return sha256(data)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fingerprint(value: Any) -> str:
    """sha256 of a JSON value, whatever the order of its keys."""
    return sha256(json.dumps(value, sort_keys=True).encode())
