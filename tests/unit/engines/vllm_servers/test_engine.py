from __future__ import annotations

import http.server
import threading
from pathlib import Path

import pytest
import torch.distributed as dist

from sppo_megatron.engines.vllm_servers.client import ServerClient
from sppo_megatron.engines.vllm_servers.disk import DiskTransfer
from sppo_megatron.engines.vllm_servers.engine import VllmServersEngine
from sppo_megatron.engines.vllm_servers.transfer import ServerPool
from sppo_megatron.errors import ConfigError
from sppo_megatron.types import SamplingParams


class WithoutControlEndpoints(http.server.BaseHTTPRequestHandler):
    """Like vLLM's server if it was started by hand: healthy, and 404 for what isn't public."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), WithoutControlEndpoints)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def engine(*urls: str) -> VllmServersEngine:
    pool = ServerPool([ServerClient(url) for url in urls], concurrency=2, retries=0, backoff_s=0.0)
    return VllmServersEngine(pool, DiskTransfer(pool, Path("nowhere"), run="a run"))


def test_a_server_that_takes_no_weights_is_refused_at_the_start(url, one_rank):
    with pytest.raises(ConfigError, match=f"{url} can't take the trainer's weights.*404.*sppo serve"):
        engine(url).check_servers(SamplingParams(4))


def test_no_server_at_all(one_rank):
    with pytest.raises(ConfigError, match=r"no rollout server answers at http://127.0.0.1:9, http://127.0.0.1:19"):
        engine("http://127.0.0.1:9", "http://127.0.0.1:19").check_servers(SamplingParams(4))
