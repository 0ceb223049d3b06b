"""fetching.py: every URI one entry, in order; whole bytes or the storage's answer; so far ahead and no further."""

import errno
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import boto3
import botocore.exceptions
import pytest

from posepipe import fetching, retrying, storage
from posepipe.fetching import fetch, read_ahead
from posepipe.retrying import StorageUnavailableError, TruncatedBodyError
from posepipe.storage import join_uri, write_bytes

BUCKET = "fetching-test"
LIMIT = 1000
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bucket(s3_endpoint):
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket=BUCKET)
    return f"s3://{BUCKET}"


@pytest.fixture(params=["path", "file", "memory", "s3"])
def folder(request, tmp_path):
    """An empty folder by its URI."""
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"
    return {"path": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{uuid.uuid4().hex}"}[request.param]


@pytest.fixture
def quick(monkeypatch):
    """Faults are tried again without a pause to speak of."""
    monkeypatch.setattr(retrying, "_pauses", lambda: iter(lambda: 1e-4, None))


def read(uris, limit=LIMIT, **others):
    """What came for each."""
    found = list(read_ahead(uris, limit, **others))
    assert [uri for uri, _ in found] == list(uris)
    return [data for _, data in found]


# Reading many


def test_the_order_is_kept_and_a_failed_read_stands_in_its_place(folder):
    for name in ("a", "b"):
        write_bytes(join_uri(folder, name), name.encode())
    found = read([join_uri(folder, name) for name in ("b", "gone", "a", "b", "gone as well")])
    assert [found[index] for index in (0, 2, 3)] == [b"b", b"a", b"b"]
    assert [type(found[index]) for index in (1, 4)] == [FileNotFoundError] * 2


def test_reading_none_is_none():
    assert read([]) == []


def test_a_folder_in_the_list_is_an_error_in_its_place(tmp_path):
    (tmp_path / "folder").mkdir()
    write_bytes(str(tmp_path / "a"), b"a")
    error, data = read([str(tmp_path / "folder"), str(tmp_path / "a")], 2**20)
    assert isinstance(error, IsADirectoryError)
    assert data == b"a"


def test_a_pipe_in_the_list_is_an_error_in_its_place(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in (str(tmp_path / "pipe"), str(tmp_path / "link"), "/dev/zero"):
        error = fetch(name, LIMIT)
        assert (type(error), error.errno) == (OSError, errno.EINVAL)


def test_an_empty_object_is_no_bytes_and_no_error(folder):
    write_bytes(join_uri(folder, "empty"), b"")
    assert fetch(join_uri(folder, "empty"), LIMIT) == b""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_a_permission_error(tmp_path, quick):
    write_bytes(str(tmp_path / "a"), b"a")
    (tmp_path / "a").chmod(0)
    assert type(fetch(str(tmp_path / "a"), LIMIT)) is PermissionError


def test_an_unknown_scheme_is_a_value_error():
    with pytest.raises(ValueError, match="cannot open 'nosuch://bucket/key'"):
        fetch("nosuch://bucket/key", LIMIT)


@pytest.mark.parametrize(
    "name",
    ["photo[1].jpg", "a*b?.jpg", "with space.jpg", "p%20q.jpg", "a#1.jpg", "plus+.jpg", "über.jpg", "a&b=c.jpg", "{a,b}.jpg", "~a.jpg"],
)
def test_any_name_is_only_a_name(folder, name):
    for each in (name, "photo1.jpg", "ab.jpg", "a.jpg", "p q.jpg"):
        write_bytes(join_uri(folder, each), each.encode())
    assert read([join_uri(folder, name), join_uri(folder, "photo1.jpg")]) == [name.encode(), b"photo1.jpg"]
    [listed] = [uri for uri in storage.list_files(folder) if uri.endswith(f"/{name}")]
    assert fetch(listed, LIMIT) == name.encode()


def test_s3a_is_s3(bucket):
    write_bytes(f"{bucket}/s3a", b"data")
    assert fetch(f"s3a://{BUCKET}/s3a", LIMIT) == b"data"


# The limit of bytes


def test_an_object_over_the_limit_is_too_large_and_one_at_the_limit_is_not(folder):
    for size in (LIMIT, LIMIT + 1):
        write_bytes(join_uri(folder, str(size)), b"x" * size)
    at_limit, over = read([join_uri(folder, str(size)) for size in (LIMIT, LIMIT + 1)])
    assert at_limit == b"x" * LIMIT
    assert isinstance(over, OSError)
    assert (over.errno, over.strerror) == (errno.EFBIG, "1001 bytes, the limit is 1000")


def test_a_file_over_the_limit_is_not_read(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2**42)  # no memory holds it
    assert fetch(str(tmp_path / "large"), LIMIT).errno == errno.EFBIG


class Body:
    """What S3 sends: `size` is announced, `data` comes."""

    def __init__(self, data):
        self.data, self.is_read, self.is_closed = data, False, False

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.is_closed = True

    async def read(self):
        self.is_read = True
        return self.data


def answers_of_s3(monkeypatch, *answers):
    """Lets S3 answer GETs so, one after the other: (announced bytes, data); returns the bodies."""
    filesystem, _ = storage.open_filesystem("s3://bucket")
    bodies = [Body(data) for _, data in answers]
    left = iter(zip(answers, bodies, strict=True))

    async def call_s3(method, **asked):
        assert method == "get_object"
        (size, _), body = next(left)
        return {"Body": body, "ContentLength": size}

    monkeypatch.setattr(filesystem, "_call_s3", call_s3)
    return bodies


def test_an_s3_object_over_the_limit_is_not_read(s3_endpoint, monkeypatch):
    [body] = answers_of_s3(monkeypatch, (LIMIT + 1, b"x" * (LIMIT + 1)))
    error = fetch("s3://bucket/large", LIMIT)
    assert (error.errno, body.is_read, body.is_closed) == (errno.EFBIG, False, True)


# Faults


def test_a_body_that_ends_early_is_read_again_and_never_returned(s3_endpoint, monkeypatch, quick):
    bodies = answers_of_s3(monkeypatch, (5, b"pic"), (5, b""), (5, b"picture"), (5, b"whole"))
    assert fetch("s3://bucket/key", LIMIT) == b"whole"
    assert all(body.is_read and body.is_closed for body in bodies)


def test_a_body_that_always_ends_early_is_no_entry(s3_endpoint, monkeypatch, quick):
    monkeypatch.setattr(retrying, "PATIENCE", 0.0)
    answers_of_s3(monkeypatch, *[(5, b"pic")] * 100)
    with pytest.raises(StorageUnavailableError, match=r"last with TruncatedBodyError: .*3 of 5 bytes of bucket/key came"):
        fetch("s3://bucket/key", LIMIT)


@pytest.mark.parametrize("kind", ["path", "memory"])
def test_a_fault_of_one_read_does_not_touch_the_others(kind, tmp_path, monkeypatch, quick):
    folder = str(tmp_path) if kind == "path" else f"memory://{uuid.uuid4().hex}"
    uris = [join_uri(folder, name) for name in "abc"]
    for uri in uris:
        write_bytes(uri, uri.encode())
    place, name = (fetching, "_read_local") if kind == "path" else (storage.open_filesystem(folder)[0], "cat_file")
    read_one, faults = getattr(place, name), iter([TruncatedBodyError(errno.EIO, "short"), TimeoutError(), ConnectionResetError()])

    def fail_first(path, *arguments):
        if path.endswith("b") and (fault := next(faults, None)):
            raise fault
        return read_one(path, *arguments)

    monkeypatch.setattr(place, name, fail_first)
    assert read(uris) == [uri.encode() for uri in uris]
    assert next(faults, None) is None


# Ahead


@pytest.mark.parametrize("count", [1, 3, 4, 10])
def test_reading_ahead_keeps_the_order(folder, count, monkeypatch):
    monkeypatch.setattr(fetching, "TOGETHER", 3)
    monkeypatch.setattr(fetching, "AHEAD", 3)
    uris = [join_uri(folder, f"{index:02d}") for index in range(count)]
    for uri in uris[::2]:
        write_bytes(uri, uri.encode())
    for index, (uri, data) in enumerate(zip(uris, read(uris), strict=True)):
        assert isinstance(data, FileNotFoundError) if index % 2 else data == uri.encode()


@pytest.fixture
def asked(monkeypatch):
    """What is asked for."""
    uris = []
    monkeypatch.setattr(fetching, "_fetch", lambda _, uri, *__: uris.append(uri) or b"")
    return uris


def has_asked(asked, uris):
    """Whether these are asked for, in whatever order, and no others for the moment."""
    deadline = time.monotonic() + 10
    while len(asked) < len(uris) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    return sorted(asked) == list(uris)


def test_files_are_read_a_few_together_and_a_few_ahead(monkeypatch, asked):
    monkeypatch.setattr(fetching, "TOGETHER", 2)
    rows = read_ahead("abcdef", LIMIT)
    next(rows)
    assert has_asked(asked, "ab")
    next(rows)
    next(rows)
    assert has_asked(asked, "abcd")
    rows.close()


@pytest.mark.parametrize(("scheme", "constant"), [("memory", "AHEAD"), ("http", "AT_ONCE_ON_WEB")])
def test_so_many_objects_are_asked_for_ahead_of_the_caller(monkeypatch, asked, scheme, constant):
    monkeypatch.setattr(fetching, constant, 3)
    uris = [f"{scheme}://host/{name}" for name in "abcdef"]
    rows = read_ahead(uris, LIMIT)
    next(rows)
    next(rows)
    assert has_asked(asked, uris[:4])
    rows.close()


def test_the_next_object_is_read_while_the_caller_has_this_one(monkeypatch):
    is_second_asked = threading.Event()

    def fetch_one(_, uri, *__):
        if uri.endswith("b"):
            is_second_asked.set()
        return b""

    monkeypatch.setattr(fetching, "_fetch", fetch_one)
    rows = read_ahead(["memory://a", "memory://b"], LIMIT)
    next(rows)
    assert is_second_asked.wait(30)
    rows.close()


def cut(uris, sizes, max_bytes=LIMIT, found_sizes=()):
    return ["".join(part) for part, _ in fetching._cut(list(zip(uris, sizes, strict=True)), max_bytes, found_sizes)]


def test_files_are_read_together_up_to_so_many_bytes(monkeypatch):
    monkeypatch.setattr(fetching, "BYTES_AHEAD", 100)
    # 60 + 40 fit; 1 more does not; what is over the limit (500 > 200) is not read and takes nothing; 150 goes alone.
    assert cut("abcdefg", [60, 40, 1, 500, 99, 150, 10], 200) == ["ab", "cde", "f", "g"]


def test_files_of_unknown_size_count_as_those_that_were_read(monkeypatch):
    monkeypatch.setattr(fetching, "BYTES_AHEAD", 100)
    monkeypatch.setattr(fetching, "UNKNOWN_BYTES", 50)
    assert cut("abcdefgh", [None] * 8) == ["ab", "cd", "ef", "gh"]
    assert cut("abcdefgh", [None] * 8, found_sizes=[20, 30]) == ["abcd", "efgh"]


def test_no_more_bytes_are_asked_for_ahead_than_may_be(monkeypatch, asked):
    monkeypatch.setattr(fetching, "BYTES_AHEAD", 100)
    uris = [f"memory://host/{name}" for name in "abcdef"]
    # 60 and 40 are asked for; when the first is taken, 60 may come; 150 waits until nothing else does.
    rows = read_ahead(uris, 200, [60, 40, 60, 150, 1, 1])
    next(rows)
    assert has_asked(asked, uris[:2])
    next(rows)
    assert has_asked(asked, uris[:3])
    rows.close()
    asked.clear()
    assert len(read(uris, 200, sizes=[60, 40, 60, 150, 1, 1])) == len(asked) == 6


def test_objects_that_are_larger_than_expected_wait_for_room(monkeypatch):
    monkeypatch.setattr(fetching, "BYTES_AHEAD", 100)
    monkeypatch.setattr(fetching, "UNKNOWN_BYTES", 1)
    ahead = []

    def fetch_one(_, uri, *arguments):
        arguments[-1](40)
        ahead.append(uri)
        return b""

    monkeypatch.setattr(fetching, "_fetch", fetch_one)
    uris = [f"memory://host/{name:02}" for name in range(40)]
    rows = read_ahead(uris, LIMIT)
    for number, uri in enumerate(uris):
        assert next(rows) == (uri, b"")
        # 40 and 40 fit, and one more that the caller waits for; what it has is given back when it asks for the next one.
        assert has_asked(ahead, uris[: min(number + 2, 40)]), f"{len(ahead)} were read when the caller had {number + 1}"
    assert next(rows, None) is None


def test_who_stops_asking_waits_for_nobody_who_has_no_room(monkeypatch):
    monkeypatch.setattr(fetching, "BYTES_AHEAD", 100)
    monkeypatch.setattr(fetching, "UNKNOWN_BYTES", 1)
    monkeypatch.setattr(fetching, "_fetch", lambda *arguments: arguments[-1](90) or b"")
    rows = read_ahead([f"memory://host/{name}" for name in "abcdef"], LIMIT)
    next(rows)
    closing = threading.Thread(target=rows.close)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()


def test_objects_of_several_places_are_read_in_one_go(tmp_path):
    memory = f"memory://{uuid.uuid4().hex}"
    uris = [str(tmp_path / "a"), join_uri(memory, "b"), join_uri(memory, "c"), f"file://{tmp_path}/d", str(tmp_path / "e")]
    for uri in uris:
        write_bytes(uri, uri.encode())
    assert read(uris) == [uri.encode() for uri in uris]


def test_a_program_that_an_error_ends_waits_for_nobody_who_has_no_room():
    program = """
from posepipe import fetching

fetching.BYTES_AHEAD, fetching.UNKNOWN_BYTES = 100, 1
fetching._fetch = lambda *arguments: arguments[-1](90) or b""
rows = fetching.read_ahead([f"memory://host/{name}" for name in "abcdef"], 100)
next(rows)
raise RuntimeError("the caller failed")
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, "the caller failed" in ended.stderr) == (1, True)


def test_a_store_of_one_connection_is_asked_by_one_thread_at_a_time(monkeypatch):
    folder = f"memory://{uuid.uuid4().hex}"
    uris = [join_uri(folder, str(number)) for number in range(20)]
    for uri in uris:
        write_bytes(uri, uri.encode())
    filesystem, _ = storage.open_filesystem(folder)
    under_way, at_once = [], []
    read_one = filesystem.cat_file

    def cat_file(path):
        under_way.append(path)
        time.sleep(0.01)
        at_once.append(len(under_way))
        under_way.remove(path)
        return read_one(path)

    monkeypatch.setattr(filesystem, "cat_file", cat_file)
    assert read(uris) == [uri.encode() for uri in uris]
    assert at_once == [1] * len(uris)


def test_only_files_of_one_kind_are_read_together():
    uris = ["ftp://a/1", "ftp://a/2", "s3://b/1", "/tmp/1", "/tmp/2", "file:///tmp/1", "file:///tmp/2", "http://a/1"]
    assert [part for part, _ in fetching._cut([(uri, 1) for uri in uris], LIMIT, [])] == [
        *([uri] for uri in uris[:3]), uris[3:5], uris[5:7], uris[7:]
    ]  # fmt: skip


# Web servers


def test_a_bucket_is_never_given_up(s3_endpoint, monkeypatch, quick):
    monkeypatch.setattr(retrying, "PATIENCE", 0.0)
    answers_of_s3(monkeypatch, *[(5, b"pic")] * 100)
    with pytest.raises(StorageUnavailableError):
        fetch("s3://bucket/key", LIMIT, unreachable_after=0.01)


@pytest.fixture
def damaged(tmp_path):
    """A file of which the system says EIO, as of a disk's bad block."""
    os.symlink("/proc/self/mem", tmp_path / "damaged.jpg")
    return str(tmp_path / "damaged.jpg")


def test_a_damaged_file_may_be_given_up_where_others_are_read_meanwhile(tmp_path, damaged, monkeypatch, quick):
    monkeypatch.setattr(retrying, "PATIENCE", 0.3)
    monkeypatch.setattr(fetching, "_answered", {})
    good = str(tmp_path / "good.jpg")
    write_bytes(good, b"good")
    with pytest.raises(StorageUnavailableError, match="Input/output error"):
        fetch(damaged, LIMIT, unreachable_after=0.1)
    is_over = threading.Event()
    reading = threading.Thread(target=lambda: [fetch(good, LIMIT) for _ in iter(lambda: is_over.wait(0.01), True)])
    reading.start()
    error = fetch(damaged, LIMIT, unreachable_after=0.1)
    is_over.set()
    reading.join()
    assert (error.errno, "Input/output error" in error.strerror) == (errno.EHOSTUNREACH, True)


def test_who_may_go_on_without_a_damaged_file_is_told_so(tmp_path, damaged, monkeypatch, quick):
    monkeypatch.setattr(retrying, "PATIENCE", 0.0)
    monkeypatch.setattr(fetching, "_answered", {})
    with pytest.raises(StorageUnavailableError, match=r"Input/output error$"):
        fetch(damaged, LIMIT)
    good = str(tmp_path / "good.jpg")
    write_bytes(good, b"good")
    assert fetch(good, LIMIT) == b"good"
    with pytest.raises(StorageUnavailableError, match=r"Input/output error; scoring can go on .* see --unreachable-after$"):
        fetch(damaged, LIMIT)


@pytest.mark.parametrize("place", [0, 3, 39])
def test_a_damaged_file_of_a_shard_may_be_given_up_wherever_it_stands(tmp_path, damaged, monkeypatch, quick, place):
    monkeypatch.setattr(retrying, "PATIENCE", 0.1)
    monkeypatch.setattr(fetching, "_answered", {})
    uris = [str(tmp_path / f"{number}.jpg") for number in range(40)]
    for uri in uris:
        write_bytes(uri, b"good")
    uris[place] = damaged
    found = read(uris, unreachable_after=0.1)
    assert found[place].errno == errno.EHOSTUNREACH
    assert found[:place] + found[place + 1 :] == [b"good"] * 39
    for uri in uris:
        os.unlink(uri)
        os.symlink("/proc/self/mem", uri)
    with pytest.raises(StorageUnavailableError, match="Input/output error"):
        read(uris, unreachable_after=0.1)


def test_a_damaged_file_on_a_store_of_one_connection_may_be_given_up(monkeypatch, quick):
    monkeypatch.setattr(retrying, "PATIENCE", 0.1)
    folder = f"memory://{uuid.uuid4().hex}"
    uris = [join_uri(folder, str(number)) for number in range(3)]
    for uri in uris:
        write_bytes(uri, b"good")
    filesystem, path = storage.open_filesystem(uris[0])
    read_one = filesystem.cat_file

    def cat_file(wanted):
        if wanted == path:
            raise OSError(errno.EIO, "Input/output error")
        return read_one(wanted)

    monkeypatch.setattr(filesystem, "cat_file", cat_file)
    error, *others = read(uris, unreachable_after=0.1)
    assert (error.errno, others) == (errno.EHOSTUNREACH, [b"good"] * 2)


def test_credentials_that_a_store_does_not_take_give_no_object_up(tmp_path, monkeypatch, quick):
    def refuse(*_):
        time.sleep(0.02)
        fetching._answered[""] = time.monotonic()
        raise botocore.exceptions.NoCredentialsError

    monkeypatch.setattr(retrying, "PATIENCE", 0.01)
    monkeypatch.setattr(fetching, "_read_local", refuse)
    with pytest.raises(StorageUnavailableError, match=r"cannot be asked: Unable to locate credentials$"):
        fetch(str(tmp_path / "a"), LIMIT, unreachable_after=0.1)


def test_a_fault_that_does_not_pass_ends_the_reading(monkeypatch):
    def fail_at_b(_, uri, *__):
        if uri.endswith("b"):
            raise StorageUnavailableError("gone")
        return b""

    monkeypatch.setattr(fetching, "_fetch", fail_at_b)
    rows = read_ahead(["memory://a", "memory://b", "memory://c"], LIMIT)
    assert next(rows) == ("memory://a", b"")
    with pytest.raises(StorageUnavailableError, match="gone"):
        next(rows)


def test_what_nobody_waits_for_is_not_begun(monkeypatch):
    monkeypatch.setattr(fetching, "AT_ONCE", 1)
    begun, may_go_on = [], threading.Event()

    def fetch_one(_, uri, *__):
        begun.append(uri)
        assert uri.endswith("0") or may_go_on.wait(30)
        return b""

    monkeypatch.setattr(fetching, "_fetch", fetch_one)
    rows = read_ahead([f"memory://{index}" for index in range(9)], LIMIT)
    next(rows)
    threading.Timer(0.2, may_go_on.set).start()
    rows.close()
    assert len(begun) <= 2


def test_sizes_are_one_per_uri():
    with pytest.raises(ValueError, match="zip"):
        list(read_ahead(["a", "b"], LIMIT, [1]))
