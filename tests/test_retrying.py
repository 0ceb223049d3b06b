"""retrying.py: which faults pass, how long they are waited out, and what the caller sees in the end."""

import asyncio
import errno
import itertools
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)

from posepipe import retrying
from posepipe.retrying import StorageUnavailableError, TruncatedBodyError, error_code, is_passing, retry, retry_async


def s3_error(code, status=400):
    return ClientError({"Error": {"Code": code, "Message": "said so"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


def translated(kind, code, status=400):
    """As s3fs raises it: an OSError of its own choice with botocore's error as its cause."""
    error = kind(errno.EIO, "said so")
    error.__cause__ = s3_error(code, status)
    return error


def http_answer(status):
    request: Any = SimpleNamespace(real_url="http://server/a.jpg")
    return aiohttp.ClientResponseError(request, (), status=status, message="said so")


def not_found_because_of(cause):
    """As fsspec's HTTP filesystem raises it, whatever had happened."""
    error = FileNotFoundError("http://server/a.jpg")
    error.__cause__ = cause
    return error


class HttpError(Exception):
    """As gcsfs raises it."""

    __module__ = "gcsfs.retry"

    def __init__(self, code):
        super().__init__("said so")
        self.code = code


class Clock:
    """Time that passes only in pauses."""

    def __init__(self):
        self.now, self.pauses = 0.0, []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()

    async def sleep(seconds):
        clock.sleep(seconds)

    monkeypatch.setattr(retrying.time, "monotonic", clock.monotonic)
    monkeypatch.setattr(retrying.time, "sleep", clock.sleep)
    monkeypatch.setattr(retrying.asyncio, "sleep", sleep)
    return clock


class Flaky:
    """Raises these errors, one per call, and then answers; the last one for ever where it has no answer."""

    def __init__(self, *errors, answer=None):
        self.errors, self.answer, self.calls = errors, answer, 0

    def __call__(self):
        self.calls += 1
        if self.answer is None or self.calls <= len(self.errors):
            raise self.errors[min(self.calls, len(self.errors)) - 1]
        return self.answer


def wait_sync(call):
    return retry(call)


def wait_async(call):
    async def called():
        return call()

    # Not asyncio.run, which waits by the clock that the tests replace.
    coroutine = retry_async(called)
    try:
        while True:
            coroutine.send(None)
    except StopIteration as ended:
        return ended.value


both = pytest.mark.parametrize("wait", [wait_sync, wait_async], ids=["sync", "async"])


# Which faults pass


PASSING = [
    s3_error("SlowDown", 503),
    s3_error("ServiceUnavailable", 503),
    s3_error("InternalError", 500),
    s3_error("RequestTimeout", 400),
    s3_error("ExpiredToken", 400),
    s3_error("BadDigest", 400),
    s3_error("ConditionalRequestConflict", 409),
    s3_error("SomethingNew", 599),
    s3_error("SomethingNew", 429),
    s3_error("503", 503),  # of a HEAD request, whose answer has no body to name a code
    translated(OSError, "SlowDown", 503),
    translated(PermissionError, "ExpiredToken", 400),
    EndpointConnectionError(endpoint_url="http://nowhere"),
    ReadTimeoutError(endpoint_url="http://nowhere"),
    ConnectTimeoutError(endpoint_url="http://nowhere"),
    aiohttp.ClientPayloadError("not enough data"),
    aiohttp.ServerDisconnectedError(),
    aiohttp.ClientOSError(errno.ECONNRESET, "reset"),
    TimeoutError(),
    asyncio.TimeoutError(),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    BrokenPipeError(),
    TruncatedBodyError(errno.EIO, "3 of 5 bytes came"),
    OSError(errno.EIO, "the disk coughs"),
    OSError(errno.EMFILE, "too many open files"),
    http_answer(503),
    http_answer(429),
    http_answer(408),
    not_found_because_of(aiohttp.ServerDisconnectedError()),
    not_found_because_of(aiohttp.ClientOSError(errno.ECONNREFUSED, "refused")),
    not_found_because_of(TimeoutError()),
    not_found_because_of(http_answer(503)),
    HttpError(503),
    HttpError(429),
]

LASTING = [
    s3_error("NoSuchKey", 404),
    s3_error("NoSuchBucket", 404),
    s3_error("404", 404),
    s3_error("AccessDenied", 403),
    s3_error("InvalidAccessKeyId", 403),
    s3_error("PreconditionFailed", 412),
    s3_error("InvalidRequest", 400),
    s3_error("NotImplemented", 501),  # a server that knows no conditional write
    s3_error("KeyTooLongError", 400),
    translated(FileNotFoundError, "NoSuchKey", 404),
    translated(OSError, "InvalidRequest", 400),
    FileNotFoundError(errno.ENOENT, "gone"),
    FileExistsError(errno.EEXIST, "there"),
    PermissionError(errno.EACCES, "no"),
    IsADirectoryError(errno.EISDIR, "a folder"),
    NotADirectoryError(errno.ENOTDIR, "a file"),
    OSError(errno.ENAMETOOLONG, "a long name"),
    OSError(errno.EFBIG, "a large file"),
    OSError(errno.ENOSPC, "the disk is full"),
    OSError(errno.EROFS, "read only"),
    NoCredentialsError(),
    ValueError("a mistake of ours"),
    KeyError("another"),
    http_answer(404),
    http_answer(403),
    not_found_because_of(http_answer(404)),
    not_found_because_of(http_answer(403)),
    not_found_because_of(aiohttp.InvalidURL("http://")),
    not_found_because_of(KeyError("a store in memory")),
    HttpError(400),
    OSError("Forbidden: bucket/a.jpg"),
]


def describe(error):
    return f"{type(error).__name__}-{error_code(error) or getattr(error, 'errno', None) or ''}"


@pytest.mark.parametrize("error", PASSING, ids=describe)
def test_faults_that_pass(error):
    assert is_passing(error)


@pytest.mark.parametrize("error", LASTING, ids=describe)
def test_answers_that_last(error):
    assert not is_passing(error)


def test_the_code_is_found_where_s3fs_hides_it():
    assert error_code(s3_error("SlowDown")) == error_code(translated(OSError, "SlowDown")) == "SlowDown"
    assert error_code(OSError(errno.EIO, "said so")) == ""


# How long


@both
def test_a_call_that_works_is_called_once_and_waits_for_nothing(clock, wait):
    call = Flaky(answer=b"data")
    assert (wait(call), call.calls, clock.pauses) == (b"data", 1, [])


@both
@pytest.mark.parametrize("error", PASSING[:4] + PASSING[-4:], ids=describe)
def test_a_fault_that_passes_is_waited_out(clock, wait, error):
    call = Flaky(error, error, error, answer=b"data")
    assert (wait(call), call.calls, len(clock.pauses)) == (b"data", 4, 3)


@both
@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "gone"), IsADirectoryError(), ValueError("ours")], ids=describe)
def test_an_answer_is_raised_at_once_as_it_is(clock, wait, error):
    call = Flaky(error)
    with pytest.raises(type(error)) as caught:
        wait(call)
    assert caught.value is error
    assert (call.calls, clock.pauses) == (1, [])


