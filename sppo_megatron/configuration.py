"""Composes the configuration with Hydra: typed by `config.Config`, from `configs/`, with command-line overrides.

Hydra's compose API is used and not its decorator, so that nothing is written and no folder is made per rank.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sppo_megatron.config import Config
from sppo_megatron.validation import ConfigError


def config_folder() -> Path:
    """The YAML groups: beside the package in a checkout, inside it when installed."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def compose_config(overrides: Sequence[str], *, extra_folder: str | None = None) -> tuple[Config, DictConfig]:
    """(typed, plain) configuration from `key=value` and `group=option` overrides.

    extra_folder: one more place where groups and experiments are looked for. Raises ConfigError with the known keys
    nearest to an unknown one.
    """
    ConfigStore.instance().store(name="schema", node=Config)
    search = [f"hydra.searchpath=[file://{Path(extra_folder).resolve()}]"] if extra_folder else []
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(config_folder().resolve()), version_base="1.3"):
            composed = compose("config", overrides=[*overrides, *search])
        typed: Any = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error)) from error
    return typed, composed


def _explain(error: Exception) -> str:
    """The innermost reason in one line, with a suggestion for a key that isn't known."""
    reasons = []
    cause: BaseException | None = error
    while cause is not None:
        reasons.append(str(cause).strip().splitlines()[0])
        cause = cause.__cause__
    text = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
    known = [f"{group.name}.{key.name}" for group in fields(Config) for key in _keys_of(group)]
    words = [word.strip("'\".,=+") for reason in reasons for word in reason.split()]
    near = [
        match
        for word in words
        if "." in word and word not in known
        for match in difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    ]
    return f"{text}; did you mean {', '.join(dict.fromkeys(near))}?" if near else text


def _keys_of(group: Any) -> Sequence[Any]:
    default = group.default_factory() if callable(group.default_factory) else None
    return fields(default) if hasattr(default, "__dataclass_fields__") else ()
