"""Rated answers in the forms that the hub has, by a real tokenizer."""

from __future__ import annotations

import json

import pytest

from sppo_megatron.config import DataConfig
from sppo_megatron.config.sources import Source
from sppo_megatron.data.ratings import load_ratings
from sppo_megatron.errors import ConfigError
from tests.unit.data.test_preferences import assistant, make_tokenizer, user, words


def load(tmp_path, *records, limit: int = 50, **data):
    path = tmp_path / "ratings.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return load_ratings(Source(None, str(path), "data.train_path", DataConfig(**data)), make_tokenizer(), limit)


def test_texts_and_messages(tmp_path):
    groups = load(
        tmp_path,
        {"prompt": "hi", "completion": "yes no", "label": True, "n": 1},
        {"prompt": "hi", "completion": "no", "label": 0},
    )
    told = [(words(r.token_ids), r.reward, r.correct) for group in groups for r in group.responses]
    assert told == [("yes no </s>", 1.0, True), ("no </s>", 0.0, False)] and groups[0].prompt.extra == {"n": 1}
    record = {"prompt": [user("hi")], "completion": [assistant("yes")], "label": True}
    [group] = load(tmp_path, record, apply_chat_template=True)
    assert words(group.prompt.token_ids) == "[user] hi <end> [assistant]"
    assert words(group.responses[0].token_ids) == "yes <end>"
    longer = {**record, "completion": [assistant("yes yes")]}
    assert len(load(tmp_path, record, longer, limit=2, apply_chat_template=True)) == 1


def test_every_bad_record_at_once(tmp_path):
    good = {"prompt": "hi", "completion": "yes", "label": True}
    wrong = [
        ({"prompt": "hi", "label": True}, "no key 'completion'"),
        ({**good, "completion": " "}, "'completion' is empty"),
        (
            {**good, "completion": [user("yes")]},
            "'completion' is a JSON list, not text or one message",
        ),
        ({**good, "label": "good"}, "'label' is a JSON text: it must be true or false"),
        ({"prompt": "hi", "completion": "yes"}, "'label' is not there: it must be true or false"),
        ({**good, "prompt": 3}, "'prompt' is a JSON int, not text"),
    ]
    with pytest.raises(ConfigError) as error:
        load(tmp_path, *(record for record, _ in wrong))
    for number, (_, said) in enumerate(wrong, start=1):
        assert any(f"line {number}: " in line and said in line for line in str(error.value).splitlines())
