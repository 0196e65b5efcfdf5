"""The configured scorer."""

from __future__ import annotations

from dataclasses import replace

from sppo_megatron.config import RewardConfig
from sppo_megatron.rewards.judge import Judge
from sppo_megatron.rewards.mixture import Component, Mixture
from sppo_megatron.rewards.no_reward import NoReward
from sppo_megatron.rewards.pairwise_function import PairwiseFunction
from sppo_megatron.rewards.pairwise_model import PairwiseModel
from sppo_megatron.rewards.reward_model import RewardModel
from sppo_megatron.rewards.scorer import RewardScorer
from sppo_megatron.rewards.share import Scorer
from sppo_megatron.rewards.text import Decode


def build_scorer(config: RewardConfig, decode: Decode | None = None) -> Scorer:
    """decode: for prompts and responses that carry no text. Doesn't communicate with other ranks.

    Raises ValueError or ImportError, with what to change, where a kind's constructor does.
    """
    if config.kind == "judge":
        return Judge(config.judge, decode)
    if config.kind == "reward_model":
        return RewardModel(config, decode)
    if config.kind == "pairwise_model":
        return PairwiseModel(config, decode)
    if config.kind == "pairwise_function":
        return PairwiseFunction(config, decode)
    if config.kind == "none":
        return NoReward()
    if config.kind == "mixture":
        return Mixture([_component(config, entry, decode) for entry in config.mixture])
    return RewardScorer(config, decode)


def _component(config: RewardConfig, entry: dict, decode: Decode | None) -> Component:
    """An entry's kind and function; every other setting is the reward's own."""
    function = entry.get("function")
    scorer = build_scorer(replace(config, kind=entry["kind"], function=function, mixture=[]), decode)
    name = entry["kind"] if function is None else function.rpartition(":")[2]
    return Component(name, float(entry["weight"]), scorer)
