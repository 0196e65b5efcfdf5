"""Preferences of a pairwise model are those of plain transformers, one ordered pair at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from transformers import LlamaForSequenceClassification

from sppo_megatron.batch.targets import build_targets
from sppo_megatron.config import RewardConfig, RewardModelConfig
from sppo_megatron.objective.sppo import Sppo
from sppo_megatron.rewards.registry import build_scorer
from sppo_megatron.types import Group, Prompt, Response
from tests.unit.rewards.tiny_classifiers import ids_of, plain_logit, save_decoder

IDS = np.array([1], dtype=np.int32)
TEXTS = ["4", "four", "a much longer answer"]


def make_group(prompt="2+2="):
    return Group(Prompt(0, IDS, prompt), [Response(IDS, text) for text in TEXTS])


def make_scorer(folder, **settings):
    model = RewardModelConfig(path=str(folder), dtype="fp32", batch_size=4, **settings)
    return build_scorer(RewardConfig(kind="pairwise_model", model=model))


@pytest.mark.parametrize("chat_template", [True, False])
def test_both_orders_are_averaged(tmp_path, chat_template):
    folder = save_decoder(tmp_path, chat_template=chat_template, pad_token=True)
    (tmp_path / "template.txt").write_text("{prompt} 1:{first} 2:{second}")
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()

    def first_wins(first, second):
        text = f"2+2= 1:{first} 2:{second}"
        return 1 / (1 + math.exp(-plain_logit(model, ids_of(f"<user>{text}<end>" if chat_template else text))))

    scorer = make_scorer(folder, template=str(tmp_path / "template.txt"))
    [group, other] = scorer.score([make_group(), make_group("another ")])
    p = np.array([[first_wins(a, b) for b in TEXTS] for a in TEXTS])
    expected = (p + 1 - p.T) / 2
    np.fill_diagonal(expected, 0.5)
    np.testing.assert_allclose(group.preference, expected, atol=1e-5)
    assert np.abs(p + p.T - 1).max() > 0.01, "one order alone would be wrong"
    assert np.abs(other.preference - group.preference).max() > 0.01
    assert [response.error for response in group.responses] == [None] * 3
    targets = build_targets([group], Sppo(eta=3.0, reward="win_rate", win_rate_estimator="leave_one_out"))
    leave_one_out = (expected.sum(axis=1) - 0.5) / 2
    np.testing.assert_allclose(targets.target, 3 * (leave_one_out - 0.5), atol=1e-5)


def test_a_pair_that_is_too_long_is_a_tie(tmp_path, caplog):
    folder = save_decoder(tmp_path, chat_template=False, pad_token=True)
    (tmp_path / "template.txt").write_text("{prompt}{first}{second}")
    [group] = make_scorer(folder, template=str(tmp_path / "template.txt"), max_length=24).score([make_group()])
    assert group.preference[2].tolist() == [0.5] * 3
    assert group.preference[0, 1] != 0.5
    assert all("max_length" in response.error for response in group.responses)
    assert "failed on 4 of 6 pairs" in caplog.text
