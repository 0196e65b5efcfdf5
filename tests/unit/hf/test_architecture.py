"""What is read from a Hugging Face config, and what is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GemmaConfig, MistralConfig, Qwen3Config

from sppo_megatron.hf.families import FAMILIES
from sppo_megatron.hf.families.fields import check_fields
from sppo_megatron.hf.hf_config import load_hf_config, read_architecture
from tests.distributed.layouts.models import CONFIGS


def test_the_numbers(make_config):
    a = read_architecture(make_config("qwen3", rms_norm_eps=1e-5, initializer_range=0.05))
    assert (a.family, a.num_layers, a.hidden_size, a.ffn_hidden_size) == ("qwen3", 2, 16, 24)
    assert (a.num_attention_heads, a.num_query_groups, a.head_dim) == (4, 2, 8)
    assert (a.vocab_size, a.max_position_embeddings) == (37, 64)
    assert (a.norm_epsilon, a.initializer_range) == (1e-5, 0.05)
    assert not a.tied_embeddings


@pytest.mark.parametrize(
    ("name", "qkv_bias", "qk_norm", "tied", "head_dim"),
    [
        ("qwen2", True, False, False, 4),
        ("qwen2-tied", True, False, True, 4),
        ("qwen3-tied", False, True, True, 4),
        ("llama", False, False, False, 4),
        ("llama-head-dim", False, False, False, 6),
    ],
)
def test_what_distinguishes_the_families(make_config, name, qkv_bias, qk_norm, tied, head_dim):
    a = read_architecture(make_config(name))
    assert (a.qkv_bias, a.qk_norm, a.tied_embeddings, a.head_dim) == (qkv_bias, qk_norm, tied, head_dim)


def test_rotary_frequencies_are_the_models(hf_model):
    inv_freq = read_architecture(hf_model.config).rotary_inv_freq
    assert inv_freq.dtype == torch.float32
    assert torch.equal(inv_freq, hf_model.model.rotary_emb.inv_freq)
    assert hf_model.model.rotary_emb.attention_scaling == 1.0


def test_rope_scaling_matters(make_config):
    def frequencies(name):
        return read_architecture(make_config(name, head_dim=16)).rotary_inv_freq

    plain, linear, llama3 = (frequencies(name) for name in ("llama", "llama-linear", "llama-llama3"))
    assert not torch.equal(plain, linear) and not torch.equal(plain, llama3)


@pytest.mark.parametrize(("divisible_by", "tp_size", "padded"), [(1, 1, 37), (8, 1, 40), (8, 2, 48), (128, 4, 512)])
def test_padded_vocabulary(make_config, divisible_by, tp_size, padded):
    a = read_architecture(make_config("llama"))
    assert a.padded_vocab_size(divisible_by, tp_size) == padded


def test_an_exact_vocabulary_is_not_padded(make_config):
    assert read_architecture(make_config("llama", vocab_size=64)).padded_vocab_size(32, 2) == 64


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 2.0,
    "short_factor": [1.0, 1.0],
    "long_factor": [2.0, 2.0],
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"attention_bias": True}, r"llama config uses attention_bias, which is not supported"),
        ("qwen3", {"attention_bias": True}, r"qwen3 config uses attention_bias"),
        ("llama", {"mlp_bias": True}, r"mlp_bias"),
        ("llama", {"hidden_act": "gelu"}, r"hidden_act='gelu' \(only 'silu'\)"),
        ("llama", {"attention_bias": True, "mlp_bias": True}, r"attention_bias, mlp_bias"),
        ("llama", {"rope_parameters": LONGROPE}, r"rope has long_factor, short_factor, which is not supported"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1.0, "partial_rotary_factor": 0.5}},
            r"partial_rotary_factor=0.5",
        ),
        ("llama", {"logit_scale": 0.5}, r"fields that are not known here and may change the model: logit_scale\."),
        ("qwen2", {"quantization_config": {"quant_method": "fp8"}}, r"qwen2 config uses quantization_config"),
    ],
)
def test_unsupported_features_are_refused_by_name(make_config, name, changes, message):
    with pytest.raises(ValueError, match=message):
        read_architecture(make_config(name, **changes))


def test_yarn_scales_queries_and_keys(make_config):
    """transformers multiplies cosines and sines by m, so q·k by m²."""
    config = make_config("llama", rope_parameters=YARN)
    model = AutoModelForCausalLM.from_config(config)
    a = read_architecture(config)
    assert torch.equal(a.rotary_inv_freq, model.model.rotary_emb.inv_freq)
    scaling = model.model.rotary_emb.attention_scaling
    assert scaling > 1 and a.softmax_scale == pytest.approx(scaling**2 / a.head_dim**0.5)
    assert read_architecture(make_config("llama")).softmax_scale is None


def test_a_dynamic_rope_is_plain_up_to_the_models_context(make_config):
    a = read_architecture(make_config("llama", rope_parameters=DYNAMIC))
    assert torch.equal(a.rotary_inv_freq, read_architecture(make_config("llama")).rotary_inv_freq)
    assert a.longest_sequence == a.max_position_embeddings


def test_windows_of_layers(make_config):
    slides = {"use_sliding_window": True, "sliding_window": 8, "num_hidden_layers": 3, "max_window_layers": 1}
    assert read_architecture(make_config("qwen2", **slides)).windows == [None, 8, 8]
    assert read_architecture(make_config("qwen2", **slides | {"use_sliding_window": False})).windows == []
    assert read_architecture(MistralConfig(sliding_window=9, num_hidden_layers=2)).windows == [9, 9]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_field_of_a_config_is_known(model_type):
    """As transformers makes it: a field that is neither read nor harmless would be refused."""
    config = AutoConfig.for_model(model_type)
    fields = FAMILIES[model_type].fields
    assert not fields.read & fields.harmless and not (fields.read | fields.harmless) & fields.only.keys()
    check_fields(config, fields)


def test_an_unsupported_family_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"model family 'gemma' is not supported; supported are llama, mistral, .*qwen2, qwen3"
    ):
        read_architecture(GemmaConfig())


def test_a_window_that_is_switched_off_is_fine(make_config):
    read_architecture(make_config("qwen2", use_sliding_window=False, sliding_window=8))


def test_load_hf_config(make_config, tmp_path):
    make_config("qwen3").save_pretrained(tmp_path)
    config = load_hf_config(str(tmp_path))
    assert isinstance(config, Qwen3Config)
    assert read_architecture(config).head_dim == 8


def test_kimi_k2_is_a_deepseek_v3(tmp_path):
    """Its published config names code of its folder, which is never run."""
    config = CONFIGS["deepseek-v3"]()
    config.save_pretrained(tmp_path)
    own = load_hf_config(str(tmp_path))
    published = json.loads((tmp_path / "config.json").read_text())
    code = {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}
    (tmp_path / "config.json").write_text(json.dumps(published | {"model_type": "kimi_k2", "auto_map": code}))
    kimi = load_hf_config(str(tmp_path))
    assert kimi.model_type == "deepseek_v3"
    assert kimi.to_dict() | {"_name_or_path": str(tmp_path)} == own.to_dict()
    assert read_architecture(kimi).latent == read_architecture(own).latent is not None


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(ValueError, match=r"model\.hf_path=.* has no readable config\.json: give a folder"):
        load_hf_config(str(tmp_path))
    (tmp_path / "config.json").write_text("{ not json")
    with pytest.raises(ValueError, match=r"has no readable config\.json"):
        load_hf_config(str(tmp_path))


def test_a_path_that_is_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"neither a local folder nor reachable: give a folder .* or a hub id"):
        load_hf_config(str(tmp_path / "nowhere"))
