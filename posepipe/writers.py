"""Who writes a folder: one process at a time, which shows that it lives.

    writers/000001.json    one writer after the other: the highest number writes

Numbers are taken by writes that succeed for one writer alone, so no clock is compared and no lock is ever left behind.
"""

import contextlib
import json
import os
import posixpath
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from types import TracebackType

from posepipe import storage
from posepipe.retrying import StorageUnavailableError

FOLDER = "writers"
TAKEOVER_AFTER = 30.0
"""Seconds without a sign of life after which a writer counts as dead, where nobody says otherwise."""
_BEATS_PER_TIMEOUT = 6


class LostRunError(ValueError):
    """Another writer has taken this run over."""


class Writer:
    """The right to write one folder. Use as a context manager; while it is held, a thread shows that this process lives.

    Args:
        uri: the folder, of samples, a run or a sweep.
        takeover_after: seconds without a sign of life after which the writer before counts as dead.
        say: prints a line for people.
        interrupt: the main thread is interrupted, as by Ctrl-C, when another writer has taken over; for what does not ask now and then.

    Raises:
        ValueError: on entry, another writer is alive.
    """

    def __init__(
        self, uri: str, takeover_after: float = TAKEOVER_AFTER, say: Callable[[str], None] = print, interrupt: bool = False
    ) -> None:
        self._folder, self._timeout, self._say = storage.join_uri(uri, FOLDER), takeover_after, say
        who = f"{socket.gethostname()} process {os.getpid()}"
        self._state = {"who": who, "id": uuid.uuid4().hex, "beat": 0, "released": False, "timeout": takeover_after}
        self._number = 0
        self._interrupt = interrupt
        self._lost = threading.Event()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="writer-beat")

    def __enter__(self) -> "Writer":
        number = self._newest()
        if number:
            self._await_end(number)
        self._number = number + 1
        if not storage.create_bytes(self._uri(self._number), self._content()):
            raise ValueError(f"another writer has just started on {posixpath.dirname(self._folder)}; it goes on alone")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()
        if not self._lost.is_set():
            self._state["released"] = True
            # Where the storage is gone the successor has to wait for a sign of life; the error that ends this run is the one to see.
            with contextlib.suppress(OSError, StorageUnavailableError):
                storage.write_bytes(self._uri(self._number), self._content(), patience=0)

    def check(self, is_fresh: bool = False) -> None:
        """Raises LostRunError where another writer has taken over, as of the last sign of life or, if `is_fresh`, of now."""
        if is_fresh and storage.exists(self._uri(self._number + 1)):
            self._lost.set()
        if self._lost.is_set():
            raise LostRunError(f"{posixpath.dirname(self._folder)} was taken over by another writer while this one gave no sign of life")

    def _await_end(self, number: int) -> None:
        """Returns when the writer before has ended or has shown no life for the timeout; ValueError where it shows some."""
        first = storage.read_bytes(self._uri(number))
        state = json.loads(first)
        if state["released"]:
            return
        # How often it shows that it lives follows from its own timeout.
        timeout = max(self._timeout, state.get("timeout", 0))
        self._say(f"{state['who']} was writing here; waiting {timeout:g} s for a sign of life")
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._timeout / _BEATS_PER_TIMEOUT))
            now = storage.read_bytes(self._uri(number))
            if json.loads(now)["released"]:
                return
            if now != first:
                raise ValueError(f"{state['who']} is writing {posixpath.dirname(self._folder)}; wait for it, or stop it")

    def _beat(self) -> None:
        while not self._end.wait(self._timeout / _BEATS_PER_TIMEOUT):
            try:
                if storage.exists(self._uri(self._number + 1), patience=0):
                    self._lost.set()
                    if self._interrupt:
                        # Not _thread.interrupt_main, which a main thread that waits notices only when the wait is over.
                        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return
                self._state["beat"] += 1  # type: ignore[operator]
                storage.write_bytes(self._uri(self._number), self._content(), patience=0)
            except (OSError, StorageUnavailableError):
                continue  # no sign of life: whoever waits for one decides

    def _newest(self) -> int:
        found = [re.fullmatch(r"(\d{6})\.json", posixpath.basename(uri)) for uri in storage.list_files(self._folder)]
        return max((int(match[1]) for match in found if match), default=0)

    def _uri(self, number: int) -> str:
        return storage.join_uri(self._folder, f"{number:06d}.json")

    def _content(self) -> bytes:
        return storage.to_json(self._state)
