"""Whether data and tokenizer fit the model, and responses can end: found out before anything is built."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sppo_megatron.config import Config, DataConfig
from sppo_megatron.data.chat_template import end_of_turn
from sppo_megatron.data.sources import LoadedSource
from sppo_megatron.errors import raise_problems
from sppo_megatron.types import Prompt

if TYPE_CHECKING:
    from sppo_megatron.train.inputs import Inputs

logger = logging.getLogger(__name__)


def check_inputs(config: Config, inputs: Inputs, loaded: Sequence[LoadedSource]) -> None:
    """Raises ConfigError, listing every problem: token ids without a row in the embedding, sequences that are longer
    than the model has positions. Warns if responses can't end where the chat template ends a turn.

    loaded: the sources of prompts that responses are sampled for, of training and evaluation.
    """
    vocab_size, positions = inputs.model.vocab_size, max_positions(inputs.hf_config)
    problems: list[str] = []
    for each in loaded:
        name = f"{each.source.key}={each.source.path}"
        problems += _bad_prompt_ids(name, each.prompts, vocab_size, inputs.tokenizer)
        problems += _too_long(name, each.prompts, config.rollout.max_response_length, positions)
    if inputs.stored is not None:
        path, engine = config.rollout.path, config.rollout.engine
        name = f"rollout.engine={engine}" if path is None else f"rollout.path={path}"
        largest, longest = inputs.stored.bounds()
        if largest >= vocab_size:
            problems.append(f"{name} has the token id {largest}, and {_rows(vocab_size)}: give rollouts of this model")
        if positions is not None and longest > positions:
            problems.append(f"{name} has a sequence of {longest} tokens, and {_positions(positions)}: leave it out")
    wrong = [token for token in config.rollout.stop_token_ids if not 0 <= token < vocab_size]
    if wrong:
        problems.append(f"rollout.stop_token_ids={wrong} can't be sampled: {_rows(vocab_size)}")
    raise_problems(problems)
    if loaded:
        _check_ends(inputs, [each.source.data for each in loaded if each.source.data.apply_chat_template])


def max_positions(hf_config: Any) -> int | None:
    """Tokens that a sequence may have, after rope scaling; None if the config doesn't say."""
    text_config = hf_config.get_text_config()
    limit = getattr(text_config, "max_position_embeddings", None)
    rope = getattr(text_config, "rope_parameters", None) or {}
    if limit is None or rope.get("rope_type") not in ("linear", "dynamic", "yarn"):
        return limit
    return max(limit, int(rope.get("factor", 1) * rope.get("original_max_position_embeddings", limit)))


def _bad_prompt_ids(name: str, prompts: Sequence[Prompt], vocab_size: int, tokenizer: Any) -> Iterator[str]:
    for prompt in prompts:
        human = () if prompt.human_token_ids is None else (prompt.human_token_ids,)
        largest = max(int(ids.max(initial=-1)) for ids in (prompt.token_ids, *human))
        if largest >= vocab_size:
            text = tokenizer.convert_ids_to_tokens(largest)
            yield (
                f"{name}: record {prompt.index + 1} has the token {text!r} with the id {largest}, and "
                f"{_rows(vocab_size)}: give the model the tokenizer that it was trained with, or resize its embedding "
                "(resize_token_embeddings of transformers) and save it again"
            )
            return


def _too_long(name: str, prompts: Sequence[Prompt], response_length: int, positions: int | None) -> Iterator[str]:
    longest = max((len(prompt.token_ids) for prompt in prompts), default=0)
    if positions is None or not prompts or longest + response_length <= positions:
        return
    fixes = []
    if longest < positions:
        fixes.append(f"rollout.max_response_length to {positions - longest} or less")
    if response_length < positions:
        fixes.append(f"data.max_prompt_length to {positions - response_length}, which leaves longer prompts out")
    yield (
        f"{name}: a prompt of {longest} tokens and rollout.max_response_length={response_length} make "
        f"{longest + response_length}, and {_positions(positions)}: set {', or '.join(fixes) or 'both lower'}"
    )


def _check_ends(inputs: Inputs, with_template: Sequence[DataConfig]) -> None:
    ends = {token for token in inputs.stop_token_ids if token < inputs.model.vocab_size}
    if not ends:
        logger.warning(
            "no token ends a response, so that each has rollout.max_response_length tokens: set rollout.stop_token_ids"
        )
    if not with_template or inputs.tokenizer is None:
        return
    text, token = end_of_turn(inputs.tokenizer, with_template[0].chat_template_kwargs)
    if token is not None and token not in ends:
        logger.warning(
            "the chat template ends a turn of the assistant with %r (token %d), which doesn't end a response "
            "(only %s do): set rollout.stop_token_ids=[%d]",
            inputs.tokenizer.convert_ids_to_tokens(token),
            token,
            sorted(ends),
            token,
        )
    elif token is None and text:
        logger.warning(
            "the chat template ends a turn of the assistant with the text %r, which is no token of its own: responses "
            "end with %s alone",
            text,
            sorted(ends),
        )


def _rows(vocab_size: int) -> str:
    return f"the model's embedding has {vocab_size} rows (ids 0 to {vocab_size - 1})"


def _positions(positions: int) -> str:
    return f"the model has {positions} positions (max_position_embeddings)"
