"""What generating and scoring refuse, and what of a training run they don't ask for."""

from __future__ import annotations

import pytest

from sppo_megatron.config import Config
from sppo_megatron.errors import ConfigError
from sppo_megatron.rollout.registry import check_generating, check_run, check_scoring


@pytest.fixture
def config(tmp_path):
    config = Config()
    config.model.hf_path = "org/model"
    config.data.train_path = str(tmp_path)
    return config


def test_generating_reads_no_objective_and_no_reward(config):
    config.objective.eta = config.objective.tau = None
    config.reward.kind = "judge"
    check_generating(config, 1)
    with pytest.raises(ConfigError):
        check_run(config, 1)


@pytest.mark.parametrize(
    ("change", "world_size", "said"),
    [
        ({"rollout__engine": "replay"}, 1, "rollout.engine=replay makes no responses"),
        ({"rollout__engine": "vllm_server"}, 1, "needs rollout.server.urls"),
        ({"rollout__temperature": 0.0}, 1, "rollout.temperature=0.0 must be above 0"),
        ({"data__train_path": None}, 1, "needs data.train_path: a file or folder of prompts, or a hub id"),
        ({"data__train_path": "nowhere.jsonl"}, 1, "data.train_path=nowhere.jsonl does not exist"),
        ({"parallelism__tensor_model_parallel_size": 2}, 3, "3 processes can't be split"),
        ({"rollout__num_samples_per_prompt": 0}, 1, "rollout.num_samples_per_prompt=0 must be at least 1"),
    ],
)
def test_what_generating_refuses(config, change, world_size, said):
    for key, value in change.items():
        group, name = key.split("__")
        setattr(getattr(config, group), name, value)
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
        check_generating(config, world_size)


def test_scoring_reads_the_reward_alone(config):
    config.data.train_path, config.objective.reward = "nowhere.jsonl", "reward"
    config.reward.kind, config.reward.judge.urls = "judge", ["http://127.0.0.1:8200"]
    check_scoring(config)


@pytest.mark.parametrize(
    ("kind", "said"), [("judge", "needs reward.judge.urls"), ("reward_model", "reward.model.path")]
)
def test_what_scoring_refuses(config, kind, said):
    config.reward.kind = kind
    with pytest.raises(ConfigError, match=said):
        check_scoring(config)
