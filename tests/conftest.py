"""Fixtures that more than one test file uses."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; a test that asks for it is skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is absent: no folder {folder}")
    return folder


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """moto's S3 server; the variables that reach it are set for this process and the Ray workers that start after it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    values = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testkey",
        "AWS_SECRET_ACCESS_KEY": "testsecret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield endpoint
    server.stop()


@pytest.fixture(scope="session")
def ray_session(s3_endpoint: str) -> Iterator[None]:
    """One Ray for all tests, with more logical CPUs than real ones: a training run, its driver and data tasks have to fit."""
    ray = pytest.importorskip("ray")
    from posepipe import cluster

    ray.init(address="local", num_cpus=6, object_store_memory=500 * 2**20, logging_level="ERROR", log_to_driver=True)
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
    """Person-framed samples of `synthetic_mpii`, 64 px, a fifth for validation."""
    from posepipe import preparing
    from posepipe.config import PrepareConfig

    uri = str(tmp_path_factory.mktemp("samples"))
    preparing.prepare(
        PrepareConfig(mpii_uri=synthetic_mpii, samples_uri=uri, framing="person", people="all", size=64, val_percent=20, shard_size=16)
    )
    return uri
