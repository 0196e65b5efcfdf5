"""Prompts from real files with real tokenizers, and the stream's order and resume."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sppo_megatron.config import DataConfig
from sppo_megatron.data.prompts import PromptStream, load_prompts
from sppo_megatron.types import Prompt

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role not in ('user', 'system') %}"
    "{{ raise_exception('no role ' + m.role) }}{% endif %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PINNED = [[7, 3, 0, 1, 4, 2, 5, 6], [0, 5, 6, 4, 2, 1, 7, 3]]
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


def make_prompts(n):
    return [Prompt(index=i, token_ids=np.array([i], dtype=np.int32)) for i in range(n)]


def drawn(stream, iterations):
    return [[prompt.index for prompt in stream.next()] for _ in range(iterations)]


@settings(deadline=None)
@given(
    n=st.integers(1, 12),
    per_iteration=st.integers(1, 12),
    seed=st.integers(0, 2**64 - 1),
    shuffle=st.booleans(),
    before=st.integers(0, 9),
)
def test_a_resumed_stream_continues_exactly_and_epochs_are_whole(n, per_iteration, seed, shuffle, before):
    per_iteration = min(per_iteration, n)
    whole = drawn(PromptStream(make_prompts(n), per_iteration, seed, shuffle), 15)

    interrupted = PromptStream(make_prompts(n), per_iteration, seed, shuffle)
    drawn(interrupted, before)
    state = json.loads(json.dumps(interrupted.state_dict()))
    assert state == {"position": before * per_iteration}
    resumed = PromptStream(make_prompts(n), per_iteration, seed, shuffle)
    resumed.load_state_dict(state)
    assert drawn(resumed, 15 - before) == whole[before:]

    flat = [index for iteration in whole for index in iteration]
    for start in range(0, len(flat) - n + 1, n):
        assert sorted(flat[start : start + n]) == list(range(n))
        if not shuffle:
            assert flat[start : start + n] == list(range(n))


def test_epochs_and_seeds_differ():
    first, second = drawn(PromptStream(make_prompts(50), 50, seed=1), 2)
    (other,) = drawn(PromptStream(make_prompts(50), 50, seed=2), 1)
    assert first != second
    assert first != other
    assert first != sorted(first)


def test_the_order_is_pinned():
    """Checkpoints hold a position only: an order that changes breaks every resume."""
    assert drawn(PromptStream(make_prompts(8), 8, seed=1234), 2) == PINNED


def test_the_order_is_the_same_in_another_process():
    code = (
        "import numpy as np\nfrom sppo_megatron.data.prompts import PromptStream\n"
        "from sppo_megatron.types import Prompt\n"
        "stream = PromptStream([Prompt(i, np.array([i])) for i in range(8)], 8, seed=1234)\n"
        "print([[p.index for p in stream.next()] for _ in range(2)])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == PINNED


@pytest.mark.parametrize(
    ("n", "per_iteration", "seed", "message"),
    [
        (0, 1, 0, "data set is empty"),
        (3, 4, 0, "prompts_per_iteration=4 is more than the 3 prompts"),
        (3, 0, 0, "at least 1"),
        (3, 1, -1, "seed"),
    ],
)
def test_what_cannot_work_is_said_at_construction(n, per_iteration, seed, message):
    with pytest.raises(ValueError, match=message):
        PromptStream(make_prompts(n), per_iteration, seed)


def test_a_negative_position_is_refused():
    with pytest.raises(ValueError, match="position"):
        PromptStream(make_prompts(3), 1, 0).load_state_dict({"position": -1})
