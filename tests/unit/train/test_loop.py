"""The loop around a policy and an engine without a model: a resume from every moment is the run never interrupted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from sppo_megatron.cluster.interrupt import Interrupted
from sppo_megatron.data.prompt_stream import PromptStream
from sppo_megatron.data.rollout_file import read_groups
from sppo_megatron.errors import TrainingError
from sppo_megatron.rewards.scorer import ScoringError
from sppo_megatron.rollout.ahead import GroupsAhead
from sppo_megatron.rollout.collector import Collector
from sppo_megatron.rollout.source import SampledGroups, SourceState
from sppo_megatron.train.loop import Trainer
from sppo_megatron.train.preemption import Preempted
from sppo_megatron.train.state import TrainerState
from sppo_megatron.types import Group, Prompt, SamplingParams
from tests.unit.rollout.fakes import CountingEngine
from tests.unit.train.fakes import make_trainer

PROMPTS = [Prompt(index, np.array([index], np.int32), f"p{index}") for index in range(12)]
PER_ITERATION = 3


def make_source(works_ahead: bool) -> SampledGroups | GroupsAhead:
    collector = Collector(CountingEngine(), SamplingParams(2), num_samples=1, seed=0)
    sampled = SampledGroups(collector, PromptStream(PROMPTS, PER_ITERATION, seed=1), PER_ITERATION)
    return GroupsAhead(sampled, iterations=100) if works_ahead else sampled


def tokens(groups: list[Group]) -> list[tuple[str | None, list[list[int]]]]:
    return [(g.prompt.text, [response.token_ids.tolist() for response in g.responses]) for g in groups]


@pytest.mark.parametrize("works_ahead", [False, True])
def test_the_groups_without_a_score_are_not_lost(tmp_path: Path, works_ahead: bool) -> None:
    source = make_source(works_ahead)
    trainer = make_trainer(tmp_path, ahead=works_ahead)
    trainer.rollouts, trainer.state = source, TrainerState(step=5, iteration=2)
    folder = tmp_path / "checkpoints" / "step_5"
    source.next(1)
    source.begin(2)
    before = source.state()
    groups = source.next(2)
    with pytest.raises(TrainingError, match=r"none of the questions of iteration 2, .*: no answer; .*load=latest"):
        trainer._stop_unscored(before, ScoringError("answered none of the questions", "no answer"))

    state = TrainerState.read(folder)
    assert (state.step, state.iteration, state.has_rollouts) == (5, 2, False)
    assert (SourceState.read(folder).ahead is not None) is works_ahead
    resumed = make_source(works_ahead)
    resumed.load_state(SourceState.read(folder))
    assert tokens(resumed.next(2)) == tokens(groups)
    uninterrupted = make_source(works_ahead)
    assert tokens(resumed.next(3)) == [tokens(uninterrupted.next(i)) for i in (1, 2, 3)][-1]


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def run(trainer: Trainer) -> tuple[str, list[dict[str, float]]]:
    trainer.run()
    return trainer.policy.weights, trainer.tracker.lines


AHEAD = pytest.mark.parametrize("ahead", [False, True], ids=["at once", "ahead"])


def begins_low(groups: list[Group]) -> list[bool]:
    """A filter that leaves out about half of the groups."""
    return [int(group.responses[0].token_ids[0]) < 35 for group in groups]


@AHEAD
@pytest.mark.parametrize("stop_at", range(1, 10))
def test_told_to_stop_at_every_moment(tmp_path: Path, ahead: bool, stop_at: int) -> None:
    """Before an iteration's rollouts, before each of its steps, between iterations, while rollouts are made ahead."""
    expected = run(make_trainer(tmp_path / "whole", ahead=ahead))
    stopped = make_trainer(tmp_path / "stopped", ahead=ahead, stop_at=stop_at)
    with pytest.raises(Preempted):
        stopped.run()
    step = stopped.state.step
    assert stopped.saving.checkpointer.saved[-1] == step == [0, 0, 1, 2, 2, 3, 4, 4, 5][stop_at - 1]
    continued = make_trainer(tmp_path / "on", ahead=ahead, resume=tmp_path / f"stopped/checkpoints/step_{step}")
    weights, lines = run(continued)
    assert weights == expected[0]
    assert [*stopped.tracker.lines, *lines] == expected[1]
    for whole in (tmp_path / "whole" / "rollouts").iterdir():
        others = [tmp_path / part / "rollouts" / whole.name for part in ("stopped", "on")]
        assert {other.read_bytes() for other in others if other.exists()} == {whole.read_bytes()}


