"""Which implementations are announced, from what is found."""

from __future__ import annotations

import pytest
import torch

from sppo_doctor import fused_paths
from sppo_megatron.policy.model.layer_spec import TorchNorm, decoder_spec

from megatron.core.optimizer import USING_PYTORCH_OPTIMIZER  # isort: skip
from megatron.core.transformer.transformer_config import TransformerConfig  # isort: skip

SUBJECTS = {
    "layers and norms",
    "attention",
    "mixture of experts",
    "Adam",
    "gradient norm",
    "weight gradients",
    "log-probs",
}


@pytest.fixture
def find(monkeypatch):
    def paths(te: bool = False, apex: bool = False, apex_gradient: bool = False, cuda: bool = True) -> dict:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(fused_paths, "has_transformer_engine", lambda: te)
        monkeypatch.setattr(fused_paths, "has_apex", lambda: apex)
        monkeypatch.setattr(fused_paths, "has_apex_weight_gradient", lambda: apex_gradient)
        found = {finding.subject: finding for finding in fused_paths.check_fused_paths()}
        assert set(found) == SUBJECTS
        return found

    return paths


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
def test_on_cpu_it_is_what_the_policy_uses():
    found = {finding.subject: finding.text for finding in fused_paths.check_fused_paths()}
    spec = decoder_spec(TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1), None, 0)
    assert found["layers and norms"] == "torch" and spec.layer_norm is TorchNorm
    assert found["Adam"] == "torch's AdamW" and USING_PYTORCH_OPTIMIZER


def test_on_cpu_nothing_is_missing(find):
    assert {finding.status for finding in find(cuda=False).values()} == {"ok"}


def test_transformer_engine_serves_everything_but_the_log_probs(find):
    found = find(te=True)
    statuses = {subject for subject, finding in found.items() if finding.status == "ok"}
    assert statuses | {"log-probs"} == SUBJECTS
    assert "Transformer Engine" in found["Adam"].text


def test_apex_serves_adam_norm_and_weight_gradients(find):
    found = find(apex=True, apex_gradient=True)
    assert {subject for subject, finding in found.items() if "apex" in finding.text} == {
        "Adam",
        "gradient norm",
        "weight gradients",
    }
    assert found["attention"].status == "warning"


def test_a_gpu_without_fused_kernels_is_warned_of(find):
    found = find()
    assert {finding.status for finding in found.values()} - {"ok"} == {"warning"}
    assert found["Adam"].fix == "install Transformer Engine"
