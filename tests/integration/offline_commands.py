"""The commands of an offline iteration as a user gives them, and what their files must hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from tests.forked import processes
from tests.integration import tiny_task

K = 5


def command(name: str, *arguments: object, ranks: int = 1) -> list[str]:
    launcher = [] if ranks == 1 else ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    return [sys.executable, "-m", *launcher, "sppo_megatron.cli.main", name, *map(str, arguments)]


def run(name: str, *arguments: object, ranks: int = 1) -> subprocess.CompletedProcess:
    return processes.run(command(name, *arguments, ranks=ranks), 240, env=tiny_task.environment())


def succeed(name: str, *arguments: object, ranks: int = 1) -> subprocess.CompletedProcess:
    done = run(name, *arguments, ranks=ranks)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def generation(task: Path, **changes: object) -> list[str]:
    values = {
        "precision": "fp32",
        "model.hf_path": task / "start",
        "model.make_vocab_size_divisible_by": 8,
        "data.train_path": task / "train.jsonl",
        "rollout.num_samples_per_prompt": K,
        "rollout.max_response_length": 12,
        "rollout.seed": 7,
    }
    return [*(f"{key}={value}" for key, value in (values | changes).items()), "--batch-size", "3"]


def groups_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_log_probs(model_folder: Path, path: Path) -> None:
    """Against plain transformers: the samples are of this very model."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    for group in groups_of(path)[:4]:
        for response in group["responses"]:
            prompt, ids = group["prompt_token_ids"], response["token_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
            expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]
            np.testing.assert_allclose(response["rollout_log_probs"], expected, atol=1e-4)
