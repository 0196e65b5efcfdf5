"""The wheel, in a virtual environment and far from the checkout: commands, configurations, a training run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.integration import tiny_task

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of the installed wheel are. What it depends on comes from the environment of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", ROOT, "--no-deps", "--no-build-isolation", "-w", folder], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    venv = folder / "venv"
    [wheel] = folder.glob("*.whl")
    subprocess.run([*pip, "--python", venv / "bin" / "python", "install", "--no-deps", wheel], check=True)
    [site_packages] = venv.glob("lib/python*/site-packages")
    # A path in a .pth file is searched; .pth files in that folder are not read, so the checkout stays unknown.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv / "bin"


def run(command: list[object], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_it_is_the_wheel_that_is_imported(bin_folder: Path, tmp_path: Path):
    names = "sppo_megatron, sppo_planner, sppo_doctor, sppo_report, sppo_benchmarks"
    code = f"import {names}; print(*[module.__file__ for module in ({names})], sep='\\n')"
    paths = run([bin_folder / "python", "-c", code], tmp_path).stdout.splitlines()
    assert len(paths) == 5 and all(path.startswith(str(bin_folder.parent)) for path in paths)


def test_the_commands(bin_folder: Path, tmp_path: Path):
    printed = run([bin_folder / "sppo", "--help"], tmp_path).stdout
    assert all(name in printed for name in ("train", "generate", "convert", "plan", "doctor", "report"))
    plan = [bin_folder / "sppo", "plan", "--check", "experiment=qwen2.5-7b", "--gpus", 8, "--gpu", "h100"]
    run(plan, tmp_path)  # shapes and experiments are in it


def test_it_trains_and_reports(bin_folder: Path, tmp_path: Path):
    task = tiny_task.make_task(tmp_path / "task")
    overrides = tiny_task.overrides(task, tmp_path / "run", **{"train.iterations": 2})
    run([bin_folder / "sppo", "train", *overrides], tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "step" in line] == list(range(1, 7))
    run([bin_folder / "sppo", "report", tmp_path / "run"], tmp_path)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    printed = run([bin_folder / "sppo", "push", tmp_path / "run", "--repo", "me/digits", "--dry-run"], tmp_path).stdout
    assert "model.safetensors" in printed
    card = (tmp_path / "run" / "hf" / "README.md").read_text()
    assert "python -m sppo_megatron.train" in card and "sppo-megatron 0" in card and "2 iterations, 6 optimizer" in card
