"""A folder in Hugging Face format, written from a stream of tensors and moved into place when it is complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from sppo_megatron.conversion.hf_checkpoint import INDEX_FILE, SINGLE_FILE


def save_hf_folder(
    folder: str | Path,
    tensors: Iterator[tuple[str, Tensor]],
    hf_config: Any,
    tokenizer: Any | None = None,
    generation_config: Any | None = None,
    *,
    max_file_bytes: int = 4 << 30,
) -> None:
    """Writes weights, config, generation config and tokenizer; an existing folder of that name is replaced at the end.

    Peak memory is max_file_bytes plus one tensor.
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_weights(partial, tensors, max_file_bytes)
    hf_config.save_pretrained(partial)
    if generation_config is not None:
        generation_config.save_pretrained(partial)
    if tokenizer is not None:
        tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def _write_weights(folder: Path, tensors: Iterator[tuple[str, Tensor]], max_file_bytes: int) -> None:
    file_of: dict[str, str] = {}
    files: list[str] = []
    pending: dict[str, Tensor] = {}
    total_bytes = pending_bytes = 0

    def flush() -> None:
        name = f"part-{len(files):05d}.safetensors"
        save_file(pending, folder / name, metadata={"format": "pt"})
        files.append(name)
        file_of.update(dict.fromkeys(pending, name))
        pending.clear()

    for name, tensor in tensors:
        if pending and pending_bytes + tensor.nbytes > max_file_bytes:
            flush()
            pending_bytes = 0
        pending[name] = tensor.cpu().contiguous()
        pending_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    flush()
    if len(files) == 1:
        os.replace(folder / files[0], folder / SINGLE_FILE)
        return
    final = {name: f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i, name in enumerate(files)}
    for name, target in final.items():
        os.replace(folder / name, folder / target)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": {k: final[v] for k, v in file_of.items()}}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2))
