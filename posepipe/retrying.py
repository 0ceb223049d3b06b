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
from typing import TypeGuard, TypeVar

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
    errno.ENOSPC, errno.EFBIG,
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
    status = http_status(error)
    code = error_code(error)
    if code:
        return code in _PASSING_CODES or status == 429 or _is_server_fault(status)
    if status:
        return status in (408, 429) or _is_server_fault(status)
    if isinstance(error, FileNotFoundError) and _is_of(error.__cause__, "aiohttp", "asyncio", "builtins"):
        # fsspec says of whatever happens on the way to an HTTP server that there is no such file.
        return is_passing(error.__cause__)
    if isinstance(error, _ANSWERS) or _is_denied(error):
        return False
    if isinstance(error, _PASSING):
        return True
    if isinstance(error, OSError):
        return error.errno not in _LASTING_ERRNOS
    # Errors of a connection or of a token, some of which are no OSError; a URL that is none is a ValueError.
    return _is_of(error, "aiohttp", "gcsfs", "google") and not isinstance(error, ValueError)


def _is_server_fault(status: int) -> bool:
    """501 and 505 are answers: the server does not know such a request, say one with a condition."""
    return status >= 500 and status not in (501, 505)


def _is_of(error: BaseException | None, *packages: str) -> TypeGuard[Exception]:
    return isinstance(error, Exception) and type(error).__module__.partition(".")[0] in packages


def http_status(error: BaseException | None) -> int:
    """The status that the storage answered with, 0 where it did not."""
    for found in (error, error.__cause__ if error else None):
        if isinstance(found, ClientError):
            return int(found.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        # aiohttp's ClientResponseError, gcsfs's HttpError
        status = getattr(found, "code" if _is_of(found, "gcsfs") else "status", None)
        if isinstance(status, int):
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
    if isinstance(error, PermissionError) or error_code(error) in ("AccessDenied", "403"):
        return True
    # gcsfs has no other word for it.
    is_forbidden = isinstance(error, OSError) and error.errno is None and str(error).startswith("Forbidden")
    return is_forbidden or (not error_code(error) and http_status(error) in (401, 403))


def _as_os_error(error: Exception) -> Exception:
    """An error of botocore, aiohttp or gcsfs as the OSError that says the same; others as they are."""
    if isinstance(error, ParamValidationError):
        return OSError(errno.EINVAL, " ".join(str(error).split()))
    code, status = error_code(error), http_status(error)
    if not (isinstance(error, ClientError) or (status and not code) or (_is_denied(error) and not isinstance(error, PermissionError))):
        return error
    text = f"HTTP status {status}: {error}" if status and not code else str(error)
    if code in ("NoSuchBucket", "NoSuchKey", "404") or (not code and status in (404, 410)):
        return FileNotFoundError(errno.ENOENT, text)
    if _is_denied(error):
        return PermissionError(errno.EACCES, text)
    return OSError(errno.EINVAL, text)


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
