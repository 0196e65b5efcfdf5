"""What FP8 asks of shapes, and the switch that turns it off, on a model of Megatron-Core."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sppo_megatron.config import Config, ParallelismConfig, PrecisionConfig
from sppo_megatron.hf.architecture import Architecture, MixtureOfExperts
from sppo_megatron.policy.generate.inference import inference_layout
from sppo_megatron.policy.model.build import unwrap
from sppo_megatron.policy.model.fp8 import check_fp8_shapes, token_multiple, without_fp8
from tests.tiny_policy import random_batch, tiny_policy

from megatron.core.tensor_parallel import ColumnParallelLinear, VocabParallelEmbedding  # isort: skip

QWEN2_7B = Architecture(
    family="qwen2",
    num_layers=28,
    hidden_size=3584,
    ffn_hidden_size=18944,
    num_attention_heads=28,
    num_query_groups=4,
    head_dim=128,
    vocab_size=152064,
    max_position_embeddings=32768,
    norm_epsilon=1e-6,
    qkv_bias=True,
    qk_norm=False,
    tied_embeddings=False,
    initializer_range=0.02,
    rotary_inv_freq=torch.ones(64),
)
MIXTURE = MixtureOfExperts(
    num_experts=8,
    num_experts_per_token=2,
    ffn_hidden_size=768,
    shared_ffn_hidden_size=None,
    normalizes_topk=True,
    aux_loss_coeff=0.0,
    layers=[True] * 28,
)


@pytest.mark.parametrize(
    ("recipe", "multiple"), [("delayed", 16), ("tensorwise", 16), ("blockwise", 128), ("mxfp8", 32)]
)
def test_token_multiple(recipe, multiple):
    assert token_multiple(PrecisionConfig(fp8="hybrid", fp8_recipe=recipe)) == multiple
    assert token_multiple(PrecisionConfig(fp8=None, fp8_recipe=recipe)) == 1


def shapes_problem(recipe: str, tp: int = 1, expert_tp: int | None = None, **changes) -> str:
    parallelism = ParallelismConfig(tensor_model_parallel_size=tp, expert_tensor_parallel_size=expert_tp)
    try:
        check_fp8_shapes(replace(QWEN2_7B, **changes), parallelism, recipe)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise", "mxfp8"])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_real_shapes_fit(recipe, tp):
    assert shapes_problem(recipe, tp) == ""


def test_shapes_that_do_not_fit_are_named():
    problem = shapes_problem("blockwise", hidden_size=3590, ffn_hidden_size=100)
    assert "the hidden size (3590)" in problem and "the MLP's columns (100)" in problem
    assert "linear_qkv" not in problem
    assert "tensor_model_parallel_size smaller" in problem
    assert "the MLP's columns (2360)" in shapes_problem("delayed", 8, ffn_hidden_size=18880)
    # 48 is a multiple of 16 and none of 32
    assert shapes_problem("tensorwise", ffn_hidden_size=48) == ""
    assert "(48)" in shapes_problem("mxfp8", ffn_hidden_size=48)


def test_shapes_of_experts_are_those_of_their_ranks():
    assert shapes_problem("mxfp8", 4, ffn_hidden_size=1, mixture=MIXTURE) == ""  # no layer has the dense MLP
    assert "an expert's columns (8)" in shapes_problem("delayed", mixture=replace(MIXTURE, ffn_hidden_size=8))
    narrow = replace(MIXTURE, ffn_hidden_size=32)
    assert "an expert's columns (8)" in shapes_problem("delayed", 4, mixture=narrow)
    assert shapes_problem("delayed", 4, expert_tp=1, mixture=narrow) == ""
    shared = replace(MIXTURE, shared_ffn_hidden_size=24)
    assert "the shared expert's columns (24)" in shapes_problem("delayed", mixture=shared)


@pytest.fixture(scope="module")
def policy():
    run = Config()
    run.precision.dtype = "fp32"
    with tiny_policy(run) as policy:
        yield policy


def test_one_switch_serves_every_layer(policy):
    (chunk,) = policy.chunks
    decoder = unwrap(chunk).decoder
    policy.config.fp8 = "hybrid"
    try:
        assert {part.config.fp8 for part in (decoder, *decoder.layers)} == {"hybrid"}
        with without_fp8(policy.config):
            assert {part.config.fp8 for part in (decoder, *decoder.layers)} == {None}
        with pytest.raises(KeyError), without_fp8(policy.config):
            raise KeyError
        assert decoder.config.fp8 == "hybrid"
    finally:
        policy.config.fp8 = None


def test_single_tokens_are_decoded_without_it(policy):
    policy.config.fp8 = "hybrid"
    try:
        with inference_layout([unwrap(policy.chunks[0])], policy.config):
            assert policy.config.fp8 is None
        assert policy.config.fp8 == "hybrid"
    finally:
        policy.config.fp8 = None


def test_embedding_and_head_lie_outside_of_the_block(policy):
    model = unwrap(policy.chunks[0])
    assert type(model.embedding.word_embeddings) is VocabParallelEmbedding
    assert type(model.output_layer) is ColumnParallelLinear
    assert not any(module in (model.embedding, model.output_layer) for module in model.decoder.modules())


def test_delayed_scaling_gets_its_scales_in_a_first_pass(policy, monkeypatch):
    """Transformer Engine updates them if gradients are enabled: once, before the first log-probs that are used."""
    enabled = []
    unwrap(policy.chunks[0]).decoder.register_forward_pre_hook(lambda *_: enabled.append(torch.is_grad_enabled()))
    sequences = random_batch(2).sequences
    plain, _ = policy.compute_log_probs(sequences)
    assert enabled == [False, False]
    enabled.clear()
    monkeypatch.setattr(policy, "_lacks_fp8_scales", True)
    first, _ = policy.compute_log_probs(sequences)
    assert enabled == [True, True, False, False]
    policy.compute_log_probs(sequences)
    assert enabled[4:] == [False, False]
    assert (plain == first).all()
