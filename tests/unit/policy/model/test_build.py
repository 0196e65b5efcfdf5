"""Model chunks if Transformer Engine fuses weight gradients and apex is missing."""

from __future__ import annotations

import copy

import pytest

from sppo_megatron.config import Config
from sppo_megatron.parallel.fused_kernels import has_apex_weight_gradient
from sppo_megatron.policy.model.build import build_chunks, unwrap
from sppo_megatron.policy.model.mapped import MappedModel
from tests.tiny_policy import tiny_policy

from megatron.core.tensor_parallel import ColumnParallelLinear  # isort: skip


@pytest.mark.skipif(has_apex_weight_gradient(), reason="about machines without apex")
def test_the_output_layer_is_built_without_apex():
    run = Config()
    run.precision.dtype = "fp32"
    with tiny_policy(run, num_hidden_layers=1) as policy:
        config, model = copy.copy(policy.config), policy.model
        assert isinstance(model, MappedModel)
        config.gradient_accumulation_fusion = True
        (chunk,) = build_chunks(model.architecture, config, model.padded_vocab_size(policy.groups), policy.groups)
        # whoever calls it, unlike our head, gets its gradient by autograd
        assert not unwrap(chunk).output_layer.gradient_accumulation_fusion
        with pytest.raises(RuntimeError, match="fused_weight_gradient_mlp_cuda"):
            ColumnParallelLinear(8, 8, config=config, init_method=lambda w: None, tp_group=policy.groups.tp)
