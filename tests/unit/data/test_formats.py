"""Records as other trainers write them become prompts; every one that is malformed is named by line and column."""

from __future__ import annotations

import json

import pytest

from sppo_megatron.config import Config, DataConfig
from sppo_megatron.config.data import check_data
from sppo_megatron.config.sources import check_sources
from sppo_megatron.data.prompts import load_prompts
from sppo_megatron.errors import ConfigError
from tests.unit.data.test_prompts import make_tokenizer

USER = {"role": "user", "content": "two plus two?"}
ANSWER = {"role": "assistant", "content": "four"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
TEMPLATE = (
    "{% if tools %}[tools {% for tool in tools %}{{ tool.function.name }} {% endfor %}]{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [USER],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"split": "train", "index": 0},
}
GYM = {"responses_create_params": {"input": [USER], "tools": TOOLS}, "expected_answer": "4", "agent_ref": {"name": "a"}}


def load(tmp_path, name, *records, parquet=False, template=TEMPLATE, **settings):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    if parquet:
        pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
        path = tmp_path / "records.parquet"
        pq.write_table(pa.Table.from_pylist(list(records)), path)
    else:
        path = tmp_path / "records.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = DataConfig(format=name, apply_chat_template=template is not None, **settings)
    return load_prompts(path, tokenizer, config, require_answer=settings.get("answer_key") != "none")


@pytest.mark.parametrize("parquet", [False, True])
def test_verl(tmp_path, parquet):
    [prompt] = load(tmp_path, "verl", VERL, parquet=parquet)
    assert (prompt.text, prompt.answer, prompt.messages) == ("<user>two plus two?<assistant>", "4", [USER])
    assert prompt.extra == {key: VERL[key] for key in ("data_source", "ability", "reward_model", "extra_info")}


def test_verl_s_tests_of_programs(tmp_path):
    tests = {"inputs": ["1\n"], "outputs": ["2\n"]}
    [prompt] = load(tmp_path, "verl", {**VERL, "reward_model": {"style": "rule", "ground_truth": tests}})
    assert json.loads(prompt.answer) == tests


def test_trl(tmp_path):
    """Text is what the model continues, messages are rendered, in one file."""
    records = [{"prompt": "The sky is", "answer": "blue"}, {"prompt": [USER], "answer": "4", "tools": TOOLS}]
    plain, chat = load(tmp_path, "trl", *records)
    assert plain.text == "The sky is" and plain.messages is None and chat.messages == [USER]
    assert chat.text == "[tools add ]<user>two plus two?<assistant>" and chat.extra == {"tools": TOOLS}


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)], ids=["list", "text"])
def test_openai(tmp_path, tools):
    """With a last turn of the assistant that is the answer; without it the answer has a column."""
    records = [{"messages": [USER, ANSWER], "tools": tools}, {"messages": [USER], "answer": 4}]
    first, second = load(tmp_path, "openai", *records)
    assert (first.text, first.answer) == ("[tools add ]<user>two plus two?<assistant>", "four")
    assert (second.text, second.answer) == ("<user>two plus two?<assistant>", "4")
    assert first.messages == second.messages == [USER]


def test_nemo_rl(tmp_path):
    records = [{"input": "two plus two?", "output": "4"}, {"messages": [USER, ANSWER]}, GYM]
    prompts = load(tmp_path, "nemo_rl", *records)
    assert [prompt.answer for prompt in prompts] == ["4", "four", "4"]
    rendered = "<user>two plus two?<assistant>"
    assert [prompt.text for prompt in prompts] == ["two plus two?", rendered, "[tools add ]" + rendered]
    assert prompts[0].token_ids.tolist() == prompts[1].token_ids.tolist()
    assert prompts[2].extra == {key: GYM[key] for key in ("responses_create_params", "agent_ref")}


def test_every_malformed_record_at_once(tmp_path):
    wrong = {
        "verl": [
            ({**VERL, "prompt": None}, "'prompt' is a JSON null"),
            ({"data_source": "x"}, "no key 'prompt' (data.format=verl)"),
            ({**VERL, "reward_model": None}, "no answer under 'reward_model.ground_truth' (data.format=verl)"),
            ({**VERL, "reward_model": "4"}, "'reward_model' is a JSON text, not an object with ground_truth"),
            ({**VERL, "prompt": [{"content": "x"}]}, "'prompt', message 1 has the keys ['content']"),
        ],
        "openai": [
            ({"messages": "x"}, "'messages' is a JSON text, not a list of messages"),
            ({"prompt": "x"}, "no key 'messages' (data.format=openai)"),
            ({"messages": []}, "no answer under 'answer'"),
            ({"messages": [ANSWER]}, "empty prompt"),
            (
                {"messages": [USER, {**ANSWER, "content": None}]},
                "message 2: the last turn of the assistant has",
            ),
            ({"messages": [USER, ANSWER], "tools": "{"}, "'tools' is a text that is no JSON"),
            ({"messages": [USER, ANSWER], "tools": {"add": 1}}, "'tools' is a JSON object, not a list of functions"),
        ],
        "nemo_rl": [
            ({"input": [1]}, "no answer under 'output' (data.format=nemo_rl)"),
            ({"responses_create_params": {}}, "no key 'responses_create_params.input'"),
        ],
    }
    for name, records in wrong.items():
        with pytest.raises(ConfigError) as error:
            load(tmp_path, name, *(record for record, _ in records))
        said = str(error.value)
        assert f"{len(records)} bad lines" in said and str(tmp_path / "records.jsonl") in said
        for number, (_, text) in enumerate(records, start=1):
            [line] = [line for line in said.splitlines() if f"line {number}:" in line]
            assert text in line


def test_tools_that_the_template_leaves_out(tmp_path):
    template = TEMPLATE.partition("{% endif %}")[2]
    with pytest.raises(ConfigError, match="line 1: the chat template leaves the record's tools out"):
        load(tmp_path, "openai", {"messages": [USER, ANSWER], "tools": TOOLS}, template=template)


def test_settings_that_contradict():
    config = Config(data=DataConfig(format="verl", prompt_key="question"))
    assert "leave data.prompt_key=question out" in "".join(check_data(config.data))
    entries = [{"name": "a", "path": ".", "format": "verl"}, {"name": "b", "path": ".", "format": "vrl"}]
    [said] = check_sources(DataConfig(sources=entries))
    assert "format='vrl' is no value of data.format" in said
