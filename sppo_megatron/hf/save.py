"""A folder in Hugging Face format, written from a stream of tensors and moved into place when it is complete."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from sppo_megatron.data.atomic_file import atomic_folder
from sppo_megatron.hf.families import family_of
from sppo_megatron.hf.safetensors_writer import SafetensorsWriter
from sppo_megatron.hf.side_files import write_side_files
from sppo_megatron.hf.stacked_experts import stack_experts
from sppo_megatron.hf.weight_files import INDEX_FILE, SINGLE_FILE


def save_hf_folder(
    folder: str | Path,
    tensors: Iterator[tuple[str, Tensor]],
    hf_config: Any,
    source: Path | None = None,
    *,
    max_file_bytes: int = 4 << 30,
) -> None:
    """Writes weights, config, generation config and tokenizer; an existing folder of that name is replaced at the end.

    source: the folder of the model whose generation config and tokenizer come along, byte for byte.
    Peak memory is one tensor, one layer's experts where they are published in a stack. A file holds max_file_bytes at
    most, or a single tensor that is larger.
    """
    with atomic_folder(folder) as partial:
        save_weights(partial, as_published(tensors, hf_config), max_file_bytes)
        write_side_files(partial, hf_config, source)


def as_published(tensors: Iterator[tuple[str, Tensor]], hf_config: Any) -> Iterator[tuple[str, Tensor]]:
    """The policy's tensors by the names that its family publishes."""
    experts = family_of(hf_config.model_type).layer.experts
    if experts is None or not experts.stacked:
        return tensors
    return stack_experts(tensors, hf_config.num_local_experts)


def save_weights(folder: Path, tensors: Iterator[tuple[str, Tensor]], max_file_bytes: int = 4 << 30) -> None:
    """Writes weight files and, if there are several, their index into an existing folder."""
    written: list[list[str]] = []  # the names in each file
    total_bytes = 0
    writer: SafetensorsWriter | None = None
    for name, tensor in tensors:
        if writer is None or not writer.has_room(name, tensor, max_file_bytes):
            if writer is not None:
                writer.close()
            writer = SafetensorsWriter(folder / _part(len(written)))
            written.append([])
        writer.add(name, tensor)
        written[-1].append(name)
        total_bytes += tensor.nbytes
    if writer is not None:
        writer.close()
    if len(written) == 1:
        os.replace(folder / _part(0), folder / SINGLE_FILE)
        return
    file_of: dict[str, str] = {}
    for number, names in enumerate(written):
        final = f"model-{number + 1:05d}-of-{len(written):05d}.safetensors"
        os.replace(folder / _part(number), folder / final)
        file_of |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": file_of}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2))


def _part(number: int) -> str:
    return f"part-{number:05d}.safetensors"
