"""storage.py: round trips, atomic writes, files that are written once and failed reads, on a local folder, S3 and another scheme."""

import os
import shutil
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import boto3
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from posepipe import retrying, storage
from posepipe.retrying import StorageUnavailableError
from posepipe.storage import (
    delete,
    exists,
    fingerprint,
    is_local,
    join_uri,
    list_files,
    open_filesystem,
    read_bytes,
    read_json,
    read_table,
    resolve_uri,
    sha256,
    to_parquet,
    write_bytes,
    write_json,
    write_table,
)


@pytest.fixture(params=["path", "file", "memory"])
def folder(request, tmp_path):
    """An empty folder by its URI."""
    return {"path": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{uuid.uuid4().hex}"}[request.param]


def table():
    return pa.table({"name": ["a", None, "c"], "joints": [[1.0, 2.0], None, []], "is_ok": [True, False, None]})


# Round trips


def test_bytes_come_back(folder):
    uri = join_uri(folder, "deep", "er", "file.bin")
    assert not exists(uri)
    write_bytes(uri, b"\0\1\xff")
    assert exists(uri)
    assert read_bytes(uri) == b"\0\1\xff"
    write_bytes(uri, b"second")
    assert read_bytes(uri) == b"second"


def test_json_comes_back(folder):
    value = {"b": [1, 2.5, None, "ä"], "a": {"x": True}}
    write_json(join_uri(folder, "value.json"), value)
    assert read_json(join_uri(folder, "value.json")) == value


def test_json_holds_no_nan(folder):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(join_uri(folder, "value.json"), {"score": float("nan")})
    assert not exists(join_uri(folder, "value.json"))


def test_a_table_comes_back_whole_or_by_columns(folder):
    uri = join_uri(folder, "table.parquet")
    digest = write_table(uri, table())
    assert read_table(uri).equals(table())
    assert read_table(uri, ["is_ok", "name"]).column_names == ["is_ok", "name"]
    assert digest == sha256(read_bytes(uri))


def test_a_tables_metadata_comes_back(folder):
    schema = pa.schema([pa.field("x", pa.int32(), metadata={"doc": "a number"})], metadata={"made_of": "tests"})
    write_table(join_uri(folder, "table.parquet"), pa.table({"x": pa.array([1], pa.int32())}, schema=schema))
    assert read_table(join_uri(folder, "table.parquet")).schema.equals(schema, check_metadata=True)


def test_packed_columns_are_stored_as_they_are_and_read_back_like_the_others(folder):
    table = pa.table({"crop": [bytes(1000)] * 8, "id": ["a" * 1000] * 8})
    write_bytes(join_uri(folder, "packed.parquet"), to_parquet(table, packed=["crop"]))
    data = read_bytes(join_uri(folder, "packed.parquet"))
    columns = [pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(place) for place in range(2)]
    assert [(column.path_in_schema, column.compression) for column in columns] == [("crop", "UNCOMPRESSED"), ("id", "ZSTD")]
    assert read_table(join_uri(folder, "packed.parquet")).equals(table)


def test_equal_tables_give_equal_bytes(folder):
    first, second = (write_table(join_uri(folder, name), table()) for name in ("a.parquet", "b.parquet"))
    other = write_table(join_uri(folder, "c.parquet"), table().slice(1))
    assert read_bytes(join_uri(folder, "a.parquet")) == read_bytes(join_uri(folder, "b.parquet"))
    assert first == second != other


def test_a_fingerprint_ignores_the_order_of_keys_and_nothing_else():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert len({fingerprint(value) for value in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": [1]}, [1, 2], [2, 1])}) == 6


# Atomic writes


def test_a_write_that_fails_leaves_the_older_file(tmp_path, monkeypatch):
    uri = str(tmp_path / "file")
    write_bytes(uri, b"older")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(uri, b"newer")
    assert read_bytes(uri) == b"older"


def test_nobody_sees_half_a_file(tmp_path):
    uri = str(tmp_path / "file")
    contents = [bytes([value]) * 300_000 for value in (1, 2)]
    write_bytes(uri, contents[0])
    is_done = threading.Event()

    def write():
        for turn in range(100):
            write_bytes(uri, contents[turn % 2])
        is_done.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = 0
    while not is_done.is_set():
        assert read_bytes(uri) in contents
        seen += 1
    thread.join()
    assert seen
    assert os.listdir(tmp_path) == ["file"]


# Listing and deleting


def test_files_are_listed_below_a_folder_sorted_and_readable(folder):
    for name in ("b", "a/2", "a/1", "c/d/e"):
        write_bytes(join_uri(folder, name), name.encode())
    found = list_files(folder)
    assert [read_bytes(uri) for uri in found] == [b"a/1", b"a/2", b"b", b"c/d/e"]
    assert [read_bytes(uri) for uri in list_files(join_uri(folder, "a"))] == [b"a/1", b"a/2"]


def test_a_missing_folder_lists_nothing(folder):
    assert list_files(join_uri(folder, "nowhere")) == []


def test_a_new_file_is_seen_by_the_next_listing(folder):
    assert list_files(folder) == []
    write_bytes(join_uri(folder, "a"), b"")
    assert len(list_files(folder)) == 1


def test_deleted_files_are_gone_and_the_others_stay(folder):
    uris = [join_uri(folder, name) for name in ("a", "b", "c")]
    for uri in uris:
        write_bytes(uri, b"")
    delete(iter(uris[:2]))
    assert [exists(uri) for uri in uris] == [False, False, True]
    delete([])


# URIs


@pytest.mark.parametrize("read", [read_bytes, read_json, read_table])
def test_reading_what_is_not_there_says_so(folder, read):
    with pytest.raises(FileNotFoundError):
        read(join_uri(folder, "nothing"))


@pytest.mark.parametrize("read", [read_bytes, exists, list_files, lambda uri: write_bytes(uri, b"")])
def test_an_unknown_scheme_is_a_value_error(read):
    with pytest.raises(ValueError, match="cannot open 'nosuch://bucket/key'"):
        read("nosuch://bucket/key")


class Hosted(MemoryFileSystem):
    """A store whose host is part of what it is, as FTP's."""

    protocol = "hosted"

    def __init__(self, host, **options):
        super().__init__(**options)
        self.host = host

    @staticmethod
    def _get_kwargs_from_urls(path):
        host = path.partition("://")[2].partition("/")[0]
        return {"host": host} if host else {}


def test_a_filesystem_is_that_of_the_uris_host():
    fsspec.register_implementation("hosted", Hosted, clobber=True)
    assert [open_filesystem(f"hosted://{host}/a.jpg")[0].host for host in ("one", "two")] == ["one", "two"]
    with pytest.raises(ValueError, match="cannot open 'hosted://'"):
        open_filesystem("hosted://")


def test_an_empty_uri_is_a_value_error():
    with pytest.raises(ValueError, match=r"expected a URI .* got an empty string"):
        open_filesystem("")


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("a", "b", "c"), "a/b/c"),
        (("/a/", "b"), "/a/b"),
        (("s3://bucket/prefix/", "train/part-0"), "s3://bucket/prefix/train/part-0"),
        (("s3://bucket", "x"), "s3://bucket/x"),
        (("/", "x"), "/x"),
    ],
)
def test_names_are_joined_by_one_slash(parts, joined):
    assert join_uri(*parts) == joined


