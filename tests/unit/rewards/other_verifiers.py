"""How other trainers decide whether a response is right, stated anew from what their public code does."""

from __future__ import annotations

import logging
import re

from math_verify import parse, verify
from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

logging.getLogger("math_verify").setLevel(logging.ERROR)  # its own timeouts are off


def verl_gsm8k(response: str, answer: str) -> bool:
    """verl's GSM8K score, flexible: the last thing of digits, points and commas is, character by character, the answer.

    Only the last 300 characters are read.
    """
    found = [text for text in re.findall(r"-?[0-9.,]+", response[-300:]) if text not in ("", ".")]
    return bool(found) and found[-1] == answer


def trl(response: str, answer: str) -> bool:
    """TRL's accuracy reward: math-verify on LaTeX that is marked as such, boxes first; the first match counts.

    The answer is read as it stands; an example whose answer can't be read is skipped, which is no reward.
    """
    gold = parse(answer, extraction_mode="first_match", parsing_timeout=None)
    latex = LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)
    found = parse(response, [latex], extraction_mode="first_match", parsing_timeout=None)
    return bool(gold) and bool(verify(gold, found, timeout_seconds=None))


def nemo_rl(response: str, answer: str) -> bool:
    """NeMo-RL's math environment: math-verify with the answer in a box, responses as expressions or LaTeX."""
    gold = parse(f"\\boxed{{{answer}}}", [LatexExtractionConfig()], parsing_timeout=None)
    found = parse(response, [ExprExtractionConfig(), LatexExtractionConfig()], parsing_timeout=None)
    return bool(verify(gold, found, timeout_seconds=None))


OTHERS = {"verl_gsm8k": verl_gsm8k, "trl": trl, "nemo_rl": nemo_rl}
