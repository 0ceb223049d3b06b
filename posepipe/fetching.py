"""Reads many pictures: ahead of the caller, whole or not at all, again after a fault."""

import concurrent.futures.thread
import contextlib
import errno
import functools
import itertools
import math
import os
import stat
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.local import LocalFileSystem

from posepipe import retrying, s3_reads, storage, web_reads
from posepipe.retrying import StorageUnavailableError, TruncatedBodyError, retry, retry_async

AT_ONCE, AT_ONCE_ON_WEB = 32, 16
"""Objects that `read_ahead` asks for at a time."""
AHEAD = 3 * AT_ONCE  # of the caller: some answers take several times as long as others
BYTES_AHEAD = 2**25
TOGETHER = 16  # local files: a thread for each would take longer than reading it
OTHERS = 4  # that are asked for once before an object is given up
UNKNOWN_BYTES = 2**22  # of each of the first objects, where no listing says how large they are

Fetched = bytes | OSError
_answered: dict[str, float] = {}
"""Buckets and other stores, and when they last answered (`time.monotonic`)."""


def fetch(uri: str, max_bytes: int, patience: float | None = None, unreachable_after: float = 0) -> Fetched:
    """Reads the object at `uri`.

    Args:
        uri: of the object.
        max_bytes: of it.
        patience: seconds that a fault may last; None for `retrying.PATIENCE`.
        unreachable_after: seconds that a fault of a web server may last, which then is the answer; 0 for `patience`. Where it is given, a
            fault of another store that has lasted for `patience` is the answer, too, if the store has handed others out meanwhile.

    Returns:
        Its bytes, or the storage's answer (FileNotFoundError, PermissionError, …); an OSError with errno EFBIG stands for an object over
        the limit, which was not read, one with errno EHOSTUNREACH for a web server or an object that was given up.

    Raises:
        StorageUnavailableError: a fault that did not pass. What the storage could not say is only returned as `unreachable_after` allows.
    """
    return _fetch(storage.open_filesystem(uri)[0], uri, max_bytes, patience, unreachable_after)


def _fetch(
    filesystem: AbstractFileSystem,
    uri: str,
    max_bytes: int,
    patience: float | None,
    unreachable_after: float,
    others: Sequence[str] = (),
    wait_for_room: Callable[[int], None] = lambda size: None,
) -> Fetched:
    """`fetch`; where a size is heard of before the bytes, `wait_for_room` may hold them back.

    If no other object was read meanwhile, because this one is the last of its shard or the next ones wait for its thread, `others` of the
    same filesystem tell whether the store is well.
    """
    path = filesystem._strip_protocol(uri)
    check = functools.partial(_check_size, max_bytes=max_bytes)
    started = time.monotonic()
    try:
        if not isinstance(filesystem, AsyncFileSystem):
            data = _read(filesystem, path, max_bytes, patience)
        elif storage.is_s3(uri):
            data = _read_s3(filesystem, uri, max_bytes, patience, wait_for_room)
        elif _is_web(uri) and unreachable_after:
            return sync(filesystem.loop, web_reads.read, filesystem, path, check, unreachable_after)
        elif _is_web(uri):
            data = sync(filesystem.loop, retry_async, lambda: web_reads.get(filesystem, path, check), patience)
        else:
            data = sync(filesystem.loop, retry_async, lambda: _cat(filesystem, path, max_bytes), patience)
    except OSError as error:
        return error
    except StorageUnavailableError as error:
        # What is not passing are credentials, for which a store that answers others says nothing.
        has_lasted = isinstance(error.__cause__, Exception) and retrying.is_passing(error.__cause__)
        last_answer = _answered.get(storage.host(uri), -math.inf)
        # A damaged object of a store that is well would otherwise end each run that comes to it.
        if unreachable_after and has_lasted and (last_answer > started or _is_any_read(filesystem, others, max_bytes)):
            return OSError(errno.EHOSTUNREACH, str(error))
        has_others = has_lasted and last_answer > -math.inf
        hint = "; scoring can go on without such pictures, see --unreachable-after" if has_others or _is_web(uri) else ""
        raise StorageUnavailableError(f"{path}: {error}{hint}") from error
    _answered[storage.host(uri)] = time.monotonic()
    return data


