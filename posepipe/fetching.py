"""Reads many pictures: ahead of the caller, whole or not at all, again after a fault."""

import asyncio
import errno
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.local import LocalFileSystem

from posepipe import storage
from posepipe.retrying import StorageUnavailableError, TruncatedBodyError, retry, retry_async

AT_ONCE = 16
BYTES_AT_ONCE = 64 * 2**20
UNKNOWN_BYTES = 2**25  # of the first objects, where no listing says how large they are


Fetched = bytes | OSError


def fetch(uris: Sequence[str], max_bytes: int, patience: float | None = None) -> list[Fetched]:
    """Reads all `uris`, which lie on one filesystem, concurrently where it can.

    Args:
        uris: of the objects.
        max_bytes: of one object.
        patience: seconds that a fault may last; None for `retrying.PATIENCE`.

    Returns:
        One entry per URI: its bytes, or the storage's answer (FileNotFoundError, PermissionError, …); an OSError with errno EFBIG stands
        for an object over the limit, which was not read.

    Raises:
        StorageUnavailableError: a fault that did not pass. What the storage could not say is never an entry.
    """
    if not uris:
        return []
    filesystem, _ = storage.open_filesystem(uris[0])
    paths = [filesystem._strip_protocol(uri) for uri in uris]
    if not isinstance(filesystem, AsyncFileSystem):
        return [_read(filesystem, path, max_bytes, patience) for path in paths]
    return sync(filesystem.loop, _read_all, filesystem, paths, max_bytes, patience, storage.is_s3(uris[0]))


def _read(filesystem: AbstractFileSystem, path: str, max_bytes: int, patience: float | None) -> Fetched:
    if "\0" in path:
        return OSError(errno.EINVAL, "a name cannot hold a zero byte")
    try:
        _check_kind(filesystem, path)
        _check_size(retry(lambda: filesystem.size(path), patience), max_bytes)
        return retry(lambda: filesystem.cat_file(path), patience)
    except OSError as error:
        return error
    except StorageUnavailableError as error:
        raise StorageUnavailableError(f"{path}: {error}") from error


def _check_kind(filesystem: AbstractFileSystem, path: str) -> None:
    """OSError for a pipe, a socket or a device, which may have no end."""
    if isinstance(filesystem, LocalFileSystem) and os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise OSError(errno.EINVAL, "neither a file nor a folder")


async def _read_all(filesystem: Any, paths: Sequence[str], max_bytes: int, patience: float | None, is_s3: bool) -> list[Fetched]:
    async def read(path: str) -> Fetched:
        try:
            return await retry_async(lambda: (_get_s3 if is_s3 else _cat)(filesystem, path, max_bytes), patience)
        except OSError as error:
            return error
        except StorageUnavailableError as error:
            raise StorageUnavailableError(f"{path}: {error}") from error

    return await asyncio.gather(*(read(path) for path in paths))


async def _get_s3(filesystem: Any, path: str, max_bytes: int) -> bytes:
    # Not `cat_file`, which asks for the size first and does not compare it with what came. (`cat` takes brackets for a pattern.)
    bucket, key, _ = filesystem.split_path(path)
    answer = await filesystem._call_s3("get_object", Bucket=bucket, Key=key)
    async with answer["Body"] as body:
        size = answer["ContentLength"]
        _check_size(size, max_bytes)
        data = await body.read()
    if len(data) != size:
        raise TruncatedBodyError(errno.EIO, f"{len(data)} of {size} bytes of {path} came")
    return data


async def _cat(filesystem: Any, path: str, max_bytes: int) -> bytes:
    _check_size((await filesystem._info(path)).get("size"), max_bytes)
    data = await filesystem._cat_file(path)
    _check_size(len(data), max_bytes)  # not every server announces it
    return data


def _check_size(size: int | None, max_bytes: int) -> None:
    if size is not None and size > max_bytes:
        raise OSError(errno.EFBIG, f"{size} bytes, the limit is {max_bytes}")


def read_ahead(uris: Sequence[str], max_bytes: int, sizes: Sequence[int | None] | None = None) -> Iterator[tuple[str, Fetched]]:
    """`fetch` in chunks, the next one while the caller works on this one.

    Args:
        uris: on any filesystems; neighbours on the same one are read together.
        max_bytes: of one object.
        sizes: bytes of each where known; a chunk is closed before it takes more than `BYTES_AT_ONCE`.
    """
    wanted = list(zip(uris, sizes or [None] * len(uris), strict=True))
    found_sizes: list[int] = []
    pending: deque[tuple[list[str], Future[list[Fetched]]]] = deque()

    def take() -> Iterator[tuple[str, Fetched]]:
        part, reading = pending.popleft()
        found = reading.result()
        found_sizes.extend(len(data) for data in found if isinstance(data, bytes))
        yield from zip(part, found, strict=True)

    with ThreadPoolExecutor(1) as pool:
        for part in _cut(wanted, max_bytes, found_sizes):
            pending.append((part, pool.submit(fetch, part, max_bytes)))
            if len(pending) == 2:
                yield from take()
        while pending:
            yield from take()


def _cut(wanted: Sequence[tuple[str, int | None]], max_bytes: int, found_sizes: Sequence[int]) -> Iterator[list[str]]:
    """Chunks, each cut when it is asked for: what nobody knows the size of is taken for the mean of `found_sizes` by then."""

    def expect(size: int | None) -> int:
        if size is None:
            return sum(found_sizes) // len(found_sizes) if found_sizes else UNKNOWN_BYTES
        return 0 if size > max_bytes else size

    chunk: list[str] = []
    total = 0
    for uri, size in wanted:
        if chunk and (_place(chunk[-1]) != _place(uri) or len(chunk) == AT_ONCE or total + expect(size) > BYTES_AT_ONCE):
            yield chunk
            chunk, total = [], 0
        chunk.append(uri)
        total += expect(size)
    if chunk:
        yield chunk


def _place(uri: str) -> str:
    """Scheme and host or bucket: what lies in one place has one filesystem."""
    return uri[: uri.find("/", uri.find("://") + 3)] if "://" in uri else ""
