"""The command: what it prints, where it writes, how it fails, and that it starts light."""

import json
import subprocess
import sys

import pytest

from sppo_report.command import main


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "run"
    (run / "rollouts").mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1, "iteration": 0, "truncation_rate": 0.5}\ntorn')
    group = {"prompt_token_ids": [1], "responses": [{"token_ids": [2] * 50, "reward": i} for i in range(4)]}
    for iteration in range(5):
        (run / "rollouts" / f"iteration_{iteration:06d}.jsonl").write_text(json.dumps(group))
    return run


def test_writes_into_the_run(folder, capsys):
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert (folder / "report.html").read_bytes().startswith(b"<!doctype html>")
    for words in ("run: 1 optimizer steps", "metrics.jsonl: not a JSON object in line 2", "config.yaml is missing",
                  "warning: Many responses are cut off", f"wrote {folder / 'report.html'}: ", "kB"):  # fmt: skip
        assert words in out


def test_several_runs_and_limits(folder, tmp_path, capsys):
    page = tmp_path / "pages" / "both.html"
    limits = ["--iterations", "2", "--samples", "1", "--tokens", "10"]
    assert main([str(folder), str(folder), "--output", str(page), *limits]) == 0
    assert "2 responses of 2 of 5 rollout files" in capsys.readouterr().out
    assert page.exists()


@pytest.mark.parametrize("arguments", [["--iterations", "0"], ["--samples", "many"]])
def test_limits_are_counts(folder, arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(folder), *arguments])
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_mistakes_are_one_message(folder, tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not a folder: give the output_dir of a run" in capsys.readouterr().err
    assert main([str(folder), "--tokenizer", str(tmp_path)]) == 2
    assert "has no tokenizer.json" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([str(folder), str(folder)])
    assert stop.value.code == 2
    assert "several runs need --output" in capsys.readouterr().err


def test_starts_without_what_training_needs(folder):
    code = f"""
import sys
from sppo_report.command import main
assert main([{str(folder)!r}]) == 0
heavy = {{"torch", "numpy", "megatron", "transformers", "omegaconf", "hydra"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
