"""A whole online run by the real command, two ranks: what it writes, and that it trains on what it sampled."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from sppo_report.panel_table import PANELS
from sppo_report.run_folder import Run
from sppo_report.timeline import timeline
from tests.integration import tiny_task
from tests.stored_rollouts import stored_groups

REQUIRED = {"step", "iteration", "loss", "grad_norm", "lr", "reward_mean", "log_ratio_abs_max"}
DIAGNOSTICS = {
    "log_ratio_mean", "log_ratio_std", "log_ratio_min", "log_ratio_max", "log_ratio_per_token", "target_mean",
    "target_std", "residual_rms", "r_squared", "sign_agreement", "implied_reward_mean", "kl_k1", "kl_k2", "kl_k3",
    "entropy", "win_rate_mean", "degenerate_group_share", "truncation_rate", "response_length_mean",
    "rollout_log_prob_diff_mean", "rollout_log_prob_diff_max", "rollout_log_prob_diff_sequence_mean", "importance_ess",
    "seconds_rollout", "seconds_train", "tokens_per_second",
}  # fmt: skip


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("online")
    task = tiny_task.make_task(folder / "task")
    changes = {"parallelism": "tp2", "logger.tensorboard": "true", "eval.interval": 1, "profiler.steps": "[2,4]"}
    done = tiny_task.run(tiny_task.overrides(task, folder / "run", **changes), ranks=2, fresh=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "eval_exact_match" in done.stdout and str(folder / "run") in done.stdout
    assert done.stdout.count("iteration 3/3") == 1, "one rank speaks"
    return folder / "run"


def test_metrics(output: Path) -> None:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "step" in line]
    assert [line["step"] for line in trained] == list(range(1, 10))
    assert [line["iteration"] for line in trained] == [0] * 3 + [1] * 3 + [2] * 3
    for line in trained:
        assert line.keys() >= REQUIRED | DIAGNOSTICS, REQUIRED | DIAGNOSTICS - line.keys()
    documented = {name for panel in PANELS for name in panel.metrics}
    counters = {"step", "iteration", "eval_step", "eval_iteration"}
    assert {name for line in lines for name in line} - documented == counters
    evaluated = tiny_task.evaluations(output)
    assert [line["eval_step"] for line in evaluated] == [0, 3, 6, 9]
    assert all({"eval_reward_mean", "eval_exact_match"} <= line.keys() for line in evaluated)


def test_first_step_of_an_iteration_is_on_policy(output: Path) -> None:
    steps = tiny_task.steps(output)
    for line in steps[0::3]:
        assert line["log_ratio_abs_max"] < 1e-5
    for line in steps[1::3]:
        assert line["log_ratio_abs_max"] > 1e-3


def test_what_was_sampled_is_what_is_trained(output: Path) -> None:
    for line in tiny_task.steps(output):
        assert line["rollout_log_prob_diff_max"] < 1e-5
        assert line["rollout_log_prob_diff_mean"] > 0, "zero to the last bit would mean that nothing was compared"


def test_rollout_files_are_the_policys_own_samples(output: Path) -> None:
    """The first iteration's rollouts, log-probs recomputed by transformers from the starting model."""
    model = AutoModelForCausalLM.from_pretrained(output.parent / "task" / "start", dtype=torch.float32).eval()
    groups = stored_groups(output, 0)
    assert len(groups) == 6 and all(len(group["responses"]) == 4 for group in groups)
    for group in groups:
        prompt = group["prompt_token_ids"]
        for response in group["responses"]:
            ids = response["token_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
            expected = torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(ids)[:, None])[:, 0]
            assert torch.allclose(torch.tensor(response["rollout_log_probs"]), expected, atol=1e-5)
            ended = ids[-1] == model.config.eos_token_id
            assert response["finish_reason"] == ("stop" if ended else "length")
            assert ended or len(ids) == 6
            text, answer = response["text"], group["answer"]
            right = sum(a == b for a, b in zip(text, answer, strict=False)) / max(len(text), len(answer))
            assert response["reward"] == pytest.approx(right)
    assert len({tuple(response["token_ids"]) for group in groups for response in group["responses"]}) > 12


def test_output_folder(output: Path) -> None:
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert config["parallelism"]["tensor_model_parallel_size"] == 2
    assert list((output / "tensorboard").glob("events*"))
    best = max(tiny_task.evaluations(output), key=lambda line: line["eval_reward_mean"])["eval_step"]
    kept = {"best", f"step_{best:08d}"} if best else set()  # the policy before training counts, too
    assert {path.name for path in (output / "checkpoints").iterdir()} == kept | {"step_00000009"}
    model = AutoModelForCausalLM.from_pretrained(output / "hf")
    start = AutoModelForCausalLM.from_pretrained(output.parent / "task" / "start")
    changed = [float((a - b).abs().max()) for a, b in zip(model.parameters(), start.parameters(), strict=True)]
    assert min(changed) > 0
    tokenizer = AutoTokenizer.from_pretrained(output / "hf")
    assert tokenizer.decode(tokenizer.encode("12=")) == "12="


def test_a_run_is_not_overwritten(output: Path) -> None:
    before = (output / "metrics.jsonl").read_bytes()
    done = tiny_task.run(tiny_task.overrides(output.parent / "task", output))
    assert done.returncode == 2 and "checkpoint.load=latest" in done.stderr
    assert (output / "metrics.jsonl").read_bytes() == before


def test_traces_of_both_ranks(output: Path) -> None:
    """Steps 2 to 4, and what lies between 3 and 4: an update, rollouts, log-probs."""
    traces = sorted((output / "profile").glob("*.json.gz"))
    assert [path.name for path in traces] == [f"rank_{rank:04d}_steps_2-4.json.gz" for rank in (0, 1)]
    for path in traces:
        names = {event.get("name") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}
        assert {name for name in names if str(name).startswith("optimizer step")} == {
            f"optimizer step {step}" for step in (2, 3, 4)
        }
        assert "aten::multinomial" in names or "aten::mm" in names


def test_what_both_ranks_did_when(output: Path) -> None:
    """The report's timeline, from the real loop: every stage, one after the other, the same on both ranks."""
    of_run = timeline(Run("run", output))
    first, second = ([name for name, _, _ in of_rank["stages"]] for of_rank in of_run["ranks"])
    assert first == second
    assert first == [
        "optimizer step 2",
        "optimizer step 3",
        "weights to the engine",
        "evaluation",
        "checkpoint",
        "rollouts and scores",
        "log-probs",
        "optimizer step 4",
    ]
    for of_rank in of_run["ranks"]:
        ends = [0.0, *(start + seconds for _, start, seconds in of_rank["stages"])]
        starts = [*(start for _, start, _ in of_rank["stages"]), of_run["seconds"]]
        assert all(end <= start + 1e-3 for end, start in zip(ends, starts, strict=True))