@both
def test_pauses_grow_to_a_cap_and_have_jitter(clock, wait, monkeypatch):
    monkeypatch.setattr(retrying, "PATIENCE", 1e6)
    faults = [TimeoutError()] * 200
    wait(Flaky(*faults, answer=b"data"))
    bounds = [min(0.2 * 2**turn, 10.0) for turn in range(200)]  # 0.2, 0.4, …, 6.4, 10, 10, …
    assert all(0.5 * bound <= pause <= bound for pause, bound in zip(clock.pauses, bounds, strict=True))
    capped = clock.pauses[6:]
    assert len(set(capped)) == len(capped)
    assert max(capped) - min(capped) > 2.5, "half of the interval from 5 to 10 s is never used"


@both
def test_after_patience_the_last_fault_is_named(clock, wait, monkeypatch):
    monkeypatch.setattr(retrying, "PATIENCE", 30.0)
    call = Flaky(ConnectionResetError(errno.ECONNRESET, "reset"), s3_error("SlowDown", 503))
    with pytest.raises(StorageUnavailableError, match=r"failed for 30 s, last with ClientError: .*SlowDown") as caught:
        wait(call)
    assert caught.value.__cause__ is call.errors[-1]
    assert 30 < clock.now <= 40, "one pause after the limit at most"
    assert call.calls == len(clock.pauses) + 1


