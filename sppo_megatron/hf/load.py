"""Hugging Face tensors into Megatron parameters, one local shard at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.hf_checkpoint import HFTensors
from sppo_megatron.hf.mapping import EMBEDDING, OUTPUT_LAYER, canonical_name, expert_index, hf_shapes
from sppo_megatron.hf.tensor_layouts import TensorLayout

# Buffers that old checkpoints store and the config determines.
_DERIVED = (".rotary_emb.inv_freq",)
_NAMES = ("model.embed_tokens.weight", "lm_head.weight")  # of the embedding, and of a head that may be tied to it
_ROWS = 4096  # compared at a time


def check_names_and_shapes(layouts: Mapping[str, TensorLayout], found: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError that names every missing, unexpected and wrongly shaped tensor (the first ten of each)."""
    expected = hf_shapes(layouts)
    ignored = {name for name in found if name.endswith(_DERIVED)}
    if EMBEDDING in layouts and OUTPUT_LAYER not in layouts:
        ignored.add(_head_of(layouts[EMBEDDING].hf_names[0]))  # a tied head may be stored twice
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected and name not in ignored]
    misshapen = [
        f"{name} is {list(found[name])}, the config says {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    problems = [
        f"{title}: {', '.join(names[:10])}{f' and {len(names) - 10} more' if len(names) > 10 else ''}"
        for title, names in (("missing", missing), ("unexpected", extra), ("wrong shape", misshapen))
        if names
    ]
    if problems:
        raise ConfigError("the checkpoint does not fit its config.json: " + "; ".join(problems))


def check_tensors(layouts: Mapping[str, TensorLayout], tensors: HFTensors) -> None:
    """Raises ValueError as `check_names_and_shapes` does, and for a head that is stored, isn't the embedding, and by
    the config is: transformers 5 keeps it, 4 and vLLM drop it."""
    check_names_and_shapes(layouts, tensors.shapes())
    if OUTPUT_LAYER not in layouts:
        check_tied_head(tensors, layouts[EMBEDDING].hf_names[0])


def _head_of(embedding_name: str) -> str:
    embedding, head = _NAMES
    return embedding_name.removesuffix(embedding) + head


def check_tied_head(tensors: HFTensors, embedding_name: str = _NAMES[0]) -> None:
    """Raises ConfigError if a tied head is stored beside the embedding and isn't equal to it."""
    shapes, name = tensors.shapes(), _head_of(embedding_name)
    if not {name, embedding_name} <= shapes.keys():
        return
    embedding, head = tensors.source(embedding_name), tensors.source(name)
    for start in range(0, shapes[name][0], _ROWS):
        part = slice(start, start + _ROWS)
        if not torch.equal(embedding[part].float(), head[part].float()):
            raise ConfigError(
                f"config.json says tie_word_embeddings=true, and the stored {name} isn't the embedding: set it to "
                "false to use the stored head, or remove that tensor to use the embedding"
            )


@torch.no_grad()
def load_parameters(
    parameters: Iterable[tuple[str, Tensor]],
    layouts: Mapping[str, TensorLayout],
    tensors: HFTensors,
    *,
    tp_rank: int,
    tp_size: int,
    expert_tp: tuple[int, int] | None = None,
) -> None:
    """Fills this rank's parameters, given by their global Megatron names.

    expert_tp: (rank, size) by which experts are sharded, if not (tp_rank, tp_size).
    Reads only this rank's share; peak memory is the local shard plus the largest tensor. Raises ValueError as
    `check_names_and_shapes` does, and if a local parameter's shape differs from its shard's.
    """
    check_names_and_shapes(layouts, tensors.shapes())
    for name, parameter in parameters:
        layout = layout_of(name, layouts)
        rank, size = (tp_rank, tp_size) if expert_tp is None or expert_index(name) is None else expert_tp
        shard = layout.shard([tensors.source(hf_name) for hf_name in layout.hf_names], rank, size)
        if shard.shape != parameter.shape:
            raise ValueError(f"{name} is {list(parameter.shape)} here, its shard is {list(shard.shape)}")
        parameter.copy_(shard)
        if hasattr(parameter, "get_high_precision_init_val"):
            # Stored in FP8 by Transformer Engine: the optimizer starts from this unrounded copy beside it.
            parameter.get_high_precision_init_val().copy_(shard)


def layout_of(name: str, layouts: Mapping[str, TensorLayout]) -> TensorLayout:
    """The layout of a parameter by its global Megatron name; a tied output layer has the embedding's."""
    canonical = canonical_name(name)
    if canonical == OUTPUT_LAYER and OUTPUT_LAYER not in layouts:
        canonical = EMBEDDING
    if canonical not in layouts:
        raise ValueError(f"the model has a parameter {name} that the conversion table doesn't know")
    return layouts[canonical]
