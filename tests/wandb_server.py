"""A stand-in for W&B's server on loopback: as much of it as recording the metrics of a run takes, and its outages."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = {"id": "RTox", "name": "me"}
PROJECT = {"id": "UDox", "name": "p", "entity": ENTITY}


class WandbServer(ThreadingHTTPServer):
    """Keeps what runs stream to it: `history[run id]` is its rows. It has no artifacts, so no tables."""

    def __init__(self, *, always: tuple[int, Any] | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.always = always
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.always:
            self._reply(self.server.always[1], status=self.server.always[0])
        elif self.path == "/graphql":
            asked = json.loads(body)
            self._reply({"data": self._answer(asked.get("operationName") or asked["query"], asked.get("variables"))})
        elif self.path.endswith("/file_stream"):
            self._store(json.loads(body).get("files", {}).get("wandb-history.jsonl"))
            self._reply({})
        else:
            self._reply({})

    do_PUT = do_POST

    def _store(self, lines: dict[str, Any] | None) -> None:
        """Rows go where the client says, over what is there: one that forgets where a run stopped loses rows."""
        if lines:
            rows = self.server.history.setdefault(self.path.split("/")[-2], [])
            rows[lines["offset"] :] = [json.loads(line) for line in lines["content"]]

    def _answer(self, operation: str, variables: Any) -> dict[str, Any]:
        if "UpsertBucket" in operation:
            run = {"id": "Ujox", "name": variables["name"], "displayName": "first", "config": "{}", "project": PROJECT}
            return {"upsertBucket": {"bucket": run | {"historyLineCount": 0}, "inserted": True}}
        if "CreateRunFiles" in operation:
            files = [{"name": name, "uploadUrl": f"{self.server.url}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "Ujox", "uploadHeaders": [], "files": files}}
        if "Viewer" in operation:
            return {"viewer": {"id": "VTox", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if "RunResumeStatus" in operation:
            return {"model": PROJECT | {"bucket": self._resumable(variables["name"])}}
        return {}

    def _resumable(self, run_id: str) -> dict[str, Any] | None:
        """What a client wants to know of a run that it is to continue."""
        if not (rows := self.server.history.get(run_id)):
            return None
        run = {"id": "Ujox", "name": run_id, "displayName": "first", "config": "{}", "tags": []}
        counts = {"historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0}
        last = json.dumps(rows[-1])
        tails = {"historyTail": json.dumps([last]), "eventsTail": "[]", "summaryMetrics": last}
        return run | counts | tails | {"wandbConfig": '{"t": 1}'}

    def _reply(self, answer: Any, *, status: int = 200) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(*, always: tuple[int, Any] | None = None) -> Iterator[WandbServer]:
    """A server, or one with always the same (status, answer); after it, its port refuses connections."""
    server = WandbServer(always=always)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def refusing() -> Iterator[str]:
    """The URL of a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextmanager
def answering_500() -> Iterator[str]:
    """The URL of a server that is broken."""
    with serving(always=(500, {"errors": [{"message": "broken"}]})) as server:
        yield server.url


@contextmanager
def answering_nonsense() -> Iterator[str]:
    """The URL of a server that says yes to everything and means nothing by it."""
    with serving(always=(200, {"data": {"upsertBucket": {}, "model": {"bucket": {}}}})) as server:
        yield server.url


@contextmanager
def hanging() -> Iterator[str]:
    """The URL of a port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
