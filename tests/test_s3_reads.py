"""s3_reads.py: the object that was asked for or nothing; reached as s3fs reaches it, and left to s3fs where that works better."""

import asyncio
import datetime
import errno
import logging
import uuid
from types import SimpleNamespace

import boto3
import pytest
from fsspec.asyn import sync

from posepipe import fetching, s3_reads, storage
from posepipe.fetching import fetch

pytest.importorskip("obstore", reason="there is no wheel of obstore for Python 3.10")
BUCKET = "s3-reads-test"
LIMIT = 1000


@pytest.fixture(scope="module")
def endpoint(s3_endpoint):
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket=BUCKET)
    return s3_endpoint


@pytest.fixture
def put(endpoint):
    """Puts an object of such a name, and a name for its content; returns its URI."""
    client, folder = boto3.client("s3", endpoint_url=endpoint), uuid.uuid4().hex

    def put_object(name):
        client.put_object(Bucket=BUCKET, Key=f"{folder}/{name}", Body=name.encode())
        return f"s3://{BUCKET}/{folder}/{name}"

    return put_object


@pytest.fixture
def filesystem(endpoint):
    """One that no other test has opened a bucket of."""
    filesystem, _ = storage.open_filesystem(f"s3://{BUCKET}")
    vars(filesystem).pop("_posepipe_buckets", None)
    return filesystem


@pytest.fixture
def asked_s3fs(filesystem, monkeypatch):
    """The keys that s3fs is asked for."""
    asked = []
    call_s3 = filesystem._call_s3

    async def call(method, *arguments, **options):
        asked.append(options["Key"].rpartition("/")[2])
        return await call_s3(method, *arguments, **options)

    monkeypatch.setattr(filesystem, "_call_s3", call)
    return asked


def broken(monkeypatch):
    """Lets the quick client fail whatever it is asked for; returns what it was asked for."""
    asked = []

    def get(key):
        asked.append(key)
        raise OSError("broken")

    monkeypatch.setattr(s3_reads.Bucket, "_open", lambda self: SimpleNamespace(get=get))
    return asked


def test_pictures_are_read_without_s3fs(put, asked_s3fs):
    assert fetch(put("a.jpg"), LIMIT) == b"a.jpg"
    assert asked_s3fs == []


