"""Which paths of prompts are refused before anything is read."""

from __future__ import annotations

import pytest

from sppo_megatron.config import Config
from sppo_megatron.config.data import check_data, is_hub_id


@pytest.mark.parametrize("path", ["openai/gsm8k", "openai/gsm8k:main", "org/name-1.2"])
def test_hub_ids(path):
    config = Config()
    config.data.train_path = path
    assert is_hub_id(path) and not list(check_data(config.data))


@pytest.mark.parametrize("path", ["data/train.jsonl", "train.parquet", "/a/b", "./a/b", "a/b/c", "nowhere", "a/b:"])
def test_paths_that_do_not_exist(path):
    config = Config()
    config.data.eval_path = path
    assert not is_hub_id(path)
    assert list(check_data(config.data)) == [f"data.eval_path={path} does not exist"]


def test_what_exists_may_look_like_anything(tmp_path):
    config = Config()
    config.data.train_path = str(tmp_path)
    assert not list(check_data(config.data))
