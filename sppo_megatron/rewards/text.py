"""What a reward reads: the texts of prompts and responses, conversations, and templates that show two responses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sppo_megatron.errors import ConfigError
from sppo_megatron.types import Group, Prompt, Response

Decode = Callable[[Sequence[np.ndarray]], list[str]]  # token ids int32 [length] each -> texts without special tokens
Message = dict[str, Any]

PLACEHOLDERS = ("{prompt}", "{first}", "{second}")

JUDGE_TEMPLATE = """\
Below are a request and two responses to it, A and B. Decide which of the two serves the request better. Neither their \
order nor their length says anything about their quality.

[Request]
{prompt}

[Response A]
{first}

[Response B]
{second}

Answer with one letter and nothing else: A if response A is better, B if response B is better."""

PAIRWISE_TEMPLATE = """\
[Request]
{prompt}

[Response A]
{first}

[Response B]
{second}"""


def text_of(item: Prompt | Response, decode: Decode | None) -> str:
    """Raises ValueError if text is missing and there is no `decode`."""
    if item.text is not None:
        return item.text
    if decode is None:
        raise ValueError("cannot score a prompt or response without text: no tokenizer to decode its tokens with")
    return decode([item.token_ids])[0]


def texts_of(group: Group, decode: Decode | None) -> list[str]:
    """The texts of a group's responses. Raises as `text_of`."""
    return [text_of(response, decode) for response in group.responses]


def conversation(prompt: Prompt, decode: Decode | None) -> list[Message]:
    """The prompt as messages for somebody else's chat template: the record's own, else its text as the user's turn.

    Text parts of a content are joined; a content of None is "".
    """
    if prompt.messages:
        return [{**message, "content": content_text(message.get("content"))} for message in prompt.messages]
    return [{"role": "user", "content": text_of(prompt, decode)}]


def with_answer(messages: Sequence[Message], response: str) -> list[Message]:
    """The conversation with the response as the assistant's turn; it continues a last turn that is the assistant's."""
    if messages and messages[-1].get("role") == "assistant":
        return [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + response}]
    return [*messages, {"role": "assistant", "content": response}]


def transcript(prompt: Prompt, decode: Decode | None) -> str:
    """The prompt as plain text, without a chat template: the user's words alone, or each turn under its role.

    Never the rendering that the policy is fed.
    """
    messages = conversation(prompt, decode)
    if len(messages) == 1 and messages[0].get("role", "user") == "user":
        return messages[0]["content"]
    return "\n\n".join(f"[{message.get('role', 'user')}]\n{message['content']}" for message in messages)


def content_text(content: Any) -> str:
    """The text of a message's content: a string, None, or a list of parts of which those of text count."""
    if isinstance(content, str) or content is None:
        return content or ""
    if isinstance(content, Mapping):
        return str(content.get("text", ""))
    if isinstance(content, Sequence):
        return "".join(map(content_text, content))
    return str(content)


def printable(text: str) -> str:
    """The text with lone surrogates as escapes, so that any file can hold it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def load_template(path: str | None, default: str) -> str:
    """The file's text, the default if path is None. Raises ConfigError without a file or a placeholder."""
    if path is None:
        return default
    try:
        template = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the reward's template {path} can't be read: {error}") from error
    missing = [name for name in PLACEHOLDERS if name not in template]
    if missing:
        raise ConfigError(
            f"the reward's template {path} lacks {', '.join(missing)}: it needs {', '.join(PLACEHOLDERS)}"
        )
    return template


def render(template: str, prompt: str, first: str, second: str) -> str:
    """Fills in the placeholders; braces elsewhere, also in the three texts, stay as they are."""
    texts = dict(zip(PLACEHOLDERS, (prompt, first, second), strict=True))
    return re.sub("|".join(map(re.escape, PLACEHOLDERS)), lambda match: texts[match[0]], template)
