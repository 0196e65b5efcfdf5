"""What `sppo serve` starts and what it refuses; the servers themselves are in the integration tests."""

from __future__ import annotations

import argparse

import pytest

from sppo_megatron.cli import serve
from sppo_megatron.errors import ConfigError
from tests.installed import needs_vllm


def options(*arguments: str) -> argparse.Namespace:
    return serve._parse(["--model", "a/model", *arguments])


@pytest.mark.parametrize(
    ("visible", "num_servers", "size", "expected"),
    [
        (["0", "1", "2", "3"], 2, 2, [["0", "1"], ["2", "3"]]),
        (["4", "6", "7"], 3, 1, [["4"], ["6"], ["7"]]),
        (["GPU-a", "GPU-b"], 1, 1, [["GPU-a"]]),
        ([str(index) for index in range(8)], 1, 8, [[str(index) for index in range(8)]]),
        ([], 2, 4, [[], []]),  # CPU
    ],
)
def test_every_server_has_devices_of_its_own(visible, num_servers, size, expected):
    assert serve.split_devices(visible, num_servers, size) == expected


@pytest.mark.parametrize(("count", "num_servers", "size"), [(8, 2, 8), (8, 3, 3), (1, 2, 1)])
def test_too_few_devices_are_refused(count, num_servers, size):
    needed = f"{num_servers} servers of {size} devices need {num_servers * size}, and {count} are visible"
    with pytest.raises(ConfigError, match=f"{needed}: give fewer --num-servers or a smaller --tensor-parallel-size"):
        serve.split_devices([str(index) for index in range(count)], num_servers, size)


def test_visible_devices_are_those_that_the_variable_names(monkeypatch):
    monkeypatch.setattr(serve.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(serve.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    assert serve._visible_devices() == ["5", "3"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert serve._visible_devices() == ["0", "1"]


def test_a_server_sees_its_devices_and_the_key(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another job")
    environment = serve.environment("the key", ["2", "3"])
    assert environment["CUDA_VISIBLE_DEVICES"] == "2,3" and environment["VLLM_API_KEY"] == "the key"
    assert "TORCHELASTIC_RUN_ID" not in environment


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.3", "a-node"])
def test_beyond_loopback_a_key_is_needed(host):
    with pytest.raises(ConfigError, match=r"is not loopback.*set VLLM_API_KEY here and for the trainer"):
        serve.check_access(options("--host", host), None)
    serve.check_access(options("--host", host), "a key")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_on_loopback_a_key_is_made(host):
    serve.check_access(options("--host", host), None)


@pytest.mark.parametrize("argument", ["--api-key", "--api_key=x", "--api-key=x"])
def test_a_key_on_the_command_line_is_refused(argument):
    with pytest.raises(ConfigError, match="everyone on this machine can read --api-key: set VLLM_API_KEY"):
        serve.check_access(options("--", argument), "a key")


def test_no_argument_takes_the_address_or_the_guard_back():
    command = serve.command(options("--", "--host", "0.0.0.0", "--port", "1", "--seed", "3"), 8101)
    assert command.index("--seed") < len(command) - 6
    guard = "sppo_megatron.engines.vllm_servers.guard.Guard"
    assert command[-6:] == ["--host", "127.0.0.1", "--port", "8101", "--middleware", guard]


def test_urls():
    assert serve._url("::1", 8100) == "http://[::1]:8100" and serve._url("a-node", 80) == "http://a-node:80"


@needs_vllm
def test_refused_with_one_message(capsys, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert serve.main(["--model", "a/model", "--host", "0.0.0.0"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("configuration error: --host 0.0.0.0 is not loopback")
