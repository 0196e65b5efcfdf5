"""Where vLLM on CPU answers wrongly, or doesn't start, for some families. Without effect on other devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def mend_rotary() -> None:
    """vLLM 0.32's CPU kernel takes the tokens' stride from the second-last dimension.

    Right for [tokens, heads · d], wrong, and silently, for the [tokens, heads, d] of multi-latent attention: those go
    through vLLM's own plain torch. To be called before a model is built.
    """
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    kernel = RotaryEmbedding.forward_cpu

    def forward_cpu(self: Any, positions: Any, query: Any, key: Any = None, *args: Any, **kwargs: Any) -> Any:
        way = kernel if query.dim() == 2 else RotaryEmbedding.forward_native
        return way(self, positions, query, key, *args, **kwargs)

    RotaryEmbedding.forward_cpu = forward_cpu  # type: ignore[method-assign]


def cpu_arguments(folder: Path) -> dict[str, Any]:
    """Engine arguments for the model of a folder: the attention of multi-latent layers must be named, in any dtype."""
    if "kv_lora_rank" in json.loads((folder / "config.json").read_text()):
        return {"attention_config": {"backend": "CPU_MLA"}}
    return {}
