"""Composes the configuration with Hydra: typed by `config.Config`, from `configs/`, with command-line overrides.

Hydra's compose API is used and not its decorator, so that nothing is written and no folder is made per rank.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sppo_megatron.config import Config
from sppo_megatron.errors import ConfigError


def config_folder() -> Path:
    """The YAML groups: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


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
    unknown = sorted(set(_keys_in(composed)) - set(_known_keys()))
    if unknown:  # `+key=value` gets past the schema, and nothing would read it
        raise ConfigError("\n".join(f"{key} is not a known key{_suggestion(key)}" for key in unknown))
    return typed, composed


def _explain(error: Exception) -> str:
    """The reasons in one line, with a suggestion for a key or an option that isn't known."""
    reasons = []
    cause: BaseException | None = error
    while cause is not None:
        reasons.append(str(cause).strip().splitlines()[0])
        cause = cause.__cause__
    text = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
    if isinstance(error, MissingConfigException) and error.options:
        return f"{text}: choose one of {', '.join(error.options)}"
    unknown = re.match(r"Could not override '([^']+)'", text)
    return text + _suggestion(unknown[1]) if unknown else text


def _suggestion(key: str) -> str:
    """The known keys nearest to one that isn't known, by their last names where it has no group."""
    known = _known_keys()
    if key in known:
        return ""
    names = {name: [name] for name in known}
    if "." not in key:
        for name in known:
            names.setdefault(name.rpartition(".")[2], []).append(name)
    near = [name for match in difflib.get_close_matches(key, names, n=3, cutoff=0.6) for name in names[match]]
    return f"; did you mean {', '.join(dict.fromkeys(near))}?" if near else ""


def _known_keys() -> list[str]:
    """Every key of the schema by its dotted name, groups by their own name too."""
    return _keys_of(Config())


def _keys_of(group: Any, prefix: str = "") -> list[str]:
    keys = []
    for key in fields(group):
        name, value = prefix + key.name, getattr(group, key.name)
        keys += [name, *(_keys_of(value, f"{name}.") if is_dataclass(value) else ())]
    return keys


def _keys_in(composed: DictConfig, prefix: str = "") -> list[str]:
    """The same of a composed configuration. What lies in a key whose value is free (a dict) is no key."""
    keys = []
    for key, node in composed.items_ex(resolve=False):
        name = prefix + str(key)
        free = isinstance(node, DictConfig) and node._metadata.object_type in (None, dict)
        keys += [name, *(_keys_in(node, f"{name}.") if isinstance(node, DictConfig) and not free else ())]
    return keys
