"""Where nothing was scored, the checkpoint holds the iteration as one whose groups are still to be scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sppo_megatron.config import Config
from sppo_megatron.data.prompt_stream import PromptStream
from sppo_megatron.errors import TrainingError
from sppo_megatron.rollout.ahead import RolloutsAhead
from sppo_megatron.train.loop import Trainer
from sppo_megatron.train.state import TrainerState
from sppo_megatron.types import Group, Prompt, Response

PROMPTS = [Prompt(index, np.array([index], np.int32), f"p{index}") for index in range(12)]
PER_ITERATION = 3


class Engine:
    """Works ahead as rollout.engine=vllm_server does, one response to each prompt."""

    def start(self, prompts: list[Prompt], iteration: int) -> None:
        self.groups = generate(prompts)

    def finish(self) -> list[Group]:
        return self.groups


class Checkpoints:
    """Writes what the trainer gives it for the host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, write_host_state, best: int = 0) -> None:
        write_host_state(self.folder)

    def finalize(self) -> None: ...


def generate(prompts: list[Prompt]) -> list[Group]:
    return [Group(prompt, [Response(np.array([7], np.int32), error="no answer")]) for prompt in prompts]


def make_trainer(folder: Path, ahead: RolloutsAhead | None) -> Trainer:
    parts = dict.fromkeys(("policy", "rollout", "scorer", "weight_sync", "evaluator", "tracker", "display", "is_main"))
    return Trainer(
        **parts,
        config=Config(),
        prompts=PromptStream(PROMPTS, PER_ITERATION, seed=1),
        checkpointer=Checkpoints(folder),
        rollout_folder=folder,
        state=TrainerState(step=5, iteration=2),
        ahead=ahead,
    )


@pytest.mark.parametrize("works_ahead", [False, True])
def test_the_groups_without_a_score_are_not_lost(tmp_path: Path, works_ahead: bool) -> None:
    trainer = make_trainer(tmp_path, RolloutsAhead(Engine()) if works_ahead else None)
    stream = PromptStream(PROMPTS, PER_ITERATION, seed=1)
    prompts, after = stream.next(), stream.next()
    groups = generate(trainer.prompts.next())
    if works_ahead:
        trainer.ahead.start(trainer.prompts.next(), 3)
    with pytest.raises(TrainingError, match=r"none of the questions of iteration 2, .*: no answer; .*load=latest"):
        trainer._stop_unanswered(groups)

    state = TrainerState.read(tmp_path)
    assert (state.step, state.iteration, state.has_rollouts) == (5, 2, False)
    stream.load_state_dict({"position": state.prompt_position})
    assert state.has_ahead is works_ahead
    if works_ahead:
        assert [group.prompt.text for group in state.read_ahead(tmp_path)] == [prompt.text for prompt in prompts]
        assert stream.next() == after
    else:
        assert stream.next() == prompts
