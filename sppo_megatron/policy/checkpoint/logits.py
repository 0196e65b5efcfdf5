"""The logits of a stored model, by Megatron-Core's own loading and layers, in any layout."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from sppo_megatron.config import ModelConfig, ParallelismConfig, PrecisionConfig
from sppo_megatron.hf.architecture import Architecture
from sppo_megatron.policy.checkpoint.untrusted import nothing_executed
from sppo_megatron.policy.checkpoint.weights_table import STATE_DICT_METADATA
from sppo_megatron.policy.generate.inference import forward_logits, inference_layout
from sppo_megatron.policy.initialize import initialize_model_parallel, local_device
from sppo_megatron.policy.model.build import build_chunks, transformer_config, unwrap

_EXTRA_STATE = "_extra_state"  # Transformer Engine's FP8 history: no weight, and a converted checkpoint has none


@torch.no_grad()
def load_weights(chunks: list[nn.Module], groups: ProcessGroupCollection, folder: Path) -> None:
    """Loads a torch_dist checkpoint into a model in whatever layout it has. Collective."""
    metadata = STATE_DICT_METADATA | {"dp_cp_group": groups.dp_cp}
    wanted = {f"model{index}": _tensors_of(unwrap(chunk), metadata) for index, chunk in enumerate(chunks)}
    with warnings.catch_warnings(), nothing_executed(folder):
        warnings.simplefilter("ignore")
        state = dist_checkpointing.load(wanted, str(folder), TorchDistLoadShardedStrategy())
    for index, chunk in enumerate(chunks):
        missing, unexpected = unwrap(chunk).load_state_dict(state[f"model{index}"], strict=False)
        lost = [name for name in (*missing, *unexpected) if not name.endswith(_EXTRA_STATE)]
        if lost:
            raise RuntimeError(f"not loaded from {folder}: {', '.join(lost)}")


def _tensors_of(model: GPTModel, metadata: dict[str, Any]) -> dict[str, Any]:
    stored = model.sharded_state_dict(metadata=metadata)
    return {name: entry for name, entry in stored.items() if not name.endswith(_EXTRA_STATE)}


@torch.no_grad()
def model_logits(
    chunks: list[nn.Module], config: TransformerConfig, groups: ProcessGroupCollection, vocab_size: int, tokens: Tensor
) -> Tensor:
    """tokens int64 [b, s], the same on every rank -> fp32 logits [b, s, vocab_size], the same on every rank."""
    models = [unwrap(chunk) for chunk in chunks]
    context = StaticInferenceContext(max_batch_size=tokens.shape[0], max_sequence_length=tokens.shape[1])
    with inference_layout(models, config):
        logits = forward_logits(models, config, groups, tokens.to(local_device()), context, all_positions=True)
    shared = [None if logits is None else logits[..., :vocab_size].float().cpu()]
    dist.broadcast_object_list(shared, group=groups.pp, group_src=groups.pp.size() - 1)
    assert shared[0] is not None
    return shared[0]


def checkpoint_logits(
    folder: Path,
    architecture: Architecture,
    padded_vocab_size: int,
    parallelism: ParallelismConfig,
    tokens: Tensor,
) -> Tensor:
    """As `model_logits`, of a torch_dist checkpoint computed in fp32. Takes over Megatron's process groups."""
    groups = initialize_model_parallel(parallelism, seed=0)
    config = transformer_config(architecture, ModelConfig(), parallelism, PrecisionConfig(dtype="fp32"))
    chunks = build_chunks(architecture, config, padded_vocab_size, groups)
    load_weights(chunks, groups, folder)
    return model_logits(chunks, config, groups, architecture.vocab_size, tokens)
