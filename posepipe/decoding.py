"""Decodes and crops pictures in a process of its own, so that one that kills the decoder is a row and not the end of a shard.

The process is `python -m posepipe.decoding`. Both ways go messages of a JSON header and raw bytes: whatever a picture does to the process,
nothing that comes back is executed. It ends when its parent does.
"""

import contextlib
import functools
import json
import math
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from posepipe import geometry, images

TIMEOUT = 60.0
"""Seconds one picture may take."""
START_TIMEOUT = 120.0
STARTS = 5
AHEAD = 2
_LENGTHS = struct.Struct("<IQ")
_MAX_HEADER, _MAX_DATA = 2**20, 2**40


@dataclass(frozen=True)
class View:
    """What a model sees of a picture, width x height px: all of it, or one person: `center` (image px as stored) and MPII's `scale`."""

    size: tuple[int, int]
    center: tuple[float, float] | None = None
    scale: float | None = None

    def crop_to_image(self, header: images.Header) -> geometry.FloatArray:
        if self.center is None or self.scale is None:
            return geometry.frame_image(header.width, header.height, self.size, header.orientation)
        return geometry.frame_person(self.center, self.scale, self.size, header.orientation)


@dataclass(frozen=True)
class Decoded:
    """What became of one picture.

    Attributes:
        status: one of `images.STATUSES`.
        detail: what was found, empty where ok.
        width: image px as stored, None where not known.
        height: image px as stored, None where not known.
        crops: (height, width, 3) uint8 of each view; none where not ok.
        crop_to_image: (2, 3) of each view.
    """

    status: str
    detail: str = ""
    width: int | None = None
    height: int | None = None
    crops: list[NDArray[np.uint8]] = field(default_factory=list)
    crop_to_image: list[geometry.FloatArray] = field(default_factory=list)


def decode(data: bytes, views: Iterable[View], max_pixels: int = images.MAX_PIXELS) -> Decoded:
    """Decodes and crops in this process."""
    width = height = None
    try:
        header = images.read_header(data, max_pixels)
        width, height = header.width, header.height
        affines = [view.crop_to_image(header) for view in views]
        decoded: dict[int, NDArray[np.uint8]] = {}
        crops = [images.crop(data, header, affine, view.size, decoded) for affine, view in zip(affines, views, strict=True)]
    except images.ImageError as error:
        return Decoded(error.status, error.detail, width, height)
    return Decoded("ok", "", width, height, crops, affines)


class Decoder:
    """`decode` in a process that is started again when a picture kills it or keeps it for longer than `TIMEOUT`.

    A picture is blamed when it does so twice, the second time alone; a process that something else killed blames nobody.
    """

    def __init__(self) -> None:
        self._feeder = ThreadPoolExecutor(1)
        self._start()

    def decode_all(self, requests: Iterable[tuple[bytes, list[View], int]]) -> Iterator[Decoded]:
        """`decode` for each (data, views, max_pixels), in order; the process has up to `AHEAD` more than the one it works on."""
        waiting: deque[tuple[tuple[bytes, list[View], int], Future[None]]] = deque()
        is_whole = False
        try:
            for request in requests:
                waiting.append((request, self._send(request)))
                if len(waiting) > AHEAD:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)
            is_whole = True
        finally:
            if not is_whole:
                # What this process would still answer must not be taken for the answers to the next requests.
                self._restart()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # type: ignore[union-attr]
        self._stop()
        self._feeder.shutdown()

    def _next(self, waiting: deque[tuple[tuple[bytes, list[View], int], Future[None]]]) -> Decoded:
        request, _ = waiting.popleft()
        found = self._receive(request)
        if found is None:
            self._restart()
            self._send(request)
            found = self._receive(request)
            if found is None:
                found = Decoded("decoder_crashed", self._restart())
            rest = [each for each, _ in waiting]
            waiting.clear()
            waiting.extend((each, self._send(each)) for each in rest)
        return found

    def _start(self) -> None:
        # Where this process finds its modules the new one has to find them too.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        for is_last in (*[False] * (STARTS - 1), True):
            answers, theirs = os.pipe()
            # Answers have a pipe of their own: whatever prints must not get between them.
            command = [sys.executable, "-m", "posepipe.decoding", str(theirs)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2, bufsize=0, env=environment, pass_fds=[theirs])
            os.close(theirs)
            self._answers = os.fdopen(answers, "rb", buffering=0)
            if _read_message(self._answers, START_TIMEOUT, 0) is not None:
                return
            said = self._stop()
            # Whom something else killed, for want of memory say, may come up the next time; who ends on its own will not.
            if is_last or not said.startswith("killed"):
                raise RuntimeError(f"the decoder's process does not start: {said}; command: {' '.join(command)}")

    def _stop(self) -> str:
        """Ends the process; says how it had ended, or that it had not."""
        process = self._process
        try:
            code = process.wait(timeout=1.0)  # its end of the pipe closes a little before it can be waited for
            said = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        except subprocess.TimeoutExpired:
            said = f"no answer in {TIMEOUT:g} s"
            process.kill()
            process.wait()
        # The feeder may still be writing into the pipe, whose number somebody else could get.
        self._feeder.submit(lambda: None).result()
        for pipe in (process.stdin, self._answers):
            with contextlib.suppress(BrokenPipeError):  # what was not sent yet
                pipe.close()  # type: ignore[union-attr]
        return said

    def _restart(self) -> str:
        said = self._stop()
        self._start()
        return said

    def _send(self, request: tuple[bytes, list[View], int]) -> "Future[None]":
        data, views, max_pixels = request
        header = json.dumps({"views": [[view.size, view.center, view.scale] for view in views], "max_pixels": max_pixels}).encode()
        return self._feeder.submit(self._write, self._process, header, data)

    @staticmethod
    def _write(process: "subprocess.Popen[bytes]", header: bytes, data: bytes) -> None:
        # A process that is gone is noticed by the reader, who sends this again.
        with contextlib.suppress(OSError, ValueError):
            _write_message(process.stdin, header, data)  # type: ignore[arg-type]

    def _receive(self, request: tuple[bytes, list[View], int]) -> Decoded | None:
        """The next answer; None where the process died or hangs."""
        message = _read_message(self._answers, TIMEOUT, sum(3 * math.prod(view.size) for view in request[1]))
        if message is None:
            return None
        answer, pixels = json.loads(message[0]), message[1]
        affines = [np.reshape(affine, (2, 3)) for affine in answer.pop("crop_to_image")]
        crops, start = [], 0
        for view in request[1] if affines else ():
            count = 3 * math.prod(view.size)
            crops.append(np.frombuffer(pixels, np.uint8, count, start).reshape(view.size[1], view.size[0], 3))
            start += count
        return Decoded(**answer, crops=crops, crop_to_image=affines)


