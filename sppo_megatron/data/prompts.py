"""Records become prompts; and the endless, resumable stream the trainer draws them from."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from sppo_megatron.config import DataConfig
from sppo_megatron.data.human_response import human_token_ids
from sppo_megatron.data.length_filter import keep_short
from sppo_megatron.data.records import Record, Split, read_records
from sppo_megatron.types import Prompt

logger = logging.getLogger(__name__)

MAX_PROBLEMS_SHOWN = 20
TRAIN_SPLIT = Split(None, "train", "data.train_split")


def load_prompts(
    path: str | Path,
    tokenizer: Any,
    config: DataConfig,
    require_answer: bool = False,
    split: Split = TRAIN_SPLIT,
) -> list[Prompt]:
    """Reads one prompt per record of what `read_records` takes; `Prompt.index` is its 0-based place among the records.

    tokenizer: a Hugging Face tokenizer. How a prompt becomes tokens:

    - apply_chat_template=True: text is wrapped as one user message, a list of messages is taken as it is, and the
      tokenizer's chat template renders them with add_generation_prompt=True. The template alone decides about special
      tokens.
    - apply_chat_template=False: text only. It is what the model continues, so the tokenizer's begin token is put in
      front where the tokenizer does that by default, and nothing is ever added behind (some tokenizers add an end
      token, which no model continues).

    `Prompt.text` is the text as the file has it, or the rendered conversation where the file has messages.
    Answers that are JSON numbers become text. An absent or null answer is None, unless require_answer.
    Prompts longer than config.max_prompt_length tokens are dropped, with one warning that counts them.

    Raises ValueError, naming every bad line or row at once: not JSON, a missing key, an empty prompt, a wrong type; or
    where no prompt is short enough; and what `read_records` raises.
    """
    if config.apply_chat_template and not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "data.apply_chat_template=true, but the tokenizer has no chat template; "
            "set data.apply_chat_template=false or use a tokenizer that has one"
        )
    begin_ids = _begin_ids(tokenizer)
    prompts: list[Prompt] = []
    problems: list[str] = []
    for index, (place, record) in enumerate(read_records(path, split)):
        try:
            if isinstance(record, ValueError):
                raise record
            prompts.append(_to_prompt(record, index, tokenizer, begin_ids, config, require_answer))
        except ValueError as error:
            problems.append(f"{place}: {error}")
    if problems:
        raise ValueError(_all_at_once(path, problems))
    if config.max_prompt_length is None:
        return prompts
    limit, key = config.max_prompt_length, "data.max_prompt_length"
    return keep_short(prompts, lambda prompt: len(prompt.token_ids), limit, key, "prompts", path)


def _all_at_once(path: str | Path, problems: list[str]) -> str:
    kind = problems[0].partition(" ")[0]  # line or row
    shown = problems[:MAX_PROBLEMS_SHOWN]
    if len(problems) > len(shown):
        shown.append(f"... and {len(problems) - len(shown)} more")
    return f"{path} has {len(problems)} bad {kind}s:\n  " + "\n  ".join(shown)


def _to_prompt(
    record: Record, index: int, tokenizer: Any, begin_ids: list[int], config: DataConfig, require_answer: bool
) -> Prompt:
    if config.prompt_key not in record:
        raise ValueError(f"no key {config.prompt_key!r} (data.prompt_key); the keys are {sorted(record)}")
    prompt = record[config.prompt_key]
    answer = _answer(record.get(config.answer_key), config.answer_key)
    if require_answer and answer is None:
        raise ValueError(f"no answer under {config.answer_key!r} (data.answer_key); the keys are {sorted(record)}")

    if config.apply_chat_template:
        messages = _messages(prompt, config.prompt_key)
        try:
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # templates raise what they like about roles they don't know
            raise ValueError(f"the chat template refuses it: {error}") from None
        token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        text = prompt if isinstance(prompt, str) else text
    else:
        text = _text(prompt, config.prompt_key)
        token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if token_ids[: len(begin_ids)] != begin_ids:  # the text may spell its begin token out
            token_ids = begin_ids + token_ids
    if not token_ids:
        raise ValueError("the prompt has no tokens")
    human = None if config.response_key is None else human_token_ids(record, config.response_key, tokenizer)
    return Prompt(index, np.asarray(token_ids, dtype=np.int32), text, answer, human)


def _text(prompt: object, key: str) -> str:
    if isinstance(prompt, list):
        raise ValueError(f"{key!r} is a list of messages; set data.apply_chat_template=true")
    if not isinstance(prompt, str):
        raise ValueError(f"{key!r} is a JSON {type(prompt).__name__}, not text")
    if not prompt.strip():
        raise ValueError("empty prompt")
    return prompt


def _messages(prompt: object, key: str) -> list[dict]:
    """Text becomes one user message; a list must hold {"role": .., "content": ..} objects."""
    if not isinstance(prompt, list):
        return [{"role": "user", "content": _text(prompt, key)}]
    if not prompt:
        raise ValueError("empty prompt")
    for message in prompt:
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise ValueError(f'{key!r} has a message that is not an object with "role" and "content"')
    return prompt


def _answer(answer: object, key: str) -> str | None:
    if answer is None or isinstance(answer, str):
        return answer
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        return str(answer)
    raise ValueError(f"{key!r} is a JSON {type(answer).__name__}, not text or a number")


def _begin_ids(tokenizer: Any) -> list[int]:
    """[begin token] where the tokenizer puts it in front by default, else []."""
    begin = tokenizer.bos_token_id
    with_specials = tokenizer("a")["input_ids"]
    without = tokenizer("a", add_special_tokens=False)["input_ids"]
    adds_begin = begin is not None and with_specials[:1] == [begin] and without[:1] != [begin]
    return [begin] if adds_begin else []


class PromptStream:
    """Endless epochs over the prompts; each epoch in an order that is a pure function of (seed, epoch).

    The only state is `position`, the number of prompts handed out so far, so a resumed stream continues exactly. An
    iteration may straddle two epochs, and may then hold the same prompt twice.
    """

    def __init__(self, prompts: list[Prompt], prompts_per_iteration: int, seed: int, shuffle: bool = True) -> None:
        if not prompts:
            raise ValueError("the prompt data set is empty (or every prompt is over data.max_prompt_length)")
        if prompts_per_iteration < 1:
            raise ValueError(f"prompts_per_iteration must be at least 1, got {prompts_per_iteration}")
        if prompts_per_iteration > len(prompts):
            raise ValueError(
                f"train.prompts_per_iteration={prompts_per_iteration} is more than the {len(prompts)} prompts there "
                f"are; set it to {len(prompts)} or less"
            )
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.prompts = prompts
        self.prompts_per_iteration = prompts_per_iteration
        self.seed = seed
        self.shuffle = shuffle
        self.position = 0
        self._cached_epoch = -1
        self._cached_order = np.empty(0, dtype=np.int64)

    def next(self) -> list[Prompt]:
        """The next prompts_per_iteration prompts."""
        prompts = [self._at(self.position + offset) for offset in range(self.prompts_per_iteration)]
        self.position += self.prompts_per_iteration
        return prompts

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        position = state["position"]
        if position < 0:
            raise ValueError(f"position must not be negative, got {position}")
        self.position = int(position)

    def _at(self, position: int) -> Prompt:
        epoch, place = divmod(position, len(self.prompts))
        return self.prompts[self._order(epoch)[place]]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch != self._cached_epoch:
            self._cached_order = np.arange(len(self.prompts))
            if self.shuffle:
                # Sorting the raw words of a counter-based generator: numpy guarantees these bits in every version,
                # which it doesn't for `Generator.permutation`.
                key = np.array([self.seed, epoch], dtype=np.uint64)
                words = np.random.Philox(key=key).random_raw(len(self.prompts))
                self._cached_order = np.argsort(words, kind="stable")
            self._cached_epoch = epoch
        return self._cached_order
