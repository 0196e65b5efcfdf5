"""Rotary positions: the frequencies of a config, by transformers' own formulas."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sppo_megatron.errors import ConfigError

_SCALED = ("linear", "llama3", "yarn")
_ALSO_HARMLESS = frozenset({"type", "max_position_embeddings"})
_READ = frozenset(
    {
        "rope_type",
        "rope_theta",
        "factor",
        "partial_rotary_factor",
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    }
)


@dataclass(frozen=True)
class Rope:
    """inv_freq: fp32 [rotated components / 2], radians per token. scaling: of cosines and sines.

    longest_sequence: tokens up to which this is transformers' definition, None without an end.
    """

    inv_freq: torch.Tensor
    scaling: float = 1.0
    longest_sequence: int | None = None


def read_rope(
    hf_config: Any,
    head_dim: int,
    *,
    partial: bool = False,
    layer_type: str | None = None,
    also_read: frozenset[str] = frozenset(),
) -> Rope:
    """The config's rope, that of layers of layer_type if it has several.

    partial: the family rotates a part of a head if the config says so. also_read: entries that the family reads.
    Raises ConfigError for a kind or an entry that isn't supported.
    """
    parameters = hf_config.rope_parameters if layer_type is None else hf_config.rope_parameters[layer_type]
    unknown = sorted(parameters.keys() - _READ - _ALSO_HARMLESS - also_read)
    if unknown:
        raise ConfigError(f"the {hf_config.model_type} config's rope has {', '.join(unknown)}, which is not supported")
    share = parameters.get("partial_rotary_factor", 1.0)
    if share != 1 and not partial:
        raise ConfigError(f"the {hf_config.model_type} config uses partial_rotary_factor={share}: not supported")
    kind = parameters.get("rope_type", "default")
    if kind in ("default", "dynamic"):  # dynamic changes the base where a sequence is longer than the model's context
        dims = int(head_dim * share)
        exponents = torch.arange(0, dims, 2, dtype=torch.float32) / dims
        longest = hf_config.max_position_embeddings if kind == "dynamic" else None
        return Rope(1.0 / (parameters["rope_theta"] ** exponents), longest_sequence=longest)
    if kind not in _SCALED:
        raise ConfigError(f"rope_type {kind!r} is not supported; supported are default, dynamic, {', '.join(_SCALED)}")
    inv_freq, scaling = ROPE_INIT_FUNCTIONS[kind](hf_config, torch.device("cpu"), layer_type=layer_type)
    return Rope(inv_freq.float(), float(scaling))


def softmax_scale(rope: Rope, head_dim: int, model_type: str) -> float | None:
    """The factor of q·k for grouped queries, None for 1/√head_dim.

    A scaling m of cosines and sines multiplies queries and keys, so q·k by m². That holds for heads that are rotated
    whole; for others a ConfigError is raised.
    """
    if rope.scaling == 1:
        return None
    if 2 * len(rope.inv_freq) != head_dim:
        raise ConfigError(f"the {model_type} config scales the rotary positions of a part of a head: not supported")
    return rope.scaling**2 / math.sqrt(head_dim)
