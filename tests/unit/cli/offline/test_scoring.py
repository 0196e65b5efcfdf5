"""Scoring without a process group: what is refused, what decides the content, a scorer that fails on everything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sppo_megatron.cli.offline.batches import Shard
from sppo_megatron.cli.offline.scoring import score_file, scoring_settings
from sppo_megatron.cli.offline.write import Output
from sppo_megatron.config import Config
from sppo_megatron.data.rollout_file import read_groups, write_groups
from sppo_megatron.errors import ConfigError, TrainingError
from sppo_megatron.types import Group, Prompt, Response

IDS = np.array([1, 2], np.int32)
WHOLE = Shard()


NEVER = """
def never(prompt, response, answer):
    raise RuntimeError("no")
"""


def configuration(kind: str = "exact_match") -> Config:
    config = Config()
    config.model.hf_path = ""
    config.reward.kind = kind
    return config


@pytest.fixture
def source(tmp_path):
    groups = [Group(Prompt(i, IDS, "2+2", "4"), [Response(IDS, str(k)) for k in range(3, 6)]) for i in range(5)]
    groups[1] = replace(groups[1], preference=np.full((3, 3), 0.5))
    write_groups(tmp_path / "in.jsonl", groups)
    return tmp_path / "in.jsonl"


def score(config, source, shard=WHOLE):
    output = Output(source.with_name("out.jsonl"), progress=False)
    score_file(config, source, output, 2, shard)
    return read_groups(output.path)


def test_rewards_of_the_middle_shard(source):
    groups = score(configuration(), source, Shard(1, 3))
    assert [group.prompt.index for group in groups] == [2, 3]
    assert [[response.reward for response in group.responses] for group in groups] == [[0.0, 1.0, 0.0]] * 2


def test_a_preference_of_before_is_gone(source):
    assert [group.preference for group in score(configuration(), source)] == [None] * 5


def test_texts_and_answers_that_are_missing(source, tmp_path):
    groups = read_groups(source)
    groups[3].responses[1] = replace(groups[3].responses[1], text=None)
    write_groups(source, groups)
    with pytest.raises(ConfigError, match=r"group 4 has token ids without texts: give model.hf_path=FOLDER"):
        score(configuration(), source)
    groups = [Group(Prompt(0, IDS, "2+2"), [Response(IDS, "4")])]
    write_groups(source, groups)
    with pytest.raises(ConfigError, match="group 1 has no answer"):
        score(configuration(), source)
    source.write_text("")
    with pytest.raises(ConfigError, match="has no groups"):
        score(configuration(), source)
    assert list(tmp_path.iterdir()) == [source]


def test_a_scorer_that_fails_on_everything_stops_it(source, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(source.parent))
    monkeypatch.syspath_prepend(source.parent)
    (source.parent / "reward_never.py").write_text(NEVER)  # small: each worker imports it anew
    config = configuration("function")
    config.reward.function = "reward_never:never"
    with pytest.raises(TrainingError, match=r"scored none of the responses of a batch .*RuntimeError: no"):
        score(config, source)


def test_what_decides_the_scores(source):
    settings = scoring_settings(configuration(), source)
    elsewhere = configuration()
    elsewhere.reward.judge.urls = ["http://elsewhere:8000"]
    elsewhere.reward.judge.retries = 9
    assert scoring_settings(elsewhere, source) == settings
    other = configuration()
    other.reward.judge.model = "another"
    assert scoring_settings(other, source) != settings
    source.write_text(source.read_text() + "\n")
    assert scoring_settings(configuration(), source) != settings
