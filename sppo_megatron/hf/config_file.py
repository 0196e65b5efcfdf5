"""config.json as transformers 4 and 5 both read it: 5 moved and renamed fields, and 4 takes its defaults in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# transformers 5 keeps these inside rope_parameters, 4 beside rope_scaling.
_BESIDE_ROPE_SCALING = ("rope_theta", "partial_rotary_factor")


def write_config(folder: Path, hf_config: Any) -> None:
    """Writes the config into an existing folder, with the fields of both major versions. Weights aren't quantised.

    Raises what `save_pretrained` raises for a config that can't be written.
    """
    hf_config.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    for alias, name in hf_config.attribute_map.items():  # what 5 renamed, as the number of experts
        if name in config:
            config.setdefault(alias, config[name])
    path.write_text(json.dumps(_with_old_fields(config), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _with_old_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of transformers 4 beside those of 5, in the configs inside it, too."""
    found = {key: _with_old_fields(value) if _is_config(value) else value for key, value in config.items()}
    if "dtype" in config:
        found["torch_dtype"] = config["dtype"]
    rope = config.get("rope_parameters")
    if isinstance(rope, dict):
        found |= _old_rope(rope)
    return found


def _is_config(value: Any) -> bool:
    return isinstance(value, dict) and "model_type" in value


def _old_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """rope_theta, and rope_scaling, null without any; layers that slide have a base of their own (Gemma 3)."""
    if "full_attention" in rope:
        sliding = rope.get("sliding_attention") or {}
        local = {"rope_local_base_freq": sliding["rope_theta"]} if "rope_theta" in sliding else {}
        return _old_rope(rope["full_attention"]) | local
    found = {name: rope[name] for name in _BESIDE_ROPE_SCALING if name in rope}
    scaling = {name: value for name, value in rope.items() if name not in _BESIDE_ROPE_SCALING}
    return found | {"rope_scaling": None if scaling.get("rope_type", "default") == "default" else scaling}
