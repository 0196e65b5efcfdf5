"""The shipped presets as Megatron-Core's own configurations, which check themselves."""

from __future__ import annotations

import pytest
import torch

from sppo_megatron.config import Config, PrecisionConfig
from sppo_megatron.config.compose import compose_config, config_folder
from sppo_megatron.config.precision import check_precision
from sppo_megatron.policy.model import precision

from megatron.core.distributed import DistributedDataParallelConfig  # isort: skip
from megatron.core.optimizer import OptimizerConfig  # isort: skip
from megatron.core.transformer.transformer_config import TransformerConfig  # isort: skip

PRESETS = sorted(path.stem for path in (config_folder() / "precision").glob("*.yaml"))
FP8_PRESETS = ["fp8_blockwise", "fp8_delayed", "fp8_tensorwise", "mxfp8"]


def preset(name: str, **overrides: object) -> Config:
    config, _ = compose_config(
        ["model.hf_path=somewhere", f"precision={name}", *(f"precision.{k}={v}" for k, v in overrides.items())]
    )
    return config


def megatron_config(fields: dict) -> TransformerConfig:
    return TransformerConfig(num_layers=4, hidden_size=64, num_attention_heads=4, **fields)


def test_presets_are_these():
    assert set(PRESETS) == {"fp32", "bf16", "fp16", *FP8_PRESETS}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_passes_our_checks(name):
    assert list(check_precision(preset(name))) == []


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.half)])
def test_high_precision(name, dtype):
    p = preset(name).precision
    config = megatron_config(precision.transformer_fields(p))
    optimizer = OptimizerConfig(**precision.optimizer_fields(p))
    for built in (config, optimizer):
        assert built.params_dtype is dtype
        assert (built.bf16, built.fp16) == (dtype is torch.bfloat16, dtype is torch.half)
    assert config.fp8 is None and optimizer.fp8_recipe is None
    assert optimizer.loss_scale is None  # dynamic if fp16


@pytest.mark.parametrize("name", FP8_PRESETS)
def test_fp8_is_refused_where_it_would_be_ignored(name):
    if torch.cuda.is_available():
        pytest.skip("about machines without CUDA")
    with pytest.raises(ValueError, match="needs a CUDA device and Transformer Engine"):
        precision.transformer_fields(preset(name).precision)


@pytest.mark.parametrize("name", FP8_PRESETS)
def test_fp8_reaches_megatron(name, monkeypatch):
    """As on a machine that has it. Megatron's configuration raises on what it finds contradictory."""
    monkeypatch.setattr(precision, "check_fp8", lambda precision: None)
    p = preset(name).precision
    config = megatron_config(precision.transformer_fields(p))
    assert (config.fp8, config.fp8_recipe) == (p.fp8, p.fp8_recipe)
    assert config.params_dtype is torch.bfloat16 and config.bf16
    assert config.first_last_layers_bf16 == (name == "fp8_tensorwise")
    assert (config.fp8_amax_history_len, config.fp8_amax_compute_algo) == (
        (1024, "max") if name == "fp8_delayed" else (1, "most_recent")
    )
    # head, attention scores and softmax are computed in high precision
    assert not (config.fp8_output_proj or config.fp8_dot_product_attention or config.fp8_multi_head_attention)


def test_fp8_weights_are_told_to_all_three(monkeypatch):
    monkeypatch.setattr(precision, "check_fp8", lambda precision: None)
    p = preset("fp8_blockwise", fp8_param="true").precision
    assert megatron_config(precision.transformer_fields(p)).fp8_param
    assert OptimizerConfig(**precision.optimizer_fields(p)).fp8_recipe == "blockwise"
    ddp = DistributedDataParallelConfig(use_distributed_optimizer=True, **precision.data_parallel_fields(p))
    assert ddp.fp8_param_gather and ddp.grad_reduce_in_fp32


def test_each_key_of_megatrons_is_passed_on(monkeypatch):
    """Every field that both know under one name has our value in Megatron's configuration."""
    monkeypatch.setattr(precision, "check_fp8", lambda precision: None)
    changed = PrecisionConfig(
        fp8="hybrid",
        fp8_recipe="tensorwise",
        fp8_param=True,
        fp8_margin=3,
        fp8_amax_history_len=7,
        fp8_amax_compute_algo="max",
        first_last_layers_bf16=True,
        num_layers_at_start_in_bf16=2,
        num_layers_at_end_in_bf16=0,
    )
    config = megatron_config(precision.transformer_fields(changed))
    shared = [name for name in vars(changed) if hasattr(config, name)]
    assert len(shared) == 9
    assert {name: getattr(config, name) for name in shared} == {name: getattr(changed, name) for name in shared}
