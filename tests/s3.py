"""An S3 server as it is on a bad day: a proxy that delays, refuses, cuts, holds and counts what passes through it.

Clients sign the host that they talk to, and the proxy hands that header on, so a server behind it that verifies signatures accepts them.
"""

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

import yarl
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web
from multidict import CIMultiDict, CIMultiDictProxy

ERRORS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "access_denied": (403, "AccessDenied", "Access Denied"),
}
# Of one connection, not of the message.
HOP_BY_HOP = ("Connection", "Keep-Alive", "Transfer-Encoding", "TE", "Expect")


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Shares of the requests that meet each fault: at most one of them, and a delay. Seeded: what becomes of the n-th request for a key
    depends on nothing else.
    """

    slow_down: float = 0.0
    """503 SlowDown; the server does not see the request."""
    access_denied: float = 0.0
    """403 AccessDenied; the server does not see the request."""
    reset: float = 0.0
    """The connection is reset; the server does not see the request."""
    lost_reply: float = 0.0
    """The server does what it was asked to; its reply is lost, the connection reset."""
    truncated: float = 0.0
    """A GET's body ends after half of its Content-Length."""
    delayed: float = 0.0
    """The request waits for `delay` seconds first."""
    delay: float = 1.0
    prefix: str = ""
    """Only requests for keys (bucket/name) that start with it."""
    seed: int = 0

    def draw(self, method: str, key: str, attempt: int) -> tuple[str, float]:
        """What becomes of the request: a fault or "", and seconds to wait."""
        if not key.startswith(self.prefix):
            return "", 0.0
        rng = random.Random(f"{self.seed} {method} {key} {attempt}")
        wait = self.delay if rng.random() < self.delayed else 0.0
        place = rng.random()
        for kind in ("slow_down", "access_denied", "reset", "lost_reply", "truncated"):
            place -= getattr(self, kind)
            if place < 0:
                return "" if kind == "truncated" and method != "GET" else kind, wait
        return "", wait


class Watch:
    """Counts the requests of the methods (GET|PUT) for keys that match, which the server answered with success.

    Attributes:
        keys: how often of each key.
        times: of each, by time.monotonic().
    """

    def __init__(self, methods: str, pattern: str) -> None:
        self._methods, self._pattern = methods.split("|"), re.compile(pattern)
        self._changed = threading.Condition()
        self.keys: Counter[str] = Counter()
        self.times: list[float] = []

    def note(self, method: str, key: str) -> None:
        if method in self._methods and self._pattern.search(key):
            with self._changed:
                self.keys[key] += 1
                self.times.append(time.monotonic())
                self._changed.notify_all()

    @property
    def count(self) -> int:
        with self._changed:
            return self.keys.total()

    @property
    def repeated(self) -> int:
        """How many more than one of each key."""
        with self._changed:
            return self.keys.total() - len(self.keys)

    def wait(self, count: int, timeout: float, is_alive: Callable[[], bool] = lambda: True) -> None:
        """Returns once there are `count`; RuntimeError where is_alive stops to hold before, TimeoutError."""
        with self._changed:
            wait_until(lambda: self.keys.total() >= count, self._changed, timeout, is_alive, f"{count} {self}, got {self.keys.total()}")

    def reaches(self, count: int, ended: threading.Event) -> bool:
        """Whether there are `count`, once that is so or `ended` is set."""
        with self._changed:
            while not self._changed.wait_for(lambda: self.keys.total() >= count, 0.2):
                if ended.is_set():
                    return False
            return True

    def __str__(self) -> str:
        return f"{'|'.join(self._methods)} {self._pattern.pattern}"


