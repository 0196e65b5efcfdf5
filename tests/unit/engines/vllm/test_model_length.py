"""vLLM's own limit of a sequence, and what the prompts need."""

from __future__ import annotations

from pathlib import Path

import pytest

from sppo_megatron.config import Config
from sppo_megatron.engines.kind import Surroundings
from sppo_megatron.engines.vllm.engine import build_engine
from sppo_megatron.errors import ConfigError


def test_a_limit_that_cuts_responses_is_refused_before_vllm_starts():
    config = Config()
    config.rollout.max_response_length, config.rollout.vllm.max_model_len = 20, 29
    around = Surroundings(config, Path("nowhere"), longest_prompt=10, generator=lambda: pytest.fail("not built"))
    with pytest.raises(ConfigError, match=r"max_model_len=29 is less than the 30 tokens of the longest prompt"):
        build_engine(around)