def test_local_paths_become_absolute_and_the_rest_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("runs/a/") == str(tmp_path / "runs" / "a")
    assert resolve_uri("~/a") == os.path.expanduser("~/a")
    assert resolve_uri("s3://bucket/a/") == "s3://bucket/a"
    assert resolve_uri(resolve_uri("runs")) == resolve_uri("runs")


def test_paths_and_file_uris_are_local():
    assert [is_local(uri) for uri in ("a/b", "/a", "file:///a", "s3://a", "memory://a")] == [True, True, True, False, False]


def test_names_with_brackets_and_stars_are_names(s3_endpoint):
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket="names")
    for name in ("photo[1].jpg", "photo1.jpg", "a*b.jpg"):
        storage.write_bytes(f"s3://names/{name}", name.encode())
    assert storage.read_bytes("s3://names/photo[1].jpg") == b"photo[1].jpg"
    storage.delete(["s3://names/photo[1].jpg"])
    assert [uri.rpartition("/")[2] for uri in storage.list_files("s3://names")] == ["a*b.jpg", "photo1.jpg"]


def test_files_are_listed_by_their_whole_names_below_a_folder(tmp_path):
    partial = f"b-2.json.{'0' * 32}.partial"
    for name in ("a-1.json", "b-2.json", "b-2.json.gz", "xb-2.json", "c/b-2.json", partial, "b-2.json.part.partial"):
        storage.write_bytes(str(tmp_path / "part-time" / name), b"")
    found = storage.list_named(str(tmp_path / "part-time"), r"a-1\.json|b-\d\.json")
    assert set(found) == {"a-1.json", "b-2.json", partial}
    assert all(uri.endswith(f"/part-time/{name}") for name, uri in found.items())


