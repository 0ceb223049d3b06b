"""Scoring of a bucket while drivers, workers, nodes, the storage and pictures fail: every input one row, the same as without faults.

Each test has a short form, on the server of `s3_server` and mostly on the session's Ray, and a long one with the mark `faults`, where every
command starts its own Ray; `make faults` runs the long ones on Ceph. What they measure is printed as rows of a table.
"""

import itertools
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import boto3
import fault_tools
import numpy as np
import pyarrow as pa
import pytest
from fault_tools import Reader, Saboteur, ScoreProcess
from s3 import FaultProxy, Faults, Hold, Watch
from test_scoring import write_checkpoint

from posepipe import decoding, predictions, scoring, storage
from posepipe.config import ScoreConfig
from posepipe.views import View

BUCKET = "faults-test"
# Seconds for what takes some on a machine of one's own: on a shared one a minute can pass before a driver has started.
PATIENCE = 600
NUM_ACTORS, CPUS_PER_ACTOR = 1, 2
SHARDS_AT_A_TIME = NUM_ACTORS * CPUS_PER_ACTOR
SESSION_CPUS = 6
RUN_ID = "faults"


@dataclass(frozen=True)
class Scale:
    """How much a test does. own_ray: each command starts its own Ray, else it goes to the session's."""

    pictures: int
    shard_size: int
    own_ray: bool
    kills: int
    kill_every: int
    cut: float

    @property
    def shards(self) -> int:
        return -(-self.pictures // self.shard_size)


pytestmark = pytest.mark.timeout(1200)
SHORT = Scale(pictures=60, shard_size=5, own_ray=False, kills=1, kill_every=3, cut=3.0)
LONG = Scale(pictures=3000, shard_size=32, own_ray=True, kills=5, kill_every=7, cut=20.0)
# Of the long forms those that go through several moments, and those that measure what a lost worker costs beside the work itself.
MIDDLE = replace(LONG, pictures=640)
COARSE = replace(LONG, shard_size=64)
long_only = [pytest.mark.faults, pytest.mark.timeout(3600)]
scales, coarse_scales = (
    pytest.mark.parametrize("scale", [pytest.param(SHORT, id="short"), pytest.param(long, id="long", marks=long_only)])
    for long in (LONG, COARSE)
)

# The moments between two writes that belong together: what the killed process was about to write.
MOMENTS = {
    "the_plan": "_RUN",
    "a_done_record": "done/",
    "the_manifest": "_MANIFEST",
    "the_marker": "_SUCCESS",
}


@dataclass
class Undisturbed:
    """What a run without faults came to: its rows' digest, how many GETs of pictures and PUTs and GETs of its own it took, its duration."""

    digest: str
    table: pa.Table
    run: "Run"
    steps: int
    seconds: float


@dataclass
class Run:
    """A folder for predictions and the command that fills it."""

    stage: "Stage"
    scale: Scale
    flags: dict[str, Any]
    uri: str
    key: str
    log: Path

    def start(self) -> ScoreProcess:
        return ScoreProcess(self.log, self.flags, "" if self.scale.own_ray else self.stage.address)

    def score(self, **changes: Any) -> dict[str, Any]:
        """In this process, on the session's Ray."""
        flags = {**self.flags, **changes}
        return scoring.score(ScoreConfig(**{**flags, "checkpoint_uri": (flags["checkpoint_uri"],)}))

    def finish(self) -> None:
        """The command, to its end."""
        if not self.scale.own_ray:
            self.score()
            return
        with self.start() as process:
            process.succeed()

    @property
    def images_key(self) -> str:
        return self.flags["images_uri"].removeprefix("s3://")

    def read(self) -> pa.Table:
        return predictions.read_predictions(self.uri)


@dataclass
class Stage:
    """The bucket, what is in it, and the proxy before it."""

    proxy: FaultProxy
    client: Any
    checkpoint: str
    other_checkpoint: str
    pictures: list[bytes]
    folder: Path
    address: str
    _uploaded: dict[int, str] = field(default_factory=dict)
    _undisturbed: dict[Scale, Undisturbed] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def upload(self, key: str, data: bytes) -> str:
        # Past the proxy: what a test counts is the program's doing.
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)
        return f"s3://{BUCKET}/{key}"

    def upload_all(self, objects: Mapping[str, bytes]) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(self.upload, objects, objects.values()))

    def images(self, count: int) -> str:
        """The URI of a prefix with `count` pictures."""
        if count not in self._uploaded:
            self.upload_all({f"images-{count}/{index:06d}.jpg": self.pictures[index % len(self.pictures)] for index in range(count)})
            self._uploaded[count] = f"s3://{BUCKET}/images-{count}"
        return self._uploaded[count]

    def run(self, scale: Scale, images_uri: str = "", **flags: Any) -> Run:
        number = next(self._numbers)
        uri = f"s3://{BUCKET}/run-{number}"
        given = {
            "checkpoint_uri": self.checkpoint,
            "images_uri": images_uri or self.images(scale.pictures),
            "predictions_uri": uri,
            "run_id": RUN_ID,
            "shard_size": scale.shard_size,
            "num_actors": NUM_ACTORS,
            "cpus_per_actor": CPUS_PER_ACTOR,
            "takeover_after": 3,
            **flags,
        }
        return Run(self, scale, given, uri, uri.removeprefix("s3://"), self.folder / f"run-{number}.log")

    def watching(self, run: Run, methods: str, name: str) -> AbstractContextManager[Watch]:
        """Counts requests for the run's files of which the name starts so; or for its pictures."""
        return self.proxy.watching(methods, f"^{run.images_key}/" if name == "pictures" else f"^{run.key}/{name}")

    def holding(self, run: Run, moment: str) -> AbstractContextManager[Hold]:
        """Holds the PUT of one of MOMENTS; of the done records the fourth."""
        return self.proxy.holding("PUT", f"^{run.key}/{MOMENTS[moment]}", after=3 if moment == "a_done_record" else 0)

    def undisturbed(self, scale: Scale) -> Undisturbed:
        if scale not in self._undisturbed:
            run = self.run(scale)
            with self.steps(run) as steps:
                run.finish()
            table = run.read()
            assert table["uri"].to_pylist() == [f"{self.images(scale.pictures)}/{index:06d}.jpg" for index in range(scale.pictures)]
            assert set(table["status"].to_pylist()) == {"ok"}
            self._undisturbed[scale] = Undisturbed(fault_tools.digest(table), table, run, steps.count, duration(steps))
        return self._undisturbed[scale]

    def steps(self, run: Run) -> AbstractContextManager[Watch]:
        """Counts what a run reads and writes, without those who ask whether it is complete."""
        return self.proxy.watching("GET|PUT", f"^({run.images_key}|{run.key})/(?!{storage.SUCCESS})")

    @contextmanager
    def done_shards_are_not_read(self, run: Run, done: Watch) -> Iterator[None]:
        """Inside of the block nobody reads a picture of a shard that was done at its start."""
        before = {int(Path(key).stem) for key in done.keys}
        with self.watching(run, "GET", "pictures") as reads:
            yield
        assert not before & {int(Path(key).stem) // run.scale.shard_size for key in reads.keys}

    def assert_same(self, run: Run) -> int:
        """The number of its rows. It is complete, its rows are those of the undisturbed run, its files are what the manifest says."""
        undisturbed, table = self.undisturbed(run.scale), run.read()
        assert table["uri"].to_pylist() == undisturbed.table["uri"].to_pylist()
        assert fault_tools.digest(table) == undisturbed.digest
        manifest = predictions.read_manifest(run.uri)
        assert sum(item["rows"] for item in manifest["files"]) == manifest["num_inputs"] == run.scale.pictures
        for item in manifest["files"]:
            assert storage.sha256(storage.read_bytes(storage.join_uri(run.uri, item["file"]))) == item["sha256"]
        return table.num_rows


@pytest.fixture(scope="module")
def pictures(request: pytest.FixtureRequest, synthetic_mpii: str) -> list[bytes]:
    """Real ones where they are, for the long forms; else 48 that are drawn."""
    real = Path(__file__).resolve().parents[2] / "shared" / "data" / "mpii-subset" / "images"
    if "not faults" in request.config.option.markexpr or not real.is_dir():
        return [path.read_bytes() for path in sorted((Path(synthetic_mpii) / "images").iterdir())]
    return [path.read_bytes() for path in sorted(real.iterdir())]


@pytest.fixture(scope="module")
def stage(
    ray_session: None, s3_server: str, s3_proxy: FaultProxy, pictures: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    import ray

    class Reserve:
        """Holds CPUs. Local, because workers cannot import this module."""

        def is_up(self) -> bool:
            return True

    # On two real cores a dozen readers would only wait for each other.
    reserve = ray.remote(num_cpus=3)(Reserve).remote()
    assert ray.get(reserve.is_up.remote())
    folder = tmp_path_factory.mktemp("faults")
    checkpoints = image_checkpoint(folder / "checkpoint"), image_checkpoint(folder / "other", mean_points=[[0.4, 0.4]] * 16)
    client = boto3.client("s3", endpoint_url=s3_server)
    client.create_bucket(Bucket=BUCKET)
    yield Stage(s3_proxy, client, *checkpoints, pictures, folder, ray.get_runtime_context().gcs_address)
    ray.kill(reserve)


def image_checkpoint(folder: Path, **changes: Any) -> str:
    fixed = {"framing": "image", "model": "test_resnet", "regression_head": "direct", "feature_stride": 32, "size": (128, 128)}
    return write_checkpoint(folder, **{**fixed, **changes})


def duration(steps: Watch) -> float:
    """Seconds from the first request to the last one: starting Ray is not in them."""
    return steps.times[-1] - steps.times[0]


def show(request: pytest.FixtureRequest, **measured: object) -> None:
    values = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in measured.items())
    print(f"\n| {request.node.name} | {values} |")


@scales
def test_a_driver_killed_at_any_moment_goes_on_where_it_stopped(stage: Stage, scale: Scale, request: pytest.FixtureRequest) -> None:
    undisturbed, run, rng = stage.undisturbed(scale), stage.run(scale), random.Random(0)
    with (
        stage.watching(run, "PUT", "parts/") as parts,
        stage.watching(run, "PUT", "done/") as done,
        stage.watching(run, "GET", "pictures") as reads,
        Reader(run.uri) as reader,
    ):
        for _ in range(scale.kills):
            moment = rng.randint(1, undisturbed.steps // (scale.kills + 1))
            with stage.done_shards_are_not_read(run, done), stage.steps(run) as steps, run.start() as process:
                steps.wait(moment, PATIENCE, process.is_alive)
                process.kill()
        with stage.done_shards_are_not_read(run, done):
            run.finish()
    rows = stage.assert_same(run)
    assert (set(reader.seen), reader.num_refused > 0) == ({scale.pictures}, True)
    assert done.count == scale.shards
    again = {"parts_written_again": parts.repeated, "pictures_read_again": reads.repeated}
    show(request, rows=rows, kills=scale.kills, shards=scale.shards, **again)
    assert parts.repeated <= scale.kills * SHARDS_AT_A_TIME


@pytest.mark.parametrize(
    ("moment", "scale"),
    [
        *(pytest.param(moment, SHORT, id=f"{moment}-short") for moment in ("a_done_record", "the_marker")),
        *(pytest.param(moment, MIDDLE, id=f"{moment}-long", marks=long_only) for moment in MOMENTS),
    ],
)
def test_a_driver_killed_between_two_writes_leaves_nothing_half_done(
    stage: Stage, scale: Scale, moment: str, request: pytest.FixtureRequest
) -> None:
    run = stage.run(scale)
    with stage.watching(run, "PUT", "parts/") as parts, stage.watching(run, "PUT", "done/") as done, Reader(run.uri) as reader:
        with stage.holding(run, moment) as hold, run.start() as process:
            hold.wait(PATIENCE, process.is_alive)
            process.kill()
            # On a cluster that lives on, the driver's actors end a little after it.
            hold.wait_abandoned(PATIENCE)
        assert not reader.seen
        run.finish()
    rows = stage.assert_same(run)
    assert (set(reader.seen), reader.num_refused > 0) == ({scale.pictures}, True)
    assert done.count == scale.shards
    show(request, rows=rows, parts_written_again=parts.repeated)
    assert parts.repeated <= (SHARDS_AT_A_TIME if moment == "a_done_record" else 0)


@coarse_scales
def test_killed_workers_and_decoders_are_replaced_and_blame_no_picture(stage: Stage, scale: Scale, request: pytest.FixtureRequest) -> None:
    undisturbed, run = stage.undisturbed(scale), stage.run(scale)
    with stage.watching(run, "PUT", "done/") as done, stage.steps(run) as steps:
        if scale.own_ray:
            with run.start() as process, Saboteur(process.pid, done, scale.kill_every, seed=0) as saboteur:
                process.succeed()
        else:
            with Saboteur(os.getpid(), done, scale.kill_every, seed=0) as saboteur:
                run.score()
    rows = stage.assert_same(run)
    assert len(saboteur.victims) >= scale.shards // scale.kill_every - 1
    kinds = Counter("decoder" if "decoding" in victim else "actor" if "MapWorker" in victim else "task" for victim in saboteur.victims)
    show(request, rows=rows, killed=dict(kinds), time=f"{duration(steps) / undisturbed.seconds:.2f} x")


@coarse_scales
def test_a_node_that_is_lost_takes_no_row_with_it(stage: Stage, scale: Scale, request: pytest.FixtureRequest) -> None:
    seconds = []
    for is_killed in (False, True) if scale.own_ray else (True,):
        run = stage.run(scale, cpus_per_actor=1)  # as many as a node has
        with (
            fault_tools.three_nodes() as nodes,
            stage.watching(run, "PUT", "done/") as done,
            stage.steps(run) as steps,
            ScoreProcess(run.log, run.flags, nodes.address) as process,
        ):
            if is_killed:
                done.wait(scale.shards // 4, PATIENCE, process.is_alive)
                nodes.kill_one_at_work()
            process.succeed()
        seconds.append(duration(steps))
        rows = stage.assert_same(run)
        assert done.count == scale.shards
    ratio = {"time": f"{seconds[1] / seconds[0]:.2f} x"} if scale.own_ray else {}
    show(request, rows=rows, nodes="3, one killed", **ratio)


@scales
def test_faults_of_the_storage_change_no_row(stage: Stage, scale: Scale, request: pytest.FixtureRequest) -> None:
    undisturbed, run = stage.undisturbed(scale), stage.run(scale)
    # Of the 5 % of resets one half comes after the server has done what it was asked to.
    shares = {"slow_down": 0.1, "reset": 0.025, "lost_reply": 0.025, "truncated": 0.02, "access_denied": 0.02, "delayed": 0.1}
    before = stage.proxy.done.copy()
    with stage.steps(run) as steps, stage.proxy.failing(Faults(**shares, delay=1.0 if scale.own_ray else 0.1, prefix=BUCKET)):  # type: ignore[arg-type]
        run.finish()
    done = stage.proxy.done - before
    assert set(done) >= set(shares)
    rows = stage.assert_same(run)
    show(request, rows=rows, faults=dict(sorted(done.items())), time=f"{duration(steps) / undisturbed.seconds:.2f} x")


@scales
def test_a_link_that_is_cut_for_a_while_loses_nothing(stage: Stage, scale: Scale, request: pytest.FixtureRequest) -> None:
    undisturbed, run = stage.undisturbed(scale), stage.run(scale)
    before = stage.proxy.done["cut"]
    with stage.watching(run, "PUT", "done/") as done, stage.steps(run) as steps:

        def cut() -> None:
            done.wait(scale.shards // 4, PATIENCE)
            stage.proxy.cut()
            time.sleep(scale.cut)
            stage.proxy.restore()

        with fault_tools.beside(cut):
            run.finish()
    assert stage.proxy.done["cut"] > before
    rows = stage.assert_same(run)
    assert done.count == scale.shards
    lost = duration(steps) - undisturbed.seconds
    show(request, rows=rows, requests_cut=stage.proxy.done["cut"] - before, cut=f"{scale.cut:g} s", longer_by=f"{lost:.1f} s")


@scales
def test_poison_is_found_and_the_others_are_scored_as_without_it(stage: Stage, scale: Scale, request: pytest.FixtureRequest) -> None:
    poison = fault_tools.poison()
    count = 980 if scale.own_ray else 30
    prefixes = {is_mixed: f"{'mixed' if is_mixed else 'clean'}-{count}" for is_mixed in (True, False)}
    pictures = {f"{index:06d}.jpg": (stage.pictures[index % len(stage.pictures)], "ok") for index in range(count)}
    # Spread among the others, so that hardly any shard has none.
    pictures |= {f"{index * count // len(poison):06d}_{name}": poison[name] for index, name in enumerate(poison)}
    for is_mixed, prefix in prefixes.items():
        stage.upload_all({f"{prefix}/{name}": data for name, (data, status) in pictures.items() if is_mixed or status == "ok"})
    clean, mixed = (stage.run(scale, images_uri=f"s3://{BUCKET}/{prefixes[is_mixed]}") for is_mixed in (False, True))
    clean.finish()
    # A bug in the decoder comes with the environment of the workers, so they need a Ray of their own.
    with ScoreProcess(mixed.log, mixed.flags, env=fault_tools.broken_decoder(stage.folder / "broken")) as process:
        process.succeed()
    rows = {Path(row["uri"]).name: row for row in mixed.read().to_pylist()}
    assert {name: row["status"] for name, row in rows.items()} == {name: status for name, (_, status) in pictures.items()}
    assert mixed.read().num_rows == count + len(poison)
    for expected in clean.read().to_pylist():
        row = rows[Path(expected["uri"]).name]
        np.testing.assert_allclose(row["joints"], expected["joints"], atol=1e-3)
    bad = [row for row in rows.values() if row["status"] != "ok"]
    assert all(row["detail"] and row["joints"] is None for row in bad)
    assert {row["detail"] for row in bad if row["status"] == "decoder_crashed"} == {"killed by SIGSEGV"}
    show(request, rows=len(rows), statuses=dict(sorted(Counter(row["status"] for row in rows.values()).items())))


def test_a_decoder_that_is_killed_while_it_starts_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    # Two starts die as the kernel kills for want of memory; the third one comes up.
    text = f"""if True:
        import os, signal
        number = len(os.listdir({str(marks)!r}))
        open(os.path.join({str(marks)!r}, str(number)), "w").close()
        if number < 2:
            os.kill(os.getpid(), signal.SIGKILL)
    """
    (tmp_path / "sitecustomize.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    decoder = decoding.Decoder()
    request = (fault_tools.encode(fault_tools.jpeg(1), "JPEG"), [View((64, 64))], 10**6)
    assert [found.status for found in decoder.decode_all([request])] == ["ok"]
    decoder.close()
    assert len(list(marks.iterdir())) == 3


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_a_picture_that_the_decoder_never_ends_with_is_found(stage: Stage, request: pytest.FixtureRequest) -> None:
    good = fault_tools.encode(fault_tools.jpeg(1), "JPEG")
    pictures = {f"hang/{index:06d}.jpg": good for index in range(12)}
    pictures["hang/000005.jpg"] = fault_tools.with_comment(good, fault_tools.HANG)
    stage.upload_all(pictures)
    run = stage.run(LONG, images_uri=f"s3://{BUCKET}/hang")
    with ScoreProcess(run.log, run.flags, env=fault_tools.broken_decoder(stage.folder / "broken")) as process:
        process.succeed()
    rows = run.read().to_pylist()
    assert [row["status"] for row in rows] == ["decoder_crashed" if index == 5 else "ok" for index in range(12)]
    assert "no answer" in rows[5]["detail"]
    show(request, rows=len(rows), detail=rows[5]["detail"])


def test_a_second_writer_is_refused_while_the_first_one_lives(stage: Stage) -> None:
    run = stage.run(SHORT)
    with (
        stage.watching(run, "PUT", "done/") as done,
        stage.holding(run, "a_done_record") as hold,
        run.start() as first,
    ):
        hold.wait(PATIENCE, first.is_alive)
        with run.start() as second:
            assert second.wait(PATIENCE) == 2
            assert re.search(r"error: .* process \d+ is writing s3://", second.output)
            assert "Traceback" not in second.output
        hold.release()
        first.succeed()
    stage.assert_same(run)
    assert (done.count, done.repeated) == (SHORT.shards, 0)


@pytest.mark.faults
@pytest.mark.parametrize("is_other", [False, True], ids=["by_the_same", "by_another_model"])
def test_a_writer_that_wakes_after_it_was_replaced_stops_and_does_no_harm(stage: Stage, is_other: bool) -> None:
    run = stage.run(SHORT)
    with stage.holding(run, "a_done_record") as hold, run.start() as first:
        hold.wait(PATIENCE, first.is_alive)
        first.signal(signal.SIGSTOP)
        # What its actors have in hand they still commit.
        hold.release()
        run.score(**({"checkpoint_uri": stage.other_checkpoint, "overwrite": True} if is_other else {}))
        manifest, rows = predictions.read_manifest(run.uri), run.read()
        first.signal(signal.SIGCONT)
        assert first.wait(PATIENCE) == 2
        assert "was taken over by another writer" in first.output
    assert predictions.read_manifest(run.uri) == manifest
    assert run.read().equals(rows)
    if not is_other:
        stage.assert_same(run)


def test_a_complete_run_is_not_done_again(stage: Stage) -> None:
    undisturbed = stage.undisturbed(SHORT)
    with (
        stage.proxy.watching("PUT|DELETE", f"^{undisturbed.run.key}/") as writes,
        stage.watching(undisturbed.run, "GET", "pictures") as reads,
    ):
        summary = undisturbed.run.score()
    assert (writes.count, reads.count) == (0, 0)
    assert summary["statuses"] == {"ok": SHORT.pictures}


def test_a_part_that_got_lost_is_done_again_and_no_other(stage: Stage) -> None:
    run = stage.run(SHORT)
    run.score()
    lost = predictions.list_predictions(run.uri)[4]
    storage.delete([lost, storage.join_uri(run.uri, storage.SUCCESS)])
    with stage.watching(run, "PUT", "parts/") as parts:
        run.score()
    assert list(parts.keys) == [lost.removeprefix("s3://")]
    stage.assert_same(run)


@pytest.mark.parametrize("is_complete", [True, False])
def test_another_checkpoint_or_input_is_refused_with_both_hashes(stage: Stage, is_complete: bool) -> None:
    names = [f"{stage.images(SHORT.pictures)}/{index:06d}.jpg" for index in range(3)]
    list_uri = stage.upload(f"list-{is_complete}.txt", "\n".join(names[:2]).encode())
    run = stage.run(SHORT, images_uri=list_uri)
    run.score()
    before = predictions.read_predictions(run.uri)
    if not is_complete:
        storage.delete([storage.join_uri(run.uri, storage.SUCCESS)])
    hashes = r"[0-9a-f]{64}'.*, now .*'[0-9a-f]{64}'"
    with pytest.raises(ValueError, match=rf"holds other predictions \(models was .*{hashes}"):
        run.score(checkpoint_uri=stage.other_checkpoint)
    stage.upload(f"list-{is_complete}.txt", "\n".join(names).encode())
    with pytest.raises(ValueError, match=rf"holds other predictions \(inputs was .*{hashes}"):
        run.score()
    with pytest.raises(ValueError, match=rf"images_uri was .*; inputs was .*{hashes}"):
        run.score(images_uri=stage.images(SHORT.pictures))
    if is_complete:
        assert run.read().equals(before)
