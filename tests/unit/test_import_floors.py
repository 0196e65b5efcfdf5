"""Imports go down only: the floors of the design, read from the source of every module."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sppo_megatron

PACKAGE = "sppo_megatron"
ROOT = Path(sppo_megatron.__file__).parent
# From the bottom up: a room may import those of lower floors.
FLOORS = {
    "errors": 0,
    "types": 0,
    "parallel": 1,
    "objective": 1,
    "config": 2,
    "cluster": 2,
    "megatron_cpu": 2,
    "data": 3,
    "hf": 3,
    "batch": 4,
    "rewards": 4,
    "policy": 5,
    "engines": 6,
    "rollout": 7,
    "train": 8,
    "cli": 9,
}
# What a room may import of the package besides itself, if that is less than its floor allows.
ONLY: dict[str, set[str]] = {
    **{room: set() for room in ("types", "errors", "parallel", "objective")},
    "config": {"errors", "objective"},
    "cluster": {"errors"},
    "megatron_cpu": {"parallel"},
}
# Third-party packages that only some rooms may import.
ROOMS_OF = {
    "megatron": {"policy", "megatron_cpu"},
    "transformer_engine": {"policy"},
    "vllm": {"engines"},
}


def imports_of(module: str, source: str, is_package: bool = False) -> set[str]:
    """Absolute dotted names that a module imports, inside functions and `if TYPE_CHECKING` too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                start = ".".join([*parents, *([node.module] if node.module else [])])
            found.update([f"{start}.{alias.name}" for alias in node.names])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found.update(str(value.value) for value in node.args[:1] if isinstance(value, ast.Constant))
    return found


def room_of(name: str) -> str | None:
    """`sppo_megatron.data.prompts` -> `data`; None for the package itself and for the outside."""
    parts = name.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 and parts[1] in FLOORS else None


def violations(module: str, imported: set[str]) -> list[str]:
    room = room_of(module)
    assert room is not None, f"{module} has no floor: give it one in the design and here"
    problems = []
    for name in sorted(imported):
        top, other = name.partition(".")[0], room_of(name)
        if top in ROOMS_OF and room not in ROOMS_OF[top]:
            problems.append(f"{module} imports {name}, which is for {', '.join(sorted(ROOMS_OF[top]))} alone")
        if other is None or other == room:
            continue
        if FLOORS[other] > FLOORS[room] or (room in ONLY and other not in ONLY[room]):
            problems.append(f"{module} (floor {FLOORS[room]}) imports {name} (floor {FLOORS[other]})")
    return problems


def modules(root: Path) -> dict[str, Path]:
    paths = sorted(root.rglob("*.py"))
    names = {".".join(path.relative_to(root.parent).with_suffix("").parts): path for path in paths}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


def imports_of_all(modules: dict[str, Path]) -> dict[str, set[str]]:
    return {
        name: imports_of(name, path.read_text(encoding="utf-8"), path.name == "__init__.py")
        for name, path in modules.items()
    }


MODULES = modules(ROOT)
IMPORTS = imports_of_all(MODULES)
# Packages of their own above all rooms.
TOOLS = {path.parent.name: path.parent for path in sorted((ROOT.parent / "tools").glob("*/__init__.py"))}


@pytest.mark.parametrize("module", [name for name in MODULES if name != PACKAGE])
def test_imports_go_down(module):
    assert violations(module, IMPORTS[module]) == []


def test_the_package_itself_imports_the_objective_alone():
    assert {room_of(name) for name in IMPORTS[PACKAGE]} - {None} == {"objective"}


def test_no_room_imports_a_tool():
    assert len(TOOLS) == 4
    found = {module: {name.partition(".")[0] for name in names} & TOOLS.keys() for module, names in IMPORTS.items()}
    assert not {module: names for module, names in found.items() if names}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_imports_no_other_tool_and_no_megatron(tool):
    """Benchmarks measure Megatron-Core itself."""
    forbidden = TOOLS.keys() - {tool} | (set() if tool == "sppo_benchmarks" else {"megatron", "vllm"})
    for module, names in imports_of_all(modules(TOOLS[tool])).items():
        assert not {name.partition(".")[0] for name in names} & forbidden, module


def test_no_cycles_between_rooms():
    edges = {(room_of(module), room_of(name)) for module, names in IMPORTS.items() for name in names}
    below = {room: {b for a, b in edges if a == room and b not in (None, room)} for room in FLOORS}
    while below:
        leaves = [room for room, others in below.items() if not others & below.keys()]
        assert leaves, f"a cycle among {sorted(below)}: {below}"
        for room in leaves:
            del below[room]


@pytest.mark.parametrize(
    ("module", "source", "what"),
    [
        ("sppo_megatron.data.prompts", "from sppo_megatron.train.loop import Trainer", "floor 8"),
        ("sppo_megatron.data.prompts", "def f():\n    import sppo_megatron.policy.policy", "floor 3"),
        ("sppo_megatron.data.prompts", "from ..policy import model", "floor 3"),
        ("sppo_megatron.data.prompts", "from sppo_megatron import policy", "floor 3"),
        ("sppo_megatron.objective.pairwise", "from sppo_megatron.config import Config", "floor 2"),
        ("sppo_megatron.parallel.reduce", "from sppo_megatron.objective import win_rates", "floor 1"),
        ("sppo_megatron.config.checks", "from sppo_megatron.types import Group", "floor 0"),
        ("sppo_megatron.train.loop", "def f():\n    from megatron.core import parallel_state", "policy alone"),
        ("sppo_megatron.hf.save", "import transformer_engine.pytorch as te", "policy alone"),
        ("sppo_megatron.policy.model.build", "import vllm", "engines alone"),
        ("sppo_megatron.rewards.worker", "import importlib\nimportlib.import_module('vllm')", "engines alone"),
    ],
)
def test_a_violation_is_found(module, source, what):
    (problem,) = violations(module, imports_of(module, source))
    assert what in problem


LIGHT = """
import importlib.abc, importlib.util, sys
ALLOWED = {"torch", "numpy", "sppo_megatron", *sys.stdlib_module_names}
class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] not in ALLOWED:
            raise ImportError(f"{name} is blocked")
import torch, numpy, torch.distributed  # what these need themselves is their affair
before = set(sys.modules)
sys.meta_path.insert(0, Nothing())
for name in %r:
    importlib.import_module(name)
new = {name.partition(".")[0] for name in set(sys.modules) - before} - ALLOWED
assert not new, new
try:
    import sppo_megatron.config.compose
except ImportError as error:
    assert "blocked" in str(error)
else:
    raise AssertionError("nothing was blocked")
"""


def test_the_light_part_needs_torch_and_numpy_alone():
    """The kernels need triton: they are loaded where it is, and not by what is imported here."""
    light = [name for name in MODULES if FLOORS.get(room_of(name) or "", 9) <= 1 and ".kernels" not in name] + [PACKAGE]
    code = LIGHT % (light,)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