class Hold:
    """Holds back one request of a method for a key that matches, and its repetitions, until it is released or dropped.

    `after` matching requests pass before. A client that loses patience or dies ends its request: the server never sees that one either.
    """

    def __init__(self, method: str, pattern: str, after: int) -> None:
        self._method, self._pattern, self._after = method, re.compile(pattern), after
        self._changed = threading.Condition()
        self._decision: bool | None = None
        self._num_waiting = 0
        self.key = ""

    def matches(self, method: str, key: str) -> bool:
        if self._decision is not None or method != self._method:
            return False
        if self.key:
            return key == self.key
        if self._pattern.search(key):
            self._after -= 1
        return self._after < 0

    async def take(self, request: web.BaseRequest, key: str) -> bool:
        """Whether the server may see the request, once somebody has decided."""
        with self._changed:
            self.key = key
            self._num_waiting += 1
            self._changed.notify_all()
        while self._decision is None and request.transport is not None:
            await asyncio.sleep(0.02)
        with self._changed:
            self._num_waiting -= 1
            self._changed.notify_all()
        return bool(self._decision) and request.transport is not None

    def wait(self, timeout: float, is_alive: Callable[[], bool] = lambda: True) -> str:
        """The key of the request once it is held; RuntimeError where is_alive stops to hold before, TimeoutError."""
        with self._changed:
            wait_until(lambda: bool(self.key), self._changed, timeout, is_alive, f"{self._method} {self._pattern.pattern}")
        return self.key

    def wait_abandoned(self, timeout: float) -> None:
        """Returns once the client of the held request has closed its connection, as a killed one does."""
        with self._changed:
            what = f"end of the client of {self._method} {self._pattern.pattern}"
            wait_until(lambda: bool(self.key) and not self._num_waiting, self._changed, timeout, lambda: True, what)

    def release(self) -> None:
        """Lets the server see the request."""
        self._decision = True

    def drop(self) -> None:
        """The server never sees the request; its connection is reset."""
        self._decision = False


def wait_until(reached: Callable[[], bool], changed: threading.Condition, timeout: float, is_alive: Callable[[], bool], what: str) -> None:
    """Waits on `changed`, which the caller holds, and looks every half second whether what should bring it about is alive."""
    for _ in range(int(2 * timeout)):
        if changed.wait_for(reached, 0.5):
            return
        if not is_alive():
            raise RuntimeError(f"ended before it came to {what}")
    raise TimeoutError(f"no {what} within {timeout} s")


