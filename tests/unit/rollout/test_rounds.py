"""Groups that teach: those that one gets who answers and judges one prompt after the other until there are enough."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sppo_megatron.data.adaptive_stream import AdaptiveStream
from sppo_megatron.data.prompt_stream import PromptStream
from sppo_megatron.errors import ConfigError, TrainingError
from sppo_megatron.objective.registry import build_objective
from sppo_megatron.rewards.scorer import Outcome, ScoringError, with_rewards
from sppo_megatron.rollout.adaptive import Lessons
from sppo_megatron.rollout.collector import Collector
from sppo_megatron.rollout.filter import build_filter, has_spread
from sppo_megatron.rollout.rounds import Rounds
from sppo_megatron.rollout.source import SampledGroups
from sppo_megatron.types import Group, Prompt, Response, SamplingParams
from tests.unit.rollout.fakes import CountingEngine

PROMPTS = [Prompt(index, np.array([index + 1], np.int32), f"p{index}") for index in range(23)]
SIZE = 5


class Scorer:
    """Right if the first token is a multiple of three; a response that begins with a token of `fails` has no score."""

    gives_preferences = False
    needs_answer = False

    def __init__(self, fails: range = range(0)) -> None:
        self.fails = fails
        self.metrics: dict[str, float] = {}

    def score(self, groups):
        firsts = [[int(response.token_ids[0]) for response in group.responses] for group in groups]
        self.metrics = {"asked": float(sum(map(len, firsts)))}
        return [
            with_rewards(
                group, [Outcome(None, None, "no score") if t in self.fails else Outcome(float(t % 3 == 0)) for t in ts]
            )
            for group, ts in zip(groups, firsts, strict=True)
        ]

    def close(self) -> None: ...


def make_parts():
    return Collector(CountingEngine(), SamplingParams(4), 2, seed=1), PromptStream(PROMPTS, SIZE, seed=2)


def make_rounds(oversample: float = 1.0, max_rounds: int = 50, scorer: Scorer | None = None, keeps=None):
    collector, stream = make_parts()
    source = SampledGroups(collector, stream, first_count=int(np.ceil(oversample * SIZE)))
    objective = build_objective({"eta": 1.0})
    keeps = keeps or (lambda groups: has_spread(groups, objective, 0.0))
    return Rounds(source, scorer or Scorer(), 0.2, keeps, SIZE, max_rounds, oversample), stream, collector.engine


def told(groups):
    return [(g.prompt.text, [(r.token_ids.tolist(), r.reward) for r in g.responses]) for g in groups]


def one_by_one(iterations: int):
    """The definition: prompts in the stream's order, each answered and judged, until there are enough."""
    collector, stream = make_parts()
    found = []
    for iteration in range(iterations):
        taken: list[Group] = []
        place = 0
        while len(taken) < SIZE:
            [group] = Scorer().score(collector.collect(stream.next(1), iteration, place))
            place += 1
            if len({response.reward for response in group.responses}) > 1:
                taken.append(group)
        found.append((told(taken), place, stream.position))
    return found


@pytest.mark.parametrize("oversample", [1.0, 1.3, 2.0, 6.0])
def test_the_first_that_teach_by_place_whatever_is_asked_at_once(oversample):
    rounds, stream, _ = make_rounds(oversample)
    for iteration, (groups, drawn, position) in enumerate(one_by_one(6)):
        taken, metrics = rounds.next(iteration)
        assert told(taken) == groups and stream.position == position
        assert metrics["groups_left_out"] == drawn - SIZE
        assert metrics["groups_sampled"] == drawn + metrics["groups_given_back"]
        assert metrics["asked"] == 2 * metrics["groups_sampled"]


def test_oversampling_saves_rounds_and_costs_prompts():
    counts = {}
    for oversample in (1.0, 4.0):
        rounds, _, _ = make_rounds(oversample)
        metrics = [rounds.next(iteration)[1] for iteration in range(6)]
        counts[oversample] = [sum(m[name] for m in metrics) for name in ("rollout_rounds", "groups_sampled")]
    assert counts[4.0][0] < counts[1.0][0] and counts[4.0][1] > counts[1.0][1]


def test_rewards_are_also_told_of_what_is_left_out():
    rounds, _, _ = make_rounds()
    groups, metrics = rounds.next(0)
    collector, stream = make_parts()
    everything = Scorer().score(collector.collect(stream.next(int(metrics["groups_sampled"])), 0))
    expected = np.mean([response.reward for group in everything for response in group.responses])
    assert metrics["reward_mean_sampled"] == expected
    assert expected != np.mean([response.reward for group in groups for response in group.responses])


def test_rounds_end_with_what_there_is(caplog):
    rounds, stream, engine = make_rounds(max_rounds=2)
    groups, metrics = rounds.next(0)
    assert 0 < len(groups) < SIZE and metrics["rollout_rounds"] == 2 == engine.calls.count("start")
    assert metrics["groups_sampled"] == stream.position and metrics["groups_given_back"] == 0
    assert f"keeps {len(groups)} of {stream.position} groups after 2 rounds, too few" in caplog.text


def test_nothing_teaches():
    rounds, stream, _ = make_rounds(max_rounds=3, keeps=lambda groups: [False] * len(groups))
    groups, metrics = rounds.next(0)
    assert groups == [] and metrics["groups_left_out"] == 3 * SIZE == stream.position


