"""Reads whole objects of web servers; which servers have been given up."""

import asyncio
import errno
import math
import time
from collections.abc import Callable
from typing import Any

from posepipe import retrying, storage
from posepipe.retrying import StorageUnavailableError, http_status, retry_async

SILENCE = 30.0  # seconds in which a web server sends nothing before it is asked again
LONGEST = 300.0  # seconds that it may take for one object
REDIRECT = 5.0  # seconds that it may take to say that it sends on
CheckSize = Callable[[int | None], None]

_silent: dict[str, float] = {}
"""Web servers that this process has given up, and when (`time.monotonic`)."""
_answered: dict[str, float] = {}
"""Web servers, and when they last answered."""


async def read(filesystem: Any, url: str, check_size: CheckSize, unreachable_after: float) -> bytes:
    """`get`, again and again for `unreachable_after` seconds.

    Raises:
        OSError: the server's answer; with errno EHOSTUNREACH where there is none. A server that has said nothing at all is not asked for a
            while, for any of its objects.
    """
    host = storage.host(url)
    if time.monotonic() - _silent.get(host, -math.inf) < retrying.PATIENCE:
        raise OSError(errno.EHOSTUNREACH, f"{host} did not answer for {unreachable_after:g} s and is not asked for a while")
    silence = min(SILENCE, unreachable_after)
    started = time.monotonic()
    try:
        data = await retry_async(lambda: get(filesystem, url, check_size, silence), unreachable_after)
    except OSError:  # an answer
        _has_answered(host)
        raise
    except StorageUnavailableError as error:
        # A server that says "500" of this picture, has answered for others meanwhile or sends on to a silent one is asked for its next one.
        has_answered = http_status(error.__cause__) or _answered.get(host, -math.inf) >= started
        if not has_answered and not await _sends_on(filesystem, url, min(REDIRECT, silence)):
            _silent[host] = time.monotonic()
        raise OSError(errno.EHOSTUNREACH, str(error)) from error
    _has_answered(host)
    return data


def _has_answered(host: str) -> None:
    _answered[host] = time.monotonic()
    _silent.pop(host, None)


async def _sends_on(filesystem: Any, url: str, seconds: float) -> bool:
    """Whether the server answers with a redirect, within so many seconds."""
    import aiohttp

    options = {**filesystem.kwargs, "timeout": aiohttp.ClientTimeout(seconds), "allow_redirects": False}
    try:
        session = await filesystem.set_session()
        async with session.get(filesystem.encode_url(url), **options) as answer:
            return answer.status in range(300, 400)
    except (OSError, ValueError, asyncio.TimeoutError, aiohttp.ClientError):  # the third is no OSError in Python 3.10
        return False


async def get(filesystem: Any, url: str, check_size: CheckSize, silence: float = SILENCE) -> bytes:
    """Asks once. `check_size` hears the size, or what has come of a body that announces none; what it raises, this raises."""
    import aiohttp

    options = {"timeout": aiohttp.ClientTimeout(LONGEST, sock_connect=silence, sock_read=silence), **filesystem.kwargs}
    # Not `cat_file`: the size would be a request of its own, and a body that announces none would be read whole before it is weighed.
    parts: list[bytes] = []
    size = 0
    try:
        session = await filesystem.set_session()
        async with session.get(filesystem.encode_url(url), **options) as answer:
            answer.raise_for_status()
            check_size(answer.content_length)
            async for part in answer.content.iter_any():
                size += len(part)
                check_size(size)
                parts.append(part)
    except (ValueError, aiohttp.NonHttpUrlClientError) as error:  # the other: of a redirect
        raise OSError(errno.EINVAL, f"no URL: {error}") from error
    return b"".join(parts)
