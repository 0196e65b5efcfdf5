"""Composes the configuration with Hydra from `configs/` and command-line overrides; types it as `config.Config`.

Hydra's compose API is used and not its decorator, so that nothing is written and no folder is made per rank.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sppo_megatron.config.overrides import find_unknown, is_free, known_names, quote_text, suggestion
from sppo_megatron.config.schema import Config, all_keys
from sppo_megatron.config.values import to_config
from sppo_megatron.errors import ConfigError, raise_problems


def config_folder() -> Path:
    """The YAML groups: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def compose_config(overrides: Sequence[str], *, extra_folder: str | None = None) -> tuple[Config, DictConfig]:
    """(typed, plain) configuration from `key=value` and `group=option` overrides.

    extra_folder: one more place to look for groups and experiments. Raises ConfigError naming every unknown key with
    the known ones nearest to it, or every value that its key can't have.
    """
    folders = [config_folder(), *([Path(extra_folder)] if extra_folder else [])]
    groups = {path.name for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_dir()}
    raise_problems(find_unknown(overrides, groups))
    search = [f"hydra.searchpath=[file://{Path(extra_folder).resolve()}]"] if extra_folder else []
    _store_defaults()
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(config_folder().resolve()), version_base="1.3"):
            composed = compose("config", overrides=[*map(quote_text, overrides), *search])
        raise_problems(f"{key} is not a known key{suggestion(key)}" for key in _unknown_in(composed))
        raise_problems(f"{key} must be given: {key}=..." for key in sorted(OmegaConf.missing_keys(composed)))
        values: Any = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: Hydra's own of objective=0
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(_explain(error)) from error
    return to_config(values), composed


@cache
def _store_defaults() -> None:
    """What the YAML files are merged into. Only what lies in a mapping may have names that aren't keys."""
    node = OmegaConf.create(asdict(Config()))
    for name in all_keys():
        if is_free(name):
            OmegaConf.set_struct(OmegaConf.select(node, name), False)
    ConfigStore.instance().store(name="schema", node=node)


def _unknown_in(composed: DictConfig, prefix: str = "") -> list[str]:
    """Names that no key has: files may bring them."""
    known, found = known_names(), []
    for name, node in composed.items_ex(resolve=False):
        key = prefix + str(name)
        if key not in known:
            found.append(key)
        elif known[key] is None and isinstance(node, DictConfig):
            found += _unknown_in(node, f"{key}.")
    return found


def _explain(error: Exception) -> str:
    """The reasons in one line, with the way out if an option isn't known or an override can't be read."""
    reasons = []
    cause: BaseException | None = error
    while cause is not None:
        reasons.append(str(cause).strip().splitlines()[0])
        cause = cause.__cause__
    text = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
    if isinstance(error, MissingConfigException) and error.options:
        return f"{text}: choose one of {', '.join(error.options)}"
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    place = re.search(r"full_key: (.+)", "\n".join(map(str, (error, error.__cause__))))
    if place and "is not in struct" in text:
        return f"{place[1]} is not a known key{suggestion(place[1])}"
    return f"{place[1]}: {text}" if place else text


def _unreadable(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override} is not an override: write key=value, or group=option"
    quoted = value.replace('"', '\\"')
    return (
        f"{override} is not readable as key=value. Text with special characters takes quotes of its own inside the "
        f"shell's: '{key}=\"{quoted}\"'"
    )
