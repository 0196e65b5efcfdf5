"""Exported folders are the same model to transformers 4 and 5: logits, tokens, end tokens, dtype."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from sppo_megatron.hf.config_file import write_config
from sppo_megatron.hf.save import save_hf_folder
from tests.unit.hf.conftest import CONFIGS, LLAMA3, SIZES

ROOT = Path(__file__).parents[3]
FOLDER = Path(os.environ.get("SPPO_TRANSFORMERS_4_FOLDER", ROOT / ".transformers_4"))
needs_transformers_4 = pytest.mark.skipif(
    not (FOLDER / "transformers").exists(),
    reason="transformers 4 is not there: pip install --no-deps --target .transformers_4 "
    "-r requirements/transformers-4.txt",
)

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
MORE: dict[str, tuple[type, dict[str, Any]]] = {
    "mistral": (
        MistralConfig,
        {"sliding_window": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "mixtral": (
        MixtralConfig,
        {"num_local_experts": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "qwen2_moe": (Qwen2MoeConfig, {"num_experts": 4, "shared_expert_intermediate_size": 8, **EXPERTS}),
    "qwen3_moe": (Qwen3MoeConfig, {"num_experts": 4, "head_dim": 4, "rope_parameters": LLAMA3, **EXPERTS}),
}
READER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__
found = {"version": __version__}
for folder in sys.argv[2:]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.arange(3, 35)[None]).logits[0, -1].tolist()
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "a b"}], tokenize=False)
    config = model.config
    found[folder] = [logits, tokenizer(chat)["input_ids"], chat, config.eos_token_id, str(config.torch_dtype)]
print(json.dumps(found))
"""


def save_tokenizer(folder: Path) -> None:
    """As transformers 4 publishes one."""
    words = Tokenizer(WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    kept = {"unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(kept | {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}))


def export(folder: Path, kind: type, fields: dict[str, Any]) -> Any:
    """The model that was exported into folder, in transformers 5. Its rope base is nobody's default."""
    config = kind(**{**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, **fields})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5 if parameter.dim() == 1 else 0.0, 0.3)
    model.save_pretrained(folder / "source")
    save_tokenizer(folder / "source")
    tensors = load_file(folder / "source" / "model.safetensors")
    config.architectures = [type(model).__name__]
    config.dtype = torch.float32
    save_hf_folder(folder / "hf", iter(tensors.items()), config, folder / "source")
    return model


@needs_transformers_4
def test_both_major_versions_read_the_same_model(tmp_path):
    names = [*CONFIGS, *MORE]
    models = {name: export(tmp_path / name, *(CONFIGS | MORE)[name]) for name in names}
    folders = [str(tmp_path / name / "hf") for name in names]
    command = [sys.executable, "-c", READER, str(FOLDER), *folders]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found.pop("version").startswith("4.57.")
    ids = torch.arange(3, 35)[None]
    for name, folder in zip(names, folders, strict=True):
        logits, tokens, chat, eos, dtype = found[folder]
        ours = AutoModelForCausalLM.from_pretrained(folder).eval()
        with torch.no_grad():
            expected, read = models[name](ids).logits[0, -1], ours(ids).logits[0, -1]
        torch.testing.assert_close(read, expected, rtol=0, atol=0, msg=lambda text, name=name: f"{name}, 5: {text}")
        torch.testing.assert_close(
            torch.tensor(logits), expected, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}, 4: {text}"
        )
        assert (tokens, chat, eos, dtype) == ([0], "a b", 2, "torch.float32"), name


@pytest.mark.parametrize("name", [*CONFIGS, *MORE])
def test_transformers_5_reads_the_config_that_it_wrote(tmp_path, name):
    kind, fields = (CONFIGS | MORE)[name]
    config = kind(**{**SIZES, **fields}, dtype="bfloat16")
    write_config(tmp_path, config)
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.to_dict()["rope_parameters"] == config.to_dict()["rope_parameters"]
    assert again.dtype == torch.bfloat16
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_layers_that_slide_keep_their_base(tmp_path):
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    write_config(tmp_path, Gemma3TextConfig(num_hidden_layers=2, rope_parameters=rope))
    stored = json.loads((tmp_path / "config.json").read_text())
    assert (stored["rope_theta"], stored["rope_local_base_freq"]) == (1e6, 1e4)
    assert stored["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == rope
