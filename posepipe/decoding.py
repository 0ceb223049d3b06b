"""Decodes and crops pictures in a process of its own, so that one that kills the decoder is a row and not the end of a shard.

The process is `python -m posepipe.decoding`. It is given a few pictures at a time, as a message for each costs both processes more.
Pictures and crops lie in memory that both have open as files; JSON on a socket says what they are. Whatever a picture does to the process,
nothing that comes back is executed. It ends when its parent does.
"""

import contextlib
import functools
import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posepipe.views import Decoded, View, decode

TIMEOUT = 60.0
"""Seconds one picture may take."""
START_TIMEOUT = 120.0
STARTS = 5
AHEAD = 2
MOST, MOST_BYTES = 8, 2**22
"""Pictures that are sent together, and bytes after which no other one is added."""
_MAX_MESSAGE, _MAX_DETAIL = 2**16, 1000
_KEPT = 2**23  # bytes that the memory of pictures stays large after them
_PLACE = struct.Struct("<Q")  # before the pictures: which of them is being decoded
Request = tuple[bytes, list[View], int]


class Decoder:
    """`decode` in a process that is started again when a picture kills it or keeps it for longer than `TIMEOUT`.

    A picture is blamed when it does so twice, the second time alone; a process that something else killed blames nobody.
    """

    def __init__(self) -> None:
        self._memory = [os.memfd_create("posepipe-decoding") for _ in range(AHEAD + 1)]
        self._start()

    def decode_all(self, requests: Iterable[Request]) -> Iterator[Decoded]:
        """`decode` for each (data, views, max_pixels), in order; the process has up to `AHEAD` times `MOST` more than those it works on."""
        waiting: deque[tuple[int, list[Request]]] = deque()
        is_whole = False
        try:
            for number, together in enumerate(_cut(requests)):
                waiting.append((self._memory[number % len(self._memory)], together))
                self._send(*waiting[-1])
                if len(waiting) == len(self._memory):
                    yield from self._next(waiting)
            while waiting:
                yield from self._next(waiting)
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

    def _next(self, waiting: deque[tuple[int, list[Request]]]) -> list[Decoded]:
        memory, together = waiting.popleft()
        found = self._receive(memory, together)
        if found is None:
            suspect = _read_place(memory)
            self._restart()
            found = [self._decode_alone(memory, request, 1 if place == suspect else 2) for place, request in enumerate(together)]
            for each in waiting:
                self._send(*each)
        if os.fstat(memory).st_size > _KEPT:
            os.ftruncate(memory, 0)
        return found

    def _decode_alone(self, memory: int, request: Request, num_tries: int) -> Decoded:
        said = ""
        for _ in range(num_tries):
            self._send(memory, [request])
            if found := self._receive(memory, [request]):
                return found[0]
            said = self._restart()
        return Decoded("decoder_crashed", said)

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
            with contextlib.suppress(TimeoutError):
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

    def _send(self, memory: int, together: list[Request]) -> None:
        _write(memory, 0, [_PLACE.pack(0), *(data for data, _, _ in together)])
        pictures = [
            (len(data), max_pixels, [(view.size, view.center, view.scale, view.shift) for view in views])
            for data, views, max_pixels in together
        ]
        # A process that is gone is noticed by who waits for its answer, and this is sent again.
        with contextlib.suppress(OSError):
            _send_message(self._socket, {"memory": self._memory.index(memory), "pictures": pictures})

    def _receive(self, memory: int, together: list[Request]) -> list[Decoded] | None:
        """The next answer; None where the process died or hangs."""
        place, answer = _read_place(memory), None
        try:
            answer = _receive_message(self._socket, TIMEOUT)
        except TimeoutError:
            # So long it takes where most of these pictures are large.
            if _read_place(memory) != place:
                return self._receive(memory, together)
        if answer is None:
            return None
        sizes = [sum(3 * math.prod(view.size) for view in views) for _, views, _ in together]
        count = sum(size for size, each in zip(sizes, answer["found"], strict=True) if each["status"] == "ok")
        pixels = os.pread(memory, count, _end(data for data, _, _ in together))
        if len(pixels) < count:
            return None
        found, start = [], 0
        for (_, views, _), each in zip(together, answer["found"], strict=True):
            crops = []
            for width, height in (view.size for view in views if each["status"] == "ok"):
                crops.append(np.frombuffer(pixels, np.uint8, 3 * width * height, start).reshape(height, width, 3))
                start += crops[-1].size
            affines = [np.reshape(affine, (2, 3)) for affine in each.pop("crop_to_image")]
            found.append(Decoded(**each, crops=crops, crop_to_image=affines))
        return found


