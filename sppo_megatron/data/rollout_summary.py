"""What is known of a rollout file without its groups: enough to plan with it and to check it against a model."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from sppo_megatron.types import Group


@dataclass
class RolloutSummary:
    """responses: of each group, their number. largest_id: the largest token id, −1 without any. longest: tokens of a
    prompt and one of its responses, at most."""

    responses: list[int] = field(default_factory=list)
    largest_id: int = -1
    longest: int = 0

    def add(self, group: Group) -> None:
        tokens = [response.token_ids for response in group.responses]
        for ids in (group.prompt.token_ids, *tokens):
            self.largest_id = max(self.largest_id, int(ids.max(initial=-1)))
        self.longest = max(self.longest, len(group.prompt.token_ids) + max(map(len, tokens), default=0))
        self.responses.append(len(tokens))

    def to_bytes(self) -> bytes:
        """JSON behind its checksum."""
        content = json.dumps(asdict(self)).encode()
        return f"{zlib.crc32(content):08x} ".encode() + content

    @classmethod
    def from_bytes(cls, stored: bytes) -> RolloutSummary:
        """Raises ValueError if a byte has changed."""
        checksum, _, content = stored.partition(b" ")
        if int(checksum, 16) != zlib.crc32(content):
            raise ValueError("its checksum is another")
        return cls(**json.loads(content))


def summary_of(groups: Iterable[Group]) -> RolloutSummary:
    summary = RolloutSummary()
    for group in groups:
        summary.add(group)
    return summary
