"""What vLLM says it filled, against what was sent."""

from __future__ import annotations

import re

import pytest

from sppo_megatron.engines.vllm.names import find_untaken

PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
LAYER = "model.layers.3"
SENT = [
    "model.embed_tokens.weight",
    *(f"{LAYER}.self_attn.{part}_proj.{leaf}" for part in "qkv" for leaf in ("weight", "bias")),
    f"{LAYER}.self_attn.o_proj.weight",
    *(f"{LAYER}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    *(f"model.layers.4.mlp.experts.{i}.{part}_proj.weight" for i in (0, 11) for part in ("gate", "up", "down")),
]
FILLED = {
    "model.embed_tokens.weight",
    f"{LAYER}.self_attn.qkv_proj.weight",
    f"{LAYER}.self_attn.qkv_proj.bias",
    f"{LAYER}.self_attn.o_proj.weight",
    f"{LAYER}.mlp.gate_up_proj.weight",
    f"{LAYER}.mlp.down_proj.weight",
    "model.layers.4.mlp.experts.w13_weight",
    "model.layers.4.mlp.experts.w2_weight",
}


def test_everything_was_taken():
    assert find_untaken(SENT, FILLED, PACKED) is None


@pytest.mark.parametrize(
    ("not_filled", "said"),
    [
        (f"{LAYER}.self_attn.qkv_proj.bias", "self_attn.q_proj.bias, .*k_proj.bias, .*v_proj.bias$"),
        (f"{LAYER}.self_attn.o_proj.weight", f"did not take {LAYER}.self_attn.o_proj.weight$"),
        ("model.embed_tokens.weight", "model.embed_tokens.weight$"),
    ],
)
def test_what_was_not_taken_is_named(not_filled, said):
    problem = find_untaken(SENT, FILLED - {not_filled}, PACKED)
    assert problem is not None
    assert re.search(said, problem)


def test_experts_that_were_not_taken():
    problem = find_untaken(SENT, {name for name in FILLED if "experts" not in name}, PACKED)
    assert problem == (
        "its model did not take model.layers.4.mlp.experts.0.gate_proj.weight, "
        "model.layers.4.mlp.experts.0.up_proj.weight, model.layers.4.mlp.experts.0.down_proj.weight and 3 more"
    )


def test_a_tied_head_is_no_tensor_of_its_own():
    assert find_untaken([*SENT, "lm_head.weight"], FILLED, PACKED, ties_head=True) is None
    assert find_untaken([*SENT, "lm_head.weight"], FILLED, PACKED) == "its model did not take lm_head.weight"


def test_names_that_the_model_changes_or_leaves_out():
    def rename(name: str) -> str | None:
        return None if "vision" in name else name.replace("language_model.", "")

    sent = ["language_model.model.embed_tokens.weight", "vision.patch.weight"]
    assert find_untaken(sent, FILLED, PACKED, rename) is None
