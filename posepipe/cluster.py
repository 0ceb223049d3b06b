"""Connect to Ray, ask it for nodes."""

import contextlib
import logging
import os
import platform
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray
import ray.data
from ray.util import placement_group, remove_placement_group

from posepipe import capacity

ASK_AGAIN_AFTER = 15.0  # seconds, for nodes that are missing; twice as long each time that others gave the places
# Before glibc 2.35 more is refused.
_OLD_GLIBC = platform.libc_ver()[0] == "glibc" and tuple(map(int, platform.libc_ver()[1].split(".")[:2])) < (2, 35)
NETWORK_ENV = {
    "env_vars": {
        "MALLOC_MMAP_THRESHOLD_": str(2**25 if _OLD_GLIBC else 2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**30),
        "MALLOC_ARENA_MAX": "1",
    },
}
"""Runtime environment of processes that run networks. A network asks for the same large buffers in every pass; by default glibc gives them
back to the system after each, which zeroes their pages anew."""
NODE_ENV = {"RAY_idle_worker_killing_time_threshold_ms": "60000"}
"""Environment in which a node's Ray starts. By default a worker process that idles for a second is ended if more of them idle than CPUs are
free, and those that read for a network which is slower than they are idle between two shards: one would start anew every few seconds."""


def connect() -> None:
    """Connects to the cluster that RAY_ADDRESS names (a submitted job's own), or starts Ray on this machine."""
    if not ray.is_initialized():
        options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
        if "RAY_ADDRESS" in os.environ:
            ray.init(**options)
        else:
            start(**options)
    # The jobs count pictures themselves; Ray's lines about each operator would bury theirs.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # It warns that the bars are off.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False


def start(**options: Any) -> None:
    """Starts Ray on this machine, with these options of `ray.init`; what the environment says of its own stays,
    but for its address and port.

    Its processes are told its address. Ray Train's cleaner of placement groups looks for one, and where several Rays run on a machine it
    would ask another one, or end with a trace, and clean nothing.
    """
    for name, value in NODE_ENV.items():
        os.environ.setdefault(name, value)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    own = {"RAY_GCS_SERVER_PORT": port, "RAY_ADDRESS": f"127.0.0.1:{port}"}
    before = {name: os.environ[name] for name in own if name in os.environ}
    os.environ.update(own)
    try:
        ray.init(address="local", **options)
    finally:
        for name in own:
            del os.environ[name]
        os.environ.update(before)


def from_items(items: list[dict[str, Any]]) -> ray.data.Dataset:
    """A Dataset with a task per item, for pipelines of one stage whose results are small or all kept.

    Ray Data reserves half of the CPUs for stages that may need them later: on two cores, one stage would use one (1.1 tasks at a time
    instead of 1.85, measured with Ray 2.60). It also reserves memory between stages, so longer pipelines should keep the reservation.
    """
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    dataset.context.op_resource_reservation_enabled = False
    return dataset


@contextlib.contextmanager
def keep_interrupts() -> Iterator[None]:
    """Ctrl-C means afterwards what it did before: Ray Train and Tune leave handlers of their own, which ask for what has ended."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def ask_for_nodes(count: int, cpus: float, gpus: float, beside: int) -> Iterator[None]:
    """Meanwhile the autoscaler is asked for nodes that hold `count` more processes of so many CPUs and GPUs, of which no place is taken.

    These are placement groups: each gives its place up as soon as it has one, and all go when the driver does. A node that is up may give
    them a place too, as long as its own processes have not started: so what is still missing is asked for anew every now and then.

    Args:
        count: of the processes that nodes are missing for.
        cpus: of each.
        gpus: of each.
        beside: processes that have a place, or wait for one themselves.
    """
    bundle = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount}
    wanted = [placement_group([bundle]) for _ in range(count)]
    is_over = threading.Event()

    def keep_asking() -> None:
        missing, pause = count, ASK_AGAIN_AFTER
        due = time.monotonic() + pause
        while missing and not is_over.wait(0.5):
            with contextlib.suppress(Exception):  # Where Ray's head node cannot be asked just now, it can be the next time.
                given = [each for each in wanted if each.wait(0)]
                for group in given:
                    remove_placement_group(group)
                    wanted.remove(group)
                # What was just given up is for the processes that wait for it.
                if given or time.monotonic() < due:
                    continue
                # Never more again: a process whose node is lost waits for another one itself.
                missing = max(0, min(missing, beside + count - capacity.num_fitting(cpus=cpus, gpus=gpus, are_up=True)))
                while len(wanted) > missing:
                    remove_placement_group(wanted[-1])
                    wanted.pop()
                if len(wanted) < missing:
                    # On nodes without GPUs these may be cores that readers leave free: they are taken more and more seldom.
                    pause *= 2
                while len(wanted) < missing:
                    wanted.append(placement_group([bundle]))
                due = time.monotonic() + pause

    thread = threading.Thread(target=keep_asking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        with contextlib.suppress(Exception):  # Where Ray is gone they are, too, and the error that ends the run is the one to see.
            for group in wanted:
                remove_placement_group(group)
