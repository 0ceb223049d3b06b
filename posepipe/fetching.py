"""Reads many pictures: ahead of the caller, whole or not at all, again after a fault."""

import asyncio
import errno
import functools
import math
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.local import LocalFileSystem

from posepipe import retrying, storage
from posepipe.retrying import StorageUnavailableError, TruncatedBodyError, http_status, retry, retry_async

AT_ONCE = 16
BYTES_AT_ONCE = 64 * 2**20
UNKNOWN_BYTES = 2**25  # of the first objects, where no listing says how large they are

SILENCE = 30.0  # seconds in which a web server sends nothing before it is asked again
LONGEST = 300.0  # seconds that it may take for one object


Fetched = bytes | OSError
_Get = Callable[[Any, str, int], Awaitable[bytes]]
"""Filesystem, path, limit of bytes -> the object."""

_silent: dict[str, float] = {}
"""Web servers that this process has given up, and when (`time.monotonic`)."""


def fetch(uris: Sequence[str], max_bytes: int, patience: float | None = None, unreachable_after: float = 0) -> list[Fetched]:
    """Reads all `uris`, which lie on one filesystem, concurrently where it can.

    Args:
        uris: of the objects.
        max_bytes: of one object.
        patience: seconds that a fault may last; None for `retrying.PATIENCE`.
        unreachable_after: seconds that a fault of a web server may last, which then is an entry; 0 for `patience`.

    Returns:
        One entry per URI: its bytes, or the storage's answer (FileNotFoundError, PermissionError, …); an OSError with errno EFBIG stands
        for an object over the limit, which was not read, one with errno EHOSTUNREACH for a web server that was given up.

    Raises:
        StorageUnavailableError: a fault that did not pass. What the storage could not say is never an entry, but for web servers.
    """
    if not uris:
        return []
    filesystem, _ = storage.open_filesystem(uris[0])
    paths = [filesystem._strip_protocol(uri) for uri in uris]
    if not isinstance(filesystem, AsyncFileSystem):
        return [_read(filesystem, path, max_bytes, patience) for path in paths]
    if _is_web(uris[0]):
        return sync(filesystem.loop, _read_web, filesystem, paths, max_bytes, patience, unreachable_after)
    return sync(filesystem.loop, _read_all, filesystem, paths, max_bytes, patience, _get_s3 if storage.is_s3(uris[0]) else _cat)


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


async def _read_all(filesystem: Any, paths: Sequence[str], max_bytes: int, patience: float | None, get: _Get) -> list[Fetched]:
    async def read(path: str) -> Fetched:
        try:
            return await retry_async(lambda: get(filesystem, path, max_bytes), patience)
        except OSError as error:
            return error
        except StorageUnavailableError as error:
            raise StorageUnavailableError(f"{path}: {error}") from error

    return await asyncio.gather(*(read(path) for path in paths))


async def _read_web(
    filesystem: Any, urls: Sequence[str], max_bytes: int, patience: float | None, unreachable_after: float
) -> list[Fetched]:
    if not unreachable_after:
        try:
            return await _read_all(filesystem, urls, max_bytes, patience, _get_web)
        except StorageUnavailableError as error:
            raise StorageUnavailableError(f"{error}; scoring can go on without such pictures, see --unreachable-after") from error
    has_answered: set[str] = set()
    get = functools.partial(_get_web, silence=min(SILENCE, unreachable_after))

    async def read(url: str) -> Fetched:
        host = _host(url)
        if time.monotonic() - _silent.get(host, -math.inf) < retrying.PATIENCE:
            return OSError(errno.EHOSTUNREACH, f"{host} did not answer for {unreachable_after:g} s and is not asked for a while")
        found: Fetched
        try:
            found = await retry_async(lambda: get(filesystem, url, max_bytes), unreachable_after)
        except OSError as error:
            found = error
        except StorageUnavailableError as error:
            # A server that says "500" of this picture, or hands out others meanwhile, is asked for its next one.
            if not http_status(error.__cause__) and host not in has_answered:
                _silent[host] = time.monotonic()
            return OSError(errno.EHOSTUNREACH, str(error))
        has_answered.add(host)
        _silent.pop(host, None)
        return found

    return await asyncio.gather(*(read(url) for url in urls))


async def _get_web(filesystem: Any, url: str, max_bytes: int, silence: float = SILENCE) -> bytes:
    import aiohttp

    options = {"timeout": aiohttp.ClientTimeout(LONGEST, sock_connect=silence, sock_read=silence), **filesystem.kwargs}
    # Not `cat_file`: the size would be a request of its own, and a body that announces none would be read whole before it is weighed.
    parts: list[bytes] = []
    size = 0
    try:
        session = await filesystem.set_session()
        async with session.get(filesystem.encode_url(url), **options) as answer:
            answer.raise_for_status()
            _check_size(answer.content_length, max_bytes)
            async for part in answer.content.iter_any():
                size += len(part)
                _check_size(size, max_bytes)
                parts.append(part)
    except ValueError as error:
        raise OSError(errno.EINVAL, f"no URL: {error}") from error
    return b"".join(parts)


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


def read_ahead(
    uris: Sequence[str], max_bytes: int, sizes: Sequence[int | None] | None = None, unreachable_after: float = 0
) -> Iterator[tuple[str, Fetched]]:
    """`fetch` in chunks, the next one while the caller works on this one.

    Args:
        uris: on any filesystems; neighbours on the same one are read together.
        max_bytes: of one object.
        sizes: bytes of each where known; a chunk is closed before it takes more than `BYTES_AT_ONCE`.
        unreachable_after: as in `fetch`.
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
            pending.append((part, pool.submit(fetch, part, max_bytes, unreachable_after=unreachable_after)))
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
    """Scheme and host or bucket: what lies in one place has one filesystem. All web servers are one place."""
    return "web" if _is_web(uri) else _host(uri)


def _is_web(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _host(uri: str) -> str:
    return "/".join(uri.split("/", 3)[:3]) if "://" in uri else ""
