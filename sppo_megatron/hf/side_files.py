"""What a folder in Hugging Face format holds beside the weights, carried from one folder to another."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

# The tokenizer's files, in every format that transformers reads, and the generation config.
_PATTERNS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
_CHAT_TEMPLATES = "additional_chat_templates"


def write_side_files(folder: Path, hf_config: Any, source: Path | None) -> None:
    """Writes config.json, and copies generation config and tokenizer byte for byte from the model's own folder.

    Loading and saving them would change them: a generation config may load that can't be saved, and another major
    version of transformers reads the tokenizer as another class.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hf_config.save_pretrained(folder)
    if source is None:
        return
    for path in {path for pattern in _PATTERNS for path in source.glob(pattern) if path.is_file()}:
        shutil.copyfile(path, folder / path.name)
    if (source / _CHAT_TEMPLATES).is_dir():
        shutil.copytree(source / _CHAT_TEMPLATES, folder / _CHAT_TEMPLATES, dirs_exist_ok=True)
