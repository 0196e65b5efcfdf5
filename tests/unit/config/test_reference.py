"""The reference page says of every key what its declaration says."""

from __future__ import annotations

from pathlib import Path

import pytest

from sppo_megatron.config import all_keys
from sppo_megatron.config.reference import main, meaning, render

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_page_is_current():
    text = PAGE.read_text(encoding="utf-8")
    assert text == render(), f"write it again: python -m sppo_megatron.config.reference {PAGE.name}"


@pytest.mark.parametrize("name", all_keys())
def test_every_key_has_a_meaning(name):
    assert meaning(all_keys()[name])[-1] in ".)", "a sentence below the key's declaration"
    assert render().count(f"| `{name}` |") == 1


def test_a_row():
    row = "| `optimizer.lr` | a number above 0 | `1e-06` | Learning rate after the warm-up. | free |"
    assert row in render().splitlines()


def test_it_is_written_to_a_path_or_printed(tmp_path, capsys):
    assert main([str(tmp_path / "page.md")]) == 0 and main([]) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == capsys.readouterr().out == render()
