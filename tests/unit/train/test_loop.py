"""Where nothing was scored, the checkpoint holds the iteration as one whose groups are still to be scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sppo_megatron.config import Config
from sppo_megatron.data.prompt_stream import PromptStream
from sppo_megatron.errors import TrainingError
from sppo_megatron.rewards.scorer import ScoringError
from sppo_megatron.rollout.ahead import GroupsAhead
from sppo_megatron.rollout.collector import Collector
from sppo_megatron.rollout.source import SampledGroups, SourceState
from sppo_megatron.train.loop import Trainer
from sppo_megatron.train.state import TrainerState
from sppo_megatron.types import Group, Prompt, SamplingParams
from tests.unit.rollout.fakes import CountingEngine

PROMPTS = [Prompt(index, np.array([index], np.int32), f"p{index}") for index in range(12)]
PER_ITERATION = 3


class Checkpoints:
    """Writes what the trainer gives it for the host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, write_host_state, best: int = 0) -> None:
        write_host_state(self.folder)

    def finalize(self) -> None: ...


def make_source(works_ahead: bool) -> SampledGroups | GroupsAhead:
    collector = Collector(CountingEngine(), SamplingParams(2), num_samples=1, seed=0)
    sampled = SampledGroups(collector, PromptStream(PROMPTS, PER_ITERATION, seed=1))
    return GroupsAhead(sampled, iterations=100) if works_ahead else sampled


def make_trainer(folder: Path, rollouts: SampledGroups | GroupsAhead) -> Trainer:
    parts = dict.fromkeys(("policy", "engine", "scorer", "evaluator", "tracker", "display", "is_main"))
    return Trainer(
        **parts,
        config=Config(),
        rollouts=rollouts,
        checkpointer=Checkpoints(folder),
        rollout_folder=folder,
        state=TrainerState(step=5, iteration=2),
    )


def tokens(groups: list[Group]) -> list[tuple[str | None, list[list[int]]]]:
    return [(g.prompt.text, [response.token_ids.tolist() for response in g.responses]) for g in groups]


@pytest.mark.parametrize("works_ahead", [False, True])
def test_the_groups_without_a_score_are_not_lost(tmp_path: Path, works_ahead: bool) -> None:
    source = make_source(works_ahead)
    trainer = make_trainer(tmp_path, source)
    source.next(1)
    before = source.state()
    groups = source.next(2)
    with pytest.raises(TrainingError, match=r"none of the questions of iteration 2, .*: no answer; .*load=latest"):
        trainer._stop_unscored(before, ScoringError("answered none of the questions", "no answer"))

    state = TrainerState.read(tmp_path)
    assert (state.step, state.iteration, state.has_rollouts) == (5, 2, False)
    assert (SourceState.read(tmp_path).ahead is not None) is works_ahead
    resumed = make_source(works_ahead)
    resumed.load_state(SourceState.read(tmp_path))
    assert tokens(resumed.next(2)) == tokens(groups)
    uninterrupted = make_source(works_ahead)
    assert tokens(resumed.next(3)) == [tokens(uninterrupted.next(i)) for i in (1, 2, 3)][-1]
