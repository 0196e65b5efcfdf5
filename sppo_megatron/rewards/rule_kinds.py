"""The rewards by a rule, as the registry has them: what each takes of the configuration, and what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sppo_megatron.config import RewardConfig
from sppo_megatron.errors import ConfigError
from sppo_megatron.rewards import rules
from sppo_megatron.rewards.code import SHARE, code, read_cases
from sppo_megatron.rewards.function import find_function
from sppo_megatron.rewards.kind import verifier_kind


def nothing() -> None:
    """What workers call first for a rule that needs no preparation, and may run for ever."""


def _check_pattern(reward: RewardConfig) -> Iterator[str]:
    if not reward.rule.pattern:
        yield "reward.kind=regex needs reward.rule.pattern: a regular expression"
        return
    try:
        re.compile(reward.rule.pattern)
    except re.error as error:
        yield f"reward.rule.pattern={reward.rule.pattern!r} is no regular expression: {error}"


def _check_schema(reward: RewardConfig) -> Iterator[str]:
    if not reward.rule.schema:
        yield "reward.kind=json_schema needs reward.rule.schema: {type: object, ...}"
        return
    try:
        from jsonschema import Draft202012Validator, SchemaError
    except ImportError:
        yield "reward.kind=json_schema needs the package jsonschema: pip install 'sppo-megatron[schema]'"
        return
    try:
        Draft202012Validator.check_schema(reward.rule.schema)
    except SchemaError as error:
        yield f"reward.rule.schema is no JSON schema: {error.message}"


def _check_tags(reward: RewardConfig) -> Iterator[str]:
    names = reward.rule.tags
    if not names or len(set(names)) < len(names):
        yield f"reward.rule.tags={names} must be names that differ"


def _check_limits(reward: RewardConfig) -> Iterator[str]:
    low, high = reward.rule.min_tokens, reward.rule.max_tokens
    if low == 0 and high is None:
        yield "reward.kind=length needs reward.rule.min_tokens or reward.rule.max_tokens"
    elif high is not None and high < low:
        yield f"reward.rule.max_tokens={high} is below reward.rule.min_tokens={low}"


def _limits(reward: RewardConfig) -> dict[str, Any]:
    rule = reward.rule
    return {"at_least": rule.min_tokens, "at_most": rule.max_tokens, "margin": rule.margin}


def _check_sandbox(reward: RewardConfig) -> Iterator[str]:
    try:
        if reward.code.sandbox is not None:
            find_function(reward.code.sandbox, "reward.code.sandbox")
    except ConfigError as error:
        yield str(error)


def _of_code(reward: RewardConfig) -> dict[str, Any]:
    own = reward.code
    return {
        "sandbox": own.sandbox,
        "memory": own.memory_mb << 20,
        "seconds": SHARE * reward.timeout_s,
        "partial_credit": own.partial_credit,
    }


RULES = (
    verifier_kind(rules.choice, check_answer=rules.letter_of_answer),
    verifier_kind(
        rules.regex,
        prepare=nothing,
        rule=lambda reward: {"pattern": reward.rule.pattern},
        needs_answer=False,
        check=_check_pattern,
    ),
    verifier_kind(
        rules.json_schema,
        rule=lambda reward: {"schema": reward.rule.schema},
        needs_answer=False,
        check=_check_schema,
        package="jsonschema",
        install="pip install 'sppo-megatron[schema]'",
    ),
    verifier_kind(
        rules.tags,
        rule=lambda reward: {"names": reward.rule.tags},
        needs_answer=False,
        says_correct=False,
        check=_check_tags,
    ),
    verifier_kind(rules.length, rule=_limits, needs_answer=False, says_correct=False, check=_check_limits),
    verifier_kind(code, prepare=nothing, rule=_of_code, check=_check_sandbox, check_answer=read_cases),
)
