"""Two hosts with addresses of their own, in network namespaces: the whole line on a real S3 server, and a link that is cut while scoring.

Each host is a namespace joined by a veth pair to a bridge, where the S3 server (Ceph's) is reached too. Needs root, namespaces and apt;
`make cluster-test` runs it. The hosts share a disk and their cores, so this says nothing of speed.
"""

import contextlib
import itertools
import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import fsspec
import pytest
from conftest import ceph_server

from posepipe import journal, predictions, samples, storage

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[1]
NET = "10.77.33"
BRIDGE, GATEWAY, HEAD, WORKER = "pp-br", f"{NET}.1", f"{NET}.2", f"{NET}.3"
S3_PORT, GCS_PORT, DASHBOARD_PORT = 7480, 6379, 8265
BUCKET = "two-hosts"
NUM_COPIES = 4  # of the pictures, to have something to cut


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """A bridge and two namespaces, pp-head and pp-worker, each with an eth0 on it."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    with contextlib.ExitStack() as stack:
        try:
            ip("link", "add", BRIDGE, "type", "bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        stack.callback(ip, "link", "del", BRIDGE)
        ip("addr", "add", f"{GATEWAY}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for name, address in (("pp-head", HEAD), ("pp-worker", WORKER)):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("link", "add", f"{name}0", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{name}0", "master", BRIDGE, "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
        yield


def relay(listener: socket.socket, upstream: tuple[str, int]) -> None:
    """Passes connections on until the listener is closed; the server itself listens on the loopback alone."""

    def pump(client: socket.socket) -> None:
        with client, socket.create_connection(upstream) as server, selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            with contextlib.suppress(OSError):
                while True:
                    for key, _ in selector.select():
                        data = key.fileobj.recv(2**16)  # type: ignore[union-attr]
                        if not data:
                            return
                        key.data.sendall(data)

    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=pump, args=(client,), daemon=True).start()


@dataclass(frozen=True)
class Hosts:
    """Ray on both hosts. env is that of its processes and clients."""

    env: dict[str, str]

    def submit(self, *entrypoint: str) -> "subprocess.Popen[str]":
        submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", f"http://127.0.0.1:{DASHBOARD_PORT}"]
        command = ["ip", "netns", "exec", "pp-head", *submit, "--working-dir", ".", "--", "python", "-m", *entrypoint]
        return subprocess.Popen(command, cwd=ROOT, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, *entrypoint: str) -> str:
        job = self.submit(*entrypoint)
        said, _ = job.communicate(timeout=600)
        assert job.returncode == 0, said
        return said


@pytest.fixture(scope="module")
def s3(network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables of a client of the S3 server on the bridge, set in this process too."""
    with ceph_server(tmp_path_factory.mktemp("ceph")) as endpoint, socket.create_server((GATEWAY, S3_PORT)) as listener:
        thread = threading.Thread(target=relay, args=(listener, ("127.0.0.1", int(endpoint.rpartition(":")[2]))), daemon=True)
        thread.start()
        values = {
            "AWS_ENDPOINT_URL": f"http://{GATEWAY}:{S3_PORT}",
            "AWS_ACCESS_KEY_ID": "testkey",
            "AWS_SECRET_ACCESS_KEY": "testsecret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in values.items():
                patch.setenv(name, value)
            yield values


@pytest.fixture(scope="module")
def hosts(s3: dict[str, str]) -> Iterator[Hosts]:
    """Ray's head on one host and a worker on the other, 3 CPUs each, joined by `ray start`."""
    folder = Path(tempfile.mkdtemp(prefix="pp", dir="/tmp"))
    (folder / "token").write_text(secrets.token_hex(32))
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | s3
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "HOME": str(folder)}
    # The machine's name belongs to none of the two hosts.
    env |= {"GLOO_SOCKET_IFNAME": "eth0", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"}
    shared = ["--num-cpus=3", f"--object-store-memory={300 * 2**20}", "--disable-usage-stats", "--block"]
    head = [f"--node-ip-address={HEAD}", "--head", f"--port={GCS_PORT}", "--dashboard-host=127.0.0.1", f"--dashboard-port={DASHBOARD_PORT}"]
    worker = [f"--node-ip-address={WORKER}", f"--address={HEAD}:{GCS_PORT}"]
    processes = []
    try:
        for name, flags in (("pp-head", [*head, f"--temp-dir={folder}"]), ("pp-worker", worker)):
            command = ["ip", "netns", "exec", name, sys.executable, "-m", "ray.scripts.scripts", "start", *flags, *shared]
            with (folder / f"{name}.log").open("w") as log:
                processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True))
            wait_for(name, processes[-1], folder, env)
        yield Hosts(env)
    finally:
        for name in ("pp-head", "pp-worker"):
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True).stdout.split()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        for process in processes:
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(name: str, process: "subprocess.Popen[bytes]", folder: Path, env: dict[str, str]) -> None:
    """Until so many nodes live as were started."""
    wanted = 1 if name == "pp-head" else 2
    code = f"import ray; ray.init(address='{HEAD}:{GCS_PORT}', logging_level='ERROR'); print(sum(n['Alive'] for n in ray.nodes()))"
    deadline = time.monotonic() + 300
    while True:
        assert process.poll() is None, (folder / f"{name}.log").read_text()
        assert time.monotonic() < deadline, f"{name} does not come up: {(folder / f'{name}.log').read_text()}"
        asked = subprocess.run(["ip", "netns", "exec", "pp-head", sys.executable, "-c", code], env=env, capture_output=True, text=True)
        if asked.stdout.split()[-1:] == [str(wanted)]:
            return
        time.sleep(1)