@functools.cache
def shared_decoder() -> Decoder:
    """The one of this process: starting one costs about as much as decoding a hundred pictures."""
    return Decoder()


def _cut(requests: Iterable[Request]) -> Iterator[list[Request]]:
    """What is sent together."""
    together: list[Request] = []
    for request in requests:
        together.append(request)
        if len(together) == MOST or sum(len(data) for data, _, _ in together) >= MOST_BYTES:
            yield together
            together = []
    if together:
        yield together


def _read_place(memory: int) -> int:
    return _PLACE.unpack(os.pread(memory, _PLACE.size, 0))[0]


def _end(pictures: Iterable[bytes]) -> int:
    """Where in the memory the crops begin."""
    return _PLACE.size + sum(map(len, pictures))


def _write(memory: int, start: int, parts: Iterable[bytes | NDArray[np.uint8]]) -> int:
    """Returns where it ends."""
    for part in parts:
        view = memoryview(part).cast("B")  # type: ignore[arg-type]
        while view:
            count = os.pwrite(memory, view, start)
            view, start = view[count:], start + count
    return start


def _send_message(to: socket.socket, message: dict[str, Any]) -> None:
    to.send(json.dumps(message, ensure_ascii=False).encode(errors="replace"))


def _receive_message(source: socket.socket, timeout: float | None) -> dict[str, Any] | None:
    """None where the other side is gone, or where it cannot be a message; TimeoutError after so many seconds."""
    source.settimeout(timeout)
    with contextlib.suppress(ConnectionError, ValueError):
        try:
            message = source.recv(_MAX_MESSAGE)
        except ConnectionResetError:  # It died with a message of ours unread; what it had answered before is still there.
            message = source.recv(_MAX_MESSAGE)
        if message:
            return json.loads(message)
    return None


def main() -> None:
    """Says hello on the socket that the command line names, and answers requests until it ends; the files that follow hold pictures."""
    parent, *memories = socket.socket(fileno=int(sys.argv[1])), *map(int, sys.argv[2:])
    _send_message(parent, {})
    while (request := _receive_message(parent, None)) is not None:
        memory = memories[request["memory"]]
        start = _PLACE.size
        end = start + sum(num_bytes for num_bytes, *_ in request["pictures"])
        answers = []
        for place, (num_bytes, max_pixels, views) in enumerate(request["pictures"]):
            # A parent that was killed cannot end a picture that hangs.
            signal.alarm(int(TIMEOUT) + 5)
            os.pwrite(memory, _PLACE.pack(place), 0)
            try:
                data = _read(memory, num_bytes, start)
                found = decode(data, [View((width, height), *rest) for (width, height), *rest in views], max_pixels)
            except Exception as error:  # What nobody foresaw is a fact about this picture; the row carries it.
                found = Decoded("corrupt", f"{type(error).__name__}: {error}")
            start += num_bytes
            end = _write(memory, end, found.crops)
            answer = {name: getattr(found, name) for name in ("status", "width", "height")}
            answer["crop_to_image"] = [affine.ravel().tolist() for affine in found.crop_to_image]
            answers.append(answer | {"detail": found.detail[:_MAX_DETAIL]})
        signal.alarm(0)
        try:
            _send_message(parent, {"found": answers})
        except OSError:  # the parent is gone
            return


def _read(memory: int, count: int, start: int) -> bytes:
    """One call reads at most 2 GiB."""
    parts = []
    while count and (part := os.pread(memory, count, start)):
        parts.append(part)
        start, count = start + len(part), count - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


if __name__ == "__main__":
    main()
