"""A real pretrained model, SmolLM2-135M-Instruct: what the suite shows on tiny random ones holds for it.

`make test-real` installs what this needs; `make test` leaves it out.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sppo_megatron.hf.hf_folder import resolve_hf_folder
from tests.distributed.conversion.command_lines import run_command_lines
from tests.distributed.layouts import reference
from tests.distributed.layouts.cases import CP, PACKED, PP, ROWS, SP, TP, UNFUSED, Case
from tests.distributed.layouts.comparison import assert_checkpoints_convert, assert_trained_as
from tests.distributed.torchrun import run_once
from tests.installed import needs_vllm
from tests.stored_rollouts import stored_groups

smollm2 = pytest.importorskip("examples.smollm2.prepare")
pytest.importorskip("reasoning_gym", reason="make test-real installs it")
pytest.importorskip("gguf", reason="make test-real installs it")

pytestmark = needs_vllm

WORKER = Path(__file__).parents[1] / "distributed" / "layouts" / "worker.py"
MODEL = "smollm2"
# Two steps of 5 responses and one of 2. Without weight decay: of a token that isn't met it would be the whole update, a
# few roundings of the weight.
TRAINED = reference.Settings(
    iterations=1, groups_per_iteration=3, minibatch_size=5, lr=3e-5, weight_decay=0.0, temperature=1.0
)
CASES = [
    Case("one", 1, {PACKED: 512}, MODEL, TRAINED),
    Case("tp3-sp", 3, {TP: 3, SP: "true", PACKED: 512, "rollout.vllm.tensor_parallel_size": 1}, MODEL, TRAINED),
    Case("pp2", 2, {PP: 2, ROWS: 2}, MODEL, TRAINED),
    Case("cp2-unfused", 2, {CP: 2, PACKED: 512, **UNFUSED}, MODEL, TRAINED),
    Case("dp2", 2, {ROWS: 2}, MODEL, TRAINED),
]
ONLINE = {
    "precision.dtype": "fp32",
    "data.apply_chat_template": "true",
    "reward.kind": "numeric",
    "objective.baseline": "mean",
    "rollout.engine": "vllm",
    "rollout.verify": "true",
    "rollout.mismatch.action": "stop",
    "rollout.num_samples_per_prompt": 4,
    "rollout.max_response_length": 24,
    "rollout.vllm.max_num_seqs": 16,
    "rollout.vllm.kv_cache_memory_mib": 128,
    "train.iterations": 2,
    "train.prompts_per_iteration": 3,
    "train.minibatch_size": 6,
    "train.max_tokens_per_micro_batch": 512,
    "optimizer.lr": 1e-5,
    "logger.tensorboard": "false",
    "logger.progress": "false",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("real")
    smollm2.prepare(path, seed=0)
    (path / MODEL).symlink_to(resolve_hf_folder(str(path / smollm2.MODEL)))
    return path


@pytest.fixture(scope="module")
def online(folder: Path) -> Path:
    """A run of two iterations with rollouts by vLLM; its first rollouts, as the layouts below replay them."""
    output = folder / "out" / "online"
    paths = {"model.hf_path": folder / MODEL, "data.train_path": folder / "sums-train.jsonl", "output_dir": output}
    todo = folder / "online.json"
    todo.write_text(json.dumps([("online", [f"{key}={value}" for key, value in (ONLINE | paths).items()])]))
    run_once(WORKER, todo, 1, vllm=True)
    lines = (json.dumps(group, default=str) for group in stored_groups(output, 0))
    (folder / "rollouts.jsonl").write_text("\n".join(lines) + "\n")
    return output


@pytest.fixture(scope="module")
def output_of(folder: Path, online: Path):
    """The output folder of a case; all cases of a number of ranks run when the first is asked for."""

    def of(case: Case) -> Path:
        todo = folder / f"runs-{case.world_size}.json"
        same = [other for other in CASES if other.world_size == case.world_size]
        todo.write_text(json.dumps([(other.name, other.arguments(folder)) for other in same]))
        run_once(WORKER, todo, case.world_size)
        return folder / "out" / case.name

    return of


@cache
def expected(folder: Path) -> reference.Result:
    return reference.train(folder / MODEL, folder / "rollouts.jsonl", TRAINED)


def test_it_answers(folder: Path) -> None:
    """What was read from the file is the model, with its tokenizer and template."""
    model = AutoModelForCausalLM.from_pretrained(folder / MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / MODEL)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


@pytest.mark.parametrize("iteration", [0, 1], ids=["before", "after-a-push"])
def test_log_probs_of_vllm_are_those_of_transformers(iteration: int, folder: Path, online: Path) -> None:
    """The second iteration's by the model after one; the gate compared each with the trainer's own (1e-4 nats)."""
    lines = [json.loads(line) for line in (online / "metrics.jsonl").read_text().splitlines()]
    assert max(line["mismatch_mean"] for line in lines if "mismatch_mean" in line) <= 1e-4
    if iteration:
        return
    model = AutoModelForCausalLM.from_pretrained(folder / MODEL, dtype=torch.float32).eval()
    for group in stored_groups(online, 0):
        for response in group["responses"]:
            prompt, ids = group["prompt_token_ids"], response["token_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double()
            own = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])[:, 0].numpy()
            assert np.allclose(response["rollout_log_probs"], own, rtol=0, atol=1e-4)
            assert np.allclose(response["old_log_probs"], own, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_plain_definition(case: Case, folder: Path, output_of) -> None:
    output = output_of(case)
    assert_trained_as(expected(folder), output)


def test_conversion_is_bitwise(folder: Path, output_of) -> None:
    """There and back, and from the checkpoint of a run over three tensor-parallel ranks."""
    made = {"--hf-path": folder / MODEL, "--output": folder / "megatron"}
    back = {"--megatron-path": folder / "megatron", "--hf-path": folder / MODEL, "--output": folder / "back"}
    for name, to, options in (("there", "megatron", made), ("back", "hf", back)):
        arguments = [part for option in options.items() for part in option]
        assert run_command_lines(folder, {name: ["convert", "--to", to, *arguments]})[name][0] == 0
    own, found = (load_file(folder / name / "model.safetensors") for name in (MODEL, "back"))
    assert own.keys() == found.keys() and all(torch.equal(own[name], found[name]) for name in own)
    (case,) = (case for case in CASES if case.name == "tp3-sp")
    assert_checkpoints_convert(folder, {case.name: output_of(case)}, {case.name: folder / MODEL})
