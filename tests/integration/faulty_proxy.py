"""An HTTP proxy before a judge's server that breaks some of its answers; the question decides which."""

from __future__ import annotations

import http.client
import json
import threading
import time
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("error", "garbage", "hang", "error once")  # the rest of ten kinds of question pass
GARBAGE = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "As a language model"}}]}


def fault_of(question: str) -> str | None:
    kind = zlib.crc32(question.encode()) % 10
    return FAULTS[kind] if kind < len(FAULTS) else None


class FaultyProxy:
    """url: its own address. upstream: the server's. is_faulty: some answers are broken. is_lost: nothing is answered.

    hang_s: seconds until a hanging question's connection is dropped. on_question: called with the number of questions
    so far. An upstream that can't be reached makes it drop the connection, as the upstream would.
    """

    def __init__(self, upstream: str, hang_s: float, on_question: Callable[[int], None] = lambda count: None) -> None:
        self.is_faulty, self.is_lost = True, False
        self._upstream, self._hang_s, self._on_question = urlsplit(upstream).netloc, hang_s, on_question
        self._lock = threading.Lock()
        self._count = 0
        self._seen: set[str] = set()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: object) -> None:
                pass

            def do_GET(self) -> None:
                self._answer(proxy.forward("GET", self.path, None))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(proxy.ask(self.path, body))

            def _answer(self, answer: tuple[int, bytes] | None) -> None:
                if answer is None:
                    self.close_connection = True
                    return
                try:
                    self.send_response(answer[0])
                    self.send_header("Content-Length", str(len(answer[1])))
                    self.end_headers()
                    self.wfile.write(answer[1])
                except ConnectionError:
                    pass  # the client gave up

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def ask(self, path: str, body: bytes) -> tuple[int, bytes] | None:
        """(status, body) of a question, None if the connection is dropped."""
        question = json.loads(body)["messages"][0]["content"]
        with self._lock:
            self._count += 1
            is_first = question not in self._seen
            self._seen.add(question)
            self._on_question(self._count)
        fault = fault_of(question) if self.is_faulty else None
        if fault == "error" or (fault == "error once" and is_first):
            return 500, b"out of order"
        if fault == "garbage":
            return 200, json.dumps(GARBAGE).encode()
        if fault == "hang":
            time.sleep(self._hang_s)
            return None
        return self.forward("POST", path, body)

    def forward(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes] | None:
        if self.is_lost:
            return None
        connection = http.client.HTTPConnection(self._upstream, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
