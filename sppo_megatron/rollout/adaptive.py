"""What the prompts are told of their groups: which taught something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sppo_megatron.rollout.filter import GroupFilter
from sppo_megatron.rollout.source import Prompts
from sppo_megatron.types import Group


@dataclass(frozen=True)
class Lessons:
    """prompts: a stream that passes over those which teach nothing. teach: whether a scored group has a spread."""

    prompts: Prompts
    teach: GroupFilter

    @property
    def waiting(self) -> int:
        """Prompts that will be passed over when their turn comes."""
        return self.prompts.waiting

    def note(self, groups: Sequence[Group]) -> None:
        """Of groups in the order of their prompts, all of those that were taken or left out."""
        for group, taught in zip(groups, self.teach(groups), strict=True):
            self.prompts.note(group.prompt, taught)
