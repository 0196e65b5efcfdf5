"""What a model family is: one entry of the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sppo_megatron.hf.architecture import Architecture
from sppo_megatron.hf.families.fields import ConfigFields


@dataclass(frozen=True)
class ExpertNames:
    """Where a family's Hugging Face tensors of a mixture of experts are, inside `model.layers.N.`.

    An expert's tensors are `{block}.experts.{index}.{gate|up|down}.weight`.
    """

    block: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    router: str = "gate"
    shared: str | None = None  # the shared expert
    shared_gate: str | None = None  # its [1, hidden] gate
    bias: str | None = None  # the [experts] bias that only the choice sees, beside the router's weight
    stacked: bool = False  # all experts of a layer in one tensor: see `stacked_experts`


@dataclass(frozen=True)
class LayerNames:
    """A layer's Hugging Face tensors, inside `model.layers.N.`: norms before attention and MLP, and after them."""

    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    attention_post_norm: str | None = None
    mlp_post_norm: str | None = None
    experts: ExpertNames | None = None


@dataclass(frozen=True)
class Family:
    """read: the architecture of a config whose fields have been checked. Raises ConfigError for what isn't supported.

    untrained: tensors of a checkpoint that are no part of the trained model, as a regular expression over their whole
    names, for a config; they are named, kept, and written to exports as they are. None: there are no such tensors.
    """

    read: Callable[[Any], Architecture]
    fields: ConfigFields = field(default_factory=ConfigFields)
    layer: LayerNames = field(default_factory=LayerNames)
    untrained: Callable[[Architecture], str] | None = None