@functools.cache
def shared_decoder() -> Decoder:
    """The one of this process: starting one costs about as much as decoding a hundred pictures."""
    return Decoder()


def _write_message(stream: BinaryIO, header: bytes, data: bytes) -> None:
    for part in (_LENGTHS.pack(len(header), len(data)) + header, data):
        view = memoryview(part)
        while view:
            view = view[stream.write(view) :]


def _read_message(stream: BinaryIO, timeout: float | None, max_data: int) -> tuple[bytes, bytearray] | None:
    """A header and its data; None at the end of the stream, after so many seconds, or where it cannot be a message."""
    deadline = None if timeout is None else time.monotonic() + timeout
    lengths = _read_exactly(stream, _LENGTHS.size, deadline)
    if lengths is None:
        return None
    num_header, num_data = _LENGTHS.unpack(lengths)
    if num_header > _MAX_HEADER or num_data > max_data:
        return None
    header, data = _read_exactly(stream, num_header, deadline), _read_exactly(stream, num_data, deadline)
    return None if header is None or data is None else (bytes(header), data)


def _read_exactly(stream: BinaryIO, count: int, deadline: float | None) -> bytearray | None:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        # The stream has no buffer, so what select sees is what there is.
        if deadline is not None and not select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        got = stream.readinto(view)  # type: ignore[attr-defined]
        if not got:
            return None
        view = view[got:]
    return data


def main() -> None:
    """Says hello and then answers requests from stdin, until stdin ends, on the file descriptor that the command line names."""
    answers = os.fdopen(int(sys.argv[1]), "wb", buffering=0)
    requests = os.fdopen(0, "rb", buffering=0)
    _write_message(answers, b"{}", b"")
    while (message := _read_message(requests, None, _MAX_DATA)) is not None:
        # A parent that was killed cannot end a picture that hangs.
        signal.alarm(int(TIMEOUT) + 5)
        request = json.loads(message[0])
        try:
            views = [View((width, height), *rest) for (width, height), *rest in request["views"]]
            found = decode(bytes(message[1]), views, request["max_pixels"])
        except Exception as error:  # What nobody foresaw is a fact about this picture; the row carries it.
            found = Decoded("corrupt", f"{type(error).__name__}: {error}")
        signal.alarm(0)
        answer = {name: getattr(found, name) for name in ("status", "detail", "width", "height")}
        answer["crop_to_image"] = [affine.ravel().tolist() for affine in found.crop_to_image]
        _write_message(answers, json.dumps(answer).encode(), b"".join(crop.tobytes() for crop in found.crops))


if __name__ == "__main__":
    main()
