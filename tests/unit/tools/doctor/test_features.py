"""What a configuration asks for, on this machine."""

from __future__ import annotations

import socket

import pytest
import torch

from sppo_doctor import features
from sppo_doctor.features import check_features
from sppo_megatron.config import Config, JudgeConfig


def find(**values: object) -> dict:
    config = Config()
    config.model.hf_path = "name/of-a-model"
    for key, value in values.items():
        group, _, name = key.partition("__")
        assert hasattr(getattr(config, group), name), key
        setattr(getattr(config, group), name, value)
    return {finding.subject: finding for finding in check_features(config)}


def test_defaults_need_a_logger_and_a_model():
    assert set(find()) == {"logger.tensorboard", "model.hf_path"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
def test_fp8_on_a_cpu():
    finding = find(precision__fp8="e4m3", precision__fp8_recipe="mxfp8")["precision.fp8_recipe=mxfp8"]
    assert finding.status == "problem"
    assert "lacks a CUDA device" in finding.text and "precision=bf16" in finding.text


def test_fp8_on_a_gpu_of_another_kind(monkeypatch):
    monkeypatch.setattr(features, "device_capability", lambda: (9, 0))
    monkeypatch.setattr(features, "cuda_version", lambda: (13, 0))
    monkeypatch.setattr(features, "is_installed", lambda module: True)
    assert find(precision__fp8="e4m3")["precision.fp8_recipe=blockwise"].status == "ok"
    finding = find(precision__fp8="e4m3", precision__fp8_recipe="mxfp8")["precision.fp8_recipe=mxfp8"]
    assert finding.status == "problem" and "compute capability 10.0" in finding.text


@pytest.mark.parametrize(("capability", "warned"), [((7, 5), True), ((8, 0), False), (None, False)])
def test_bf16_is_emulated_on_old_gpus(monkeypatch, capability, warned):
    monkeypatch.setattr(features, "device_capability", lambda: capability)
    assert ("precision.dtype=bf16" in find()) == warned


@pytest.mark.parametrize(
    ("values", "subject", "status", "text"),
    [
        ({"reward__kind": "function", "reward__function": "json:loads"}, "reward.function=json:loads", "ok", "json"),
        (
            {"reward__kind": "function", "reward__function": "nowhere_at_all:score"},
            "reward.function=nowhere_at_all:score",
            "problem",
            "nowhere_at_all isn't installed",
        ),
        (
            {"reward__kind": "function", "reward__function": "nowhere.at.all:score"},
            "reward.function=nowhere.at.all:score",
            "problem",
            "No module named 'nowhere'",
        ),
        ({"reward__kind": "math_verify"}, "reward.kind=math_verify", "ok", "math_verify"),
        ({"logger__tensorboard": True}, "logger.tensorboard", "ok", "tensorboard"),
        ({"model__hf_path": "./nowhere"}, "model.hf_path", "problem", "./nowhere does not exist"),
        ({"model__hf_path": "name/of-a-model"}, "model.hf_path", "note", "hub id"),
        ({"rollout__engine": "vllm_server"}, "rollout.engine=vllm_server", "note", "server"),
    ],
    ids=str,
)
def test_each_feature(values, subject, status, text, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    finding = find(**values)[subject]
    assert finding.status == status and text in finding.text
    if status == "problem":
        assert finding.fix


@pytest.mark.parametrize(
    ("values", "subject", "module"),
    [
        ({"rollout__engine": "vllm"}, "rollout.engine=vllm", "vllm"),
        ({"reward__kind": "math_verify"}, "reward.kind=math_verify", "math_verify"),
        ({"logger__wandb_project": "p"}, "logger.wandb_project", "wandb"),
        ({"logger__mlflow_experiment": "p"}, "logger.mlflow_experiment", "mlflow"),
    ],
    ids=str,
)
def test_what_is_not_installed_is_a_problem(values, subject, module, monkeypatch):
    monkeypatch.setattr(features, "find_spec", lambda name: None if name == module else object())
    finding = find(**values)[subject]
    assert finding.status == "problem" and f"{module} isn't installed" in finding.text
    assert finding.fix.startswith("pip install")


def test_a_judge_is_looked_for():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        judge = JudgeConfig(urls=[url])
        finding = find(reward__kind="judge", reward__judge=judge)["reward.kind=judge"]
        assert (finding.status, finding.text) == ("ok", f"{url} takes connections")
    finding = find(reward__kind="judge", reward__judge=judge)["reward.kind=judge"]
    assert finding.status == "problem" and f"{url} can't be reached" in finding.text and finding.fix


def test_every_part_of_a_mixture_is_looked_at():
    mixture = [{"kind": "math_verify", "weight": 1.0}, {"kind": "function", "function": "json:loads", "weight": 1.0}]
    subjects = set(find(reward__kind="mixture", reward__mixture=mixture))
    assert subjects >= {"reward.kind=math_verify", "reward.function=json:loads"}


def test_triton_kernels_on_a_cpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    finding = find(train__log_prob_kernels="triton")["train.log_prob_kernels=triton"]
    assert finding.status == "problem" and "choose 'auto'" in finding.text


def test_models_on_disk(tmp_path, monkeypatch):
    assert find(model__hf_path=str(tmp_path))["model.hf_path"].status == "problem"
    (tmp_path / "config.json").touch()
    assert find(model__hf_path=str(tmp_path))["model.hf_path"].status == "ok"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find()["model.hf_path"].status == "warning"
