"""On a GPU a question about SIGTERM is answered at the next one, and the host doesn't wait in between."""

from __future__ import annotations

import os
import signal

import pytest
import torch
import torch.distributed as dist

from sppo_megatron.cluster.interrupt import RepeatedQuestion, StopSignals

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_an_answer_comes_with_the_next_question() -> None:
    dist.init_process_group("nccl", rank=0, world_size=1, store=dist.HashStore())
    signals = StopSignals()
    try:
        question = RepeatedQuestion(torch.device("cuda", 0), None)
        assert [question.ask() for _ in range(3)] == [False] * 3
        os.kill(os.getpid(), signal.SIGTERM)
        assert [question.ask() for _ in range(3)] == [False, True, True]
    finally:
        signals.close()
        dist.destroy_process_group()
