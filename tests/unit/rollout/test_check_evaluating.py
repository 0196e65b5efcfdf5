"""What `sppo evaluate` refuses before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from sppo_megatron.config.compose import compose_config
from sppo_megatron.errors import ConfigError
from sppo_megatron.rollout.registry import check_evaluating

HERE = str(Path(__file__))


def check(*overrides: str, has_opponents: bool = False) -> None:
    check_evaluating(compose_config(["model.hf_path=org/model", *overrides])[0], 1, has_opponents=has_opponents)


def test_what_is_enough():
    check(f"data.eval_path={HERE}", "reward=numeric", "eval.num_samples_per_prompt=4", "eval.temperature=0.6")
    check(f"data.eval_path={HERE}", "reward=judge", "reward.judge.urls=[http://host:1]", has_opponents=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward=numeric"], "nothing to evaluate on: give data.eval_path or data.eval_sources"),
        ([f"data.eval_path={HERE}", "eval.num_samples_per_prompt=4"], "4 greedy answers are all the same one"),
        ([f"data.eval_path={HERE}", "rollout=replay", f"rollout.path={HERE}"], "engine=replay makes no responses"),
        (
            [f"data.eval_path={HERE}", "reward=judge", "reward.judge.urls=[http://host:1]"],
            r"judge compares answers: give others to the same prompts \(--against FILE\)",
        ),
        ([f"data.eval_path={HERE}", "reward.kind=none"], "reward.kind=none scores nothing"),
        ([f"data.eval_path={HERE}", "reward.kind=nonsense"], "reward.kind='nonsense' is not known"),
    ],
)
def test_what_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check(*overrides)
