"""The objective needs torch alone."""

from __future__ import annotations

import subprocess
import sys

import sppo_megatron
from sppo_megatron import objective

CODE = """
import sys
for name in ("megatron", "transformers", "hydra", "omegaconf", "transformer_engine", "vllm"):
    sys.modules[name] = None  # importing it raises
from sppo_megatron import compute_sppo_loss
import sppo_megatron.objective
import torch
assert not torch.distributed.is_available() or not torch.distributed.is_initialized()
"""


def test_import_without_the_other_dependencies():
    subprocess.run([sys.executable, "-c", CODE], check=True)


def test_contract_names():
    names = """sequence_log_ratio win_rates preference_from_scores group_baseline regression_target sppo_loss
        pairwise_loss length_reward rollout_importance_weights"""
    assert set(names.split()) <= set(objective.__all__)
    assert all(hasattr(objective, name) for name in objective.__all__)
    assert sppo_megatron.__version__ == "0.1.0"
