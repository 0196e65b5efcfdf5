"""The table of docs/models.md: which family was proven in which layout, by tests that passed.

    pytest -p tests.distributed.family_table tests/distributed/{layouts,conversion,vllm}

writes the names of the cases that passed to passed_cases.json (those that didn't run keep what they were, those that
failed or are no more in the suite go) and the table anew. `make families` does it. Nothing is written by hand.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo_megatron.hf.families import FAMILIES
from tests.distributed.conversion import cases as conversion
from tests.distributed.conversion.models import CONFIGS
from tests.distributed.layouts import cases as layouts
from tests.distributed.layouts import test_other_layout
from tests.distributed.layouts.models import BIASED_EXPERTS, TEXT_PARTS, has_experts
from tests.distributed.vllm import test_vllm

PASSED = Path(__file__).with_name("passed_cases.json")
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- written by make families: do not edit -->", "<!-- end -->"
_ONE = ("one process", "packed", "recomputed", "unfused")  # kinds of micro-batches and of the backward pass
# (tensor, pipeline, virtual, context, expert) sizes on two processes
_TWO = {
    (2, 1, 1, 1, 1): "TP2",
    (1, 2, 1, 1, 1): "PP2",
    (1, 2, 2, 1, 1): "PP2 VPP2",
    (1, 1, 1, 2, 1): "CP2",
    (1, 1, 1, 1, 1): "DP2",
    (1, 1, 1, 1, 2): "EP2",
    (2, 1, 1, 1, 2): "TP2 EP2",
}
COLUMNS = (*_ONE, *_TWO.values())
OF_EXPERTS = ("EP2", "TP2 EP2")


@dataclass(frozen=True)
class Proof:
    """One case of the suite: what its passing says, of which family, in which column."""

    letter: str
    test: str
    case: str
    family: str
    column: str


def proofs() -> Iterator[Proof]:
    """Every case of the suite that belongs to a cell."""
    for case in layouts.CASES:
        yield from _proof("H", "test_equals_plain_definition", case.name, case.model, case.world_size, case.overrides)
    for case in conversion.CASES:
        sizes = {f"parallelism.{name}": size for name, size in case.parallelism.items()}
        yield from _proof("B", "test_there_and_back", case.name, case.model, case.world_size, sizes)
    for name, (world_size, model, sizes) in test_vllm.LAYOUTS.items():
        yield from _proof("V", "test_log_probs_are_the_trainers", name, model, world_size, sizes)
    models = {case.name: case.model for case in test_other_layout.SAVED}
    for change in test_other_layout.CHANGES:
        model = models[change.saved]
        yield from _proof("C", "test_continues_as_if_uninterrupted", change.name, model, 2, change.sizes)


def _proof(letter: str, test: str, case: str, model: str, world_size: int, sizes: Mapping[str, Any]) -> Iterator[Proof]:
    column = _column(world_size, sizes)
    if column is not None:
        yield Proof(letter, test, case, CONFIGS[model]().model_type, column)


def _column(world_size: int, sizes: Mapping[str, Any]) -> str | None:
    if world_size == 1:
        if layouts.RECOMPUTED.items() <= sizes.items():
            return "recomputed"
        if layouts.UNFUSED.items() <= sizes.items():
            return "unfused"
        return "packed" if layouts.PACKED in sizes else "one process"
    key = tuple(sizes.get(name, 1) for name in (layouts.TP, layouts.PP, layouts.VPP, layouts.CP, layouts.EP))
    return _TWO.get(key) if world_size == 2 else None


def table(passed: Mapping[str, list[str]]) -> str:
    """Markdown. A cell's letters are those of its cases that passed."""
    cells: dict[tuple[str, str], set[str]] = defaultdict(set)
    for proof in proofs():
        if proof.case in passed.get(proof.test, []):
            cells[proof.family, proof.column].add(proof.letter)
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for family in FAMILIES:
        row = ["".join(sorted(cells[family, column], key="HBCV".index)) for column in COLUMNS]
        reasons = [_why_not(family, column) for column in COLUMNS]
        lines.append(f"| `{family}` | " + " | ".join(map(" ".join, zip(row, reasons, strict=True))) + " |")
    return "\n".join(" ".join(line.split()) for line in lines)


def _why_not(family: str, column: str) -> str:
    """What a layout can't be, or only with another setting, for a family."""
    kinds = {model for model, make in CONFIGS.items() if make().model_type == family}
    if column in OF_EXPERTS and not has_experts(min(kinds)):
        return "dense"
    if kinds & TEXT_PARTS.keys():
        return "(2)"
    return "(1)" if column == "TP2" and kinds & set(BIASED_EXPERTS) else ""


def page_with(passed: Mapping[str, list[str]]) -> str:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table(passed)}\n\n{END}{rest.split(END)[1]}"


def load_passed() -> dict[str, list[str]]:
    return json.loads(PASSED.read_text()) if PASSED.exists() else {}


# ---------------------------------------------------------------- the plugin

_outcomes: dict[tuple[str, str], bool] = {}  # of (test, case): whether it passed


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Cases of no cell don't run."""
    known = {(proof.test, proof.case) for proof in proofs()}
    items[:] = [item for item in items if _named(item.nodeid) in known]


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" or report.failed:
        _outcomes[_named(report.nodeid)] = report.passed


def _named(nodeid: str) -> tuple[str, str]:
    """A test's function and its case."""
    test, _, case = nodeid.rpartition("::")[2].partition("[")
    return test, case.removesuffix("]")


def pytest_sessionfinish() -> None:
    known = {(proof.test, proof.case) for proof in proofs()}
    before = {(test, case) for test, cases in load_passed().items() for case in cases}
    passed = (before | _outcomes.keys()) & known
    passed = {key for key in passed if _outcomes.get(key, True)}
    by_test: dict[str, list[str]] = {}
    for test, case in sorted(passed):
        by_test.setdefault(test, []).append(case)
    PASSED.write_text(json.dumps(by_test, indent=1) + "\n")
    PAGE.write_text(page_with(by_test), encoding="utf-8")
