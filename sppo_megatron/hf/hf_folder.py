"""What a Hugging Face folder holds beside the weights: where it is, tokenizer, generation config, end tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.remote_code import remote_code_refused

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def resolve_hf_folder(hf_path: str) -> Path:
    """The local folder; a hub id is downloaded into the hub's cache (or found there).

    Raises ConfigError that says what to give.
    """
    if Path(hf_path).is_dir():
        return Path(hf_path)
    if hf_path.startswith((".", "/", "~")) or hf_path.count("/") != 1:
        raise ConfigError(f"model.hf_path={hf_path!r} is no folder: give a folder in Hugging Face format or a hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        patterns = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
        return Path(snapshot_download(hf_path, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"model.hf_path={hf_path!r} is no local folder and could not be fetched from the hub: {error}"
        ) from error


def load_tokenizer(folder: Path) -> Any | None:
    """The folder's tokenizer, None if it has none. Raises ConfigError if it comes with code of its own."""
    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        return None
    with remote_code_refused(f"the tokenizer of {folder}"):
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)


def load_generation_config(folder: Path) -> Any | None:
    """The folder's generation config, None if it has none."""
    if not (folder / "generation_config.json").exists():
        return None
    return GenerationConfig.from_pretrained(str(folder))


def stop_token_ids(hf_config: Any, generation_config: Any | None, tokenizer: Any | None) -> frozenset[int]:
    """Every token that ends a response: of the model, its generation config and its tokenizer."""
    found: set[int] = set()
    for source in (hf_config, generation_config):
        ids = getattr(source, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or [])
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return frozenset(found)
