"""The table of docs/models.md says what passed, of cases that the suite has."""

from __future__ import annotations

import re

from sppo_megatron.hf.families import FAMILIES
from tests.distributed import family_table
from tests.distributed.family_table import COLUMNS, PAGE, load_passed, page_with, proofs, table


def test_the_page_is_what_passed() -> None:
    assert PAGE.read_text(encoding="utf-8") == page_with(load_passed()), "run `make families`"


def test_every_case_that_passed_is_in_the_suite() -> None:
    known = {(proof.test, proof.case) for proof in proofs()}
    stored = {(test, case) for test, cases in load_passed().items() for case in cases}
    assert stored and stored <= known, f"no more in the suite: {sorted(stored - known)}; run `make families`"


def test_a_letter_is_a_case_that_passed() -> None:
    one = next(proof for proof in proofs() if proof.letter == "C")
    rows = dict(row.split(" | ", 1) for row in table({one.test: [one.case]}).splitlines()[2:])
    assert len(rows) == len(FAMILIES)
    for family in FAMILIES:
        cells = [cell.strip(" |") for cell in rows[f"| `{family}`"].split("|")]
        expected = [one.letter if (family, column) == (one.family, one.column) else "" for column in COLUMNS]
        assert [re.sub(r"dense|\(.\)", "", cell).strip() for cell in cells][: len(COLUMNS)] == expected


def test_every_family_trains_in_every_layout_that_it_has() -> None:
    """Adding a family to the suite's kinds is enough; one that isn't there shows here."""
    of_training = {(proof.family, proof.column) for proof in proofs() if proof.letter == "H"}
    rows = table({}).splitlines()[2:]
    for family, row in zip(FAMILIES, rows, strict=True):
        cells = row.split("|")[2:-1]
        for column, cell in zip(COLUMNS, cells, strict=True):
            if not cell.strip(" (1)") and column != "PP2 VPP2":
                assert (family, column) in of_training, f"{family} in {column}"


def test_what_failed_leaves_the_table(monkeypatch, tmp_path) -> None:
    """And what did not run stays."""
    passed, failed = (proof for proof in list(proofs())[:2])
    monkeypatch.setattr(family_table, "PASSED", tmp_path / "passed.json")
    monkeypatch.setattr(family_table, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "passed.json").write_text(f'{{"{passed.test}": ["{failed.case}", "{passed.case}", "gone"]}}')
    monkeypatch.setattr(family_table, "_outcomes", {(failed.test, failed.case): False})
    family_table.pytest_sessionfinish()
    assert family_table.load_passed() == {passed.test: [passed.case]}