def test_failures_are_counted_over_the_iteration():
    fails = range(10, 14)
    rounds, _, _ = make_rounds(scorer=Scorer(fails))
    groups, metrics = rounds.next(0)  # a few of many fail
    assert len(groups) == SIZE and metrics["groups_sampled"] > SIZE
    rounds, _, _ = make_rounds(scorer=Scorer(range(10, 40)))
    with pytest.raises(ScoringError, match=r"failed on .* responses"):
        rounds.next(0)


def group_of(*rewards: float, correct: bool | None = None, lengths=(1, 1, 1)) -> Group:
    tokens = [np.arange(n, dtype=np.int32) for n in lengths]
    responses = [Response(t, reward=r, correct=correct) for t, r in zip(tokens, rewards, strict=False)]
    return Group(PROMPTS[0], responses)


@pytest.mark.parametrize(
    ("group", "keys", "min_spread", "kept"),
    [
        (group_of(1.0, 1.0, 1.0), {}, 0.0, False),
        (group_of(1.0, 0.0, 1.0), {}, 0.0, True),
        (group_of(0.5, 0.6, 0.4), {}, 0.3, False),
        (group_of(0.5, 0.9, 0.4), {}, 0.3, True),
        # Kimi's length reward tells right answers apart that have one reward
        (group_of(1.0, 1.0, 1.0, correct=True, lengths=(1, 2, 3)), {"length_reward_weight": 0.5}, 0.0, True),
        # a judge's tie all over, whatever rewards say
        (replace(group_of(1.0, 0.0), preference=np.full((2, 2), 0.5)), {"reward": "win_rate"}, 0.0, False),
        (replace(group_of(1.0, 1.0), preference=np.array([[0.5, 0.9], [0.1, 0.5]])), {"reward": "win_rate"}, 0.0, True),
    ],
)
def test_a_spread_is_of_what_baselines_are_taken_from(group, keys, min_spread, kept):
    assert has_spread([group], build_objective({"eta": 1.0, **keys}), min_spread) == [kept]


def test_a_function_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_filter.py").write_text(
        "def short(group):\n    return all(len(r.token_ids) < 3 for r in group.responses)\n"
        "def broken(group):\n    raise OSError('no disk')\n"
    )
    monkeypatch.chdir(tmp_path)
    groups = [group_of(1.0, 1.0, lengths=(1, 2)), group_of(1.0, 0.0, lengths=(1, 3))]
    objective = build_objective({"eta": 1.0})
    assert build_filter("own_filter:short", objective, 0.0)(groups) == [True, False]
    with pytest.raises(TrainingError, match=r"rollout.filter=own_filter:broken failed: OSError: no disk"):
        build_filter("own_filter:broken", objective, 0.0)(groups)
    with pytest.raises(ConfigError, match=r"rollout.filter='own_filter:nothing': 'own_filter' has no 'nothing'"):
        build_filter("own_filter:nothing", objective, 0.0)
    assert build_filter(None, objective, 0.0) is None


def adaptive_rounds(keeps: bool, oversample: float = 1.0):
    collector, _ = make_parts()
    stream = AdaptiveStream(PROMPTS, SIZE, seed=2, most=3)
    source = SampledGroups(collector, stream, first_count=int(np.ceil(oversample * SIZE)))
    objective = build_objective({"eta": 1.0})

    def teach(groups):
        return has_spread(groups, objective, 0.0)

    lessons = Lessons(stream, teach)
    return Rounds(source, Scorer(), 0.2, teach if keeps else None, SIZE, 50, oversample, lessons), stream


@pytest.mark.parametrize(("keeps", "oversample"), [(False, 1.0), (True, 1.0), (True, 2.3)])
def test_prompts_learn_of_every_group_that_is_taken_or_left_out(keeps, oversample):
    """As one who draws, answers and judges one prompt after the other, and tells the stream of each."""
    rounds, stream = adaptive_rounds(keeps, oversample)
    collector, _ = make_parts()
    plain = AdaptiveStream(PROMPTS, SIZE, seed=2, most=3)
    for iteration in range(12):
        groups, metrics = rounds.next(iteration)
        made: list[tuple[Group, bool]] = []
        while sum(taught or not keeps for _, taught in made) < SIZE:
            [group] = Scorer().score(collector.collect(plain.next(1, iteration), iteration, len(made)))
            made.append((group, len({response.reward for response in group.responses}) > 1))
        for group, taught in made:
            plain.note(group.prompt, taught)
        assert told(groups) == told([group for group, taught in made if taught or not keeps])
        assert stream.state_dict() == plain.state_dict() and metrics["prompts_waiting"] == plain.waiting
    assert plain.waiting


def test_a_resume_remembers_what_prompts_taught():
    whole, _ = adaptive_rounds(keeps=True)
    expected = [told(whole.next(iteration)[0]) for iteration in range(10)]
    stopped, resumed = adaptive_rounds(keeps=True)[0], adaptive_rounds(keeps=True)[0]
    assert [told(stopped.next(iteration)[0]) for iteration in range(4)] == expected[:4]
    resumed.load_state(stopped.state())
    assert [told(resumed.next(iteration)[0]) for iteration in range(4, 10)] == expected[4:]
