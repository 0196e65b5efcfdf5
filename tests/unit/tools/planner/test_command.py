"""The command: tables, the arithmetic, JSON, and --check on every shipped experiment."""

from __future__ import annotations

import json
import math
import re
import shlex

import pytest
from omegaconf import OmegaConf

from sppo_megatron.config.compose import config_folder
from sppo_megatron.hf.mapping import hf_shapes, parameter_layouts
from sppo_planner.command import EXIT_DOES_NOT_FIT, main
from sppo_planner.shipped_shapes import find_architecture, shipped_models

COMMANDS = {
    path.stem: shlex.split(line.partition("sppo plan")[2])
    for path in sorted((config_folder() / "experiment").glob("*.yaml"))
    for line in path.read_text(encoding="utf-8").splitlines()
    if line.startswith("# sppo plan")
}
QWEN_7B = ["--model", "Qwen2.5-7B", "--gpus", "8", "--sequence-length", "8192"]


def test_every_shipped_shape_has_an_experiment():
    names = [OmegaConf.load(path).model.hf_path for path in (config_folder() / "experiment").glob("*.yaml")]
    used = [find_architecture(name) for name in names if not name.startswith("outputs/")]
    assert len(used) == len(COMMANDS)
    for model in shipped_models():
        assert any(_same(find_architecture(model), architecture) for architecture in used), model


def _same(one, other):
    return hf_shapes(parameter_layouts(one, one.vocab_size)) == hf_shapes(parameter_layouts(other, other.vocab_size))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_experiment_fits_the_cluster_it_names(name, capsys):
    assert f"experiment={name}" in COMMANDS[name]
    assert main(COMMANDS[name]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "fits" and "GiB a GPU" in printed


@pytest.mark.parametrize("name", ["qwen2.5-7b", "llama-3.1-70b"])
def test_an_experiment_is_refused_where_it_is_too_large(name, capsys):
    assert main([*COMMANDS[name], "--gpu-memory-gib", "24"]) == EXIT_DOES_NOT_FIT
    printed = capsys.readouterr().out
    assert "does not fit:" in printed and re.search(r"needs [\d.]+ GiB and has 24; at the peak", printed)


def test_a_too_large_micro_batch_is_refused_with_the_key_to_change(capsys):
    command = [*COMMANDS["qwen2.5-7b"], "train.max_tokens_per_micro_batch=65536"]
    assert main(command) == EXIT_DOES_NOT_FIT
    printed = capsys.readouterr().out
    assert "activations 144.5" in printed
    assert "it would with train.max_tokens_per_micro_batch=5120\n" in printed


def test_a_run_that_would_be_refused_is_refused_in_its_words(capsys):
    command = [*COMMANDS["qwen2.5-7b"], "parallelism.tensor_model_parallel_size=3", "optimizer.min_lr=1"]
    assert main(command) == EXIT_DOES_NOT_FIT
    printed = capsys.readouterr().out
    for reason in ("28 attention heads", "8 processes can't be split", "optimizer.min_lr=1"):
        assert reason in printed


def test_the_list_is_the_best_first(capsys):
    assert main([*QWEN_7B, "--limit", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "3"]
    assert any(re.search(r"\d+ valid layouts, \d+ of them fit into 80 GiB", line) for line in lines)


def test_flags_are_configuration_keys(capsys):
    flags = ["--dtype", "fp32", "--engine", "vllm", "--vllm-share", "0.7", "--micro-batch-tokens", "10000"]
    assert main([*QWEN_7B, *flags, "--json"]) in (0, 1)
    by_flag = json.loads(capsys.readouterr().out)
    keys = ["precision.dtype=fp32", "rollout.engine=vllm", "rollout.vllm.gpu_memory_utilization=0.7"]
    keys += ["train.max_tokens_per_micro_batch=10000", "rollout.max_response_length=7168"]
    assert main(["--model", "Qwen2.5-7B", "--gpus", "8", *keys, "--json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out) == by_flag


def test_cluster_flags_replace_the_data_sheet(capsys):
    given = ["--gpu-memory-gib", "40", "--peak-flops", "1e14", "--link-bandwidth", "1e10", "--memory-bandwidth", "1e12"]
    main([*QWEN_7B, *given, "--json", "--mfu", "0.3"])
    found = json.loads(capsys.readouterr().out)
    gpu = found["cluster"]["gpu"]
    assert (gpu["memory_gib"], gpu["link_bandwidth"], gpu["memory_bandwidth"]) == (40, 1e10, 1e12)
    assert set(gpu["peak_flops"].values()) == {1e14} and found["assumptions"]["mfu"] == 0.3


def test_json_holds_every_term_and_sums_up(capsys):
    assert main([*COMMANDS["qwen3-30b-a3b"], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["problems"] == [] and found["parameters"] == 30_532_122_624
    (layout,) = found["layouts"]
    memory = layout["memory"]
    for parts in (memory["resident"], *memory["moments"].values(), layout["traffic"]):
        for part in parts.values():
            assert part["total"] == pytest.approx(sum(term["value"] for term in part["terms"]))
    peak = memory["moments"][memory["peak"]]
    assert memory["total"] == pytest.approx(
        sum(part["total"] for part in (*memory["resident"].values(), *peak.values()))
    )


def test_the_arithmetic_that_is_printed_is_right(capsys):
    """Every line `what: a things × b things ÷ c things = v unit` is worked out from its text alone."""
    assert main([*QWEN_7B, "--explain"]) == 0
    units = {"GiB": 2**30, "GB": 1e9, "s": 1}
    lines = re.findall(r"^    [^\n]*?: (\d.*) = (\S+) (GiB|GB|s)$", capsys.readouterr().out, re.MULTILINE)
    assert len(lines) > 40
    for product, value, unit in lines:
        factors, *divisors = product.split(" ÷ ")
        result = math.prod(number(factor) for factor in factors.split(" × "))
        result /= math.prod(number(divisor) for divisor in divisors)
        assert result / units[unit] == pytest.approx(float(value), rel=2e-3), product


def test_the_layout_that_is_explained_is_the_one_in_the_list(capsys):
    assert main([*QWEN_7B, "--json"]) == 0
    third = json.loads(capsys.readouterr().out)["layouts"][2]["layout"]
    assert main([*QWEN_7B, "--explain", "--layout", "3"]) == 0
    assert f"\n{third} on 8 GPUs" in capsys.readouterr().out


def number(counted: str) -> float:
    return float(counted.split()[0].replace(",", ""))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no/such/model", "--gpus", "8"], "shapes that need no network"),
        ([*QWEN_7B, "--prompt-length", "9000"], "--sequence-length must be above"),
        ([*QWEN_7B, "train.iteration=3"], "did you mean train.iterations"),
        ([*QWEN_7B, "--layout", "1000"], "the first is the best"),
    ],
)
def test_mistakes_are_one_message(arguments, message, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


@pytest.mark.parametrize("arguments", [["--gpus", "0"], ["--gpus", "8", "--mfu", "0"], ["--gpus", "8", "--mfu", "inf"]])
def test_sizes_and_assumptions_are_above_zero(arguments, capsys):
    with pytest.raises(SystemExit):
        main(["--model", "Qwen2.5-7B", *arguments])
    assert "must be" in capsys.readouterr().err
