"""A server between a client and an object store: writes down every request, and can answer some itself.

It stands where a load balancer would, on the loopback, and passes requests on as they are.
"""

import http.client
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


class Request(NamedTuple):
    """One request as it came, and what it was answered: bytes of the body, and keys and folders that it lists."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    status: int
    n_bytes: int
    n_listed: int

    @property
    def range(self) -> str | None:
        return self.headers.get("range")

    @property
    def listed(self) -> str | None:
        """The prefix that is listed, of a request that lists."""
        if self.method != "GET" or "list-type" not in self.query:
            return None
        return f"{self.path.strip('/')}/{self.query.get('prefix', [''])[0]}"


class Answer(NamedTuple):
    """What is answered in place of the store; a status of 0 resets the connection.

    One that is `cut_off` ends before the length that it told.
    """

    status: int
    code: str = ""
    message: str = "an answer of the test"
    headers: tuple[tuple[str, str], ...] = ()
    cut_off: bool = False


SLOW_DOWN = Answer(503, "SlowDown", "Please reduce your request rate.")
INTERNAL = Answer(500, "InternalError", "We encountered an internal error. Please try again.")
TOO_MANY = Answer(429, "SlowDown", "Please reduce your request rate.")
RESET = Answer(0)
DENIED = Answer(403, "AccessDenied", "Access Denied")

Rule = Callable[[str, str, dict[str, list[str]]], Answer | None]


def every_third(answer: Answer) -> Rule:
    """Every third request fails, retries counted."""
    lock, seen = threading.Lock(), [0]

    def rule(method: str, path: str, query: dict[str, list[str]]) -> Answer | None:
        with lock:
            seen[0] += 1
            return answer if seen[0] % 3 == 0 else None

    return rule


class StoreProxy(ThreadingHTTPServer):
    """Passes requests on to `upstream` (http://host:port), and keeps them in `requests`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.requests: list[Request] = []
        self.rule: Rule | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error of a test."""

    @contextmanager
    def answering(self, rule: Rule) -> Iterator[None]:
        """Have `rule` answer what it wants to, for the length of a `with`."""
        self.rule = rule
        try:
            yield
        finally:
            self.rule = None

    def taken(self) -> list[Request]:
        """The requests since this was last asked."""
        taken, self.requests = self.requests, []
        return taken


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StoreProxy

    def log_message(self, *arguments: Any) -> None:
        pass

    def _serve(self) -> None:
        address = urlsplit(self.path)
        path, query = unquote(address.path), parse_qs(address.query, keep_blank_values=True)
        body = self._body()
        rule = self.server.rule
        answer = rule(self.command, path, query) if rule is not None else None
        if answer is None:
            status, headers, content = self._passed_on(body)
        elif answer.status == 0:
            self._note(path, query, 0, b"")
            # Without a farewell: the other end sees a reset, not an end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        else:
            status, headers, content = answer.status, list(answer.headers), _xml(answer)
        if self.command == "HEAD":
            length = next((value for name, value in headers if name.lower() == "content-length"), "0")
            content = b""
        else:
            length = str(len(content))
        self._note(path, query, status, content)
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _HOP:
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        if answer is not None and answer.cut_off:
            content, self.close_connection = content[:-23], True
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _serve

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _passed_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        headers["Content-Length"] = str(len(body))
        headers["Connection"] = "close"
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        return answer.status, answer.getheaders(), content

    def _note(self, path: str, query: dict[str, list[str]], status: int, content: bytes) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        listed = (
            content.count(b"<Contents>") + content.count(b"<CommonPrefixes>") if "list-type" in query else 0
        )
        noted = Request(self.command, path, query, headers, status, len(content), listed)
        self.server.requests.append(noted)


def _xml(answer: Answer) -> bytes:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{answer.code}</Code>'
        f"<Message>{answer.message}</Message><RequestId>0</RequestId></Error>"
    ).encode()


@contextmanager
def store_proxy(upstream: str) -> Iterator[StoreProxy]:
    """A proxy that serves for the length of a `with`."""
    proxy = StoreProxy(upstream)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


def listings(requests: list[Request]) -> Counter[str]:
    """How often each folder was listed that holds something, the first page alone counted.

    To ask whether there is one key at all is no listing.
    """
    return Counter(
        one.listed
        for one in requests
        if one.listed is not None
        and one.n_listed
        and "continuation-token" not in one.query
        and one.query.get("max-keys") != ["1"]
    )
