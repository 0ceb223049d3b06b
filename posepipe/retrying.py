"""Which faults of a storage pass, and how long they are waited out.

Throttling, resets, timeouts, bodies that end early and expired credentials pass: the call is repeated with growing pauses until it works or
`PATIENCE` is over, so a cut link or a restarting server stops nobody. That something is missing or forbidden is an answer, not a fault; but
a throttled store has been seen to say "access denied", so that is asked a few times.
"""

import asyncio
import errno
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    ParamValidationError,
)
from botocore.exceptions import ConnectionError as S3ConnectionError
from botocore.parsers import ResponseParserError

T = TypeVar("T")

PATIENCE = 600.0
"""Seconds that a fault may last before the call gives up."""
DENIED_RETRIES = 4
PAUSE, LONGEST_PAUSE = 0.2, 10.0

# S3's error codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_PASSING_CODES = {
    "500", "502", "503", "504", "BadDigest", "ConditionalRequestConflict", "ExpiredToken", "IncompleteBody", "InternalError",
    "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown", "TokenRefreshRequired", "TooManyRequests",
}  # fmt: skip
_CREDENTIAL_CODES = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed", "InvalidToken", "AuthorizationHeaderMalformed"}
_LASTING_ERRNOS = {
    errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EPERM, errno.ENOSYS, errno.EEXIST, errno.EROFS,
    errno.ENOSPC, errno.EMFILE, errno.EFBIG,
}  # fmt: skip


class TruncatedBodyError(OSError):
    """Fewer bytes came than the storage had announced."""


class StorageUnavailableError(RuntimeError):
    """A fault lasted longer than `PATIENCE`, or the storage cannot be asked (credentials, profile): what was asked for stays unknown."""


_ANSWERS = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
_PASSING = (
    asyncio.TimeoutError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    ResponseParserError,
    S3ConnectionError,
    TimeoutError,
    TruncatedBodyError,
)


def error_code(error: BaseException) -> str:
    """S3's code of an error that botocore or s3fs raised, or an empty string."""
    for found in (error, error.__cause__):
        if isinstance(found, ClientError):
            return str(found.response.get("Error", {}).get("Code", ""))
    return ""


def is_passing(error: Exception) -> bool:
    """Whether the same call may work later."""
    status = _http_status(error)
    code = error_code(error)
    if code:
        return code in _PASSING_CODES or status == 429 or status >= 500
    if status:
        return status == 429 or status >= 500
    if isinstance(error, _ANSWERS):
        return False
    if isinstance(error, _PASSING):
        return True
    if isinstance(error, OSError):
        return error.errno not in _LASTING_ERRNOS
    return type(error).__module__.startswith("aiohttp")  # its errors of a connection, some of which are no OSError


def _http_status(error: Exception) -> int:
    """The status that the storage answered with, 0 where it did not."""
    for found in (error, error.__cause__):
        if isinstance(found, ClientError):
            return int(found.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if isinstance(status := getattr(found, "status", None), int):  # aiohttp's ClientResponseError
            return status
    return 0


def _pauses(first: float = PAUSE) -> Iterator[float]:
    """Growing pauses with jitter, in seconds, without end."""
    pause = first
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(2 * pause, LONGEST_PAUSE)


class _Attempts:
    """Decides after each failure how long to wait before the next attempt, or raises what the caller should see."""

    def __init__(self, patience: float | None) -> None:
        self._patience = PATIENCE if patience is None else patience
        self._pauses, self._deadline, self._denied = _pauses(), time.monotonic() + self._patience, 0

    def pause(self, error: Exception) -> float:
        if error_code(error) in _CREDENTIAL_CODES:
            raise StorageUnavailableError(f"the storage does not accept the credentials: {error}") from error
        if is_passing(error):
            if time.monotonic() > self._deadline:
                raise StorageUnavailableError(
                    f"the storage failed for {self._patience:g} s, last with {type(error).__name__}: {error}"
                ) from error
            return next(self._pauses)
        if _is_denied(error) and self._denied < DENIED_RETRIES:
            self._denied += 1
            return next(self._pauses)
        if isinstance(error, BotoCoreError) and not isinstance(error, ParamValidationError):
            # No credentials, no region, a profile that does not exist: a mistake around the program, not in what was asked for.
            raise StorageUnavailableError(f"the storage cannot be asked: {error}") from error
        raise _as_os_error(error) from error.__cause__


def _is_denied(error: Exception) -> bool:
    return isinstance(error, PermissionError) or error_code(error) in ("AccessDenied", "403")


def _as_os_error(error: Exception) -> Exception:
    """A botocore error as the OSError that says the same; others as they are."""
    if isinstance(error, ParamValidationError):
        return OSError(errno.EINVAL, " ".join(str(error).split()))
    if not isinstance(error, ClientError):
        return error
    code = error_code(error)
    if code in ("NoSuchBucket", "NoSuchKey", "404"):
        return FileNotFoundError(errno.ENOENT, str(error))
    if _is_denied(error):
        return PermissionError(errno.EACCES, str(error))
    return OSError(errno.EINVAL, str(error))


def retry(call: Callable[[], T], patience: float | None = None) -> T:
    """Calls until it works, for `patience` seconds (None: `PATIENCE`).

    Raises:
        FileNotFoundError, PermissionError, …: the storage's answer.
        StorageUnavailableError: a fault that did not pass.
    """
    attempts = _Attempts(patience)
    while True:
        try:
            return call()
        except Exception as error:  # Every kind that does not pass is raised again.
            pause = attempts.pause(error)
        time.sleep(pause)


async def retry_async(call: Callable[[], Awaitable[T]], patience: float | None = None) -> T:
    """`retry` for coroutines."""
    attempts = _Attempts(patience)
    while True:
        try:
            return await call()
        except Exception as error:  # As above.
            pause = attempts.pause(error)
        await asyncio.sleep(pause)
