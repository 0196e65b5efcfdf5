"""FP8: every check has a bad example whose message names the key and the way out."""

from __future__ import annotations

import pytest

from sppo_megatron.config import Config, PrecisionConfig
from sppo_megatron.config.precision import FP8_REQUIREMENTS, check_precision, find_fp8_problem


def problems(**values: object) -> list[str]:
    config = Config()
    for key, value in values.items():
        group = config.optimizer if hasattr(config.optimizer, key) else config.precision
        assert hasattr(group, key), key
        setattr(group, key, value)
    return list(check_precision(config))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"dtype": "fp32"},
        {"dtype": "fp16", "fp8_recipe": "delayed"},
        {"fp8": "hybrid", "fp8_recipe": "delayed", "fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"},
        {"fp8": "hybrid", "fp8_recipe": "tensorwise", "first_last_layers_bf16": True},
        {"fp8": "e4m3", "fp8_recipe": "blockwise", "fp8_param": True},
        {"fp8": "e4m3", "fp8_recipe": "mxfp8", "use_distributed_optimizer": False},
    ],
    ids=str,
)
def test_good(values):
    assert problems(**values) == []


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"fp8_param": True}, ["precision.fp8_param=true needs precision.fp8", "fp8_blockwise"]),
        ({"first_last_layers_bf16": True}, ["precision.first_last_layers_bf16=true needs precision.fp8"]),
        ({"fp8": "e4m3", "dtype": "fp16"}, ["precision.fp8=e4m3 needs precision.dtype=bf16, not fp16"]),
        ({"fp8": "e4m3", "dtype": "fp32"}, ["needs precision.dtype=bf16, not fp32"]),
        (
            {"fp8": "hybrid", "fp8_recipe": "delayed", "first_last_layers_bf16": True},
            ["precision.first_last_layers_bf16=true", "precision.fp8_recipe=delayed", "another recipe"],
        ),
        ({"fp8": "hybrid", "fp8_margin": 1}, ["precision.fp8_margin", "delayed recipe alone", "blockwise"]),
        ({"fp8": "hybrid", "fp8_recipe": "mxfp8", "fp8_amax_history_len": 16}, ["precision.fp8_amax_history_len"]),
        (
            {"fp8": "hybrid", "fp8_recipe": "tensorwise", "fp8_amax_compute_algo": "max"},
            ["precision.fp8_amax_compute_algo", "tensorwise"],
        ),
        (
            {"fp8": "e4m3", "fp8_param": True, "use_distributed_optimizer": False},
            ["precision.fp8_param=true needs optimizer.use_distributed_optimizer=true"],
        ),
        ({"fp8": "e4m3", "fp8_recipe": "mxfp8", "fp8_param": True}, ["mxfp8", "set precision.fp8_param=false"]),
    ],
    ids=str,
)
def test_bad(values, parts):
    (problem,) = problems(**values)
    for part in parts:
        assert part in problem


def machine_problem(recipe: str, capability, cuda=(13, 0), transformer_engine: bool = True) -> str | None:
    precision = PrecisionConfig(fp8="e4m3", fp8_recipe=recipe)
    return find_fp8_problem(precision, transformer_engine=transformer_engine, capability=capability, cuda=cuda)


# What the GPUs can do: A100, L40, H100, B200, RTX 5090.
SUPPORTED = {
    (8, 0): set(),
    (8, 9): {"delayed", "tensorwise"},
    (9, 0): {"delayed", "tensorwise", "blockwise"},
    (10, 0): {"delayed", "tensorwise", "blockwise", "mxfp8"},
    (12, 0): {"delayed", "tensorwise", "blockwise"},
}


@pytest.mark.parametrize("capability", SUPPORTED, ids=str)
def test_each_device_runs_its_recipes(capability):
    runs = {recipe for recipe in FP8_REQUIREMENTS if machine_problem(recipe, capability) is None}
    assert runs == SUPPORTED[capability]


def test_a_device_that_lacks_the_format_is_told_what_it_has():
    problem = machine_problem("mxfp8", (9, 0))
    assert problem is not None
    assert "needs compute capability 10.0 (below 12.0) and CUDA 12.8, and here are 9.0 and 13.0" in problem
    assert "choose precision.fp8_recipe=delayed or tensorwise or blockwise" in problem
    assert "choose precision=bf16" in (machine_problem("delayed", (8, 0)) or "")


def test_blockwise_needs_a_new_cuda():
    assert machine_problem("blockwise", (9, 0), cuda=(12, 9)) is None
    assert "CUDA 12.9" in (machine_problem("blockwise", (9, 0), cuda=(12, 8)) or "")


@pytest.mark.parametrize(
    ("capability", "transformer_engine", "lacking"),
    [
        (None, False, "lacks a CUDA device and Transformer Engine:"),
        (None, True, "lacks a CUDA device:"),
        ((9, 0), False, "lacks Transformer Engine:"),
    ],
)
def test_fp8_is_refused_without_transformer_engine_or_a_gpu(capability, transformer_engine, lacking):
    problem = machine_problem("blockwise", capability, transformer_engine=transformer_engine)
    assert problem is not None
    assert lacking in problem and "precision=bf16" in problem


def test_without_fp8_no_machine_is_a_problem():
    assert find_fp8_problem(PrecisionConfig(), transformer_engine=False, capability=None, cuda=(0, 0)) is None
