"""The policy's chat template: what renders a conversation, with the user's variables, and how a turn ends."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from sppo_megatron.errors import ConfigError

logger = logging.getLogger(__name__)

Message = dict[str, Any]
Template = Callable[..., str]  # (messages), or (messages, tools=...) that this conversation may call

KEY = "data.chat_template_kwargs"
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_FOR_TEMPLATES = ("tools", "documents")  # arguments of transformers' method that the template reads
_ANSWER = "sppoanswer"


def chat_template(tokenizer: Any, variables: Mapping[str, Any] = _NOTHING) -> Template:
    """What makes text of a conversation, up to where the assistant's next turn begins.

    variables: more that the template reads, e.g. {"enable_thinking": False}; one that it doesn't read, which changes
    nothing, is warned of. Raises ConfigError for a tokenizer without a template, and for what is no variable of it.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "data.apply_chat_template=true, but the tokenizer has no chat template; "
            "set data.apply_chat_template=false or use a tokenizer that has one"
        )
    source = tokenizer.get_chat_template(tools=variables.get("tools"))
    arguments = inspect.signature(tokenizer.apply_chat_template).parameters
    for name in variables:
        if name in arguments and name not in _FOR_TEMPLATES:
            raise ConfigError(f"{KEY} can't set {name!r}: it is for variables of the chat template")
        if not re.search(rf"\b{re.escape(name)}\b", source):
            logger.warning("%s sets %r, which the chat template doesn't read: it changes nothing", KEY, name)

    def render(messages: list[Message], tools: list[dict[str, Any]] | None = None) -> str:
        given = {**variables, **({"tools": tools} if tools else {})}
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **given))

    return render


def end_of_turn(tokenizer: Any, variables: Mapping[str, Any] = _NOTHING) -> tuple[str, int | None]:
    """What the template puts behind an answer, and the first token in it that is more than text; None if there is none.

    ("", None) if the template doesn't take an answer.
    """
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, **variables))
    except Exception:  # templates raise what they like
        return "", None
    before, _, end = text.rpartition(_ANSWER)
    if not before:
        return "", None
    added = tokenizer.added_tokens_decoder.keys() - {tokenizer.unk_token_id}
    return end.strip(), next((i for i in tokenizer(end, add_special_tokens=False)["input_ids"] if i in added), None)
