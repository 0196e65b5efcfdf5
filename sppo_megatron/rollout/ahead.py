"""The next iteration's rollouts, generated while this one is trained."""

from __future__ import annotations

from dataclasses import dataclass

from sppo_megatron.engines.base import AheadEngine
from sppo_megatron.types import Group, Prompt


@dataclass
class RolloutsAhead:
    """Holds what the engine generates ahead until it is taken. Collective: every rank makes the same calls."""

    engine: AheadEngine
    is_running: bool = False
    groups: list[Group] | None = None

    def start(self, prompts: list[Prompt], iteration: int) -> None:
        """Begins with the rollouts of `iteration`, from the engine's weights of now."""
        self.engine.start(prompts, iteration)
        self.is_running = True

    def finish(self) -> list[Group] | None:
        """Waits for what is under way. The groups stay until they are taken; None where nothing was begun."""
        if self.is_running:
            self.groups = self.engine.finish()
            self.is_running = False
        return self.groups

    def take(self) -> list[Group] | None:
        """Hands the groups over, once."""
        groups, self.groups = self.finish(), None
        return groups

    def restore(self, groups: list[Group]) -> None:
        """Groups that a checkpoint held."""
        self.groups = groups
