"""Which answers of a vote are the same one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from sppo_megatron.rewards.numbers import Number, last_boxed, last_number, same_number, whole_number
from sppo_megatron.rewards.own_turn import own_turn

_NOTHING = re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[,!;: ]|[\s$]")


class Votes(NamedTuple):
    """The different answers to one prompt, each as the places of the responses that give it, in the order of their
    first ones. silent: the places of responses that give none."""

    classes: list[list[int]]
    silent: list[int]


def count_votes(texts: Sequence[str], answer: str | None) -> Votes:
    """If the prompt's answer is a number, the number that a response ends on is its vote, read and compared as
    `reward.kind=numeric` does it. Else what stands in its last \\boxed{...}, without white space and without marks that
    change nothing, or the whole of it, without white space at its ends, if nothing is boxed; an empty one gives none.
    """
    if answer is not None and whole_number(answer.rpartition("####")[2]) is not None:
        return _count_numbers([last_number(own_turn(text)) for text in texts])
    classes: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        classes.setdefault(_text_of(own_turn(text)), []).append(place)
    return Votes([places for text, places in classes.items() if text], classes.get("", []))


def _count_numbers(numbers: Sequence[Number | None]) -> Votes:
    """A number belongs to the first class whose first number it equals."""
    firsts: list[Number] = []
    classes: list[list[int]] = []
    silent: list[int] = []
    for place, number in enumerate(numbers):
        if number is None:
            silent.append(place)
            continue
        found = next((i for i, first in enumerate(firsts) if same_number(number, first)), None)
        if found is None:
            firsts.append(number)
            classes.append([place])
        else:
            classes[found].append(place)
    return Votes(classes, silent)


def _text_of(text: str) -> str:
    boxed = last_boxed(text)
    if boxed is None:
        return text.strip()
    return re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", _NOTHING.sub("", boxed)).rstrip(".")
