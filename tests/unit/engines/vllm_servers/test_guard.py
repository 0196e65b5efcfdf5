"""Nothing behind the guard sees a request without the key; vLLM's real server behind it is in the integration tests."""

from __future__ import annotations

import asyncio
import json

import pytest

from sppo_megatron.engines.vllm_servers.guard import Guard

KEY = "a secret"
WITH_KEY = [(b"authorization", b"Bearer a secret")]


class Server:
    """Answers 200 to everything, and keeps what reached it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes]] = []

    async def __call__(self, scope, receive, send) -> None:
        body = b""
        if scope["type"] == "http":
            while True:
                message = await receive()
                body += message["body"]
                if not message["more_body"]:
                    break
            await send({"type": "http.response.start", "status": 200, "headers": []})
        self.seen.append((scope.get("path", scope["type"]), body))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    return Server()


def ask(server: Server, path: str, headers=(), body: bytes = b"", kind: str = "http") -> list[dict]:
    """What is sent back. The body comes in two parts."""
    parts = [
        {"type": "http.request", "body": body[:5], "more_body": True},
        {"type": "http.request", "body": body[5:], "more_body": False},
    ]
    sent = []

    async def receive():
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "path": path, "headers": list(headers), "method": "POST"}
    asyncio.run(Guard(server)(scope, receive, send))
    return sent


@pytest.mark.parametrize(
    "path", ["/health", "/metrics", "/v1/models", "/collective_rpc", "/update_weights", "/docs", "/"]
)
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer another")],
        [(b"authorization", b"Bearer a secret ")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"a secret")],
        [(b"x-api-key", b"a secret")],
        [(b"authorization", b"Bearer another"), *WITH_KEY],
    ],
)
def test_no_path_without_the_key(server: Server, path: str, headers: list) -> None:
    start, body = ask(server, path, headers)
    assert start["status"] == 401 and KEY not in body["body"].decode()
    assert server.seen == []


def test_the_key_opens_every_path(server: Server) -> None:
    for path in ("/health", "/v1/completions", "/pause"):
        [start] = ask(server, path, WITH_KEY, b"a longer body")
        assert start["status"] == 200
    assert server.seen == [(path, b"a longer body") for path in ("/health", "/v1/completions", "/pause")]


def test_a_websocket_is_closed(server: Server) -> None:
    [closed] = ask(server, "/v1/realtime", kind="websocket")
    assert closed["type"] == "websocket.close" and closed["code"] == 1008
    assert server.seen == []


def test_the_server_may_start_and_end(server: Server) -> None:
    ask(server, "", kind="lifespan")
    assert server.seen == [("", b"")]


@pytest.mark.parametrize("path", ["/collective_rpc", "/collective_rpc/", "/behind/a/proxy/collective_rpc"])
def test_our_worker_methods_and_no_others(server: Server, path: str) -> None:
    for method in ("sppo_report", "sppo_note", "sppo_load_folder"):
        body = json.dumps({"method": method, "args": [1]}).encode()
        assert ask(server, path, WITH_KEY, body)[0]["status"] == 200
        assert server.seen.pop() == (path, body)
    bodies = [
        json.dumps({"method": method}) for method in ("load_model", "sppo_load", "shutdown", None, 3, ["sppo_note"])
    ]
    # the last of two is what every JSON parser here takes
    bodies += ["", "no json", "[]", "3", '{"args": []}', '{"method": "sppo_note", "method": "shutdown"}']
    for text in bodies:
        start, answer = ask(server, path, WITH_KEY, text.encode())
        assert start["status"] == 403 and b"sppo_note" in answer["body"]
    assert server.seen == []


@pytest.mark.parametrize("key", [None, ""])
def test_without_a_key_nothing_is_served(server: Server, monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    monkeypatch.delenv("VLLM_API_KEY") if key is None else monkeypatch.setenv("VLLM_API_KEY", key)
    with pytest.raises(RuntimeError, match="VLLM_API_KEY is empty"):
        Guard(server)
