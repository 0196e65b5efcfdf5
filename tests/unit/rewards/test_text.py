from __future__ import annotations

import numpy as np
import pytest

from sppo_megatron.rewards.text import (
    JUDGE_TEMPLATE,
    PAIRWISE_TEMPLATE,
    content_text,
    conversation,
    load_template,
    printable,
    render,
    transcript,
    with_answer,
)
from sppo_megatron.types import Prompt


def test_texts_are_filled_in_once():
    template = 'Q {prompt} A {first} B {second} {"json": {first}}'
    filled = render(template, "{first}", "{second}\\1", "{prompt}{0}")
    assert filled == 'Q {first} A {second}\\1 B {prompt}{0} {"json": {second}\\1}'


@pytest.mark.parametrize("template", [JUDGE_TEMPLATE, PAIRWISE_TEMPLATE])
def test_the_built_in_ones_show_everything_in_order(template):
    filled = render(template, "PROMPT", "FIRST", "SECOND")
    assert filled.index("PROMPT") < filled.index("FIRST") < filled.index("SECOND")
    assert "{" not in filled
    assert load_template(None, template) == template


def test_a_file(tmp_path):
    path = tmp_path / "template.txt"
    path.write_text("{prompt} é {first} {second}", encoding="utf-8")
    assert load_template(str(path), "") == "{prompt} é {first} {second}"
    path.write_text("{prompt} {first}")
    with pytest.raises(ValueError, match=r"lacks \{second\}"):
        load_template(str(path), "")
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="can't be read"):
        load_template(str(path), "")
    with pytest.raises(ValueError, match="nowhere"):
        load_template(str(tmp_path / "nowhere"), "")


USER = {"role": "user", "content": "What is 1 + 1?"}
SYSTEM = {"role": "system", "content": "Be brief."}
IDS = np.array([1], dtype=np.int32)


def prompt_of(*messages, text="<|im_start|>as the policy is fed<|im_end|>"):
    return Prompt(0, IDS, text, messages=list(messages) or None)


def test_nobody_sees_the_rendering_that_the_policy_is_fed():
    assert transcript(prompt_of(USER), None) == "What is 1 + 1?"
    assert transcript(prompt_of(SYSTEM, USER), None) == "[system]\nBe brief.\n\n[user]\nWhat is 1 + 1?"
    assert transcript(prompt_of(text="plain"), None) == "plain"
    assert conversation(prompt_of(SYSTEM, USER), None) == [SYSTEM, USER]
    assert conversation(prompt_of(text="plain"), None) == [{"role": "user", "content": "plain"}]
    decoded = conversation(Prompt(0, IDS), lambda batch: ["decoded" for _ in batch])
    assert decoded == [{"role": "user", "content": "decoded"}]


def test_the_answer_is_the_assistants_turn_or_ends_it():
    assert with_answer([USER], "2") == [USER, {"role": "assistant", "content": "2"}]
    begun = {"role": "assistant", "content": "It is "}
    assert with_answer([USER, begun], "2") == [USER, {"role": "assistant", "content": "It is 2"}]
    assert begun["content"] == "It is "


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("hi", "hi"),
        (None, ""),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        ([{"type": "image_url", "image_url": "x"}, {"type": "text", "text": "b"}], "b"),
        (["a", {"text": "b"}], "ab"),
        (7, "7"),
    ],
)
def test_contents(content, text):
    assert content_text(content) == text
    assert conversation(prompt_of({"role": "user", "content": content}), None)[0]["content"] == text


def test_printable():
    assert printable("é \ud83d") == "é \\ud83d"
