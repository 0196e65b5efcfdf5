"""Tiny random sequence classifiers with one output: a decoder and an encoder, one token a character."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<end>", "<pad>", "<user>", "<assistant>", "<cls>", "<sep>"]
VOCABULARY = [*SPECIAL, "\n", *map(chr, range(32, 127))]
CHAT_TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
SHAPE: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "num_labels": 1,
    "initializer_range": 0.3,
}


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def save_decoder(folder: Path, *, chat_template: bool, pad_token: bool) -> Path:
    torch.manual_seed(5)
    pad = {"pad_token_id": 1} if pad_token else {"pad_token_id": None}
    config = LlamaConfig(**SHAPE, num_key_value_heads=2, bos_token_id=None, eos_token_id=0, **pad)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(), eos_token="<end>", additional_special_tokens=SPECIAL[2:4]
    )
    if chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def save_encoder(folder: Path) -> Path:
    torch.manual_seed(6)
    BertForSequenceClassification(BertConfig(**SHAPE, pad_token_id=1)).save_pretrained(folder)
    tokenizer = _tokenizer()
    cls, sep = VOCABULARY.index("<cls>"), VOCABULARY.index("<sep>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<cls> $A <sep>",
        pair="<cls> $A <sep> $B:1 <sep>:1",
        special_tokens=[("<cls>", cls), ("<sep>", sep)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        cls_token="<cls>",
        sep_token="<sep>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    return folder


def ids_of(text: str) -> list[int]:
    """Token ids of characters and of special tokens in angle brackets, without any tokenizer."""
    ids = []
    while text:
        token = next((special for special in SPECIAL if text.startswith(special)), text[0])
        ids.append(VOCABULARY.index(token))
        text = text[len(token) :]
    return ids


def plain_logit(model: Any, ids: list[int], **inputs: Any) -> float:
    """One sequence alone, without padding."""
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids]), **inputs).logits[0, 0])
