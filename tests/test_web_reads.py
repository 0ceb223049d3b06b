"""web_reads.py: the answers and the faults of web servers, and which of them are given up."""

import errno
import http.server
import re
import socket
import threading
import time
import urllib.parse

import pytest

from posepipe import retrying, web_reads
from posepipe.fetching import fetch, read_ahead
from posepipe.retrying import StorageUnavailableError

LIMIT = 1000


@pytest.fixture
def quick(monkeypatch):
    """Faults are tried again without a pause to speak of."""
    monkeypatch.setattr(retrying, "_pauses", lambda: iter(lambda: 1e-4, None))


def read(uris, **others):
    """What came for each."""
    return [data for _, data in read_ahead(uris, LIMIT, **others)]


@pytest.fixture
def http_server():
    """Answers by the name that is asked for.

    `drop` closes the first two connections without a word, `endless` never ends, `silent` stops in the middle.
    """
    dropped = []
    is_over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            name = self.path.strip("/")
            if name == "drop" and len(dropped) < 2:
                dropped.append(self.command)
                self.close_connection = True
                return
            to = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query).get("to")
            status = 302 if to else int(name) if name.isdigit() else 200
            self.send_response(status)
            if to:
                self.send_header("Location", to[0])
            if name == "chunked":
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(b"7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n")
                return
            if name == "endless":
                self.end_headers()
                while True:
                    self.wfile.write(b"x" * 500)
            self.send_header("Content-Length", "5" if name in ("short", "silent") else "4")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"good")
                self.close_connection = name == "short"
                if name == "silent":
                    is_over.wait(30)

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):  # whoever asked has hung up
            pass

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    is_over.set()
    server.shutdown()
    server.server_close()


def test_an_http_servers_answers_are_told_from_its_faults(http_server, quick):
    names = ["a", "404", "403", "drop", "400", "chunked", "b"]
    found = [fetch(f"{http_server}/{name}", LIMIT, patience=20) for name in names]
    kinds = {name: type(each) for name, each in zip(names, found, strict=True)}
    assert kinds == {
        "a": bytes,
        "404": FileNotFoundError,
        "403": PermissionError,
        "drop": bytes,
        "400": OSError,
        "chunked": OSError,
        "b": bytes,
    }
    assert found[names.index("drop")] == b"good"
    assert found[names.index("chunked")].errno == errno.EFBIG


def test_an_http_body_without_an_end_is_read_to_the_limit(http_server):
    error = fetch(f"{http_server}/endless", LIMIT)
    assert error.errno == errno.EFBIG


@pytest.mark.parametrize("url", ["http://", "http://[::1", "http://host:port/a", "https:///a.jpg"])
def test_a_url_that_is_none_is_an_error_in_its_place(http_server, url):
    error, found = read([url, f"{http_server}/a"])
    assert (type(error), error.errno, found) == (OSError, errno.EINVAL, b"good")


@pytest.fixture
def gone():
    """A web server that there is not."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{closed.getsockname()[1]}"  # bound but not listening: nobody else gets the port
    web_reads._silent.clear()


def test_an_http_server_that_is_gone_is_no_missing_picture(gone, quick):
    with pytest.raises(StorageUnavailableError, match=rf"^{gone}/a.jpg: the storage failed for 0 s.*see --unreachable-after"):
        fetch(f"{gone}/a.jpg", LIMIT, patience=0)


def test_a_web_server_may_be_given_up_while_others_are_read(http_server, gone, quick):
    found = read([f"{gone}/a", f"{http_server}/a", f"{http_server}/404", f"{gone}/b"], unreachable_after=0.2)
    assert [getattr(each, "errno", each) for each in found] == [errno.EHOSTUNREACH, b"good", errno.ENOENT, errno.EHOSTUNREACH]
    assert re.search("the storage failed for 0.2 s, last with (ClientConnector|ConnectionTimeout)Error", found[0].strerror)


def test_a_web_server_that_was_given_up_is_not_asked_for_a_while(gone, quick, monkeypatch):
    asked = []
    get = web_reads.get
    monkeypatch.setattr(web_reads, "get", lambda filesystem, url, *_, **__: asked.append(url) or get(filesystem, url, *_, **__))
    fetch(f"{gone}/a", LIMIT, unreachable_after=0.05)
    assert asked
    asked.clear()
    error = fetch(f"{gone}/b", LIMIT, unreachable_after=0.05)
    assert (error.errno, asked) == (errno.EHOSTUNREACH, [])
    assert f"{gone} did not answer for 0.05 s" in error.strerror
    monkeypatch.setattr(retrying, "PATIENCE", 0.0)
    fetch(f"{gone}/b", LIMIT, unreachable_after=0.05)
    assert asked


@pytest.mark.parametrize("name", ["500", "short", "silent"])
def test_a_web_server_that_fails_for_one_picture_is_asked_for_the_next_one(http_server, name, quick):
    error, found = read([f"{http_server}/{name}", f"{http_server}/a"], unreachable_after=0.2)
    assert (error.errno, found) == (errno.EHOSTUNREACH, b"good")
    assert fetch(f"{http_server}/a", LIMIT, unreachable_after=0.2) == b"good"


def test_a_web_server_that_sends_on_to_one_that_is_gone_is_asked_for_the_next_one(http_server, gone, quick):
    error = fetch(f"{http_server}/a?to={gone}/a", LIMIT, unreachable_after=0.2)
    assert error.errno == errno.EHOSTUNREACH
    assert fetch(f"{http_server}/a", LIMIT, unreachable_after=0.2) == b"good"


def test_a_silent_web_server_is_given_up_after_the_seconds_that_were_given(monkeypatch, quick):
    monkeypatch.setattr(web_reads, "REDIRECT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        error = fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/a", LIMIT, unreachable_after=2)
    assert error.errno == errno.EHOSTUNREACH
    assert time.monotonic() - started < 3.5


@pytest.mark.parametrize("unreachable_after", [0, 0.2])
def test_a_redirect_to_what_is_no_web_page_is_an_error_of_its_picture(http_server, quick, unreachable_after):
    error, found = read([f"{http_server}/a?to=mailto:me@example.org", f"{http_server}/a"], unreachable_after=unreachable_after)
    assert (type(error), error.errno, found) == (OSError, errno.EINVAL, b"good")