def _is_any_read(filesystem: AbstractFileSystem, uris: Sequence[str], max_bytes: int) -> bool:
    """Whether the storage hands one of these out at once."""
    for uri in uris:
        with contextlib.suppress(StorageUnavailableError):
            if isinstance(_fetch(filesystem, uri, max_bytes, 0, 0), bytes):
                return True
    return False


def _read(filesystem: AbstractFileSystem, path: str, max_bytes: int, patience: float | None) -> bytes:
    if "\0" in path:
        raise OSError(errno.EINVAL, "a name cannot hold a zero byte")
    if isinstance(filesystem, LocalFileSystem):
        return retry(lambda: _read_local(path, max_bytes), patience)
    # FTP and its like have one connection, on which two threads would get each other's answers. Between two attempts it is free.
    turn = vars(filesystem).setdefault("_posepipe_turn", threading.Lock())

    def ask(call: Callable[[str], Any]) -> Any:
        with turn:
            return call(path)

    _check_size(retry(lambda: ask(filesystem.size), patience), max_bytes)
    return retry(lambda: ask(filesystem.cat_file), patience)


def _read_local(path: str, max_bytes: int) -> bytes:
    found = os.stat(path)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):  # a pipe, a socket or a device, which may have no end
        raise OSError(errno.EINVAL, "neither a file nor a folder")
    _check_size(found.st_size, max_bytes)
    with open(path, "rb") as file:
        return file.read()


def _read_s3(filesystem: Any, uri: str, max_bytes: int, patience: float | None, wait_for_room: Callable[[int], None]) -> bytes:
    def check(size: int) -> None:
        _check_size(size, max_bytes)
        wait_for_room(size)

    # Of the key s3fs takes a slash at the end away, and what follows `?versionId=`, which it then does not heed.
    name, _, _ = filesystem.split_path(uri)
    key = uri.partition("://")[2].lstrip("/").removeprefix(name)[1:]
    bucket = s3_reads.open_bucket(filesystem, name)
    data = bucket.read(key, check)
    if data is None:
        data = sync(filesystem.loop, retry_async, lambda: _get_s3(filesystem, name, key, max_bytes), patience)
        bucket.count_strike()
    return data


async def _get_s3(filesystem: Any, bucket: str, key: str, max_bytes: int) -> bytes:
    # Not `cat_file`, which asks for the size first and does not compare it with what came. (`cat` takes brackets for a pattern.)
    answer = await filesystem._call_s3("get_object", Bucket=bucket, Key=key)
    async with answer["Body"] as body:
        size = answer["ContentLength"]
        _check_size(size, max_bytes)
        data = await body.read()
    if len(data) != size:
        raise TruncatedBodyError(errno.EIO, f"{len(data)} of {size} bytes of {bucket}/{key} came")
    return data


async def _cat(filesystem: Any, path: str, max_bytes: int) -> bytes:
    _check_size((await filesystem._info(path)).get("size"), max_bytes)
    data = await filesystem._cat_file(path)
    _check_size(len(data), max_bytes)  # not every server announces it
    return data


def _check_size(size: int | None, max_bytes: int) -> None:
    if size is not None and size > max_bytes:
        raise OSError(errno.EFBIG, f"{size} bytes, the limit is {max_bytes}")


