"""The engine against servers that speak vLLM's protocol without a model: samples, weights, the last server's death."""

from __future__ import annotations

import http.server
import json
import threading
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open

from sppo_megatron.engines.base import Request, request_seed
from sppo_megatron.engines.fingerprint import WeightCounter
from sppo_megatron.engines.vllm_servers.client import ServerClient
from sppo_megatron.engines.vllm_servers.disk import DiskTransfer
from sppo_megatron.engines.vllm_servers.engine import VllmServersEngine
from sppo_megatron.engines.vllm_servers.transfer import ServerPool
from sppo_megatron.engines.vllm_servers.unfinished import Unfinished
from sppo_megatron.errors import TrainingError
from sppo_megatron.types import SamplingParams

PARAMS = SamplingParams(4, stop_token_ids=frozenset([0]))
REQUESTS = [Request(np.array([10 + place], np.int32), (1, 2, place), 2) for place in range(4)]


class Server(http.server.ThreadingHTTPServer):
    """Sample k of a prompt is [seed % 1000, k + 1, stop token]. Breaks for ever after `lasts` completions."""

    def __init__(self, lasts: int = 10**6) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.lasts = lasts
        self.asked: list[dict] = []
        self.version: int | None = None
        self.loses = ""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "a model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        if self.path == "/v1/completions":
            self.server.asked.append(body)
            if len(self.server.asked) > self.server.lasts:
                self.send_error(500)
                return
            tokens = [[body["seed"] % 1000, k + 1, 0][: body["max_tokens"]] for k in range(body["n"])]
            log_probs = [[-0.5 - k] * len(ids) for k, ids in enumerate(tokens)]
            choices = [
                {"index": k, "token_ids": ids, "logprobs": {"token_logprobs": values}}
                for k, (ids, values) in enumerate(zip(tokens, log_probs, strict=True))
            ]
            self._answer({"choices": choices})
        elif self.path == "/collective_rpc":
            self._answer({"results": [self._load(*body["args"])]})
        else:
            self._answer({})

    def _load(self, folder: str, version: int) -> dict:
        counter = WeightCounter()
        for file in Path(folder).glob("*.safetensors"):
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    if name != self.server.loses:
                        counter.add(name, tensors.get_tensor(name))
        self.server.version = version
        return {"version": version, **asdict(counter.fingerprint())}

    def _answer(self, body: dict) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_) -> None: ...


@pytest.fixture(autouse=True)
def one_rank():
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def engine(folder: Path, *servers: Server, run: str = "a run") -> VllmServersEngine:
    pool = ServerPool([ServerClient(server.url) for server in servers], concurrency=1, retries=0, backoff_s=0.0)
    transfer = DiskTransfer(pool, folder / "weights", run=run)
    return VllmServersEngine(pool, transfer, unfinished=Unfinished(folder / "unfinished.jsonl"))


def weights(scale: float = 1.0):
    return iter([("a", torch.arange(6.0) * scale), ("b", torch.ones(2, 3) * scale)])


def told(sampled) -> list[list[list[int]]]:
    return [[continuation.token_ids.tolist() for continuation in samples] for samples in sampled]


def expected(requests) -> list[list[list[int]]]:
    return [[[request_seed(r.seed) % 1000, k + 1, 0] for k in range(r.num_samples)] for r in requests]


def test_samples_are_of_their_requests(tmp_path):
    asking = engine(tmp_path, Server(), Server())
    sampled = asking.start(REQUESTS, PARAMS).result()
    assert told(sampled) == expected(REQUESTS)
    assert {c.finish_reason for samples in sampled for c in samples} == {"stop"}
    assert {c.weight_version for samples in sampled for c in samples} == {-1}
    assert sampled[0][1].log_probs.tolist() == [-1.5] * 3
    [[short]] = asking.generate([replace(REQUESTS[0], num_samples=1, max_new_tokens=2)], PARAMS)
    assert (len(short.token_ids), short.finish_reason) == (2, "length")
    assert not (tmp_path / "unfinished.jsonl").exists()


@pytest.mark.parametrize("end", ["/", "/v1", "/v1/"])
def test_an_url_may_end_with_the_version(tmp_path, end):
    """Samples are asked for under it, weights beside it."""
    server = Server()
    server.url += end
    asking = engine(tmp_path, server)
    assert asking.load_weights(weights(), 3) == 48 and told(asking.generate(REQUESTS, PARAMS)) == expected(REQUESTS)


def test_weights_arrive_and_name_the_samples(tmp_path):
    servers = [Server(), Server()]
    asking = engine(tmp_path, *servers)
    assert asking.load_weights(weights(), 3) == 48
    assert [server.version for server in servers] == [3, 3] and asking.weight_version == 3
    assert asking.generate(REQUESTS[:1], PARAMS)[0][0].weight_version == 3
    names = [name for name, _ in asking.probe(replace(REQUESTS[0], num_samples=1), PARAMS)]
    assert names == [server.url for server in servers]
    with pytest.raises(ValueError, match="version 2 are older than version 3"):
        asking.load_weights(weights(), 2)
    asking.close()
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_server_that_loses_a_tensor_is_taken_out(tmp_path):
    good, bad = Server(), Server()
    bad.loses = "b"
    asking = engine(tmp_path, good, bad)
    asking.load_weights(weights(), 0)
    assert [name for name, _ in asking.probe(replace(REQUESTS[0], num_samples=1), PARAMS)] == [good.url]
    good.loses = "a"
    with pytest.raises(TrainingError, match=r"no rollout server took the policy's weights.*it has tensors 1 and not 2"):
        asking.load_weights(weights(), 1)
    assert asking.weight_version == 0


def interrupted(folder: Path, scale: float = 1.0) -> None:
    """Two of four requests are answered; then the last server breaks."""
    dying = engine(folder, Server(lasts=2))
    dying.load_weights(weights(scale), 3)
    with pytest.raises(TrainingError, match=r"(?s)no rollout server is left.*2 of 4 groups were finished and are kept"):
        dying.generate(REQUESTS, PARAMS)


def test_the_same_requests_take_what_was_finished(tmp_path):
    interrupted(tmp_path)
    server = Server()
    again = engine(tmp_path, server)
    again.load_weights(weights(), 3)
    assert told(again.generate(REQUESTS, PARAMS)) == expected(REQUESTS)
    assert len(server.asked) == 2
    assert not (tmp_path / "unfinished.jsonl").exists()


@pytest.mark.parametrize("change", ["data", "weights"])
def test_other_requests_are_asked_anew(tmp_path, change):
    """Other prompts in the same places, and other weights of the same version."""
    interrupted(tmp_path, scale=1.0 if change == "data" else 2.0)
    requests = REQUESTS if change == "weights" else [replace(r, token_ids=r.token_ids + 50) for r in REQUESTS]
    server = Server()
    again = engine(tmp_path, server)
    again.load_weights(weights(), 3)
    again.generate(requests, PARAMS)
    assert sorted(body["prompt"] for body in server.asked) == sorted(r.token_ids.tolist() for r in requests)
