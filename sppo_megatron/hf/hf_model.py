"""A model in Hugging Face format, opened for conversion: what its folder says, and its tensors by slices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo_megatron.hf.architecture import Architecture
from sppo_megatron.hf.families import family_of
from sppo_megatron.hf.fused_experts import by_expert
from sppo_megatron.hf.hf_checkpoint import HFTensors, SafetensorsFolder
from sppo_megatron.hf.hf_config import load_hf_config, read_architecture
from sppo_megatron.hf.hf_folder import resolve_hf_folder
from sppo_megatron.hf.side_files import write_side_files
from sppo_megatron.hf.stacked_experts import StackedExperts
from sppo_megatron.hf.tokenizer import load_tokenizer
from sppo_megatron.hf.untrained import trained


@dataclass(frozen=True)
class HFModel:
    folder: Path
    hf_config: Any
    tokenizer: Any | None

    @property
    def architecture(self) -> Architecture:
        """Raises ValueError for what isn't supported."""
        return read_architecture(self.hf_config)

    def save_side_files(self, folder: Path) -> None:
        """Everything but the weights, into a new folder."""
        write_side_files(folder, self.hf_config, self.folder)


def open_hf_model(hf_path: str) -> HFModel:
    """Raises ValueError for what isn't there."""
    folder = resolve_hf_folder(hf_path)
    hf_config = load_hf_config(str(folder))
    return HFModel(folder, hf_config, load_tokenizer(folder))


def open_weights(folder: Path, architecture: Architecture) -> HFTensors:
    """The policy's tensors in a folder, an expert's each by itself however the experts are stored."""
    experts = family_of(architecture.family).layer.experts
    tensors = trained(SafetensorsFolder(folder), architecture)
    return StackedExperts(tensors) if experts is not None and experts.stacked else by_expert(tensors, experts)