class _Room:
    """`BYTES_AHEAD` for what threads have read ahead of the caller, the earlier first; what the caller waits for is never held back."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken: dict[int, int] = {}
        self._waiting: set[int] = set()
        self._next: float = 0

    def wait(self, number: int, size: int) -> None:
        """Returns when there is room for so many bytes of this read; the reads are numbered."""
        with self._changed:
            self._taken.pop(number, None)  # of an attempt that failed
            self._waiting.add(number)
            while not self._changed.wait_for(lambda: self._may_go_on(number, size), timeout=1):
                # Where an error ends the program its trace keeps the caller, who never says that nothing more is wanted.
                if concurrent.futures.thread._shutdown:
                    break
            self._waiting.remove(number)
            self._taken[number] = size
            self._changed.notify_all()

    def _may_go_on(self, number: int, size: int) -> bool:
        return number <= self._next or (number == min(self._waiting) and sum(self._taken.values()) + size <= BYTES_AHEAD)

    def give_back(self, number: float) -> None:
        """What the caller has got up to this read."""
        with self._changed:
            self._next = number + 1
            for taken in [taken for taken in self._taken if taken <= number]:
                del self._taken[taken]
            self._changed.notify_all()


def read_ahead(
    uris: Sequence[str], max_bytes: int, sizes: Sequence[int | None] | None = None, unreachable_after: float = 0
) -> Iterator[tuple[str, Fetched]]:
    """`fetch` for each, in order, the next ones while the caller works on this one.

    Args:
        uris: on any filesystems.
        max_bytes: of one object.
        sizes: bytes of each where known; no more than `BYTES_AHEAD` are asked for at a time, or one object. Where they are not, a mean is
            expected, and S3's objects are held back until there is room.
        unreachable_after: as in `fetch`.
    """
    wanted = list(zip(uris, sizes or [None] * len(uris), strict=True))
    found_sizes: deque[int] = deque(maxlen=AHEAD)
    pending: deque[tuple[list[str], int, Future[list[Fetched]]]] = deque()
    numbers, taken, room = itertools.count(), itertools.count(), _Room()
    first_ones: dict[str, list[str]] = defaultdict(list)
    for uri in uris:
        if len(first_ones[_place(uri)]) < OTHERS:
            first_ones[_place(uri)].append(uri)

    def read(filesystem: AbstractFileSystem, part: list[str], number: int) -> list[Fetched]:
        others = first_ones[_place(part[0])]
        wait_for_room = functools.partial(room.wait, number)
        return [
            _fetch(filesystem, uri, max_bytes, None, unreachable_after, [other for other in others if other != uri], wait_for_room)
            for uri in part
        ]

    def take() -> Iterator[tuple[str, Fetched]]:
        part, _, reading = pending.popleft()
        found = reading.result()
        found_sizes.extend(len(data) for data in found if isinstance(data, bytes))
        yield from zip(part, found, strict=True)
        room.give_back(next(taken))

    def is_full(part: list[str], num_bytes: int) -> bool:
        count = len(part) + sum(len(other) for other, _, _ in pending)
        most = AT_ONCE_ON_WEB if _is_web(part[0]) else TOGETHER if storage.is_local(part[0]) else AHEAD
        return count > most or num_bytes + sum(other for _, other, _ in pending) > BYTES_AHEAD

    filesystems: dict[str, AbstractFileSystem] = {}

    def open_filesystem(uri: str) -> AbstractFileSystem:
        """In the caller's thread: fsspec has one per thread, each with connections of its own."""
        if (place := _place(uri)) not in filesystems:
            filesystems[place], _ = storage.open_filesystem(uri)
        return filesystems[place]

    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        for part, num_bytes in _cut(wanted, max_bytes, found_sizes):
            while pending and is_full(part, num_bytes):
                yield from take()
            pending.append((part, num_bytes, pool.submit(read, open_filesystem(part[0]), part, next(numbers))))
        while pending:
            yield from take()
    finally:
        room.give_back(math.inf)
        # What nobody waits for any more is not begun; each could wait for a storage that is away.
        pool.shutdown(cancel_futures=True)


def _cut(wanted: Sequence[tuple[str, int | None]], max_bytes: int, found_sizes: Collection[int]) -> Iterator[tuple[list[str], int]]:
    """What one thread reads, and its bytes, cut when it is asked for: an unknown size is taken for the mean of `found_sizes` by then."""

    def expect(size: int | None) -> int:
        if size is None:
            return sum(found_sizes) // len(found_sizes) if found_sizes else UNKNOWN_BYTES
        return 0 if size > max_bytes else size

    part: list[str] = []
    total = 0
    for uri, size in wanted:
        are_local = storage.is_local(uri) and len(part) < TOGETHER and total + expect(size) <= BYTES_AHEAD
        if part and not (are_local and _place(uri) == _place(part[0])):
            yield part, total
            part, total = [], 0
        part.append(uri)
        total += expect(size)
    if part:
        yield part, total


def _place(uri: str) -> str:
    """Scheme and host or bucket: what lies in one place has one filesystem. All web servers are one place."""
    return "web" if _is_web(uri) else storage.host(uri)


def _is_web(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))
