"""Rollouts by the real vLLM inside the training ranks: its log-probs are the trainer's, before and after training.

Online runs of two iterations through the real command's code, one torchrun for all layouts of a number of ranks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.distributed.layouts import models
from tests.distributed.torchrun import run_once
from tests.installed import needs_vllm
from tests.integration import offline_commands, tiny_task
from tests.stored_rollouts import stored_groups

pytestmark = needs_vllm

WORKER = Path(__file__).parents[1] / "layouts" / "worker.py"
TEMPERATURE = 0.8
WIDE = {"hidden_size": 128, "head_dim": 32}  # vLLM's attention on CPU wants heads of 32 and more
# and multi-latent attention the published sizes of keys and values
LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "head_dim": 64, "qk_nope_head_dim": 32, "v_head_dim": 32}
LATENT |= {"qk_head_dim": 96, "topk_method": "noaux_tc", "scoring_func": "sigmoid"}  # vLLM reads them, all publish them
SIZES = {
    "deepseek-v3": {"hidden_size": 128, **LATENT},
    # limited experts want multiples of 32 on each rank, and have the published limit whatever the config says
    "gpt-oss": WIDE | {"intermediate_size": 64, "swiglu_limit": 7.0},
}

TP, PP = "parallelism.tensor_model_parallel_size", "parallelism.pipeline_model_parallel_size"
EP, SP = "parallelism.expert_model_parallel_size", {"parallelism.sequence_parallel": "true"}
ETP = "parallelism.expert_tensor_parallel_size"
ROLLOUT_TP = "rollout.vllm.tensor_parallel_size"
LAYOUTS = {
    "tp2-qwen2-tied": (2, "qwen2-tied", {TP: 2}),
    "tp2-qwen2": (2, "qwen2", {TP: 2, ROLLOUT_TP: 2}),
    "tp2-llama": (2, "llama", {TP: 2, **SP}),
    "pp2-qwen3": (2, "qwen3", {PP: 2}),
    "pp2-qwen2-tied": (2, "qwen2-tied", {PP: 2, ROLLOUT_TP: 2}),
    "ep2-qwen3-moe": (2, "qwen3-moe", {EP: 2}),
    "pp2-gemma3": (2, "gemma3", {PP: 2}),
    "tp2-ministral3": (2, "ministral3", {TP: 2, **SP, ROLLOUT_TP: 2}),
    "tp2-mixtral-window": (2, "mixtral-window", {TP: 2, **SP}),
    "ep2-glm4-moe": (2, "glm4-moe", {EP: 2}),
    "tp2-deepseek-v3": (2, "deepseek-v3", {TP: 2, **SP}),
    "tp2-gpt-oss": (2, "gpt-oss", {TP: 2, **SP, ETP: 1}),
    "ep2-gpt-oss": (2, "gpt-oss", {EP: 2, ROLLOUT_TP: 2}),
    "tp2-pp2-qwen2-tied": (4, "qwen2-tied", {TP: 2, PP: 2, ROLLOUT_TP: 2}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vllm")
    demo = tiny_task.demo_module()
    for kind in {model for _, model, _ in LAYOUTS.values()}:
        models.make_model(kind, path / kind, **SIZES.get(kind, WIDE))
        demo.make_tokenizer().save_pretrained(path / kind)
    demo.write_problems(path / "prompts.jsonl", demo.reversals(demo.make_numbers(7, seed=3)))
    return path


SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def left_by_a_killed_run() -> Iterator[None]:
    """vLLM's own names of shared memory, which are the same in every run, are taken."""
    names = [f"-tp:{count}-[0-1]-cpushm_{rank}" for count in range(12) for rank in (0, 1)]
    made = [SHARED_MEMORY / name for name in names if not (SHARED_MEMORY / name).exists()]
    for path in made:
        path.touch()
    yield
    for path in made:
        path.unlink()


@pytest.fixture(scope="module")
def output_of(folder: Path, left_by_a_killed_run: None):
    """The output folder of a layout; all layouts of a world size run when the first is asked for."""

    def of(name: str) -> Path:
        world_size = LAYOUTS[name][0]
        todo = folder / f"runs-{world_size}.json"
        runs = [(other, overrides(other, folder)) for other, (size, _, _) in LAYOUTS.items() if size == world_size]
        todo.write_text(json.dumps(runs))
        run_once(WORKER, todo, world_size, vllm=True)
        return folder / "out" / name

    return of