class FaultProxy:
    """Stands between clients and the S3 server `upstream`, in a thread of its own. Without `faults` it hands everything on.

    Args:
        upstream: the server's URL.

    Attributes:
        endpoint: the URL for clients.
        faults: what it does to requests; may be set at any time.
        requests: (method, key) -> requests that came in.
        done: fault (also: cut, dropped, delayed, upstream) -> how often.
        done_to: (fault, method, key) -> how often.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream.rstrip("/")
        self.endpoint = ""
        self.faults = Faults()
        self.requests: Counter[tuple[str, str]] = Counter()
        self.done: Counter[str] = Counter()
        self.done_to: Counter[tuple[str, str, str]] = Counter()
        self._attempts: Counter[tuple[Faults, str, str]] = Counter()
        self._watches: list[Watch] = []
        self._holds: list[Hold] = []
        self._is_cut = False
        self._transports: set[asyncio.WriteTransport] = set()
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._started: threading.Event = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()], daemon=True)

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        if not self._started.wait(30):
            raise TimeoutError("the proxy did not start within 30 s")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()
        self._loop.close()

    @contextlib.contextmanager
    def failing(self, faults: Faults) -> Iterator[None]:
        """The faults are done inside of the block only."""
        before, self.faults = self.faults, faults
        try:
            yield
        finally:
            self.faults = before

    def cut(self) -> None:
        """From now on every connection is reset, also those with requests under way."""
        self._is_cut = True
        self._loop.call_soon_threadsafe(self._reset_all)

    def _reset_all(self) -> None:
        for transport in self._transports:
            _reset(transport)

    def restore(self) -> None:
        self._is_cut = False

    @contextlib.contextmanager
    def watching(self, methods: str, pattern: str) -> Iterator[Watch]:
        """Counts inside of the block; `pattern` is searched for in keys (bucket/name)."""
        watch = Watch(methods, pattern)
        self._watches.append(watch)
        try:
            yield watch
        finally:
            self._watches.remove(watch)

    @contextlib.contextmanager
    def holding(self, method: str, pattern: str, after: int = 0) -> Iterator[Hold]:
        """Holds inside of the block; a request that is still held at its end is dropped."""
        hold = Hold(method, pattern, after)
        self._holds.append(hold)
        try:
            yield hold
        finally:
            self._holds.remove(hold)
            if hold._decision is None:
                hold.drop()

    async def _serve(self) -> None:
        # A connection per request: the server may close an idle one, which a client would take for a fault of ours.
        connector = TCPConnector(limit=0, force_close=True)
        async with ClientSession(connector=connector, timeout=ClientTimeout(total=None), auto_decompress=False) as self._session:
            runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=0)
            await runner.setup()
            listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
            await web.SockSite(runner, listener).start()
            self.endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
            self._started.set()
            await self._stopped.wait()
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        transport = request.transport
        if transport is None:
            return web.Response()
        self._transports.add(transport)
        try:
            return await self._answer(request, transport)
        finally:
            self._transports.discard(transport)

    async def _answer(self, request: web.BaseRequest, transport: asyncio.WriteTransport) -> web.StreamResponse:
        method, key = request.method, urllib.parse.unquote(request.raw_path.partition("?")[0]).strip("/")
        self.requests[method, key] += 1
        if request.headers.get("Expect", "").lower() == "100-continue":
            transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await request.content.read()
        if self._is_cut:
            return self._drop("cut", method, key, transport)
        if not await self._is_let_through(request, key):
            return self._drop("dropped", method, key, transport)
        faults = self.faults
        fault, wait = faults.draw(method, key, self._attempts[faults, method, key])
        self._attempts[faults, method, key] += 1
        if wait:
            self._note("delayed", method, key)
            await asyncio.sleep(wait)
        if fault in ERRORS:
            self._note(fault, method, key)
            status, code, message = ERRORS[fault]
            text = f"<Error><Code>{code}</Code><Message>{message}</Message><Resource>/{key}</Resource><RequestId>proxy</RequestId></Error>"
            return web.Response(status=status, text=f'<?xml version="1.0" encoding="UTF-8"?>\n{text}', content_type="application/xml")
        if fault == "reset":
            return self._drop(fault, method, key, transport)
        try:
            status, headers, answer = await self._forward(request, body)
        except ClientError:
            return self._drop("upstream", method, key, transport)
        if 200 <= status < 300:
            for watch in list(self._watches):
                watch.note(method, key)
        if fault == "lost_reply" or self._is_cut:
            return self._drop(fault or "cut", method, key, transport)
        is_truncated = fault == "truncated" and len(answer) > 1
        reply = web.StreamResponse(status=status, headers=headers)
        await reply.prepare(request)
        with contextlib.suppress(ConnectionResetError):  # The client has gone; that is its business.
            await reply.write(answer[: len(answer) // 2] if is_truncated else answer)
            if is_truncated:
                self._note(fault, method, key)
                transport.close()
        return reply

    async def _forward(self, request: web.BaseRequest, body: bytes) -> tuple[int, CIMultiDict[str], bytes]:
        # The path as the client wrote it, because that is what it signed.
        url = yarl.URL(self._upstream + request.raw_path, encoded=True)
        headers = _end_to_end(request.headers)
        async with self._session.request(
            request.method, url, headers=headers, data=body or None, allow_redirects=False, skip_auto_headers=("User-Agent", "Content-Type")
        ) as reply:
            return reply.status, _end_to_end(reply.headers), await reply.read()

    async def _is_let_through(self, request: web.BaseRequest, key: str) -> bool:
        for hold in list(self._holds):
            if hold.matches(request.method, key):
                return await hold.take(request, key)
        return True

    def _note(self, fault: str, method: str, key: str) -> None:
        self.done[fault] += 1
        self.done_to[fault, method, key] += 1

    def _drop(self, fault: str, method: str, key: str, transport: asyncio.WriteTransport) -> web.StreamResponse:
        self._note(fault, method, key)
        _reset(transport)
        return web.Response()


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    kept = headers.copy()
    for name in HOP_BY_HOP:
        kept.popall(name, None)
    return kept


def _reset(transport: asyncio.WriteTransport) -> None:
    """Closes so that the peer gets RST, not the end of the stream; nothing where the peer has closed already."""
    if transport.is_closing():
        return
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
