"""What an answer means, against real sockets: overload is waited for, and a failure is told by whom it concerns."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sppo_megatron.cluster.http_client import (
    AccessError,
    HttpClient,
    OverloadedError,
    RequestError,
    ServerError,
    submit,
    wait_for,
    with_retries,
)
from tests.unit.rewards.endpoint import Endpoint


@pytest.fixture
def server():
    """answers: (status, body, headers) of the next POSTs, then 200. paths: what was asked, with its time."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_POST(self):
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            server.paths.append(self.path)
            server.times.append(time.monotonic())
            server.bodies.append(content)
            server.connections.add(self.client_address)
            time.sleep(server.delay_s)
            status, body, headers = server.answers.pop(0) if server.answers else (200, b'{"ok": 1}', {})
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request, client_address):
            """A client that gave up is no news."""

        request_queue_size = 1024

    server = Server(("127.0.0.1", 0), Handler)
    server.answers, server.paths, server.times, server.bodies, server.connections = [], [], [], [], set()
    server.delay_s = 0.0
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "asked", "control"),
    [
        ("", "/v1/models", "/health"),
        ("/", "/v1/models", "/health"),
        ("/v1", "/v1/models", "/health"),
        ("/v1/", "/v1/models", "/health"),
        ("/api", "/api/v1/models", "/api/health"),
        ("/api/v1", "/api/v1/models", "/api/health"),
        ("/api/v3", "/api/v3/models", "/api/v3/health"),
        ("/v1beta/openai", "/v1beta/openai/models", "/v1beta/openai/health"),
    ],
)
def test_a_url_may_have_a_path(server, path, asked, control):
    client = HttpClient(server.url + path)
    client.get("/v1/models")
    client.get("/health")
    assert server.paths == [asked, control]


def test_the_server_says_when_and_no_attempt_is_spent(server):
    server.answers = [(429, b"slow down", {"Retry-After": "1"}), (503, b"", {"Retry-After": "1"})]
    client = HttpClient(server.url)

    async def once():
        return await with_retries(lambda: client.call("POST", "/v1/x"), retries=0, backoff_s=0.0)

    assert wait_for(once()) == {"ok": 1}
    first, second, third = server.times
    assert second - first >= 1.0 and third - second >= 1.0


def test_a_date_says_it_too(server):
    when = datetime.now(UTC) + timedelta(seconds=3)
    server.answers = [(429, b"", {"Retry-After": format_datetime(when, usegmt=True)})]
    HttpClient(server.url).post("/v1/x")
    assert 1.5 <= server.times[1] - server.times[0] <= 5.0  # whole seconds, and a quarter of jitter


def test_others_wait_too_while_a_server_is_overloaded(server):
    server.answers = [(429, b"", {"Retry-After": "1"})]
    client = HttpClient(server.url)
    first = submit(client.call("POST", "/v1/first"))
    while not server.times:
        time.sleep(0.01)
    time.sleep(0.2)
    client.post("/v1/second")
    first.result()
    assert min(server.times[1:]) - server.times[0] >= 1.0


def test_patience_ends(server):
    server.answers = [(429, b"", {"Retry-After": "86400"})]
    with pytest.raises(OverloadedError, match="answered 429"):
        HttpClient(server.url).post("/v1/x")
    server.answers = [(429, b"", {})] * 9
    started = time.monotonic()
    with pytest.raises(OverloadedError):
        HttpClient(server.url, patience_s=1.5).post("/v1/x")
    assert time.monotonic() - started < 10.0


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, b"too long", RequestError, "answered 400: too long"),
        (404, b"", RequestError, "answered 404"),
        (401, b"", AccessError, r"401 \(the API key comes from the variable rollout.server.api_key_env"),
        (403, b"", AccessError, "403"),
        (402, b"", AccessError, "quota"),
        (429, b'{"error": {"code": "insufficient_quota"}}', AccessError, "quota of the API key is used up"),
        (500, b"broken", ServerError, "answered 500: broken"),
        (503, b"", ServerError, "answered 503"),
        (408, b"", ServerError, "answered 408"),
        (200, b"<html>", ServerError, "isn't JSON: <html>"),
        (200, b"\xff\xfe{", ServerError, "isn't JSON"),
    ],
)
def test_what_a_status_means(server, status, body, kind, message):
    server.answers = [(status, body, {})]
    with pytest.raises(kind, match=message) as raised:
        HttpClient(server.url).post("/v1/x")
    assert type(raised.value) is kind and len(server.times) == 1


def test_a_server_that_is_not_there_or_hangs(server):
    with pytest.raises(ServerError, match="Cannot connect"):
        HttpClient("http://127.0.0.1:1").post("/v1/x")
    assert not HttpClient("http://127.0.0.1:1").is_healthy()
    server.delay_s = 1.0
    with pytest.raises(ServerError, match=r"timed out after 0\.2 seconds"):
        HttpClient(server.url).post("/v1/x", timeout_s=0.2)


def test_attempts_are_counted_and_ended(server):
    server.answers = [(500, b"", {})] * 3
    client = HttpClient(server.url)
    assert wait_for(with_retries(lambda: client.call("POST", "/v1/x"), retries=3, backoff_s=0.01)) == {"ok": 1}
    server.answers = [(500, b"", {})] * 3
    with pytest.raises(ServerError):
        wait_for(with_retries(lambda: client.call("POST", "/v1/x"), retries=2, backoff_s=0.01))
    assert len(server.times) == 4 + 3
    server.answers = [(500, b"", {})] * 3
    with pytest.raises(ServerError):
        wait_for(with_retries(lambda: client.call("POST", "/v1/x"), 2, 0.01, is_wanted=lambda: False))
    assert len(server.times) == 8


def test_a_lone_surrogate_is_sent_as_an_escape(server):
    HttpClient(server.url).post("/v1/x", {"text": "\ud83d"})
    assert server.bodies == [b'{"text": "\\ud83d"}']


def test_connections_are_used_again(server):
    client = HttpClient(server.url)
    for _ in range(5):
        client.post("/v1/x")
    assert len(server.connections) == 1


def test_many_requests_under_way_take_one_thread(server):
    server.delay_s = 0.5
    client = HttpClient(server.url)
    client.get("/health")
    ours = {thread.name for thread in threading.enumerate() if "process_request" not in thread.name}

    async def many():
        tasks = [asyncio.ensure_future(client.call("POST", "/v1/x")) for _ in range(300)]
        await asyncio.sleep(0.2)
        names = {thread.name for thread in threading.enumerate() if "process_request" not in thread.name}
        return names, await asyncio.gather(*tasks)

    names, answers = wait_for(many())
    assert answers == [{"ok": 1}] * 300
    assert names == ours


def test_messages_hold_neither_keys_nor_passwords(monkeypatch):
    """Servers repeat the key that they refuse, and errors of connections name a proxy with its password."""
    for answer in ((401, {"error": "no such key: the-key"}), (400, {"error": "the-key?"}), (200, b"the-key")):
        endpoint = Endpoint(lambda endpoint, message, answer=answer: answer)
        with pytest.raises((RequestError, ServerError), match=r"\*\*\*") as caught:
            HttpClient(endpoint.url, api_key="the-key").post("/v1/chat/completions", {"messages": [{"content": ""}]})
        endpoint.close()
        assert "the-key" not in str(caught.value)
    monkeypatch.setenv("http_proxy", "http://me:my-password@127.0.0.1:9")
    with pytest.raises(ServerError) as caught:
        HttpClient("http://a-host.invalid").get("/health")
    assert "my-password" not in "".join(traceback.format_exception(caught.value))
