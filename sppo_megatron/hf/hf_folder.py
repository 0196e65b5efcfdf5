"""What a Hugging Face folder holds beside weights and tokenizer: where it is, generation config, end tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.gguf_file import find_gguf, folder_of_gguf
from sppo_megatron.hf.side_files import SIDE_FILES
from sppo_megatron.hf.weight_files import INDEX_FILE, SINGLE_FILE, files_of_index


def resolve_hf_folder(hf_path: str, key: str = "model.hf_path", with_weights: bool = True) -> Path:
    """The local folder; a hub id is fetched into the hub's cache, a GGUF file de-quantised into ours.

    Of a hub's repository, config, tokenizer and one set of weights: what the index names, without an index the single
    file. Copies in other formats and precisions, which many have in subfolders or beside it, aren't fetched.

    Raises ConfigError that says what to give.
    """
    if (gguf := find_gguf(Path(hf_path), key)) is not None:
        return folder_of_gguf(gguf)
    if Path(hf_path).is_dir():
        return Path(hf_path)
    if hf_path.startswith((".", "/", "~")) or hf_path.count("/") != 1:
        raise ConfigError(
            f"{key}={hf_path!r} is no folder: give a folder in Hugging Face format, a GGUF file or a hub id"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hf_path, allow_patterns=["config.json", INDEX_FILE, *SIDE_FILES]))
        if with_weights:
            names = files_of_index(folder / INDEX_FILE) if (folder / INDEX_FILE).exists() else [SINGLE_FILE]
            folder = Path(snapshot_download(hf_path, allow_patterns=names))
        return folder
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"{key}={hf_path!r} is no local folder and could not be fetched from the hub: {error}"
        ) from error


def load_generation_config(folder: Path) -> Any | None:
    """The folder's generation config, None if it has none. Raises ConfigError if it can't be read."""
    path = folder / "generation_config.json"
    if not path.exists():
        return None
    try:
        return GenerationConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} can't be read: {error}; mend it, or remove it") from error


def stop_token_ids(hf_config: Any, generation_config: Any | None, tokenizer: Any | None) -> frozenset[int]:
    """Every token that ends a response: of the model, its generation config and its tokenizer."""
    found: set[int] = set()
    for source in (hf_config, getattr(hf_config, "text_config", None), generation_config):
        ids = getattr(source, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or [])
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return frozenset(found)