NAMES = ["a b.jpg", "a%20b.jpg", "100%.jpg", "ü é.jpg", "日本.jpg", "a+b", "a#b", "a?b", "x|y^z`", "a<b>c", "q\\r", 'q"r']
NAMES += ["a[1]*{x}~'()!$&,;=@:"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_what_it_says(put, asked_s3fs, name):
    assert fetch(put(name), LIMIT) == name.encode()
    assert asked_s3fs == []


@pytest.mark.parametrize(
    "names",
    [("a/b", "a//b", "/a/b"), ("x", "./x", "y/../x"), ("tab\tx", "tabx"), ("v", "v?versionId=7"), ("z", "z/")],
    ids=["slashes", "dots", "tab", "version", "end"],
)
def test_names_that_the_client_has_not_are_never_taken_for_others(put, filesystem, names):
    uris = [put(name) for name in names]
    assert [fetch(uri, LIMIT) for uri in uris] == [name.encode() for name in names]


def test_a_name_that_ends_with_a_slash_is_not_the_name_without(put, filesystem):
    key = put("end").partition(BUCKET)[2][1:]
    bucket = s3_reads.open_bucket(filesystem, BUCKET)
    assert bucket.read(key, lambda size: None) == b"end"
    assert bucket.read(f"{key}/", lambda size: None) is None


def test_what_a_bucket_begins_with_is_part_of_the_name(endpoint, filesystem):
    client = boto3.client("s3", endpoint_url=endpoint)
    for key in ("top", "/top"):
        client.put_object(Bucket=BUCKET, Key=key, Body=key.encode())
    assert [fetch(f"s3://{BUCKET}/{key}", LIMIT) for key in ("top", "/top")] == [b"top", b"/top"]


def test_what_is_missing_is_said_by_s3fs(put, asked_s3fs):
    uri = put("a") + "-gone"
    assert isinstance(fetch(uri, LIMIT), FileNotFoundError)
    assert asked_s3fs == ["a-gone"]


def test_an_object_over_the_limit_is_not_read(put, filesystem, asked_s3fs, monkeypatch):
    uri, bodies = put("x" * 50), []
    bucket = s3_reads.open_bucket(filesystem, BUCKET)
    get = bucket._open().get
    result = SimpleNamespace(meta=get(uri.partition(BUCKET)[2][1:]).meta, bytes=lambda: bodies.append(1))
    monkeypatch.setattr(bucket, "_store", SimpleNamespace(get=lambda key: result))
    assert fetch(uri, 49).errno == errno.EFBIG
    assert (bodies, asked_s3fs) == ([], [])


@pytest.mark.parametrize("data", [b"", b"a.jp", b"a.jpgs", None])
def test_a_body_of_another_length_than_was_announced_is_read_again(put, filesystem, asked_s3fs, monkeypatch, data):
    def to_bytes():
        if data is None:
            raise OSError("reset")
        return data

    result = SimpleNamespace(meta={"size": 5}, bytes=lambda: SimpleNamespace(to_bytes=to_bytes))
    monkeypatch.setattr(s3_reads.open_bucket(filesystem, BUCKET), "_store", SimpleNamespace(get=lambda key: result))
    assert fetch(put("a.jpg"), LIMIT) == b"a.jpg"
    assert asked_s3fs == ["a.jpg"]


def test_a_client_that_reads_nothing_is_left_alone(put, filesystem, monkeypatch, caplog):
    monkeypatch.setattr(s3_reads, "STRIKES", 3)
    asked = broken(monkeypatch)
    uris = [put(name) for name in "abcdef"]
    with caplog.at_level(logging.WARNING):
        assert [fetch(uri, LIMIT) for uri in uris] == [name.encode() for name in "abcdef"]
    assert [key[-1] for key in asked] == ["a", "b", "c"]
    assert caplog.messages == [f"s3://{BUCKET} is read by s3fs from here on, as obstore cannot: broken"]


def test_the_warning_says_what_the_client_cannot_do(endpoint, filesystem, monkeypatch, caplog):
    monkeypatch.setattr(s3_reads, "STRIKES", 1)
    boto3.client("s3", endpoint_url=endpoint).put_object(Bucket=BUCKET, Key="/b", Body=b"b")
    assert fetch(f"s3://{BUCKET}//b", LIMIT) == b"b"
    assert caplog.messages == [f"s3://{BUCKET} is read by s3fs from here on, as obstore cannot: no name for '/b'"]


def test_what_s3fs_cannot_read_either_is_not_held_against_the_client(put, filesystem, monkeypatch):
    monkeypatch.setattr(s3_reads, "STRIKES", 3)
    asked = broken(monkeypatch)
    gone = put("a") + "-gone"
    for _ in range(5):
        assert isinstance(fetch(gone, LIMIT), FileNotFoundError)
    assert len(asked) == 5


def test_one_object_that_it_reads_clears_the_client(put, filesystem, monkeypatch):
    monkeypatch.setattr(s3_reads, "STRIKES", 3)
    uri, asked = put("a"), []
    for _ in range(3):
        with monkeypatch.context() as patch:
            asked += broken(patch)
            fetch(uri, LIMIT)
            fetch(uri, LIMIT)
        assert fetch(uri, LIMIT) == b"a"
    assert s3_reads.open_bucket(filesystem, BUCKET)._strikes == 0


def test_a_filesystem_that_is_set_up_in_its_own_way_is_left_to_s3fs(put, endpoint):
    filesystem = type(storage.open_filesystem(f"s3://{BUCKET}")[0])(requester_pays=True, skip_instance_cache=True)
    uri = put("a")
    assert s3_reads.open_bucket(filesystem, BUCKET).read(uri.partition(BUCKET)[2][1:], lambda size: None) is None
    assert fetching._fetch(filesystem, uri, LIMIT, None, 0) == b"a"


# What s3fs reaches, and how


def options_of(filesystem, bucket=BUCKET):
    return sync(filesystem.loop, s3_reads.find_options, filesystem, bucket)


def test_the_endpoint_is_that_of_s3fs(filesystem, endpoint):
    options = options_of(filesystem)
    assert options["endpoint"] == endpoint
    assert options["client_options"]["allow_http"]
    assert "virtual_hosted_style_request" not in options


class Client:
    """What s3fs has of AWS."""

    def __init__(self, endpoint, answer):
        self.meta = SimpleNamespace(endpoint_url=endpoint, region_name="us-east-1")
        self._answer = answer

    async def head_bucket(self, **_):
        from botocore.exceptions import ClientError

        response = {"ResponseMetadata": {"HTTPHeaders": {"x-amz-bucket-region": "eu-west-3"}}}
        if self._answer != 200:
            raise ClientError({"Error": {"Code": str(self._answer)}, **response}, "HeadBucket")
        return response


def aws(monkeypatch, filesystem, endpoint, answer=200):
    async def set_session():
        return Client(endpoint, answer)

    monkeypatch.setattr(filesystem, "set_session", set_session)


@pytest.mark.parametrize("host", ["s3.amazonaws.com", "s3.us-east-1.amazonaws.com"])
@pytest.mark.parametrize("answer", [200, 403])
def test_a_bucket_of_aws_is_asked_where_it_lies(filesystem, monkeypatch, host, answer):
    options_of(filesystem)  # which opens the session
    aws(monkeypatch, filesystem, f"https://{host}", answer)
    options = options_of(filesystem, "photos")
    assert (options["region"], options["virtual_hosted_style_request"]) == ("eu-west-3", True)
    assert "endpoint" not in options
    # TLS has no certificate for further dots.
    assert not options_of(filesystem, "my.photos")["virtual_hosted_style_request"]


@pytest.mark.parametrize(
    "host", ["s3.dualstack.eu-west-3.amazonaws.com", "bucket.vpce-1a2b.s3.us-east-1.vpce.amazonaws.com", "s3.example.org"]
)
def test_an_endpoint_of_its_own_is_kept(filesystem, monkeypatch, host):
    options_of(filesystem)
    aws(monkeypatch, filesystem, f"https://{host}")
    options = options_of(filesystem)
    assert (options["endpoint"], options["region"]) == (f"https://{host}", "us-east-1")
    assert not options["client_options"]["allow_http"]


@pytest.mark.parametrize("name", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_certificates_of_ones_own_are_trusted(endpoint, monkeypatch, tmp_path, name):
    for other in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(other, raising=False)
    (tmp_path / "ca.pem").write_bytes(b"of ours")
    filesystem = type(storage.open_filesystem(f"s3://{BUCKET}")[0])(skip_instance_cache=True)
    assert "root_certificate" not in options_of(filesystem)["client_options"]
    monkeypatch.setenv(name, str(tmp_path / "ca.pem"))
    assert options_of(filesystem)["client_options"]["root_certificate"] == b"of ours"


def test_credentials_are_those_of_s3fs_and_are_asked_for_again(endpoint, monkeypatch):
    filesystem = type(storage.open_filesystem(f"s3://{BUCKET}")[0])(skip_instance_cache=True)
    keys = iter(["first", "second"])

    async def frozen():
        return SimpleNamespace(access_key=next(keys), secret_key="secret", token="token")

    async def get_credentials():
        return SimpleNamespace(get_frozen_credentials=frozen)

    options_of(filesystem)
    monkeypatch.setattr(filesystem.session, "get_credentials", get_credentials)
    bucket = s3_reads.open_bucket(filesystem, BUCKET)
    first, second = bucket._credentials(), bucket._credentials()
    assert (first["access_key_id"], first["secret_access_key"], first["token"]) == ("first", "secret", "token")
    assert second["access_key_id"] == "second"
    lasts = first["expires_at"] - datetime.datetime.now(datetime.timezone.utc)
    assert datetime.timedelta(minutes=9) < lasts <= datetime.timedelta(minutes=10)


def test_who_is_nobody_signs_nothing(endpoint):
    kind = type(storage.open_filesystem(f"s3://{BUCKET}")[0])
    assert options_of(kind(anon=True, skip_instance_cache=True))["skip_signature"]
    assert not options_of(kind(skip_instance_cache=True))["skip_signature"]


def test_a_store_that_is_away_when_it_is_opened_is_opened_later(put, filesystem, monkeypatch):
    uri, tried = put("a"), []
    bucket = s3_reads.open_bucket(filesystem, BUCKET)
    key = uri.partition(BUCKET)[2][1:]

    async def fail(*_):
        tried.append(1)
        raise ConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(s3_reads, "find_options", fail)
        assert [bucket.read(key, lambda size: None) for _ in range(3)] == [None] * 3
    assert len(tried) == 1  # others do not wait for it in turn
    assert bucket.read(key, lambda size: None) is None
    monkeypatch.setattr(bucket, "_opens_at", 0.0)
    assert bucket.read(key, lambda size: None) == b"a"


def test_a_bucket_that_does_not_say_where_it_is_is_not_waited_for(put, filesystem, monkeypatch):
    monkeypatch.setattr(s3_reads, "OPENING", 0.1)

    async def hang(*_):
        await asyncio.sleep(60)

    monkeypatch.setattr(s3_reads, "find_options", hang)
    assert fetch(put("a"), LIMIT) == b"a"
