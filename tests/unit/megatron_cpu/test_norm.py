"""The plain torch norms against those of transformers, with gradients."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from sppo_megatron.megatron_cpu.norm import TorchNorm

SIZE = 24


def config(
    normalization: str, zero_centered: bool, dtype: torch.dtype = torch.float32, sequence_parallel: bool = False
):
    return SimpleNamespace(
        normalization=normalization,
        layernorm_zero_centered_gamma=zero_centered,
        params_dtype=dtype,
        sequence_parallel=sequence_parallel,
    )


@pytest.mark.parametrize(
    ("normalization", "zero_centered", "theirs"),
    [
        ("RMSNorm", False, Qwen2RMSNorm(SIZE, eps=1e-5)),
        ("RMSNorm", True, GemmaRMSNorm(SIZE, eps=1e-5)),
        ("LayerNorm", True, NemotronLayerNorm1P(SIZE, eps=1e-5)),
        ("LayerNorm", False, torch.nn.LayerNorm(SIZE, eps=1e-5)),
    ],
)
def test_equals_the_definition_of_transformers(normalization, zero_centered, theirs) -> None:
    ours = TorchNorm(config(normalization, zero_centered), SIZE, eps=1e-5)
    x = torch.randn(5, 2, SIZE) * 3 + 1
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    ours.load_state_dict(theirs.state_dict())
    for norm in (ours, theirs):
        norm(x).pow(3).sum().backward()
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], rtol=1e-4, atol=1e-4), name


def test_a_zero_centered_scale_is_not_rounded_to_bf16() -> None:
    """1 + 2⁻⁸ is no bf16 number."""
    norm, theirs = TorchNorm(config("RMSNorm", True, torch.bfloat16), SIZE), GemmaRMSNorm(SIZE).bfloat16()
    x = torch.randn(64, SIZE, dtype=torch.bfloat16)
    with torch.no_grad():
        norm.weight.fill_(2**-8)
        theirs.weight.fill_(2**-8)
    norm.eps = theirs.eps
    assert torch.equal(norm(x), theirs(x))


def test_parameters_are_marked_for_sequence_parallel_gradients() -> None:
    norm = TorchNorm(config("LayerNorm", False, sequence_parallel=True), SIZE)
    assert [parameter.sequence_parallel for parameter in norm.parameters()] == [True, True]


def test_another_normalization_is_refused() -> None:
    with pytest.raises(ValueError, match="only RMSNorm and LayerNorm"):
        TorchNorm(config("L2Norm", False), SIZE)
