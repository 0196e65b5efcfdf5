"""`sppo push`: the card says what the run was, and a dry run uploads nothing."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from omegaconf import OmegaConf

from sppo_megatron.config.compose import compose_config
from sppo_megatron.train.provenance import note_start
from sppo_report.push import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two iterations whose evaluation went from .25 to .75, as its output folder."""
    folder = tmp_path / "run"
    (folder / "hf").mkdir(parents=True)
    (folder / "hf" / "config.json").write_text("{}")
    (folder / "hf" / "model.safetensors").write_bytes(bytes(1000))
    _, composed = compose_config(
        ["model.hf_path=Qwen/Qwen2.5-1.5B", "data.train_path=org/prompts:main", "optimizer.lr=3e-6", "objective.eta=7"]
    )
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(composed))
    lines = [{"step": step, "iteration": step - 1, "reward_mean": step / 2, "loss": 1.0} for step in (1, 2)]
    evaluations = [
        {"eval_step": step, "eval_iteration": step, "eval_reward_mean": mean, "eval_win_rate_initial": mean}
        | {"eval_win_rate_initial_low": mean - 0.1, "eval_win_rate_initial_high": mean + 0.1}
        | {"eval_pass_at_16": mean, "eval_pass_at_16_low": mean / 2, "eval_pass_at_16_high": 0.9, "eval_pass_at_4": 0.2}
        for step, mean in ((0, 0.25), (2, 0.75))
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*lines, *evaluations])))
    note_start(folder, ranks=8, step=None)
    note_start(folder, ranks=16, step=1)
    return folder


def test_the_card(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(run), "--repo", "me/better", "--dry-run"]) == 0
    assert "nothing was uploaded" in capsys.readouterr().out
    text = (run / "hf" / "README.md").read_text(encoding="utf-8")
    card = ModelCard(text)  # the hub's own reader
    assert card.data.base_model == "Qwen/Qwen2.5-1.5B" and card.data.datasets == ["org/prompts"]
    assert "# better" in text and "2 iterations, 2 optimizer steps" in text
    assert "The regression family, (s − δ)²" in text and "`objective.eta=7" in text
    assert "| `eval_reward_mean` | 0.250 | 0.750 | 0.750 at step 2 |" in text
    assert "0.750 (0.650 to 0.850)" in text
    assert "0.200 at step 0 |\n| `eval_pass_at_16` | 0.250 (0.125 to 0.900) | 0.750 (0.375 to 0.900) |" in text
    assert "torchrun --nproc-per-node 16 -m sppo_megatron.train" in text
    assert "optimizer.lr=3.0e-06" in text and "train_path" not in text
    assert [line for line in text.splitlines() if line.startswith("| 20")][1].split("|")[2:4] == [" 16 ", " 1 "]
    assert "torch 2." in text


def test_the_command_of_the_card_says_what_the_run_was(run: Path):
    """Composed again, with the paths, it is the run's own configuration."""
    main([str(run), "--repo", "me/better", "--dry-run"])
    text = (run / "hf" / "README.md").read_text(encoding="utf-8")
    block = text.partition("```bash\n")[2].partition("\n```")[0].replace("\\\n", " ")
    words = block.split("sppo_megatron.train")[1].split()
    again, _ = compose_config([*words, "model.hf_path=Qwen/Qwen2.5-1.5B", "data.train_path=org/prompts:main"])
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert again.optimizer.lr == stored["optimizer"]["lr"] == 3e-6 and again.objective.eta == 7


def test_the_card_of_several_sources(run: Path):
    """Each is named and, if it is on the hub, linked; where the others lie on this machine is nobody's business."""
    stored = yaml.safe_load((run / "config.yaml").read_text())
    stored["data"] |= {
        "train_path": None,
        "sources": [{"name": "uf", "path": "org/uf"}, {"name": "own", "path": "/x/y"}],
    }
    (run / "config.yaml").write_text(yaml.safe_dump(stored))
    main([str(run), "--repo", "me/better", "--dry-run"])
    text = (run / "hf" / "README.md").read_text(encoding="utf-8")
    assert ModelCard(text).data.datasets == ["org/uf"]
    assert "the policy answered prompts of `uf`, `own` 8 times" in text
    assert "'data.sources=[{name: uf}, {name: own}]'" in text and "/x/y" not in text


def test_the_picture_is_well_formed(run: Path):
    main([str(run), "--repo", "me/better", "--dry-run"])
    root = ElementTree.fromstring((run / "hf" / "curves.svg").read_text(encoding="utf-8"))
    assert len(root.findall("{*}polyline")) == 2  # reward and held-out reward


def test_a_card_of_ones_own_stays(run: Path):
    card = run / "hf" / "README.md"
    card.write_text("mine")
    assert main([str(run), "--repo", "me/better", "--dry-run"]) == 0 and card.read_text() == "mine"
    assert main([str(run), "--repo", "me/better", "--dry-run", "--overwrite-card"]) == 0 and card.read_text() != "mine"


@pytest.mark.parametrize("arguments", [["RUN", "--repo", "better"], ["RUN/hf", "--repo", "me/better"]])
def test_what_cannot_be_pushed_is_one_message(run: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main([argument.replace("RUN", str(run)) for argument in arguments]) == 2
    assert capsys.readouterr().err.startswith("configuration error: ")


def test_a_hub_that_does_not_answer(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    assert main([str(run), "--repo", "me/better"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("push stopped: the upload to me/better failed") and "hf_of_this_test" not in error


def test_starts_of_an_older_run_in_the_folder_go(tmp_path: Path):
    for ranks, step in ((1, None), (2, 5), (3, None), (4, 9)):
        note_start(tmp_path, ranks, step)
    lines = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [(line["ranks"], line["step"]) for line in lines] == [(3, None), (4, 9)]
