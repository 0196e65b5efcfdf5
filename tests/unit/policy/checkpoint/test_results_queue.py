"""What writers report comes back, through a process that knows nothing of torch."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
from pathlib import Path

import pytest
import torch

from sppo_megatron.policy.checkpoint import results_queue
from sppo_megatron.policy.checkpoint.results_queue import start_results_queue


@pytest.fixture(scope="module")
def results():
    start_results_queue()
    return results_queue.filesystem_async.get_write_results_queue()


def test_results_of_a_forked_writer_come_back(results) -> None:
    written = {0: [("weight", torch.Size([2, 3]), torch.bfloat16)]}
    writer = multiprocessing.get_context("fork").Process(target=results.put, args=(written,))
    writer.start()
    writer.join()
    assert results.get_nowait() == written
    with pytest.raises(queue.Empty):
        results.get_nowait()


def test_the_manager_stays_light(results) -> None:
    results.put(torch.bfloat16)
    managers = [process for process in multiprocessing.active_children() if process.name.startswith("SyncManager")]
    maps = [Path(f"/proc/{manager.pid}/maps").read_text() for manager in managers]
    assert maps and not any("libtorch" in text for text in maps)
    assert results.get_nowait() is torch.bfloat16


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_the_manager_lives_as_long_as_it_is_needed(results, number: signal.Signals) -> None:
    """torchrun sends SIGTERM to the whole process group of a rank, which then wants to save."""
    managers = [process for process in multiprocessing.active_children() if process.name.startswith("SyncManager")]
    for manager in managers:
        os.kill(manager.pid, number)
    time.sleep(0.2)
    results.put("still there")
    assert results.get_nowait() == "still there"
