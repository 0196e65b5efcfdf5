"""Servers over HTTP: JSON in, JSON out, and whether a failure is the server's or the request's.

Every request of the process runs on one event loop in a thread of its own, over pooled connections: a request under way
costs a coroutine and no thread.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import random
import re
import resource
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

CONTROL_TIMEOUT_S = 30.0
PATIENCE_S = 3600.0
LONGEST_BACKOFF_S = 60.0
KEEP_ALIVE_S = 2.0  # less than servers keep an idle connection (uvicorn: 5 s), so that none is reused as it closes
T = TypeVar("T")


class ServerError(Exception):
    """The server can't be reached, or broke: another one may do better."""


class OverloadedError(ServerError):
    """The server asks to come back later. wait_s: when, None if it doesn't say."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class RequestError(Exception):
    """The server refused what was asked: every other one would, too."""


class AccessError(RequestError):
    """The key is wrong, or its quota is used up: no request will succeed until the user fixes that."""


class _Loop:
    """An event loop in a daemon thread, with one session of pooled connections."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="http", daemon=True).start()
        self.session: aiohttp.ClientSession = asyncio.run_coroutine_threadsafe(self._open(), self.loop).result()
        atexit.register(self._close)

    async def _open(self) -> aiohttp.ClientSession:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = 0 if files == resource.RLIM_INFINITY else max(1, files // 2)
        connector = aiohttp.TCPConnector(limit=limit, keepalive_timeout=KEEP_ALIVE_S)
        return aiohttp.ClientSession(connector=connector)

    def _close(self) -> None:
        if self.pid == os.getpid():
            asyncio.run_coroutine_threadsafe(self.session.close(), self.loop).result(timeout=1.0)


_started: _Loop | None = None
_starting = threading.Lock()


def _current() -> _Loop:
    global _started
    with _starting:
        if _started is None or _started.pid != os.getpid():  # a fork has no thread to run it
            _started = _Loop()
        return _started


def submit(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Starts a coroutine on the event loop. Its future may be waited for anywhere but on the loop itself."""
    return asyncio.run_coroutine_threadsafe(work, _current().loop)


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result, or what it raises. Whoever is interrupted while waiting cancels it."""
    future = submit(work)
    try:
        return future.result()
    finally:
        future.cancel()


class HttpClient:
    """url: http://host:port, or with a path: https://host/api, https://host/api/v1. api_key: sent as a bearer token.
    model: the served name, None for the only one it serves. timeout_s: seconds for one request.

    patience_s: how long a request waits, all together, for a server that says it is overloaded (429, or 503 with
    Retry-After); no attempt is spent on that. settings: the configuration group that error messages name.
    Methods raise ServerError or RequestError. Threads may share it.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float = 600.0,
        patience_s: float = PATIENCE_S,
        settings: str = "rollout.server",
    ) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._api_key = api_key or ""
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._model = model
        self._patience_s = patience_s
        self._settings = settings
        parts = urlsplit(self.url)
        self._proxy = None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
        self._opens_at = 0.0  # time.monotonic() before which an overloaded server wants no request
        self._root = re.sub(r"/v1$", "", self.url)
        # A version in the path is the API's own ("/api/v1", "/v1beta/openai"): nothing is put between.
        has_version = re.search(r"/v\d+\w*(/|$)", parts.path) is not None
        self._api = self.url if has_version else f"{self.url}/v1"

    # ---------------------------------------------------------------- on the event loop

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout_s: float = CONTROL_TIMEOUT_S
    ) -> Any:
        """The JSON answer of an endpoint, None if it is empty. path: "/v1/..." is the API's, others are the server's.

        While the server is overloaded all requests to it wait. Raises OverloadedError once patience_s is over.
        """
        waited, backoff = 0.0, 1.0
        while True:
            if (pause := self._opens_at - time.monotonic()) > 0:
                await asyncio.sleep(pause * random.uniform(1.0, 1.25))
            try:
                return await self._call_once(method, path, body, timeout_s)
            except OverloadedError as error:
                pause = max(error.wait_s if error.wait_s is not None else backoff, 0.1)
                if waited + pause > self._patience_s:
                    raise
                waited, backoff = waited + pause, min(2 * backoff, LONGEST_BACKOFF_S)
                self._opens_at = max(self._opens_at, time.monotonic() + pause)

    async def served_model(self) -> str:
        """The served name to ask for."""
        if self._model is None:
            names = [entry["id"] for entry in (await self.call("GET", "/v1/models"))["data"]]
            if len(names) != 1:
                raise RequestError(f"{self.url} serves {', '.join(names)}: say which with {self._settings}.model")
            self._model = names[0]
        return self._model

    async def _call_once(self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> Any:
        address = self._api + path.removeprefix("/v1") if path.startswith("/v1/") else self._root + path
        headers = self._headers
        data = None
        if method == "POST":
            headers = headers | {"Content-Type": "application/json"}
            data = json.dumps(body or {}).encode()  # ASCII: a lone surrogate in a text is an escape, and no error
        try:
            timeout = aiohttp.ClientTimeout(total=timeout_s)
            async with _current().session.request(
                method, address, data=data, headers=headers, timeout=timeout, proxy=self._proxy
            ) as answer:
                content = await answer.read()
        except TimeoutError as error:
            raise ServerError(f"{address}: timed out after {timeout_s:g} seconds") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ServerError(self._shown(f"{address}: {type(error).__name__}: {error}")) from None
        if answer.status >= 400:
            text = self._shown(content.decode(errors="replace"))[:500]
            raise _failure(address, answer.status, text, answer.headers.get("Retry-After"), self._settings)
        if not content:
            return None
        try:
            return json.loads(content)
        except ValueError as error:
            text = self._shown(content.decode(errors="replace"))[:500]
            raise ServerError(f"{address} answered what isn't JSON: {text}") from error

    def _shown(self, text: str) -> str:
        """Without the key, which servers repeat, and the password of a proxy, which errors of libraries name."""
        text = re.sub(r"(?<=://)[^/@\s]*@", "***@", text)
        return text.replace(self._api_key, "***") if self._api_key else text

    # ---------------------------------------------------------------- on any other thread

    def get(self, path: str) -> Any:
        """The JSON answer of a control endpoint."""
        return wait_for(self.call("GET", path))

    def post(self, path: str, body: Mapping[str, Any] | None = None, timeout_s: float = CONTROL_TIMEOUT_S) -> Any:
        """The JSON answer of an endpoint, None if it has none."""
        return wait_for(self.call("POST", path, body, timeout_s))

    def is_healthy(self) -> bool:
        """Whether the server answers and its engine lives. Raises AccessError if it wants another key."""
        try:
            self.get("/health")
        except AccessError:
            raise
        except (ServerError, RequestError):
            return False
        return True


async def with_retries(
    attempt: Callable[[], Awaitable[T]], retries: int, backoff_s: float, is_wanted: Callable[[], bool] = lambda: True
) -> T:
    """attempt(), and again after a ServerError: up to `retries` times, backoff_s apart, doubling, with jitter.

    is_wanted: whether another attempt still makes sense. Raises what the last attempt raised.
    """
    for number in range(retries):
        try:
            return await attempt()
        except OverloadedError:
            raise  # it has waited as long as it may
        except ServerError:
            if not is_wanted():
                raise
            await asyncio.sleep(backoff_s * 2**number * random.uniform(0.5, 1.5))
    return await attempt()


def _failure(address: str, status: int, text: str, retry_after: str | None, settings: str) -> Exception:
    """What an error status means, by the conventions of HTTP and of OpenAI's endpoints."""
    said = f"{address} answered {status}"
    if status in (401, 403):
        return AccessError(f"{said} (the API key comes from the variable {settings}.api_key_env): {text}")
    if status == 402 or (status == 429 and re.search(r"insufficient_quota|exceeded_current_quota|billing", text)):
        return AccessError(f"{said} (the quota of the API key is used up): {text}")
    if status in (429, 529) or (status == 503 and retry_after is not None):
        return OverloadedError(f"{said} (it is overloaded): {text}", _seconds(retry_after))
    if status == 408 or status >= 500:
        return ServerError(f"{said}: {text}")
    return RequestError(f"{said}: {text}")


def _seconds(retry_after: str | None) -> float | None:
    """The header's seconds from now: it holds a number or a date. None if it holds neither."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
