"""The same samples in every layout, and log-probs that are those of plain transformers for the sampled tokens.

Online runs of one iteration through the real command's code, one torchrun for all layouts of a number of ranks.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.distributed.layouts import models
from tests.distributed.torchrun import run_once
from tests.integration import tiny_task
from tests.stored_rollouts import stored_groups

WORKER = Path(__file__).parents[1] / "layouts" / "worker.py"

TP, PP, VPP, CP = (
    "parallelism.tensor_model_parallel_size",
    "parallelism.pipeline_model_parallel_size",
    "parallelism.virtual_pipeline_model_parallel_size",
    "parallelism.context_parallel_size",
)
EP, ETP = "parallelism.expert_model_parallel_size", "parallelism.expert_tensor_parallel_size"
SP = {"parallelism.sequence_parallel": "true"}
LAYOUTS = {
    "one-process": (1, "qwen2-tied", {}),
    "one-process-small-batches": (1, "qwen2-tied", {"rollout.batch_size": 3}),
    "one-process-qwen3": (1, "qwen3", {}),
    "tp2": (2, "qwen2-tied", {TP: 2}),
    "tp2-sp": (2, "qwen2-tied", {TP: 2, **SP}),
    "pp2": (2, "qwen2-tied", {PP: 2}),
    "pp2-vpp2": (2, "qwen2-tied", {PP: 2, VPP: 2}),
    "cp2": (2, "qwen2-tied", {CP: 2}),
    "dp2": (2, "qwen2-tied", {"rollout.batch_size": 5}),
    "tp2-qwen3": (2, "qwen3", {TP: 2, **SP}),
    "tp4": (4, "qwen2-tied", {TP: 4}),
    "tp2-pp2": (4, "qwen2-tied", {TP: 2, PP: 2, **SP}),
    "tp2-cp2": (4, "qwen2-tied", {TP: 2, CP: 2}),
    "pp2-cp2": (4, "qwen2-tied", {PP: 2, CP: 2}),
    "one-process-mixtral": (1, "mixtral", {}),
    "one-process-qwen3-moe": (1, "qwen3-moe", {}),
    # Replicas that hold experts for each other, with different numbers of batches and of tokens.
    "ep2-mixtral": (2, "mixtral", {EP: 2, "rollout.batch_size": 3}),
    "cp2-ep2-qwen3-moe": (2, "qwen3-moe", {CP: 2, EP: 2, "rollout.batch_size": 11}),
    "tp2-ep2-etp1-mixtral": (2, "mixtral", {TP: 2, EP: 2, ETP: 1, **SP}),
    "tp2-ep2-qwen3-moe": (4, "qwen3-moe", {TP: 2, EP: 2, **SP, "rollout.batch_size": 4}),
    "pp2-ep2-qwen3-moe": (4, "qwen3-moe", {PP: 2, EP: 2, "rollout.batch_size": 4}),
    # Caches of windows with two kinds of rotary frequencies, and of keys and values of different sizes.
    "one-process-gemma3": (1, "gemma3", {}),
    "one-process-deepseek-v3": (1, "deepseek-v3", {}),
    "pp2-gemma3": (2, "gemma3", {PP: 2, "rollout.batch_size": 5}),
    "tp2-deepseek-v3": (2, "deepseek-v3", {TP: 2, **SP}),
    "cp2-deepseek-v3": (2, "deepseek-v3", {CP: 2}),
    "ep2-dp2-mixtral": (4, "mixtral", {EP: 2, "rollout.batch_size": 2}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generation")
    prepare(path, {model for _, model, _ in LAYOUTS.values()})
    return path


def prepare(folder: Path, kinds: set[str]) -> None:
    """Models with the demo's tokenizer, and prompts of several lengths."""
    demo = tiny_task.demo_module()
    for kind in kinds:
        models.make_model(kind, folder / kind)
        demo.make_tokenizer().save_pretrained(folder / kind)
    demo.write_problems(folder / "prompts.jsonl", demo.reversals(demo.make_numbers(7, seed=3)))


@pytest.fixture(scope="module")
def groups_of(folder: Path):
    """The first iteration's groups of a layout; all layouts of a world size run when the first is asked for."""

    def of(name: str) -> list[dict]:
        world_size = LAYOUTS[name][0]
        todo = folder / f"runs-{world_size}.json"
        runs = [(other, overrides(other, folder)) for other, (size, _, _) in LAYOUTS.items() if size == world_size]
        todo.write_text(json.dumps(runs))
        run_once(WORKER, todo, world_size)
        return read_groups(folder / "out" / name)

    return of


def read_groups(output: Path) -> list[dict]:
    return stored_groups(output, 0)


def overrides(name: str, folder: Path) -> list[str]:
    _, model, changes = LAYOUTS[name]
    values = {
        "model.hf_path": folder / model,
        "model.make_vocab_size_divisible_by": 4,
        "precision.dtype": "fp32",
        "data.train_path": folder / "prompts.jsonl",
        "reward.kind": "exact_match",
        "objective.baseline": "mean",
        "rollout.num_samples_per_prompt": 3,
        "rollout.max_response_length": 9,
        "rollout.temperature": 0.8,
        "train.iterations": 1,
        "train.prompts_per_iteration": 7,
        "train.micro_batch_size": 4,
        "optimizer.use_distributed_optimizer": "false",
        "logger.tensorboard": "false",
        "logger.progress": "false",
        "output_dir": folder / "out" / name,
    }
    return [f"{key}={value}" for key, value in (values | changes).items()]


@pytest.mark.parametrize("name", LAYOUTS)
def test_samples_and_log_probs(name: str, folder: Path, groups_of) -> None:
    groups = groups_of(name)
    model_name = LAYOUTS[name][1]
    reference = groups_of("one-process" if model_name == "qwen2-tied" else f"one-process-{model_name}")
    sampled = [[response["token_ids"] for response in group["responses"]] for group in groups]
    assert sampled == [[response["token_ids"] for response in group["responses"]] for group in reference]
    assert_log_probs_of(folder / model_name, groups)


def assert_log_probs_of(model_folder: Path, groups: list[dict]) -> None:
    """Those of plain transformers, at the temperature, for every token that was sampled."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    lengths = set()
    for group in groups:
        prompt = group["prompt_token_ids"]
        for response in group["responses"]:
            ids = response["token_ids"]
            lengths.add((len(prompt), len(ids)))
            with torch.no_grad():
                logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double() / 0.8
            expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]
            assert torch.allclose(torch.tensor(response["rollout_log_probs"]).double(), expected, atol=1e-5)
            assert (response["finish_reason"] == "stop") == (ids[-1] == model.config.eos_token_id)
    assert len({prompt for prompt, _ in lengths}) >= 3, "prompts of several lengths were mixed"
