"""The documentation: its site builds with every link leading somewhere, and its reference pages are current."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sppo_megatron.cli import reference as command_reference
from sppo_megatron.config import all_keys
from sppo_megatron.config.compose import compose_config
from sppo_report import metric_reference
from tests.installed import needs_mkdocs

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@needs_mkdocs
def test_the_site_builds_and_every_link_leads_somewhere(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert all((tmp_path / page.stem / "index.html").exists() for page in PAGES if page.stem != "index")


def test_the_page_of_metrics_is_current():
    written = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert written == metric_reference.render(), "write it again: make docs"


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse words its help otherwise")
def test_the_page_of_commands_is_current():
    written = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert written == command_reference.render(), "write it again: make docs"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_every_key_that_a_page_names_exists(page: Path):
    """`group.key` in code spans: a key, or the start of some. The first column of a table may be another trainer's."""
    known, groups = set(all_keys()), {name.partition(".")[0] for name in all_keys() if "." in name}
    ours = "\n".join(re.sub(r"^\|.*?(?<!\\)\|", "", line) for line in page.read_text(encoding="utf-8").splitlines())
    named = set(re.findall(r"(?<![\w./-])([a-z]+(?:\.[a-z_0-9]+)+)(?==|`)", ours)) - {"train.jsonl"}
    wrong = {
        name
        for name in named
        if name.partition(".")[0] in groups
        and name not in known
        and not any(key.startswith(name + ".") or name.startswith(key + ".") for key in known)
    }
    assert not wrong


LEFT_OUT = ["model.hf_path=MODEL", "data.train_path=train.jsonl"]  # what `...` in a command stands for


def training_commands(page: Path) -> list[list[str]]:
    """The overrides of every whole command `... sppo_megatron.train ...` in a page's code blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [shlex.split(line, comments=True) for line in lines if "-m sppo_megatron.train" in line]
    overrides = [words[words.index("sppo_megatron.train") + 1 :] for words in found]
    return [
        [given for word in words for given in (LEFT_OUT if word in ("...", "…") else [word])] for words in overrides
    ]


COMMANDS = [(page.stem, words) for page in [*PAGES, ROOT / "README.md"] for words in training_commands(page)]


@pytest.mark.parametrize(("page", "overrides"), COMMANDS, ids=[f"{page}-{n}" for n, (page, _) in enumerate(COMMANDS)])
def test_every_training_command_composes(page: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    if "--cfg" not in overrides:
        compose_config([word for word in overrides if not word.startswith("--")])


def test_there_are_commands_to_check():
    assert len(COMMANDS) > 8
