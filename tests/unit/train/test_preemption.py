"""A real signal while something is waited for that won't come: saved at once, and continued the same."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from sppo_megatron.engines.base import Continuation, Pending
from sppo_megatron.engines.vllm_servers.engine import _Work
from sppo_megatron.rollout.collector import Collector
from sppo_megatron.train.evaluation.evaluator import Evaluator
from sppo_megatron.train.loop import Trainer
from sppo_megatron.train.preemption import Preempted, PreemptionGuard
from sppo_megatron.train.state import TrainerState
from sppo_megatron.types import Prompt, SamplingParams
from tests.unit.rollout.fakes import CountingEngine
from tests.unit.train.fakes import LengthScorer, make_trainer

EVALUATED = [Prompt(index, np.array([index + 20], np.int32), f"e{index}") for index in range(2)]


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def with_evaluations(trainer: Trainer, folder: Path) -> Trainer:
    """After every iteration."""
    trainer.config.eval.interval = 1
    collector = Collector(CountingEngine(), SamplingParams(4), 1, seed=9)
    trainer.evaluator = Evaluator(collector, LengthScorer(), EVALUATED, folder)
    return trainer


class HangsAt(LengthScorer):
    """Gets SIGTERM while its n-th call, from 1, hangs."""

    def __init__(self, number: int) -> None:
        self.left = number

    def score(self, groups):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return super().score(groups)


def stop(trainer: Trainer) -> int:
    """The step it was stopped after."""
    trainer.preemption = PreemptionGuard(torch.device("cpu"))
    started = time.monotonic()
    with contextlib.closing(trainer.preemption), pytest.raises(Preempted):
        trainer.run()
    assert time.monotonic() - started < 10
    return trainer.state.step


def make(folder: Path, scorer: LengthScorer | None = None, resume: Path | None = None, ahead: bool = False) -> Trainer:
    trainer = with_evaluations(make_trainer(folder, ahead=ahead, resume=resume), folder / "evaluations")
    if scorer is not None:
        trainer.evaluator.scorer = trainer.rollouts.scorer = scorer
    return trainer


# Scored are: evaluation 0, then iteration, evaluation, three times.
@pytest.mark.parametrize(
    ("call", "step", "due"), [(2, 0, False), (3, 2, True), (4, 2, False), (6, 4, False), (7, 6, True)]
)
def test_while_something_is_scored(tmp_path: Path, call: int, step: int, due: bool) -> None:
    whole = make(tmp_path / "whole")
    whole.run()
    stopped = make(tmp_path / "stopped", HangsAt(call))
    assert stop(stopped) == step
    folder = tmp_path / "stopped" / "checkpoints" / f"step_{step}"
    assert stopped.saving.checkpointer.saved[-1] == step and TrainerState.read(folder).evaluation_due == due
    continued = make(tmp_path / "on", resume=folder)
    continued.run()
    assert continued.policy.weights == whole.policy.weights
    assert [*stopped.tracker.lines, *continued.tracker.lines] == whole.tracker.lines
    assert continued.state.evaluation_last == whole.state.evaluation_last and not continued.state.evaluation_due


class Slow(CountingEngine):
    """Works ahead, like servers, and never gets done with the requests of one iteration."""

    def __init__(self, hangs: int) -> None:
        super().__init__()
        self.hangs = hangs

    def start(self, requests, params) -> Pending:
        pending = super().start(requests, params)

        def work() -> list[list[Continuation]]:
            if requests[0].seed[1] == self.hangs:
                time.sleep(60)
            return pending.result()

        return _Work(work)


@pytest.mark.parametrize("hangs", [1, 2])
def test_rollouts_ahead_are_not_waited_for(tmp_path: Path, hangs: int) -> None:
    """They are made again, from the weights of the time; every prompt comes once."""
    stopped = make(tmp_path / "stopped", ahead=True)
    stopped.engine = stopped.rollouts.source._source._collector.engine = Slow(hangs)
    before = stopped.policy.train_step

    def train_step(*arguments):
        if stopped.state.iteration == hangs - 1:
            threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
            time.sleep(0.4)
        return before(*arguments)

    stopped.policy.train_step = train_step
    step = stop(stopped)
    assert step == 2 * hangs - 1, "before the second step of its iteration"
    folder = tmp_path / "stopped" / "checkpoints" / f"step_{step}"
    continued = make(tmp_path / "on", ahead=True, resume=folder)
    continued.run()
    whole = make(tmp_path / "whole", ahead=True)
    whole.run()
    assert [request.token_ids.tolist() for request in continued.engine.asked[0]] == [
        request.token_ids.tolist() for request in whole.engine.asked[hangs]
    ]
    assert continued.state.step == 6 and len(stopped.tracker.lines) + len(continued.tracker.lines) == len(
        whole.tracker.lines
    )
