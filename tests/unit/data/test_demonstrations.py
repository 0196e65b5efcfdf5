"""Demonstrations become tokens with a mask over the assistant's turns: the one that transformers itself makes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sppo_megatron.config import DataConfig
from sppo_megatron.config.sources import Source
from sppo_megatron.data.demonstrations import load_demonstrations
from sppo_megatron.errors import ConfigError
from tests.unit.data.test_preferences import assistant, make_tokenizer, user, words

# What stands between the marks is what transformers counts as the assistant's.
MARKED = (
    "{% for m in messages %}[{{ m.role }}] {% if m.role == 'assistant' %}{% generation %}{{ m.content }} <end>"
    "{% endgeneration %} {% else %}{{ m.content }} <end> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
TALK = [user("hi"), assistant("well"), user("hi hi"), assistant("yes no"), user("well"), assistant("no")]


def load(tmp_path, *records, limit: int = 50, template: str = MARKED, **data):
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return load_demonstrations(Source(None, str(path), "data.train_path", DataConfig(**data)), tokenizer, limit)


@pytest.mark.parametrize("turns", [TALK, TALK[:2], [{"role": "system", "content": "well"}, *TALK[:4]], TALK[:5]])
def test_the_mask_is_that_of_transformers(tmp_path, turns):
    """A conversation that goes on behind its last answer is cut there."""
    [group] = load(tmp_path, {"messages": turns, "n": 3}, apply_chat_template=True)
    [response] = group.responses
    tokenizer = make_tokenizer()
    tokenizer.chat_template = MARKED
    whole = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    length = len(group.prompt.token_ids) + len(response.token_ids)
    ids = np.concatenate([group.prompt.token_ids, response.token_ids])
    assert ids.tolist() == whole["input_ids"][:length]
    mask = np.ones(len(response.token_ids), bool) if response.loss_mask is None else response.loss_mask
    expected = whole["assistant_masks"]
    assert [0] * len(group.prompt.token_ids) + mask.astype(int).tolist() == expected[:length]
    assert not any(expected[length:]) and mask[0] and mask[-1] and response.length == sum(expected)
    assert group.prompt.extra == {"n": 3}


def test_a_prompt_and_its_response(tmp_path):
    record = {"prompt": "hi hi", "gold": "yes no"}
    [group] = load(tmp_path, record, response_key="gold")
    assert words(group.prompt.token_ids) == "hi hi" and words(group.responses[0].token_ids) == "yes no </s>"
    assert group.prompt.extra == {} and group.prompt.human_token_ids is None and group.responses[0].loss_mask is None
    [group] = load(tmp_path, record, response_key="gold", apply_chat_template=True)
    assert words(group.prompt.token_ids) == "[user] hi hi <end> [assistant]"
    assert words(group.responses[0].token_ids) == "yes no <end>"


def test_tools_and_what_the_assistant_calls(tmp_path):
    """A call is learned as a text is; what a tool says isn't."""
    marked = MARKED.replace(
        "{{ m.content }} <end>{% endgen",
        "{{ m.tool_calls[0].function.name if m.tool_calls else m.content }} <end>{% endgen",
    )
    template = "{% if tools %}{{ tools[0].function.name }} {% endif %}" + marked
    tools = [{"type": "function", "function": {"name": "well"}}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "no"}}]}
    talk = [user("hi"), call, {"role": "tool", "content": "yes"}, assistant("well")]
    [group] = load(tmp_path, {"messages": talk, "tools": tools}, template=template, apply_chat_template=True)
    [response] = group.responses
    assert words(group.prompt.token_ids) == "well [user] hi <end> [assistant]"
    assert words(response.token_ids) == "no <end> <unk> yes <end> [assistant] well <end>"
    assert response.loss_mask.tolist() == [True] * 2 + [False] * 4 + [True] * 2
    with pytest.raises(ConfigError, match="the chat template leaves the record's tools out"):
        load(tmp_path, {"messages": talk, "tools": tools}, template=marked, apply_chat_template=True)


def test_long_ones_are_left_out_and_counted(tmp_path, caplog):
    groups = load(tmp_path, {"messages": TALK}, {"messages": TALK[:2]}, limit=4, apply_chat_template=True)
    assert [group.prompt.index for group in groups] == [1]
    assert "1 of 2 responses" in caplog.text and "rollout.max_response_length" in caplog.text


def test_every_bad_record_at_once(tmp_path):
    wrong = [
        ({"prompt": "hi"}, "no key 'messages'"),
        ({"messages": "hi"}, "'messages' is a JSON text, not a list of messages"),
        ({"messages": [user("hi")]}, "'messages' has no turn of the assistant to learn from"),
        ({"messages": [assistant("hi")]}, "empty prompt"),
        ({"messages": [user("hi"), assistant(" ")]}, "'messages', message 2: the assistant's turn has no text"),
        ({"messages": [user("hi"), assistant(None)]}, "'messages', message 2: the assistant's turn has no text"),
        ({"messages": [{"content": "hi"}, assistant("hi")]}, "message 1 has the keys ['content']"),
    ]
    with pytest.raises(ConfigError) as error:
        load(tmp_path, *(record for record, _ in wrong), apply_chat_template=True)
    lines = str(error.value).splitlines()
    assert f"{len(wrong)} bad lines" in lines[0]
    for number, (line, (_, said)) in enumerate(zip(lines[1:], wrong, strict=True), start=1):
        assert f"line {number}: " in line and said in line
    with pytest.raises(ConfigError, match=r"line 1: 'messages' is a list of messages; set data.apply_chat_template"):
        load(tmp_path, {"messages": TALK})
    with pytest.raises(ConfigError, match=r"line 1: no key 'gold' \(data.response_key\)"):
        load(tmp_path, {"prompt": "hi"}, response_key="gold")
    with pytest.raises(ConfigError, match="line 1: 'gold' is no text, or an empty one"):
        load(tmp_path, {"prompt": "hi", "gold": " "}, response_key="gold")


def test_a_template_that_changes_earlier_turns_is_refused(tmp_path):
    """As those do that leave out what a model thought before its last answer."""
    template = "{% for m in messages %}[{{ m.role }}] {% if loop.last or m.role == 'user' %}"
    template += "{{ m.content }} <end> {% endif %}{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant] {% endif %}"
    with pytest.raises(ConfigError, match=r"message 4: the chat template renders earlier turns in another way"):
        load(tmp_path, {"messages": TALK}, template=template, apply_chat_template=True)
