"""The proxy that the fault tests put in front of an S3 server: it does the faults it is asked for and no others."""

import http.client
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import botocore.exceptions
import pytest
from botocore.config import Config
from s3 import FaultProxy, Faults

BUCKET = "faults"
DATA = bytes(range(256)) * 40
# One attempt: the client shows what the proxy did, and hides nothing behind retries.
ONCE = Config(retries={"total_max_attempts": 1, "mode": "standard"}, read_timeout=20)


@pytest.fixture
def proxy(s3_server: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server) as started:
        yield started


@pytest.fixture
def client(proxy: FaultProxy) -> Any:
    found = boto3.client("s3", endpoint_url=proxy.endpoint, config=ONCE)
    found.create_bucket(Bucket=BUCKET)
    return found


def only(fault: str) -> Faults:
    share: dict[str, Any] = {fault: 1.0}
    return Faults(**share)


def read(client: Any, key: str) -> bytes:
    return client.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def test_without_faults_everything_passes_as_it_is(client: Any, proxy: FaultProxy) -> None:
    name = "a/b c+[1]*?ü%41.jpg"
    client.put_object(Bucket=BUCKET, Key=name, Body=DATA, Metadata={"who": "me"})
    assert read(client, name) == DATA
    head = client.head_object(Bucket=BUCKET, Key=name)
    assert (head["ContentLength"], head["Metadata"]) == (len(DATA), {"who": "me"})
    assert client.get_object(Bucket=BUCKET, Key=name, Range="bytes=5-9")["Body"].read() == DATA[5:10]
    assert name in [item["Key"] for item in client.list_objects_v2(Bucket=BUCKET, Prefix="a/")["Contents"]]
    with pytest.raises(client.exceptions.NoSuchKey):
        read(client, "none")
    with pytest.raises(botocore.exceptions.ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=BUCKET, Key=name, Body=b"another", IfNoneMatch="*")
    client.delete_object(Bucket=BUCKET, Key=name)
    assert proxy.requests["GET", f"{BUCKET}/{name}"] == 2
    assert proxy.requests["PUT", f"{BUCKET}/{name}"] == 2
    assert not proxy.done


@pytest.mark.parametrize(("fault", "code"), [("slow_down", "SlowDown"), ("access_denied", "AccessDenied")])
def test_a_refusal_is_the_servers_own_and_the_server_saw_nothing(client: Any, proxy: FaultProxy, fault: str, code: str) -> None:
    with proxy.failing(only(fault)):
        with pytest.raises(botocore.exceptions.ClientError, match=code):
            client.put_object(Bucket=BUCKET, Key=fault, Body=DATA)
        with pytest.raises(botocore.exceptions.ClientError, match="503" if fault == "slow_down" else "403"):
            client.head_object(Bucket=BUCKET, Key=fault)
    with pytest.raises(client.exceptions.NoSuchKey):
        read(client, fault)
    assert proxy.done_to == {(fault, "PUT", f"{BUCKET}/{fault}"): 1, (fault, "HEAD", f"{BUCKET}/{fault}"): 1}


def test_a_reset_comes_before_the_server_and_a_lost_reply_after_it(client: Any, proxy: FaultProxy) -> None:
    for fault in ("reset", "lost_reply"):
        with proxy.failing(only(fault)), pytest.raises(botocore.exceptions.HTTPClientError):
            client.put_object(Bucket=BUCKET, Key=f"by {fault}", Body=DATA)
    assert read(client, "by lost_reply") == DATA
    with pytest.raises(client.exceptions.NoSuchKey):
        read(client, "by reset")


def test_a_reset_is_no_orderly_end(proxy: FaultProxy) -> None:
    url = urllib.parse.urlsplit(proxy.endpoint)
    with proxy.failing(Faults(reset=1.0)):
        connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=20)
        connection.request("GET", "/")
        with pytest.raises(ConnectionResetError):
            connection.getresponse()


def test_a_truncated_body_is_shorter_than_it_says(client: Any, proxy: FaultProxy) -> None:
    with proxy.failing(Faults(truncated=1.0)):
        client.put_object(Bucket=BUCKET, Key="cut", Body=DATA)
        answer = client.get_object(Bucket=BUCKET, Key="cut")
        assert answer["ContentLength"] == len(DATA)
        with pytest.raises(botocore.exceptions.ResponseStreamingError, match=f"{len(DATA) // 2} more expected"):
            answer["Body"].read()
    assert proxy.done == {"truncated": 1}
    assert read(client, "cut") == DATA


def test_equal_seeds_do_the_same_whatever_the_order(client: Any, proxy: FaultProxy) -> None:
    def statuses(faults: Faults, keys: list[str]) -> dict[str, list[str]]:
        def one(key: str) -> str:
            try:
                return str(read(client, key) == DATA)
            except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
                return type(error).__name__

        with proxy.failing(faults), ThreadPoolExecutor(4) as pool:
            found: dict[str, list[str]] = {key: [] for key in keys}
            for _ in range(3):
                for key, status in zip(keys, pool.map(one, keys), strict=True):
                    found[key].append(status)
            return found

    keys = [f"seed/{index}" for index in range(30)]
    for key in keys:
        client.put_object(Bucket=BUCKET, Key=key, Body=DATA)
    mixed: dict[str, Any] = {"slow_down": 0.2, "access_denied": 0.1, "reset": 0.1, "lost_reply": 0.1, "truncated": 0.1}
    first = statuses(Faults(**mixed, seed=1), keys)
    done = dict(proxy.done)
    assert set(done) == set(mixed)
    # A Faults that is equal goes on counting; a prefix that excludes nothing makes it another one.
    assert statuses(Faults(**mixed, seed=1, prefix=BUCKET), keys[::-1]) == first
    assert proxy.done == {kind: 2 * count for kind, count in done.items()}
    assert statuses(Faults(**mixed, seed=2), keys) != first


