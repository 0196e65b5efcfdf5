"""A GGUF file that this test writes, from a model and by the format's own quantiser, opened as the model's folder."""

import json

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.gguf_file import cache_folder, find_gguf
from sppo_megatron.hf.hf_folder import resolve_hf_folder
from sppo_megatron.hf.tokenizer import load_tokenizer

HEADS, KV_HEADS, HEAD_DIM, LAYERS = 4, 2, 16, 2
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
BLOCKS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
TYPE = gguf.GGMLQuantizationType.Q8_0


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=MARKS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the rat ran"] * 20, trainer)
    return tokenizer


def rotary_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp rotates neighbours, Hugging Face a head's halves: row i of a half goes to place 2i or 2i + 1."""
    halves = weight.reshape(heads, 2, HEAD_DIM // 2, -1)
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(weight.shape)


def write_gguf(path, model, tokenizer) -> dict[str, torch.Tensor]:
    """Writes the model in 8 bits. Returns by Hugging Face's names what the numbers in the file mean."""
    writer = gguf.GGUFWriter(str(path), "llama")
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(config.vocab_size)
    state = model.state_dict()
    names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    names |= {"output.weight": "lm_head.weight"}
    for layer in range(LAYERS):
        names |= {f"blk.{layer}.{a}.weight": f"model.layers.{layer}.{b}.weight" for a, b in BLOCKS.items()}
    meant = {}
    for name, own in names.items():
        values = state[own].numpy()
        if values.ndim == 1:
            writer.add_tensor(name, values)
            meant[own] = state[own]
            continue
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2])
        quantised = gguf.quants.quantize(values, TYPE)
        meant[own] = torch.from_numpy(gguf.quants.dequantize(quantised, TYPE))  # rows are quantised one by one
        stored = quantised if heads is None else rotary_pairs(quantised, heads)
        writer.add_tensor(name, stored, raw_dtype=TYPE)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in MARKS else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = bpe()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=HEADS * HEAD_DIM,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=128,
        rope_theta=5000.0,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, model, tokenizer, write_gguf(path, model, tokenizer)


def test_weights_tokenizer_and_template_of_the_file(written):
    path, model, tokenizer, meant = written
    folder = resolve_hf_folder(str(path))
    opened = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = opened.state_dict()
    assert found.keys() == meant.keys()
    for name, tensor in meant.items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], tensor), name
    model.load_state_dict(meant)
    ids = torch.arange(40)[None]
    assert torch.allclose(opened(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
    assert not hasattr(opened.config, "quantization_config")
    assert opened.generation_config.eos_token_id == 2

    own = load_tokenizer(folder)
    text = "<|im_start|>the cat  sat<|im_end|>"
    assert own(text)["input_ids"] == tokenizer.encode(text).ids
    assert own.eos_token == "<|im_end|>"
    messages = [{"role": "user", "content": "the rat"}]
    assert own.apply_chat_template(messages, tokenize=False) == "<|im_start|>the rat<|im_end|>"


def test_it_is_made_once_and_anew_for_another_file(written, tmp_path):
    path, *_ = written
    folder = resolve_hf_folder(str(path))
    assert folder.parent == cache_folder()
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert resolve_hf_folder(str(path.parent)) == folder  # the only one in its folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    other = bytearray(path.read_bytes())
    other[-5] ^= 1
    (tmp_path / path.name).write_bytes(other)
    assert resolve_hf_folder(str(tmp_path / path.name)) != folder


def test_a_folder_with_weights_of_its_own_is_not_one(tmp_path):
    (tmp_path / "config.json").touch()
    (tmp_path / "also.gguf").touch()
    assert find_gguf(tmp_path, "model.hf_path") is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.gguf", "b.gguf"], r"^reward\.model\.path=.* holds 2 models \(a\.gguf, b\.gguf\): give one of the files$"),
        (["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"], r"is one of 2 parts: put them together"),
    ],
)
def test_which_file(tmp_path, names, message):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=message):
        resolve_hf_folder(str(tmp_path), "reward.model.path")


def test_what_is_no_model(tmp_path):
    (tmp_path / "torn.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(8))
    with pytest.raises(ConfigError, match=r"torn\.gguf can't be read as a model .*: give the model's folder"):
        resolve_hf_folder(str(tmp_path / "torn.gguf"))
    assert not list(cache_folder().glob("torn-*-1"))
