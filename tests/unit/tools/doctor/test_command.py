"""The doctor's answer to overrides. The whole command: tests/integration/test_doctor.py."""

from __future__ import annotations

import pytest
import torch

from sppo_doctor.command import check_overrides, main


def find(*overrides: str) -> dict:
    return {finding.subject: finding for finding in check_overrides(overrides, None)}


def test_without_overrides_no_configuration_is_looked_at():
    assert find() == {}


def test_a_model_may_be_named_and_need_not():
    assert find("model.hf_path=./nowhere")["model.hf_path"].status == "problem"
    assert set(find("precision=bf16")) == {"logger.tensorboard"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
@pytest.mark.parametrize("preset", ["fp8_delayed", "fp8_tensorwise", "fp8_blockwise", "mxfp8"])
def test_fp8_presets_on_a_cpu(preset):
    (finding,) = [f for f in find(f"precision={preset}").values() if "fp8" in f.subject]
    assert finding.status == "problem" and "Transformer Engine" in finding.text


def test_an_override_that_is_unknown():
    assert "fp9" in find("precision.fp9=true")["overrides"].text
    assert "fast" in find("precision.fp8_recipe=fast")["overrides"].text


def test_ranks_are_examined_under_torchrun(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(["--distributed"])
    assert stopped.value.code == 2 and "torchrun" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--distributed", "precision=fp32"])
    assert "give overrides to a run without it" in capsys.readouterr().err
