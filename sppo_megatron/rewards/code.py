"""A reward for programs: what a response's code does on tests, in a process with limits.

The limits keep a bad program from harming the run by accident. They are no security boundary: see docs/rewards.md.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sppo_megatron.cluster.helper_processes import MARK, kill_tree
from sppo_megatron.rewards import code_child
from sppo_megatron.rewards.function import find_function
from sppo_megatron.rewards.own_turn import own_turn
from sppo_megatron.rewards.verifiers import Score

MAX_OUTPUT = 1 << 20  # bytes of a program's output that are compared
MAX_FILES = 64  # open at a time
SHARE = 0.8  # of reward.timeout_s: a program that is slow has failed, and the reward hasn't
_FENCED = re.compile(r"```(\w*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Case:
    """One test. Either code that follows the program and raises if it is wrong; or what is read and must be printed."""

    test: str | None = None
    input: str = ""
    output: str = ""


Sandbox = Callable[[str, list[dict[str, Any]], float], Sequence[bool]]


def read_cases(answer: str) -> list[Case]:
    """The tests that the prompt's answer holds. Raises ValueError if it holds none.

    JSON {"inputs": [...], "outputs": [...]}, [{"input": ..., "output": ...}, ...] or ["assert ...", ...]; else Python
    that is run behind the program.
    """
    try:
        stored = json.loads(answer)
    except ValueError:
        stored = [answer]
    if isinstance(stored, dict) and {"inputs", "outputs"} <= stored.keys():
        if len(stored["inputs"]) != len(stored["outputs"]):
            raise ValueError(f"the tests have {len(stored['inputs'])} inputs and {len(stored['outputs'])} outputs")
        stored = [{"input": i, "output": o} for i, o in zip(stored["inputs"], stored["outputs"], strict=True)]
    if not isinstance(stored, list) or not stored or not all(map(_is_case, stored)):
        raise ValueError('the answer holds no tests: {"inputs", "outputs"}, [{"input", "output"}, ...], or Python')
    for test in (case for case in stored if isinstance(case, str)):
        try:
            compile(test, "the tests", "exec")
        except SyntaxError as error:
            raise ValueError(f"the tests are neither JSON nor Python: {error}") from None
    return [Case(test=case) if isinstance(case, str) else Case(None, case["input"], case["output"]) for case in stored]


def _is_case(case: Any) -> bool:
    if isinstance(case, str):
        return bool(case.strip())
    return isinstance(case, dict) and all(isinstance(case.get(key), str) for key in ("input", "output"))


def program_of(response: str) -> str:
    """The last block fenced as Python, else the last fenced one, else the response itself."""
    blocks = _FENCED.findall(own_turn(response))
    python = [text for language, text in blocks if language.lower() in ("python", "python3", "py")]
    return (python or [text for _, text in blocks] or [response])[-1]


def code(
    response: str, answer: str, *, sandbox: str | None, memory: int, seconds: float, partial_credit: bool
) -> Score:
    """1 if the response's program passes all tests, else 0; with partial_credit the share that it passes.

    sandbox: "module:name" of what runs it, None for a `LocalSandbox`. memory: in bytes. seconds: for all tests.
    """
    cases = read_cases(answer)
    run: Sandbox = LocalSandbox(memory, wants_all=partial_credit)
    if sandbox is not None:
        run = find_function(sandbox, "reward.code.sandbox")
    passed = run(program_of(response), [asdict(case) for case in cases], seconds)
    if len(passed) != len(cases):
        raise ValueError(f"reward.code.sandbox gave {len(passed)} verdicts on {len(cases)} tests")
    correct = all(passed)
    return Score(sum(map(bool, passed)) / len(cases) if partial_credit else float(correct), correct)


@dataclass(frozen=True)
class LocalSandbox:
    """Runs a program for each case in a fresh process; stops at the first that fails unless all are wanted.

    memory: bytes of address space. The process has no network if the kernel allows that, an empty folder, limits on
    CPU time, memory, open files and the size of what it writes, and is killed with all that it started.
    """

    memory: int
    wants_all: bool

    def __call__(self, program: str, cases: Sequence[dict[str, Any]], seconds: float) -> list[bool]:
        end = time.monotonic() + seconds
        passed: list[bool] = []
        for case in cases:
            goes_on = self.wants_all or all(passed)
            passed.append(goes_on and self._passes(program, Case(**case), end - time.monotonic()))
        return passed

    def _passes(self, program: str, case: Case, seconds: float) -> bool:
        if seconds <= 0:
            return False
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path, output = Path(folder, "program.py"), Path(folder, "output")
            reached = Path(folder, uuid.uuid4().hex)  # a program that ends by itself before its test hasn't passed it
            behind = "" if case.test is None else f"\n\n{case.test}\nopen({str(reached)!r}, 'w').close()\n"
            path.write_text(program + behind, encoding="utf-8", errors="surrogatepass")
            Path(folder, "input").write_text(case.input, encoding="utf-8", errors="surrogatepass")
            if self._run(folder, path, output, seconds) != 0:
                return False
            if case.test is not None:
                return reached.exists()
            with open(output, encoding="utf-8", errors="replace") as file:
                return _lines(file.read(MAX_OUTPUT)) == _lines(case.output)

    def _run(self, folder: str, program: Path, output: Path, seconds: float) -> int | None:
        """The exit status, None if it took too long."""
        limits = {
            "cpu_s": int(seconds) + 1,
            "memory": self.memory,
            "file_bytes": MAX_OUTPUT,
            "files": MAX_FILES,
        }
        mark = uuid.uuid4().hex
        command = [sys.executable, "-I", code_child.__file__, json.dumps(limits), str(program)]
        with open(Path(folder, "input"), "rb") as stdin, open(output, "wb") as stdout:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={MARK: mark},
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                return process.wait(seconds)
            except subprocess.TimeoutExpired:
                return None
            finally:
                kill_tree(process.pid, mark)
                process.wait()


def _lines(text: str) -> list[str]:
    """Without white space behind lines, and without empty lines behind the last."""
    return [line.rstrip() for line in text.rstrip().splitlines()]
