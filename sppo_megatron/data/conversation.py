"""Conversations as the policy's chat template renders them, or a word why not: nothing is dropped or garbled silently.

A template is a program that does with a message what it likes: prints a list of content parts as Python, prints null as
"None", leaves tool calls out. So what is more than text is compared with how the same conversation renders without it.
"""

from __future__ import annotations

import json

from sppo_megatron.data.chat_template import Message, Template
from sppo_megatron.data.json_values import check_text, json_name


def render(messages: list[Message], template: Template, key: str) -> str:
    """The conversation as text, with what begins the assistant's next turn.

    Content is text, a list of {"type": "text", "text": ...} parts, or, beside tool calls, null. Several parts must be
    rendered by the template itself; a single one is the same as its text.

    key: the column, for messages. Raises ValueError, naming the message, for what is no conversation, one that ends
    with a turn of the assistant, and whatever the template refuses, drops or garbles.
    """
    if not messages:
        raise ValueError("empty prompt")
    for number, message in enumerate(messages, start=1):
        _check(message, f"{key!r}, message {number}")
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            f"{key!r} ends with a turn of the assistant, and the policy would answer itself: leave that turn out"
        )
    # Tables give every message every field, with null for those it doesn't have.
    messages = [{k: v for k, v in message.items() if v is not None or k == "content"} for message in messages]
    text, messages = _render_parts(messages, template, key)
    for place in range(len(messages)):
        _check_rendered(text, messages, place, template, key)
    check_text(text, f"{key!r}, rendered by the chat template,")
    return text


def is_written_out(text: str) -> bool:
    """Whether the text is a list of messages in JSON, which would be taken as what the user said."""
    if not text.lstrip().startswith("["):
        return False
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return bool(messages) and all(isinstance(message, dict) and "role" in message for message in messages)


def _check(message: object, where: str) -> None:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        keys = f"has the keys {sorted(message)}" if isinstance(message, dict) else f"is a JSON {json_name(message)}"
        raise ValueError(f'{where} {keys}: it must be an object with "role" and "content"')
    content = message.get("content")
    if content is None:
        if not message.get("tool_calls"):
            raise ValueError(f'{where} has no "content"')
    elif isinstance(content, str):
        check_text(content, where)
    elif isinstance(content, list):
        for number, part in enumerate(content, start=1):
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = repr(part.get("type")) if isinstance(part, dict) else f"a JSON {json_name(part)}"
                raise ValueError(f"{where}, content part {number} is {kind}: the policy reads parts of text alone")
            check_text(part["text"], where)
    else:
        raise ValueError(f'{where} has "content" that is a JSON {json_name(content)}, not text')


def _render_parts(messages: list[Message], template: Template, key: str) -> tuple[str, list[Message]]:
    """The text, and the messages as the template got them: with content parts if it renders them as their texts."""
    if not any(isinstance(message.get("content"), list) for message in messages):
        return _apply(messages, template, key), messages
    joined = [_joined(messages, separator) for separator in ("", "\n", " ")]
    texts = [_apply(conversation, template, key) for conversation in joined]
    itself = _try(messages, template)
    if itself in texts:
        return itself, messages
    if len(set(texts)) > 1:
        raise ValueError(f"{key!r} has a message of several parts, which the chat template doesn't join: give text")
    return texts[0], joined[0]


def _joined(messages: list[Message], separator: str) -> list[Message]:
    """The conversation with texts instead of lists of parts."""
    return [
        {**message, "content": separator.join(part["text"] for part in message["content"])}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def _check_rendered(text: str, messages: list[Message], place: int, template: Template, key: str) -> None:
    """Whether null content, tool calls and turns of unusual roles are where a reader of the text finds them."""
    before, message, behind = messages[:place], messages[place], messages[place + 1 :]
    where = f"{key!r}, message {place + 1}: the chat template"
    if message.get("content") is None and _try([*before, {**message, "content": ""}, *behind], template) != text:
        raise ValueError(f'{where} prints its null content as text: give ""')
    if message.get("tool_calls"):
        without = {k: v for k, v in message.items() if k != "tool_calls"} | {"content": message.get("content") or ""}
        if _try([*before, without, *behind], template) == text:
            raise ValueError(f"{where} leaves its tool_calls out")
    if message["role"] not in ("system", "user", "assistant") and _try([*before, *behind], template) == text:
        raise ValueError(f"{where} leaves out turns of the role {message['role']!r}")


def _apply(messages: list[Message], template: Template, key: str) -> str:
    try:
        return template(messages)
    except Exception as error:  # templates raise what they like, for instance about roles they don't know
        raise ValueError(f"{key!r}: the chat template refuses it: {error}") from None


def _try(messages: list[Message], template: Template) -> str | None:
    try:
        return _apply(messages, template, "")
    except ValueError:
        return None