@AHEAD
@pytest.mark.parametrize("stop_at", range(1, 10))
def test_told_to_stop_while_groups_are_left_out(tmp_path: Path, ahead: bool, stop_at: int) -> None:
    """Each iteration draws as many prompts as it takes; a resume draws the same ones, and each of them once."""
    expected = run(make_trainer(tmp_path / "whole", ahead=ahead, keeps=begins_low, max_rounds=20))
    assert sum(line["groups_left_out"] for line in expected[1]) > 4
    stopped = make_trainer(tmp_path / "stopped", ahead=ahead, stop_at=stop_at, keeps=begins_low, max_rounds=20)
    with pytest.raises(Preempted):
        stopped.run()
    resume = tmp_path / f"stopped/checkpoints/step_{stopped.state.step}"
    weights, lines = run(make_trainer(tmp_path / "on", ahead=ahead, resume=resume, keeps=begins_low, max_rounds=20))
    assert weights == expected[0] and [*stopped.tracker.lines, *lines] == expected[1]


@AHEAD
def test_iterations_without_a_group_that_teaches(tmp_path: Path, ahead: bool) -> None:
    trainer = make_trainer(tmp_path, ahead=ahead, keeps=lambda groups: [False] * len(groups), max_rounds=2)
    assert run(trainer) == ("π_0", []) and trainer.state.iteration == 3
    assert [read_groups(path) for path in (tmp_path / "rollouts").iterdir()] == [[], [], []]


@AHEAD
@pytest.mark.parametrize("interval", [1, 2, 3, 4])
def test_every_checkpoint_continues_to_the_same_end(tmp_path: Path, ahead: bool, interval: int) -> None:
    trainer = make_trainer(tmp_path, ahead=ahead, save_interval=interval)
    expected = run(trainer)
    assert trainer.saving.checkpointer.saved == [*range(interval, 6, interval), 6]
    for step in trainer.saving.checkpointer.saved:
        resumed = make_trainer(tmp_path / f"from {step}", ahead=ahead, resume=tmp_path / f"checkpoints/step_{step}")
        weights, lines = run(resumed)
        assert weights == expected[0] and lines == expected[1][step:]


@AHEAD
def test_weights_reach_the_engine_before_what_is_sampled_from_them(tmp_path: Path, ahead: bool) -> None:
    trainer = make_trainer(tmp_path, ahead=ahead)
    trainer.run()
    versions = []
    for iteration in range(3):
        groups = read_groups(tmp_path / "rollouts" / f"iteration_{iteration:06d}.parquet")
        versions.append({response.policy_version for group in groups for response in group.responses})
    assert versions == ([{0}, {0}, {2}] if ahead else [{0}, {2}, {4}])
    assert [call for call in trainer.engine.calls if call.startswith("load")] == [f"load {i}" for i in (0, 2, 4, 6)]
    # the device's memory is the trainer's whenever it computes: every sampling ends asleep
    assert trainer.engine.calls.count("sleep") == 3


def answers_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (folder / "answers").glob("*")}


@pytest.mark.parametrize("stop_at", range(1, 10))
def test_told_to_stop_beside_evaluations(tmp_path: Path, stop_at: int) -> None:
    """Before training, after every iteration: each once, and with the opponents that the whole run has."""
    whole = make_trainer(tmp_path / "whole", ahead=False, evaluates=1)
    expected = run(whole)
    told = [line for line in expected[1] if "eval_step" in line]
    assert [(line["eval_iteration"], line["eval_step"]) for line in told] == [(0, 0), (1, 2), (2, 4), (3, 6)]
    assert all({"eval_win_rate_initial", "eval_reward_mean"} <= line.keys() for line in told)
    stopped = make_trainer(tmp_path / "stopped", ahead=False, evaluates=1, stop_at=stop_at)
    with pytest.raises(Preempted):
        stopped.run()
    resume = tmp_path / f"stopped/checkpoints/step_{stopped.state.step}"
    continued = make_trainer(tmp_path / "on", ahead=False, evaluates=1, resume=resume)
    weights, lines = run(continued)
    assert weights == expected[0] and [*stopped.tracker.lines, *lines] == expected[1]
    assert answers_of(tmp_path / "stopped") | answers_of(tmp_path / "on") == answers_of(tmp_path / "whole")
    for name in ("evaluation_before", "evaluation_last", "best_value", "best_step"):
        assert getattr(continued.state, name) == getattr(whole.state, name)


