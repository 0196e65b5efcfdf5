"""The config.json of a model: loaded, checked field by field, read as an `Architecture`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.architecture import Architecture
from sppo_megatron.hf.families import ALSO_CALLED, family_of
from sppo_megatron.hf.families.fields import check_fields
from sppo_megatron.hf.remote_code import remote_code_refused


def load_hf_config(hf_path: str) -> Any:
    """The Hugging Face config at a local folder or hub id. Raises ConfigError that says what to put there."""
    with remote_code_refused(f"model.hf_path={hf_path!r}"):
        try:
            values, _ = PreTrainedConfig.get_config_dict(hf_path)
            family = ALSO_CALLED.get(values.get("model_type", ""))
            if family is None:
                return AutoConfig.from_pretrained(hf_path, trust_remote_code=False)
            own = {name: value for name, value in values.items() if name not in ("model_type", "auto_map")}
            return CONFIG_MAPPING[family].from_dict(own)
        except (OSError, ValueError) as error:
            what = (
                "has no readable config.json" if Path(hf_path).is_dir() else "is neither a local folder nor reachable"
            )
            raise ConfigError(
                f"model.hf_path={hf_path!r} {what}: give a folder in Hugging Face format or a hub id ({error})"
            ) from error


def read_architecture(hf_config: Any) -> Architecture:
    """The architecture of a Hugging Face config.

    Raises ConfigError for a family or a feature that isn't supported, naming it and what is.
    """
    family = family_of(hf_config.model_type)
    check_fields(hf_config, family.fields)
    return family.read(hf_config)
