"""Where a response stops being one: models that miss their end token go on with the next turn, and answer that, too."""

from __future__ import annotations

import re

# What begins somebody else's turn, at the beginning of a line or as a chat template's own mark.
_TURN = re.compile(
    r"^[ \t]*(?:\#+[ \t]*)?\**(?:Human|User|Instruction)\**[ \t]*:"
    r"|<\|im_start\|>\s*user|<\|start_header_id\|>\s*user|<start_of_turn>\s*user|<\|user\|>|<｜User｜>|\[INST\]",
    re.MULTILINE,
)
# A problem may be stated again before it is answered: another one begins only behind an answer.
_PROBLEM = re.compile(r"^[ \t]*\**(?:Question|Problem|Q)\**[ \t]*(?:\d+[ \t]*)?[:.]", re.MULTILINE)
_ANSWER = re.compile(r"\\boxed|####|\banswer\b[^\n]{0,20}\d|^[ \t]*\**A\**[ \t]*:", re.IGNORECASE | re.MULTILINE)


def own_turn(response: str) -> str:
    """The response up to where another turn begins, all of it if none does."""
    turn = _first(_TURN, response, 0)
    response = response if turn is None else response[:turn]
    answer = _ANSWER.search(response)
    problem = None if answer is None else _first(_PROBLEM, response, answer.end())
    return response if problem is None else response[:problem]


def _first(mark: re.Pattern[str], text: str, start: int) -> int | None:
    """Of the marks that have text before them."""
    return next((found.start() for found in mark.finditer(text, start) if text[: found.start()].strip()), None)
