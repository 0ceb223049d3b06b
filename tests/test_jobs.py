"""The jobs as users meet them: submitted to a cluster with token authentication, and told what is wrong."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from jobs import prepare, score, train, tune
from posepipe import journal, predictions, samples, storage
from posepipe.config import PrepareConfig

ROOT = Path(__file__).resolve().parents[1]
SIZE = 64


@dataclass(frozen=True)
class Cluster:
    """A cluster in processes of its own. env holds the token that its clients need."""

    address: str
    env: dict[str, str]

    def submit(self, *entrypoint: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", self.address, "--working-dir", "."]
        return subprocess.run([*command, "--", *entrypoint], cwd=ROOT, env=env or self.env, capture_output=True, text=True, timeout=400)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def http_status(url: str, token: str | None = None) -> int:
    """0 where nobody listens."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def descendants(pid: int) -> list[int]:
    """Ray gives its daemons process groups of their own, so the group of `ray start` does not hold them all."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [found for child in map(int, children) for found in (child, *descendants(child))]


@pytest.fixture(scope="module")
def token_cluster() -> Iterator[Cluster]:
    # Ray's sockets lie below this folder, and their paths must not exceed 107 characters: pytest's own are too long.
    folder = Path(tempfile.mkdtemp(prefix="pp", dir="/tmp"))
    token = secrets.token_hex(32)
    (folder / "token").write_text(token)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "HOME": str(folder)}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    dashboard, client, agent = free_ports(3)
    flags = {
        "num-cpus": 6,
        "object-store-memory": 300 * 2**20,
        "port": 0,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "ray-client-server-port": client,
        "dashboard-agent-listen-port": agent,
        "temp-dir": folder,
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in flags.items())], env=env, stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 120
        while http_status(f"{address}/api/jobs/", token) != 200:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, f"the dashboard does not answer: {(folder / 'log').read_text()}"
            time.sleep(0.5)
        yield Cluster(address, env)
    finally:
        for pid in [process.pid, *descendants(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_submitted_jobs_train_and_score(token_cluster: Cluster, person_samples: str, tmp_path: Path) -> None:
    flags = ["--model", "test_resnet", "--regression-head", "heatmap", "--feature-stride", "16", "--epochs", "1", "--batch-size", "8"]
    where = ["--samples-uri", person_samples, "--runs-uri", str(tmp_path), "--name", "run"]
    trained = token_cluster.submit("python", "-m", "jobs.train", *where, *flags)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert storage.exists(str(tmp_path / "run" / storage.SUCCESS))

    predictions_uri = str(tmp_path / "predictions")
    where = ["--samples-uri", person_samples, "--checkpoint-uri", str(tmp_path / "run"), "--predictions-uri", predictions_uri]
    scored = token_cluster.submit("python", "-m", "jobs.score", *where)
    assert scored.returncode == 0, scored.stdout + scored.stderr
    failed = storage.read_table(storage.join_uri(person_samples, samples.ERRORS_FILE))["split"].to_pylist()
    expected = samples.read_manifest(person_samples)["rows"]["val"] + failed.count("val")
    assert predictions.read_predictions(predictions_uri).num_rows == expected > 0
    assert f"read {expected} rows" in scored.stdout


def test_a_job_that_fails_fails_its_submission_with_the_message(token_cluster: Cluster, tmp_path: Path) -> None:
    where = ["--samples-uri", str(tmp_path), "--runs-uri", str(tmp_path), "--name", "run"]
    failed = token_cluster.submit("python", "-m", "jobs.train", *where)
    assert failed.returncode != 0
    assert f"error: no complete samples at {tmp_path}" in failed.stdout
    assert "exit code 2" in failed.stdout
    assert "Traceback" not in failed.stdout


def test_a_submission_without_the_token_is_refused(token_cluster: Cluster) -> None:
    assert http_status(f"{token_cluster.address}/api/jobs/") == 401
    assert http_status(f"{token_cluster.address}/api/jobs/", "wrong") in (401, 403)
    without = {name: value for name, value in token_cluster.env.items() if not name.startswith("RAY_AUTH")}
    refused = token_cluster.submit("python", "-c", "print('ran')", env={**without, "RAY_AUTH_MODE": "disabled"})
    assert refused.returncode != 0
    assert "token authentication is enabled" in (refused.stdout + refused.stderr).lower()
    assert refused.stdout == ""


def test_a_mistake_ends_the_program_with_status_2_and_no_trace(tmp_path: Path) -> None:
    where = ["--samples-uri", str(tmp_path), "--runs-uri", str(tmp_path), "--name", "run"]
    ended = subprocess.run(
        [sys.executable, "-m", "jobs.train", *where, "--epochs", "0"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2
    assert "--epochs must be at least 1, got 0" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


@dataclass(frozen=True)
class Mistakes:
    """Runs jobs in this process, each with a mistake."""

    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]

    def message(self, job: ModuleType, **flags: object) -> str:
        """What the job says on stderr, in one line."""
        arguments = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        self.patch.setattr(sys, "argv", [job.__name__, *arguments])
        self.capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            job.main()
        said = self.capture.readouterr()
        assert ended.value.code == 2
        assert "Traceback" not in said.out + said.err
        return " ".join(said.err.replace("│", " ").split())


@pytest.fixture
def mistakes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ray_session: None) -> Mistakes:
    return Mistakes(monkeypatch, capsys)


@pytest.fixture(scope="module")
def image_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained checkpoint for image framing at SIZE."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), framing="image", size=SIZE)


def write_checkpoint(folder: Path, *, framing: str, size: int) -> str:
    from posepipe.model_file import MODEL_FILE, ModelConfig
    from posepipe.models import build_model, save_model

    config = ModelConfig(
        task="pose",
        model="test_resnet",
        regression_head="direct",
        feature_stride=32,
        size=(size, size),
        framing=framing,
        mean_points=[[0.5, 0.5]] * 16,
        samples_fingerprint="",
    )
    folder.mkdir(exist_ok=True)
    save_model(build_model(config), str(folder / MODEL_FILE))
    return str(folder)


def test_prepare_says_what_is_wrong(mistakes: Mistakes, synthetic_mpii: str, person_samples: str, tmp_path: Path) -> None:
    new = {"mpii_uri": synthetic_mpii, "samples_uri": tmp_path / "samples"}
    assert f"no annotation file at {tmp_path}" in mistakes.message(prepare, **{**new, "mpii_uri": tmp_path})
    assert "no annotation file at" in mistakes.message(prepare, **{**new, "mpii_uri": "s3://no-such-bucket/mpii"})
    assert "cannot open" in mistakes.message(prepare, **{**new, "mpii_uri": "nowhere://mpii"})
    assert "--samples-uri says where the samples go" in mistakes.message(prepare, mpii_uri=synthetic_mpii)
    assert "Expected one of ('image', 'person')" in mistakes.message(prepare, **new, framing="head")
    assert "--val-percent must be in [0, 100), got 100" in mistakes.message(prepare, **new, val_percent=100)
    assert "no validation list at" in mistakes.message(prepare, **new, val_list=tmp_path / "val.txt")
    (tmp_path / "val.txt").write_text("other.jpg\n")
    assert "none of the 1 names" in mistakes.message(prepare, **new, val_list=tmp_path / "val.txt")
    assert "framing was 'person', now 'image'" in mistakes.message(prepare, mpii_uri=synthetic_mpii, samples_uri=person_samples)
    shutil.copy(Path(synthetic_mpii) / "mpii_human_pose_v1_u12_1.mat", tmp_path)
    message = mistakes.message(prepare, **{**new, "mpii_uri": tmp_path})
    assert "people could be used: {'missing': " in message
    assert not storage.exists(str(tmp_path / "samples" / storage.MANIFEST))


def test_train_says_what_is_wrong(mistakes: Mistakes, person_samples: str, tmp_path: Path) -> None:
    new = {"samples_uri": person_samples, "runs_uri": tmp_path / "runs", "name": "run"}
    assert "no complete samples at" in mistakes.message(train, **{**new, "samples_uri": "s3://no-such-bucket/samples"})
    assert "unknown preset 'fast'; choices: paper-head-deeppose," in mistakes.message(train, **new, preset="fast")
    assert "Expected one of ('head', 'pose')" in mistakes.message(train, **new, task="nose")
    assert "unknown model 'resnet_18'; choices: deeppose or a timm backbone" in mistakes.message(train, **new, model="resnet_18")
    message = mistakes.message(train, **new, model="deeppose", regression_head="heatmap")
    assert "deeppose has no feature map for the heatmap head; choices: direct, paper" in message
    assert "no weights at" in mistakes.message(train, **new, model="test_resnet", weights=tmp_path / "none.pt")
    assert "--learning-rate must be positive and finite, got 0" in mistakes.message(train, **new, learning_rate=0)
    assert "cannot read the config file" in mistakes.message(train, **new, config=tmp_path / "none.yaml")
    message = mistakes.message(train, **new, num_workers=7)
    assert "training with 7 workers needs 7 CPUs and 0 GPUs, the cluster has 6 CPUs" in message
    assert not storage.exists(str(tmp_path / "runs" / "run" / "config.json")), "a mistake must not take the name"


def test_train_does_not_go_on_with_a_run_of_other_settings(mistakes: Mistakes, person_samples: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"task": "head", "epochs": 5}))
    message = mistakes.message(train, samples_uri=person_samples, runs_uri=tmp_path, name="run", model="test_resnet", epochs=6)
    assert f"the run {tmp_path / 'run'} exists with other settings" in message
    assert "task was 'head', now 'pose'" in message
    assert "epochs was 5, now 6" in message


def test_train_needs_both_splits(mistakes: Mistakes, synthetic_mpii: str, tmp_path: Path) -> None:
    from posepipe import preparing

    uri = str(tmp_path / "samples")
    preparing.prepare(PrepareConfig(mpii_uri=synthetic_mpii, samples_uri=uri, size=SIZE, val_percent=0))
    assert f"{uri} has no val samples; rows per split:" in mistakes.message(train, samples_uri=uri, runs_uri=tmp_path, name="run")


def test_tune_says_what_is_wrong(mistakes: Mistakes, person_samples: str, tmp_path: Path) -> None:
    new = {"samples_uri": person_samples, "runs_uri": tmp_path, "name": "sweep"}
    assert "unknown field to search 'rate'; choices: model," in mistakes.message(tune, **new, search="rate=grid:1,2")
    assert "unknown kind of search for seed 'list'; choices: grid," in mistakes.message(tune, **new, search="seed=list:1")
    assert "expected 0 < LOW < HIGH" in mistakes.message(tune, **new, search="learning_rate=loguniform:1,0.1")
    assert "no complete samples at" in mistakes.message(tune, **{**new, "samples_uri": tmp_path})
    assert "one trial needs 7 CPUs" in mistakes.message(tune, **new, num_workers=7)


def test_score_says_what_is_wrong(mistakes: Mistakes, person_samples: str, image_checkpoint: str, tmp_path: Path) -> None:
    person_checkpoint = write_checkpoint(tmp_path / "person", framing="person", size=SIZE)
    large_checkpoint = write_checkpoint(tmp_path / "large", framing="person", size=96)
    new = {"checkpoint_uri": person_checkpoint, "predictions_uri": tmp_path / "predictions"}
    assert "give either --samples-uri or --images-uri" in mistakes.message(score, **new)
    assert "give either --samples-uri or --images-uri" in mistakes.message(score, **new, samples_uri=person_samples, images_uri=tmp_path)
    assert "no checkpoint at" in mistakes.message(score, **{**new, "checkpoint_uri": tmp_path}, samples_uri=person_samples)
    message = mistakes.message(score, **{**new, "checkpoint_uri": "s3://no-such-bucket/run"}, samples_uri=person_samples)
    assert "no checkpoint at" in message
    (tmp_path / "other.safetensors").write_bytes(b"something else")
    message = mistakes.message(score, **{**new, "checkpoint_uri": tmp_path / "other.safetensors"}, samples_uri=person_samples)
    assert "is not a posepipe checkpoint" in message
    message = mistakes.message(score, **{**new, "checkpoint_uri": image_checkpoint}, samples_uri=person_samples)
    assert "the checkpoint was trained on samples of framing image," in message
    message = mistakes.message(score, **{**new, "checkpoint_uri": large_checkpoint}, samples_uri=person_samples)
    assert "the checkpoint was trained on samples of size 96 x 96," in message
    assert "needs to know where the person is" in mistakes.message(score, **new, images_uri=tmp_path)
    message = mistakes.message(score, **{**new, "checkpoint_uri": image_checkpoint}, images_uri=tmp_path / "none")
    assert f"no files below {tmp_path / 'none'}" in message
    assert "no complete samples at" in mistakes.message(score, **new, samples_uri=tmp_path)
    assert "Expected one of ('train', 'val', 'test')" in mistakes.message(score, **new, samples_uri=person_samples, split="valid")
    message = mistakes.message(score, **new, samples_uri=person_samples, num_actors=7)
    assert "scoring with 7 actors needs 7 CPUs" in message
    journal.write_run(str(tmp_path / "predictions"), {"identity": {"run_id": "another"}})
    assert "run_id was 'another', now 'score'" in mistakes.message(score, **new, samples_uri=person_samples)
