"""Which files of a folder hold the model's weights: one set, whoever reads it.

Beside it, repositories have copies in other formats and precisions, and folders have leftovers. transformers prefers
the single file to an index, vLLM the index: where both are there and differ, nobody can know which one is meant.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sppo_megatron.errors import ConfigError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")


def weight_files(folder: Path) -> list[str]:
    """The names, sorted. Raises ConfigError that says what to do if it is none, not whole, or more than one set."""
    index = folder / INDEX_FILE
    if not index.exists():
        if not (folder / SINGLE_FILE).exists():
            raise ConfigError(
                f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}: no weights to load{_found(folder)}"
            )
        return [SINGLE_FILE]
    names = files_of_index(index)
    missing = [name for name in names if not (folder / name).exists()]
    if SINGLE_FILE not in names and (folder / SINGLE_FILE).exists():
        of_index = "its files, some of which are gone," if missing else f"the {len(names)} files that it names,"
        raise ConfigError(
            f"{folder} holds {SINGLE_FILE} and {INDEX_FILE} with other weights: delete the index for the weights of "
            f"{SINGLE_FILE}, or {SINGLE_FILE} for those of {of_index} and start again"
        )
    if missing:
        raise ConfigError(
            f"{index} names files that are not there: {', '.join(missing)}; fetch them, or save the model again into "
            "an empty folder"
        )
    return names


def files_of_index(index: Path) -> list[str]:
    """The files that an index names, sorted, all of them in its own folder. Raises ConfigError if it isn't one."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("no names of files in its folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{index} is no index of weights ({type(error).__name__}: {error}): fetch it again, or delete it if the "
            f"weights are in {SINGLE_FILE}"
        ) from error
    return names


def open_safetensors(path: Path) -> Any:
    """The file, memory-mapped. Raises ConfigError if it is torn or something else."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            is_pointer = file.read(20).startswith(b"version https://git-")
        fix = "a pointer of Git LFS: run `git lfs pull` in its folder" if is_pointer else "fetch or save it again"
        raise ConfigError(f"{path} is no whole safetensors file ({error}): {fix}") from error


def _found(folder: Path) -> str:
    names = sorted({path.name for pattern in _OTHER_WEIGHTS for path in folder.glob(pattern)})
    if not names:
        return ""
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    if any(name.startswith("adapter_model.") for name in names):
        return f"; it has {listed}: merge an adapter into its base model first (PEFT's merge_and_unload)"
    return f"; it has {listed}, which aren't read: open it with transformers and save_pretrained it"
