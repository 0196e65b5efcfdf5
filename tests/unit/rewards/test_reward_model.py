"""Scores in padded batches are those of plain transformers, one response at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from sppo_megatron.batch.targets import build_targets
from sppo_megatron.config import RewardConfig, RewardModelConfig
from sppo_megatron.objective.sppo import Sppo
from sppo_megatron.rewards.registry import build_scorer
from sppo_megatron.types import Group, Prompt, Response
from tests.unit.rewards.tiny_classifiers import VOCABULARY, ids_of, plain_logit, save_decoder, save_encoder

IDS = np.array([1], dtype=np.int32)
TEXTS = {"2+2=": ["4", "four, I think", "no", "5"], "Write a line.": ["ok", "x" * 60, "y\ny"]}


def make_groups():
    return [
        Group(Prompt(i, IDS, prompt), [Response(IDS, text) for text in texts])
        for i, (prompt, texts) in enumerate(TEXTS.items())
    ]


def scored(folder, **settings):
    model = RewardModelConfig(path=str(folder), dtype="fp32", **({"batch_size": 3} | settings))
    scorer = build_scorer(RewardConfig(kind="reward_model", model=model, default=-9.0))
    groups = scorer.score(make_groups())
    return groups, [response.reward for group in groups for response in group.responses]


def flat():
    return [(prompt, text) for prompt, texts in TEXTS.items() for text in texts]


@pytest.mark.parametrize(("chat_template", "pad_token"), [(True, False), (False, True)])
def test_a_decoder(tmp_path, chat_template, pad_token):
    """The last token counts, whatever it is: <end>, of id 0, if there is a chat template."""
    folder = save_decoder(tmp_path, chat_template=chat_template, pad_token=pad_token)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    form = "<user>{}<end><assistant>{}<end>" if chat_template else "{}{}"
    expected = [plain_logit(model, ids_of(form.format(prompt, text))) for prompt, text in flat()]
    groups, rewards = scored(folder)
    np.testing.assert_allclose(rewards, expected, rtol=1e-5, atol=1e-5)
    assert np.std(expected) > 0.1
    assert all((r.correct, r.error) == (None, None) for group in groups for r in group.responses)


def test_messages_are_rendered_by_the_models_own_template(tmp_path):
    folder = save_decoder(tmp_path, chat_template=True, pad_token=False)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    messages = [{"role": "user", "content": "2+2="}, {"role": "assistant", "content": "4"}, {"role": "user"}]
    prompt = Prompt(0, IDS, "<|im_start|>the policy's rendering<|im_end|>", messages=messages)
    config = RewardModelConfig(path=str(folder), dtype="fp32")
    scorer = build_scorer(RewardConfig(kind="reward_model", model=config))
    [group] = scorer.score([Group(prompt, [Response(IDS, "ok")])])
    expected = plain_logit(model, ids_of("<user>2+2=<end><assistant>4<end><user><end><assistant>ok<end>"))
    assert group.responses[0].reward == pytest.approx(expected, rel=1e-5)


def test_a_lone_surrogate_costs_no_run(tmp_path):
    folder = save_decoder(tmp_path, chat_template=True, pad_token=False)
    config = RewardModelConfig(path=str(folder), dtype="fp32")
    scorer = build_scorer(RewardConfig(kind="reward_model", model=config))
    [group] = scorer.score([Group(Prompt(0, IDS, "smile"), [Response(IDS, "\ud83d"), Response(IDS, "ok")])])
    assert group.responses[1].error is None


def test_an_encoder_sees_two_segments(tmp_path):
    folder = save_encoder(tmp_path)
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    expected = []
    for prompt, text in flat():
        first, second = ids_of(f"<cls>{prompt}<sep>"), ids_of(f"{text}<sep>")
        segments = torch.tensor([[0] * len(first) + [1] * len(second)])
        expected.append(plain_logit(model, first + second, token_type_ids=segments))
    np.testing.assert_allclose(scored(folder)[1], expected, rtol=1e-5, atol=1e-5)


def test_a_long_response_costs_its_own_score(tmp_path, caplog):
    folder = save_decoder(tmp_path, chat_template=False, pad_token=True)
    every = scored(folder)[1]
    groups, rewards = scored(folder, max_length=40)
    assert rewards == pytest.approx([*every[:5], -9.0, every[6]], rel=1e-5)
    assert "reward.model.max_length" in groups[1].responses[1].error
    assert "failed on 1 of 7 responses" in caplog.text


def test_scores_make_bradley_terry_win_rates(tmp_path):
    groups, rewards = scored(save_decoder(tmp_path, chat_template=False, pad_token=True))
    targets = build_targets(groups, Sppo(eta=2.0, reward="win_rate"))
    s = np.array(rewards[4:])
    expected = (1 / (1 + np.exp(s[None, :] - s[:, None]))).mean(axis=1)
    np.testing.assert_allclose(targets.win_rates[4:], expected, atol=1e-6)
    np.testing.assert_allclose(targets.target[4:], 2 * (expected - 0.5), atol=1e-6)
    assert all(group.preference is None for group in groups)


def test_the_model_is_frozen_and_in_its_dtype(tmp_path):
    folder = save_decoder(tmp_path, chat_template=False, pad_token=True)
    scorer = build_scorer(RewardConfig(kind="reward_model", model=RewardModelConfig(path=str(folder), dtype="bf16")))
    model = scorer._classifier._model
    assert not model.training
    assert {(p.dtype, p.requires_grad) for p in model.parameters()} == {(torch.bfloat16, False)}
    assert scorer.score([]) == []


def test_a_model_without_a_trained_head_is_refused(tmp_path):
    save_decoder(tmp_path, chat_template=False, pad_token=True)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no trained score\.weight"):
        scored(tmp_path)


def test_a_model_with_two_outputs_is_refused(tmp_path):
    save_decoder(tmp_path, chat_template=False, pad_token=True)
    config = LlamaConfig.from_pretrained(tmp_path)
    config.num_labels = 2
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="one output"):
        scored(tmp_path)


def test_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"reward\.model\.path"):
        scored(tmp_path)
