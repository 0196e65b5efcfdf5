"""Supervised fine-tuning by the real command, step by step as plain transformers and torch do it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integration import tiny_task

RECORDS, PER_STEP, LR = 6, 2, 1e-3
# Digits and what else the demo's tokenizer knows; transformers makes the mask of what stands between the marks.
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_task.make_task(tmp_path_factory.mktemp("sft") / "task")
    tokenizer = AutoTokenizer.from_pretrained(folder / "start")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "start")
    records = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    talks = []
    for place in range(RECORDS):
        turns = records[place : place + 1 + place % 3]  # one to three turns
        messages = [[("user", r["prompt"]), ("assistant", r["answer"])] for r in turns]
        talks.append({"messages": [{"role": role, "content": text} for turn in messages for role, text in turn]})
    (folder / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    return folder


def examples(task: Path, kind: str) -> list[tuple[list[int], list[int]]]:
    """(token ids, 1 for each that is learned)."""
    tokenizer = AutoTokenizer.from_pretrained(task / "start")
    if kind == "messages":
        lines = (task / "talks.jsonl").read_text().splitlines()
        options = {"return_dict": True, "return_assistant_tokens_mask": True}
        found = [tokenizer.apply_chat_template(json.loads(line)["messages"], **options) for line in lines]
        return [(one["input_ids"], one["assistant_masks"]) for one in found]
    found = []
    for line in (task / "train.jsonl").read_text().splitlines()[:RECORDS]:
        record = json.loads(line)
        before, answer = (tokenizer(record[key], add_special_tokens=False)["input_ids"] for key in ("prompt", "answer"))
        found.append(([*before, *answer, tokenizer.eos_token_id], [0] * len(before) + [1] * (len(answer) + 1)))
    return found


def plain(task: Path, kind: str, token_agg: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    model = AutoModelForCausalLM.from_pretrained(task / "start", dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0)
    given, losses = examples(task, kind), []
    for first in [*range(0, RECORDS, PER_STEP)] * 2:
        parts = []
        for ids, mask in given[first : first + PER_STEP]:
            logits = model(torch.tensor([ids])).logits[0, :-1]
            nll = F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
            parts.append(nll[torch.tensor(mask[1:], dtype=torch.bool)])
        mean_of_each = torch.stack([part.mean() for part in parts])
        loss = torch.cat(parts).mean() if token_agg == "token-mean" else mean_of_each.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


@pytest.mark.parametrize(("kind", "token_agg"), [("messages", "token-mean"), ("text", "sequence-mean")])
def test_every_step_is_that_of_plain_transformers(task: Path, kind: str, token_agg: str) -> None:
    output = task.parent / kind
    lines = (task / "train.jsonl").read_text().splitlines(keepends=True)
    (task / "short.jsonl").write_text("".join(lines[:RECORDS]))
    settings = {
        "objective": "sft",
        "objective.token_agg": token_agg,
        "rollout": "demonstrations",
        "data.eval_path": "null",
        "train.iterations": 1,
        "train.prompts_per_iteration": "null",
        "train.epochs_per_iteration": 2,
        "train.minibatch_size": PER_STEP,
        "train.micro_batch_size": 1,
        "train.shuffle": "false",
        "optimizer.clip_grad": 0,
        "optimizer.lr": LR,
        "rollout.max_response_length": 60,
    }
    if kind == "messages":
        settings |= {"data.train_path": task / "talks.jsonl", "data.apply_chat_template": "true"}
        settings |= {"train.max_tokens_per_micro_batch": 128}
    else:
        settings |= {"data.train_path": task / "short.jsonl", "data.response_key": "answer"}
    done = tiny_task.run(tiny_task.overrides(task, output, **settings))
    assert done.returncode == 0, done.stderr[-4000:]
    steps, (losses, weights) = tiny_task.steps(output), plain(task, kind, token_agg)
    assert [step["loss"] for step in steps] == pytest.approx(losses, rel=1e-5)
    assert losses[-1] < losses[0]
    if token_agg == "token-mean":
        assert [step["nll_per_token"] for step in steps] == pytest.approx(losses, rel=1e-5)
    trained = AutoModelForCausalLM.from_pretrained(output / "hf", dtype=torch.float32).state_dict()
    start = AutoModelForCausalLM.from_pretrained(task / "start", dtype=torch.float32).state_dict()
    for name, tensor in weights.items():
        moved = (tensor - start[name]).norm()
        assert (trained[name] - tensor).norm() <= 1e-3 * moved + 1e-7, name


def test_what_does_not_go_together(task: Path) -> None:
    done = tiny_task.run(tiny_task.overrides(task, task.parent / "bad", objective="sft"))
    assert done.returncode == 2
    assert "objective.name=sft learns from given responses: set rollout.engine=demonstrations, or replay" in done.stderr
    done = tiny_task.run(tiny_task.overrides(task, task.parent / "bad", rollout="demonstrations"))
    assert done.returncode == 2
    assert "rollout.engine=demonstrations has one answer to a prompt, and nothing to compare" in done.stderr