def test_faults_can_be_kept_to_a_prefix(client: Any, proxy: FaultProxy) -> None:
    with proxy.failing(Faults(slow_down=1.0, prefix=f"{BUCKET}/in/")):
        client.put_object(Bucket=BUCKET, Key="out/x", Body=DATA)
        with pytest.raises(botocore.exceptions.ClientError, match="SlowDown"):
            client.put_object(Bucket=BUCKET, Key="in/x", Body=DATA)


def test_a_delayed_request_is_answered_later(client: Any, proxy: FaultProxy) -> None:
    impatient = boto3.client("s3", endpoint_url=proxy.endpoint, config=ONCE.merge(Config(read_timeout=0.3)))
    client.put_object(Bucket=BUCKET, Key="late", Body=DATA)
    with proxy.failing(Faults(delayed=1.0, delay=1.0)):
        with pytest.raises(botocore.exceptions.ReadTimeoutError):
            read(impatient, "late")
        assert read(client, "late") == DATA
    assert proxy.done == {"delayed": 2}


def test_a_cut_link_takes_requests_under_way_and_new_ones_until_it_is_restored(client: Any, proxy: FaultProxy) -> None:
    with ThreadPoolExecutor(1) as pool, proxy.holding("PUT", "under_way") as hold:
        under_way = pool.submit(client.put_object, Bucket=BUCKET, Key="under_way", Body=DATA)
        hold.wait(20)
        proxy.cut()
        assert isinstance(under_way.exception(20), botocore.exceptions.HTTPClientError)
    with pytest.raises(botocore.exceptions.HTTPClientError):
        client.put_object(Bucket=BUCKET, Key="new", Body=DATA)
    proxy.restore()
    client.put_object(Bucket=BUCKET, Key="after", Body=DATA)
    assert [item["Key"] for item in client.list_objects_v2(Bucket=BUCKET)["Contents"] if "/" not in item["Key"]].count("after") == 1
    for key in ("under_way", "new"):
        with pytest.raises(client.exceptions.NoSuchKey):
            read(client, key)


def test_a_held_request_reaches_the_server_when_released_and_never_when_dropped(client: Any, proxy: FaultProxy) -> None:
    for is_released in (True, False):
        key = f"held {is_released}"
        with ThreadPoolExecutor(1) as pool, proxy.holding("PUT", key) as hold:
            put = pool.submit(client.put_object, Bucket=BUCKET, Key=key, Body=DATA)
            assert hold.wait(20) == f"{BUCKET}/{key}"
            with pytest.raises(client.exceptions.NoSuchKey):
                read(client, key)
            (hold.release if is_released else hold.drop)()
            assert (put.exception(20) is None) == is_released
            # One request only: the next one passes.
            client.put_object(Bucket=BUCKET, Key=f"{key} again", Body=DATA)
    assert read(client, "held True") == DATA
    with pytest.raises(client.exceptions.NoSuchKey):
        read(client, "held False")


def test_a_hold_can_let_some_pass_before(client: Any, proxy: FaultProxy) -> None:
    with ThreadPoolExecutor(1) as pool, proxy.holding("PUT", "/some/", after=2) as hold:
        puts = [pool.submit(client.put_object, Bucket=BUCKET, Key=f"some/{index}", Body=b"x") for index in range(4)]
        assert hold.wait(20) == f"{BUCKET}/some/2"
        assert [put.done() for put in puts] == [True, True, False, False]
        hold.release()
        assert [put.exception(20) for put in puts] == [None] * 4


def test_a_held_request_is_dropped_with_its_client(client: Any, proxy: FaultProxy) -> None:
    program = f"""if True:
        import boto3
        boto3.client("s3", endpoint_url="{proxy.endpoint}").put_object(Bucket="{BUCKET}", Key="orphan", Body=b"x")
    """
    with proxy.holding("PUT", "/orphan$") as hold, subprocess.Popen([sys.executable, "-c", program]) as process:
        hold.wait(60, lambda: process.poll() is None)
        process.kill()
        hold.wait_abandoned(20)
    with pytest.raises(client.exceptions.NoSuchKey):
        read(client, "orphan")


def test_a_watch_counts_what_the_server_did_and_wakes_who_waits(client: Any, proxy: FaultProxy) -> None:
    with proxy.watching("PUT", r"/watched/\d+$") as watch:
        thread = threading.Thread(target=lambda: [client.put_object(Bucket=BUCKET, Key=f"watched/{n}", Body=b"x") for n in (1, 2, 2)])
        thread.start()
        watch.wait(3, timeout=20)
        thread.join()
        client.put_object(Bucket=BUCKET, Key="watched/x", Body=b"x")
        with proxy.failing(Faults(slow_down=1.0)), pytest.raises(botocore.exceptions.ClientError, match="SlowDown"):
            client.put_object(Bucket=BUCKET, Key="watched/3", Body=b"x")
        assert (watch.count, watch.repeated) == (3, 1)
        with pytest.raises(TimeoutError, match="no 4 PUT"):
            watch.wait(4, timeout=0.5)
        with pytest.raises(RuntimeError, match="ended before it came to 4 PUT"):
            watch.wait(4, timeout=20, is_alive=lambda: False)


def test_an_absent_server_is_a_reset_and_is_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with FaultProxy(f"http://127.0.0.1:{port}") as proxy:
        with pytest.raises(OSError, match="reset"):
            urllib.request.urlopen(f"{proxy.endpoint}/x", timeout=20)
        assert proxy.done == {"upstream": 1}
