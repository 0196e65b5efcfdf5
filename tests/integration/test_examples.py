"""Examples as their README says to run them, in another folder and shorter."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.forked import processes
from tests.integration import tiny_task

EXAMPLES = tiny_task.ROOT / "examples"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("math_verifiable")
    command = [sys.executable, "-m", "examples.math_verifiable.prepare", "--output", str(folder)]
    for _ in range(2):  # the second time it is there
        done = processes.run(command, 300, cwd=tiny_task.ROOT, env=tiny_task.environment())
        assert done.returncode == 0, done.stderr[-4000:]
    assert "(cached)" in done.stdout
    return folder


def test_the_problems_are_arithmetic_and_the_held_out_ones_are_new(prepared: Path) -> None:
    train, held_out = (
        {line["prompt"]: line["answer"] for line in map(json.loads, (prepared / name).read_text().splitlines())}
        for name in ("train.jsonl", "eval.jsonl")
    )
    assert len(train) + len(held_out) == 1955 and len(held_out) == 256 and not train.keys() & held_out.keys()
    for prompt, answer in (train | held_out).items():
        for sign, result in (("+", int.__add__), ("-", int.__sub__)):
            if sign in prompt:
                assert result(*map(int, prompt.rstrip("=").split(sign))) == int(answer) >= 0


def test_a_verifier_teaches_arithmetic(prepared: Path) -> None:
    run = prepared / "run"
    arguments = [
        "experiment=math_verifiable",
        f"model.hf_path={prepared / 'start'}",
        f"data.train_path={prepared / 'train.jsonl'}",
        f"data.eval_path={prepared / 'eval.jsonl'}",
        f"output_dir={run}",
        "train.iterations=30",
        "logger.progress=false",
    ]
    done = tiny_task.run(arguments, cwd=tiny_task.ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    before, *_, after = (line["eval_exact_match"] for line in tiny_task.evaluations(run))
    assert (
        0.45 < before < 0.6 and before == json.loads((prepared / "prepared.json").read_text())["held_out_exact_match"]
    )
    assert after > before + 0.08
    tokenizer, model = (kind.from_pretrained(run / "hf") for kind in (AutoTokenizer, AutoModelForCausalLM))
    prompt = tokenizer("2+3=", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=4, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True).isdigit()


def test_the_readme_names_what_there_is() -> None:
    text = (EXAMPLES / "math_verifiable" / "README.md").read_text()
    assert "python -m examples.math_verifiable.prepare\n" in text
    assert "experiment=math_verifiable\n" in text
