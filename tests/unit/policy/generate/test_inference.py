"""What is switched off for passes outside of training, and on again afterwards."""

from __future__ import annotations

from torch import nn

from sppo_megatron.config import Config, PrecisionConfig
from sppo_megatron.policy.generate.inference import inference_layout
from sppo_megatron.policy.model.build import unwrap
from tests.tiny_policy import tiny_policy


class OtherAttention(nn.Module):
    """Has its group where Transformer Engine's `DotProductAttention` has it."""

    def __init__(self, cp_group: object):
        super().__init__()
        self.cp_group = cp_group


def test_no_attention_of_any_make_waits_for_other_context_parallel_ranks() -> None:
    with tiny_policy(Config(precision=PrecisionConfig(dtype="fp32")), num_hidden_layers=2) as policy:
        model = unwrap(policy.chunks[0])
        ours, other = (layer.self_attention for layer in model.decoder.layers)
        ours.core_attention.cp_group = policy.groups.cp
        other.core_attention = OtherAttention(policy.groups.cp)
        with inference_layout([model], policy.config):
            assert ours.core_attention.cp_group is other.core_attention.cp_group is None
            assert not model.training
        assert ours.core_attention.cp_group is other.core_attention.cp_group is policy.groups.cp
        assert model.training