# Written once


@pytest.fixture(params=["path", "file", "memory", "s3"])
def any_folder(request, tmp_path):
    """An empty folder by its URI, also on S3."""
    if request.param != "s3":
        return {"path": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{uuid.uuid4().hex}"}[request.param]
    bucket = f"once-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=request.getfixturevalue("s3_endpoint")).create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


def test_what_is_created_stays(any_folder):
    uri = join_uri(any_folder, "deep", "file")
    assert storage.create_bytes(uri, b"first")
    assert not storage.create_bytes(uri, b"other")
    assert read_bytes(uri) == b"first"
    assert [read_bytes(found) for found in list_files(any_folder)] == [b"first"], "a partial file was left"


def test_creating_what_stands_there_already_is_as_good(any_folder):
    uri = join_uri(any_folder, "file")
    assert storage.create_bytes(uri, b"same")
    assert storage.create_bytes(uri, b"same")


@pytest.mark.parametrize("turn", range(5))
def test_of_racing_writers_one_wins_and_all_know_it(any_folder, turn):
    if any_folder.startswith("memory://") or (any_folder.startswith("s3://") and os.environ.get("POSEPIPE_CEPH") != "1"):
        pytest.skip("fsspec's memory and moto look first and write then, which is no condition that holds")
    uri, start = join_uri(any_folder, "file"), threading.Barrier(8)
    contents = [bytes([number]) * 1000 for number in range(8)]

    def create(data):
        start.wait(30)
        return storage.create_bytes(uri, data)

    with ThreadPoolExecutor(8) as pool:
        has_won = list(pool.map(create, contents))
    assert has_won.count(True) == 1
    assert read_bytes(uri) == contents[has_won.index(True)]


def test_racing_writers_of_the_same_all_win(any_folder):
    uri, start = join_uri(any_folder, "file"), threading.Barrier(4)

    def create(_):
        start.wait(30)
        return storage.create_bytes(uri, b"same")

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(create, range(4)))


@pytest.mark.parametrize(("stored", "is_ours"), [(b"ours", True), (b"theirs", False)])
def test_a_put_whose_answer_was_lost_is_ours_where_the_content_is(s3_endpoint, monkeypatch, stored, is_ours):
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket=f"lost-{is_ours}".lower())
    uri = f"s3://lost-{is_ours}/file".lower()
    filesystem, _ = open_filesystem(uri)
    monkeypatch.setattr(retrying, "_pauses", lambda: iter(lambda: 1e-4, None))
    pipe_file, calls = filesystem.pipe_file, []

    def put(path, data, **options):
        calls.append(data)
        pipe_file(path, stored if len(calls) == 1 else data, **options)
        if len(calls) == 1:
            raise TimeoutError("the answer was lost")

    monkeypatch.setattr(filesystem, "pipe_file", put)
    assert storage.create_bytes(uri, b"ours") is is_ours
    assert len(calls) == 2
    assert read_bytes(uri) == stored


# Long listings


def pages_of(monkeypatch, count):
    """Lets S3 list so many objects at a time instead of a thousand; returns the tokens that it was asked to go on from."""
    sync, tokens = storage.sync, []

    def list_few(loop, call, **query):
        if not query:
            return sync(loop, call)
        tokens.append(query.get("ContinuationToken"))
        return sync(loop, call, **query, MaxKeys=count)

    monkeypatch.setattr(storage, "sync", list_few)
    return tokens


def test_a_listing_goes_over_all_its_pages_and_leaves_out_the_folders_of_consoles(s3_endpoint, monkeypatch):
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    client.create_bucket(Bucket="pages")
    names = [f"images/{index:02d}.jpg" for index in range(25)]
    for index, name in enumerate(names):
        client.put_object(Bucket="pages", Key=name, Body=b"x" * index)
    for name in ("images/", "images/2020/", "images-of-others/a.jpg"):
        client.put_object(Bucket="pages", Key=name, Body=b"")
    tokens = pages_of(monkeypatch, 10)
    found = list(storage.list_sizes("s3://pages/images"))
    assert found == [(f"s3://pages/{name}", index) for index, name in enumerate(names)]
    assert len(tokens) == len(set(tokens)) == 3, "27 objects, 10 at a time"
    assert list(storage.list_sizes("s3://pages/images/")) == found
    assert len(list(storage.list_sizes("s3://pages"))) == 26
    assert next(storage.list_sizes("s3a://pages/images"))[0] == "s3a://pages/images/00.jpg"