def test_the_whole_line_on_two_hosts_and_a_link_that_is_cut(hosts: Hosts, synthetic_mpii: str) -> None:
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    uri = f"s3://{BUCKET}"
    fsspec.filesystem("s3").put(f"{synthetic_mpii}/", f"{BUCKET}/mpii/", recursive=True)
    prepare = ["--mpii-uri", f"{uri}/mpii", "--samples-uri", f"{uri}/samples", "--size=64", "--val-percent=25", "--shard-size=8"]
    hosts.run("jobs.prepare", *prepare)
    rows = samples.read_manifest(f"{uri}/samples")["rows"]

    small = ["--model=test_resnet", "--regression-head=heatmap", "--feature-stride=16", "--batch-size=8", "--epochs=2"]
    where = ["--samples-uri", f"{uri}/samples", "--runs-uri", f"{uri}/runs"]
    # Two workers of 2 CPUs fit on two hosts of 3 only one by one.
    hosts.run("jobs.train", *where, *small, "--name=pose", "--num-workers=2", "--cpus-per-worker=2")
    history = storage.read_json(f"{uri}/runs/pose/history.json")
    assert [row["epoch"] for row in history] == [1, 2]
    assert history[-1]["val_num_people"] == rows["val"]

    hosts.run("jobs.tune", *where, *small, "--name=sweep", "--search", "learning_rate=grid:1e-3,3e-3")
    assert storage.read_table(f"{uri}/runs/sweep/trials.parquet").num_rows == 2

    pictures = [name for name in storage.list_files(f"{uri}/mpii/images")]
    for copy, name in itertools.product(range(NUM_COPIES), pictures):
        storage.write_bytes(f"{uri}/pictures/{copy}-{name.rpartition('/')[2]}", storage.read_bytes(name))
    out = f"{uri}/predictions"
    flags = ["--checkpoint-uri", f"{uri}/runs/pose", "--images-uri", f"{uri}/pictures", "--predictions-uri", out, "--shard-size=4"]
    # An actor on each host, and readers beside it.
    job = hosts.submit("jobs.score", *flags, "--num-actors=2", "--cpus-per-actor=2")
    try:
        deadline = time.monotonic() + 300
        while count_done(out) < 3:
            assert job.poll() is None, job.stdout.read() if job.stdout else ""
            assert time.monotonic() < deadline, "nothing is scored"
            time.sleep(0.2)
        ip("link", "set", "pp-worker0", "down")
        done = count_done(out)
        assert done < NUM_COPIES * len(pictures) // 4, "it was over before the link was cut"
        time.sleep(25)  # what is under test: so long the worker reaches neither the head nor the storage
        assert not storage.exists(f"{out}/{storage.SUCCESS}") or count_done(out) > done
        ip("link", "set", "pp-worker0", "up")
        said, _ = job.communicate(timeout=600)
    finally:
        job.kill()
    assert job.returncode == 0, said
    table = predictions.read_predictions(out, columns=["uri", "status"])
    assert Counter(table["uri"].to_pylist()) == Counter(storage.list_files(f"{uri}/pictures"))
    assert set(table["status"].to_pylist()) == {"ok"}
    print(f"two hosts: {table.num_rows} rows for {NUM_COPIES * len(pictures)} pictures; the link was cut for 25 s after {done} shards")


def count_done(run_uri: str) -> int:
    run = journal.read_run(run_uri)
    return len(storage.list_files(journal.done_folder(run_uri, run["identity"]))) if run else 0
