"""Variables of the chat template, and what it puts behind an answer."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from sppo_megatron.config import DataConfig
from sppo_megatron.data.chat_template import chat_template, end_of_turn
from sppo_megatron.data.prompts import load_prompts
from sppo_megatron.errors import ConfigError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}<think></think>{% endif %}"
    "{% endif %}"
)
USER = {"role": "user", "content": "Hi"}


def make_tokenizer(template: str | None, *specials: str) -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({"<unk>": 0, "Hi": 1}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.add_special_tokens([*specials, "<|endoftext|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>", unk_token="<unk>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("variables", "end"),
    [({}, "assistant\n"), ({"enable_thinking": False}, "<think></think>"), ({"enable_thinking": True}, "assistant\n")],
)
def test_variables_reach_the_template(variables, end):
    assert chat_template(make_tokenizer(CHATML), variables)([USER]).endswith(end)


def test_tools_are_a_variable():
    render = chat_template(make_tokenizer("{{ tools[0].name }}"), {"tools": [{"name": "look"}]})
    assert render([USER]) == "look"


def test_prompts_are_rendered_with_the_variables(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": [USER]}) + "\n")
    data = DataConfig(apply_chat_template=True, chat_template_kwargs={"enable_thinking": False})
    [prompt] = load_prompts(path, make_tokenizer(CHATML), data)
    assert prompt.text.endswith("<think></think>")


@pytest.mark.parametrize(
    ("template", "variables", "said"),
    [
        (CHATML, {"add_generation_prompt": False}, "can't set 'add_generation_prompt'"),
        (CHATML, {"tokenize": True}, "can't set 'tokenize'"),
        (None, {}, "the tokenizer has no chat template"),
    ],
)
def test_what_is_no_variable_is_refused(template, variables, said):
    with pytest.raises(ConfigError, match=said):
        chat_template(make_tokenizer(template), variables)


@pytest.mark.parametrize(("name", "is_said"), [("enable_thinkng", 1), ("enable", 1), ("enable_thinking", 0)])
def test_a_variable_that_changes_nothing_is_said(caplog, name, is_said):
    chat_template(make_tokenizer(CHATML), {name: False})
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == is_said and all(f"{name!r}, which the chat template doesn't read" in text for text in said)


TURNS = "{% for m in messages %}[{{ m.role }}] {{ m.content }}"


@pytest.mark.parametrize(
    ("template", "specials", "end"),
    [
        (CHATML, ["<|im_start|>", "<|im_end|>"], ("<|im_end|>", "<|im_end|>")),
        (CHATML, [], ("<|im_end|>", None)),  # of which the tokenizer makes several tokens
        (TURNS + " {{ eos_token }}{% endfor %}", [], ("<|endoftext|>", "<|endoftext|>")),
        (TURNS + "\n\n{% endfor %}", [], ("", None)),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", [], ("", None)),
        ("{{ raise_exception('no answers') }}", [], ("", None)),
    ],
)
def test_the_end_of_a_turn(template, specials, end):
    tokenizer = make_tokenizer(template, *specials)
    text, token = end_of_turn(tokenizer)
    assert (text, None if token is None else tokenizer.convert_ids_to_tokens(token)) == end
