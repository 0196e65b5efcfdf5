"""What a mini-batch is made of: single responses, or pairs of a winner and a loser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from sppo_megatron.batch.micro_batches import Sample, Unit
from sppo_megatron.batch.targets import Targets
from sppo_megatron.config import ObjectiveConfig
from sppo_megatron.types import Group


def build_units(
    samples: Sequence[Sample], groups: Sequence[Group], targets: Targets, objective: ObjectiveConfig
) -> list[Unit]:
    """samples: of `build_samples`, the groups' responses first. Each unit is (response,) or (winner, loser)."""
    if objective.pairwise is None:
        return [(sample,) for sample in samples]
    return list(_human_pairs(samples, groups) if objective.pairwise == "spin" else _pairs(samples, groups, targets))


def _pairs(samples: Sequence[Sample], groups: Sequence[Group], targets: Targets) -> Iterator[Unit]:
    """The best and the worst of each group, by win rate, or by reward where there are no win rates.

    A group without a spread has no pair.
    """
    values = targets.values.tolist()
    start = 0
    for group in groups:
        places = range(start, start + len(group.responses))
        start = places.stop
        winner, loser = max(places, key=values.__getitem__), min(places, key=values.__getitem__)
        if values[winner] > values[loser]:
            i, j = winner - places.start, loser - places.start
            gap = targets.rewards[winner] - targets.rewards[loser]
            preference = group.preference[i][j] if group.preference is not None else torch.sigmoid(gap)
            samples[winner].preference = float(preference)
            yield samples[winner], samples[loser]


def _human_pairs(samples: Sequence[Sample], groups: Sequence[Group]) -> Iterator[Unit]:
    """SPIN (arXiv 2401.01335): the human response of a prompt against each response of π_t."""
    start = 0
    first_human = sum(len(group.responses) for group in groups)
    for place, group in enumerate(groups):
        for loser in samples[start : start + len(group.responses)]:
            yield samples[first_human + place], loser
        start += len(group.responses)
