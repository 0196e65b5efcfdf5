"""The roll call on real stores, a thread for each rank: who has failed, who is silent, who can't be reached."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from sppo_megatron.cluster import failure_report

HOSTS = ["node-0", "node-0", "node-1", "node-1"]
SERVER = """
import sys, time, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(failure_report, "ANSWER_S", 0.5)
    monkeypatch.setattr(failure_report, "_POLL_S", 0.02)


def call(failures: dict[int, str | None]) -> dict[int, tuple[str, bool]]:
    """What each rank of `failures` concludes; the others of four ranks stay silent."""
    store = dist.HashStore()
    for rank, host in enumerate(HOSTS):
        failure_report._append(store, "hosts", rank, host)
    verdicts = {}

    def answer(rank: int) -> None:
        answers = failure_report._answer(store, rank, len(HOSTS), failures[rank])
        verdicts[rank] = failure_report._verdict(answers, rank, HOSTS[rank])

    threads = [threading.Thread(target=answer, args=(rank,)) for rank in failures]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return verdicts


def test_silent_ranks_are_named_once_on_each_host():
    verdicts = call({0: None, 1: None, 3: None})
    assert {text for text, _ in verdicts.values()} == {"no answer from rank 2 on node-1: dead, stuck, or cut off"}
    assert {rank for rank, (_, speaks) in verdicts.items() if speaks} == {0, 3}


def test_a_failure_is_told_instead_of_silence():
    verdicts = call({0: None, 2: "ValueError: no such file"})
    assert verdicts[0] == ("rank 2 on node-1 failed: ValueError: no such file", True)


def test_all_answer():
    text, _ = call(dict.fromkeys(range(4)))[0]
    assert "every rank answers" in text


def test_a_store_that_is_silent_itself(monkeypatch):
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        store = dist.TCPStore("127.0.0.1", int(server.stdout.readline()), timeout=timedelta(seconds=60))
        server.send_signal(signal.SIGSTOP)
        monkeypatch.setenv("MASTER_ADDR", "node-0")
        monkeypatch.setenv("MASTER_PORT", "29500")
        answers = failure_report._answer(store, 1, 2, None)
        assert failure_report._verdict(answers, 1, "node-1") == (
            "no answer from the job's store at node-0:29500: its node is down, or the network to it",
            True,
        )
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize(
    ("error", "waited"),
    [
        (RuntimeError("[/src/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:1"), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (dist.DistNetworkError("broken pipe"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (KeyError("gloo/"), False),
    ],
)
def test_which_errors_speak_of_other_ranks(error, waited):
    assert failure_report._waited_in_vain(error) == waited
