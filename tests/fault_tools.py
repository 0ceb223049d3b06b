"""What the fault tests share: scoring processes that can be killed, readers that watch, pictures that are poison."""

import contextlib
import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image
from s3 import Watch

from posepipe import predictions, storage

ROOT = Path(__file__).resolve().parents[1]
T = TypeVar("T")


class ScoreProcess:
    """`python -m jobs.score` in a process group of its own.

    Args:
        log: takes its output.
        flags: of ScoreConfig, by field name.
        address: of the Ray cluster to go to; it starts its own where there is none.
        env: more variables.
    """

    def __init__(self, log: Path, flags: Mapping[str, object], address: str = "", env: Mapping[str, str] = MappingProxyType({})) -> None:
        self._log = log
        command = [sys.executable, "-m", "jobs.score", *(f"--{name.replace('_', '-')}={value}" for name, value in flags.items())]
        # Of the session's Ray only what lets others in.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_") or (address and "RAY_AUTH" in name)}
        more = {**env, "RAY_ADDRESS": address} if address else env
        with log.open("a") as sink:
            self._process = subprocess.Popen(command, cwd=ROOT, env={**kept, **more}, stdout=sink, stderr=sink, start_new_session=True)
        self.pid = self._process.pid

    def __enter__(self) -> "ScoreProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.is_alive():
            self.kill()
        if error is not None:
            print(f"--- {self._log}\n{self.output[-4000:]}")

    @property
    def output(self) -> str:
        return self._log.read_text()

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """To the driver alone."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the group and to all that it started: to a Ray of its own too, as a lost machine would."""
        pids = descendants(self.pid)
        os.killpg(self.pid, signal.SIGKILL)
        kill_all(pids)
        self._process.wait()

    def wait(self, timeout: float) -> int:
        """The exit status."""
        return self._process.wait(timeout)

    def succeed(self, timeout: float = 1800) -> None:
        status = self.wait(timeout)
        assert status == 0, f"exit status {status}:\n{self.output[-4000:]}"


def descendants(pid: int) -> list[int]:
    """Ray gives its daemons process groups of their own, so a group does not hold them all."""
    children: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return [found for child in children for found in (child, *descendants(child))]


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def working(pid: int) -> list[int]:
    """The processes below `pid` that are at work for Ray Data: tasks, actors and the decoders of tasks."""
    lines = {found: command_line(found) for found in descendants(pid)}
    return [found for found, line in lines.items() if (line.startswith("ray::") and "Map" in line) or "posepipe.decoding" in line]


@contextlib.contextmanager
def beside(work: Callable[[], T]) -> Iterator["Future[T]"]:
    """Runs `work` in a thread beside the block. Its exception is raised at the end."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        yield future
        future.result()


class Saboteur:
    """Kills a random one of the processes at work below `pid` at every `every`-th commit. victims: what they were."""

    def __init__(self, pid: int, commits: Watch, every: int, seed: int) -> None:
        self._pid, self._commits, self._every, self._rng = pid, commits, every, random.Random(seed)
        self._ended = threading.Event()
        self._thread = ThreadPoolExecutor(1)
        self.victims: list[str] = []

    def __enter__(self) -> "Saboteur":
        self._future = self._thread.submit(self._work)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.shutdown()
        self._future.result()

    def _work(self) -> None:
        count = self._every
        while self._commits.reaches(count, self._ended):
            found = sorted(working(self._pid))
            if found:
                victim = self._rng.choice(found)
                self.victims.append(command_line(victim))
                kill_all([victim])
            count += self._every


class Nodes:
    """A Ray cluster of three nodes on this machine. The driver goes to the first one."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        size = {"num_cpus": 1, "object_store_memory": 200 * 2**20}
        self._cluster = Cluster(initialize_head=True, connect=False, head_node_args={**size, "include_dashboard": False})
        self._others = [self._cluster.add_node(**size, wait=False) for _ in range(2)]
        self.address: str = self._cluster.address

    def kill_one_at_work(self) -> None:
        """SIGKILL to a node and all its processes: the one with the predictor where that is not the first one, else one with a task."""
        lines = {node: [command_line(pid) for pid in working(_raylet(node))] for node in self._others}
        node = max(lines, key=lambda node: (any("MapWorker" in line for line in lines[node]), len(lines[node])))
        assert lines[node], "none of the nodes is at work"
        pids = descendants(_raylet(node))
        self._cluster.remove_node(node, allow_graceful=False)
        kill_all(pids)

    def close(self) -> None:
        self._cluster.shutdown()


def _raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


@contextlib.contextmanager
def three_nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.close()