def test_an_object_that_is_only_named_like_a_folder_is_listed(s3_endpoint):
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    client.create_bucket(Bucket="named-like-folders")
    client.put_object(Bucket="named-like-folders", Key="a/", Body=b"picture")
    assert list(storage.list_sizes("s3://named-like-folders")) == [("s3://named-like-folders/a/", 7)]


def test_what_is_deleted_while_it_is_listed_ends_no_listing(tmp_path):
    for number in range(4):
        write_bytes(str(tmp_path / str(number) / "a.jpg"), b"a")
    listing = storage.list_sizes(str(tmp_path))
    first, _ = next(listing)
    for number in range(4):
        if str(tmp_path / str(number) / "a.jpg") != first:
            shutil.rmtree(tmp_path / str(number))
    assert list(listing) == []


def test_sizes_are_listed_beside_the_files(any_folder):
    sizes = {"a": 3, "b/c": 0, "d/e/f": 10}
    for name, size in sizes.items():
        write_bytes(join_uri(any_folder, name), b"x" * size)
    found = {uri[-len(name) :]: size for uri, size in storage.list_sizes(any_folder) for name in sizes if uri.endswith(f"/{name}")}
    assert found == sizes


def test_a_bucket_that_is_not_there_lists_nothing(s3_endpoint):
    assert list(storage.list_sizes("s3://no-such-bucket-at-all/images")) == []


def test_a_listing_goes_on_after_a_fault_where_it_was(s3_endpoint, monkeypatch):
    bucket = f"again-{uuid.uuid4().hex[:12]}"
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    client.create_bucket(Bucket=bucket)
    for name in "abcde":
        client.put_object(Bucket=bucket, Key=name, Body=b"")
    monkeypatch.setattr(retrying, "_pauses", lambda: iter(lambda: 1e-4, None))
    pages_of(monkeypatch, 2)
    sync, asked = storage.sync, []

    def fail_every_other_time(loop, call, **query):
        asked.append(query.get("ContinuationToken"))
        if query and len(asked) % 2 == 0:
            raise ConnectionResetError
        return sync(loop, call, **query)

    monkeypatch.setattr(storage, "sync", fail_every_other_time)
    assert [uri.rpartition("/")[2] for uri, _ in storage.list_sizes(f"s3://{bucket}")] == list("abcde")
    # The client, and then each of three pages twice.
    assert len(asked) == 7
    assert asked[1::2] == asked[2::2]


@pytest.mark.parametrize("middle", [[5.0, 6.0], None])
def test_lists_of_fixed_size_in_files_of_older_versions_are_read_as_plain_ones(tmp_path, middle):
    if middle is None and int(pa.__version__.partition(".")[0]) < 26:
        pytest.skip("Arrow writes no such column before its version 26")
    old = pa.table({"box": pa.array([[1.0, 2.0], middle, [3.0, 4.0]], pa.list_(pa.float32(), 2)), "name": ["a", "b", "c"]})
    storage.write_table(str(tmp_path / "old.parquet"), old)
    found = storage.read_table(str(tmp_path / "old.parquet"))
    assert found.schema.field("box").type == pa.list_(pa.float32())
    assert found["box"].to_pylist() == old["box"].to_pylist()
    assert storage.read_table(str(tmp_path / "old.parquet"), ["name"]).column_names == ["name"]


def test_a_storage_that_is_gone_is_named(monkeypatch):
    uri = f"memory://{uuid.uuid4().hex}/a"
    filesystem, _ = storage.open_filesystem(uri)

    def fail(*_, **__):
        raise ConnectionResetError("gone")

    monkeypatch.setattr(retrying, "PATIENCE", 0.0)
    calls = {
        "cat_file": read_bytes,
        "pipe_file": lambda uri: write_bytes(uri, b""),
        "exists": storage.exists,
        "rm_file": lambda uri: storage.delete([uri]),
        "find": lambda uri: list(storage.list_files(uri)),
    }
    for name, call in calls.items():
        with monkeypatch.context() as patched:
            patched.setattr(filesystem, name, fail)
            with pytest.raises(
                StorageUnavailableError, match=rf"^{uri}: the storage failed for 0 s, last with ConnectionResetError: gone$"
            ):
                call(uri)
