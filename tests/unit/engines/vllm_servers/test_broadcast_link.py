from __future__ import annotations

import os
import threading

import pytest
import torch

from sppo_megatron.engines.vllm_servers.broadcast_link import BroadcastLink, _errors_raised_by_wait
from sppo_megatron.hf.export import buckets

CPU = torch.device("cpu")


def weights() -> list[tuple[str, torch.Tensor]]:
    torch.manual_seed(0)
    return [
        ("embedding", torch.randn(33, 7)),
        ("norm", torch.randn(7).bfloat16()),
        ("ünïcode", torch.randn(3, 5).half().T),
        ("scalar", torch.tensor(2.5)),
        ("empty", torch.empty(0, 4)),
        ("ids", torch.arange(11)),
    ]


@pytest.mark.parametrize("max_bytes", [1, 100, 1 << 20])
def test_two_receivers_get_every_bit(max_bytes):
    port, store = BroadcastLink.listen("127.0.0.1", 3, 60)
    received: dict[int, list] = {}

    def receive(rank: int) -> None:
        link = BroadcastLink.join("127.0.0.1", port, rank, 3, CPU, 60)
        for _ in range(2):  # a link serves every push
            received[rank] = [(name, tensor.clone()) for name, tensor in link.receive()]

    threads = [threading.Thread(target=receive, args=(rank,)) for rank in (1, 2)]
    for thread in threads:
        thread.start()
    link = BroadcastLink.open(store, "127.0.0.1", 3, CPU, 60)
    for _ in range(2):
        for bucket in buckets(weights(), max_bytes):
            link.send(bucket)
        link.send([])
    for thread in threads:
        thread.join(timeout=60)
    for rank in (1, 2):
        assert [name for name, _ in received[rank]] == [name for name, _ in weights()]
        for (_, found), (_, sent) in zip(received[rank], weights(), strict=True):
            assert found.dtype == sent.dtype and found.shape == sent.shape and torch.equal(found, sent)


def test_a_receiver_that_leaves_is_an_error():
    port, store = BroadcastLink.listen("127.0.0.1", 2, 5)
    thread = threading.Thread(target=lambda: BroadcastLink.join("127.0.0.1", port, 1, 2, CPU, 5))
    thread.start()
    link = BroadcastLink.open(store, "127.0.0.1", 2, CPU, 5)
    thread.join()
    with pytest.raises(RuntimeError):
        for _ in range(200):
            link.send([("a", torch.zeros(1 << 16))])


@pytest.mark.parametrize("before", [None, "0"])
def test_an_nccl_group_raises_from_wait(monkeypatch, before):
    """NCCL reads the variable when a group is made. No GPU here: what it would find there is asked."""
    name = "TORCH_NCCL_BLOCKING_WAIT"
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    with _errors_raised_by_wait():
        assert os.environ[name] == "1"
    assert os.environ.get(name) == before
