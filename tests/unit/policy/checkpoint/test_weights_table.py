"""The table of stored tensors, from a model that is never whole in a GPU's memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import Qwen2Config

from sppo_megatron.hf.hf_config import load_hf_config, read_architecture
from sppo_megatron.hf.mapping import parameter_layouts
from sppo_megatron.policy.checkpoint.weights_table import WeightsTable
from sppo_megatron.policy.initialize import destroy_model_parallel
from tests.tiny_policy import SIZES, VOCAB_SIZE


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    destroy_model_parallel()
    dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="what would be built on a GPU fails on a machine without one")
def test_a_gpu_is_left_alone(one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Qwen2Config(**SIZES).save_pretrained(tmp_path)
    architecture = read_architecture(load_hf_config(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    table = WeightsTable(architecture, VOCAB_SIZE)
    assert set(table.names()) == set(parameter_layouts(architecture, VOCAB_SIZE))
    for name in table.names():
        tensor = table.empty(name, torch.bfloat16)
        held = torch.zeros(table.shape(name), dtype=torch.int32)
        for _piece, part in table.pieces(name, held):
            part += 1
        assert tensor.shape == held.shape and bool((held == 1).all()), name  # the pieces cover it, each place once
