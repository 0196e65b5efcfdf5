"""What is known of an engine before it is built: its checks, and what others would else compare its name for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo_megatron.config import Config
from sppo_megatron.engines.base import Engine
from sppo_megatron.errors import ConfigError

if TYPE_CHECKING:
    from sppo_megatron.engines.megatron import TokenGenerator


@dataclass(frozen=True)
class Surroundings:
    """What an engine is built in. folder: the model, in Hugging Face format. longest_prompt: tokens.

    generator: the model of these ranks as one that continues sequences; it may be built by the call.
    standalone: no trainer is beside it that will bring weights: the engine has those of the folder.
    """

    config: Config
    folder: Path
    longest_prompt: int
    generator: Callable[[], TokenGenerator]
    standalone: bool = False


def no_problems(config: Config, world_size: int) -> Iterator[str]:
    """The check of an engine that any valid configuration suits."""
    return iter(())


def no_settings(config: Config) -> dict[str, Any]:
    """The settings of an engine without keys of its own."""
    return {}


@dataclass(frozen=True)
class EngineKind:
    """One value of rollout.engine. Importing the module that holds it needs neither torch nor vLLM.

    build: collective, before any model of these ranks is built, for vLLM wants to see the device's memory free.
    check: (config, processes of the job) -> what is wrong with the engine's own keys, one message each.
    settings: the keys, besides those of every engine, that decide what it samples.
    device_share: share of each training GPU's memory that it takes while it samples; None if it takes no fixed share.
    has_own_weights: it holds a copy of the weights, which is pushed to and can be probed. in_ranks: it samples on the
    trainer's own devices. works_ahead: it samples while the trainer works.
    package: what must be installed beside the trainer, with install, the way to do so.
    """

    name: str
    build: Callable[[Surroundings], Engine]
    has_own_weights: bool
    in_ranks: bool
    works_ahead: bool = False
    check: Callable[[Config, int], Iterator[str]] = no_problems
    settings: Callable[[Config], dict[str, Any]] = no_settings
    device_share: Callable[[Config], float | None] = lambda config: None
    package: str | None = None
    install: str = ""

    def check_installed(self) -> None:
        """Raises ConfigError, saying what to install, if the engine's package is missing. Doesn't import it."""
        if self.package is not None and find_spec(self.package) is None:
            raise ConfigError(f"rollout.engine={self.name} needs {self.package}: {self.install}")
