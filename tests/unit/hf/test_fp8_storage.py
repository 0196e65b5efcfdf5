"""Weights that are stored in FP8: loading keeps the unrounded values for the optimizer, export gives plain numbers.

The stand-in has of Transformer Engine's QuantizedTensor what conversion touches: it is a subclass of Tensor that rounds
what is copied into it, and carries an unrounded copy.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from sppo_megatron.hf.export import ExportGroups, ExportPlan, stream_hf_tensors
from sppo_megatron.hf.hf_checkpoint import RandomTensors
from sppo_megatron.hf.load import load_parameters
from sppo_megatron.hf.tensor_layouts import Replicated

SHAPE = (4, 8)
LAYOUTS = {"decoder.layers.0.mlp.linear_fc2.weight": Replicated("w", SHAPE)}


class InFp8(torch.Tensor):
    """bf16 by name; what is stored has e4m3's values and a scale of 2, as bare numbers it is wrong."""

    def copy_(self, source: torch.Tensor) -> InFp8:
        torch.Tensor.copy_(self, 2 * source.to(torch.float8_e4m3fn).to(torch.bfloat16))
        return self

    def dequantize(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor) / 2

    def get_high_precision_init_val(self) -> torch.Tensor:
        return self.unrounded


@pytest.fixture
def parameter() -> torch.nn.Parameter:
    stored = torch.zeros(SHAPE, dtype=torch.bfloat16).as_subclass(InFp8)
    parameter = torch.nn.Parameter(stored)
    parameter.unrounded = torch.full(SHAPE, 9.0, dtype=torch.bfloat16)  # what the fresh model began with
    return parameter


@pytest.fixture
def group():
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_there_and_back(parameter, group):
    tensors = RandomTensors({"w": SHAPE}, initializer_range=1.0, seed=0)
    (name,) = LAYOUTS
    load_parameters([(name, parameter)], LAYOUTS, tensors, tp_rank=0, tp_size=1)
    stored = tensors.source("w")[:]
    exact, rounded = stored.to(torch.bfloat16), stored.to(torch.float8_e4m3fn).to(torch.bfloat16)
    assert torch.equal(parameter.unrounded, exact) and not torch.equal(exact, rounded)
    plan = ExportPlan({name: parameter}, LAYOUTS, ExportGroups(group, group))
    ((hf_name, found),) = stream_hf_tensors({name: parameter}, plan, torch.device("cpu"))
    assert hf_name == "w" and type(found) is torch.Tensor
    assert torch.equal(found, rounded)
