"""A small OpenAI-compatible endpoint on a real socket, whose behaviour a test chooses."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Endpoint", str], Any]  # (endpoint, message) -> reply, or (status, reply)


class Endpoint:
    """answer(endpoint, message): the chat completion, or (status, JSON or raw bytes). requests: bodies received."""

    def __init__(self, answer: Behaviour, names: tuple[str, ...] = ("judge",), key: str | None = None) -> None:
        self.answer, self.names, self.key = answer, names, key
        self.requests: list[dict] = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                self.reply({"data": [{"id": name} for name in endpoint.names]} if self.path == "/v1/models" else {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint.lock:
                    endpoint.requests.append(body)
                    endpoint.under_way += 1
                    endpoint.most_under_way = max(endpoint.most_under_way, endpoint.under_way)
                try:
                    self.reply(endpoint.answer(endpoint, body["messages"][0]["content"]))
                finally:
                    with endpoint.lock:
                        endpoint.under_way -= 1

            def reply(self, reply: Any) -> None:
                status, payload = reply if isinstance(reply, tuple) else (200, reply)
                if endpoint.key is not None and self.headers.get("Authorization") != f"Bearer {endpoint.key}":
                    status, payload = 401, {"error": "no key"}
                data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except ConnectionError:
                    pass  # the client gave up

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128  # connections beyond it wait a second

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        """From now on connections are refused."""
        self._server.shutdown()
        self._server.server_close()


def completion(text: str | None, log_probs: dict[str, float] | None = None) -> dict:
    """As the OpenAI protocol writes it. log_probs: of the first token's alternatives, nats."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
    if log_probs is not None:
        top = [{"token": token, "logprob": value, "bytes": None} for token, value in log_probs.items()]
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 1}}


def hang(seconds: float) -> Behaviour:
    def answer(endpoint: Endpoint, message: str) -> dict:
        time.sleep(seconds)
        return completion("A")

    return answer
