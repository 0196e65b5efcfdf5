"""Who may talk to a rollout server: whoever has its key, and then to our own worker methods alone.

vLLM's own key guards what lies under /v1. Its control endpoints, which replace the weights and call any method of a
worker by name, know none. `sppo serve` puts this in front of all of them, by name: `--middleware ...guard.Guard`.
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

KEY_VARIABLE = "VLLM_API_KEY"
# What the trainer asks a server's workers for, of all that they could do.
WORKER_METHODS = frozenset({"sppo_report", "sppo_note", "sppo_load_folder"})
WORKER_CALL = "/collective_rpc"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Guard:
    """An ASGI middleware. Raises RuntimeError if VLLM_API_KEY is empty: then nothing is served."""

    def __init__(self, app: App) -> None:
        key = os.environ.get(KEY_VARIABLE, "")
        if not key:
            raise RuntimeError(f"{KEY_VARIABLE} is empty: a rollout server needs a key")
        self._app = app
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers 401 without the key on any path, 403 to other worker methods; else the server answers."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif not self._has_key(scope):
            await _refuse(scope, send, 401, "this server needs its API key")
        elif scope["path"].rstrip("/").endswith(WORKER_CALL):
            body = await _body(receive)
            if _method(body) not in WORKER_METHODS:
                allowed = ", ".join(sorted(WORKER_METHODS))
                await _refuse(scope, send, 403, f"of the workers' methods only {allowed} can be called")
            else:
                await self._app(scope, _replayed(body, receive), send)
        else:
            await self._app(scope, receive, send)

    def _has_key(self, scope: Message) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)


async def _refuse(scope: Message, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": reason})
        return
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": reason}).encode()})


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _method(body: bytes) -> Any:
    """None if the body doesn't name one: the server's own parser sees the same bytes."""
    try:
        method = json.loads(body)["method"]
    except (ValueError, TypeError, KeyError, IndexError):
        return None
    return method if isinstance(method, str) else None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body once more, for who comes next; then what the connection says."""
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return unread.pop() if unread else await receive()

    return again