def overrides(name: str, folder: Path) -> list[str]:
    _, model, changes = LAYOUTS[name]
    values = {
        "model.hf_path": folder / model,
        "model.make_vocab_size_divisible_by": 4,  # the trainer's vocabulary is padded, vLLM's is not
        "precision.dtype": "fp32",
        "data.train_path": folder / "prompts.jsonl",
        "reward.kind": "character_share",
        "objective.baseline": "mean",
        "rollout.engine": "vllm",
        "rollout.verify": "true",
        "rollout.mismatch.action": "stop",
        "rollout.mismatch.mean_bound": 1e-5,
        "rollout.num_samples_per_prompt": 3,
        "rollout.max_response_length": 9,
        "rollout.temperature": TEMPERATURE,
        "rollout.vllm.max_num_seqs": 16,
        "rollout.vllm.kv_cache_memory_mib": 32,
        "train.iterations": 2,
        "train.prompts_per_iteration": 7,
        "train.minibatch_size": 8,
        "train.micro_batch_size": 4,
        "optimizer.lr": 3e-3,
        "optimizer.clip_grad": 1.0,
        "logger.tensorboard": "false",
        "logger.progress": "false",
        "output_dir": folder / "out" / name,
    }
    return [f"{key}={value}" for key, value in (values | changes).items()]


def responses(output: Path, iteration: int) -> list[tuple[list[int], dict]]:
    groups = stored_groups(output, iteration)
    return [(group["prompt_token_ids"], response) for group in groups for response in group["responses"]]


def log_probs_of(model, prompt: list[int], ids: list[int]) -> np.ndarray:
    """float64, by plain transformers."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double() / TEMPERATURE
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])[:, 0].numpy()


@pytest.mark.parametrize("name", LAYOUTS)
def test_log_probs_are_the_trainers(name: str, folder: Path, output_of) -> None:
    output = output_of(name)
    model = AutoModelForCausalLM.from_pretrained(folder / LAYOUTS[name][1], dtype=torch.float32).eval()
    first, second = responses(output, 0), responses(output, 1)
    for prompt, response in first:
        expected = log_probs_of(model, prompt, response["token_ids"])
        np.testing.assert_allclose(response["rollout_log_probs"], expected, atol=1e-4)
        assert response["policy_version"] == 0
    moved = 0.0
    for prompt, response in second:  # after three optimizer steps and a push
        np.testing.assert_allclose(response["rollout_log_probs"], response["old_log_probs"], atol=1e-4)
        assert response["policy_version"] == 3
        before = log_probs_of(model, prompt, response["token_ids"])
        moved = max(moved, np.abs(before - response["rollout_log_probs"]).max())
    assert moved > 0.05, "the weights have hardly changed: the second comparison would not notice a skipped push"


@pytest.mark.parametrize("name", LAYOUTS)
def test_groups_are_whole(name: str, folder: Path, output_of) -> None:
    """Prompts come back in their order, split over replicas or not; samples of most prompts differ from each other."""
    output = output_of(name)
    for iteration in (0, 1):
        found = responses(output, iteration)
        assert len(found) == 21
        groups = [found[place : place + 3] for place in range(0, 21, 3)]
        assert all(len({tuple(prompt) for prompt, _ in group}) == 1 for group in groups)
        distinct = [len({tuple(response["token_ids"]) for _, response in group}) for group in groups]
        assert sum(count > 1 for count in distinct) >= 5, distinct
        for _, response in found:
            assert (response["finish_reason"] == "stop") == (response["token_ids"][-1] == 1)
    [step] = [line for line in read_metrics(output) if line.get("step") == 4]
    assert step["probe_mismatch"] < 1e-4 and step["mismatch_max"] < 1e-4 and step["sync_bytes"] > 0


def read_metrics(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_samples_do_not_depend_on_the_replicas(output_of) -> None:
    """One engine over two ranks and two engines of one rank draw the same from the same weights."""
    one, two = (responses(output_of(name), 0) for name in ("pp2-qwen2-tied", "tp2-qwen2-tied"))
    assert [response["token_ids"] for _, response in one] == [response["token_ids"] for _, response in two]


def test_no_shared_memory_stays(output_of) -> None:
    output_of("tp2-qwen2")
    assert not list(SHARED_MEMORY.glob("sppo-*"))


@pytest.mark.parametrize("name", ["tp2-llama", "ep2-qwen3-moe"])
def test_vllm_reads_the_export(name: str, folder: Path, output_of, tmp_path: Path) -> None:
    """Weights and config.json from `hf/` alone; the samples are of the model that transformers reads there."""
    model = output_of(name) / "hf"
    overrides = [
        "precision=fp32",
        "rollout=vllm",
        "rollout.vllm.kv_cache_memory_mib=32",
        "rollout.num_samples_per_prompt=2",
        "rollout.max_response_length=9",
    ]
    paths = [f"model.hf_path={model}", f"data.train_path={folder / 'prompts.jsonl'}"]
    offline_commands.succeed("generate", *overrides, *paths, "--output", tmp_path / "samples.jsonl")
    offline_commands.check_log_probs(model, tmp_path / "samples.jsonl")
