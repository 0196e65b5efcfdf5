"""make audit: what it asks for, what it says of the answer, and that a machine without a network isn't held up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[2] / ".ci" / "audit.py"


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    path = tmp_path / "requirements.txt"
    path.write_text(
        "# a comment\nAiohttp==3.9.0\nvllm-cpu==0.32.0 ; python_version < '3.12'\ntorch==2.13.0+cpu\naiohttp==3.9.0\n"
    )
    return path


def audit(url: str, *files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(AUDIT), *map(str, files)]
    return subprocess.run(command, env=os.environ | {"OSV_URL": url}, capture_output=True, text=True, timeout=60)


@pytest.fixture
def osv():
    """answers: what the next requests get. bodies: what they asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            data = json.dumps(server.answers.pop(0)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.bodies, server.answers = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_pins_with_advisories_are_named(requirements: Path, osv) -> None:
    osv.answers = [{"results": [{"vulns": [{"id": "GHSA-1"}, {"id": "GHSA-2"}]}, {}, {}]}, {"results": [{}, {}, {}]}]
    url = f"http://127.0.0.1:{osv.server_port}/v1/querybatch"
    done = audit(url, requirements)
    assert [(query["package"]["name"], query["version"]) for query in osv.bodies[0]["queries"]] == [
        ("aiohttp", "3.9.0"),
        ("torch", "2.13.0"),
        ("vllm", "0.32.0"),
    ]
    assert done.returncode == 1
    assert done.stdout == "aiohttp==3.9.0: https://osv.dev/GHSA-1, https://osv.dev/GHSA-2\n"
    assert done.stderr == "3 pins, 1 with advisories\n"
    assert audit(url, requirements).returncode == 0


def test_without_a_network_it_says_so() -> None:
    done = audit("http://127.0.0.1:9")
    assert done.returncode == 0 and done.stderr.startswith("nothing was looked up: http://127.0.0.1:9 can't be reached")