class Reader:
    """Reads a run every 100 ms, as somebody would who waits for it.

    Attributes:
        num_refused: how often it was told that the run is not complete.
        seen: rows of each read that succeeded.
    """

    def __init__(self, run_uri: str) -> None:
        self._run_uri = run_uri
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self.num_refused = 0
        self.seen: list[int] = []

    def __enter__(self) -> "Reader":
        self._future = self._pool.submit(self._work)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._pool.shutdown()
        self._future.result()

    def _work(self) -> None:
        is_last = False
        while not is_last:
            # One more look after the end, so that a complete run is seen at least once.
            is_last = self._ended.wait(0.1)
            try:
                self.seen.append(predictions.read_predictions(self._run_uri, columns=["uri"]).num_rows)
            except ValueError as error:
                if self.seen or "no complete predictions" not in str(error):
                    raise  # it was complete before, or something else is wrong
                self.num_refused += 1


def digest(table: pa.Table) -> str:
    """sha256 of the rows, sorted."""
    rows = table.sort_by("sample_id").to_pylist()
    return storage.sha256("\n".join(json.dumps(row, sort_keys=True) for row in rows).encode())


def jpeg(seed: int = 0, width: int = 320, height: int = 240) -> Image.Image:
    """A picture like no other seed's."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def with_comment(data: bytes, text: bytes) -> bytes:
    """The JPEG `data` with a COM segment."""
    assert data[:2] == b"\xff\xd8"
    return data[:2] + b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text + data[2:]


def png_bomb(side: int) -> bytes:
    """A black-and-white PNG of side x side pixels, of which nothing but the size is large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


CRASH, HANG = b"posepipe test: crash the decoder", b"posepipe test: hang the decoder"

# Stands in for a bug in the decoder: the program under test has no hook for it.
SITECUSTOMIZE = f"""
import importlib.abc, importlib.machinery, os, signal, sys, time

class Wrapper(importlib.abc.Loader):
    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        decode = module.decode_jpeg

        def decode_jpeg(data, *args, **kwargs):
            if {CRASH!r} in bytes(data[:4096]):
                os.kill(os.getpid(), signal.SIGSEGV)
            if {HANG!r} in bytes(data[:4096]):
                time.sleep(3600)
            return decode(data, *args, **kwargs)

        module.decode_jpeg = decode_jpeg

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "simplejpeg":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        spec.loader = Wrapper(spec.loader)
        return spec

sys.meta_path.insert(0, Finder())
"""


def broken_decoder(folder: Path) -> dict[str, str]:
    """The variables under which pictures with the comments CRASH and HANG do that to the process that decodes them."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def poison() -> dict[str, tuple[bytes, str]]:
    """20 pictures that are unlike the others: name -> (bytes, the status that its row has to have)."""
    good = [encode(jpeg(seed), "JPEG", quality=90) for seed in range(8)]
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(np.asarray(jpeg(7).convert("L")).astype(np.uint16) * 257)
    page = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>nginx</body></html>\n"
    return {
        "truncated_half.jpg": (good[0][: len(good[0]) // 2], "truncated"),
        "truncated_end.jpg": (good[1][:-200], "truncated"),
        "truncated.png": (encode(jpeg(2), "PNG")[:-2000], "truncated"),
        "empty.jpg": (b"", "empty"),
        "empty.png": (b"", "empty"),
        "cmyk.jpg": (encode(jpeg(3).convert("CMYK"), "JPEG"), "ok"),
        "cmyk_progressive.jpg": (encode(jpeg(4).convert("CMYK"), "JPEG", progressive=True), "ok"),
        "deep.png": (encode(deep, "PNG"), "ok"),
        "deep.tif": (encode(deep, "TIFF"), "ok"),
        "grey.jpg": (encode(jpeg(5).convert("L"), "JPEG"), "ok"),
        "grey.png": (encode(jpeg(5).convert("L"), "PNG"), "ok"),
        "turned.jpg": (encode(jpeg(6), "JPEG", exif=turned), "ok"),
        "turned.png": (encode(jpeg(6), "PNG", exif=turned), "ok"),
        "bomb.png": (png_bomb(20_000), "too_large"),
        "bomb_named.jpg": (png_bomb(20_000), "too_large"),
        "page.jpg": (page, "not_an_image"),
        "page.png": (page, "not_an_image"),
        "crash_first.jpg": (with_comment(good[5], CRASH), "decoder_crashed"),
        "crash_second.jpg": (with_comment(good[6], CRASH), "decoder_crashed"),
        "crash_third.jpg": (with_comment(good[7], CRASH), "decoder_crashed"),
    }
