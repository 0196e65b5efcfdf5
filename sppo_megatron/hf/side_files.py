"""What a folder in Hugging Face format holds beside the weights, carried from one folder to another."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sppo_megatron.hf.config_file import write_config

_CHAT_TEMPLATES = "additional_chat_templates"
# The tokenizer's files, in every format that transformers reads, and the generation config.
SIDE_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    "*.tiktoken",
    "tiktoken.model",
    "tokenizer.model*",
    "spiece.model",
    "sentencepiece*.model",
    f"{_CHAT_TEMPLATES}/*.jinja",
)


def write_side_files(folder: Path, hf_config: Any, source: Path | None) -> None:
    """Writes config.json, and copies generation config and tokenizer byte for byte from the model's own folder.

    Loading and saving them would change them: a generation config may load that can't be saved, and another major
    version of transformers reads the tokenizer as another class.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, hf_config)
    if source is None:
        return
    for path in {path for pattern in SIDE_FILES for path in source.glob(pattern) if path.is_file()}:
        copy = folder / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