STAGES = {  # its name: who does it, and how many steps were done at each call
    "push": ("engine", "load_weights", [0, 2, 4, 6]),
    "log_probs": ("policy", "compute_log_probs", [0, 2, 4]),
    "mini_batch": ("policy", "train_step", [0, 1, 2, 3, 4, 5]),
    "evaluation": ("evaluator", "evaluate", [0, 2, 4, 6]),
}


@AHEAD
@pytest.mark.parametrize(
    ("stage", "call"), [(name, call) for name, (*_, steps) in STAGES.items() for call in range(len(steps))]
)
def test_interrupted_within_every_stage(tmp_path: Path, ahead: bool, stage: str, call: int) -> None:
    """The checkpoint is of the last step that was finished, wherever in its iteration, and continues the same.

    Before the first step there is none (see Checkpointer): the run begins again.
    """
    whole = make_trainer(tmp_path / "whole", ahead=ahead, evaluates=1)
    expected = run(whole)
    owner, method, steps = STAGES[stage]
    stopped = make_trainer(tmp_path / "stopped", ahead=ahead, evaluates=1)
    part, left = getattr(stopped, owner), iter([False] * call + [True])
    original = getattr(part, method)

    def interrupted(*arguments):
        if next(left):
            raise Interrupted
        return original(*arguments)

    setattr(part, method, interrupted)
    with pytest.raises(Preempted):
        stopped.run()
    step = steps[call]
    assert stopped.saving.checkpointer.saved[-1] == step
    resume = tmp_path / f"stopped/checkpoints/step_{step}" if step else None
    continued = make_trainer(tmp_path / "on", ahead=ahead, evaluates=1, resume=resume)
    weights, lines = run(continued)
    assert weights == expected[0] and [*(stopped.tracker.lines if step else []), *lines] == expected[1]
    assert answers_of(tmp_path / "stopped") | answers_of(tmp_path / "on") == answers_of(tmp_path / "whole")
    assert continued.state.evaluation_last == whole.state.evaluation_last


def test_evaluations_take_nothing_from_the_rollouts(tmp_path: Path) -> None:
    """The same training with and without them; at the end there is one, whatever the interval."""
    without, lines = run(make_trainer(tmp_path / "without", ahead=True))
    trainer = make_trainer(tmp_path / "with", ahead=True, evaluates=0)
    weights, with_evaluations = run(trainer)
    assert weights == without and [line for line in with_evaluations if "step" in line] == lines
    assert [line["eval_iteration"] for line in with_evaluations if "eval_step" in line] == [0, 3]


def test_the_best_policy_is_saved_where_it_was_found(tmp_path: Path) -> None:
    """Also between two saves: the highest reward of an evaluation so far, as checkpoint.keep_best=auto says."""
    trainer = make_trainer(tmp_path, ahead=False, evaluates=1)
    values = iter([0.2, 0.5, 0.9, 0.4])
    evaluate = trainer.evaluator.evaluate
    trainer.evaluator.evaluate = lambda iteration: evaluate(iteration) | {"eval_reward_mean": next(values)}
    trainer.run()
    assert (trainer.state.best_value, trainer.state.best_step) == (0.9, 4)
    assert trainer.saving.checkpointer.saved == [2, 4, 6]


def test_an_evaluation_that_cannot_be_scored_stops_behind_a_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ahead=False, evaluates=1)
    evaluate = trainer.evaluator.evaluate

    def fail(iteration: int) -> dict[str, float]:
        if iteration == 2:
            raise ScoringError("answered none of the questions", "no answer")
        return evaluate(iteration)

    trainer.evaluator.evaluate = fail
    with pytest.raises(TrainingError, match=r"evaluation after iteration 2: no answer; .*trains on without"):
        trainer.run()
    assert trainer.saving.checkpointer.saved[-1] == 4
    resumed = make_trainer(tmp_path / "on", ahead=False, evaluates=1, resume=tmp_path / "checkpoints/step_4")
    weights, lines = run(resumed)
    assert weights == run(make_trainer(tmp_path / "whole", ahead=False, evaluates=1))[0]
    assert [line["eval_iteration"] for line in lines if "eval_step" in line] == [3]
