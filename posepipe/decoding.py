"""Decodes and crops pictures in a process of its own, so that one that kills the decoder is a row and not the end of a shard.

The process is `python -m posepipe.decoding`. Pictures and crops lie in memory that both processes have open as files; JSON on a socket says
what they are. Whatever a picture does to the process, nothing that comes back is executed. It ends when its parent does.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posepipe import geometry, images

TIMEOUT = 60.0
"""Seconds one picture may take."""
START_TIMEOUT = 120.0
STARTS = 5
AHEAD = 2
_MAX_MESSAGE, _MAX_DETAIL = 2**16, 1000
_KEPT = 2**23  # bytes that the memory of a picture stays large after it
Request = tuple[bytes, list["View"], int]


@dataclass(frozen=True)
class View:
    """What a model sees of a picture, width x height px: all of it, or one person: `center` (image px as stored) and MPII's `scale`.

    The square's middle lies `shift` px per unit of scale below the centre, in the upright picture.
    """

    size: tuple[int, int]
    center: tuple[float, float] | None = None
    scale: float | None = None
    shift: float = geometry.PERSON_SHIFT

    def crop_to_image(self, header: images.Header) -> geometry.FloatArray:
        if self.center is None or self.scale is None:
            return geometry.frame_image(header.width, header.height, self.size, header.orientation)
        return geometry.frame_person(self.center, self.scale, self.size, header.orientation, self.shift)


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
        self._memory = [os.memfd_create("posepipe-decoding") for _ in range(AHEAD + 1)]
        self._start()

    def decode_all(self, requests: Iterable[Request]) -> Iterator[Decoded]:
        """`decode` for each (data, views, max_pixels), in order; the process has up to `AHEAD` more than the one it works on."""
        waiting: deque[tuple[int, Request]] = deque()
        is_whole = False
        try:
            for number, request in enumerate(requests):
                waiting.append((number % len(self._memory), request))
                self._send(*waiting[-1])
                if len(waiting) == len(self._memory):
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)
            is_whole = True
        finally:
            if not is_whole:
                # What this process would still answer must not be taken for the answers to the next requests.
                self._restart()

    def close(self) -> None:
        self._socket.close()
        self._stop()
        for memory in self._memory:
            os.close(memory)

    def _next(self, waiting: deque[tuple[int, Request]]) -> Decoded:
        place, request = waiting.popleft()
        found = self._receive(place, request)
        if found is None:
            self._restart()
            self._send(place, request)
            found = self._receive(place, request)
            if found is None:
                found = Decoded("decoder_crashed", self._restart())
            for each in waiting:
                self._send(*each)
        if len(request[0]) > _KEPT:
            os.ftruncate(self._memory[place], 0)
        return found

    def _start(self) -> None:
        # Where this process finds its modules the new one has to find them too.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        for is_last in (*[False] * (STARTS - 1), True):
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                files = [theirs.fileno(), *self._memory]
                command = [sys.executable, "-m", "posepipe.decoding", *map(str, files)]
                # A socket of its own: whatever prints must not get between the answers.
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, env=environment, pass_fds=files)
            if _receive_message(self._socket, START_TIMEOUT) is not None:
                return
            said = self._stop()
            # Whom something else killed, for want of memory say, may come up the next time; who ends on its own will not.
            if is_last or not said.startswith("killed"):
                raise RuntimeError(f"the decoder's process does not start: {said}; command: {' '.join(command)}")

    def _stop(self) -> str:
        """Ends the process; says how it had ended, or that it had not."""
        process = self._process
        try:
            code = process.wait(timeout=1.0)  # its end of the socket closes a little before it can be waited for
            said = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        except subprocess.TimeoutExpired:
            said = f"no answer in {TIMEOUT:g} s"
            process.kill()
            process.wait()
        self._socket.close()
        return said

    def _restart(self) -> str:
        said = self._stop()
        self._start()
        return said

    def _send(self, place: int, request: Request) -> None:
        data, views, max_pixels = request
        _write(self._memory[place], [data])
        message = {
            "place": place,
            "num_bytes": len(data),
            "views": [dataclasses.astuple(view) for view in views],
            "max_pixels": max_pixels,
        }
        # A process that is gone is noticed by who waits for its answer, and this is sent again.
        with contextlib.suppress(OSError):
            _send_message(self._socket, message)

    def _receive(self, place: int, request: Request) -> Decoded | None:
        """The next answer; None where the process died or hangs."""
        answer = _receive_message(self._socket, TIMEOUT)
        if answer is None:
            return None
        affines = [np.reshape(affine, (2, 3)) for affine in answer.pop("crop_to_image")]
        crops, start = [], 0
        for view in request[1] if affines else ():
            count = 3 * math.prod(view.size)
            pixels = os.pread(self._memory[place], count, start)
            if len(pixels) < count:
                return None
            crops.append(np.frombuffer(pixels, np.uint8).reshape(view.size[1], view.size[0], 3))
            start += count
        return Decoded(**answer, crops=crops, crop_to_image=affines)


@functools.cache
def shared_decoder() -> Decoder:
    """The one of this process: starting one costs about as much as decoding a hundred pictures."""
    return Decoder()


def _write(file: int, parts: Iterable[bytes | NDArray[np.uint8]]) -> None:
    start = 0
    for part in parts:
        view = memoryview(part).cast("B")  # type: ignore[arg-type]
        while view:
            count = os.pwrite(file, view, start)
            view, start = view[count:], start + count


def _send_message(to: socket.socket, message: dict[str, Any]) -> None:
    to.send(json.dumps(message).encode())


def _receive_message(source: socket.socket, timeout: float | None) -> dict[str, Any] | None:
    """None where the other side is gone, after so many seconds, or where it cannot be a message."""
    source.settimeout(timeout)
    with contextlib.suppress(OSError, ValueError):
        if message := source.recv(_MAX_MESSAGE):
            return json.loads(message)
    return None


def main() -> None:
    """Says hello on the socket that the command line names, and answers requests until it ends; the files that follow hold pictures."""
    parent, *memory = socket.socket(fileno=int(sys.argv[1])), *map(int, sys.argv[2:])
    _send_message(parent, {})
    while (request := _receive_message(parent, None)) is not None:
        # A parent that was killed cannot end a picture that hangs.
        signal.alarm(int(TIMEOUT) + 5)
        file = memory[request["place"]]
        try:
            views = [View((width, height), *rest) for (width, height), *rest in request["views"]]
            found = decode(_read(file, request["num_bytes"]), views, request["max_pixels"])
        except Exception as error:  # What nobody foresaw is a fact about this picture; the row carries it.
            found = Decoded("corrupt", f"{type(error).__name__}: {error}")
        _write(file, found.crops)
        signal.alarm(0)
        answer = {name: getattr(found, name) for name in ("status", "detail", "width", "height")}
        answer["crop_to_image"] = [affine.ravel().tolist() for affine in found.crop_to_image]
        try:
            _send_message(parent, answer | {"detail": found.detail[:_MAX_DETAIL]})
        except OSError:  # the parent is gone
            return


def _read(file: int, count: int) -> bytes:
    """One call reads at most 2 GiB."""
    parts, start = [], 0
    while start < count and (part := os.pread(file, count - start, start)):
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


if __name__ == "__main__":
    main()
