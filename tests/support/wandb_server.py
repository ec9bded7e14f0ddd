"""Fake of W&B's server on the loopback interface for the real client, with simulated outages."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from wandb_backend import Backend
from wandb_records import Rows, Run


class WandbServer(ThreadingHTTPServer):
    """HTTP server in front of a `Backend`, with optional faults.

    Args:
        always: The same (status, response) for every request.
        num_requests: Requests that are served; later ones are cut off in the middle of the response.
        exits: Close the listening socket after `num_requests`.
    """

    def __init__(
        self, *, always: tuple[int, Any] | None = None, num_requests: float = float("inf"), exits: bool = False
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.always = always
        self.requests_left = num_requests
        self.exits = exits
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.backend = Backend(self.url)
        self.lock = threading.Lock()

    @property
    def history(self) -> dict[str, Rows]:
        """Rows by run."""
        return {name: run.history for name, run in self.backend.runs.items()}

    def handle_error(self, *_: Any) -> None:
        """Ignore clients that close the connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            self.server.requests_left -= 1
            if self.server.requests_left < 0:
                return self._hang_up()
            status, answer = self.server.always or (200, self._answer(body))
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _hang_up(self) -> None:
        """Close the connection in the middle of a response, without processing the request."""
        self.close_connection = True
        if self.server.exits:
            self.server.socket.close()
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")

    do_PUT = do_POST

    def _answer(self, body: bytes) -> Any:
        backend, path = self.server.backend, unquote(self.path)
        if path == "/graphql":
            asked = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            return {"data": backend.answer(operation[1] if operation else "", asked.get("variables") or {})}
        if path.endswith("/file_stream"):
            run = path.split("/")[-2]
            return backend.stream(backend.runs.setdefault(run, Run(run)), json.loads(body))
        if path.startswith("/upload/"):
            backend.uploads[path.removeprefix("/upload/")] = body
        return {}

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(**faults: Any) -> Iterator[WandbServer]:
    """Context of a running `WandbServer` with these faults; after it, its port refuses connections."""
    server = WandbServer(**faults)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def refusing() -> Iterator[str]:
    """Context of the URL of a port that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextmanager
def answering_500() -> Iterator[str]:
    """Context of the URL of a server that always returns 500."""
    with serving(always=(500, {"errors": [{"message": "broken"}]})) as server:
        yield server.url


@contextmanager
def answering_401() -> Iterator[str]:
    """Context of the URL of a server that rejects every API key."""
    with serving(always=(401, {"errors": [{"message": "invalid API key"}]})) as server:
        yield server.url


@contextmanager
def answering_nonsense() -> Iterator[str]:
    """Context of the URL of a server that returns 200 with empty objects."""
    with serving(always=(200, {"data": {"upsertBucket": {}, "model": {"bucket": {}}}})) as server:
        yield server.url


@contextmanager
def hanging() -> Iterator[str]:
    """Context of the URL of a port that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def dying(after: int) -> Iterator[str]:
    """Context of the URL of a server that exits after so many requests."""
    with serving(num_requests=after, exits=True) as server:
        yield server.url


@contextmanager
def hanging_up(after: int) -> Iterator[str]:
    """Context of the URL of a server that, after so many requests, cuts off every response."""
    with serving(num_requests=after) as server:
        yield server.url
