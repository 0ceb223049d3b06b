"""Fixtures that more than one test file uses."""

import contextlib
import logging
import os
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from s3 import FaultProxy

# Tiny networks on a shared machine: torch's threads would wait for one another four times as long as they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever starts Ray runs in one process, where there are several: the session is shared, and two would have too little of a core."""
    with_ray = {item.path for item in items if "ray_session" in getattr(item, "fixturenames", ())}
    for item in items:
        if item.path in with_ray:
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; a test that asks for it is skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is absent: no folder {folder}")
    return folder


@contextlib.contextmanager
def moto_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    # A line for each request would bury what a failed test says.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@contextlib.contextmanager
def ceph_server(folder: Path) -> Iterator[str]:
    script = Path(__file__).with_name("ceph_rgw.sh")
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [str(each.getsockname()[1]) for each in (one, other)]
    started = subprocess.run(["bash", script, "start", folder, *ports], capture_output=True, text=True, timeout=600)
    if started.returncode == 77:
        pytest.skip(f"POSEPIPE_CEPH=1, but Ceph cannot start here: {started.stderr.strip()}")
    assert started.returncode == 0, started.stderr
    try:
        yield started.stdout.strip()
    finally:
        subprocess.run(["bash", script, "stop", folder], check=True, timeout=60)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server's URL: moto's, which takes any signature, or with POSEPIPE_CEPH=1 a real one: Ceph's, from Debian packages that are
    only unpacked. The variables of its clients are set for this process and the Ray workers that start after it.
    """
    values = {
        "AWS_ACCESS_KEY_ID": "testkey",
        "AWS_SECRET_ACCESS_KEY": "testsecret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }
    is_ceph = os.environ.get("POSEPIPE_CEPH") == "1"
    server = ceph_server(tmp_path_factory.mktemp("ceph")) if is_ceph else moto_server()
    with pytest.MonkeyPatch.context() as patch, server as endpoint:
        for name, value in values.items():
            patch.setenv(name, value)
        yield endpoint


@pytest.fixture(scope="session")
def s3_proxy(s3_server: str) -> Iterator[FaultProxy]:
    """Stands before the S3 server for everything that reads AWS_ENDPOINT_URL; it does no fault that a test does not ask for."""
    with pytest.MonkeyPatch.context() as patch, FaultProxy(s3_server) as proxy:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture(scope="session")
def s3_endpoint(s3_proxy: FaultProxy) -> str:
    """The URL of an S3 server, which AWS_ENDPOINT_URL names too."""
    return s3_proxy.endpoint


@pytest.fixture(scope="session")
def ray_session(s3_endpoint: str) -> Iterator[None]:
    """One Ray for all tests, with more logical CPUs than real ones: a training run, its driver and data tasks have to fit."""
    ray = pytest.importorskip("ray")
    from posepipe import cluster

    cluster.start(num_cpus=6, object_store_memory=500 * 2**20, logging_level="ERROR", log_to_driver=True)
    cluster.connect()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def synthetic_mpii(tmp_path_factory: pytest.TempPathFactory) -> str:
    """48 generated pictures in MPII's layout."""
    from posepipe import synthetic

    uri = str(tmp_path_factory.mktemp("mpii"))
    synthetic.write_annotations(uri, [synthetic.write_image(uri, index, seed=0) for index in range(48)])
    return uri


@pytest.fixture(scope="session")
def person_samples(ray_session: None, synthetic_mpii: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Person-framed samples of `synthetic_mpii`, 64 px, a quarter for validation."""
    from posepipe import preparing
    from posepipe.config import PrepareConfig

    uri = str(tmp_path_factory.mktemp("samples"))
    preparing.prepare(
        PrepareConfig(mpii_uri=synthetic_mpii, samples_uri=uri, framing="person", people="all", size=64, val_percent=25, shard_size=16)
    )
    return uri


@pytest.fixture(scope="session")
def extra_mpii(tmp_path_factory: pytest.TempPathFactory) -> str:
    """12 more generated pictures in MPII's layout, none of which is among those of `synthetic_mpii`."""
    from posepipe import synthetic

    uri = str(tmp_path_factory.mktemp("extra-mpii"))
    synthetic.write_annotations(uri, [synthetic.write_image(uri, index, seed=0) for index in range(48, 60)])
    return uri


@pytest.fixture(scope="session")
def extra_samples(ray_session: None, extra_mpii: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Person-framed samples of `extra_mpii`, 64 px, none for validation."""
    from posepipe import preparing
    from posepipe.config import PrepareConfig

    uri = str(tmp_path_factory.mktemp("extra-samples"))
    preparing.prepare(PrepareConfig(mpii_uri=extra_mpii, samples_uri=uri, framing="person", people="all", size=64, val_percent=0))
    return uri


@pytest.fixture(params=["path", "s3"])
def run_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder of a run, on the disk and on an S3 server."""
    if request.param == "path":
        return str(tmp_path / "run")
    bucket = f"run-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=request.getfixturevalue("s3_endpoint")).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/run"