@both
def test_patience_is_per_call(clock, wait, monkeypatch):
    monkeypatch.setattr(retrying, "PATIENCE", 30.0)
    for _ in range(5):
        assert wait(Flaky(*[TimeoutError()] * 6, answer=b"data")) == b"data"
    assert clock.now > 30


# What is denied


DENIED = [s3_error("AccessDenied", 403), s3_error("403", 403), translated(PermissionError, "AccessDenied", 403), PermissionError("no")]


@both
@pytest.mark.parametrize("error", DENIED, ids=describe)
def test_denied_is_asked_a_few_times_more(clock, wait, error):
    call = Flaky(error)
    with pytest.raises(PermissionError):
        wait(call)
    assert call.calls == 1 + retrying.DENIED_RETRIES == 5


@both
def test_a_throttled_store_may_say_denied_as_often(clock, wait):
    call = Flaky(*[s3_error("AccessDenied", 403)] * retrying.DENIED_RETRIES, answer=b"data")
    assert wait(call) == b"data"


@both
def test_faults_between_do_not_count_as_denied(clock, wait):
    faults = itertools.chain.from_iterable([s3_error("AccessDenied", 403), TimeoutError()] for _ in range(retrying.DENIED_RETRIES))
    assert wait(Flaky(*faults, answer=b"data")) == b"data"


# Who asks


@both
@pytest.mark.parametrize(
    "error",
    [
        s3_error("InvalidAccessKeyId", 403),
        s3_error("SignatureDoesNotMatch", 403),
        translated(PermissionError, "InvalidAccessKeyId", 403),
        NoCredentialsError(),
    ],
    ids=describe,
)
def test_wrong_credentials_end_at_once_and_are_no_answer(clock, wait, error):
    call = Flaky(error)
    with pytest.raises(StorageUnavailableError, match=r"does not accept the credentials|cannot be asked"):
        wait(call)
    assert (call.calls, clock.pauses) == (1, [])


# What botocore says becomes what Python says


@both
@pytest.mark.parametrize(
    ("code", "kind", "number"),
    [
        ("NoSuchKey", FileNotFoundError, errno.ENOENT),
        ("NoSuchBucket", FileNotFoundError, errno.ENOENT),
        ("404", FileNotFoundError, errno.ENOENT),
        ("AccessDenied", PermissionError, errno.EACCES),
        ("InvalidRequest", OSError, errno.EINVAL),
    ],
)
def test_botocores_answers_become_oserrors(clock, wait, code, kind, number):
    with pytest.raises(kind, match="said so") as caught:
        wait(Flaky(s3_error(code)))
    assert caught.value.errno == number


@both
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (http_answer(403), PermissionError),
        (http_answer(410), FileNotFoundError),
        (http_answer(400), OSError),
        (not_found_because_of(http_answer(403)), PermissionError),
        (not_found_because_of(http_answer(401)), PermissionError),
        (not_found_because_of(http_answer(404)), FileNotFoundError),
        (not_found_because_of(http_answer(400)), OSError),
        (HttpError(400), OSError),
        (OSError("Forbidden: bucket/a.jpg\nsaid so"), PermissionError),
    ],
    ids=describe,
)
def test_answers_of_http_servers_and_of_gcsfs_become_oserrors(clock, wait, error, kind):
    with pytest.raises(kind, match=r"said so|server") as caught:
        wait(Flaky(error))
    assert type(caught.value) is kind
    assert caught.value.errno is not None


def test_both_forms_pause_alike(clock, monkeypatch):
    pauses = []
    for wait in (wait_sync, wait_async):
        monkeypatch.setattr(retrying.random, "uniform", lambda low, high: high)
        clock.pauses.clear()
        wait(Flaky(TimeoutError(), s3_error("SlowDown", 503), s3_error("AccessDenied", 403), TimeoutError(), answer=b"data"))
        pauses.append(list(clock.pauses))
    assert pauses[0] == pauses[1] == pytest.approx([0.2, 0.4, 0.8, 1.6])
