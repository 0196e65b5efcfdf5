"""A list of work cut into batches, of which several machines take shares."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sppo_megatron.errors import ConfigError


@dataclass(frozen=True)
class Shard:
    """Share `index` of `count`, from 0."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "0/4", the first of four. Raises ConfigError."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not int(match[1]) < int(match[2]):
            raise ConfigError(
                f"--shard {text} is no share: I/N with I from 0 to N - 1, such as 0/4 for the first of four"
            )
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Batches:
    """`total` items in batches of batch_size. They are cut along the whole list and a shard takes consecutive ones.

    So what is in a batch does not depend on the sharding, and the shards' results, one behind the other, are the
    whole list's.
    """

    total: int
    batch_size: int
    shard: Shard = Shard()

    @property
    def of_shard(self) -> range:
        """The numbers of this shard's batches, counted along the whole list."""
        count = -(-self.total // self.batch_size)
        start, stop = (count * i // self.shard.count for i in (self.shard.index, self.shard.index + 1))
        return range(start, stop)

    @property
    def num_items(self) -> int:
        """The items of this shard."""
        return sum(len(self.items(batch)) for batch in self.of_shard)

    def items(self, batch: int) -> range:
        """The places of a batch's items in the whole list."""
        return range(batch * self.batch_size, min((batch + 1) * self.batch_size, self.total))

    def finished(self, num_items: int) -> int:
        """How many of this shard's batches are whole if its first num_items items are done."""
        return sum(self.items(batch).stop - self.first_item <= num_items for batch in self.of_shard)

    @property
    def first_item(self) -> int:
        """The place of this shard's first item."""
        return self.of_shard.start * self.batch_size
