"""A trainer of real parts around a policy and an engine without a model: a run takes milliseconds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sppo_megatron.batch.sequences import Sequences
from sppo_megatron.batch.training_batch import TrainingBatch
from sppo_megatron.config import Config, ProfilerConfig, RolloutConfig, TrainConfig
from sppo_megatron.data.prompt_stream import PromptStream
from sppo_megatron.objective.registry import build_objective
from sppo_megatron.rollout.ahead import GroupsAhead
from sppo_megatron.rollout.collector import Collector
from sppo_megatron.rollout.filter import GroupFilter
from sppo_megatron.rollout.rounds import Rounds
from sppo_megatron.rollout.source import SampledGroups
from sppo_megatron.train.evaluation.evaluator import Evaluator
from sppo_megatron.train.loop import Trainer
from sppo_megatron.train.rollout_writer import RolloutWriter
from sppo_megatron.train.saving import Saving
from sppo_megatron.train.state import TrainerState
from sppo_megatron.train.tracking.profiler import Profiler
from sppo_megatron.types import Group, Prompt, SamplingParams
from tests.unit.rollout.fakes import CountingEngine

PROMPTS = [Prompt(index, np.array([index + 1], np.int32), f"p{index}") for index in range(7)]
WEIGHTS = "weights.txt"


class FakePolicy:
    """Its weights are a text: the hash of all that it was trained on, in order."""

    def __init__(self, config: Config) -> None:
        self.objective = build_objective(asdict(config.objective))
        self.weights = "π_0"

    def compute_log_probs(self, sequences: Sequences) -> tuple[np.ndarray, float]:
        """Of the weights and the tokens."""
        shift = int(hashlib.sha256(self.weights.encode()).hexdigest()[:4], 16) / 2**16
        return (-0.5 - (sequences.token_ids % 7) * np.float32(shift)).astype(np.float32), shift

    def train_step(self, batch: TrainingBatch, units: np.ndarray) -> dict[str, float]:
        told = f"{units.tolist()} {batch.sequences.token_ids.tolist()} {batch.old_log_probs.tolist()}"
        self.weights = hashlib.sha256(f"{self.weights} {told}".encode()).hexdigest()
        return {"loss": int(self.weights[:6], 16) / 2**24, "log_ratio_abs_max": 0.0, "kl_k3": 0.0}

    def export_weights(self) -> Iterator[tuple[str, Any]]:
        return iter(())


class LengthScorer:
    """The reward of a response is its first token."""

    gives_preferences = False
    needs_answer = False
    metrics: dict[str, float] = {}  # noqa: RUF012

    def score(self, groups: list[Group]) -> list[Group]:
        for response in (response for group in groups for response in group.responses):
            object.__setattr__(response, "reward", float(response.token_ids[0]))
        return groups

    def close(self) -> None: ...


class Checkpoints:
    """A folder for each step, with the policy's weights in it."""

    def __init__(self, folder: Path, policy: FakePolicy) -> None:
        self.folder = folder
        self.policy = policy
        self.saved: list[int] = []

    def save(
        self, step: int, write_host_state: Callable[[Path], None], best: int = 0, *, reshardable: bool = True
    ) -> None:
        folder = self.folder / f"step_{step}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / WEIGHTS).write_text(self.policy.weights)
        write_host_state(folder)
        self.saved.append(step)

    def load(self, path: Path) -> None:
        self.policy.weights = (path / WEIGHTS).read_text()

    def poll(self) -> None: ...

    def finalize(self) -> None: ...

    def close(self) -> None: ...


class Lines:
    """A tracker and a display that remember the numbers which don't depend on the clock."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def log(self, line: dict[str, float]) -> None:
        self.lines.append({key: value for key, value in line.items() if "second" not in key})

    def log_rollouts(self, *_: Any) -> None: ...

    def update(self, *_: Any) -> None: ...


class StopAt:
    """A preemption guard that is told to stop when it is asked for the n-th time (from 1); 0 for never."""

    def __init__(self, asked: int = 0) -> None:
        self.asked = asked
        self.count = 0

    def requested(self) -> bool:
        self.count += 1
        return self.count == self.asked


def make_trainer(
    folder: Path,
    *,
    ahead: bool,
    save_interval: int | None = None,
    stop_at: int = 0,
    resume: Path | None = None,
    keeps: GroupFilter | None = None,
    max_rounds: int = 3,
    evaluates: int | None = None,
) -> Trainer:
    """3 iterations of 4 prompts × 2 responses in mini-batches of 4: two steps each.

    evaluates: eval.interval, with three prompts; None for no evaluation.
    """
    config = Config(
        rollout=RolloutConfig(num_samples_per_prompt=2),
        train=TrainConfig(iterations=3, prompts_per_iteration=4, minibatch_size=4),
    )
    config.checkpoint.save_interval = save_interval
    policy, engine = FakePolicy(config), CountingEngine()
    collector = Collector(engine, SamplingParams(4), 2, seed=5)
    sampled = SampledGroups(collector, PromptStream(PROMPTS, 4, seed=1), 4)
    lines = Lines()
    evaluator = None
    if evaluates is not None:
        config.eval.interval = evaluates
        evaluator = Evaluator(
            Collector(engine, SamplingParams(4), 1, 5), LengthScorer(), PROMPTS[:3], folder / "answers"
        )
    return Trainer(
        config=config,
        policy=policy,
        engine=engine,
        rollouts=Rounds(
            GroupsAhead(sampled, 3) if ahead else sampled, LengthScorer(), keeps=keeps, size=4, max_rounds=max_rounds
        ),
        evaluator=evaluator,
        saving=Saving(Checkpoints(folder / "checkpoints", policy), RolloutWriter(folder / "rollouts")),
        tracker=lines,
        display=lines,
        profiler=Profiler(ProfilerConfig(), folder, rank=0),
        state=TrainerState.read(resume) if resume else TrainerState(),
        resumed_from=resume,
        preemption=StopAt(stop_at),
    )
