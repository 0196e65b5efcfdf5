"""SPIN and INPO by the real command: what they need beside the responses, also after a kill inside an iteration."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.integration import tiny_task
from tests.stored_rollouts import stored_groups

INPO = {
    "objective.pairwise": "inpo",
    "objective.eta": 0.5,
    "objective.ref_coef": 0.5,
    "train.minibatch_size": 4,
    "rollout.num_samples_per_prompt": 8,
}
SPIN = {"objective.pairwise": "spin", "objective.beta": 0.2, "data.response_key": "gold", "reward.kind": "none"}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_task.make_task(tmp_path_factory.mktemp("pairwise") / "task")
    prompts = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    lines = [json.dumps(prompt | {"gold": "7" * (1 + place % 4)}) for place, prompt in enumerate(prompts)]
    (folder / "human.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def arguments(task: Path, output: Path, objective: dict) -> list[str]:
    """Three iterations; of each, at most six pairs of INPO or 24 of SPIN, two pairs or four an optimizer step."""
    data = {"data.train_path": task / "human.jsonl"} if "data.response_key" in objective else {}
    return tiny_task.overrides(task, output, **{"checkpoint.save_interval": 1, **data, **objective})


@pytest.mark.parametrize("objective", [INPO, SPIN], ids=["inpo", "spin"])
def test_killed_inside_an_iteration(task: Path, objective: dict) -> None:
    whole, killed = (task.parent / f"{objective['objective.pairwise']}-{name}" for name in ("whole", "killed"))
    done = tiny_task.run(arguments(task, whole, objective))
    assert done.returncode == 0, done.stderr[-4000:]
    lines = tiny_task.steps(whole)
    inside = next(
        line["step"]
        for line, following in pairwise(lines)
        if line["iteration"] == following["iteration"] > 0  # the first step of an iteration after the first
    )
    tiny_task.kill_after(inside, arguments(task, killed, objective), 1, killed)
    assert not (killed / "hf").exists()
    done = tiny_task.run([*arguments(task, killed, objective), "checkpoint.load=latest"])
    assert done.returncode == 0, done.stderr[-4000:]
    assert tiny_task.steps(killed) == lines
    expected = load_file(whole / "hf" / "model.safetensors")
    for name, weight in load_file(killed / "hf" / "model.safetensors").items():
        assert torch.equal(weight, expected[name]), name


def test_inpo_refers_to_the_weights_of_the_start(task: Path) -> None:
    """kl_ref is 0 up to rounding as long as π_t is π_ref; later not."""
    lines = tiny_task.steps(task.parent / "inpo-whole")
    of_iteration = {line["iteration"]: line["kl_ref"] for line in lines}
    assert abs(of_iteration[0]) < 1e-4 < abs(of_iteration[2])


def test_spin_trains_towards_the_human_responses(task: Path) -> None:
    run = task.parent / "spin-whole"
    tokenizer = AutoTokenizer.from_pretrained(task / "start")
    end = tokenizer.eos_token_id
    gold = {line["prompt"]: line["gold"] for line in map(json.loads, (task / "human.jsonl").read_text().splitlines())}
    for group in stored_groups(run, 0):
        ids = tokenizer(gold[group["prompt"]], add_special_tokens=False)["input_ids"]
        assert group["human_token_ids"] == [*ids, end]
    margins = [line["pair_margin_mean"] for line in tiny_task.steps(run) if line["iteration"] == 0]
    assert margins[0] == pytest.approx(0, abs=1e-4) and margins[-1] > 0
    assert {line["reward_mean"] for line in tiny_task.steps(run)} == {0.0}


def test_a_missing_human_response_is_named_by_its_line(task: Path) -> None:
    lines = (task / "human.jsonl").read_text().splitlines()
    lines[4] = json.dumps({key: value for key, value in json.loads(lines[4]).items() if key != "gold"})
    (task / "holes.jsonl").write_text("\n".join(lines) + "\n")
    changes = {**SPIN, "data.train_path": task / "holes.jsonl"}
    done = tiny_task.run(tiny_task.overrides(task, task.parent / "holes", **changes))
    assert done.returncode == 2
    assert "line 5: no key 'gold' (data.response_key)" in done.stderr
