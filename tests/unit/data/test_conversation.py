"""Conversations by templates as models have them: taken as the template takes them, or refused and named."""

from __future__ import annotations

import pytest

from sppo_megatron.data.chat_template import chat_template
from sppo_megatron.data.conversation import is_written_out, render
from sppo_megatron.data.json_values import NotText
from tests.unit.data.test_prompts import make_tokenizer

END = "{% if add_generation_prompt %}<assistant>{% endif %}"
CONCATENATES = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}" + END
PRINTS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}{% endfor %}" + END
KNOWS_TOOLS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content %}{{ m.content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}[{{ call.function.name }}]{% endfor %}{% endfor %}" + END
)
JOINS_PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}" + END
)
DROPS_OTHERS = "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}{% endif %}{% endfor %}" + END

USER = {"role": "user", "content": "Hi"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
TOOL = {"role": "tool", "content": "42"}


def parts(*texts):
    return {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}


def rendered(template, *messages):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return render(list(messages), chat_template(tokenizer), "q")


@pytest.mark.parametrize(
    ("template", "messages", "text"),
    [
        (CONCATENATES, [USER], "<user>Hi<assistant>"),
        (CONCATENATES, [parts("Hi")], "<user>Hi<assistant>"),
        (PRINTS, [parts(" Hi ")], "<user>Hi<assistant>"),
        (JOINS_PARTS, [parts("Hi", " you")], "<user>Hi you<assistant>"),
        (KNOWS_TOOLS, [USER, CALL, TOOL], "<user>Hi<assistant>[f]<tool>42<assistant>"),
        (KNOWS_TOOLS, [parts("Hi"), CALL, TOOL], "<user>Hi<assistant>[f]<tool>42<assistant>"),
        (PRINTS, [{**USER, "tool_calls": None, "name": None}], "<user>Hi<assistant>"),
    ],
)
def test_what_a_template_takes(template, messages, text):
    assert rendered(template, *messages) == text


@pytest.mark.parametrize(
    ("template", "messages", "said"),
    [
        (PRINTS, [], "empty prompt"),
        (PRINTS, [USER, {"role": "assistant", "content": "Hello!"}], "'q' ends with a turn of the assistant"),
        (PRINTS, [parts("Hi", "you")], "'q' has a message of several parts, which the chat template doesn't join"),
        (PRINTS, [USER, CALL, TOOL], "'q', message 2: the chat template prints its null content as text"),
        (CONCATENATES, [USER, CALL, TOOL], "'q': the chat template refuses it: "),
        (CONCATENATES, [USER, {**CALL, "content": ""}, TOOL], "message 2: the chat template leaves its tool_calls out"),
        (DROPS_OTHERS, [USER, TOOL, USER], "message 2: the chat template leaves out turns of the role 'tool'"),
        (PRINTS, [USER, {"role": "user", "content": None}], "'q', message 2 has no \"content\""),
        (PRINTS, [{"role": "user"}], "'q', message 1 has no \"content\""),
        (PRINTS, [{"role": "user", "content": 5}], "'q', message 1 has \"content\" that is a JSON int, not text"),
        (PRINTS, [{"from": "human", "value": "Hi"}], r"message 1 has the keys \['from', 'value'\]: .*\"role\" and"),
        (PRINTS, ["Hi"], "message 1 is a JSON text: it must be an object"),
        (PRINTS, [{"role": "user", "content": [{"type": "image_url", "url": "x"}]}], "content part 1 is 'image_url'"),
        (
            PRINTS,
            [{"role": "user", "content": ["Hi"]}],
            "content part 1 is a JSON text: the policy reads parts",
        ),
    ],
)
def test_what_is_refused(template, messages, said):
    with pytest.raises(ValueError, match=said):
        rendered(template, *messages)


@pytest.mark.parametrize("message", [{"role": "user", "content": "a\ud83d"}, parts("b", "a\ud83d")])
def test_half_a_surrogate_pair(message):
    with pytest.raises(NotText, match=r"'q', message 2 holds \\ud83d at character 2, half of a surrogate pair"):
        rendered(JOINS_PARTS, USER, message)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"role": "user", "content": "Hi"}]', True),
        (' [{"role": "user"}, {"role": "system"}]', True),
        ("[1, 2] is a list", False),
        ("[]", False),
        ('[{"a": 1}]', False),
        ("Hi", False),
    ],
)
def test_messages_written_out_as_text(text, expected):
    assert is_written_out(text) == expected
