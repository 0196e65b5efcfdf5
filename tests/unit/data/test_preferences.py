"""Preference records in the forms that the hub has, by a real tokenizer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sppo_megatron.config import DataConfig
from sppo_megatron.config.sources import Source
from sppo_megatron.data.preferences import load_preferences
from sppo_megatron.errors import ConfigError

WORDS = ["<unk>", "</s>", "<end>", "[user]", "[assistant]", "Human:", "Assistant:", "hi", "yes", "no", "well"]
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": ["<end>"]})
    fast.chat_template = TEMPLATE
    return fast


def load(tmp_path, *records, limit: int = 50, **data):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return load_preferences(Source(None, str(path), "data.train_path", DataConfig(**data)), make_tokenizer(), limit)


def words(ids) -> str:
    return " ".join(WORDS[i] for i in ids)


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def test_texts_are_encoded_apart_with_the_end_token_behind_each_answer(tmp_path):
    [group] = load(tmp_path, {"prompt": "hi hi", "chosen": "yes", "rejected": "no well", "n": 3})
    assert words(group.prompt.token_ids) == "hi hi"
    assert [words(r.token_ids) for r in group.responses] == ["yes </s>", "no well </s>"]
    assert [(r.text, r.reward, r.length) for r in group.responses] == [("yes", 1.0, 2), ("no well", 0.0, 3)]
    assert np.array_equal(group.preference, [[0.5, 1.0], [0.0, 0.5]]) and group.prompt.extra == {"n": 3}


TALK = [user("hi"), assistant("well"), user("hi hi")]
IN_MESSAGES = [
    {"prompt": TALK, "chosen": [assistant("yes")], "rejected": [assistant("no")]},
    {"chosen": [*TALK, assistant("yes")], "rejected": [*TALK, assistant("no")]},  # the prompt is implied
    {"prompt": "hi hi", "chosen": [*TALK, assistant("yes")], "rejected": [*TALK, assistant("no")]},  # UltraFeedback
    {"prompt": TALK, "chosen": "yes", "rejected": "no"},
]


@pytest.mark.parametrize("record", IN_MESSAGES)
def test_messages_are_what_the_template_makes_of_them_up_to_the_end_of_turn(tmp_path, record):
    [group] = load(tmp_path, record, apply_chat_template=True)
    assert words(group.prompt.token_ids) == "[user] hi <end> [assistant] well <end> [user] hi hi <end> [assistant]"
    assert [words(r.token_ids) for r in group.responses] == ["yes <end>", "no <end>"]


def test_a_text_prompt_is_a_user_message_under_a_template(tmp_path):
    record = {"prompt": "hi", "chosen": "yes", "rejected": "no"}
    [group] = load(tmp_path, record, apply_chat_template=True)
    assert words(group.prompt.token_ids) == "[user] hi <end> [assistant]"
    assert [words(r.token_ids) for r in group.responses] == ["yes <end>", "no <end>"]


def test_texts_of_whole_conversations(tmp_path):
    start = "\n\nHuman: hi\n\nAssistant: well\n\nHuman: hi\n\nAssistant:"
    [group] = load(tmp_path, {"chosen": start + " yes yes", "rejected": start + " yes no"})
    assert words(group.prompt.token_ids) == "Human: hi Assistant: well Human: hi Assistant:"
    assert [words(r.token_ids) for r in group.responses] == ["yes yes </s>", "yes no </s>"]


def test_every_bad_record_at_once(tmp_path):
    bad = [
        ({"prompt": "hi", "chosen": "yes"}, "no key 'rejected'"),
        ({"prompt": "hi", "chosen": "yes", "rejected": "yes"}, "are the same"),
        ({"prompt": "hi", "chosen": " ", "rejected": "no"}, "the answer of 'chosen' is empty"),
        ({"prompt": "hi", "chosen": "yes", "rejected": 3}, "'rejected' is a JSON"),
        ({"prompt": "hi", "chosen": "yes", "rejected": [assistant("no")]}, "give both alike"),
        ({"chosen": "yes", "rejected": "no"}, "no common beginning"),
        ({"prompt": "", "chosen": "yes", "rejected": "no"}, "empty prompt"),
        ({"chosen": [user("hi"), assistant("yes")], "rejected": [user("hi")]}, "one turn of the assistant"),
        ({"prompt": "hi", "chosen": [assistant("yes")], "rejected": [assistant("no")]}, "apply_chat_template=true"),
    ]
    good = {"prompt": "hi", "chosen": "yes", "rejected": "no"}
    with pytest.raises(ConfigError, match=f"{len(bad)} bad lines") as raised:
        load(tmp_path, good, *[record for record, _ in bad])
    for line, (_, said) in enumerate(bad, start=2):
        assert any(f"line {line}: " in text and said in text for text in str(raised.value).splitlines()), (line, said)


def test_long_pairs_are_dropped_with_a_warning(tmp_path, caplog):
    long = {"prompt": "hi", "chosen": "yes", "rejected": "no no no no"}
    groups = load(tmp_path, long, {"prompt": "hi", "chosen": "yes", "rejected": "no"}, limit=4)
    assert [group.prompt.index for group in groups] == [1]
    assert "dropped 1 of 2 pairs longer than rollout.max_response_length=4" in caplog.text


def test_scores_and_probabilities_say_by_how_much(tmp_path):
    record = {"prompt": "hi", "chosen": "yes", "rejected": "no", "a": 7, "b": 4.5, "p": 0.8}
    [group] = load(tmp_path, record, score_keys=["a", "b"], score_scale=0.5)
    p = 1 / (1 + np.exp(-1.25))
    assert np.allclose(group.preference, [[0.5, p], [1 - p, 0.5]])
    assert [response.reward for response in group.responses] == [3.5, 2.25]
    [group] = load(tmp_path, record, probability_key="p")
    assert np.allclose(group.preference, [[0.5, 0.8], [0.2, 0.5]])
    assert [response.reward for response in group.responses] == pytest.approx([0.8, 0.2])


def test_every_judgement_that_is_none_at_once(tmp_path):
    pair = {"prompt": "hi", "chosen": "yes", "rejected": "no"}
    wrong = [
        ({}, "no key 'p'"),
        ({"p": "1"}, "'p' is a JSON text, not a finite number"),
        ({"p": 1.5}, "no probability"),
    ]
    with pytest.raises(ConfigError) as error:
        load(tmp_path, *({**pair, **p} for p, _ in wrong), probability_key="p")
    for number, (_, said) in enumerate(wrong, start=1):
        assert any(f"line {number}: " in line and said in line for line in str(error.value).splitlines())


def test_the_chosen_answer_as_a_human_s(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "hi", "chosen": "yes no", "rejected": "no"}))
    source = Source(None, str(path), "data.train_path", DataConfig())
    [group] = load_preferences(source, make_tokenizer(), 9, chosen_is_human=True)
    assert words(group.prompt.human_token_ids) == "yes no </s>"
    assert [words(response.token_ids) for response in group.responses] == ["no </s>"] and group.preference is None
