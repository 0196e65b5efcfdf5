"""What doesn't fit the model is refused when the inputs are read, before a model is built."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import GenerationConfig, LlamaConfig

from sppo_megatron.config import Config
from sppo_megatron.errors import ConfigError
from sppo_megatron.train.input_checks import max_positions
from sppo_megatron.train.inputs import Inputs, read_inputs
from sppo_megatron.train.rollouts import prompt_stream
from tests.unit.data.test_chat_template import CHATML, make_tokenizer

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VOCAB_SIZE = 8  # <unk> Hi <|im_start|> <|im_end|> <|endoftext|>, and three rows that no token has


@pytest.fixture
def config(tmp_path: Path) -> Config:
    folder = tmp_path / "model"
    LlamaConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=64, bos_token_id=None, **SIZES).save_pretrained(folder)
    make_tokenizer(CHATML, "<|im_start|>", "<|im_end|>").save_pretrained(folder)
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "Hi", "answer": "1"}) * 1 + "\n")
    config = Config()
    config.model.hf_path, config.model.init = str(folder), "random"
    config.data.train_path, config.rollout.max_response_length = str(tmp_path / "p.jsonl"), 32
    config.reward.kind = "exact_match"
    return config


def change_model(config: Config, **changes: object) -> None:
    path = Path(config.model.hf_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def read(config: Config) -> Inputs:
    inputs = read_inputs(config)
    inputs.scorer.close()
    return inputs


def refused(config: Config) -> str:
    with pytest.raises(ConfigError) as error:
        read(config)
    return str(error.value)


@pytest.mark.parametrize("key", ["train_path", "eval_path"])
def test_an_id_without_a_row(config, key):
    change_model(config, vocab_size=4)
    config.data.train_path, path = None, config.data.train_path
    setattr(config.data, key, path)
    Path(path).write_text('{"prompt": "Hi", "answer": "1"}\n{"prompt": "Hi <|endoftext|>", "answer": "1"}\n')
    assert refused(config) == (
        f"data.{key}={path}: record 2 has the token '<|endoftext|>' with the id 4, and the model's embedding has 4 "
        "rows (ids 0 to 3): give the model the tokenizer that it was trained with, or resize its embedding "
        "(resize_token_embeddings of transformers) and save it again"
    )


def test_an_id_without_a_row_in_a_humans_response(config):
    change_model(config, vocab_size=4)  # every response of a human ends with token 4
    Path(config.data.train_path).write_text('{"prompt": "Hi", "answer": "1", "human": "Hi"}\n')
    config.data.response_key = "human"
    assert "record 1 has the token '<|endoftext|>'" in refused(config)


def test_prompts_beyond_the_positions(config):
    config.rollout.max_response_length = 64
    said = refused(config)
    assert "a prompt of 1 tokens and rollout.max_response_length=64 make 65, and the model has 64 positions" in said
    assert said.endswith("set rollout.max_response_length to 63 or less")
    config.rollout.max_response_length = 63
    read(config)
    config.data.apply_chat_template = True  # some tokens more
    assert "data.max_prompt_length to 1, which leaves longer prompts out" in refused(config)


@pytest.mark.parametrize(
    ("prompt", "response", "said"),
    [
        (
            [1, 8],
            [2],
            "has the token id 8, and the model's embedding has 8 rows (ids 0 to 7): give rollouts of this model",
        ),
        ([1, 7], [2, 5000], "has the token id 5000"),
        ([1] * 33, [2] * 32, "has a sequence of 65 tokens, and the model has 64 positions"),
        ([1] * 32, [7] * 32, None),
        ([1], [], None),
    ],
)
def test_stored_rollouts(config, tmp_path, prompt, response, said):
    responses = [{"token_ids": response, "reward": 1.0}, {"token_ids": [2], "reward": 0.0}]
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"prompt_token_ids": prompt, "responses": responses}) + "\n")
    config.rollout.engine, config.rollout.path = "replay", str(path)
    config.train.prompts_per_iteration, config.train.iterations = None, 1
    if said is None:
        read(config)
    else:
        assert f"rollout.path={path} {said}" in refused(config)


def test_too_few_prompts_are_found_by_the_inputs_alone(config):
    config.train.prompts_per_iteration = 2
    with pytest.raises(ConfigError, match=r"train\.prompts_per_iteration=2 is more than the 1 prompts"):
        prompt_stream(config, read(config))


@pytest.mark.parametrize("wrong", [8, -1])
def test_stop_tokens_that_cannot_be_sampled(config, wrong):
    config.rollout.stop_token_ids = [3, wrong]
    assert refused(config).startswith(f"rollout.stop_token_ids=[{wrong}] can't be sampled: the model's embedding has 8")


def warnings(config: Config, caplog) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "sppo_megatron"):
        read(config)
    return [record.getMessage() for record in caplog.records]


def test_a_turn_that_does_not_end_a_response(config, caplog):
    """As base models are published: the end token of the model beside a template with another."""
    change_model(config, eos_token_id=4)
    assert warnings(config, caplog) == []  # no chat template is applied
    config.data.apply_chat_template = True
    [said] = warnings(config, caplog)
    assert "'<|im_end|>' (token 3), which doesn't end a response (only [4] do): set rollout.stop_token_ids=[3]" in said
    config.rollout.stop_token_ids = [3]
    assert warnings(config, caplog) == []
    assert read(config).stop_token_ids == {3, 4}
    config.rollout.stop_token_ids = []
    GenerationConfig(eos_token_id=[3, 4]).save_pretrained(config.model.hf_path)
    assert warnings(config, caplog) == []


def test_a_turn_that_ends_with_plain_text(config, caplog):
    tokenizer = make_tokenizer(CHATML.replace("im_end", "end"), "<|im_start|>", "<|im_end|>")
    tokenizer.save_pretrained(config.model.hf_path)
    config.data.apply_chat_template = True
    [said] = warnings(config, caplog)
    assert "with the text '<|end|>', which is no token of its own" in said


def test_nothing_ends_a_response(config, caplog):
    change_model(config, eos_token_id=None)
    tokenizer = make_tokenizer(None)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(config.model.hf_path)
    [said] = warnings(config, caplog)
    assert said.startswith("no token ends a response")


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({"rope_type": "default"}, 64),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8}, 64),
        ({"rope_type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, 64),
    ],
)
def test_positions_after_scaling(rope, positions):
    config = SimpleNamespace(max_position_embeddings=64, rope_parameters=rope)
    config.get_text_config = lambda: config
    assert max_positions(config) == positions


def test_every_source_is_named_and_has_its_own_template(config, tmp_path, caplog):
    change_model(config, eos_token_id=4)
    path, other = Path(config.data.train_path), tmp_path / "other.jsonl"
    other.write_text(json.dumps({"prompt": "Hi " * 40, "answer": "1"}) + "\n")
    config.data.train_path = None
    plain = {"name": "plain", "path": str(other)}
    config.data.sources = [{"name": "chat", "path": str(path), "apply_chat_template": True}, plain]
    assert f"data.sources.plain={other}: a prompt of 40 tokens" in refused(config)
    plain["max_prompt_length"] = 32
    other.write_text(json.dumps({"prompt": "Hi", "answer": "1"}) + "\n")
    [said] = warnings(config, caplog)
    assert "rollout.stop_token_ids=[3]" in said
