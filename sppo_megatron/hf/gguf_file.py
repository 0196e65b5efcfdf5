"""A GGUF file, as llama.cpp publishes quantised models: opened as the Hugging Face folder that it was made from.

transformers takes it apart once; the fp32 weights, config and tokenizer lie in a cache from then on.
"""

from __future__ import annotations

import logging
import os
import re
import struct
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from sppo_megatron.data.atomic_file import atomic_folder
from sppo_megatron.data.digests import sampled_digest
from sppo_megatron.errors import ConfigError

logger = logging.getLogger(__name__)

# What a kept folder holds besides the file's own content. Another number makes all of them anew.
_FORM = 1
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


def find_gguf(path: Path, key: str) -> Path | None:
    """The GGUF file that a path means: itself, or the only one in a folder without weights of another format.

    Raises ConfigError, naming `key`, for a folder with several and for a part of a model.
    """
    found = [path] if path.suffix == ".gguf" and path.is_file() else []
    if path.is_dir() and not (path / "config.json").exists():
        found = sorted(path.glob("*.gguf"))
    if len(found) > 1 and not _PART.search(found[0].name):
        names = ", ".join(file.name for file in found[:5])
        raise ConfigError(f"{key}={path} holds {len(found)} models ({names}): give one of the files")
    if found and (part := _PART.search(found[0].name)) and int(part[1]) > 1:
        raise ConfigError(
            f"{key}={found[0]} is one of {int(part[1])} parts: put them together with llama.cpp's "
            "`llama-gguf-split --merge` and give the whole file"
        )
    return found[0] if found else None


def folder_of_gguf(path: Path) -> Path:
    """The Hugging Face folder with a file's model, de-quantised to fp32 (4 bytes a parameter on disk).

    It is made once and lies in `cache_folder()` under a digest of the file; processes that ask at the same time wait
    for the first. Raises ConfigError if packages are missing or transformers can't read the file's model.
    """
    folder = cache_folder() / f"{path.stem}-{sampled_digest(path)[:16]}-{_FORM}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            logger.warning("%s is de-quantised to fp32 into %s, once", path, folder)
            model, tokenizer = _read(path)
            with atomic_folder(folder) as partial:
                model.save_pretrained(partial)
                tokenizer.save_pretrained(partial)
    return folder


def cache_folder() -> Path:
    """sppo_megatron/gguf in $XDG_CACHE_HOME, by default in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sppo_megatron" / "gguf"


def _read(path: Path) -> tuple[Any, Any]:
    """Model and tokenizer. The model is built again without the file's quantisation, with which it can't be saved."""
    from transformers import AutoModelForCausalLM, AutoTokenizer  # half a second, for this alone
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    where: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
    try:
        quantised = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **where)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
    except ImportError as error:
        raise ConfigError(
            f"{path} is a GGUF file, which the packages gguf and accelerate are needed for: "
            "pip install 'sppo-megatron[gguf]'"
        ) from error
    except (ValueError, OSError, LookupError, NotImplementedError, struct.error) as error:  # of a torn file, the last
        raise ConfigError(
            f"{path} can't be read as a model ({type(error).__name__}: {error}): give the model's folder in Hugging "
            "Face format"
        ) from error
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = quantised.generation_config
    return model, tokenizer
