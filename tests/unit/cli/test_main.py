"""`sppo`: one command, whose sub-commands are entry points."""

from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from sppo_megatron.cli import main as command

ROOT = Path(__file__).parents[3]
# The installed metadata belongs to some checkout; this one's is in its pyproject.
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][command.GROUP]


@pytest.fixture(autouse=True)
def declared(monkeypatch):
    entries = [EntryPoint(name, value, command.GROUP) for name, value in DECLARED.items()]
    monkeypatch.setattr(command, "entry_points", lambda group: entries)


def test_help_says_a_line_for_each_command(capsys):
    assert command.main(["--help"]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines() if line.startswith("  "))
    wanted = {
        "train",
        "generate",
        "score",
        "evaluate",
        "convert",
        "verify",
        "serve",
        "plan",
        "doctor",
        "report",
        "rollouts",
    }
    assert lines.keys() == DECLARED.keys() >= wanted | {"rollouts"}
    for name, line in lines.items():
        assert len(line) > 20 and line.endswith(".") and not line.startswith("sppo"), (name, line)


def test_without_arguments_it_helps(capsys):
    assert command.main([]) == 0
    assert "usage: sppo COMMAND" in capsys.readouterr().out


def test_an_unknown_command_is_one_line(capsys):
    assert command.main(["trian"]) == 2
    assert capsys.readouterr().err.startswith("sppo: 'trian' is not a command: choose one of convert, ")


@pytest.mark.parametrize("name", DECLARED)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        command.main([name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: sppo {name}")


def test_the_arguments_and_the_exit_code_are_the_commands_own(capsys):
    assert command.main(["convert", "--to", "hf", "--output", "/nowhere"]) == 2
    assert capsys.readouterr().err == (
        "configuration error: --to hf reads --megatron-path: give the folder with metadata.json\n"
    )
    assert command.main(["convert", "--to", "megatron", "--megatron-path", "/x", "--output", "/nowhere"]) == 2
    assert "--to megatron reads --hf-path" in capsys.readouterr().err
