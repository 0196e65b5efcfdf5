"""Prompts from real files with real tokenizers."""

import json
import logging
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sppo_megatron.config import DataConfig, RewardConfig
from sppo_megatron.data.prompts import load_prompts
from sppo_megatron.errors import ConfigError
from sppo_megatron.rewards.choices import prompt_reader

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role not in ('user', 'system') %}"
    "{{ raise_exception('no role ' + m.role) }}{% endif %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
WORDS = ["<s>", "</s>", "<unk>", "[user]", "[system]", "[assistant]", "one", "two", "three"]


def make_tokenizer(template=None, chat=True):
    """Whole words; template: what surrounds a plain text, such as "<s> $A </s>"."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template:
        specials = [(word, WORDS.index(word)) for word in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=specials)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = CHAT_TEMPLATE if chat else None
    return fast


def words(prompt):
    return " ".join(WORDS[i] for i in prompt.token_ids)


@pytest.fixture
def write(tmp_path):
    def write(*lines):
        path = tmp_path / "prompts.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
        return path

    return write


def test_plain_text(write):
    path = write({"prompt": "one two", "answer": "3"}, "", {"prompt": "three", "answer": 4}, {"prompt": "one"})
    prompts = load_prompts(path, make_tokenizer(), DataConfig())
    assert [words(p) for p in prompts] == ["one two", "three", "one"]
    assert [p.text for p in prompts] == ["one two", "three", "one"]
    assert [p.answer for p in prompts] == ["3", "4", None]
    assert [p.index for p in prompts] == [0, 1, 2]
    assert all(p.token_ids.dtype == np.int32 for p in prompts)


@pytest.mark.parametrize(
    ("template", "tokens"),
    [(None, "one two"), ("<s> $A", "<s> one two"), ("<s> $A </s>", "<s> one two"), ("$A </s>", "one two")],
)
def test_the_begin_token_is_kept_and_an_end_token_never_added(write, template, tokens):
    (prompt,) = load_prompts(write({"prompt": "one two"}), make_tokenizer(template), DataConfig())
    assert words(prompt) == tokens


def test_a_begin_token_spelt_out_is_not_doubled(write):
    (prompt,) = load_prompts(write({"prompt": "<s> one"}), make_tokenizer("<s> $A"), DataConfig())
    assert words(prompt) == "<s> one"


@pytest.mark.parametrize("template", [None, "<s> $A", "<s> $A </s>"])
def test_chat_template(write, template):
    messages = [{"role": "system", "content": "two"}, {"role": "user", "content": "three"}]
    path = write({"q": "one", "a": "x"}, {"q": messages, "a": "y"})
    config = DataConfig(prompt_key="q", answer_key="a", apply_chat_template=True)
    text, chat = load_prompts(path, make_tokenizer(template), config)
    assert words(text) == "<s> [user] one [assistant]"
    assert words(chat) == "<s> [system] two [user] three [assistant]"
    assert text.text == "one"
    assert chat.text == "<s>[system] two [user] three [assistant]"
    assert (text.answer, chat.answer) == ("x", "y")


def test_all_bad_lines_in_one_error(write):
    path = write(
        {"prompt": "one"},
        '{"prompt": "tw',
        {"question": "one", "answer": "1"},
        {"prompt": " "},
        ["one"],
        {"prompt": 7},
        {"prompt": [{"role": "user", "content": "one"}]},
        {"prompt": "one", "answer": ["1"]},
    )
    with pytest.raises(ValueError) as caught:
        load_prompts(path, make_tokenizer(), DataConfig())
    first, *problems = str(caught.value).split("\n")
    assert first == f"{path} has 7 bad lines:"
    expected = [
        "line 2: not JSON",
        "line 3: no key 'prompt' (data.prompt_key); the keys are ['answer', 'question']",
        "line 4: empty prompt",
        "line 5: is a JSON list, not an object",
        "line 6: 'prompt' is a JSON int, not text",
        "line 7: 'prompt' is a list of messages; set data.apply_chat_template=true",
        "line 8: 'answer' is a JSON list, not text or a number",
    ]
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.strip().startswith(start)


def test_bad_chat_lines(write):
    path = write({"prompt": []}, {"prompt": [{"role": "user"}]}, {"prompt": [{"role": "robot", "content": "one"}]})
    with pytest.raises(ValueError, match=r"(?s)line 1: empty.*line 2: .*content.*line 3: .*refuses it: no role robot"):
        load_prompts(path, make_tokenizer(), DataConfig(apply_chat_template=True))


def test_a_thousand_bad_lines_are_counted_not_listed(write):
    with pytest.raises(ValueError, match=r"(?s)has 1000 bad lines.*and 980 more") as caught:
        load_prompts(write(*["{"] * 1000), make_tokenizer(), DataConfig())
    assert len(str(caught.value).split("\n")) == 22


def test_a_required_answer(write):
    with pytest.raises(ValueError, match=r"line 2: no answer under 'answer' \(data.answer_key\)"):
        load_prompts(
            write({"prompt": "one", "answer": ""}, {"prompt": "one", "anser": "1"}),
            make_tokenizer(),
            DataConfig(),
            require_answer=True,
        )


def test_no_chat_template_is_said_at_once(write):
    with pytest.raises(ValueError, match="tokenizer has no chat template"):
        load_prompts(write({"prompt": "one"}), make_tokenizer(chat=False), DataConfig(apply_chat_template=True))


def test_long_prompts_are_dropped_and_counted_once(write, caplog):
    path = write({"prompt": "one two three"}, {"prompt": "one two"}, {"prompt": "one one one one"}, {"prompt": "three"})
    with caplog.at_level(logging.WARNING):
        prompts = load_prompts(path, make_tokenizer(), DataConfig(max_prompt_length=2))
    assert [p.index for p in prompts] == [1, 3]
    (record,) = caplog.records
    assert "dropped 2 of 4 prompts" in record.message
    assert "the longest has 4" in record.message and record.message.endswith("2 are left")


def test_nothing_left_is_an_error(write):
    path = write({"prompt": "one two three"}, {"prompt": "one two"})
    with pytest.raises(ValueError, match=r"all 2 prompts are longer than .*=1 tokens .the shortest has 2"):
        load_prompts(path, make_tokenizer(), DataConfig(max_prompt_length=1))


def test_fields_of_columns_and_everything_else(write):
    """Keys may name a field of a column; a column with that very name comes first. What no key names is extra."""
    path = write(
        {"q": "one", "check": {"style": "rule", "truth": 4}, "level": 2, "tags": ["a", None]},
        {"q": "one", "check.truth": "5", "check": {"truth": "6"}},
        {"q": "one", "check": "7"},
    )
    config = DataConfig(prompt_key="q", answer_key="check.truth")
    first, second, third = load_prompts(path, make_tokenizer(), config)
    assert [p.answer for p in (first, second, third)] == ["4", "5", None]
    assert first.extra == {"check": {"style": "rule", "truth": 4}, "level": 2, "tags": ["a", None]}
    assert second.extra == {"check": {"truth": "6"}} and third.extra == {"check": "7"}
    with pytest.raises(ValueError, match=r"line 3: no answer under 'check.truth' .*the keys are .'check', 'q'."):
        load_prompts(path, make_tokenizer(), config, require_answer=True)


def test_messages_are_kept_as_the_record_has_them(write):
    messages = [{"role": "user", "content": [{"type": "text", "text": "two"}]}]
    path = write({"prompt": messages, "response": "three", "n": 1}, {"prompt": "one", "answer": "2", "response": "one"})
    config = DataConfig(apply_chat_template=True, response_key="response")
    chat, text = load_prompts(path, make_tokenizer(), config)
    assert words(chat) == "<s> [user] two [assistant]"
    assert chat.messages == messages and chat.extra == {"n": 1}
    assert text.messages is None and text.extra == {}


def test_columns_without_json_are_left_out_with_a_word(tmp_path, caplog):
    rows = [{"prompt": "one", "image": b"png", "day": date(2026, 11, 28), "x": float("nan")} for _ in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with caplog.at_level(logging.WARNING):
        prompts = load_prompts(tmp_path / "a.parquet", make_tokenizer(), DataConfig())
    assert [prompt.extra for prompt in prompts] == [{"day": "2026-11-28", "x": None}] * 3
    (record,) = caplog.records
    assert "the column 'image' is left out of the prompts' extra: a bytes is no JSON value" in record.message


def test_halves_of_surrogate_pairs_cost_their_own_prompt(write, caplog):
    path = write({"prompt": "a \ud83d"}, {"prompt": "one", "answer": "2 \ud83d"})
    with caplog.at_level(logging.WARNING):
        (prompt,) = load_prompts(path, make_tokenizer(), DataConfig())
    assert (prompt.index, prompt.answer) == (1, "2 \ud83d")
    assert "dropped 1 of 2 prompts that have no tokens:\n  line 1: 'prompt' holds \\ud83d at character 3" in caplog.text
    with pytest.raises(ConfigError, match="dropped 1 of 1 prompts"):
        load_prompts(write({"prompt": "\ud83d"}), make_tokenizer(), DataConfig())


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ('{"prompt": "one", "answer": NaN}', "'answer' is nan, which is no answer"),
        ('{"prompt": "one", "answer": true}', "'answer' is a JSON bool, not text or a number"),
        ('{"prompt": "one", "answer": ["1"]}', "'answer' is a JSON list, not text or a number"),
        ('{"prompt": "one", "answer": {"a": 1}}', "'answer' is a JSON object, not text or a number"),
        ('{"prompt": "one", "prompt": "two"}', "the key 'prompt' stands twice"),
        ('{"prompt": "[{\\"role\\": \\"user\\"}]"}', "'prompt' is a text that holds a JSON list of messages"),
    ],
)
def test_what_would_be_changed_silently_is_refused(write, record, said):
    with pytest.raises(ConfigError, match=f"line 2: {said}"):
        load_prompts(write({"prompt": "one"}, record), make_tokenizer(), DataConfig())


def test_answers_that_a_reward_cannot_use_are_bad_lines(write):
    path = write(
        {"prompt": "one", "answer": "#### 1,042"},
        {"prompt": "two", "answer": "\\sqrt{2}"},
        {"prompt": "three", "answer": "(3, 2)"},
        {"prompt": "one"},
    )
    reward = RewardConfig(kind="mixture", mixture=[{"kind": "numeric", "weight": 1.0}])
    with pytest.raises(ConfigError) as refused:
        load_prompts(path, make_tokenizer(), DataConfig(), accept=prompt_reader(reward))
    message = str(refused.value)
    assert "2 bad lines" in message and "line 2" in message and "line 3" in message and "math_verify" in message
    everything = load_prompts(path, make_tokenizer(), DataConfig(), accept=prompt_reader(RewardConfig()))
    assert len(everything) == 4


def test_an_answer_of_any_size_is_taken_as_it_is(write):
    (prompt,) = load_prompts(write({"prompt": "one", "answer": 10**400}), make_tokenizer(), DataConfig())
    assert prompt.answer == "1" + "0" * 400
