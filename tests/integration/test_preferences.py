"""Offline losses on preference records by the real command, step by step as plain transformers and torch do it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integration import tiny_task

PAIRS, PER_STEP, LR = 6, 2, 1e-3
SCORES = {"data.score_keys": "[score_chosen, score_rejected]", "data.score_scale": 0.5}
LOSSES = {  # settings, and the loss of s(winner), s(loser), and the difference of their rewards, 1 without scores
    "dpo": ({"objective.beta": 0.5}, lambda w, r, d: -F.logsigmoid(0.5 * (w - r))),
    "spin": ({"objective.beta": 0.5}, lambda w, r, d: -F.logsigmoid(0.5 * (w - r))),
    "ipo": ({"objective.beta": 0.5}, lambda w, r, d: (w - r - 1.0).square()),
    "sppo_hard": ({"objective.eta": 2.0}, lambda w, r, d: (w - 1).square() + (r + 1).square()),
    "sppo_single": (
        {"objective.eta": 2.0, **SCORES},
        lambda w, r, d: ((w - 2 * (torch.sigmoid(d) - 0.5)).square() + (r + 2 * (torch.sigmoid(d) - 0.5)).square()) / 2,
    ),
    "rebel": ({"objective.eta": 2.0, **SCORES}, lambda w, r, d: ((w - r) / 2.0 - d).square()),
    "inpo": ({"objective.eta": 2.0}, lambda w, r, d: (w - r - 0.25).square()),
    "kto": ({"objective.beta": 0.5}, lambda w, r, d: (2 - torch.sigmoid(0.5 * w) - torch.sigmoid(-0.5 * r)) / 2),
}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_task.make_task(tmp_path_factory.mktemp("preferences") / "task")
    records = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()[:PAIRS]]
    pairs = [{"prompt": r["prompt"], "chosen": r["answer"], "rejected": r["answer"][::-1] + "1"} for r in records]
    for place, pair in enumerate(pairs):
        pair |= {"score_chosen": 2.0 + place, "score_rejected": 1.5 - place % 2}
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    rated = [(pair["prompt"], pair[key], key == "chosen") for pair in pairs for key in ("chosen", "rejected")]
    ratings = [dict(zip(("prompt", "completion", "label"), one, strict=True)) for one in rated]
    (folder / "ratings.jsonl").write_text("".join(json.dumps(rating) + "\n" for rating in ratings))
    return folder


def run(task: Path, output: Path, kind: str, **changes: object) -> list[dict]:
    settings = {
        **(
            {"objective": "kto", "rollout": "ratings", "data.train_path": task / "ratings.jsonl"}
            if kind == "kto"
            else {
                "objective": "dpo" if "objective.beta" in LOSSES[kind][0] else "sppo_pairs",
                "objective.reward": "reward",
                "objective.pairwise": kind,
                "rollout": "preferences",
                "data.train_path": task / "pairs.jsonl",
            }
        ),
        **LOSSES[kind][0],
        "data.eval_path": "null",
        "reward.kind": "exact_match",
        "train.iterations": 1,
        "train.prompts_per_iteration": "null",
        "train.epochs_per_iteration": 2,
        "train.minibatch_size": 2 * PER_STEP,
        "train.micro_batch_size": 2,
        "train.shuffle": "false",
        "optimizer.clip_grad": 0,
        "optimizer.lr": LR,
        "rollout.max_response_length": 12,
        **changes,
    }
    done = tiny_task.run(tiny_task.overrides(task, output, **settings))
    assert done.returncode == 0, done.stderr[-4000:]
    return tiny_task.steps(output)


def plain(task: Path, kind: str) -> list[float]:
    """The losses of the steps: two epochs over the pairs in file order, against the model it began with."""
    tokenizer = AutoTokenizer.from_pretrained(task / "start")
    pairs = [json.loads(line) for line in (task / "pairs.jsonl").read_text().splitlines()]
    policy, start = (AutoModelForCausalLM.from_pretrained(task / "start", dtype=torch.float32) for _ in range(2))

    def log_prob(model, prompt: str, answer: str) -> torch.Tensor:
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = [*before, *tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        log_probs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return log_probs.gather(1, torch.tensor(ids[1:])[:, None])[len(before) - 1 :].sum()

    optimizer = torch.optim.AdamW(policy.parameters(), lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0)
    losses = []
    for first in [*range(0, PAIRS, PER_STEP)] * 2:
        of_pairs = []
        for pair in pairs[first : first + PER_STEP]:
            w, r = (
                log_prob(policy, pair["prompt"], pair[key]) - log_prob(start, pair["prompt"], pair[key]).detach()
                for key in ("chosen", "rejected")
            )
            scores = 0.5 * (pair["score_chosen"] - pair["score_rejected"])
            difference = torch.tensor(scores if "data.score_keys" in LOSSES[kind][0] else 1.0)
            of_pairs.append(LOSSES[kind][1](w, r, difference))
        loss = torch.stack(of_pairs).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("kind", LOSSES)
def test_every_step_is_that_of_plain_transformers(task: Path, kind: str) -> None:
    steps = run(task, task.parent / kind, kind)
    expected = plain(task, kind)
    assert [step["loss"] for step in steps] == pytest.approx(expected, rel=2e-4)
    assert abs(expected[-1] - expected[0]) > 0.01 * abs(expected[0])
    assert [step.get("pairs", PER_STEP) for step in steps] == [PER_STEP] * 6
